"""The house keeps its sizes, and no file imports itself by way of others."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

FILES = sorted((ROOT / "mae_transfer").rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_files_and_functions_are_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert statistics.median(lines.values()) <= 110
    assert {path.name: count for path, count in lines.items() if count > 400} == {}
    long = {(path.name, name): count for path in FILES for name, count in functions(path) if count > 120}
    assert long == {}


def test_there_is_no_circle_of_files() -> None:
    """Imports for types and inside functions count as well."""
    grimp = pytest.importorskip("grimp", reason="it needs Python 3.11")
    networkx = pytest.importorskip("networkx")
    graph = grimp.build_graph("mae_transfer")
    files = graph.modules - {"mae_transfer"}  # its lazy names lead to all that is public
    edges = [(one, other) for one in files for other in graph.find_modules_directly_imported_by(one) if other in files]
    circles = [sorted(c) for c in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(c) > 1]
    assert circles == []


def test_few_types_are_left_open() -> None:
    """The words `Any`, imports among them, and the lines that the type checker is told to pass over."""
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    assert sum(len(re.findall(r"\bAny\b", text)) for text in texts) < 511
    assert sum(text.count("# type: ignore") for text in texts) <= 25
