"""The published numbers (`published.csv`), each with its source."""

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).with_name("published.csv")


def read_published() -> pd.DataFrame:
    """The published numbers.

    `recipe` is empty where a task has but one, `protocol` where it has none, `blocks` NaN but for partial fine-tuning.
    """
    published = pd.read_csv(PUBLISHED, keep_default_na=False, na_values={"blocks": [""]})
    return published if "recipe" in published else published.assign(recipe="")
