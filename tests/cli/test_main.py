"""`mae-transfer COMMAND` and the files of tools/: the same commands, and messages that name what was typed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT, TOOLS

from mae_transfer import __version__
from mae_transfer.cli.exit import exit_code
from mae_transfer.cli.main import COMMANDS, main
from mae_transfer.commands import TOOLS as FILES
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_record
from mae_transfer.tasks.card import load_object

BLOCKED = "import sys; sys.modules['torch'] = sys.modules['pandas'] = None; sys.argv = {argv!r}; "


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_every_command_has_a_module_and_a_file() -> None:
    modules = {path.stem for path in (ROOT / "mae_transfer" / "cli").glob("*.py")} - {"__init__", "main", "exit"}
    assert modules == set(COMMANDS) == set(FILES)
    assert {path.name for path in TOOLS.glob("*.py")} == set(FILES.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_waits_for_no_torch_and_says_what_was_typed(name: str) -> None:
    code = BLOCKED.format(argv=["mae-transfer", name, "--help"]) + "from mae_transfer.cli.main import main; main()"
    typed = run([sys.executable, "-c", code])
    assert (typed.returncode, typed.stderr) == (0, "")
    assert typed.stdout.startswith(f"usage: mae-transfer {name} ")
    assert f"mae-transfer {name} " in typed.stdout.split("\nexample")[1]
    assert "tools/" not in typed.stdout
    tool = run([sys.executable, str(TOOLS / FILES[name]), "--help"])
    assert tool.returncode == 0
    assert tool.stdout.startswith(f"usage: {FILES[name]} ")
    assert f"python tools/{FILES[name]} " in tool.stdout.split("\nexample")[1]


def test_the_list_of_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert printed.endswith(f"mae-transfer {__version__}\n")
    assert main(["tabels"]) == 2
    assert "no command 'tabels', did you mean tables?" in capsys.readouterr().err


def test_the_installed_command_is_this_one() -> None:
    """By the checkout's own pyproject.toml: the installed metadata may be older."""
    (target,) = re.findall(r'^mae-transfer = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert load_object(target) is main


def test_a_message_names_the_command_that_was_typed(tmp_path: Path) -> None:
    tables = run([sys.executable, "-m", "mae_transfer", "tables"], cwd=tmp_path)
    assert (tables.returncode, tables.stderr) == (
        2,
        "error: no folder results/runs; run mae-transfer transfer first or name the folder with --runs\n",
    )
    tool = run([sys.executable, str(TOOLS / "make_tables.py")], cwd=tmp_path)
    assert "run python tools/run_transfer.py first" in tool.stderr


def closed_output(command: list[str], cwd: Path) -> int:
    """The exit code of a command of which nobody reads what it prints, on standard output or error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(command, stdout=writer, stderr=writer, check=False, cwd=cwd, timeout=300).returncode
    finally:
        os.close(writer)


def test_a_full_disk_behind_the_output_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Met in the middle of much text, or of little as it is flushed at the end."""
    for length in (10, 10**6):

        def talk(length: int = length) -> int:
            print("x" * length)
            return 0

        with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as context:
            context.setattr(sys, "stdout", full)
            assert exit_code(talk) == 2
        said = capsys.readouterr().err
        assert said == "error: cannot print: No space left on device; make room, or redirect the output elsewhere\n"


@pytest.mark.process
def test_a_run_goes_on_when_its_output_is_closed(tmp_path: Path) -> None:
    """It writes its folder, and its exit code says what became of it."""
    start = [sys.executable, "-m", "mae_transfer"]
    pretrain = [*start, "pretrain", "--method", "mae", "--backbone", "vit_nano_p8", "--preset", "smoke", "device=cpu"]
    pretrain += ["data.image_size=32", "model.decoder_depth=1", "model.decoder_width=32", "train.log_every=1"]
    assert closed_output([*pretrain, "--output", "run"], tmp_path) == 0
    record = read_record(tmp_path / "run" / "record.json")
    assert len(read_metrics(tmp_path / "run")) >= record["steps"] == 3
    transfer = [*start, "transfer", "--task", "folder", "--backbone", "random_vit_nano", "--preset", "smoke"]
    transfer += ["--protocol", "knn", "--device", "cpu", "--output", "knn"]
    shell = ["bash", "-c", f"{shlex.join(transfer)} >&- 2>&-"]
    assert subprocess.run(shell, check=False, cwd=tmp_path).returncode == 0
    assert read_record(tmp_path / "knn" / "record.json")["metrics"]
    (tmp_path / "knn" / "record.json").write_text("{}")
    assert closed_output([*start, "validate", "."], tmp_path) == 2, "a record is wrong, whoever reads it"
    suite = {"name": "s", "preset": "smoke", "backbones": [{"name": "random_vit_nano"}], "overrides": ["device=cpu"]}
    suite["tasks"] = [{"task": "folder", "protocol": "knn"}]
    (tmp_path / "s.yaml").write_text(json.dumps(suite))
    assert closed_output([*start, "suite", "s.yaml", "--output", "suite"], tmp_path) == 0
    assert len(list((tmp_path / "suite").glob("*/record.json"))) == 1


def test_help_ends_quietly(tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m mae_transfer transfer --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_does_not_keep_the_tables_from_their_file(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mae_transfer tables --runs {ROOT}/results/evidence --output tables.md | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "written to tables.md" in done.stderr
    assert (tmp_path / "tables.md").read_text().count("\n") > 50


def test_a_place_without_permission_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it is found: also a look at what lies in a folder is refused."""

    def look() -> int:
        raise PermissionError(13, "Permission denied", "/data/set/train")

    assert exit_code(look) == 2
    assert capsys.readouterr().err == "error: /data/set/train: Permission denied; change its permissions\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transfer", "--task", "coco", "--subsett", "4"], "error: unknown option --subsett, did you mean --subset?\n"),
        (["tables", "--zzz=1"], "error: unknown option --zzz=1, --help shows them all\n"),
        (["tables", "--format", "xls"], "error: argument --format: invalid choice: 'xls'"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "transfer --task coco --backbone random_vit_nano --data",
            "--data (data.root) is empty; name a folder or file",
        ),
        ("plan --task coco --backbone random_vit_nano --data", "--data (data.root) is empty; name a folder or file"),
        ("pretrain --method mae --backbone vit_nano --data", "--data (data.root) is empty; name a folder or file"),
        ("transfer --task coco --backbone random_vit_nano data.val_json=''", "data.val_json is empty; name a folder"),
        ("plan --suite configs/suites/frozen.yaml --data coco=", "--data coco=: write NAME=VALUE"),
        ("suite configs/suites/frozen.yaml --data coco=", "--data coco=: write NAME=VALUE"),
    ],
)
def test_empty_data_are_not_the_current_folder(
    command: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([*command.split(), *([""] if command.endswith("--data") else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
