"""This project's own: checkpoints of a run (`encoder.*` beside the task's modules), or a saved encoder's state dict.

A run with windowed attention has dropped the class token, and its positions: it is then loaded without one. Relative
position tables come along: those of each block (BEiT, any backbone after ADE20K, ViTDet's two) and the two that blocks
share (`rel_pos_window`, `rel_pos_global`), which fit only an encoder with the same options. So does the final norm, of
a run that used it, or the norm before a classifier (`fc_norm`). The task's own modules are not looked at.

A run's checkpoint also says of its encoder what no tensor shows (`facts_of`): mean and std of its images, eps, size of
its positions. An encoder of any name takes that over; `vit_*` names also take how it was pre-trained.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mae_transfer.backbones.checkpoints import values
from mae_transfer.backbones.checkpoints.layout import (
    FINAL_NORM,
    Converted,
    State,
    depth_of,
    final_norm,
    has,
    norm,
    width_of,
)
from mae_transfer.backbones.positions.resampling import RULES
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES, TABLE
from mae_transfer.backbones.registry import class_token_fields
from mae_transfer.config.old_names import renamed
from mae_transfer.config.overrides import flatten, leaf_keys
from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

NAME = "mae_transfer"

_SHARED = ("rel_pos_window", "rel_pos_global")
_FACTS = (
    *("img_size", "in_chans", "class_tokens", "mean", "std", "eps", "final_eps"),
    *("abs_pos", "rel_pos_tables", "pos_resampling", "window_padding"),
)
_DECODER = ("mask_token", "decoder_")


def detects(state: State) -> bool:
    return any(key.startswith(("encoder.vit.blocks.", "vit.blocks.")) for key in state)


def convert(state: State) -> Converted:
    prefix = "encoder." if any(key.startswith("encoder.vit.") for key in state) else ""
    tensors: State = {}
    shared: State = {}
    ignored = {}
    for key, tensor in state.items():
        name = key.removeprefix(prefix)
        if key in ("fc_norm.weight", "fc_norm.bias"):
            ignored[key] = FINAL_NORM
        elif not key.startswith(prefix):
            decoder = key.startswith(_DECODER)
            ignored[key] = "decoder of the pre-training" if decoder else "another part of the task's model"
        elif name in _SHARED:
            shared[name] = tensor
        elif name in ("norm.weight", "norm.bias"):
            ignored[key] = FINAL_NORM
        else:
            tensors[name.removeprefix("vit.")] = tensor
    facts = (
        {"class_token": False, "class_tokens": 1, "reg_tokens": 0, "position_prefix": 0} if _windowed(tensors) else {}
    )
    warnings = ["no class token in the file: it was trained with windowed attention"] if facts else []
    if any(key.endswith(TABLE) for key in tensors):
        facts["rel_pos_tables"] = True  # also of a backbone that had none before it was transferred
    elif shared:
        facts["rel_pos_tables"] = False  # also of BEiT, whose blocks' one table became the two that they share
    if "pos_embed" in tensors:
        facts["abs_pos"] = True  # also of BEiT, which gets one on COCO
    if any(key.endswith(DECOMPOSED_TABLES) for key in tensors):
        facts["decomposed_tables"] = True
    if any(key.endswith(".gamma_1") for key in tensors):  # timm's Eva, of which a file may settle this
        facts["qkv_bias"] = any(key.endswith((".q_bias", ".qkv.bias", ".q_proj.bias")) for key in tensors)
    last = f"{prefix}norm" if has(state, f"{prefix}norm") else "fc_norm"
    return Converted(
        tensors,
        ignored,
        norm(last, width_of(tensors)) if has(state, last) else {},
        lambda key: f"{prefix}vit.{key}",
        facts,
        final_norm(state, last),
        shared,
        warnings,
    )


def facts_of(encoder: "Encoder") -> dict[str, object]:
    """What a checkpoint of a run holds of its encoder, in plain values; see LoadReport for those of a pre-training.

    `img_size` is the size that its positions are for, which fine-tuning may have changed.
    """
    found = dataclasses.asdict(encoder.spec) | encoder.facts()
    report = encoder.load_report
    told = {"trained_by": report.trained_by, "trained_as": report.trained_as}
    return {name: found[name] for name in _FACTS} | told


def facts_of_run(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """What the content of a run's checkpoint tells: fields of the Spec, and of the LoadReport; none for other files.

    Raises UserError for values that no encoder has.
    """
    origin = raw.get("origin")
    told = {} if origin is None else origin.get("encoder", {}) if isinstance(origin, Mapping) else None
    if not isinstance(told, Mapping):
        raise UserError("what it says of its run (origin) is no record of this project; take another checkpoint.")
    facts: dict[str, Any] = {}
    if "img_size" in told:
        facts["img_size"] = values.size(told["img_size"], "its run's img_size")
    if "in_chans" in told:
        facts["in_chans"] = values.whole(told["in_chans"], "its run's in_chans")
    if told.get("class_tokens", 1) != 1:
        facts |= class_token_fields(values.whole(told["class_tokens"], "its run's class_tokens"))
    facts |= values.statistics(told, "its run's", facts.get("in_chans", 3))
    for name in ("eps", "final_eps"):
        if told.get(name) is not None:
            facts[name] = values.epsilon(told[name], f"its run's {name}")
    for name in ("abs_pos", "rel_pos_tables"):
        if name in told:
            facts[name] = values.flag(told[name], f"its run's {name}")
    if "pos_resampling" in told:
        facts["pos_resampling"] = _rule(told["pos_resampling"])
    ids = {name: told.get(name) for name in ("trained_by", "trained_as")}
    if not all(value is None or isinstance(value, str) for value in ids.values()):
        raise UserError("what it says of its pre-training (trained_by) is no text; take another checkpoint.")
    return facts, ids


def settings_of_run(
    raw: object, tasks: Collection[str], schema: type[BaseModel], names: tuple[str, ...]
) -> dict[str, object]:
    """Dotted keys -> values of the configuration in a run's checkpoint: those of the schema that begin with `names`.

    Empty for other files, and for runs of other tasks.
    """
    config = raw.get("config") if isinstance(raw, Mapping) else None
    if not isinstance(config, dict) or config.get("task") not in tasks:
        return {}
    known = set(leaf_keys(schema))
    return {key: value for key, value in flatten(renamed(config)).items() if key in known and key.startswith(names)}


def protocol_of_run(raw: object, task: str) -> str | None:
    """The protocol in a checkpoint of a run of this task; None for other files, and for a task's usual one."""
    config = raw.get("config") if isinstance(raw, Mapping) else None
    named = config.get("protocol") if isinstance(config, Mapping) and config.get("task") == task else None
    return named if isinstance(named, str) else None


def resampling_of_run(origin: Mapping[str, object]) -> str | None:
    """The rule by which a run resampled its positions (`positions/resampling.py`), None where it did not.

    Runs of earlier versions say it in the words of their load report alone.
    """
    encoder, backbone = origin.get("encoder"), origin.get("backbone")
    if isinstance(encoder, Mapping) and "pos_resampling" in encoder:
        return _rule(encoder["pos_resampling"])
    lines = backbone.get("load_report", []) if isinstance(backbone, Mapping) else []
    resized = [line for line in lines if "resized: pos_embed: " in line]
    said = [rule for line in resized for rule, words in RULES.items() if f", {words} " in line]
    return said[0] if said else None


def _rule(value: object) -> str:
    if value not in RULES:
        raise UserError(f"its run's pos_resampling is {values.told(value)}; known: {', '.join(RULES)}.")
    return str(value)


def spread_table(converted: Converted) -> None:
    """Give every block the table that all share in a BEiT-style pre-training, as BEiT's fine-tuning does."""
    if converted.shared_tables.keys() != {"rel_pos_global"}:
        return
    table = converted.shared_tables.pop("rel_pos_global")
    name, inner = f".attn.{TABLE}", converted.original
    converted.tensors |= {f"blocks.{i}{name}": table for i in range(depth_of(converted.tensors))}
    converted.facts["rel_pos_tables"] = True
    whole = inner("").removesuffix("vit.") + "rel_pos_global"
    converted.original = lambda key: whole if key.endswith(name) else inner(key)


def _windowed(tensors: State) -> bool:
    """Whether the class token and its rows are gone from everywhere; one that is merely missing is an error."""
    if "cls_token" in tensors or "reg_token" in tensors:
        return False
    position = tensors.get("pos_embed")
    if position is not None:
        return position.ndim == 3 and (_square(position.shape[1]) or not _square(position.shape[1] - 1))
    tables = [tensor for key, tensor in tensors.items() if key.endswith(TABLE)]
    return all(len(table) % 2 for table in tables)


def _square(count: int) -> bool:
    return round(max(count, 0) ** 0.5) ** 2 == count
