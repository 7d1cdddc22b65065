"""The report page: complete, escaped, the same each time, and what the command says of bad input."""

import base64
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from support.paths import TOOLS
from support.report_records import all_records

from mae_transfer.results.report.budget import within
from mae_transfer.results.report.page import make_page
from mae_transfer.run_folder.pictures import read_pictures
from mae_transfer.run_folder.record import read_records

TOOL = TOOLS / "make_report.py"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_of_a_record_becomes_markup(page: str) -> None:
    tags = Tags(page).found
    assert sum(tag == "script" for tag, _ in tags) == 1
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 2
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_every_run_is_there_and_what_is_left_out_is_named(page: str) -> None:
    anchors = [attributes.get("id") for tag, attributes in Tags(page).found if tag == "details" and "id" in attributes]
    assert anchors == [f"run-{number}" for number in (28, *range(1, 13), *range(13, 22), 23, 25, 27, 22, 24, 26)]
    assert len(anchors) == len(all_records())
    assert "is no whole JSON file" in page
    assert "Left out (1)" in page


def test_pictures_are_embedded_as_they_are_and_within_the_budget(runs: Path, page: str) -> None:
    stored, problem = read_pictures(runs / "run00")
    assert problem is None
    assert base64.b64encode(stored[0].path.read_bytes()).decode() in page
    of_one = [record for record in read_records(runs)[0] if record["run_id"] == all_records()[0]["run_id"]]
    small = make_page(of_one, [], picture_bytes=10)
    assert "<img" not in small
    assert "2 pictures are left out for the size of the page" in small


def test_budget_gives_each_run_its_first_before_any_its_second() -> None:
    assert within([[4, 4], [4], []], 8) == [1, 1, 0]
    assert within([[4, 4], [4], [9]], 100) == [2, 1, 1]
    assert within([[9, 1], [2, 2]], 4) == [0, 2]


def test_index_of_pictures_cannot_name_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for text in ('[{"file": "../secret.jpg", "title": "", "caption": ""}]', "[", '[{"file": 3}]', "{}", "[1]"):
        (folder / "index.json").write_text(text)
        found, problem = read_pictures(tmp_path)
        assert found == []
        assert text == "{}" or (problem and "\n" not in problem), text


def test_the_command_line_gives_the_same_bytes(runs: Path, page: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import runpy, sys; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally: assert not {'torch', 'timm'} & set(sys.modules)"
        )
        command = [sys.executable, "-c", code, str(TOOL), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    output = tmp_path / "new" / "index.html"
    done = run("--runs", str(runs), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_text() == page
    assert page.startswith("<!doctype html>")
    assert done.stderr.startswith("left out: ")
    for folder in (tmp_path / "no", tmp_path / "new"):
        bad = run("--runs", str(folder), "--output", str(tmp_path / "other.html"))
        assert bad.returncode == 2
        assert bad.stderr.startswith("error: ")
        assert bad.stderr.count("\n") == 1
        assert not (tmp_path / "other.html").exists()
