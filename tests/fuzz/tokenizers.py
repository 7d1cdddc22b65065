"""Tokenizer files, damaged, with odd facts and odd tensors, through `load_tokenizer` and the ids of an image."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from campaign import Trial, Wrong
from mutate import ODD, dump, mutate_bytes, mutate_tree
from safetensors.torch import load, save
from torch import Tensor

from mae_transfer.pretrain.config import BeitConfig
from mae_transfer.pretrain.tokenizers.dvae import DVAETokenizer
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer
from mae_transfer.pretrain.tokenizers.load import load_tokenizer, save_tokenizer
from mae_transfer.pretrain.tokens import view_size
from mae_transfer.runs.resolve import load_config


class Family:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.path = folder / "tokenizer.safetensors"
        self.images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
        kmeans = KMeansTokenizer(torch.rand(16, 3 * 8 * 8), patch_size=8)
        dvae = DVAETokenizer(vocab_size=16, patch_size=8, width=8, blocks=1)
        pairs = [f"tokenizer.kind={self.path}"]
        config = load_config("pretrain", "vit_nano_p8", protocol="beit", preset="smoke", overrides=pairs)
        assert isinstance(config, BeitConfig)
        self.config = config
        self.files: list[tuple[bytes, Tensor]] = []
        for tokenizer in (kmeans, dvae):
            save_tokenizer(tokenizer, self.path)
            self.files.append((self.path.read_bytes(), self.read()))

    def read(self) -> Tensor:
        """As a pre-training checks it before its first step."""
        view_size(self.config, self.config.tokenizer)
        ids: Tensor = load_tokenizer(self.path)(self.images)
        return ids

    def trial(self, rng: Random) -> Trial:
        whole, expected = rng.choice(self.files)
        length = struct.unpack("<Q", whole[:8])[0]
        about = json.loads(whole[8 : 8 + length])["__metadata__"]
        kind = rng.choice(("bytes", "header", "facts", "facts", "text", "tensor", "tensor"))
        if kind == "bytes":
            what, content = mutate_bytes(whole, rng)
        elif kind == "header":
            what, head = mutate_bytes(whole[: 8 + length], rng)
            content = head + whole[8 + length :]
        else:
            tensors: dict[str, Any] = load(whole)
            (name, text), what = next(iter(about.items())), ""
            if kind == "facts":
                what, _, tree = mutate_tree({"": json.loads(text)}, rng)
                text = dump(tree.get("")).decode()
            elif kind == "text":
                what = repr(
                    text := str(rng.choice((*ODD, "{", "[" * 5000, "9" * 5000))).encode("utf-8", "replace").decode()
                )[:30]
            else:
                key = rng.choice(list(tensors))
                value = tensors[key]
                what = rng.choice(("drop", "cut", "nan", "half", "int", "flat", "rename", "none"))
                if what in ("drop", "rename"):
                    del tensors[key]
                    tensors |= {key + "_": value} if what == "rename" else {}
                elif what == "none":
                    tensors[key] = value[:0]
                else:
                    tensors[key] = {
                        "cut": value[..., :-1].contiguous(), "nan": value * float("nan"), "half": value.half(),
                        "int": value.int(),
                        "flat": value.flatten(),
                    }[what]  # fmt: skip
                what = f"{what} {key}"
            content = save(tensors, {name: text})
        self.path.write_bytes(content)

        def judge(ids: Tensor) -> str | None:
            if ids.shape == expected.shape and torch.equal(ids, expected):
                return None
            if kind in ("bytes", "header"):
                return "a tokenizer's tensors or facts in a safetensors file, which has no checksum"
            if "half" in what:
                return "a tokenizer of half precision"
            raise Wrong(f"other ids, {tuple(ids.shape)}")

        return Trial(f"{kind}, {what}", self.read, judge)
