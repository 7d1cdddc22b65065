"""Images -> a token of a visual vocabulary for each patch: the targets of BEiT, and of the last row of MAE Table 1d."""
