"""`mae-transfer validate`: check the run records below folders."""

import argparse
import sys
from collections.abc import Sequence

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
from mae_transfer.files import user_path

EXAMPLES = """\
examples:
  mae-transfer validate results/runs
  mae-transfer validate /scratch/a /scratch/b
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "validate",
        "Check every run record, and every file of per-image results that one names, below the folders; a "
        "line for each that is wrong. Exit code 0: all are right; 2: some are not.",
        EXAMPLES,
    )
    parser.add_argument("folder", nargs="+", type=user_path, help="folder with runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.run_folder.validation import validate

    checked, wrong = 0, 0
    for folder in args.folder:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}")
        records, problems = validate(folder)
        for line in problems:
            print(line)
        checked, wrong = checked + records, wrong + len(problems)
    print(f"{checked} records are right, {wrong} problems", file=sys.stderr)
    return EXIT_BAD_INPUT if wrong else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
