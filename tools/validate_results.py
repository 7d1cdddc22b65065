#!/usr/bin/env python
"""Check the run records below folders: see --help, or docs/records.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python tools/validate_results.py results/runs
  python tools/validate_results.py /scratch/a /scratch/b
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Check every run record, and every file of per-image results that one names, below the folders; a "
        "line for each that is wrong. Exit code 0: all are right; 2: some are not.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="+", type=Path, help="folder with runs")
    args = parser.parse_args(argv)

    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE
    from mae_transfer.run_folder.validation import validate

    checked, wrong = 0, 0
    for folder in args.folder:
        if not folder.is_dir():
            print(f"error: no folder {folder}", file=sys.stderr)
            return EXIT_BAD_INPUT
        records, problems = validate(folder)
        for line in problems:
            print(line)
        checked, wrong = checked + records, wrong + len(problems)
    print(f"{checked} records are right, {wrong} problems", file=sys.stderr)
    return EXIT_BAD_INPUT if wrong else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
