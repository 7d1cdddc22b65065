"""The evaluation that a trained segmentation model's file asks for: its windows, and the blocks that it reads.

mmsegmentation and BEiT evaluate in windows of the training crop, two thirds of it apart, on images whose shorter side
is the crop and whose longer side is at most four times that: 512 and 341 (mmseg configs/mae), 640 and 426 (mmseg
configs/beit, unilm beit/semantic_segmentation). The crop is the one that the tables of relative positions are for.
A checkpoint of this project holds the configuration of its run: model, windows and classes are those.

Linear heads: the shorter side of images is the window, and the longer one is as it comes.

- DINOv2 `linear`, of the last block: windows of 512, 341 apart. `ms`, of the last four: windows of 640, 320 apart, five
  sizes and their mirror images (paper, section 7.4; the first three sizes are printed in
  notebooks/semantic_segmentation.ipynb). The configurations lie on dl.fbaipublicfiles.com/dinov2; copies were read.
- DINOv3: windows of 512, 341 apart, images resized by Pillow (dinov3/eval/segmentation/configs/
  config-ade20k-linear-training.yaml, transforms.py). Its training leaves `segmentation_config.yaml` beside the head,
  which says window, stride and blocks.
"""

from collections.abc import Mapping
from pathlib import Path

from mae_transfer.backbones.checkpoints import own
from mae_transfer.backbones.checkpoints.audit import refusal
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.config import Ade20kConfig
from mae_transfer.tasks.ade20k.trained.linear_head import HeadFile, read_head
from mae_transfer.tasks.ade20k.trained.read import read

MS_RATIOS = (1.0, 1.32, 1.73, 2.28, 3.0)
UNBOUNDED = 99_999_999
"""Of the longer side, in DINOv2's configurations."""
_OF_RUN = (
    *(
        "model.",
        "backbone.window_",
        "backbone.num_global_blocks",
        "data.image_size",
        "data.short_side",
        "data.long_side",
    ),
    *("data.num_classes", "data.reduce_zero_label", "data.ignore_value"),
    *("eval.mode", "eval.stride", "eval.ratios", "eval.flip", "eval.resize"),
)
"""What a run's configuration says of its model, by how keys begin."""
_LAYERS = {"LAST": "last", "FOUR_LAST": "last_four", "FOUR_EVEN_INTERVALS": "four_even"}
"""DINOv3's names (dinov3/eval/segmentation/models/__init__.py)."""


def stated_evaluation(backbone: str, asked: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys of the configuration -> values by the files that were asked for; empty where they say nothing.

    Raises:
        UserError: a file that cannot be read, or a linear head that does not tell which blocks it reads.
    """
    spec, classifier = resolve(backbone), asked.get("model.classifier")
    if classifier is not None:
        if asked.get("recipe") in (None, "trained_upernet"):
            raise UserError(f"model.classifier={classifier}: a linear head is evaluated by recipe=trained_linear")
        return _of_head(read_head(str(classifier)), spec.embed_dim, asked)
    checkpoint = asked.get("backbone.checkpoint")
    if checkpoint is None or asked.get("recipe") == "trained_linear":
        return {}
    return _of_upernet(str(checkpoint), spec.patch_size)


def _of_upernet(checkpoint: str, patch: int) -> dict[str, object]:
    file = read(checkpoint)
    found: dict[str, object] = {}
    rows = {len(x) for name, x in file.state.items() if name.endswith(TABLE) and x.ndim == 2}
    span = round(max(min(rows, default=0) - 3, 0) ** 0.5)
    if len(rows) == 1 and span % 2 and span**2 + 3 in rows:
        side = (span + 1) // 2 * patch
        found = _windows(side, 2 * side // 3, 4 * side)
    if file.taps is not None:
        found["model.taps"] = list(file.taps)
    if own.protocol_of_run(file.content, "ade20k") in (None, "upernet", "partial", "trained"):  # a UperNet's
        found |= own.settings_of_run(file.content, ("ade20k",), Ade20kConfig, _OF_RUN)
    return found


def _of_head(head: HeadFile, width: int, asked: Mapping[str, object]) -> dict[str, object]:
    reads = head.classifier.shape[1]
    blocks, rest = divmod(reads, width)
    if "model.layers" not in asked and (rest or blocks not in (1, 4)):
        raise refusal(
            head.source, f"its classifier reads {reads} numbers; of this encoder it has to be {width} or {4 * width}."
        )
    if head.author == "DINOv3":
        return _windows(512, 341) | {"eval.resize": "pillow"} | _of_dinov3(head, blocks, asked)
    if blocks == 1:
        return _windows(512, 341) | {"model.layers": "last"}
    return _windows(640, 320) | {"model.layers": "last_four", "eval.ratios": list(MS_RATIOS), "eval.flip": True}


def _of_dinov3(head: HeadFile, blocks: int, asked: Mapping[str, object]) -> dict[str, object]:
    """Blocks and windows by the configuration beside the head, where there is one."""
    beside = Path(head.source).with_name("segmentation_config.yaml")
    if not beside.is_file():
        if blocks == 4 and "model.layers" not in asked:
            raise refusal(
                head.source,
                "reads four blocks and has no segmentation_config.yaml beside it that says which; pass "
                "model.layers=last_four or model.layers=four_even.",
            )
        return {"model.layers": "last"}
    config = read_yaml(beside, "DINOv3's configuration")
    try:
        windows = _windows(int(config["eval"]["crop_size"]), int(config["eval"]["stride"]))
        return windows | {"model.layers": _LAYERS[config["decoder_head"]["backbone_out_layers"]]}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{beside}: has no eval.crop_size, eval.stride and decoder_head.backbone_out_layers ({', '.join(_LAYERS)}) "
            "as DINOv3 writes them; mend or remove it"
        ) from None


def _windows(side: int, stride: int, longest: int = UNBOUNDED) -> dict[str, object]:
    return {"data.image_size": side, "data.short_side": side, "data.long_side": longest, "eval.stride": stride}
