"""WebDataset shards, written member by member."""

import io
import tarfile

import numpy as np


def write(path, members, format=tarfile.PAX_FORMAT, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(count, seed=0, label=True):
    """The members of a shard, and the bytes of its images."""
    rng = np.random.default_rng(seed)
    members = {}
    for i in range(count):
        members[f"{seed}/{i:05d}.jpg"] = rng.bytes(int(rng.integers(1, 3000)))
        if label:
            members[f"{seed}/{i:05d}.cls"] = str(i % 3).encode()
        members[f"{seed}/{i:05d}.json"] = b'{"width": 3}'
    return members, [content for name, content in members.items() if name.endswith(".jpg")]
