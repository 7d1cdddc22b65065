"""Plots from run records: `comparisons.py` over runs, `curves.py` of one run, `figure.py` draws. No torch."""
