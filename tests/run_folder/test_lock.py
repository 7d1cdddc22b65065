"""Run folders on file systems without locks: runs go on, and two in one folder are still refused."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.engine_toy import make_config

from mae_transfer.data.index_cache import lock_file
from mae_transfer.errors import UserError
from mae_transfer.run_folder import lock
from mae_transfer.run_folder.folder import RunFolder
from mae_transfer.suites.state import RunPlace, is_locked, take_claim


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    for name in ("lockf", "flock", "fcntl"):
        monkeypatch.setattr(fcntl, name, fail)


def owner(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "run.owner").read_text()) | changes
    (folder / "run.owner").write_text(json.dumps(content))


def test_a_file_stands_for_the_lock(
    no_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING), RunFolder(folder, make_config()):
        assert "this file system has no locks" in caplog.text
        assert lock.is_owned(folder)
        assert is_locked(folder / "run.lock")
        with pytest.raises(UserError, match="in use by another run"):
            RunFolder(folder, make_config(), resume=True)
        monkeypatch.setattr(lock, "_held", set())  # as another process, which this one's number says is alive
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .* since 2.*delete .*run.owner"):
            RunFolder(folder, make_config(), resume=True)
    assert not (folder / "run.owner").exists()
    assert not is_locked(folder / "run.lock")
    RunFolder(folder, make_config(), resume=True).close()


def test_what_a_killed_run_leaves_behind(no_locks: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import errno, fcntl, os, sys\n"
        "def fail(*_): raise OSError(errno.ENOSYS, 'no locks')\n"
        "fcntl.lockf = fail\n"
        "from pathlib import Path\n"
        "from mae_transfer.run_folder.lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1]))\n"
        "os._exit(9)\n"
    )
    folder.mkdir()
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 9
    assert (folder / "run.owner").exists()
    assert not lock.is_owned(folder), "its process is gone"
    owner(folder, host="elsewhere")
    with pytest.raises(UserError, match="on elsewhere since"):
        RunFolder(folder, make_config())
    owner(folder, host=lock.socket.gethostname())
    RunFolder(folder, make_config()).close()
    (folder / "run.owner").touch()  # of a process that is about to write it
    with pytest.raises(UserError, match="in use by another run"):
        RunFolder(folder, make_config(), resume=True)


@pytest.fixture
def left(no_locks: None, tmp_path: Path) -> Path:
    """A folder with the file of a run of this process, as if it had been killed."""
    if lock._machine() is None:
        pytest.skip("the system does not say when a process was started")
    lock.FolderLock(tmp_path)
    lock._held.discard(tmp_path.resolve())
    return tmp_path


def test_a_process_number_that_is_used_again_is_no_owner(left: Path) -> None:
    assert lock.is_owned(left)
    owner(left, started="1")
    assert not lock.is_owned(left), "an earlier process of this number, as of a container that was restarted"
    lock.FolderLock(left).release()


@pytest.mark.parametrize("change", ["another boot pid:[4026531836]", None])
def test_numbers_of_another_container_or_machine_of_this_name_say_nothing(left: Path, change: str | None) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner(left, pid=gone.pid)
    assert not lock.is_owned(left)
    owner(left, machine=change)
    assert lock.is_owned(left), "its process is none of those that are seen here"
    with pytest.raises(UserError, match=f"in use by process {gone.pid} on"):
        lock.FolderLock(left)


def test_of_two_that_take_over_one_does(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner(left, started="1")
    is_gone, others = lock._is_gone, list[lock.FolderLock]()

    def late(path: Path) -> bool:
        """Another run takes over once this one has seen that the owner is gone."""
        gone = is_gone(path)
        if gone and not others:
            monkeypatch.setattr(lock, "_is_gone", is_gone)
            others.append(lock.FolderLock(left))
            lock._held.discard(left.resolve())
        return gone

    monkeypatch.setattr(lock, "_is_gone", late)
    with pytest.raises(UserError, match="in use by process"):
        lock.FolderLock(left)
    assert (left / "run.owner").exists()
    others[0].release()
    assert sorted(path.name for path in left.iterdir()) == ["run.lock"]
    owner_file = left / "run.owner"
    owner_file.write_text(json.dumps({"host": "x"}))
    (left / "run.takeover").touch()  # of a process that takes over at this moment
    monkeypatch.setattr(lock, "_is_gone", lambda path: True)
    with pytest.raises(UserError, match="in use by another run, which starts now; .* delete .*run.takeover"):
        lock.FolderLock(left)
    assert owner_file.exists()


def test_claims_of_suites_and_indices_of_shards(no_locks: None, tmp_path: Path) -> None:
    claim = take_claim(RunPlace(tmp_path / "run"))
    assert claim is not None
    os.close(claim)
    with lock_file(tmp_path / "cache" / "lock") as held:
        assert held


def test_other_failures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(UserError, match="cannot write .*Input/output error"):
        RunFolder(tmp_path / "run", make_config())
