"""The evaluation that a trained segmentation model's file asks for: its windows, and the blocks that it reads.

mmsegmentation and BEiT evaluate in windows of the training crop, two thirds of it apart, on images whose shorter side
is the crop and whose longer side is at most four times that: 512 and 341 (mmseg configs/mae), 640 and 426 (mmseg
configs/beit, unilm beit/semantic_segmentation). The crop is the one that the tables of relative positions are for.
"""

from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.tasks.ade20k.trained.read import read


def stated_evaluation(backbone: str, checkpoint: str | None) -> dict[str, object]:
    """Dotted keys of the configuration -> values by the file; empty where it has no tables and says no blocks."""
    if checkpoint is None:
        return {}
    file, patch = read(checkpoint), resolve(backbone).patch_size
    found: dict[str, object] = {}
    rows = {len(x) for name, x in file.state.items() if name.endswith(TABLE) and x.ndim == 2}
    span = round(max(min(rows, default=0) - 3, 0) ** 0.5)
    if len(rows) == 1 and span % 2 and span**2 + 3 in rows:
        side = (span + 1) // 2 * patch
        found = {"data.image_size": side, "data.short_side": side, "data.long_side": 4 * side}
        found["eval.stride"] = 2 * side // 3
    if file.taps is not None:
        found["model.taps"] = list(file.taps)
    return found
