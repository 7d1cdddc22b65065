"""`mae-transfer pretrain`: options to one pre-training, or its printed configuration."""

import argparse
import sys
from collections.abc import Sequence

from mae_transfer.cli.exit import RESUME, add_resume_option, exit_code, new_parser, resume_auto
from mae_transfer.errors import EXIT_DONE
from mae_transfer.runs.tasks import task_card

EXAMPLES = """\
examples:
  a minute on a laptop, generated images:
    mae-transfer pretrain --method mae --backbone vit_ti --preset smoke
  the recipe of the MAE paper on 8 GPUs (batch 4096: 512 for each, with accumulation):
    torchrun --nproc-per-node 8 -m mae_transfer pretrain --method mae --backbone vit_l --data /data/imagenet
  images of your own, of any shape, in folders or tar shards, at 64 pixels with patches of 8:
    mae-transfer pretrain --method mae --backbone vit_s_p8 --data ./photos --preset mini data.image_size=64
    mae-transfer pretrain --method mae --backbone vit_b --data 'shards/train-{000000..000146}.tar'
  a row of the paper's Table 1: no mask ratio but 75 % is better; block-wise masks are harder:
    mae-transfer pretrain --method mae --backbone vit_l --data /data/imagenet mask.kind=block mask.ratio=0.5
  its successor Pixio: squares of patches are masked, eight class tokens, a deeper decoder:
    mae-transfer pretrain --method mae --backbone vit_h_p16 --data /data/imagenet recipe=pixio
  an encoder with rotary positions:
    mae-transfer pretrain --method mae --backbone timm:vit_small_patch16_rope_224 --data /data/imagenet
  the baselines:
    mae-transfer pretrain --method beit --tokenizer kmeans --backbone vit_b --data /data/imagenet
    mae-transfer pretrain --method supervised --backbone vit_b --data /data/imagenet
    mae-transfer pretrain --method mocov3 --backbone vit_b --data /data/imagenet
  a tokenizer of your own, then BEiT with it (OpenAI's is given as --tokenizer encoder.pkl):
    mae-transfer pretrain --method dvae --backbone vit_b --data /data/imagenet --output my_tokenizer
    mae-transfer pretrain --method beit --tokenizer my_tokenizer --backbone vit_b --data /data/imagenet
  go on after a stop; then transfer:
    mae-transfer pretrain <the same options> --resume
    mae-transfer transfer --task coco --backbone vit_l --checkpoint RUN_FOLDER
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "pretrain",
        "Pre-train a plain ViT encoder by one written recipe; its run folder is a checkpoint for transfer.",
        EXAMPLES,
    )
    methods = "; ".join(f"{method.name}: {method.about}" for method in task_card("pretrain").protocols)
    parser.add_argument("--method", required=True, help=methods)
    parser.add_argument(
        "--backbone",
        required=True,
        help="vit_ti, vit_s, vit_b, vit_l, vit_h; vit_b_p8 has another patch; timm:<model> with rotary positions",
    )
    parser.add_argument("--data", help="folder of images or of .tar shards, a pattern of shards, or 'synthetic'")
    parser.add_argument("--tokenizer", help="for targets of tokens: kmeans, or a tokenizer's file or run folder")
    parser.add_argument("--preset", default="full", help="full (the published recipe), mini or smoke; default: full")
    parser.add_argument("--subset", type=int, help="use only this many images of each split, always the same ones")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--output", help="folder of the run; default: a name under results/runs/ made from the options")
    add_resume_option(parser)
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate again what the output folder holds; without --resume"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "--allow-unread",
        action="store_true",
        help="take overrides without effect too, for scripts that give the same ones to every run",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any field of the configuration, e.g. mask.ratio=0.6"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_intermixed_args(resume_auto(argv))), after_ctrl_c=RESUME)


def run(args: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(args).items() if name != "print_config"}
    if args.print_config:
        for name in ("output", "resume", "eval_only", "allow_unread"):  # no part of the configuration
            del options[name]
        from mae_transfer.config.load import dump_config
        from mae_transfer.config.overrides import parse_overrides
        from mae_transfer.runs.resolve import resolve_config
        from mae_transfer.runs.unread import refuse_unread

        config = resolve_config("pretrain", options.pop("backbone"), protocol=options.pop("method"), **options)
        if not args.allow_unread:
            refuse_unread([(config, [key for key, _ in parse_overrides(args.overrides)])])
        print(dump_config(config), end="")
        return EXIT_DONE
    from mae_transfer.runs.api import run_pretrain

    run_pretrain(**options, progress=True)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
