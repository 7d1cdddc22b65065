#!/usr/bin/env python
"""Tables from the run records below a folder: see --help, or docs/results.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python tools/make_tables.py                              # results/runs -> results/tables.md, and printed
  python tools/make_tables.py --runs /scratch/runs --format latex --output paper/tables.tex
  python tools/make_tables.py --control random             # differences to training from random weights
"""
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the result tables from run records, next to the published numbers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )
    parser.add_argument("--format", choices=list(SUFFIXES), default="markdown", help="default: markdown")
    parser.add_argument("--output", type=Path, help="default: results/tables.md, or .tex, .csv, .html by the format")
    parser.add_argument(
        "--control",
        metavar="INIT",
        help="initialisation that differences are taken to, such as sup or random; default: supervised pre-training "
        "where a table has it, else random (on ImageNet-1K always random)",
    )
    args = parser.parse_args(argv)
    output: Path = args.output or Path("results", f"tables.{SUFFIXES[args.format]}")

    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
    from mae_transfer.files import atomic_write
    from mae_transfer.results.tables.build import make_tables
    from mae_transfer.run_folder.record import find_records

    warnings: list[str] = []
    try:
        if not args.runs.is_dir():
            raise UserError(f"no folder {args.runs}; run tools/run_transfer.py first or name the folder with --runs")
        records, left_out = find_records(args.runs, summary=True)
        tables = make_tables(records, style=args.format, control=args.control, warnings=warnings)
        for line in [*left_out, *warnings]:
            print(f"left out: {line}", file=sys.stderr)
        print(tables)
        if records:
            output.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(output) as file:
                file.write(tables.encode("utf-8", "replace"))
            print(f"{len(records)} runs; written to {output}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
