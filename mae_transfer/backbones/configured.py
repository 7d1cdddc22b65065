"""The encoder that a run's configuration names."""

from collections.abc import Callable
from typing import Any

from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.config.sections import BackboneConfig
from mae_transfer.errors import UserError


def check_four_blocks(name: str) -> None:
    """UserError for an encoder of fewer blocks than a pyramid of four maps takes."""
    spec = resolve(name)
    if not spec.stages and spec.depth < 4:
        raise UserError(
            f"backbone {name}: it has {spec.depth} blocks, and the pyramid takes the maps of 4; name a deeper one"
        )


def in_run(backbone: BackboneConfig) -> BackboneConfig:
    """The encoder in the checkpoint of a run, as the run had it; a `random_*` name has weights now."""
    options = {"name": backbone.name.removeprefix("random_"), "weights": "pretrained"}
    return backbone.model_copy(update=options)


def encoder_of(backbone: BackboneConfig, options: Callable[[int], dict[str, Any]]) -> Encoder:
    """Build and load the encoder.

    Args:
        options: what the task needs of it, from the patch size (`BaseTask.encoder_options`).

    Raises:
        UserError: weights that do not fit or are not there, or an encoder of images that are not RGB.
    """
    encoder = load_backbone(
        backbone.name,
        checkpoint=backbone.checkpoint,
        checkpoint_key=backbone.checkpoint_key,
        weights=backbone.weights,
        window_size=backbone.window_size,
        num_global_blocks=backbone.num_global_blocks,
        rel_pos=backbone.rel_pos,
        window_rope=backbone.window_rope,
        drop_path=backbone.drop_path,
        grad_checkpointing=backbone.grad_checkpointing,
        **options(resolve(backbone.name).patch_size),
    )
    if encoder.spec.in_chans != 3:
        raise UserError(
            f"checkpoint {backbone.checkpoint}: its images have {encoder.spec.in_chans} channels; the tasks have RGB "
            "images only"
        )
    return encoder
