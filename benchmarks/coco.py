#!/usr/bin/env python
"""Both COCO benchmarks in one run: a training step against torchvision, the evaluation against pycocotools.

    python benchmarks/coco.py                     # ViT-B at 1024 px, generated annotations; half an hour on 2 CPU cores
    python benchmarks/coco.py --data /data/coco --copies 8

Each has more options of its own: coco_training_step.py, coco_evaluation.py.
"""

import argparse
import sys
from pathlib import Path

import coco_evaluation
import coco_training_step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="random_vit_b")
    parser.add_argument("--image-size", default="1024")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--copies", default="1")
    args = parser.parse_args()
    step = ["--backbone", args.backbone, "--image-size", args.image_size, "--precision", *args.precision]
    data = ["--data", str(args.data)] if args.data else []
    return coco_training_step.main(step) or coco_evaluation.main([*data, "--copies", args.copies])


if __name__ == "__main__":
    sys.exit(main())
