"""The one YAML reader: YAML 1.2's scalars, plain values only, every problem one line; and the writer that fits it.

PyYAML reads YAML 1.1, in which `no` is false, `1:30` is 90 and `2024-02-30` a date that is none. Of YAML 1.1, merge
keys (`<<: *base`) are read. A text that either version takes for something else is written with quotes.
"""

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mae_transfer.errors import UserError
from mae_transfer.files import reading

DEPTH = 40
"""Deepest nesting that is read; a recipe has four levels."""
ALIASES = 20
"""Most aliases that are read: each may hold others, so that their values multiply."""
DIGITS = 400
"""Longest number that is read."""


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.open: list[str | None] = []
        """Anchors of the nodes that are being read, None for a node without."""
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if event.anchor in self.open:
                raise yaml.MarkedYAMLError(problem=f"*{event.anchor} holds itself", problem_mark=mark)
            if self.aliases > ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {ALIASES} aliases", problem_mark=mark)
        if len(self.open) == DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {DEPTH} levels", problem_mark=mark)
        self.open.append(getattr(event, "anchor", None) if not isinstance(event, yaml.AliasEvent) else None)
        node = super().compose_node(parent, index)
        self.open.pop()
        return node

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        """Checks the keys before any are merged: one's own key wins over a merged one, and is no second."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = "<<" if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.MarkedYAMLError(problem="a key has to be a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="no mapping of keys to values", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_MERGE = "tag:yaml.org,2002:merge"
_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1
_Loader.add_implicit_resolver(_MERGE, re.compile("^<<$"), ["<"])
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("int", rf"[-+]?[0-9]{{1,{DIGITS}}}", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    for _side in (_Loader, _Dumper):  # the writer's stand behind those of YAML 1.1
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})\Z"), list(_first))


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is not true or false")
    return text == "true"


def _construct_null(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    text = str(loader.construct_scalar(node))
    if text.lower() not in ("null", "~", ""):
        raise ValueError(f"{text!r} is not null")


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_PLAIN = ("float", "str", "seq", "map")
_Loader.yaml_constructors = {  # of tags in the text, such as !!timestamp, those that YAML 1.2 has
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if not tag or tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:null", _construct_null)


@lru_cache(16)  # a recipe takes 10 ms, and is read for every run of a suite
def _loaded(text: str) -> object:
    return yaml.load(text, Loader=_Loader)


def parse_yaml(text: str) -> object:
    """Plain values of a YAML text.

    Raises:
        ValueError: what is wrong with it, in one line.
    """
    try:
        return copy.deepcopy(_loaded(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{' '.join(str(error.problem or error.context).split())}{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump_yaml(values: Mapping[str, object]) -> str:
    """The YAML text, in ASCII, from which `parse_yaml` and any reader of YAML 1.1 make the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        what: names the file in errors, such as "suite".

    Raises:
        UserError: the file cannot be read, is no UTF-8, no YAML, or no mapping.
    """
    with reading(path):
        content = path.read_bytes()
    try:
        values = parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8; save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{what} {path} is no mapping of keys to values")
    return values
