"""Mutations of bytes, of JSON trees and of plain values; all drawn from one `random.Random`."""

import copy
import json
from random import Random
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**53 + 1, 2**64, -(2**63), 10**400, 0.5, -0.5, 1e-30, 1e308,
    float("nan"), float("inf"), "", "x", "1", "0", "-1", "null", "\0", "ü", "\ud800", "../x", "a" * 5000,
    [], [1], [None], [[]], {}, {"a": 1},
]  # fmt: skip
ODD_TEXTS = [
    "", "null", "true", "yes", "no", "0", "-1", "1", "1e400", "1e20", "0.5", "nan", ".nan", ".inf", "9" * 5000, "0x10",
    "010", "1:30", "2020-13-45", "!!bool x", "!!python/object:os.system x", "[", "{", "[[]]", "{a: 1}", "[1, 2]", "*a",
    "&a [*a]", "'", '"', "é", "\0", "\ud800", "- 1", "a: b: c", "#", "|", "> x", "[" * 3000, "x" * 20000, "1_000", "+1",
    "~", "../..", "/", "%s", "${HOME}", "!!timestamp x", "!!map xy", "!!set {a}", "!!binary x", "!!null x", "<<: *a",
]  # fmt: skip


def mutate_bytes(content: bytes, rng: Random) -> tuple[str, bytes]:
    """What was done, and the bytes, which may be the same."""
    data, n = bytearray(content), len(content)
    at = rng.randrange(max(n, 1))
    length = min(rng.choice((1, 2, 8, 64, 512, 4096)), max(n - at, 0))
    kind = rng.choice(
        ("flip", "flip", "flip", "byte", "cut", "drop", "zero", "repeat", "insert", "swap", "text", "empty")
    )
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + length]
    elif kind == "zero":
        data[at : at + length] = bytes(length)
    elif kind == "repeat":
        data[at:at] = data[at : at + length]
    elif kind == "insert":
        data[at:at] = rng.randbytes(length)
    elif kind == "swap":
        other = rng.randrange(max(n - length, 1))
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    elif kind == "text":
        data[at:at] = rng.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")
    elif rng.random() < 0.1:
        data.clear()
    else:
        data += rng.randbytes(length)
        kind = "append"
    return f"{kind} at {at} of {n}", bytes(data)


def mutate_tree(tree: Any, rng: Random) -> tuple[str, str, Any]:
    """One place of a JSON tree changed: what was done, the last key of the place, and the new tree."""
    tree = copy.deepcopy(tree)
    places = _places(tree)
    holder, key, path = rng.choice(places)
    value, name = holder[key], next((part for part in reversed(path) if isinstance(part, str)), "")
    kinds = ["odd", "odd", "odd", "delete", "wrap", "copy"]
    if type(value) in (int, float):
        kinds += ["number"] * 5
    if isinstance(holder, dict):
        kinds += ["rename", "add"]
    kind = rng.choice(kinds)
    if kind == "odd":
        holder[key] = rng.choice(ODD)
    elif kind == "delete":
        del holder[key]
    elif kind == "wrap":
        holder[key] = rng.choice(([value], {"a": value}, str(value)))
    elif kind == "copy":
        holder[key] = copy.deepcopy(rng.choice(places)[0])
    elif kind == "number":
        holder[key] = rng.choice(
            (value + 1, value - 1, value * 2, -value, value * 1000, value / 100, value + 0.25, float(value))
        )
    elif kind == "rename":
        holder[str(key) + rng.choice(("s", "_", "2"))] = holder.pop(key)
    else:
        holder[rng.choice(("x", "", "__proto__", "ü"))] = rng.choice(ODD)
    return f"{kind} {'.'.join(map(str, path))}", name, tree


def dump(tree: Any) -> bytes:
    """As JSON with NaN and lone surrogates, as Python writes them."""
    return json.dumps(tree).encode()


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    found: list[tuple[Any, Any, tuple[Any, ...]]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((tree, key, (*path, key)))
        found += _places(value, (*path, key))
    return found
