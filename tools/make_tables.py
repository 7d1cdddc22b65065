#!/usr/bin/env python
"""Markdown tables from the run records below a folder: see --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python tools/make_tables.py                              # results/runs -> results/tables.md, and printed
  python tools/make_tables.py --runs /scratch/runs --output tables.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the result tables from run records, next to the published numbers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )
    parser.add_argument("--output", type=Path, default=Path("results/tables.md"), help="default: results/tables.md")
    args = parser.parse_args(argv)

    from mae_transfer.results.record import find_records
    from mae_transfer.results.tables import make_tables

    if not args.runs.is_dir():
        print(
            f"error: no folder {args.runs}; run tools/run_transfer.py first or name the folder with --runs",
            file=sys.stderr,
        )
        return 2
    records, left_out = find_records(args.runs)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    tables = make_tables(records)
    print(tables)
    if records:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(tables)
        print(f"{len(records)} runs; written to {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
