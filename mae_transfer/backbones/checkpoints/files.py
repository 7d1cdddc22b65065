"""Read a weights file without running anything in it: safetensors, or torch.load(weights_only=True).

The one type allowed beside torch's own is argparse.Namespace, which the official MAE code stores in its training
checkpoints. Anything else a pickle asks for is refused before it runs.
"""

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mae_transfer.errors import UserError

# what torch's restricted unpickler and its zip reader raise on bytes that are no checkpoint
_BROKEN = (
    pickle.UnpicklingError,
    SafetensorError,
    zipfile.BadZipFile,
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
)


def read(path: str | Path) -> Any:
    """What a weights file holds, on the CPU; tensors stay mapped to the file where its format allows.

    Raises UserError, one line with the path, for a file that is missing, a folder, truncated, not a checkpoint, or a
    pickle that holds code.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path}: no such file; pass the path of a .pth, .pt, .bin or .safetensors file.")
    if not path.is_file():
        raise UserError(f"checkpoint {path}: not a file; pass the path of the weights file itself.")
    try:
        if _is_safetensors(path):
            return load_file(path, device="cpu")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _BROKEN as error:
        code = re.search(r"GLOBAL (\S+)|[Tt]rying to (?:load|call reduce for)[^\n]*", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"checkpoint {path}: refused, it holds Python code ({code[1] or code[0]}) that loading would run; save "
                "only tensors (torch.save(model.state_dict(), ...)) or use safetensors."
            ) from error
        if isinstance(error, PermissionError):
            raise UserError(f"checkpoint {path}: cannot be read ({error.strerror}); check its permissions.") from error
        raise UserError(
            f"checkpoint {path}: not a readable checkpoint ({type(error).__name__}), truncated or of another format; "
            "fetch it again."
        ) from error


def _is_safetensors(path: Path) -> bool:
    """By content: an 8-byte header length, then the JSON header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
