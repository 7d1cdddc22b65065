#!/usr/bin/env python
"""A trained detector from this project to detectron2 and back: see --help, or docs/detectron2.md."""

import argparse
import sys
from collections.abc import Sequence

EXAMPLES = """\
examples:
  the detector of a run, for detectron2's --eval-only or as its train.init_checkpoint:
    python tools/convert_detector.py --to detectron2 results/runs/my-run detector.pth
  a detector that detectron2 trained on this project's backbone, and its encoder transferred to another task:
    python tools/convert_detector.py --to mae_transfer output/model_final.pth detector.pth
    python tools/run_transfer.py --task ade20k --backbone mae_vit_b --checkpoint detector.pth --data /data/ade20k
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Rename the weights of a whole detector; every tensor is accounted for, and its bits are kept.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", required=True, choices=["detectron2", "mae_transfer"], help="whose names OUT has")
    parser.add_argument("source", metavar="IN", help="run folder or weights file; detectron2's .pkl is read, never run")
    parser.add_argument("out", metavar="OUT", help="the .pth file to write")
    args = parser.parse_args(argv)

    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
    from mae_transfer.tasks.coco.detectron2.convert import convert

    try:
        print("\n".join(convert(args.source, args.out, args.to)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
