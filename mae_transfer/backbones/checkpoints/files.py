"""Read a weights file without running anything in it: safetensors, torch.load(weights_only=True), numpy without pickle,
and pickles of numpy arrays (`.pkl`) by stand-ins.

The one type allowed beside torch's own is argparse.Namespace, which the official MAE code stores in its training
checkpoints. Anything else a pickle asks for is refused before it runs. Archives that would unpack to more than their
size are refused before anything is unpacked; their checksums must agree. Tensors have memory of their own, so the file
may change afterwards.
"""

import argparse
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from mae_transfer.backbones.checkpoints import mmengine_logs, numpy_pickle
from mae_transfer.backbones.checkpoints.json_file import read_json
from mae_transfer.errors import UserError
from mae_transfer.files import damaged_member, parse_json, reading, user_path
from mae_transfer.run_folder.checkpoints import list_checkpoints, verify

# what torch's restricted unpickler, numpy and the zip readers raise on bytes that are no checkpoint
_BROKEN = (
    pickle.UnpicklingError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    NotImplementedError,
)
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".pkl")
ZERO_REMEDY = "run its zero_to_fp32.py, which joins the shards of ZeRO, and pass the file that it writes."
_MOST_RATIO = 4
"""Weights hardly compress; an archive that claims more than this is a bomb."""


def find(path: str | Path) -> Path:
    """The weights file that a path means: itself, a run folder's newest checkpoint, or a model folder's weights."""
    path = user_path(path)
    if not os.path.isdir(path):
        return _existing(path)
    with reading(path):
        runs = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
        if runs:
            return runs[-1]
        found = next((path / name for name in _IN_FOLDER if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"checkpoint {path}: {_other_folder(path)}")
    return found


def _existing(path: Path) -> Path:
    try:
        if path.exists():
            return path
    except OSError as error:  # of a name that is too long
        raise UserError(f"checkpoint {str(path)[:80]}...: {error.strerror}; pass the path of a file.") from error
    slashes = Path(str(path).replace("\\", "/"))
    if slashes != path:
        hint = f"is it {slashes}?" if slashes.exists() else "write its path with / for \\."
        raise UserError(f"checkpoint {path}: no such file; {hint}")
    raise UserError(f"checkpoint {path}: no such file; pass the path of a .pth, .pt, .bin or .safetensors file.")


def _other_folder(path: Path) -> str:
    """What a folder is that has no weights under a known name, and what to do."""
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    steps = [name for step in path.glob("global_step*") if step.is_dir() for name in os.listdir(step)]
    if "zero_to_fp32.py" in names or any("_rank_" in name and name.endswith("_states.pt") for name in names + steps):
        return f"a checkpoint of DeepSpeed; {ZERO_REMEDY}"
    if any(name.endswith(".distcp") for name in names):
        return (
            "a checkpoint of torch.distributed; make one file of it by `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE` and pass that."
        )
    files = [name for name in names if name.endswith(_WEIGHTS)]
    if files:
        return (
            f"a folder that has {', '.join(files[:3])}{' and more' if len(files) > 3 else ''}; pass one of its files."
        )
    return (
        "a folder with neither a run's checkpoints nor model.safetensors or pytorch_model.bin; pass the path of the "
        "weights file itself."
    )


def read(path: str | Path) -> Any:
    """What a weights file holds, on the CPU.

    Raises UserError, one line with the path, for a file that is missing, a folder, truncated, not a checkpoint, a
    pickle that holds code, or an archive that unpacks to more than it should.
    """
    path = _existing(Path(path))
    if not path.is_file():
        raise UserError(f"checkpoint {path}: not a file; pass the path of the weights file itself.")
    try:
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if _is_safetensors(path):
            return _read_safetensors(path)
        if zipfile.is_zipfile(path) and _check_archive(path):
            return _read_npz(path)
        if path.suffix == ".pkl" and not _is_torchs(path):
            return numpy_pickle.read(path)
        content = _read_torch(path)
    except _BROKEN as error:
        if path.suffix == ".onnx":
            raise UserError(
                f"checkpoint {path}: ONNX files are not read; pass the model's state_dict(), or the file that the ONNX "
                "was made from."
            ) from error
        code = re.search(r"GLOBAL (\S+)|[Tt]rying to (?:load|call reduce for)[^\n]*", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            wanted = re.sub(r" at 0x[0-9a-f]+", "", code[1] or code[0])
            raise UserError(
                f"checkpoint {path}: refused, it holds Python code ({wanted}) that loading would run; save "
                "only tensors (torch.save(model.state_dict(), ...)) or use safetensors."
            ) from error
        if isinstance(error, PermissionError):
            raise UserError(f"checkpoint {path}: cannot be read ({error.strerror}); check its permissions.") from error
        if path.name.startswith("._"):
            raise UserError(f"checkpoint {path}: notes of macOS; pass {path.name[2:]}, the file beside it.") from error
        raise UserError(
            f"checkpoint {path}: not a readable checkpoint ({type(error).__name__}), truncated or of another format; "
            "fetch it again."
        ) from error
    try:
        verify(content)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}; take another checkpoint of the run.") from error
    return content


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if mmengine_logs.BUFFER not in str(error):
            raise
        return mmengine_logs.read(path)


def _is_safetensors(path: Path) -> bool:
    """By content: an 8-byte header length, then the JSON header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_torchs(path: Path) -> bool:
    """Whether torch.save wrote it, by content: a zip archive, or the old format, which starts with a magic number."""
    with path.open("rb") as file:
        old = file.read(15)[4:14] == torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    return old or zipfile.is_zipfile(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Opened anew for each tensor: the pages of a mapping count as memory until it is closed."""
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
    with path.open("rb") as raw:  # the library takes the last of a tensor that is there twice
        parse_json(raw.read(int.from_bytes(raw.read(8), "little")))
    state = {}
    for key in keys:
        with safe_open(path, framework="pt") as file:
            state[key] = file.get_tensor(key).clone()
    return state


def _read_shards(index: Path) -> dict[str, Any]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"checkpoint {index}: has no weight_map, tensor to file; fetch it again.")
    state: dict[str, object] = {}
    for name in sorted({str(name) for name in names.values()}):
        if Path(name).name != name or "\\" in name or name.endswith(".index.json"):
            raise UserError(f"checkpoint {index}: names a shard that is no file beside it ({name}); fetch it again.")
        shard = read(index.parent / name)
        state |= {key: tensor for key, tensor in shard.items() if names.get(key, name) == name}
    return state


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _check_archive(path: Path) -> bool:
    """Whether a zip archive is numpy's; raises UserError if it is TorchScript, or a zip bomb."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", member.filename) for member in members):
        raise UserError(
            f"checkpoint {path}: a TorchScript archive, which is code; load it with torch.jit.load where you trust it "
            "and save its state_dict()."
        )
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UserError(f"checkpoint {path}: an archive that has {again} twice; write it again.")
    numpy = bool(members) and all(member.filename.endswith(".npy") for member in members)
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > (_MOST_RATIO if numpy else 1) * size:
        raise UserError(
            f"checkpoint {path}: refused, {size} bytes that would unpack to {unpacked}; fetch it again from its source."
        )
    if not numpy and (damaged := damaged_member(path)):
        raise UserError(f"checkpoint {path}: damaged, {damaged} fails its checksum; fetch it again.")
    return numpy
