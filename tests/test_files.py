"""Files written whole or not at all, by processes that are killed and by processes that live; the reader of JSON."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae_transfer.backbones.checkpoints import files
from mae_transfer.cli.main import COMMANDS
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, parse_json, user_path
from mae_transfer.pretrain.tokenizers.load import load_tokenizer
from mae_transfer.runs.curve import curve_stem
from mae_transfer.runs.plan import plan_runs

WRITER = """
import sys
from pathlib import Path
from mae_transfer.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
    file.write(b" and half")
"""


def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "tables.md"
    command = [sys.executable, "-c", WRITER, str(path)]
    killed, living = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for writer in (killed, living):
        assert writer.stdout
        assert writer.stdout.readline() == b"\n"
    killed.kill()
    killed.communicate()
    (tmp_path / ".tables.md.old").write_bytes(b"of somebody else")
    assert len(list(tmp_path.glob(".tables.md.????????"))) == 2

    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert len(list(tmp_path.glob(".tables.md.????????"))) == 1
    living.communicate(b"")
    assert living.returncode == 0
    assert path.read_bytes() == b"half and half"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".tables.md.old", "tables.md"]
    assert path.stat().st_mode & 0o777 == 0o644


VALUE = {"a": [1, -2.5, "é😀", None, True, {}], "b": {"a": 10**300}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_in_any_of_its_encodings(encoding: str, ascii_only: bool) -> None:
    text = json.dumps(VALUE, ensure_ascii=ascii_only)
    assert parse_json(text.encode(encoding)) == parse_json(text) == VALUE


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' is twice in an object"),
        (b'[{"x": {"k": 1, "k": 2}}]', "the key 'k' is twice"),
        (b"9" * 1001, "a number has 1001 digits"),
        (b'{"a": -' + b"9" * 5000 + b"}", "a number has 5001 digits"),
        (b"[" * 101 + b"]" * 101, "deeper than 100 levels"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "deeper than 100 levels"),
        (b"[" * 10**6 + b"]" * 10**6, "deeper than 100 levels"),
        (b'{"a": "\xff"}', "it is not utf-8, by byte 7"),
        (b"{} {}", "Extra data"),
    ],
)
def test_what_is_no_sane_json_is_one_line(content: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)


def test_limits_are_no_narrower_than_said() -> None:
    assert parse_json(b"9" * 1000) == int("9" * 1000)
    found = parse_json(b"[" * 100 + b"]" * 100)
    for _ in range(99):
        assert isinstance(found, list)
        (found,) = found
    assert found == []


def test_objects_may_be_replaced_as_they_are_read() -> None:
    assert parse_json(b'[{"a": {"b": 1}}, 2]', lambda found: sorted(found)) == [["a"], 2]


def test_a_home_folder_is_found_without_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/x") == tmp_path / "x"
    assert user_path("~no_such_user.pth") == Path("~no_such_user.pth"), "a name that only begins so"
    for name in COMMANDS:  # no option is a path that keeps its `~`
        parser = importlib.import_module(f"mae_transfer.cli.{name}").build_parser()
        assert not [action.dest for action in parser._actions if action.type is Path], name
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert files.find("~/weights.safetensors") == tmp_path / "weights.safetensors"
    run = plan_runs("folder", "vit_ti", protocol="knn", output="~/run")[0]
    assert run.path == tmp_path / "run"
    assert curve_stem(run, "~/run", "partial") == tmp_path / "run" / "partial_curve"
    with pytest.raises(UserError, match=f"tokenizer {tmp_path}/tokens"):
        load_tokenizer("~/tokens")
