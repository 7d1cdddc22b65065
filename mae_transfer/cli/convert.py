"""`mae-transfer convert`: a trained detector from this project to detectron2 and back."""

import argparse
import sys
from collections.abc import Sequence

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_DONE

EXAMPLES = """\
examples:
  the detector of a run, for detectron2's --eval-only or as its train.init_checkpoint:
    mae-transfer convert --to detectron2 results/runs/my-run detector.pth
  a detector that detectron2 trained on this project's backbone, evaluated here:
    mae-transfer convert --to mae_transfer output/model_final.pth detector.pth
    mae-transfer transfer --task coco --eval-only --backbone mae_vit_b --checkpoint detector.pth \\
        --data /data/coco recipe=trained_li2021
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "convert",
        "Rename the weights of a whole detector; every tensor is accounted for, and its bits are kept.",
        EXAMPLES,
    )
    parser.add_argument("--to", required=True, choices=["detectron2", "mae_transfer"], help="whose names OUT has")
    parser.add_argument("source", metavar="IN", help="run folder or weights file; detectron2's .pkl is read, never run")
    parser.add_argument("out", metavar="OUT", help="the .pth file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.tasks.coco.detectron2.convert import convert

    print("\n".join(convert(args.source, args.out, args.to)))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
