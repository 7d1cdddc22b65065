"""The identity of files: by contents, wherever they lie, and read once."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mae_transfer.data import identity
from mae_transfer.data.identity import contents_digest, identify, identify_members
from mae_transfer.data.names import Names

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", 0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[str]]:
    names = [f"c{i % 3}/{i}.ppm" for i in range(30)]
    for i, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * 100)
    return tmp_path / "data", names


def test_it_tells_all_that_differs_and_not_the_place(files: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, names = files
    one = identify(root, names)
    assert identify(root, names) == identify(root, Names(names)) == one
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert identify(moved, names) == one
    labels = np.zeros(30, dtype=np.int64)
    assert len({one, identify(root, names, labels), identify(root, names, labels + 1)}) == 3
    assert identify(root, names[::-1]) != one
    (moved / names[7]).rename(moved / "c1/other.ppm")
    assert identify(moved, [*names[:7], "c1/other.ppm", *names[8:]]) != one


@pytest.mark.parametrize("how", ["in place", "replaced", "with the times of before", "through a link"])
@pytest.mark.parametrize("few", [True, False])
def test_other_pixels_under_the_same_name_and_size(
    files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, how: str, few: bool
) -> None:
    """Seen again after the first start, whose digest is in the cache: of few files all, of many those of the sample."""
    root, names = files
    if not few:
        monkeypatch.setattr(identity, "HASHED", 10)
        monkeypatch.setattr(identity, "LOOKED_AT", 15)
    place = identity._spread(30, identity.HASHED)[3]
    path = root / names[place]
    if how == "through a link":
        path.rename(root / "target")
        path.symlink_to(root / "target")
    before = path.stat()
    one = identify(root, names)
    assert len(list((root.parent / "cache/mae_transfer/identity").iterdir())) == 1
    probe = root.parent / "clock"  # of the file system: it ticks
    probe.touch()
    while probe.stat().st_mtime_ns <= max(before.st_mtime_ns, before.st_ctime_ns):
        time.sleep(0.001)
        probe.touch()
    if how == "replaced":
        path.with_name("new").write_bytes(b"x" * 100)
        path.with_name("new").replace(path)
    else:
        path.write_bytes(b"x" * 100)
    if how == "with the times of before":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = identify(root, names)
    assert changed != one
    path.write_bytes(bytes([place]) * 100)
    assert identify(root, names) == one


def test_another_size_is_seen_in_any_file(files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, names = files
    monkeypatch.setattr(identity, "HASHED", 2)
    one, path = identify(root, names), root / names[1]
    assert 1 not in identity._spread(30, 2)
    path.write_bytes(path.read_bytes() + b"x")
    assert identify(root, names) != one


def test_a_second_start_reads_no_contents(files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, names = files
    one = identify(root, names)
    read: list[str] = []
    content = identity._content
    monkeypatch.setattr(identity, "_content", lambda path: read.append(path) or content(path))
    assert identify(root, names) == one
    assert not read
    (stored,) = (root.parent / "cache/mae_transfer/identity").iterdir()
    stored.write_text("damaged")
    assert identify(root, names) == one
    assert len(read) == 30


def test_files_of_this_moment_are_not_remembered(
    files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_SETTLED", 10**12)
    identify(*files)
    assert not (files[0].parent / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_time_alone(
    files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = identify(*files)
    (files[0].parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0].parent / "file"))
    assert identify(*files) == one


def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE", 800)
    content = bytearray(os.urandom(5000))
    found = set()
    for place in (None, 0, 4999):  # the first and the last byte are in it
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        (tmp_path / "a").write_bytes(changed)
        found.add(identity._content(str(tmp_path / "a")))
    assert len(found) == 3


def test_members_of_archives(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    sizes = np.array([5, 5])

    def identity_of(contents: list[bytes]) -> str:
        os.utime(tmp_path / "a.tar", ns=(LONG_AGO, time.time_ns()))
        return identify_members([tmp_path / "a.tar"], Names(["x", "y"]), sizes, contents.__getitem__, None)

    assert identity_of([b"01234", b"56789"]) == identity_of([b"01234", b"56789"]) != identity_of([b"01234", b"56780"])


def test_the_digest_of_whole_files_is_read_once_and_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(path.name.encode())
    assert contents_digest(paths, b"end") == hashlib.sha256(b"onetwoend").hexdigest()
    assert contents_digest(paths, b"") == hashlib.sha256(b"onetwo").hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(identity, "reading", None)
        assert contents_digest(paths, b"end") == hashlib.sha256(b"onetwoend").hexdigest()
    paths[1].write_bytes(b"TWO")
    assert contents_digest(paths, b"end") == hashlib.sha256(b"oneTWOend").hexdigest()
