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
from torch import Tensor

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.values import told
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, parse_json, user_path
from mae_transfer.pretrain.tokenizers import dalle
from mae_transfer.pretrain.tokenizers.base import Tokenizer
from mae_transfer.pretrain.tokenizers.dvae import DVAETokenizer, facts_of
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer

FILE = "tokenizer.safetensors"
_KEY = "mae_transfer_tokenizer"
KINDS = ("kmeans", "dvae", "dalle")


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
    path = user_path(path)
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
    kind, facts = _facts(about, path)
    whole = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if whole is not None:
        raise UserError(f"tokenizer {path}: damaged, {whole} is of {tensors[whole].dtype}; make or fetch it again")
    if kind == "kmeans":
        return _kmeans(tensors, facts, path)
    if kind == "dvae":
        return _dvae(tensors, facts, path)
    tokenizer = dalle.from_state(tensors, str(path))
    _check_facts(tokenizer.facts(), facts, path)
    return tokenizer


def _facts(about: str, path: Path) -> tuple[str, dict[str, int]]:
    """The kind and the plain values that the metadata of a file state."""
    try:
        facts = parse_json(about)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "kind" not in facts:
        raise UserError(f"tokenizer {path}: damaged, its metadata do not say its kind; make or fetch it again")
    kind = facts.pop("kind")
    if kind not in KINDS:
        raise UserError(
            f"tokenizer {path}: of the unknown kind {told(kind)}; from another version of this project, or damaged"
        )
    numbers: dict[str, int] = {}
    for name, value in facts.items():
        if type(value) is not int:
            raise UserError(f"tokenizer {path}: damaged, {name!r} is {told(value)}; make or fetch it again")
        numbers[name] = value
    return kind, numbers


def _kmeans(tensors: dict[str, Tensor], facts: dict[str, int], path: Path) -> KMeansTokenizer:
    centres, patch = tensors.get("centres"), facts.get("patch_size", 0)
    _check_facts({"patch_size": patch}, facts, path)
    if centres is None or centres.ndim != 2 or not centres.numel():
        raise UserError(f"tokenizer {path}: damaged, it has no table of centres; make or fetch it again")
    if patch < 1 or centres.shape[1] % patch**2:
        raise UserError(
            f"tokenizer {path}: damaged, centres of {centres.shape[1]} values are no patches of {patch}x{patch}; "
            "make or fetch it again"
        )
    return KMeansTokenizer(centres, patch_size=patch)


def _dvae(tensors: dict[str, Tensor], facts: dict[str, int] | None, path: Path) -> DVAETokenizer:
    """By the shapes of its tensors, which `facts` have to agree with."""
    try:
        found = facts_of(tensors)
        if facts is not None:
            _check_facts(found, facts, path)
        tokenizer = DVAETokenizer(**found)
        tokenizer.load_state_dict(tensors)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(
            f"tokenizer {path}: damaged, no whole dVAE ({' '.join(str(error).split())}); make or fetch it again"
        ) from error
    return tokenizer


def _check_facts(found: dict[str, int], facts: dict[str, int], path: Path) -> None:
    """Raise UserError unless the stated facts are those of the tensors."""
    for name in sorted(found.keys() | facts.keys()):
        if found.get(name) != facts.get(name):
            raise UserError(
                f"tokenizer {path}: damaged, {name!r} is {told(facts.get(name))} beside tensors of "
                f"{told(found.get(name))}; make or fetch it again"
            )


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
        return _dvae(own, None, path)
    state = {name: tensor for name, tensor in raw.items() if isinstance(tensor, torch.Tensor)}
    if len(state) < len(raw):
        raise UserError(f"tokenizer {path}: no state dict of tensors; pass OpenAI's encoder.pkl or a tokenizer file")
    return dalle.from_state(state, str(path))
