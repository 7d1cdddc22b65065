"""Images -> one token of a visual vocabulary a patch: the targets of BEiT, and of MAE in the last row of its Table 1d."""
