"""What the configuration of a model says of the weights beside it: of transformers, timm or OpenCLIP.

`config.json`, `preprocessor_config.json` and `open_clip_config.json`. Weights alone show neither the number of heads
nor LayerNorm eps, activation, normalisation statistics, or the sides of a position embedding's grid.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_transfer.backbones.checkpoints import values
from mae_transfer.backbones.checkpoints.json_file import read_json
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.timm_vit import is_rotary, plain_model
from mae_transfer.errors import UserError

_FACTOR = 1 / 255
"""What transformers multiplies pixels of 0..255 by before it normalises them, if `rescale_factor` is silent."""


@dataclass
class Stated:
    """What a configuration states of its weights.

    `facts`: fields of the backbone's Spec. `activation`: of the MLP, by transformers' or timm's name, and the key that
    has it. `image_size`: height and width in pixels that the position embedding is for; `input_size`: those that the
    model was last used at, which need not be the same. `rotary`: timm's model of rotary positions, which no tensor
    may show. `width`, `depth`, `patch` (height and width in pixels): of the encoder, with the key that has it.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    activation_key: str = ""
    image_size: Grid | None = None
    input_size: Grid | None = None
    rotary: str | None = None
    width: tuple[str, int] | None = None
    depth: tuple[str, int] | None = None
    patch: tuple[str, Grid] | None = None


@dataclass
class HFConfig:
    """`config`: the model's, of transformers or timm; `processor`: the image processor's; `open_clip`: OpenCLIP's.

    Empty where there is none.
    """

    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    open_clip: dict[str, Any] = field(default_factory=dict)

    def stated(self, layout: str) -> Stated:
        """What it states of a file of a layout, by the reader's NAME. Raises UserError for a value that cannot be."""
        if layout.startswith("Hugging Face"):
            return _of_transformers(self.config, self.processor)
        if layout == "Segment Anything" and isinstance(encoder := self.config.get("vision_config"), dict):
            return _of_transformers(encoder, self.processor)
        if layout.startswith("CLIP") and self.open_clip:
            return _of_open_clip(self.open_clip)
        return _of_timm(self.config) if {"pretrained_cfg", "architecture"} & self.config.keys() else Stated()


def beside(path: Path) -> HFConfig:
    """The configuration files in the folder of a weights file; raises UserError if one cannot be read."""
    names = ("config.json", "preprocessor_config.json", "open_clip_config.json")
    return HFConfig(*(read_json(path.parent / name) if (path.parent / name).is_file() else {} for name in names))


def _of_transformers(config: dict[str, Any], processor: dict[str, Any]) -> Stated:
    stated = Stated(_processed(processor))
    where = "its config.json: "
    if config.get("num_attention_heads") is not None:
        stated.facts["num_heads"] = values.whole(config["num_attention_heads"], f"{where}num_attention_heads")
    if config.get("layer_norm_eps") is not None:
        stated.facts["eps"] = values.epsilon(config["layer_norm_eps"], f"{where}layer_norm_eps")
    if config.get("image_size") is not None:
        stated.image_size = values.size(config["image_size"], f"{where}image_size")
    stated.activation, stated.activation_key = config.get("hidden_act"), "hidden_act"
    _take_sizes(stated, config, ("hidden_size", "num_hidden_layers", "patch_size"), where)
    return stated


def _take_sizes(stated: Stated, config: dict[str, Any], keys: tuple[str, str, str], where: str) -> None:
    """Width, depth and patch of these keys, where a configuration has them."""
    width, depth, patch = keys
    stated.width = _named(config, width, where) or stated.width
    stated.depth = _named(config, depth, where) or stated.depth
    if config.get(patch) is not None:
        stated.patch = patch, values.size(config[patch], f"{where}{patch}")


def _named(config: dict[str, Any], key: str, where: str) -> tuple[str, int] | None:
    value = config.get(key)
    return None if value is None else (key, values.whole(value, f"{where}{key}"))


def _processed(processor: dict[str, Any]) -> dict[str, Any]:
    """Mean and std for pixels of 0..1, of an image processor that scales pixels of 0..255 and then normalises them."""
    where = "its preprocessor_config.json:"
    normalises = values.flag(processor.get("do_normalize", True), f"{where} do_normalize")
    if not values.flag(processor.get("do_rescale", True), f"{where} do_rescale"):
        raise UserError(
            f"{where} do_rescale is false, which leaves open if pixels are of 0..1 or of 0..255; set do_rescale and "
            "rescale_factor there to what the weights were trained with."
        )
    if values.flag(processor.get("do_flip_channel_order", False), f"{where} do_flip_channel_order"):
        raise UserError(
            f"{where} do_flip_channel_order is true, so that the weights are for BGR images, and RGB is given here; "
            "swap the patch embedding's channels in the weights and set it to false, or take it away if it is wrong."
        )
    factor = processor.get("rescale_factor", _FACTOR)
    if not values.number(factor) or factor <= 0:
        raise UserError(f"{where} rescale_factor is {values.told(factor)}; give a number above 0, usually 1/255.")
    named = {name.removeprefix("image_"): value for name, value in processor.items() if name.startswith("image_")}
    found = values.statistics(named if normalises else {"mean": 0.0, "std": 1.0}, f"{where} image")
    if abs(factor / _FACTOR - 1) < 1e-6:
        return dict(found)
    return {part: tuple(number * _FACTOR / factor for number in each) for part, each in found.items()}


def _of_timm(config: dict[str, object]) -> Stated:
    where = "its config.json: "
    # an early form has the entries of pretrained_cfg beside the architecture (timm models/_hub.py)
    args, weights = config.get("model_args") or {}, config.get("pretrained_cfg", config)
    if not isinstance(args, dict) or not isinstance(weights, dict):
        raise UserError(f"{where}model_args and pretrained_cfg are no objects; restore it or take it away.")
    facts: dict[str, object] = dict(values.statistics(weights, f"{where}pretrained_cfg"))
    arch = config.get("architecture")
    model = plain_model(arch)
    heads = args.get("num_heads", model and model.num_heads)
    if heads is not None:
        facts["num_heads"] = values.whole(heads, f"{where}model_args num_heads")
    stated = Stated(facts, args.get("act_layer") or (model and model.activation), "act_layer")
    if model is not None:
        of_arch = f"architecture {arch}, whose"
        stated.width, stated.depth = (f"{of_arch} embed_dim is", model.width), (f"{of_arch} depth is", model.depth)
        stated.patch = f"{of_arch} patch_size is", model.patch
    _take_sizes(stated, args, ("embed_dim", "depth", "patch_size"), f"{where}model_args ")
    if isinstance(arch, str) and is_rotary(arch):
        stated.rotary = arch
    if args.get("img_size") is not None:
        stated.image_size = values.size(args["img_size"], f"{where}model_args img_size")
    shape = weights.get("input_size")
    if isinstance(shape, list) and len(shape) == 3:
        stated.input_size = values.size(shape[1:], f"{where}pretrained_cfg input_size")
    return stated


def _of_open_clip(config: dict[str, object]) -> Stated:
    where = "its open_clip_config.json: "
    model, images = config.get("model_cfg"), config.get("preprocess_cfg") or {}
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vision, dict) or not isinstance(images, dict):
        raise UserError(f"{where}has no model_cfg with a vision_cfg; restore it or take it away.")
    stated = Stated(dict(values.statistics(images, f"{where}preprocess_cfg")))
    if vision.get("image_size") is not None:
        stated.input_size = values.size(vision["image_size"], f"{where}image_size")
    if vision.get("timm_model_name") is None:
        quick = values.flag(model.get("quick_gelu", False), f"{where}quick_gelu")
        stated.activation, stated.activation_key = "quick_gelu" if quick else "gelu", "quick_gelu"
        _take_sizes(stated, vision, ("width", "layers", "patch_size"), where)
        if vision.get("width") is not None:
            width = values.whole(vision["width"], f"{where}width")
            stated.facts["num_heads"] = width // values.whole(vision.get("head_width", 64), f"{where}head_width")
    return stated
