"""Runs that read one layer after the other of an encoder: they have a table and a plot of their own, and stand in no
other."""

import pandas as pd

from mae_transfer.run_folder.settings import settings_id

LEAST = 3
"""Layers of runs that are alike in all else, from which on they are a sweep."""


def sweeps(table: pd.DataFrame) -> pd.Series:
    """Rows of the long table -> an id that the runs of a sweep share, whatever their encoder; None of other runs."""
    like = [settings_id({k: v for k, v in each.items() if k != "probe.layers"}) for each in table["settings"]]
    ids = pd.Series(like, index=table.index, dtype=object)
    of_layers = table.assign(like=ids)[table["layer"].notna()]
    keys = ["init", "size", "backbone", "weights", "preset", "like"]
    several = of_layers.groupby(keys)["layer"].transform("nunique") >= LEAST
    return ids.where(pd.Series(several, index=table.index, dtype=object).eq(True), None)
