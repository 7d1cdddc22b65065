"""`mae-transfer report`: one HTML page of the run records below a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli.exit import add_runs_option, exit_code, make_folder, new_parser, records_of
from mae_transfer.commands import command
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.files import atomic_write, user_path

EXAMPLES = """\
examples:
  mae-transfer report                              # results/runs -> results/report/index.html
  mae-transfer report --runs /scratch/runs --output report.html --picture-mb 100
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "report",
        "Make one self-contained HTML page of tables, plots, runs and their pictures.",
        EXAMPLES,
    )
    add_runs_option(parser)
    parser.add_argument(
        "--output", type=user_path, default=Path("results/report/index.html"), help="default: results/report/index.html"
    )
    parser.add_argument(
        "--picture-mb", type=float, default=24, help="the most that pictures take of the page, in MB; default: 24"
    )
    parser.add_argument(
        "--control", metavar="INIT", help="initialisation that differences are taken to, as in the tables"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.results.report.page import make_page
    from mae_transfer.runs.tasks import descriptions

    records, left_out = records_of(args.runs)
    if not records:
        raise UserError(f"no run record below {args.runs}; run {command('transfer')} first or name another --runs")
    page = make_page(
        records,
        left_out,
        picture_bytes=int(args.picture_mb * 1e6),
        control=args.control,
        descriptions=descriptions(),
        progress=True,
    )
    make_folder(args.output.parent)
    with atomic_write(args.output) as file:
        file.write(page.encode("utf-8", "replace"))
    print(f"{len(records)} runs; written to {args.output} ({len(page) / 1e6:.1f} MB)", file=sys.stderr)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
