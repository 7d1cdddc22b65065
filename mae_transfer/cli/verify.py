"""`mae-transfer verify`: a published model, evaluated here, against the number that its authors give for it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.commands import as_typed, command, process_rank
from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DIFFERS, EXIT_DONE, UserError
from mae_transfer.files import user_path

if TYPE_CHECKING:
    from mae_transfer.results.published_models import PublishedModel

EXAMPLES = """\
examples:
  all published models, with their numbers and sources:
    mae-transfer verify --list
  the whole of ImageNet's val images (only val/ is needed), ten minutes on one GPU:
    mae-transfer verify mae_vit_b_finetuned --checkpoint mae_finetuned_vit_base.pth --data /data/imagenet
  a first look at 1000 of them, with the interval that such a part has:
    mae-transfer verify mae_vit_b_finetuned --checkpoint mae_finetuned_vit_base.pth --data /data/imagenet \\
        --images 1000
  and at 1000 of COCO's 5000:
    mae-transfer verify vitdet_mask_rcnn_b --checkpoint model_final_61ccd1.pkl --data /data/coco --images 1000
  all published models whose files are in a folder, each on the data of its task, and a table:
    mae-transfer verify --all --checkpoint ~/weights --data imagenet=/data/imagenet --data coco=/data/coco
  weights of timm's hub:
    mae-transfer verify timm_vit_tiny_patch16_224_augreg_in21k_ft_in1k --download --data /data/imagenet

exit code: 0 the number is reproduced (of all models), 4 one is not, 2 bad input
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "verify",
        "Evaluate a trained model that others published, and compare with their number. Nothing is downloaded unless "
        "asked for.",
        EXAMPLES,
    )
    parser.add_argument("name", nargs="?", help="of the list")
    parser.add_argument("--list", action="store_true", help="print the published models, their numbers and sources")
    parser.add_argument(
        "--all", action="store_true", help="evaluate every model whose file is in the folder --checkpoint"
    )
    parser.add_argument("--models", type=user_path, help="a list of your own, in the form of published_models.yaml")
    parser.add_argument("--checkpoint", help="the published file, or a folder that has it")
    parser.add_argument("--download", action="store_true", help="fetch the weights from where the list says")
    parser.add_argument(
        "--data", action="append", help="root folder of the data set, with val/; with --all TASK=FOLDER for each task"
    )
    parser.add_argument("--images", type=int, help="evaluate only this many val images, always the same ones")
    parser.add_argument("--output", help="folder of the run (--all: of the runs); default: results/runs/verify-NAME")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any field of the configuration, e.g. eval.batch_size=256"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_intermixed_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.results.published_models import PUBLISHED_MODELS, find_published_model, read_published_models

    models = args.models or PUBLISHED_MODELS
    if args.list:
        from mae_transfer.runs.verify import listed

        print(as_typed(listed(read_published_models(models))))
        return EXIT_DONE
    if args.all:
        return run_all(args, read_published_models(models))
    if args.name is None:
        raise UserError(f"name a published model; {command('verify')} --list shows all")
    model = find_published_model(args.name, models)
    from mae_transfer.runs.verify import reproduced, verify

    first = process_rank() == 0
    if first:
        numbers = ", ".join(f"{metric} {value:g}" for metric, value in model.metrics.items())
        print(f"{args.name}: {model.task}, {numbers} expected, by {model.source}")
    if len(args.data or ()) > 1:
        raise UserError("--data is given more than once; one model has one data set (--all takes one for each task)")
    data = args.data[0] if args.data else None
    options = {key: getattr(args, key) for key in ("checkpoint", "images", "download", "output", "device")}
    _, verdicts = verify(args.name, model, data=data, overrides=args.overrides, progress=True, **options)
    if not first:  # the first one tells
        return EXIT_DONE
    print("\n".join(verdict.line() for verdict in verdicts))
    return EXIT_DONE if reproduced(verdicts) else EXIT_DIFFERS


def run_all(args: argparse.Namespace, models: "Mapping[str, PublishedModel]") -> int:
    from mae_transfer.runs.verify import reproduced
    from mae_transfer.runs.verify_all import table, verify_all

    if args.checkpoint is None or args.download:
        raise UserError("--all takes the files in a folder: --checkpoint DIR, without --download")
    overrides = [*([args.name] if args.name else []), *args.overrides]
    named = next((word for word in overrides if "=" not in word), None)
    if named is not None:
        raise UserError(f"--all evaluates every model that it finds; leave out {named}")
    options = {key: getattr(args, key) for key in ("images", "output", "device")}
    outcomes = []
    first = process_rank() == 0
    for outcome in verify_all(models, args.checkpoint, args.data or [], overrides=overrides, progress=True, **options):
        outcomes.append(outcome)
        if first:
            said = [outcome.refused] if outcome.refused else [verdict.line() for verdict in outcome.verdicts]
            print("\n".join(f"{outcome.name}: {line}" for line in said), flush=True)
    if not first:
        return EXIT_DONE
    print(f"\n{table(outcomes)}")
    if not all(reproduced(outcome.verdicts) for outcome in outcomes if outcome.refused is None):
        return EXIT_DIFFERS
    return EXIT_DONE if all(outcome.refused is None for outcome in outcomes) else EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
