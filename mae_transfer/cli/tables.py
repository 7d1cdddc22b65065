"""`mae-transfer tables`: tables from the run records below a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli.exit import add_runs_option, exit_code, make_folder, new_parser, records_of
from mae_transfer.errors import EXIT_DONE
from mae_transfer.files import atomic_write, user_path
from mae_transfer.run_folder.record import RUNS

EXAMPLES = """\
examples:
  mae-transfer tables                              # results/runs -> results/tables.md, and printed
  mae-transfer tables --runs /scratch/runs         # -> /scratch/runs/tables.md
  mae-transfer tables --runs /scratch/runs --format latex --output paper/tables.tex
  mae-transfer tables --control random             # differences to training from random weights
"""
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "tables",
        "Build the result tables from run records, next to the published numbers.",
        EXAMPLES,
    )
    add_runs_option(parser)
    parser.add_argument("--format", choices=list(SUFFIXES), default="markdown", help="default: markdown")
    parser.add_argument(
        "--output",
        type=user_path,
        help="default: results/tables.md, .tex, .csv or .html by the format; of other --runs in their folder",
    )
    parser.add_argument(
        "--control",
        metavar="INIT",
        help="initialisation that differences are taken to, such as sup or random; default: supervised pre-training "
        "where a table has it, else random (on ImageNet-1K always random)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.results.tables.build import make_tables
    from mae_transfer.runs.tasks import descriptions

    folder = Path("results") if args.runs == RUNS else args.runs
    output: Path = args.output or folder / f"tables.{SUFFIXES[args.format]}"
    records, _ = records_of(args.runs, summary=True)
    warnings: list[str] = []
    tables = make_tables(
        records, style=args.format, control=args.control, descriptions=descriptions(), warnings=warnings
    )
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if records:  # before they are printed, since a reader such as `head` may close the pipe
        make_folder(output.parent)
        with atomic_write(output) as file:
            file.write(tables.encode("utf-8", "replace"))
        print(f"{len(records)} runs; written to {output}", file=sys.stderr)
    print(tables)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
