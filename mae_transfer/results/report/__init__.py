"""The report: one HTML page of tables, plots and runs, made from run records. `page.py` makes it. No torch.

Nothing on the page comes from a network and nothing depends on the time: the same records give the same bytes.
"""
