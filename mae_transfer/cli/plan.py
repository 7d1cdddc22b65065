"""`mae-transfer plan`: what a run will cost, before it is made."""

import argparse
import json
import sys
from collections.abc import Sequence

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_DONE, UserError

EXAMPLES = """\
examples:
  does ViT-L on COCO fit eight GPUs of 80 GiB, at which micro-batch, and for how long:
    mae-transfer plan --task coco --backbone mae_vit_l --gpus 8 --gpu-memory 80
  a linear probe, another recipe, settings of your own:
    mae-transfer plan --task imagenet --protocol linear --backbone mae_vit_b
    mae-transfer plan --task coco --backbone mae_vit_b --gpu-memory 24 recipe=vitdet_cascade data.image_size=640
  MAE pre-training on ImageNet:
    mae-transfer plan --task pretrain --method mae --backbone vit_l --gpus 64
  a data set of your own, of which the number of images is read:
    mae-transfer plan --task folder --backbone mae_vit_b --data ./my_images
  as JSON:
    mae-transfer plan --task ade20k --backbone mae_vit_b --json
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "plan",
        "Say what a run will cost: memory by micro-batch, operations, hours on a list of cards, disk. Needs no GPU; "
        "without --data, of a benchmark at its full size.",
        EXAMPLES,
    )
    parser.add_argument("--task", required=True, help="a task of transfer, or pretrain")
    parser.add_argument("--backbone", required=True, help="as of transfer or pretrain")
    parser.add_argument("--protocol", help="of a task that has protocols; default: its first")
    parser.add_argument("--method", help="of pretrain; default: mae")
    parser.add_argument("--tokenizer", help="of the method beit: kmeans, or its file")
    parser.add_argument("--weights", choices=["pretrained", "random"], help="random: the recipe of random weights")
    parser.add_argument("--data", help="root folder of the data set; default: the size of the benchmark")
    parser.add_argument("--preset", default="full", help="full, mini or smoke; default: full")
    parser.add_argument("--subset", type=int, help="use only this many images of each split")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs in all; default: 1")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GIB", help="of each; default: 80")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any field of the configuration, e.g. train.micro_batch=2"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_intermixed_args(argv)))


def run(args: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(args).items() if name != "json"}
    if args.method is not None and args.task != "pretrain":
        raise UserError(f"--method is for --task pretrain; a protocol of {args.task} is --protocol")
    if args.protocol is not None and args.task == "pretrain":
        raise UserError("--protocol is for transfer; a pre-training has a --method")
    from mae_transfer.runs.costs import plan

    found = plan(**options)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
