"""Ctrl-C before the first step: exit code 3, one line, and the same command goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from support.command_line import environment, launched, transfer

IN_EXEC = """
import signal, sys
from mae_transfer.cli.exit import exit_code
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('went on')"
sys.exit(exit_code(lambda: exec(code), after_ctrl_c="go on"))
"""
"""Imports run code by `exec`, those with named tuples for example."""
RUN = [
    *("--task", "folder", "--protocol", "linear", "--backbone", "random_vit_nano"),
    *("--preset", "smoke", "--device", "cpu", "data.image_size=32", "eval.pictures=0", "--output"),
]


def test_a_stop_in_an_import_has_the_exit_code_of_a_stop(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(IN_EXEC)
    done = subprocess.run([sys.executable, "-m", "stopped"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "stopped by Ctrl-C; go on\n")


def test_a_run_that_has_only_its_folder_is_resumed(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        launched([*RUN, str(output)]),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    while not (output / "run.lock").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped by ")
    assert not (output / "record.json").exists()
    done = transfer([*RUN, str(output), "--resume"])
    assert done.returncode == 0, done.stderr
    assert (output / "record.json").exists()
