#!/usr/bin/env python
"""One HTML page of the run records below a folder: see --help, or docs/report.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python tools/make_report.py                              # results/runs -> results/report/index.html
  python tools/make_report.py --runs /scratch/runs --output report.html --picture-mb 100
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make one self-contained HTML page of tables, plots, runs and their pictures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/report/index.html"), help="default: results/report/index.html"
    )
    parser.add_argument(
        "--picture-mb", type=float, default=24, help="the most that pictures take of the page, in MB; default: 24"
    )
    parser.add_argument("--control", metavar="INIT", help="as of tools/make_tables.py")
    args = parser.parse_args(argv)

    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
    from mae_transfer.files import atomic_write
    from mae_transfer.results.report.page import make_page
    from mae_transfer.run_folder.record import find_records

    try:
        if not args.runs.is_dir():
            raise UserError(f"no folder {args.runs}; run tools/run_transfer.py first or name the folder with --runs")
        records, left_out = find_records(args.runs)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        if not records:
            raise UserError(f"no run record below {args.runs}; run tools/run_transfer.py first or name another --runs")
        page = make_page(records, left_out, picture_bytes=int(args.picture_mb * 1e6), control=args.control)
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {args.output.parent}: {error.strerror}; choose another --output") from error
        with atomic_write(args.output) as file:
            file.write(page.encode("utf-8", "replace"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"{len(records)} runs; written to {args.output} ({len(page) / 1e6:.1f} MB)", file=sys.stderr)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
