"""Weights of an encoder in five forms, damaged, through `load_backbone`."""

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from campaign import Trial, Wrong
from mutate import ODD, dump, mutate_bytes, mutate_tree
from safetensors.torch import save
from torch import Tensor

from mae_transfer.backbones.checkpoints.export import export
from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.load import load_backbone
from mae_transfer.run_folder.checkpoints import load_checkpoint, save_checkpoint

State = dict[str, Tensor]


class Family:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        encoder = load_backbone("random_vit_nano", final_norm=True)
        for value in encoder.state_dict().values():
            value += 0.02 * torch.randn(value.shape)
        self.images = torch.rand(1, 3, 64, 64)
        self.vit: State = {name.removeprefix("vit."): value for name, value in encoder.state_dict().items()}
        pth, hugging = folder / "m.pth", folder / "hf"
        torch.save({"model": self.vit}, pth)
        export(pth, "mae_vit_nano", "hf", hugging)
        run = {
            "step": 3,
            "model": {f"encoder.{k}": v for k, v in encoder.state_dict().items()},
            "optimizer": {},
            "ema": None,
        }
        run |= {"origin": {"encoder": facts_of(encoder)}}
        arrays = io.BytesIO()
        np.savez(arrays, **{name: value.numpy() for name, value in self.vit.items()})
        self.files = {
            "pth": ("m.pth", pth.read_bytes()),
            "safetensors": ("m.safetensors", save({k: v.contiguous() for k, v in self.vit.items()})),
            "npz": ("m.npz", arrays.getvalue()),
            "run": ("step_00000003.pt", save_checkpoint(folder, 3, run, 1).read_bytes()),
        }
        self.beside = {name: (hugging / name).read_bytes() for name in ("config.json", "preprocessor_config.json")}
        self.hugging = hugging
        self.expected = {form: self.features(self.write(form, content)) for form, (_, content) in self.files.items()}
        self.of_folder = self.features(hugging)

    def write(self, form: str, content: bytes) -> Path:
        path = self.folder / self.files[form][0]
        path.write_bytes(content)
        return path

    def features(self, path: Path) -> Tensor:
        encoder: Encoder = load_backbone(
            "vit_nano" if "step_" in path.name else "mae_vit_nano", checkpoint=path, final_norm=True
        )
        self.warnings = encoder.load_report.warnings
        with torch.no_grad():
            tokens = encoder.tokens(self.images, (encoder.depth - 1,))[0]
        norm = encoder.norm
        return tokens if norm is None else norm(tokens).detach()

    def trial(self, rng: Random) -> Trial:
        kind = rng.random()
        if kind < 0.45:
            return self.damaged(rng)
        if kind < 0.75:
            return self.odd_tensor(rng)
        return self.odd_config(rng)

    def damaged(self, rng: Random) -> Trial:
        form = rng.choice(list(self.files))
        what, content = mutate_bytes(self.files[form][1], rng)
        path = self.write(form, content)

        def read() -> Tensor:
            if form == "run" and rng.random() < 0.5:
                load_checkpoint(path)
            return self.features(path)

        def judge(features: Tensor) -> str | None:
            if torch.equal(features, self.expected[form]):
                return None
            if form != "safetensors":
                raise Wrong(f"other features from a damaged {form}, which has checksums")
            return "weights of a safetensors file, which has no checksum"

        return Trial(f"{form}, {what}", read, judge)

    def odd_tensor(self, rng: Random) -> Trial:
        state: dict[str, Any] = dict(self.vit)
        name = rng.choice(list(state))
        value = state[name]
        kind = rng.choice(
            ("drop", "rename", "type", "cut", "turn", "nan", "zero", "value", "prefix", "extra", "view", "wrap")
        )
        allowed, said = None, ""
        if kind == "drop":
            del state[name]
        elif kind == "rename":
            state[rng.choice((name + "_", name.upper(), "x." + name, name.replace("blocks", "layers")))] = state.pop(
                name
            )
        elif kind == "type":
            kinds = (
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.int32,
                torch.bool,
                torch.complex64,
                torch.float8_e4m3fn,
            )
            chosen = rng.choice(kinds)
            state[name] = value.to(chosen)
            allowed = (
                "a weight of half precision" if chosen in (torch.float16, torch.bfloat16, torch.float8_e4m3fn) else None
            )
        elif kind == "cut":
            state[name] = value[..., :-1]
        elif kind == "turn":
            state[name] = rng.choice((value[None], value.flatten(), value.transpose(0, -1), value.flip(0)))
            allowed = "weights in another order" if state[name].shape == value.shape else None
        elif kind == "nan":
            state[name] = (
                value.clone()
                .flatten()
                .index_fill(0, torch.tensor([0]), rng.choice((float("nan"), float("inf"))))
                .view(value.shape)
            )
        elif kind == "zero":
            state[name] = torch.full_like(value, rng.choice((0.0, 0.0, 0.5)))
            if value.ndim > 1 or (name.endswith(".weight") and not state[name].any()):
                allowed = "a weight of one value, of which a warning says so"
                said = f" in {name}:"
            else:
                allowed = "a bias or a norm of one value, as in a model whose training leaves it"
        elif kind == "value":
            state[name] = rng.choice(
                (*ODD[:30], value.numpy().tolist(), [value], {"a": value}, value.to_sparse(), value.to("meta"))
            )
        elif kind == "prefix":
            prefix = rng.choice(("module.", "encoder.", "backbone.", "x.", "model."))
            state = {prefix + key: tensor for key, tensor in state.items()}
        elif kind == "extra":
            state[rng.choice(("x", "head.weight", "blocks.99.norm1.weight", "decoder_x"))] = rng.choice((*ODD, value))
        elif kind == "view":
            state[name] = (
                torch.nn.Parameter(value)
                if rng.random() < 0.5
                else value.t().contiguous().t()
                if value.ndim == 2
                else value
            )
        else:
            state = rng.choice(
                (
                    {"model": {"model": state}},
                    {"x": state},
                    {"state_dict": state, "epoch": 3},
                    list(state.items()),
                    state,
                    None,
                )
            )
        path = self.folder / "odd.pth"
        torch.save(state, path) if rng.random() < 0.5 or not isinstance(state, dict) else torch.save(
            {"model": state}, path
        )

        def judge(features: Tensor) -> str | None:
            if features.shape == self.expected["pth"].shape and torch.allclose(
                features, self.expected["pth"], atol=1e-5
            ):
                return None
            if allowed is None:
                raise Wrong("other features, accepted")
            if said not in " ".join(self.warnings):
                raise Wrong(f"no warning has {said!r}: {self.warnings}")
            return allowed

        return Trial(f"tensor {name}, {kind}", lambda: self.features(path), judge)

    def odd_config(self, rng: Random) -> Trial:
        for name, content in self.beside.items():
            (self.hugging / name).write_bytes(content)
        target = rng.choice(list(self.beside))
        key = ""
        if rng.random() < 0.3:
            what, content = mutate_bytes(self.beside[target], rng)
        else:
            what, key, tree = mutate_tree(json.loads(self.beside[target]), rng)
            content = dump(tree)
        (self.hugging / target).write_bytes(content)

        def judge(features: Tensor) -> str | None:
            if torch.equal(features, self.of_folder):
                return None
            if features.shape == self.of_folder.shape and target == "preprocessor_config.json":
                return "another legal mean or deviation in preprocessor_config.json"
            if "layer_norm_eps" in what or "hidden_act" in what or not key:
                return "another legal value in config.json"
            raise Wrong(f"other features, {features.shape}")

        return Trial(f"{target}, {what}", lambda: self.features(self.hugging), judge)
