"""Pictures of what a masked autoencoder reconstructs (MAE Figure 2), and the command line of `tools/visualize_mae.py`.

A row for each image: the image, its visible patches, the reconstruction, and this with the visible patches pasted in.
The loss is on masked patches only, so that the reconstruction of visible ones is worse, as in the paper's figure.
Predictions of normalised pixels are given back the mean and deviation of the true patch, which the model never saw:
such pictures flatter it; weights trained on plain pixels give the honest ones (facebookresearch/mae#146, #174).
"""

import argparse
import glob
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_transfer.cli.transfer import exit_code
from mae_transfer.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mae_transfer.pretrain.methods.mae import MaskedAutoencoder

GAP = 4
"""White pixels between pictures."""
GREY = 0.5
"""Of masked patches."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize_mae.py",
        description="Original, masked, reconstruction, and reconstruction with the visible patches, as a PNG.",
        epilog="example:\n  python tools/visualize_mae.py --checkpoint RUN_FOLDER --images 'photos/*.jpg'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    files = find_files(args.images)[: args.limit]
    from mae_transfer.pretrain.methods.mae_checkpoint import load_mae

    model, config = load_mae(args.checkpoint, target=args.target)
    picture = picture_of(model, config, files, mask_ratio=args.mask_ratio, seed=args.seed)
    write_png(picture, Path(args.output))
    print(f"{args.output}: {len(files)} images; original, visible, reconstruction, reconstruction with the visible")
    return EXIT_DONE


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files of paths and patterns, in order; UserError for one that matches none."""
    found: list[str] = []
    for pattern in patterns:
        files = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        if not files:
            raise UserError(f"--images {pattern}: no such file; quote patterns, as in 'photos/*.jpg'")
        found += files
    return found


def picture_of(
    model: "MaskedAutoencoder", config: Any, files: Sequence[str], *, mask_ratio: float | None = None, seed: int = 0
) -> "Tensor":
    """uint8 (3, H, W): a row for each image file, of the four pictures of `reconstruct`.

    Raises UserError for a file that is no image, and for a model whose predictions are no picture.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    from mae_transfer.pretrain.masking import draw_noise
    from mae_transfer.pretrain.views import Views
    from mae_transfer.tasks.classification.data import decode, read_bytes

    channels, grid = config.data.channels, model.encoder.native_grid
    if channels not in (1, 3):
        raise UserError(f"images of {channels} channels have no picture; only grey and RGB ones have")
    if config.model.target == "token":
        raise UserError("this model predicts tokens, which are no pixels; take one with model.target=pixel")
    kind = config.mask.kind if mask_ratio is None else "random"
    ratio = config.mask.ratio if mask_ratio is None else mask_ratio
    views = Views(config)
    samples, noise = [], []
    for index, file in enumerate(files):
        rng = np.random.default_rng((seed, 0, index))
        image = decode(read_bytes(file), file, grey=channels == 1)
        samples.append(views.test(image, rng)["image"])
        noise.append(torch.from_numpy(draw_noise(kind, grid, ratio, rng)))
    pictures = reconstruct(model, torch.stack(samples), torch.stack(noise), ratio)
    rows = [torch.cat([F.pad(p, (0, GAP), value=1.0) for p in row], dim=2) for row in pictures]
    whole = torch.cat([F.pad(row, (0, 0, 0, GAP), value=1.0) for row in rows], dim=1)[:, :-GAP, :-GAP]
    return (whole * 255).round().to(torch.uint8)


def reconstruct(model: "MaskedAutoencoder", images: "Tensor", noise: "Tensor", ratio: float) -> "Tensor":
    """uint8 images (B, C, H, W) and noise (B, L) -> float32 (B, 4, 3, H, W) in 0 .. 1: the image, its visible patches,
    the reconstruction, and the reconstruction with the visible patches in their places."""
    import torch

    from mae_transfer.pretrain.masking import num_visible, shuffle

    trained_with, model.visible = model.visible, num_visible(model.encoder.native_grid, ratio)
    try:
        with torch.no_grad():
            patches = model.patchify(images)
            predicted = model.target.to_pixels(model.predictions({"images": images, "noise": noise}), patches)
            hidden = shuffle(noise, model.visible).mask()[:, :, None]
            grey = ((GREY - model.mean) / model.std).expand_as(patches)
            stages = [patches, torch.where(hidden, grey, patches), predicted, torch.where(hidden, predicted, patches)]
            pictures = torch.stack([model.unpatchify(stage) for stage in stages], dim=1).clamp(0, 1)
    finally:
        model.visible = trained_with
    return pictures.expand(-1, -1, 3, -1, -1)


def write_png(picture: "Tensor", path: Path) -> None:
    """Whole or not at all; UserError where it cannot be written."""
    from PIL import Image

    from mae_transfer.files import atomic_write

    content = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(content, "PNG")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")
    with atomic_write(path) as file:
        file.write(content.getvalue())
