"""`load_backbone`: a name, its weights and the options -> an encoder with a report of what was loaded."""

from pathlib import Path
from typing import Any

from mae_transfer.backbones.checkpoints import files, hf_config
from mae_transfer.backbones.checkpoints.layout import FINAL_NORM
from mae_transfer.backbones.checkpoints.loader import load
from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.hub import published_weights
from mae_transfer.backbones.initialise import as_beit
from mae_transfer.backbones.timm_vit import build, new_final_norm, resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError


def load_backbone(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    weights: str = "pretrained",
    img_size: int | Grid | None = None,
    window_size: int = 0,
    num_global_blocks: int = 4,
    rel_pos: bool | str = False,
    pos_embed: str = "native",
    abs_pos: bool = False,
    random_init: str = "timm",
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    taps: tuple[int, ...] | None = None,
    checkpoint_key: str | None = None,
    final_norm: bool = False,
) -> ViTEncoder:
    """The encoder of a registered name or `timm:<model[.tag]>`, on the CPU in float32; `.load_report` tells its story.

    Weights come from `checkpoint` if given, else from timm's hub (cache or download); `weights="random"`, which
    `random_*` names imply, is timm's initialisation from torch's global generator, or BEiT's (`random_init="beit"`).
    `checkpoint` is a file, a local
    Hugging Face or timm model folder, or the folder of a run (its newest checkpoint); `checkpoint_key` is the entry of
    the file to read where it has several (default: `model`, `state_dict`, `teacher`, in this order). `img_size`
    (pixels, one number or height and width) is the size that global relative position tables are made for; any other
    size still runs; `pos_embed="resized"` resamples the position embedding to it once, and `abs_pos` gives BEiT's
    weights a new one of it. `rel_pos` adds zero-initialised tables; true shares them, and the one table of BEiT's
    pre-training, among windowed and among global blocks. `final_norm` gives the encoder the weights' own LayerNorm
    after the blocks as `norm` (a new one for random weights, None for a model of timm that has none). Raises UserError
    for an unknown name, weights that cannot be had or do not fit, and options that do not fit the backbone.
    """
    spec = resolve(name)
    if weights not in ("pretrained", "random"):
        raise UserError(f"weights {weights!r}: unknown; use pretrained or random.")
    random = weights == "random" or spec.init == "random"
    if random and checkpoint is not None:
        raise UserError(f"backbone {name!r} with random weights takes no checkpoint; drop --checkpoint {checkpoint}.")
    if random:
        vit = build(spec, img_size=spec.img_size, drop_path=drop_path)
        report = LoadReport(name, "random initialisation")
    elif checkpoint is not None:
        path = files.find(checkpoint)
        options: dict[str, Any] = {"key": checkpoint_key, "config": hf_config.beside(path), "img_size": img_size}
        vit, report = load(spec, files.read(path), str(path), drop_path=drop_path, copy=False, **options)
        spec = report.spec or spec
    else:
        state, source = published_weights(spec)
        vit, report = load(spec, state, source, drop_path=drop_path)
    encoder = ViTEncoder(
        vit,
        spec,
        report,
        img_size=img_size,
        window_size=window_size,
        num_global_blocks=num_global_blocks,
        rel_pos=rel_pos,
        pos_embed=pos_embed,
        abs_pos=abs_pos,
        layer_scale=layer_scale,
        grad_checkpointing=grad_checkpointing,
        taps=taps,
    )
    if random and random_init == "beit":
        as_beit(encoder.vit)
        report.resized.pop("pos_embed", None)  # drawn at the grid that it has now
        report.new["every weight"] = "as BEiT's code initialises it"
    if final_norm and spec.final_norm:
        _take_final_norm(encoder, report)
    return encoder


def _take_final_norm(encoder: ViTEncoder, report: LoadReport) -> None:
    """Give the encoder the norm that follows the blocks where its weights are from."""
    encoder.norm = new_final_norm(encoder.spec)
    names = encoder.norm.state_dict().keys()
    if report.fingerprint is None:
        report.new[", ".join(f"norm.{name}" for name in names)] = "ones and zeros" if "bias" in names else "ones"
        return
    tensors = {key.removeprefix("norm."): tensor for key, tensor in report.final_norm.items()}
    missing = names - tensors.keys()
    if missing:
        raise UserError(
            f"checkpoint {report.source}: has no norm.{min(missing)}, the final norm that features of a frozen encoder "
            "go through; pass a file of the pre-training, or set probe.final_norm=false."
        )
    encoder.norm.load_state_dict(tensors)
    report.loaded += sorted(report.final_norm)
    report.ignored = {key: why for key, why in report.ignored.items() if why != FINAL_NORM}
