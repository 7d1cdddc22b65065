"""`mae-transfer demo`: a whole study in minutes on a laptop, offline, by the commands that a real one takes."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli import report, suite
from mae_transfer.cli.exit import exit_code, new_parser, records_of
from mae_transfer.commands import as_typed
from mae_transfer.errors import EXIT_DONE
from mae_transfer.files import user_path

EXAMPLES = """\
examples:
  mae-transfer demo                       # under results/demo
  mae-transfer demo --output /tmp/demo    # the same command goes on after a stop

what it does, each a command of its own:
  draws images of shapes, then makes the runs of configs/suites/demo.yaml (mae-transfer suite): pre-trains a tiny ViT
  as a masked autoencoder, transfers it and random weights to classification, segmentation and detection; then the
  tables (mae-transfer tables) and the page (mae-transfer report)
"""
REAL = """\
the same question on real data, by the recipe of the MAE paper:
  mae-transfer transfer --task coco --backbone mae_vit_l --data /data/coco   # train2017/, val2017/, annotations/"""
SETS = ("unlabelled", "classification", "segmentation", "detection")


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "demo",
        "Pre-train a tiny encoder on generated images, transfer it and random weights to three tasks, and compare "
        "them: two to three minutes on two CPU cores, with nothing to download.",
        EXAMPLES,
    )
    parser.add_argument("--output", type=user_path, default=Path("results/demo"), help="default: results/demo")
    parser.add_argument("--jobs", type=int, help="runs at a time, each about 1 GB; default: 2, or 1 on a single core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)), after_ctrl_c="the same command goes on")


def run(args: argparse.Namespace) -> int:
    from mae_transfer.config.recipe import config_folder
    from mae_transfer.data.synthetic.shapes import make_shapes
    from mae_transfer.results.tables.render import markdown
    from mae_transfer.results.tables.summary import summary_table
    from mae_transfer.runs.names import check_output

    check_output(args.output)
    started = time.monotonic()
    print(f"the images: generated, under {args.output}", file=sys.stderr, flush=True)
    data = make_shapes(args.output / "data")
    runs, page = args.output / "runs", args.output / "report.html"
    jobs = args.jobs or min(2, os.cpu_count() or 1)
    options = ["--output", str(runs), "--jobs", str(jobs), "--gpus", "0", "--set", "device=cpu"]
    options += ["--data", *(f"{name}={data / name}" for name in SETS)]
    code = suite.run(suite.build_parser().parse_args([str(config_folder() / "suites" / "demo.yaml"), *options]))
    if code != EXIT_DONE:
        return code
    report.run(report.build_parser().parse_args(["--runs", str(runs), "--output", str(page), "--control", "random"]))
    table = summary_table(records_of(runs, summary=True)[0], "random")
    print(f"\n{markdown([table])}")
    print(f"{time.monotonic() - started:.0f} s; tables, plots and pictures: {page}\n\n{as_typed(REAL)}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
