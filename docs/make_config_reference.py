#!/usr/bin/env python
"""Writes docs/config.md: every field of every configuration, with its default, role and docstring.

python docs/make_config_reference.py
"""

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mae_transfer.config.roles import Role
from mae_transfer.runs.tasks import config_class, task_card, task_cards
from mae_transfer.tasks.card import TaskCard

OUTPUT = Path(__file__).with_name("config.md")
HEAD = """\
# Configuration reference

Every field of every configuration, by task. `mae-transfer transfer ... --print-config` shows the resolved values of a
run; any field can be set as `key=value`. Made by `python docs/make_config_reference.py`; a test keeps it up to date.

A field without a default has its value in the recipe (`configs/`), where it carries its source. Roles:

| role | meaning |
|---|---|
| (none) | a setting: it may change a metric, so a resume must not change it, and runs that differ in it share no cell |
| operational | cannot change a metric beyond rounding; a resume may change it |
| place | path of data, which are known by their fingerprint; a resume may change it |
| evaluation | how the trained model is evaluated: a setting that a resume may change |
| compared | what tables compare or average over, or what the settings hold under another name |
"""


def fields_of(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def type_text(annotation: object) -> str:
    """'float, or null' for float | None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`".lower() if isinstance(value, bool) else f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        parts = [type_text(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*parts, *(["null"] if type(None) in arguments else [])])
    if origin is tuple:
        inner = [type_text(argument) for argument in arguments if argument is not ...]
        return f"list of {inner[0]}" if ... in arguments else f"[{', '.join(inner)}]"
    return getattr(annotation, "__name__", str(annotation))


def row(key: str, field: FieldInfo) -> str:
    role = next((item.value for item in field.metadata if isinstance(item, Role)), "")
    default = "" if field.is_required() else f"`{field.get_default()}`".replace("None", "null").replace("()", "[]")
    default = re.sub(r"^`(True|False)`$", lambda match: match[0].lower(), default)
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{key}` | {type_text(field.annotation)} | {default} | {role} | {text} |"


def table(fields: dict[str, FieldInfo]) -> str:
    return "\n".join(
        ["| field | type | default | role | |", "|---|---|---|---|---|", *(row(*i) for i in fields.items())]
    )


def schemas() -> dict[str, dict[str, FieldInfo]]:
    """Title -> fields of each configuration class."""
    found: dict[str, dict[str, FieldInfo]] = {}
    seen: set[object] = set()
    for card in task_cards():
        for protocol in card.protocols or (None,):
            schema = config_class(card, protocol)
            if schema not in seen:
                seen.add(schema)
                found[title_of(card, protocol.name if protocol else "")] = dict(fields_of(schema))
    return found


def title_of(card: TaskCard, protocol: str) -> str:
    alike = [other.name for other in task_cards() if other.config == card.config]
    own = {each.name: config_class(card, each) for each in card.protocols}
    if len(set(own.values())) > 1:
        names = [name for name, schema in own.items() if schema is own[protocol]]
        return f"{card.name} --{card.option} {', '.join(names)}"
    return ", ".join(alike)


def reference() -> str:
    """The page."""
    found = schemas()
    first = dict(fields_of(config_class(task_card("coco"), None)))
    shared = {
        key: field
        for key, field in first.items()
        if all(key in fields and row(key, fields[key]) == row(key, field) for fields in found.values())
    }
    parts = [HEAD, f"## In every configuration\n\n{table(shared)}\n"]
    for title, fields in found.items():
        parts.append(f"## {title}\n\n{table({key: field for key, field in fields.items() if key not in shared})}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    OUTPUT.write_text(reference(), encoding="utf-8")
