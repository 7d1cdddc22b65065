"""`mae-transfer transfer`: options to runs, a search, or a printed configuration."""

import argparse
import sys
from collections.abc import Sequence

from mae_transfer.backbones import registry
from mae_transfer.backbones.plugins import plugin_names
from mae_transfer.cli.exit import RESUME, add_resume_option, exit_code, new_parser, resume_auto
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.runs.tasks import check_transfers, task_cards
from mae_transfer.tasks.card import TaskCard

EXAMPLES = """\
examples:
  a minute on a laptop, generated images and random weights:
    mae-transfer transfer --task coco --backbone mae_vit_l --preset smoke
  the recipe of the MAE paper, weights from timm's hub, on 8 GPUs:
    torchrun --nproc-per-node 8 -m mae_transfer transfer --task coco --backbone mae_vit_b --data /data/coco
  your own weights, offline:
    mae-transfer transfer --task coco --backbone mae_vit_b --checkpoint my.pth --data /data/coco
  any plain ViT of timm on one small GPU, with another learning rate:
    mae-transfer transfer --task coco --backbone timm:vit_small_patch16_224.dino --preset mini \\
        --data /data/coco optim.lr=4e-5
  a recipe other than the task's first one, here ViTDet's Cascade Mask R-CNN:
    mae-transfer transfer --task coco --backbone mae_vit_b --data /data/coco recipe=vitdet_cascade
  semantic segmentation, on 8 GPUs:
    torchrun --nproc-per-node 8 -m mae_transfer transfer --task ade20k --backbone mae_vit_b \\
        --data /data/ADEChallengeData2016
  the same on images and masks of your own, 20 classes numbered from 0:
    mae-transfer transfer --task ade20k --backbone mae_vit_b data.num_classes=20 data.reduce_zero_label=false \\
        data.train_images=a/ data.train_masks=b/ data.val_images=c/ data.val_masks=d/
  frozen encoder: a linear head, and three that need no training, in one pass of the encoder:
    mae-transfer transfer --task ade20k --backbone mae_vit_b --data /data/ADEChallengeData2016 --protocol linear
    mae-transfer transfer --task ade20k --backbone mae_vit_b --data /data/ADEChallengeData2016 \\
        --protocol knn,logreg,in_context
  layer by layer, in one pass of the encoder:
    mae-transfer transfer --task ade20k --backbone mae_vit_b --data /data/ADEChallengeData2016 \\
        --protocol knn,logreg --layers all
  a data set of your own in COCO format:
    mae-transfer transfer --task coco --backbone mae_vit_b data.train_json=a.json data.train_images=imgs/ \\
        data.val_json=b.json data.val_images=imgs/
  the learning rates that the recipe says to try, a run each, and a table of them:
    mae-transfer transfer --task ade20k --backbone mae_vit_l --data /data/ADEChallengeData2016 --search
  a detector on a frozen encoder:
    mae-transfer transfer --task coco --backbone mae_vit_b --data /data/coco --protocol frozen
  fine-tune on iNaturalist 2018, as its archives unpack:
    mae-transfer transfer --task inat2018 --backbone mae_vit_l --data /data/inat2018
  several protocols on a folder of one's own with train/<class>/ and val/<class>/:
    mae-transfer transfer --task folder --backbone mae_vit_b --data ./my_images --protocol finetune,linear,knn
  the whole curve of partial fine-tuning (MAE Figure 9), or 4 blocks only:
    mae-transfer transfer --task imagenet --backbone mae_vit_l --data /data/imagenet \\
        --protocol partial --blocks curve
    mae-transfer transfer --task imagenet --backbone mae_vit_l --data /data/imagenet \\
        --protocol partial --blocks 4
  five shots a class, three draws of them:
    mae-transfer transfer --task folder --backbone mae_vit_b --data ./my_images --protocol logreg \\
        --shots 5 --draws 3
  one, two, five and ten percent of COCO's training images, the five published folds of each:
    mae-transfer transfer --task coco --backbone mae_vit_b --data /data/coco --fraction 1,2,5,10 --draws 5 \\
        data.fraction_rule=mmdetection
  go on after a stop; evaluate again what a run has trained:
    mae-transfer transfer <the same options> --resume
  the same command for the start and for every restart, here by torchrun after a failure:
    torchrun --max-restarts 3 --nproc-per-node 8 -m mae_transfer transfer <the same options> --resume auto
    mae-transfer transfer <the same options> --eval-only
  evaluate a classifier that was trained elsewhere, as it is:
    mae-transfer transfer --task imagenet --eval-only --checkpoint mae_finetuned_vit_base.pth --data /data/imagenet
"""


def backbone_names() -> str:
    """The registered names, a line for each initialisation."""
    specs = [registry.find(name) for name in registry.names()]
    lines = [" ".join(spec.name for spec in specs if spec.init == init) for init in registry.INITS]
    added = plugin_names()
    lines += [f"{' '.join(added)}, of packages installed here"] if added else []
    return "".join(f"  {line}\n" for line in lines) + "  timm:<model[.tag]>, those of docs/encoders.md"


def task_names(cards: Sequence[TaskCard]) -> str:
    """The tasks with a line each, and the protocols of those that have some."""
    lines = ["tasks:", *(f"  {card.name:<10} {card.about}" for card in cards)]
    for protocols in dict.fromkeys(card.protocols for card in cards if card.protocols):
        of = ", ".join(card.name for card in cards if card.protocols == protocols)
        lines += ["", f"protocols of {of}:", *(f"  {p.name:<10} {p.about}" for p in protocols)]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    cards = task_cards(transfers=True)
    parser = new_parser(
        "transfer",
        "Transfer an image encoder to a task under one written recipe and record how well it does.",
        f"{task_names(cards)}\n\n{EXAMPLES}\nbackbones:\n{backbone_names()}",
    )
    parser.add_argument("--task", required=True, help="one of the tasks below")
    parser.add_argument(
        "--backbone",
        help="a registered name (mae_vit_b, sup_vit_l, random_vit_ti, ...) or timm:<model>; a trained model's file "
        "(--eval-only --checkpoint) may tell it",
    )
    parser.add_argument(
        "--checkpoint",
        help="weights file to load; without it the published weights are used (preset smoke: random ones)",
    )
    parser.add_argument("--weights", choices=["pretrained", "random"], help="random: no weights, on purpose")
    parser.add_argument("--data", help="root folder of the data set, or 'synthetic' for generated images")
    parser.add_argument(
        "--protocol", help="of a task that has protocols: one of those below; several with commas are a run each"
    )
    parser.add_argument(
        "--blocks",
        help="protocol partial: how many of the last blocks are fine-tuned; 0.5 is the MLP of the last, 0 the linear "
        "probe, or on dense tasks none; a list such as 1,2,4, or curve for all of MAE Figure 9",
    )
    parser.add_argument(
        "--layers",
        help="protocols knn, logreg and in_context: a run for each of these blocks, numbered from 0, such as 0,5,11, "
        "or all; the encoder sees the images once",
    )
    parser.add_argument("--shots", type=int, help="image classification: train on this many images of each class")
    parser.add_argument(
        "--fraction", help="train on this percent of the training images; a list such as 1,2,5,10,100 is a run each"
    )
    parser.add_argument(
        "--draws", type=int, help="with --shots or --fraction: a run for each of this many draws; default: 1"
    )
    parser.add_argument("--preset", default="full", help="full (the published recipe), mini or smoke; default: full")
    parser.add_argument("--subset", type=int, help="use only this many images of each split, always the same ones")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument(
        "--output",
        help="folder of the run, or that in which several runs have theirs; default: names under results/runs/ made "
        "from the options",
    )
    add_resume_option(parser)
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate again the newest checkpoint of the output folder, with the other options as in its training "
        "and without --resume; "
        "with --checkpoint and no such folder, evaluate that file, a model trained elsewhere",
    )
    parser.add_argument(
        "--engine",
        choices=["torchvision", "detectron2"],
        help="code of the detector; default: torchvision; detectron2 needs that package (docs/detectron2.md)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "--search",
        action="store_true",
        help="make all runs of the search that the recipe documents (its section search), go on with those that were "
        "stopped, and print a table; an override of a searched key fixes it, or is a list of values to try",
    )
    parser.add_argument(
        "--allow-unread",
        action="store_true",
        help="take overrides without effect too, for scripts that give the same ones to every run",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any field of the configuration, e.g. optim.lr=4e-5"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_intermixed_args(resume_auto(argv))), after_ctrl_c=RESUME)


def run(args: argparse.Namespace) -> int:
    check_transfers(args.task)
    options = {name: value for name, value in vars(args).items() if name not in ("print_config", "search")}
    if args.backbone is None and (args.print_config or args.search or not args.eval_only):
        raise UserError("--backbone is missing; only a trained model's file (--eval-only --checkpoint) tells it")
    if args.print_config:
        for name in ("output", "resume", "eval_only"):  # no part of the configuration
            del options[name]
        from mae_transfer.config.load import dump_config
        from mae_transfer.runs.plan import plan_runs

        print("---\n".join(dump_config(run.config) for run in plan_runs(**options)), end="")
        return EXIT_DONE
    if args.search:
        from mae_transfer.runs.search import run_search

        table = run_search(**options, progress=True)
        if table:
            print(table)
        return EXIT_DONE
    from mae_transfer.runs.series import run_series

    run_series(**options, progress=True)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
