"""What README and docs/ name is there: links, paths of the repository, and command lines that parse."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT

from mae_transfer.commands import TOOLS

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ROOMS = {path.name for path in ROOT.iterdir() if path.is_dir()} & {
    *("benchmarks", "configs", "docs", "examples", "mae_transfer", "results", "tests", "tools")
}
INSIDE = {path.name for path in (ROOT / "mae_transfer").iterdir() if path.is_dir()}
ELSEWHERE = ("results/runs", "tools/lazyconfig_train_net.py", "configs/mae", "configs/common", "data/vision")
"""Begin like paths of the repository, and are of a run, of another project or of a data set."""
OPEN = re.compile(r"[<>*]|\.\.\.")
"""A part of a path that the reader fills in."""


def paths_of(text: str) -> list[str]:
    """The words in backticks that are paths below the repository or the package."""
    words = [word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()]
    found = [word.rstrip(",;:") for word in words if re.fullmatch(r"[\w.<>*-]+(/[\w.<>*-]+)*/?[,;:]?", word)]
    return [word for word in found if "/" in word and word.split("/")[0] in ROOMS | INSIDE]


@pytest.mark.parametrize("name", NAMES)
def test_paths_and_links_are_there(name: str) -> None:
    page = ROOT / name
    text = page.read_text()
    missing = [link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text) if not (page.parent / link).exists()]
    for path in paths_of(text):
        if path.startswith(ELSEWHERE):
            continue
        if (whole := OPEN.search(path)) is not None:
            path = path[: path.rfind("/", 0, whole.start()) + 1]
        if not any((above / path).exists() for above in (ROOT, ROOT / "mae_transfer", page.parent)):
            missing.append(path)
    assert not missing


def test_paths_below_the_package_in_docstrings_are_there() -> None:
    """`engine/task.py` in a docstring or comment is below the package, its module's folder or the repository."""
    missing = []
    for module in sorted((ROOT / "mae_transfer").rglob("*.py")):
        for path in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)(?::\w+)?`", module.read_text()):
            above = (ROOT / "mae_transfer", module.parent, *module.parent.parents[:3])
            if path.split("/")[0] not in INSIDE | ROOMS or path.startswith(ELSEWHERE):
                continue
            if not any((folder / path).exists() for folder in above):
                missing.append(f"{module.relative_to(ROOT)}: {path}")
    assert not missing


def commands_of(text: str) -> list[str]:
    """The command lines of indented blocks, with their continuations, without comments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if line.startswith("    ")]
    return [line for line in found if re.match(r"(\w+=\S+ )*(mae-transfer|python tools/|torchrun) ?", line)]


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


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_parse(name: str) -> None:
    for line in commands_of((ROOT / name).read_text()):
        command, arguments = command_of(line)
        if any(word == "..." or word.startswith("<") for word in arguments[:1]) or "COMMAND" in line:
            continue
        arguments = [word for word in arguments if word != "..." and not re.fullmatch(r"\[.*\]", word)]
        parser = importlib.import_module(f"mae_transfer.cli.{command}").build_parser()
        try:
            parser.parse_intermixed_args(arguments)
        except SystemExit:
            pytest.fail(f"{name}: {line}")


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [str(page) for page in pages if f"({page})" not in index and page != Path("index.md")] == []


def test_the_words_of_a_line_are_found() -> None:
    """The readers of this test see what they should."""
    assert paths_of("`engine/task.py`, `configs/*/a.yaml` and `train/x`") == ["engine/task.py", "configs/*/a.yaml"]
    lines = commands_of("    A=1 mae-transfer tables \\\n        --format csv  # x\n    pip install x\n")
    assert [command_of(line) for line in lines] == [("tables", ["--format", "csv"])]
    assert command_of("torchrun --x 8 -m mae_transfer transfer a") == ("transfer", ["a"])
    assert command_of("python tools/make_plots.py") == ("plots", [])
