"""The wrapper through which every task uses a hierarchical encoder of timm, and how its weights are loaded."""

import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mae_transfer.backbones import timm_stages
from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.audit import refusal
from mae_transfer.backbones.checkpoints.exact import load_exactly, part_of_run
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.grid import Grid, pair, text
from mae_transfer.backbones.hub import published_weights
from mae_transfer.backbones.positions.resampling import resample
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

PART = "encoder.model."
"""What a run's checkpoint has before the names of the encoder's tensors."""


class StageEncoder(Encoder):
    """timm's model as an encoder; `depth` and `taps` count its stages, and its parameters are named `model.*`."""

    model: Any

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        report: LoadReport,
        *,
        img_size: int | Grid | None = None,
        taps: tuple[int, ...] | None = None,
        has_norm: bool = False,
    ) -> None:
        super().__init__(spec, report, taps, spec.img_size if img_size is None else img_size)
        self.prefix, self.has_class_token = 0, False
        self._ids = timm_stages.layer_ids(spec)
        self.num_layers = max(self._ids.values(), default=0) + 1 if self._ids else spec.depth + 2
        self._list, self._ends = timm_stages.stage_ends(model)
        self.has_norm = self.pools = has_norm
        self.model = model
        self.no_weight_decay = timm_stages.no_weight_decay(model)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self._maps(images, self.taps)

    def tokens(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """After timm's final norm where the encoder has it; UserError where timm norms what it pools, not the map."""
        self._check_last(blocks)
        if self.has_norm and isinstance(getattr(self.model, "norm", nn.Identity()), nn.Identity):
            raise UserError(
                f"timm norms the pooled features of {self.name} and not their map, which is read here; set "
                "probe.final_norm=false"
            )
        return [x.flatten(2).transpose(1, 2) for x in self._maps(images, blocks, norm=self.has_norm)]

    def pooled(self, images: Tensor) -> Tensor:
        """As timm pools and norms the last map before its classifier."""
        self._check_size(images)
        x: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return x

    def layer_id(self, name: str) -> int:
        """Raises UserError if timm does not say how the layers of the model are grouped."""
        if self._ids is None:
            raise UserError(
                f"backbone {self.name!r}: layer-wise lr decay needs the layer of each parameter, and timm does not say "
                f"it for {type(self.model).__name__}; set optim.layer_decay=1"
            )
        return self._ids[name.removeprefix("model.")]

    def freeze(self, trainable: float) -> None:
        if not (float(trainable).is_integer() and 0 <= trainable <= self.depth):
            raise UserError(f"{trainable:g} trainable stages: {self.name} takes 0, 1, 2, ... {self.depth}.")
        if trainable == self.depth:
            return
        first = self._ends[self.depth - int(trainable) - 1] + 1
        for name, parameter in self.model.named_parameters():
            place = name.removeprefix(self._list).split(".")[0] if name.startswith(self._list) else ""
            parameter.requires_grad_(bool(trainable) and place.isdigit() and int(place) >= first)
        self._resting = [
            part
            for part in self.model.modules()
            if any(True for _ in part.parameters()) and not any(p.requires_grad for p in part.parameters())
        ]
        self.train(self.training)

    def _maps(self, images: Tensor, stages: tuple[int, ...], norm: bool = False) -> list[Tensor]:
        self._check_size(images)
        found: list[Tensor] = self.model.forward_intermediates(
            images, indices=list(stages), norm=norm, intermediates_only=True
        )
        return found

    def _check_last(self, blocks: tuple[int, ...]) -> None:
        if blocks != (self.depth - 1,):
            raise UserError(
                f"the maps of the stages of {self.name} have widths of their own; probes read the last: probe.blocks=1"
            )

    def _check_size(self, images: Tensor) -> None:
        grid = self.grid_of(images.shape[2], images.shape[3])
        if grid != self.global_grid and timm_stages.fixed_size(self.model):
            size, built = (text((h * self.patch_size, w * self.patch_size)) for h, w in (grid, self.global_grid))
            raise UserError(
                f"{self.name} is built for images of {built} pixels and cannot take {size}: its order of tokens is "
                "that of one size"
            )


def load_stages(
    spec: Spec,
    *,
    checkpoint: str | Path | None,
    checkpoint_key: str | None,
    random: bool,
    img_size: int | Grid | None,
    taps: tuple[int, ...] | None,
    window_size: int,
    rel_pos: bool | str,
    layer_scale: float | None,
    drop_path: float,
    grad_checkpointing: bool,
    final_norm: bool,
) -> StageEncoder:
    """A hierarchical encoder with its weights, on the CPU in float32.

    Raises:
        UserError: an option for plain ViTs, weights that cannot be had or do not fit tensor for tensor.
    """
    asked = ["backbone.window_size=0"] if window_size else []
    asked += ["backbone.rel_pos=false"] if rel_pos else []
    asked += ["model.layer_scale=null"] if layer_scale is not None else []
    if asked:
        raise UserError(
            f"backbone {spec.name!r} is hierarchical: windows, relative positions and LayerScale are part of the model "
            f"or not in it; set {' '.join(asked)}"
        )
    size = pair(img_size or spec.img_size)
    model = timm_stages.build_stages(spec, img_size=size, drop_path=drop_path, final_norm=final_norm)
    report = LoadReport(spec.name, "random initialisation")
    if not random:
        report = _load(model, spec, checkpoint, checkpoint_key)
    if grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    return StageEncoder(model, spec, report, img_size=img_size, taps=taps, has_norm=final_norm)


def _load(model: nn.Module, spec: Spec, checkpoint: str | Path | None, key: str | None) -> LoadReport:
    """Weights by timm's names, by those that timm's own filter knows for the model, or of a run of this project."""
    ignored: dict[str, str] = {}
    if checkpoint is None:
        state, source = published_weights(spec)
    else:
        path = files.find(checkpoint)
        source = str(path)
        state, ignored = unwrap(files.read(path), source, key)
        state, beside = part_of_run(state, PART, source)
        ignored |= beside
    wanted = model.state_dict()
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and wanted.keys() - state.keys():
        try:
            state = dict(convert(dict(state), model))
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = f"timm's own reader of such files fails ({type(error).__name__}: {error})"
            raise refusal(source, f"is not of {spec.name}: {why}") from error
    beyond = timm_stages.names_of(spec) - wanted.keys()
    ignored |= {name: "behind the last map" for name in state if name in beyond}
    state = {name: x for name, x in state.items() if name not in beyond}
    resized = _resize_positions(state, model)
    load_exactly(model, state, source, f"{spec.name}, timm's {type(model).__name__}")
    maps = {name: x for name, x in state.items() if not name.startswith(timm_stages.AFTER)}
    return LoadReport(spec.name, source, "timm", fingerprint(maps), sorted(state), resized, ignored=ignored, spec=spec)


def _resize_positions(state: dict[str, Tensor], model: Any) -> dict[str, str]:
    """Resample Hiera's square position embedding (1, h * w, C) to the grid that the model is built for."""
    x = state.get("pos_embed")
    if x is None or x.ndim != 3 or not timm_stages.fixed_size(model):
        return {}
    side, grid = math.isqrt(x.shape[1]), tuple(model.tokens_spatial_shape)
    if side**2 != x.shape[1] or grid == (side, side):
        return {}
    maps = resample(x.float().unflatten(1, (side, side)).permute(0, 3, 1, 2), grid, "bicubic")
    state["pos_embed"] = maps.flatten(2).transpose(1, 2)
    return {"pos_embed": f"bicubic from {side}x{side} to {text(grid)}"}
