"""Classifiers that stand beside an encoder in a weights file: which layers, and which features they read.

    head                            timm, official MAE fine-tuned, DeiT, DeiT-III, BEiT: the class token after the norm,
                                    or (with `fc_norm`) the norm of the mean of the patch tokens
    head, head_dist                 DeiT distilled: the mean of two classifiers, of the class and distillation tokens
    head.0, head.1                  MAE's linear probe: BatchNorm without affine parameters, eps 1e-6, then the layer
    classifier                      transformers; with `pooler.layernorm` (BEiT) of the normed mean, of twice the width
                                    (Dinov2) of class token and mean side by side
    cls_classifier, distillation_classifier    transformers' DeiT distilled

A linear classifier in a file of its own reads several blocks: `linear.*` is DINO's, `weight` and `bias` are DINOv2's.
Sources: facebookresearch/mae models_vit.py and main_linprobe.py, facebookresearch/dino eval_linear.py,
facebookresearch/dinov2 hubconf.py, and timm's and transformers' own classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.audit import refusal, shown
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.timm_stages import empty_model
from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

State = dict[str, Tensor]
Pooling = Literal["token", "distillation", "mean", "token+mean", "token,mean"]
"""Of the last block's tokens: one token, the mean of the patch tokens, or class token and mean, side by side or (with a
comma) number by number in turn."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of K classes, weight (K, width) and bias (K,), and what it reads."""

    name: str
    weight: Tensor
    bias: Tensor
    pooling: Pooling


@dataclass(frozen=True)
class TrainedHead:
    """A classifier; of several layers the mean of the scores counts.

    `norm_after`: the encoder's final norm comes after pooling. `blocks`: class tokens of so many of the last blocks
    side by side. `statistics`: running mean and variance (width,) of a BatchNorm before the layer. `used`: keys of the
    file.
    """

    layers: tuple[Layer, ...]
    norm_after: bool = False
    blocks: int = 1
    statistics: tuple[Tensor, Tensor] | None = None
    used: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return len(self.layers[0].bias)


def head_beside(encoder: "Encoder") -> TrainedHead:
    """The classifier among the tensors that the encoder's file has beside it (`load_report.beside`).

    Raises:
        UserError: there is none, it lacks a tensor, or it does not fit the encoder.
    """
    report = encoder.load_report
    beside, source = report.beside, report.source
    used: tuple[str, ...] = ()
    names: tuple[str, ...]
    statistics = None
    if "head.1.weight" in beside:
        names = ("head.1",)
        used = ("head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked")
        statistics = (beside["head.0.running_mean"].float(), beside["head.0.running_var"].float())
    else:
        kinds = (("head", "head_dist"), ("cls_classifier", "distillation_classifier"), ("head",), ("classifier",))
        names = next((kind for kind in kinds if all(f"{name}.weight" in beside for name in kind)), ())
    if not names:
        raise refusal(
            source,
            "has no classifier that is read here (docs/verify.md lists them), so there is nothing to evaluate; pass "
            "the file of a trained model, or train one: leave out --eval-only.",
        )
    after, poolings = _pooling(encoder, names, beside)
    found = [_layer(beside, name, pooling, source) for name, pooling in zip(names, poolings, strict=True)]
    for layer in found:
        _check_width(layer, encoder.embed_dim * (2 if "+" in layer.pooling else 1), source)
    if len({len(layer.bias) for layer in found}) > 1:
        raise refusal(source, f"its classifiers {' and '.join(names)} have unlike numbers of classes.")
    used += tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))
    return TrainedHead(tuple(found), after, statistics=statistics, used=used)


def head_of_file(path: str, encoder: "Encoder") -> TrainedHead:
    """A linear classifier of DINO or DINOv2 in a file of its own.

    Raises:
        UserError: the file is another, or its width is of no number of blocks that those have.
    """
    state, _ = unwrap(files.read(Path(path)), path)
    dino = "linear.weight" in state
    names = {"linear.weight", "linear.bias"} if dino else {"weight", "bias"}
    strange = sorted(names ^ state.keys())
    if strange:
        what = "missing" if strange[0] in names else "unexpected"
        raise refusal(path, f"no linear classifier of DINO (linear.*) or DINOv2: {what} {shown(strange[0])}.")
    layer = _layer(state, "linear" if dino else "", "token", path)
    width, remainder = divmod(layer.weight.shape[1], encoder.embed_dim)
    kinds: dict[int, tuple[int, Pooling]] = (
        {4: (4, "token"), 2: (1, "token,mean")} if dino else {2: (1, "token+mean"), 5: (4, "token+mean")}
    )
    if remainder or width not in kinds:
        raise refusal(
            path,
            f"its classifier reads {layer.weight.shape[1]} numbers; of {encoder.name} ({encoder.embed_dim} wide) it "
            f"has to be {' or '.join(str(times * encoder.embed_dim) for times in kinds)}.",
        )
    blocks, pooling = kinds[width]
    if not encoder.has_class_token:
        raise refusal(path, f"its classifier reads the class token, which {encoder.name} has not.")
    return TrainedHead((Layer(layer.name, layer.weight, layer.bias, pooling),), blocks=blocks)


def _pooling(encoder: "Encoder", names: tuple[str, ...], beside: State) -> tuple[bool, list[Pooling]]:
    """Whether the norm comes after pooling, and what each layer reads."""
    if len(names) == 2:
        return False, ["token", "distillation"]
    if any(key in ("fc_norm.weight", "fc_norm.bias") or key.endswith("pooler.layernorm.weight") for key in beside):
        return True, ["mean"]
    weight = beside[f"{names[0]}.weight"]
    if names == ("classifier",) and weight.ndim == 2 and weight.shape[1] == 2 * encoder.embed_dim:
        return False, ["token+mean"]
    arch = encoder.spec.timm_arch
    if arch is not None:
        model = empty_model(arch)
        pool, after = model.global_pool, not isinstance(model.fc_norm, torch.nn.Identity)
        if pool not in ("token", "avg") or getattr(model, "pool_include_prefix", False):
            raise UserError(f"backbone {encoder.name}: its classifier pools by '{pool}', which is not built here")
        if after:
            raise refusal(encoder.load_report.source, f"has no fc_norm, which the classifier of {arch} reads.")
        return False, ["mean" if pool == "avg" else "token"]
    return False, ["token" if encoder.has_class_token else "mean"]


def _layer(state: State, name: str, pooling: Pooling, source: str) -> Layer:
    weight, bias = (state.get(f"{name}.{part}".lstrip(".")) for part in ("weight", "bias"))
    label = name or "the classifier"
    if weight is None or bias is None:
        raise refusal(source, f"missing {label}.{'bias' if bias is None else 'weight'}, of the classifier.")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise refusal(source, f"{label} is {tuple(weight.shape)} and {tuple(bias.shape)}, no linear layer.")
    for tensor in (weight, bias):
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise refusal(source, f"{label} holds NaN, infinite or whole values; take another file.")
    return Layer(label, weight.float(), bias.float(), pooling)


def _check_width(layer: Layer, width: int, source: str) -> None:
    if layer.weight.shape[1] != width:
        raise refusal(source, f"{layer.name} reads {layer.weight.shape[1]} numbers, the encoder gives {width}.")
