"""The site: every page has its place, the generated ones are up to date, quoted messages are the code's, it builds."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

import mae_transfer

DOCS = ROOT / "docs"


def test_the_navigation_has_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    placed = re.findall(r": (\S+\.md)$", text, re.MULTILINE)
    assert sorted(placed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    assert yaml.safe_load(text)["docs_dir"] == "docs"


def test_the_python_reference_is_up_to_date_and_whole() -> None:
    path = DOCS / "make_api_reference.py"
    spec = importlib.util.spec_from_file_location("make_api_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert page == module.reference(), "run python docs/make_api_reference.py"
    for name in mae_transfer.__all__:
        entry = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert len(entry.split("```")[2].strip().splitlines()) > 2, f"{name} has no docstring"


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    """A first cell quotes a message; `...` stands for what is filled in."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "mae_transfer").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    source = re.sub(r"\{[^{}\n]*\}", "{}", source)
    cells = re.findall(
        r"^\| ((?:`|died)[^|]+) \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    quoted = [part.strip() for cell in cells for text in re.findall("`([^`]+)`", cell) for part in text.split("...")]
    quoted = [part for part in quoted if len(part) > 2 and part not in ("-", "smoke")]
    assert len(quoted) > 20
    assert [part for part in quoted if part not in source] == []


@pytest.mark.process
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="it needs Python 3.11")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    start = "import sys; from zensical.main import cli; sys.argv[0] = 'zensical'; cli()"
    command = [sys.executable, "-c", start, "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "coco.html").read_text(encoding="utf-8")
    assert "<table>" in page
    assert 'ade20k.html"' in page, "other pages"
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as index:
        index.write("\n[a page](that_is_not_there.md)\n")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode != 0, "a broken link is an error"
