"""Tokenizers to and from files.

A tokenizer of this project is a safetensors file; its metadata name the kind and facts. A run that used a tokenizer
holds it as `tokenizer.safetensors`, a run that trained one (`--method dvae`) in its checkpoints. OpenAI's dVAE comes as
their `encoder.pkl` or its state dict.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mae_transfer.backbones.checkpoints import files
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.pretrain.tokenizers import dalle
from mae_transfer.pretrain.tokenizers.base import Tokenizer
from mae_transfer.pretrain.tokenizers.dvae import DVAETokenizer, facts_of
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer

FILE = "tokenizer.safetensors"
_KEY = "mae_transfer_tokenizer"


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write it whole or not at all."""
    about = {"kind": tokenizer.kind, **tokenizer.facts()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.tensors().items()}
    with atomic_write(path) as file:
        file.write(save(tensors, {_KEY: json.dumps(about)}))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file or in the folder of a run, in eval mode, on the CPU, without gradients.

    UserError, one line, for anything else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE if (path / FILE).is_file() else files.find(path)
    if not path.is_file():
        raise UserError(f"tokenizer {path}: no such file; pass kmeans, a tokenizer file, or the folder of a run")
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    tokenizer = _own(path) if is_safetensors else _from_torch(path)
    for name, tensor in tokenizer.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"tokenizer {path}: {name} holds NaN or infinite values; fetch it again")
    return tokenizer.eval().requires_grad_(False)


def _own(path: Path) -> Tokenizer:
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"tokenizer {path}: damaged ({' '.join(str(error).split())}); make or fetch it again"
        ) from error
    if about is None:
        return dalle.from_state(tensors, str(path))
    facts = json.loads(about)
    kind = facts.pop("kind")
    if kind == "kmeans":
        return KMeansTokenizer(tensors["centres"], **facts)
    tokenizer: Tokenizer
    if kind == "dvae":
        tokenizer = DVAETokenizer(**facts)
    elif kind == "dalle":
        tokenizer = dalle.DalleTokenizer(**facts)
    else:
        raise UserError(f"tokenizer {path}: of the unknown kind {kind!r}; it is from another version of this project")
    tokenizer.load_state_dict(tensors)
    return tokenizer


def _from_torch(path: Path) -> Tokenizer:
    """Of a training run, of a state dict, or of a pickled module, which the reader of state dicts refuses as code."""
    try:
        raw = files.read(path)
    except UserError as refused:
        if "Python code" not in str(refused):
            raise
        return dalle.from_state(dalle.read_pickled_module(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"tokenizer {path}: holds a {type(raw).__name__}; pass OpenAI's encoder.pkl or a tokenizer file"
        )
    if {"step", "model", "optimizer"} <= raw.keys():
        own = {k.removeprefix("tokenizer."): v for k, v in raw["model"].items() if k.startswith("tokenizer.")}
        if not own:
            raise UserError(f"tokenizer {path}: a checkpoint of a run that trained none; use one of --method dvae")
        tokenizer = DVAETokenizer(**facts_of(own))
        tokenizer.load_state_dict(own)
        return tokenizer
    state = {name: tensor for name, tensor in raw.items() if isinstance(tensor, torch.Tensor)}
    if len(state) < len(raw):
        raise UserError(f"tokenizer {path}: no state dict of tensors; pass OpenAI's encoder.pkl or a tokenizer file")
    return dalle.from_state(state, str(path))
