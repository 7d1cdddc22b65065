"""Weights in containers that lie: an index of shards, headers of safetensors, archives, links and pointers."""

import gzip
import io
import json
import os
import struct
import zipfile
from random import Random
from typing import Any

import numpy as np
import torch
from odd_files import Made, OddFiles
from safetensors.torch import save


def shards_of_a_checkpoint(family: OddFiles, rng: Random) -> Made:
    keys = sorted(family.state)
    half = len(keys) // 2
    parts = {"1.safetensors": keys[:half], "2.safetensors": keys[half:]}
    content = {name: {key: family.state[key] for key in part} for name, part in parts.items()}
    where: Any = {key: name for name, part in parts.items() for key in part}
    name, odd, expected = "model.safetensors.index.json", keys[0], None
    what = rng.choice(
        (
            "whole",
            "itself",
            "each other",
            "a missing shard",
            "a tensor that its shard has not",
            "a tensor in both shards",
            "a tensor that the index has not",
            "../",
            "absolute",
            "a number",
            "empty",
            "list",
            "an index as shard",
            "text as shard",
            "a total size that lies",
            "all tensors in one shard",
            "UTF-16",
            "a key twice",
        )
    )
    about: dict[str, Any] = {"metadata": {"total_size": 1 if "lies" in what else 10**6}}
    if what in ("whole", "a total size that lies", "UTF-16"):
        expected = family.expected
    elif what == "itself":
        where[odd] = name
    elif what == "each other":
        where[odd] = "other.index.json"
        family.write("other.index.json", json.dumps({"weight_map": {odd: name}}).encode())
    elif what == "a missing shard":
        where[odd] = "3.safetensors"
    elif what == "a tensor that its shard has not":
        where[odd] = "2.safetensors"
    elif what == "a tensor in both shards":
        content["2.safetensors"][odd] = family.state[odd] + 1
        expected = family.expected
    elif what == "a tensor that the index has not":
        content["2.safetensors"]["decoder.x"] = torch.ones(3)
        expected = ...
    elif what in ("../", "absolute"):
        where[odd] = f"../{family.here.name}/1.safetensors" if what == "../" else str(family.here / "1.safetensors")
    elif what == "a number":
        where[odd] = 1
    elif what == "empty":
        where = {}
    elif what == "list":
        where = list(where.items())
    elif what in ("an index as shard", "text as shard"):
        where[odd] = "3.safetensors"
        family.write("3.safetensors", json.dumps({"weight_map": {}}).encode() if "index" in what else b"text")
    elif what == "all tensors in one shard":
        where = dict.fromkeys(keys, "1.safetensors")
    for shard, tensors in content.items():
        family.write(shard, save(tensors))
    text = json.dumps(about | {"weight_map": where})
    if what == "a key twice":
        text = text.replace(json.dumps(odd), f'{json.dumps(odd)}: "2.safetensors", {json.dumps(odd)}', 1)
    path = family.write(name, text.encode("utf-16" if what == "UTF-16" else "utf-8"))
    target = rng.choice((path, family.here))
    return what, lambda: family.features(target), expected


def safetensors_headers(family: OddFiles, rng: Random) -> Made:
    whole = save(family.state)
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name, expected = "blocks.0.mlp.fc1.weight", None
    entry, what = (
        header[name],
        rng.choice(
            (
                "whole",
                "spaces",
                "length 0",
                "length 2**63",
                "length of the file",
                "more data",
                "less data",
                "dtype F16",
                "dtype I32",
                "dtype X",
                "shape turned",
                "shape huge",
                "shape negative",
                "shape a number",
                "shape []",
                "offsets negative",
                "offsets beyond",
                "offsets of another",
                "offsets swapped",
                "no offsets",
                "metadata a number",
                "metadata of the project",
                "a list",
                "a name twice",
                "an empty tensor",
                "a name of 100000 letters",
                "UTF-16",
                "not JSON",
            )
        ),
    )
    first, last = entry["data_offsets"]
    raw: bytes | None = None
    if what == "whole":
        expected = family.expected
    elif what.startswith("dtype"):
        entry["dtype"] = what[6:]
    elif what.startswith("shape"):
        rows, columns = entry["shape"]
        entry["shape"] = {
            "turned": [columns, rows],
            "huge": [2**40, 2**40],
            "negative": [-rows, -columns],
            "a number": rows * columns,
            "[]": [],
        }[what[6:]]
    elif what.startswith("offsets"):
        other = header["blocks.1.mlp.fc1.weight"]["data_offsets"]
        entry["data_offsets"] = {
            "negative": [-1, last - first - 1],
            "beyond": [first, last + 2**40],
            "of another": other,
            "swapped": [last, first],
        }[what[8:]]
    elif what == "no offsets":
        del entry["data_offsets"]
    elif what.startswith("metadata"):
        header["__metadata__"] = 3 if "number" in what else {"format": "pt", "mae_transfer": "{"}
        expected = None if "number" in what else family.expected
    elif what == "a name of 100000 letters":
        header["x" * 100_000] = header.pop(name)
    elif what == "an empty tensor":
        header["empty"] = {"dtype": "F32", "shape": [0, 5], "data_offsets": [len(data), len(data)]}
    elif what in ("more data", "less data"):
        data = data + b"\0" * 64 if what == "more data" else data[:-64]
    text = json.dumps(header if what != "a list" else [header]).encode("utf-16" if what == "UTF-16" else "utf-8")
    if what == "a name twice":
        text = (
            b'{"' + name.encode() + b'": ' + json.dumps(header["blocks.1.mlp.fc1.weight"]).encode() + b", " + text[1:]
        )
    elif what == "spaces":
        text, expected = text + b" " * 64, family.expected
    elif what == "not JSON":
        text = text[:-1]
    size = {"length 0": 0, "length 2**63": 2**63, "length of the file": 8 + len(text) + len(data)}.get(what, len(text))
    raw = struct.pack("<Q", size) + text + data
    path = family.write(rng.choice(("m.safetensors", "m.pth", "m.bin", "m")), raw)
    return what, lambda: family.features(path), expected


def weights_of_other_containers(family: OddFiles, rng: Random) -> Made:
    arrays = {key: value.numpy() for key, value in family.state.items()}
    name, expected, buffer = "blocks.0.mlp.fc1.weight", None, io.BytesIO()
    what = rng.choice(
        (
            "npz",
            "npz down the columns",
            "npz of the other byte order",
            "npz of objects",
            "npz of halves",
            "npz, a shape that lies",
            "npz, a name twice",
            "npz, a folder",
            "gzip of a pth",
            "a zip of a pth",
            "pth named safetensors",
            "safetensors named npz",
            "LFS pointer",
            "web page",
            "a link",
            "a folder of both",
            "a broken link",
            "a pipe",
            "npz, compressed",
            "old pth",
        )
    )
    suffix = "npz"
    if what == "npz down the columns":
        arrays[name] = np.asfortranarray(arrays[name])
    elif what == "npz of the other byte order":
        arrays[name] = arrays[name].astype(">f4")
    elif what == "npz of objects":
        arrays[name] = arrays[name].astype(object)
    elif what == "npz of halves":
        arrays[name] = arrays[name].astype("f2")
    if what.startswith("npz"):
        (np.savez_compressed if "compressed" in what else np.savez)(buffer, **arrays)
        expected = None if "objects" in what else ... if "halves" in what or "byte order" in what else family.expected
        if what in ("npz, a shape that lies", "npz, a name twice", "npz, a folder"):
            with zipfile.ZipFile(buffer, "a") as archive:
                if "shape" in what:
                    head = (
                        b"\x93NUMPY\1\0v\0"
                        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000000,), }".ljust(117)
                        + b"\n"
                    )
                    archive.writestr("x.npy", head + b"\0" * 64)
                elif "twice" in what:
                    other = io.BytesIO()
                    np.save(other, arrays[name] + 1)
                    archive.writestr(f"{name}.npy", other.getvalue())
                else:
                    archive.writestr("x/", b"")
            expected = None
    elif what in ("LFS pointer", "web page"):
        suffix = rng.choice(("pth", "safetensors", "npz"))
        buffer.write(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
            if "LFS" in what
            else b"<!doctype html>"
        )
    elif what == "safetensors named npz":
        buffer.write(save(family.state))
        expected = family.expected
    else:
        torch.save(family.state, buffer, _use_new_zipfile_serialization=what != "old pth")
        suffix = "safetensors" if what == "pth named safetensors" else "pth"
        expected = family.expected
        if what in ("gzip of a pth", "a zip of a pth"):
            inner, buffer, expected = buffer.getvalue(), io.BytesIO(), None
            if "gzip" in what:
                buffer.write(gzip.compress(inner))
            else:
                with zipfile.ZipFile(buffer, "w") as archive:
                    archive.writestr("m.pth", inner)
    path = family.write(f"m.{suffix}", buffer.getvalue())
    if what in ("a link", "a broken link", "a pipe"):
        path = family.here / "link.pth"
        path.symlink_to("m.pth" if what == "a link" else "gone.pth") if "link" in what else os.mkfifo(path)
        expected = family.expected if what == "a link" else None
    elif what == "a folder of both":
        family.write("both/model.safetensors", save(family.state))
        family.write("both/pytorch_model.bin", b"text")
        path = family.here / "both"
    return what, lambda: family.features(path), expected


class Family(OddFiles):
    kinds = (shards_of_a_checkpoint, safetensors_headers, weights_of_other_containers)
