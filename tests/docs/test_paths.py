"""What pages and --help name is there: links, paths, make targets, commands with their options and keys."""

import argparse
import importlib
import re
from pathlib import Path

import pytest
from support.documents import NAMES, PAGES, blocks_of, command_of, commands_of
from support.paths import ROOT

from mae_transfer.commands import TOOLS
from mae_transfer.config.overrides import leaf_keys
from mae_transfer.runs.tasks import config_class, task_cards

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
    for line in blocks_of(text):
        words = [word for word in line.split("#")[0].split() if "/" in word and word.split("/")[0] in ROOMS]
        missing += [word for word in words if not (ROOT / word).exists() and not word.startswith(ELSEWHERE)]
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


def keys_of(task: str) -> set[str]:
    """Every configuration key of a task and its protocols, and `recipe`."""
    (card,) = (card for card in task_cards() if card.name == task)
    protocols = card.protocols or (None,)
    return {"recipe", *(key for protocol in protocols for key in leaf_keys(config_class(card, protocol)))}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = importlib.import_module(f"mae_transfer.cli.{command}").build_parser()
    return parser


@pytest.mark.parametrize("name", [*NAMES, *TOOLS])
def test_command_lines_parse(name: str) -> None:
    """Of a page, or what --help of a command ends with."""
    lines = commands_of(parser_of(name).epilog or "" if name in TOOLS else (ROOT / name).read_text())
    assert lines or name not in TOOLS
    for line in lines:
        command, arguments = command_of(line)
        if any(word == "..." or word.startswith("<") for word in arguments[:1]) or "COMMAND" in line:
            continue
        arguments = re.sub(r"(--\w+) \.\.\.( |$)", r"\1 a=b ", " ".join(arguments)).split(" ")
        arguments = [word for word in arguments if word not in ("", "...") and not re.fullmatch(r"\[.*\]", word)]
        try:
            args = parser_of(command).parse_intermixed_args(arguments)
        except SystemExit:
            pytest.fail(f"{name}: {line}")
        task = getattr(args, "task", command)
        if task in {card.name for card in task_cards()}:
            assert {override.partition("=")[0] for override in getattr(args, "overrides", ())} <= keys_of(task), line


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_make_targets_in_sentences_are_there(name: str) -> None:
    text = (ROOT / name).read_text()
    for command, rest in re.findall(r"`mae-transfer ([a-z]\w*)([^`]*)`", text):
        assert set(re.findall(r" (--[\w-]+)", rest)) <= parser_of(command)._option_string_actions.keys(), (
            command,
            rest,
        )
    targets = re.findall(r"(?:^    |`)make (\w+)", text, re.MULTILINE)
    assert set(targets) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


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
