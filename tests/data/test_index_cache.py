"""Arrays made of a file: made once, mapped by the others, and never those of a file or of code that was before."""

import fcntl
import logging
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_transfer.data import index_cache
from mae_transfer.data.index_cache import Index, cached_index, lock_file


class Maker:
    """Makes an index of a file's bytes and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.path, self.source, self.made = folder / "data", folder / "code.py", 0
        self.path.write_bytes(bytes(range(200)))
        self.source.write_text("one")

    def make(self) -> Index:
        self.made += 1
        content = np.frombuffer(self.path.read_bytes(), dtype=np.uint8)
        arrays = {"odd": content[:7], "real": content.astype(float).reshape(-1, 2), "none": np.zeros((0, 3), np.int32)}
        return Index({"text": "é\ud800", "sum": int(content.sum())}, arrays | {"flags": content > 5})

    def get(self, about: str = "x") -> Index:
        index = cached_index(self.path, about, [str(self.source), None], self.make)
        content = np.frombuffer(self.path.read_bytes(), dtype=np.uint8)
        assert index.about == {"text": "é\ud800", "sum": content.sum()}
        assert (index.arrays["odd"] == content[:7]).all()
        assert (index.arrays["real"].reshape(-1) == content).all()
        assert (index.arrays["flags"] == (content > 5)).all()
        assert index.arrays["none"].shape == (0, 3)
        return index

    @property
    def kept(self) -> list[Path]:
        return sorted(index_cache.cache_folder("index").glob("*.index"))


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 100)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    return Maker(tmp_path)


def test_it_is_made_once_and_mapped(maker: Maker) -> None:
    for _ in range(3):
        index = maker.get()
        assert not any(array.flags.writeable for array in index.arrays.values() if array.size)
        assert all(array.flags.aligned for array in index.arrays.values())
        for name, array in pickle.loads(pickle.dumps(dict(index.arrays))).items():  # as a spawned process gets it
            assert (array == index.arrays[name]).all()
    assert (maker.made, len(maker.kept)) == (1, 1)


def same_times(maker: Maker) -> None:
    state = maker.path.stat()
    maker.path.write_bytes(bytes(200))
    os.utime(maker.path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(maker: Maker) -> None:
    other = maker.path.with_name("other")
    other.write_bytes(bytes(200))
    other.replace(maker.path)


def touched(maker: Maker) -> None:
    os.utime(maker.path, ns=(1, 1))


def other_code(maker: Maker) -> None:
    maker.source.write_text("two")


@pytest.mark.parametrize("change", [same_times, replaced, touched, other_code])
def test_it_is_never_stale(maker: Maker, change: Callable[[Maker], None]) -> None:
    maker.get()
    old = maker.kept
    change(maker)
    maker.get()
    maker.get()
    assert maker.made == 2
    assert len(maker.kept) == 1
    assert maker.kept != old


def test_each_matter_has_its_own(maker: Maker) -> None:
    maker.get("x")
    maker.get("y")
    maker.get("x")
    assert (maker.made, len(maker.kept)) == (2, 2)


def test_nothing_is_kept_of_a_file_that_may_still_change(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "SETTLED", 10**12)
    maker.get()
    maker.get()
    assert (maker.made, maker.kept) == (2, [])
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    inner = maker.make

    def make_and_change() -> Index:
        index = inner()
        maker.path.write_bytes(bytes(201))
        return index

    cached_index(maker.path, "x", [], make_and_change)
    assert maker.kept == []


def test_a_small_file_is_read_every_time(maker: Maker) -> None:
    maker.path.write_bytes(bytes(98))
    maker.get()
    maker.get()
    assert (maker.made, maker.kept) == (2, [])


def test_what_raises_is_not_kept(maker: Maker) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cached_index(maker.path, "x", [], lambda: Index({}, {"a": np.array(1 // 0)}))
    assert maker.kept == []


@pytest.mark.parametrize("damage", [b"", b"x" * 500, None])
def test_a_damaged_one_is_made_anew(maker: Maker, damage: bytes | None) -> None:
    maker.get()
    (file,) = maker.kept
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    maker.get()
    maker.get()
    assert maker.made == 2


def test_a_cache_that_cannot_be_written_costs_time_alone(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    maker.get()
    maker.get()
    assert maker.made == 2


def test_of_many_one_makes_it(maker: Maker) -> None:
    threads = [threading.Thread(target=maker.get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.made == 1


def test_a_process_that_holds_the_lock_too_long_is_not_waited_for(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    maker.get()
    (file,) = maker.kept
    file.unlink()
    monkeypatch.setattr(index_cache, "WAIT", 0.2)
    with file.with_suffix(".lock").open() as other, caplog.at_level(logging.WARNING):
        fcntl.flock(other, fcntl.LOCK_EX)
        maker.get()
    assert "goes on by itself" in caplog.text
    assert (maker.made, maker.kept) == (2, [])


def test_without_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    with caplog.at_level(logging.WARNING), lock_file(tmp_path / "lock") as writable:
        assert writable
    assert "has no locks" in caplog.text
