"""Shards in S3, on a server of this machine.

`pip install s3fs moto[server]`, then `pytest -m slow tests/data/test_s3.py`.

`moto_server` may be that of another environment on PATH: moto and s3fs often want different versions of botocore.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pretraining import resolve_pretrain
from support.tar_shards import samples, write

from mae_transfer.data import remote
from mae_transfer.data.remote import fetch
from mae_transfer.errors import UserError
from mae_transfer.pretrain.data import find_images
from mae_transfer.pretrain.shards import open_shards

pytestmark = pytest.mark.slow
FILES = ["train-000.tar", "train-001.tar", "train-002.tar"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        write(tmp_path / "set" / name, samples(5, seed=number)[0])
    return tmp_path / "set"


@pytest.fixture
def bucket(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system with the shards in the bucket `set`; its `server` is the process."""
    s3fs = pytest.importorskip("s3fs")
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("there is no moto_server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.01))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [program, "-p", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()  # it keeps the last server's address
        system = s3fs.S3FileSystem()
        system.mkdir("set")
        for name in FILES:
            system.put(str(shards / name), f"set/{name}")
        system.server = server
        yield system
    finally:
        server.kill()
        server.wait()
        for lock in remote._used.values():
            lock.close()
        remote._used.clear()


def test_the_samples_are_those_of_the_disk(bucket: Any, shards: Path) -> None:
    configs = [
        resolve_pretrain("mae", "vit_nano_p8", data=f"{place}/train-{{000..002}}.tar", overrides=["data.image_size=32"])
        for place in ("s3://set", shards)
    ]
    there, here = (find_images(config.data) for config in configs)
    assert list(there.train.names) == list(here.train.names)
    assert [there.train.read(i).tobytes() for i in range(15)] == [here.train.read(i).tobytes() for i in range(15)]
    assert there.train.identity(np.arange(15)) == here.train.identity(np.arange(15))


def test_another_file_of_equal_size_is_fetched_anew(bucket: Any, shards: Path) -> None:
    before = open_shards(fetch([f"s3://set/{FILES[0]}"], 1)).read(0).tobytes()
    size = (shards / FILES[0]).stat().st_size
    write(shards / FILES[0], samples(6, seed=9)[0])
    assert (shards / FILES[0]).stat().st_size == size
    bucket.put(str(shards / FILES[0]), f"set/{FILES[0]}")
    after = open_shards(fetch([f"s3://set/{FILES[0]}"], 1))
    assert len(after) == 6
    assert after.read(0).tobytes() != before


@pytest.mark.parametrize("address", ["s3://set/train-009.tar", "s3://elsewhere/train-000.tar"])
def test_what_is_not_there_is_one_line(bucket: Any, address: str) -> None:
    with pytest.raises(UserError, match=address) as caught:
        fetch([address], 1)
    assert "\n" not in str(caught.value)


def test_without_the_server_the_files_of_an_earlier_run_do(bucket: Any) -> None:
    paths = fetch([f"s3://set/{FILES[0]}"], 1)
    bucket.server.kill()
    bucket.server.wait()
    assert fetch([f"s3://set/{FILES[0]}"], 1) == paths
    with pytest.raises(UserError, match=r"train-001.tar cannot be fetched") as caught:
        fetch([f"s3://set/{FILES[1]}"], 1)
    assert "\n" not in str(caught.value)
