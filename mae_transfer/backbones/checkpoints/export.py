"""Weights of any layout read here, written in the official MAE, timm's or Hugging Face's naming.

Values and types are the file's own: official -> here -> official gives the same bits. The final norm, which the encoder
leaves out, is kept where the file has it.
"""

import json
import re
from pathlib import Path

import safetensors.torch
import torch

from mae_transfer.backbones.checkpoints import eva_names, files, hf_config, hf_vit, loader, own
from mae_transfer.backbones.checkpoints.layout import State
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES, TABLE
from mae_transfer.backbones.registry import IMAGENET_MEAN, IMAGENET_STD, Spec
from mae_transfer.backbones.timm_vit import final_norm_name, resolve
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, user_path

FORMATS = ("official", "official_full", "timm", "hf")
_DECODER = ("mask_token", "decoder_")

_REGISTERS = {"reg_token": "dist_token"}


def export(path: str | Path, backbone: str, form: str, out: str | Path, *, key: str | None = None) -> list[str]:
    """Write the weights of `path`, which must fit `backbone`, to `out`; gives lines that say what was written.

    `form`: official (a `.pth` with `{"model": ...}`), official_full (the same with the decoder, of this project's MAE),
    timm (`.safetensors`, else torch's format) or hf (a folder with model.safetensors, config.json and
    preprocessor_config.json). Raises UserError if the weights do not load, have
    parts that the form has no place for, or `out` cannot be written.
    """
    out, file = user_path(out), files.find(path)
    raw, config = files.read(file), hf_config.beside(file)
    vit, report = loader.load(resolve(backbone), raw, str(file), key=key, config=config)
    state, _ = unwrap(raw, str(file), key)
    _, converted, _ = loader.read_layout(state, str(file), config)
    spec = report.spec
    assert spec is not None
    if spec.init == "own":
        own.spread_table(converted)
    if spec.timm_class == "Eva":
        eva_names.rename(converted)
    order = [name for name in vit.state_dict() if name in converted.tensors]
    tensors = {name: converted.tensors[name] for name in order} | converted.final_norm
    _check(spec, tensors, form, converted.shared_tables)
    if form == "official_full":
        tensors |= _decoder(state, str(file))
    if form.startswith("official"):
        with atomic_write(out) as target:
            torch.save({"model": _owned(tensors)}, target)
    elif form == "timm":
        names = dict(_REGISTERS) if spec.position_prefix == 2 and spec.class_tokens == 1 else {}
        if final_norm_name(spec) == "fc_norm":
            names |= {f"norm.{part}": f"fc_norm.{part}" for part in ("weight", "bias")}
        tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        _write(out, _beit(tensors) if spec.rel_pos_tables else tensors)
    else:
        _write_hugging_face(out, tensors, spec, vit.patch_embed.grid_size)
    lines = [f"written: {out} ({form}, {len(tensors)} tensors)"]
    if not converted.final_norm:
        lines.append("without the final norm, which the file does not have: a strict load elsewhere will ask for it")
    if spec.eps not in (None, 1e-6) and form != "hf":
        lines.append(f"note: these weights were made with LayerNorm eps {spec.eps:g}; {form} models use 1e-6")
    if (spec.mean, spec.std) != (IMAGENET_MEAN, IMAGENET_STD) and form != "hf":
        lines.append(
            f"note: images were normalised by mean {spec.mean} and std {spec.std}, which the file does not say"
        )
    return lines


def _check(spec: Spec, tensors: State, form: str, shared: State) -> None:
    kinds = ("cls_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.")
    tables = [name for name in tensors if name.endswith(TABLE)]
    odd = [*shared, *(tables if form != "timm" or not spec.class_token else [])]
    odd += [name for name in tensors if name.endswith(DECOMPOSED_TABLES)]
    if form != "timm":
        odd += ["blocks of timm's Eva"] if spec.timm_class == "Eva" else []
        odd += [name for name in tensors if not name.startswith(kinds) or ".ls" in name or "_norm." in name]
        odd += [name for name in ("cls_token", "pos_embed") if name not in tensors]
        odd += ["pos_embed without a row for the class token"] if spec.position_prefix != 1 else []
    if odd:
        raise UserError(
            f"--export {form}: has no place for {odd[0]} as {spec.name} has it; use another format or file."
        )


def _beit(tensors: State) -> State:
    """By the names of timm's Beit, which has no biases of the keys: they have no effect, softmax cannot see them."""
    state: State = {}
    for name, tensor in tensors.items():
        module, _, _ = name.rpartition(".")
        if name.endswith(".qkv.bias"):
            attn = module.removesuffix(".qkv")
            state[f"{attn}.q_bias"], _, state[f"{attn}.v_bias"] = tensor.chunk(3)
        elif name.endswith(TABLE):
            state[f"{module}.relative_position_bias_table"] = tensor
        else:
            state[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)] = tensor
    return state


def _decoder(state: State, source: str) -> State:
    """The decoder of an MAE, whose names and shapes are official in either layout."""
    decoder = {name: tensor for name, tensor in state.items() if name.startswith(_DECODER)}
    widths = {decoder[name].shape[-1] for name in ("mask_token", "decoder_pos_embed") if name in decoder}
    if len(widths) != 1:
        raise UserError(
            f"--export official_full: {source} has no decoder that gets the mask tokens; use --export official for the "
            "encoder alone."
        )
    return decoder


def _owned(tensors: State) -> State:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, tensors: State) -> None:
    with atomic_write(path) as target:
        if path.suffix == ".safetensors":
            target.write(safetensors.torch.save(_owned(tensors), {"format": "pt"}))
        else:
            torch.save(_owned(tensors), target)


def _write_hugging_face(folder: Path, tensors: State, spec: Spec, grid: Grid) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another one.") from error
    state: State = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            block, part = name.split(".")[1], name.rsplit(".", 1)[1]
            for side, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"encoder.layer.{block}.attention.attention.{side}.{part}"] = third
        else:
            state[_hugging_face_name(name)] = tensor
    weight = tensors["patch_embed.proj.weight"]
    height, width = (side * spec.patch_size for side in grid)
    config: dict[str, object] = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": len(tensors["blocks.0.mlp.fc1.weight"]),
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": weight.shape[1],
        "layer_norm_eps": spec.eps or 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": spec.qkv_bias,
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "size": {"height": height, "width": width},
    }
    _write(folder / "model.safetensors", state)
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        with atomic_write(folder / name) as target:
            target.write(json.dumps(content, indent=2).encode() + b"\n")


def _hugging_face_name(name: str) -> str:
    whole = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    if name in whole:
        return whole[name]
    _, block, rest = name.split(".", 2)
    module, part = rest.rsplit(".", 1)
    old = {new: old for old, new in hf_vit.OLD_NAMES.items()}[module]
    return f"encoder.layer.{block}.{old}.{part}"
