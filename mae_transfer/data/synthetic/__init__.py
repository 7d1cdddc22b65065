"""Tiny data sets made on the fly, for smoke runs and tests: real image files in each task's own layout."""
