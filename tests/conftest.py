"""Markers that follow from what a test uses: `process` and `reference`.

A test uses what its function names, what those functions, fixtures and constants of its module name, and so on. What
a test does by a name that says nothing of it (a suite made in this process starts others) is marked by hand.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

USES = {
    "process": re.compile(
        r"\bsubprocess\b|\bmultiprocessing\b|torch\.distributed\.run\b"
        r"|\bcommand_line\.(run|launched|start|transfer|pretrain|kill_after)\b"
        r"|support\.engine_toy\.(run_ranks|start)\b|support\.ranks\.spawn\b"
    ),
    "reference": re.compile(
        r"(import|from|importorskip\(\") ?(timm|transformers|detectron2|mmseg|mmcv|mmengine|pycocotools\.coco\w*)\b"
        r"|support\.(mae_reference|ade20k_reference|detector_goldens|detectron2_cases|vitdet_cases)\b"
    ),
}


@cache
def definitions(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Name at the top of a module -> its source (of an import: `import module.name`) and the names that are in it."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found[(alias.asname or alias.name).split(".")[0]] = (f"import {module}{alias.name}", frozenset())
            continue
        inside = list(ast.walk(node))
        stored = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        loaded = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        names = frozenset(loaded - stored | {n.arg for n in inside if isinstance(n, ast.arg)})
        source = "\n".join(ast.get_source_segment(text, n) or "" for n in [node, *getattr(node, "decorator_list", [])])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = source, names
        else:
            found |= dict.fromkeys(stored, (source, names))
    return found


def used(path: Path, names: set[str]) -> str:
    """The source of these names of a module and of all that they name there."""
    known = definitions(path)
    reached, left = set(), names & known.keys()
    while left:
        reached |= left
        left = set().union(*(known[name][1] for name in left)) & known.keys() - reached
    return "\n".join(known[name][0] for name in sorted(reached))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        source = used(item.path, {item.originalname, *item.fixturenames})
        for marker, pattern in USES.items():
            if pattern.search(source):
                item.add_marker(marker)
    items.sort(key=lambda item: item.path.name != "test_wheel.py")  # first, so that no worker waits for it at the end
