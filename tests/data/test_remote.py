"""Shards at addresses, from a server that breaks off, changes its files and goes away."""

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support.pretraining import resolve_pretrain
from support.tar_shards import samples, write

from mae_transfer.data import remote
from mae_transfer.data.remote import fetch
from mae_transfer.errors import UserError
from mae_transfer.pretrain.data import find_images
from mae_transfer.pretrain.shards import find_shards, open_shards


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.broken:
            self.server.broken -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])  # and the connection ends
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.requests: list[str] = []
        self.broken = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for i in range(3):
        write(tmp_path / "set" / f"train-{i:03d}.tar", samples(5, seed=i)[0])
    return tmp_path / "set"


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.01))
    with Server(shards) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
    let_go()


def test_the_samples_are_those_of_the_disk_and_come_once(server: Server, shards: Path) -> None:
    server.broken = 2
    configs = [
        resolve_pretrain("mae", "vit_nano_p8", data=data, overrides=["data.image_size=32"])
        for data in (f"{server.address}/train-{{000..002}}.tar", f"{shards}/train-{{000..002}}.tar")
    ]
    there, here = (find_images(config.data) for config in configs)
    assert list(there.train.names) == list(here.train.names)
    assert [there.train.read(i).tobytes() for i in range(15)] == [here.train.read(i).tobytes() for i in range(15)]
    assert there.train.identity(np.arange(15)) == here.train.identity(np.arange(15))
    assert len([path for path in server.requests if path.endswith(".tar")]) == 3 + 2
    find_images(configs[0].data)
    assert len(server.requests) == 3 + 2


def test_another_file_under_the_same_address_is_fetched_anew(server: Server, shards: Path) -> None:
    address = f"{server.address}/train-000.tar"
    before = open_shards(fetch([address], 1)).read(0).tobytes()
    size = (shards / "train-000.tar").stat().st_size
    write(shards / "train-000.tar", samples(6, seed=9)[0])
    assert (shards / "train-000.tar").stat().st_size == size, "the hard case"
    os.utime(shards / "train-000.tar", (0, 0))
    after = open_shards(fetch([address], 1))
    assert len(after) == 6
    assert after.read(0).tobytes() != before


def test_without_the_server_the_files_of_an_earlier_run_do(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    addresses = [f"{server.address}/train-00{i}.tar" for i in (0, 1)]
    paths = fetch(addresses[:1], 1)
    server.shutdown()
    server.server_close()
    assert fetch(addresses[:1], 1) == paths
    assert "the file of an earlier run is taken" in caplog.text
    with pytest.raises(UserError, match=r"train-001.tar cannot be fetched \(.*\), after 3 attempts"):
        fetch(addresses, 1)


def let_go() -> None:
    """As if this process had ended."""
    for lock in remote._used.values():
        lock.close()
    remote._used.clear()


def test_a_bounded_cache_lets_go_of_what_nobody_uses(server: Server, shards: Path) -> None:
    shutil.copytree(shards, shards / "other")
    gib = sum(path.stat().st_size for path in shards.glob("*.tar")) / 2**30
    addresses, other = ([f"{server.address}/{at}train-00{i}.tar" for i in range(3)] for at in ("", "other/"))
    first = fetch(addresses, 1.5 * gib)
    with pytest.raises(UserError, match=r"running processes use .* GiB of .*; raise it"):
        fetch(other, 1.5 * gib)
    assert all(path.is_file() for path in first)
    let_go()
    second = fetch(other, 1.5 * gib)
    assert all(path.is_file() for path in second)
    assert not any(path.exists() for path in first)
    second[0].unlink()
    with pytest.raises(UserError, match=r"GiB, and data.cache_gib=.* are allowed; raise it"):
        fetch(other, 0.5 * gib)


def test_what_the_server_has_no_more_goes_when_nobody_uses_it(server: Server, shards: Path) -> None:
    address = f"{server.address}/train-000.tar"
    [old] = fetch([address], 1)
    os.utime(shards / "train-000.tar", (0, 0))
    [new] = fetch([address], 1)
    assert old.is_file(), "this process may read it"
    let_go()
    assert fetch([address], 1) == [new]
    assert not old.exists()


def test_a_cache_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache" / "mae_transfer").mkdir(parents=True)
    (tmp_path / "cache" / "mae_transfer" / "fetched").touch()
    with pytest.raises(UserError, match=r"fetched cannot be written \(.*\); set XDG_CACHE_HOME to a folder with room"):
        fetch([f"{server.address}/train-000.tar"], 1)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("{}/nothing.tar", "nothing.tar is not there; check the address"),
        ("{}/train-{{000..003}}.tar", "train-003.tar is not there"),
        ("{}/", "of an address give .tar files, with braces"),
        ("{}/train-*.tar", "of an address give .tar files, with braces"),
        ("{}/train-{{000000000..999999999}}.tar", "more than 100000 shards"),
        ("nowhere9://a/b.tar", "nowhere9://a/b.tar cannot be read: Protocol not known: nowhere9"),
    ],
)
def test_an_address_that_does_not_do_is_named(server: Server, address: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        find_shards(address.format(server.address), 1)
