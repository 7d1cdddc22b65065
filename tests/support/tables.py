"""Tables as the commands make them: with what this package says of its tasks."""

from typing import Any

from mae_transfer.results.tables import build
from mae_transfer.results.tables.table import Table
from mae_transfer.runs.tasks import descriptions


def make_tables(records: Any, **options: Any) -> str:
    return build.make_tables(records, **{"descriptions": descriptions(), **options})


def build_tables(records: Any, **options: Any) -> list[Table]:
    return build.build_tables(records, **{"descriptions": descriptions(), **options})
