#!/usr/bin/env python
"""Plots over the run records below a folder as PNG, SVG and CSV files: see --help, or docs/report.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Draw the metric over model size, cost, trained blocks and mask ratio, where runs differ in them.",
        epilog="example:\n  python tools/make_plots.py --runs results/runs --output results/plots",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )
    parser.add_argument("--output", type=Path, default=Path("results/plots"), help="default: results/plots")
    args = parser.parse_args(argv)

    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
    from mae_transfer.results.plots.comparisons import comparison_plots
    from mae_transfer.results.plots.figure import write_plot
    from mae_transfer.run_folder.record import find_records

    try:
        if not args.runs.is_dir():
            raise UserError(f"no folder {args.runs}; run tools/run_transfer.py first or name the folder with --runs")
        records, left_out = find_records(args.runs)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        plots = comparison_plots(records)
        for plot in plots:
            write_plot(plot, args.output / plot.stem)
            print(args.output / f"{plot.stem}.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if not plots:
        print("nothing to draw: no runs that differ in size, cost, trained blocks or mask ratio", file=sys.stderr)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
