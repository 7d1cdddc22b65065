#!/usr/bin/env python
"""What a checkpoint is, whether it loads, and how to use it: see --help, or docs/checkpoints.md."""

import argparse
import sys
from collections.abc import Sequence

EXAMPLES = """\
examples:
  what is this file, and which line uses it:
    python tools/inspect_checkpoint.py mae_pretrain_vit_base_full.pth
  does it fit this backbone, and what would be loaded, resized, new or ignored:
    python tools/inspect_checkpoint.py dinov2_vits14_reg4_pretrain.pth --backbone timm:vit_small_patch14_reg4_dinov2
  the student of a DINO training checkpoint instead of the teacher:
    python tools/inspect_checkpoint.py checkpoint.pth --key student
  a run's newest checkpoint, or a model folder of Hugging Face, in the naming of another library:
    python tools/inspect_checkpoint.py results/runs/my-run --backbone mae_vit_b --export timm encoder.safetensors
    python tools/inspect_checkpoint.py ./vit-mae-base --backbone mae_vit_b --export official encoder.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Show the layout and architecture of a checkpoint, what is odd about it, and what loading it does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    args = parser.parse_args(argv)
    if args.export and args.export[0] not in ("official", "official_full", "timm", "hf"):
        parser.error(f"--export {args.export[0]}: choose from official, official_full, timm, hf")

    from mae_transfer.backbones.checkpoints.export import export
    from mae_transfer.backbones.checkpoints.inspect import inspect
    from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError

    try:
        findings = inspect(args.file, backbone=args.backbone, key=args.key)
        print("\n".join(findings.lines()))
        if args.export:
            if findings.backbone is None:
                raise UserError("--export: no backbone name fits the file; pass one with --backbone.")
            print("\n".join(export(args.file, findings.backbone, *args.export, key=args.key)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_BAD_INPUT if findings.refused else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
