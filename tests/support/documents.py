"""The pages of the project and the command lines in them."""

import re
import shlex

from support.paths import ROOT

from mae_transfer.commands import TOOLS

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks_of(text: str) -> list[str]:
    """The command lines of indented blocks, with their continuations."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if line.startswith("  ")]
    return [line for line in found if re.match(r"(\w+=\S+ )*(mae-transfer|python|torchrun|make|pip)\b", line)]


def commands_of(text: str) -> list[str]:
    """Those of `blocks_of` that are a command of the project."""
    return [line for line in blocks_of(text) if re.match(r"(\w+=\S+ )*(mae-transfer|python tools/|torchrun) ?", line)]


def command_of(line: str) -> tuple[str, list[str]]:
    """A command's name and its arguments, of any of its three forms."""
    words = shlex.split(line, comments=True)
    if "mae-transfer" in words:
        start = words.index("mae-transfer") + 1
    elif "mae_transfer" in words:
        start = words.index("mae_transfer") + 1
    else:
        start = next(i for i, word in enumerate(words) if word.startswith("tools/"))
        back = {file: name for name, file in TOOLS.items()}
        words[start] = back[words[start].removeprefix("tools/")]
    return words[start], words[start + 1 :]
