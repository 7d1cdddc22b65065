"""`mae-transfer inspect`: what a checkpoint is, whether it loads, and how to use it."""

import argparse
import sys
from collections.abc import Sequence

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError

EXAMPLES = """\
examples:
  what is this file, and which line uses it:
    mae-transfer inspect mae_pretrain_vit_base_full.pth
  does it fit this backbone, and what would be loaded, resized, new or ignored:
    mae-transfer inspect dinov2_vits14_reg4_pretrain.pth --backbone timm:vit_small_patch14_reg4_dinov2
  the student of a DINO training checkpoint instead of the teacher:
    mae-transfer inspect checkpoint.pth --key student
  a run's newest checkpoint, or a model folder of Hugging Face, in the naming of another library:
    mae-transfer inspect results/runs/my-classifier --backbone mae_vit_b --export timm encoder.safetensors
    mae-transfer inspect ./vit-mae-base --backbone mae_vit_b --export official encoder.pth
"""
FORMATS = ("official", "official_full", "timm", "hf")


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "inspect",
        "Show the layout and architecture of a checkpoint, what is odd about it, and what loading it does.",
        EXAMPLES,
    )
    parser.add_argument("file", help="weights file, Hugging Face or timm model folder, or the folder of a run")
    parser.add_argument("--backbone", help="name to try it on; default: the one that its tensors suggest")
    parser.add_argument("--key", help="entry of the file to read, such as student; default: model, state_dict, teacher")
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("FORMAT", "OUT"),
        help="also write the encoder: official (.pth), official_full (with MAE's decoder), timm (.safetensors or .pth) "
        "or hf (a folder)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.backbones.checkpoints.export import export
    from mae_transfer.backbones.checkpoints.inspect import inspect

    if args.export and args.export[0] not in FORMATS:
        raise UserError(f"--export {args.export[0]}: choose from {', '.join(FORMATS)}")
    findings = inspect(args.file, backbone=args.backbone, key=args.key)
    print("\n".join(findings.lines()))
    if args.export:
        if findings.backbone is None:
            raise UserError("--export: no backbone name fits the file; pass one with --backbone.")
        print("\n".join(export(args.file, findings.backbone, *args.export, key=args.key)))
    return EXIT_BAD_INPUT if findings.refused else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
