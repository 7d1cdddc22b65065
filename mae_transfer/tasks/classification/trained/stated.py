"""How a trained classifier is evaluated where it comes from: image size, crop and interpolation, as its source states.

In this order: `preprocessor_config.json` (transformers) or `config.json` with `pretrained_cfg` (timm) beside the
weights; the configuration in a run's checkpoint; timm's own settings of the model that the backbone is named by. Where
none states anything, the recipe's values hold.
"""

import math
from collections.abc import Mapping, Sequence

from timm.data import resolve_data_config

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import files, hf_config, own
from mae_transfer.backbones.timm_stages import empty_model
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.card import CARDS
from mae_transfer.tasks.classification.trained.config import TrainedConfig

_OF_RUN = ("data.image_size", "eval.crop_pct", "eval.crop_mode", "eval.interpolation")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as transformers writes them."""


def stated_evaluation(backbone: str, asked: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys of the configuration -> what the source of the weights states.

    Raises:
        UserError: it states something that cannot be done here.
    """
    spec, checkpoint = resolve(backbone), asked.get("backbone.checkpoint")
    if checkpoint is not None:
        path = files.find(str(checkpoint))
        beside = hf_config.beside(path)
        if beside.processor:
            return _of_transformers(beside)
        if isinstance(beside.config.get("pretrained_cfg"), dict):
            return _of_timm(beside.config["pretrained_cfg"])
        tasks = ("pretrain", *(card.name for card in CARDS))  # supervised pre-training has a classifier too
        of_run = own.settings_of_run(files.read(path), tasks, TrainedConfig, _OF_RUN)
        if of_run:
            return of_run
    name = backbone.removeprefix(registry.TIMM_PREFIX) if backbone.startswith(registry.TIMM_PREFIX) else None
    if name is None and checkpoint is None:
        name = spec.hub
    if name is None or spec.origin is not None:
        return {}
    return _of_timm(empty_model(name).pretrained_cfg)


def stated_labels(checkpoint: str | None) -> Sequence[str] | None:
    """What a model of transformers calls its outputs (id2label); None where it says nothing, as LABEL_0 does."""
    config = {} if checkpoint is None else hf_config.beside(files.find(checkpoint)).config
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names:
        return None
    try:
        ordered = {int(key): str(value) for key, value in names.items()}
    except ValueError:
        raise UserError(f"{checkpoint}: config.json: id2label has a key that is no number; mend it") from None
    if sorted(ordered) != list(range(len(ordered))):
        raise UserError(f"{checkpoint}: config.json: id2label does not number its classes 0 .. K-1; mend it")
    labels = [ordered[number] for number in range(len(ordered))]
    return None if all(label.startswith("LABEL_") for label in labels) else labels


def _of_timm(config: object) -> dict[str, object]:
    data = resolve_data_config(pretrained_cfg=config)
    _, height, width = data["input_size"]
    return {
        "data.image_size": _square(height, width, "input_size"),
        "eval.crop_pct": data["crop_pct"],
        "eval.crop_mode": data["crop_mode"],
        "eval.interpolation": data["interpolation"],
    }


def _of_transformers(beside: hf_config.HFConfig) -> dict[str, object]:
    config = beside.processor
    where = "its preprocessor_config.json"
    size, crop = config.get("size"), config.get("crop_size")
    if not config.get("do_resize", True) or size is None:
        raise UserError(f"{where} resizes no image; give data.image_size= and a file without it")
    sides = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    resample = config.get("resample", 2)
    if resample not in _RESAMPLE:
        raise UserError(f"{where} has resample {resample}; here are 2 (bilinear) and 3 (bicubic)")
    if "shortest_edge" in sides:
        mode, resized = "center", sides["shortest_edge"]
    elif {"height", "width"} <= sides.keys():
        mode, resized = "squash", _square(sides["height"], sides["width"], f"{where}: size")
    else:
        raise UserError(f"{where} has size {size}, which is neither shortest_edge nor height and width")
    side = resized
    if config.get("do_center_crop", False) and crop is not None:
        of = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
        side = _square(of.get("height", resized), of.get("width", resized), f"{where}: crop_size")
    elif mode == "center":
        raise UserError(f"{where} resizes by the shortest edge and crops nothing; images have to be square here")
    return {
        "data.image_size": side,
        "eval.crop_pct": _share(side, resized),
        "eval.crop_mode": mode,
        "eval.interpolation": _RESAMPLE[resample],
    }


def _share(side: int, resized: int) -> float:
    """side / resized, so that int(side / share), as timm and the transform cut it, is `resized` again."""
    share = side / resized
    return share if int(side / share) == resized else math.nextafter(share, 0)


def _square(height: int, width: int, what: str) -> int:
    if height != width:
        raise UserError(f"{what} is {height}x{width}; classification here takes square images only")
    return height
