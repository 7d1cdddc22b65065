"""A whole masked autoencoder, decoder included, from a run of this project or a file of the official code."""

from pathlib import Path

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints import mae as official
from mae_transfer.backbones.checkpoints.layout import State, depth_of, width_of
from mae_transfer.backbones.checkpoints.loader import unwrap
from mae_transfer.backbones.registry import size_of
from mae_transfer.config.load import validate
from mae_transfer.config.old_names import renamed
from mae_transfer.config.recipe import layers, merge, read_recipe
from mae_transfer.errors import UserError
from mae_transfer.pretrain.card import CARDS
from mae_transfer.pretrain.config import MaeConfig
from mae_transfer.pretrain.methods.mae import MaeMethod, MaskedAutoencoder
from mae_transfer.run_folder.checkpoints import evaluated_weights

DECODER = ("mask_token", "decoder_")


def load_mae(path: str | Path, *, target: str | None = None) -> tuple[MaskedAutoencoder, MaeConfig]:
    """The model of a run folder, its checkpoint, or an official file with the decoder; in eval mode, on the CPU.

    target: what an official file was trained on, which it does not say; needed for those only. Raises UserError, one
    line, for anything else and for weights that do not fit.
    """
    file = files.find(path)
    raw = files.read(file)
    if isinstance(raw, dict) and {"step", "model", "optimizer", "config"} <= raw.keys():
        if raw["config"].get("method") != "mae":
            what = raw["config"].get("method") or f"the task {raw['config'].get('task')}"
            raise UserError(f"checkpoint {file}: is of {what}, which reconstructs no image; pass one of --method mae")
        config, state = validate(MaeConfig, renamed(raw["config"])), evaluated_weights(raw)
    else:
        found, _ = unwrap(raw, str(file))
        if not official.detects(found):
            raise UserError(
                f"checkpoint {file}: has no decoder; pass a run of --method mae, or an official file with it "
                "(*_full.pth, mae_visualize_*.pth)"
            )
        config, state = _config_of(found, str(file), target), from_official(found)
    assert isinstance(config, MaeConfig)
    method = MaeMethod(config)
    model = method.build_model(method.build_encoder(), None)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"checkpoint {file}: does not fit its model: {' '.join(str(error).split())}") from None
    return model.eval(), config


def from_official(state: State) -> State:
    """Official names -> this project's."""
    return {_ours(name): tensor for name, tensor in state.items()}


def _ours(name: str) -> str:
    if name.startswith(DECODER):
        return name
    return f"encoder.{name}" if name.startswith("norm.") else f"encoder.vit.{name}"


def _config_of(state: State, source: str, target: str | None) -> MaeConfig:
    """The configuration that an official file's shapes mean."""
    if target is None:
        raise UserError(
            f"checkpoint {source}: pass --target norm_pixel (mae_pretrain_*_full.pth) or pixel (mae_visualize_*.pth)"
        )
    patch, position, width = (
        state.get(name) for name in ("patch_embed.proj.weight", "pos_embed", "decoder_embed.weight")
    )
    size = size_of(width_of(state), depth_of(state))
    if patch is None or position is None or width is None or size is None:
        raise UserError(f"checkpoint {source}: is no whole official MAE of a usual size; fetch it again")
    side = round((position.shape[1] - 1) ** 0.5) * patch.shape[-1]
    (card,) = CARDS
    values = layers(read_recipe(card.folder, "mae"), size=size, init="own", task=card.name, preset="full")
    of_file = {
        "task": card.name,
        "preset": "full",
        "recipe": "mae",
        "backbone": {"name": f"vit_{size}_p{patch.shape[-1]}"},
        "data": {"image_size": side},
        "model": {
            "target": target,
            "decoder_depth": depth_of(state, "decoder_blocks"),
            "decoder_width": len(width),
        },
    }
    merge(values, of_file)
    return validate(MaeConfig, values)
