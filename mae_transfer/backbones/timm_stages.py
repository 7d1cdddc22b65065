"""timm's hierarchical encoders: which classes are taken, their specs, and how one is built.

Taken are the classes of `CLASSES`: four stages at strides 4, 8, 16 and 32 that timm's `forward_intermediates` gives,
and no batch norm, whose statistics would depend on how a batch is split. Swin takes any size by timm's
`dynamic_img_size`, the first Swin with the authors' padding (`swin.py`); Hiera is built for one size, because its order
of tokens is.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mae_transfer.backbones import swin
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

CLASSES = {
    "SwinTransformer": "dynamic",
    "SwinTransformerV2": "dynamic",
    "SwinTransformerV2Cr": "dynamic",
    "Hiera": "fixed",
    "HieraDet": "any",
    "ConvNeXt": "any",
    "PyramidVisionTransformerV2": "any",
    "DaVit": "any",
    "FocalNet": "any",
    "MetaFormer": "any",
    "EdgeNeXt": "any",
    "MambaOut": "any",
}
"""timm's class -> the sizes that it takes as timm builds it: any, any if told so, or the one it is built for."""
STRIDES = (4, 8, 16, 32)
AFTER = ("norm.", "norm_pre.", "head.", "neck.")
"""Names of what follows the last stage."""


def empty_model(arch: str | None) -> Any:
    """timm's whole model without values."""
    with torch.device("meta"):
        return timm.create_model(arch or "", pretrained=False)


def is_hierarchical(model: object) -> bool:
    """Whether a model of timm is of one of `CLASSES`."""
    return type(model).__name__ in CLASSES


def spec_of_stages(name: str, model_name: str, model: Any) -> Spec:
    """The spec of timm's `model[.tag]`, whose tag decides mean and std; UserError for a variant that is not taken."""
    info = list(model.feature_info)
    if tuple(stage["reduction"] for stage in info) != STRIDES:
        raise UserError(
            f"backbone {name!r}: its maps have strides {[stage['reduction'] for stage in info]}, the tasks take four "
            f"at {list(STRIDES)}; pass another variant."
        )
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            f"backbone {name!r}: it has batch norm, whose results depend on how a batch is split over devices; pass a "
            "variant without."
        )
    config, stages = model.pretrained_cfg, tuple(int(stage["num_chs"]) for stage in info)
    tag = f".{config['tag']}" if config.get("tag") else ""
    return Spec(
        name=name,
        init=name,
        size=None,
        embed_dim=stages[-1],
        depth=len(stages),
        num_heads=max(stages[-1] // 64, 1),
        patch_size=STRIDES[-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        hub=f"{config['architecture']}{tag}" if config.get("hf_hub_id") else None,
        img_size=int(config["input_size"][-1]),
        timm_arch=model_name,
        class_token=False,
        stages=stages,
        window_padding=swin.RULE if type(model).__name__ == "SwinTransformer" else None,
    )


def build_stages(spec: Spec, *, img_size: Grid, drop_path: float = 0.0, final_norm: bool = False) -> nn.Module:
    """timm's model of the spec in float32 with timm's initialisation, without classifier, for images of this size.

    Without `final_norm` nothing follows the last stage: it would get no gradient from the maps.
    """
    kind = CLASSES[type(empty_model(spec.timm_arch)).__name__]
    make = partial(timm.create_model, spec.timm_arch or "", pretrained=False, num_classes=0, drop_path_rate=drop_path)
    model: nn.Module = (
        make(img_size=img_size) if kind == "fixed" else make(dynamic_img_size=True) if kind == "dynamic" else make()
    )
    if spec.window_padding:
        swin.pad_before_shift(model)
    for name in () if final_norm else AFTER:
        if hasattr(model, name[:-1]):
            setattr(model, name[:-1], nn.Identity())
    return model


def names_of(spec: Spec) -> set[str]:
    """The names of the whole model's tensors, its classifier and final norm too."""
    return set(empty_model(spec.timm_arch).state_dict())


def fixed_size(model: nn.Module) -> bool:
    """Whether a model takes images of the size alone that it is built for."""
    return CLASSES[type(model).__name__] == "fixed"


def layer_ids(spec: Spec) -> dict[str, int] | None:
    """Parameter name -> its layer by timm's `group_matcher`, as its `param_groups_layer_decay` counts them.

    The names are of the whole model, whose classifier and final norm are the last layer. None for a class without.
    """
    model = empty_model(spec.timm_arch)
    if not hasattr(model, "group_matcher"):
        return None
    return {str(name): int(i) for name, i in group_parameters(model, model.group_matcher(), reverse=True).items()}


def no_weight_decay(model: nn.Module) -> frozenset[str]:
    """Names, from `model.` on, of the parameters that timm exempts from weight decay.

    Of Swin v2 these are microsoft/Swin-Transformer's `no_weight_decay_keywords`; timm 1.0.20 names their modules alone.
    """
    told: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    names = [name for name, _ in model.named_parameters()]
    return frozenset(f"model.{name}" for name in names if name in told or "cpb_mlp" in name or "logit_scale" in name)


def stage_ends(model: nn.Module) -> tuple[str, list[int]]:
    """The list that holds the stages, such as `layers.`, and in it the number of the last member of each stage."""
    info: Iterable[Mapping[str, object]] = model.feature_info  # type: ignore[assignment]
    places = [str(stage["module"]) for stage in info]
    return f"{places[0].rsplit('.', 1)[0]}.", [int(place.rsplit(".", 1)[1]) for place in places]
