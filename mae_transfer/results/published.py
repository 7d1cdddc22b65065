"""The published numbers (`published.csv`), each with its source."""

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).with_name("published.csv")


def read_published(*, variants: bool = False) -> pd.DataFrame:
    """The published numbers that stand beside runs, or those of variants, which never do.

    `recipe` is empty where a task has but one, `protocol` where it has none, `blocks` NaN but for partial fine-tuning.
    `variant` says what is unlike the recipe or the released weights, such as the target of a pre-training, its epochs
    or the schedule; it is empty for numbers that stand beside runs.
    """
    published = pd.read_csv(PUBLISHED, keep_default_na=False, na_values={"blocks": [""]})
    return published[(published["variant"] != "") == variants]
