"""`mae-transfer plan`: what a run will cost, before it is made."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.files import user_path

if TYPE_CHECKING:
    from mae_transfer.runs.costs import Plan
    from mae_transfer.suites.costs import SuitePlan

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
  all runs of a suite, and their sum; data sets that are no benchmark are read:
    mae-transfer plan --suite configs/suites/mae_vs_baselines.yaml --gpus 8
    mae-transfer plan --suite configs/suites/transfer_study.yaml --data tiny_imagenet=/data/tiny_imagenet \\
        --data persons=/data/persons --data camvid=/data/camvid --data flowers=/data/flowers
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
    parser.add_argument("--task", help="a task of transfer, or pretrain")
    parser.add_argument("--backbone", help="as of transfer or pretrain")
    parser.add_argument("--suite", type=user_path, help="in the place of both: a suite file (docs/suites.md)")
    parser.add_argument("--protocol", help="of a task that has protocols; default: its first")
    parser.add_argument("--method", help="of pretrain; default: mae")
    parser.add_argument("--tokenizer", help="of the method beit: kmeans, or its file")
    parser.add_argument("--weights", choices=["pretrained", "random"], help="random: the recipe of random weights")
    parser.add_argument(
        "--data",
        action="append",
        help="root folder of the data set, of a suite NAME=FOLDER, once for each; default: the size of the benchmark",
    )
    parser.add_argument("--preset", help="full, mini or smoke; default: full, or that of the suite")
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
    found = _of_suite(args) if args.suite else _of_run(args)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return EXIT_DONE


def _of_suite(args: argparse.Namespace) -> "SuitePlan":
    alone = ("task", "backbone", "protocol", "method", "tokenizer", "weights", "subset")
    given = [f"--{name}" for name in alone if getattr(args, name) is not None]
    if given:
        raise UserError(f"--suite has its own tasks and backbones; leave out {', '.join(given)}")
    from mae_transfer.cli.suite import pairs
    from mae_transfer.suites.costs import plan_costs

    options = {name: getattr(args, name) for name in ("preset", "gpus", "gpu_memory", "overrides")}
    return plan_costs(args.suite, data=pairs(args.data or (), "--data"), **options)


def _of_run(args: argparse.Namespace) -> "Plan":
    if args.task is None or args.backbone is None:
        raise UserError("give --task and --backbone, or --suite FILE")
    if args.data and len(args.data) > 1:
        raise UserError("several --data are for a --suite; a run has one")
    options = {name: value for name, value in vars(args).items() if name not in ("json", "suite")}
    options |= {"data": args.data[0] if args.data else None, "preset": args.preset or "full"}
    if args.method is not None and args.task != "pretrain":
        raise UserError(f"--method is for --task pretrain; a protocol of {args.task} is --protocol")
    if args.protocol is not None and args.task == "pretrain":
        raise UserError("--protocol is for transfer; a pre-training has a --method")
    from mae_transfer.runs.costs import plan

    return plan(**options)


if __name__ == "__main__":
    sys.exit(main())
