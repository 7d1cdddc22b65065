"""`key=value` overrides of a configuration, and the nearest key to a misspelt one."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mae_transfer.config.yaml import parse_yaml
from mae_transfer.errors import UserError, nearest

Overrides: TypeAlias = Mapping[str, Any] | Iterable[str]
"""["optim.lr=4e-5"], {"optim.lr": 4e-5} or {"optim": {"lr": 4e-5}}."""

INSTEAD_OF = (
    ("schedule.steps", "schedule.epochs"),
    ("schedule.epochs", "schedule.steps"),
    ("schedule.warmup_steps", "schedule.warmup_epochs"),
    ("schedule.warmup_epochs", "schedule.warmup_steps"),
)
"""Naming the first of a pair replaces the recipe's value of the second."""

FLAGS_ONLY = {
    "task": "--task",
    "protocol": "--protocol",
    "method": "--method",
    "preset": "--preset",
    "backbone.name": "--backbone",
}
"""Keys that choose the recipe's layers, and so cannot be set after them."""


def parse_overrides(overrides: Overrides) -> list[tuple[str, Any]]:
    """(dotted key, value) pairs in the given order."""
    if isinstance(overrides, Mapping):
        given = flatten(overrides)
        return [(key, os.fspath(value) if isinstance(value, os.PathLike) else value) for key, value in given.items()]
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r} is one text; give a list of key=value, or a mapping")
    return [parse_override(text) for text in overrides]


def override_texts(overrides: Overrides) -> list[str]:
    """The same as `key=value` texts, for a command line."""
    if not isinstance(overrides, Mapping | str):
        return list(overrides)
    return [f"{key}={json.dumps(value)}" for key, value in parse_overrides(overrides)]


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_override(text: str) -> tuple[str, object]:
    """'optim.lr=4e-5' -> ('optim.lr', 4e-5); the value is YAML."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"'{text}' is not an override; write key=value, for example optim.lr=4e-5")
    if value.lstrip()[:1] in ("|", ">"):
        raise UserError(
            f"override '{text}': {value.strip()[0]} begins a block of text in YAML; put the value in quotes"
        )
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise UserError(f"override '{text}': the value is not valid YAML: {error}") from None


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration class."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += leaf_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def field_of(schema: type[BaseModel], key: str) -> FieldInfo:
    """The field of a dotted key, which is there."""
    name, _, rest = key.partition(".")
    field = schema.model_fields[name]
    inner = field.annotation
    return field_of(inner, rest) if rest and isinstance(inner, type) and issubclass(inner, BaseModel) else field


def check_key(schema: type[BaseModel], key: str) -> None:
    if key in FLAGS_ONLY:
        raise UserError(f"{key}= chooses the recipe's values and cannot be an override; use {FLAGS_ONLY[key]}")
    known = leaf_keys(schema)
    if key == "engine" and "model.implementation" in known:
        raise UserError("unknown config key 'engine'; --engine or model.implementation= names the detector's code")
    if key not in known:
        raise UserError(f"unknown config key '{key}'{nearest(key, known)}; --print-config shows them all")
