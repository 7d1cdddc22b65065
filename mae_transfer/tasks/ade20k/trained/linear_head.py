"""A linear segmentation head in a file of its own: DINOv2's or DINOv3's. The encoder is in another file.

    decode_head.bn, .conv_seg                      DINOv2: mmsegmentation 0.x around `BNHead`
                                                   (dinov2/eval/segmentation/models/decode_heads/linear_head.py)
    segmentation_model.1.batchnorm_layer, .conv    DINOv3: `model_final.pth` of dinov3/eval/segmentation/train.py

Either is a batch norm with affine parameters and a 1x1 convolution of the normed patch tokens of one block, or of four
side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.audit import refusal, shown
from mae_transfer.backbones.checkpoints.layout import State
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.tasks.ade20k.trained.read import labels_of

Author = Literal["DINOv2", "DINOv3"]

_PARTS: dict[Author, tuple[str, str]] = {
    "DINOv2": ("decode_head.bn", "decode_head.conv_seg"),
    "DINOv3": ("segmentation_model.1.batchnorm_layer", "segmentation_model.1.conv"),
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class HeadFile(NamedTuple):
    """`state`: by the names of `LinearSegmentor`. `ignored`: what else the file holds, with the reason. `labels`: names
    of its classes in order, None where it says none."""

    state: State
    source: str
    author: Author
    ignored: dict[str, str]
    labels: Sequence[str] | None

    @property
    def classifier(self) -> Tensor:
        """(classes, width, 1, 1)."""
        return self.state["classifier.weight"]


def read_head(path: str) -> HeadFile:
    """Read a head of either layout.

    Raises:
        UserError: the file is another, lacks a tensor, or cannot be read.
    """
    raw = files.read(Path(path))
    state, ignored = unwrap(raw, path)
    author: Author = "DINOv3" if any(name.startswith(_PARTS["DINOv3"]) for name in state) else "DINOv2"
    norm, classifier = _PARTS[author]
    names = {f"{norm}.{part}": f"norm.{part}" for part in _NORM}
    names |= {f"{classifier}.{part}": f"classifier.{part}" for part in ("weight", "bias")}
    strange = sorted(names.keys() ^ state.keys(), key=lambda name: (name in state, name))
    if strange:
        what = "unexpected" if strange[0] in state else "missing"
        layouts = " or ".join(f"{author} ({' and '.join(parts)})" for author, parts in _PARTS.items())
        raise refusal(path, f"no linear segmentation head of {layouts}: {what} {shown(strange[0])}.")
    found = {names[name]: x for name, x in state.items()}
    weight = found["classifier.weight"]
    if weight.ndim != 4 or weight.shape[2:] != (1, 1):
        raise refusal(path, f"{classifier}.weight is {tuple(weight.shape)}, no 1x1 convolution.")
    if not (found["norm.running_var"] >= 0).all():
        raise refusal(path, f"{norm}.running_var holds values below 0 or NaN, which no variance is; take another file.")
    return HeadFile(found, path, author, ignored, labels_of(raw))
