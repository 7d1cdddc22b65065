"""Pictures of what a masked autoencoder reconstructs (MAE Figure 2), `mae-transfer visualize`.

A row for each image: the image, its visible patches, the reconstruction, and this with the visible patches pasted in.
The loss is on masked patches only, so that the reconstruction of visible ones is worse, as in the paper's figure.
Pictures of normalised pixels flatter a network, unless --honest (`pretrain/pictures.py`).
"""

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.files import user_path


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "visualize",
        "Original, masked, reconstruction, and reconstruction with the visible patches, as a PNG.",
        "example:\n  mae-transfer visualize --checkpoint RUN_FOLDER --images 'photos/*.jpg'",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="run folder of --method mae, one of its checkpoints, or a file of the official code that has the decoder",
    )
    parser.add_argument("--images", required=True, nargs="+", help="files or patterns such as 'photos/*.jpg'")
    parser.add_argument("--output", default="reconstruction.png", help="default: reconstruction.png")
    parser.add_argument("--mask-ratio", type=float, help="default: that of the training")
    parser.add_argument("--limit", type=int, default=16, help="at most this many images; default: 16")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument(
        "--target", choices=["pixel", "norm_pixel"], help="what an official file was trained on, which it does not say"
    )
    parser.add_argument(
        "--honest",
        action="store_true",
        help="normalised pixels: take nothing from the true masked patches; they get the mean of the visible patches' "
        "means and variances",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    files = find_files(args.images)[: args.limit]
    from mae_transfer.pretrain.methods.mae import MaeViews, reconstruct
    from mae_transfer.pretrain.methods.mae_checkpoint import load_mae
    from mae_transfer.pretrain.pictures import batch_of_files, note, rows, write_png

    model, config = load_mae(args.checkpoint, target=args.target)
    if config.data.channels not in (1, 3):
        raise UserError(f"images of {config.data.channels} channels have no picture; only grey and RGB ones have")
    if config.model.target == "token":
        raise UserError("this model predicts tokens, which are no pixels; take one with model.target=pixel")
    if args.mask_ratio is not None:
        mask = config.mask.model_copy(update={"kind": "random", "ratio": args.mask_ratio})
        config = config.model_copy(update={"mask": mask})
    batch = batch_of_files(files, MaeViews(config), seed=args.seed)
    caption = note(model.target, honest=args.honest)
    stages = reconstruct(model, batch, config.mask.ratio, honest=args.honest)
    write_png(rows(stages, caption), user_path(args.output))
    print(f"{args.output}: {len(files)} images; original, visible, reconstruction, reconstruction with the visible")
    if caption:
        print(caption if args.honest else f"{caption}; --honest shows what the network knows")
    return EXIT_DONE


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files of paths and patterns, in order; UserError for one that matches none."""
    found: list[str] = []
    for pattern in patterns:
        files = sorted(name for name in glob.glob(str(user_path(pattern)), recursive=True) if Path(name).is_file())
        if not files:
            raise UserError(f"--images {pattern}: no such file; quote patterns, as in 'photos/*.jpg'")
        found += files
    return found
