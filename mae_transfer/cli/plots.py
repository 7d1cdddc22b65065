"""`mae-transfer plots`: plots over the run records below a folder as PNG, SVG and CSV files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli.exit import add_runs_option, exit_code, new_parser, records_of
from mae_transfer.errors import EXIT_DONE
from mae_transfer.files import user_path


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "plots",
        "Draw the metric over model size, cost, trained blocks, layers and the numbers of MAE's pre-training (mask "
        "ratio, decoder, length), where runs differ in them, and the rank agreement of tasks and protocols.",
        "example:\n  mae-transfer plots --runs results/runs --output results/plots",
    )
    add_runs_option(parser)
    parser.add_argument("--output", type=user_path, default=Path("results/plots"), help="default: results/plots")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.results.plots.comparisons import comparison_plots
    from mae_transfer.results.plots.figure import write_plot

    records, _ = records_of(args.runs)
    plots = comparison_plots(records)
    for plot in plots:
        write_plot(plot, args.output / plot.stem)
        print(args.output / f"{plot.stem}.png")
    if not plots:
        print(
            "nothing to draw: no runs that differ in size, cost, trained blocks, layer or a number of the pre-training",
            file=sys.stderr,
        )
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
