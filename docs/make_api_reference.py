#!/usr/bin/env python
"""Writes docs/api.md: every public name of the package, with its signature and docstring.

python docs/make_api_reference.py
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import mae_transfer

OUTPUT = Path(__file__).with_name("api.md")
HEAD = """\
# Python reference

Every public name of `mae_transfer`, from its docstring. [python.md](python.md) shows them at work. Made by
`python docs/make_api_reference.py`; a test keeps it up to date.
"""
SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Shapes", "Source")


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_entry(name) for name in sorted(mae_transfer.__all__))])


def _entry(name: str) -> str:
    obj = getattr(mae_transfer, name)
    place = f"{obj.__module__.replace('.', '/')}.py"
    return (
        f"## {name}\n\n```python\n{_signature(obj)}\n```\n\n{_markdown(inspect.getdoc(obj) or '')}\n\nIn `{place}`.\n"
    )


def _signature(obj: Any) -> str:
    """As the source has it, without its body: annotations as they were written, on any version of Python."""
    source = inspect.getsource(obj)
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    lines = source.splitlines()
    start, end = node.lineno - 1, node.body[0].lineno - 1
    return "\n".join(lines[start:end]).rstrip().removesuffix(":")


def _markdown(text: str) -> str:
    """Google's sections as bold heads and lists; a line that is indented further goes on with its entry."""
    lines, section, listed = list[str](), False, False
    for line in text.splitlines():
        head = re.fullmatch(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            section, listed = True, head[1] != "Returns"
            lines += [f"**{head[1]}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            entry = line.strip()
            name = re.match(r"([\w, *]+): ", entry)
            text = f"`{name[1]}`: {entry[name.end() :]}" if name else entry
            lines.append(f"- {text}" if listed else text)
        elif section and line.strip():
            lines.append(f"  {line.strip()}" if line.startswith(" ") else line)
            section = section and line.startswith(" ")
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    OUTPUT.write_text(reference(), encoding="utf-8")
