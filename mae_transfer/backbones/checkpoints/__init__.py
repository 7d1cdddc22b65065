"""Checkpoint files -> audited weights: one small reader per layout, one loader that accounts for every tensor."""
