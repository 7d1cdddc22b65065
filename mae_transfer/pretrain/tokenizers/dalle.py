"""OpenAI's dVAE encoder (openai/DALL-E), the tokenizer of BEiT and of MAE's Table 1d; the user brings `encoder.pkl`.

Architecture, from openai/DALL-E `dall_e/encoder.py` and `utils.py`: 7x7 convolution to n_hid = 256; four groups of two
residual blocks of widths 1, 2, 4, 8 x n_hid, a 2x2 max-pool after each of the first three; ReLU; 1x1 convolution to the
8192 logits. A block is x or its 1x1 convolution, plus 1 / 64 (one over the square of the number of blocks) of ReLU and
convolution four times (3, 3, 3, 1 wide, a quarter of the width inside). Pixels in 0 .. 1 are mapped to 0.1 .. 0.9; the
id is the argmax. In float32 everywhere (OpenAI's code computes in float16 on CUDA, but for input and output).

The published file is a pickle of Python objects. It is read without running any of their code: torch's restricted
unpickler gets one inert class that takes the place of every class it names (`read_pickled_module`).
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.errors import UserError
from mae_transfer.pretrain.tokenizers.base import Tokenizer

CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
)
"""All that a pickled encoder consists of, beside tensors and plain values."""
GROUPS = 4
EPS = 0.1
"""logit_laplace_eps of `utils.py`: pixels are mapped to EPS .. 1 - EPS."""


class Conv(nn.Module):
    """A convolution that keeps the size, its parameters named as OpenAI's."""

    def __init__(self, n_in: int, n_out: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_out, n_in, width, width).normal_(std=(n_in * width**2) ** -0.5))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, layers: int) -> None:
        super().__init__()
        hidden = n_out // 4
        widths = [(n_in, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, n_out, 1)]
        self.gain = 1 / layers**2
        self.id_path = Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential()
        for number, (a, b, width) in enumerate(widths, 1):
            self.res_path.add_module(f"relu_{number}", nn.ReLU())
            self.res_path.add_module(f"conv_{number}", Conv(a, b, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleTokenizer(Tokenizer):
    """8 pixels a token: an encoder of patch p gets images of p / 8 times the size (112 for 224 with a patch of 16)."""

    kind = "dalle"
    patch_size = 2 ** (GROUPS - 1)
    fits_any_patch = True

    def __init__(self, *, hidden: int = 256, blocks: int = 2, channels: int = 3, vocab_size: int = 8192) -> None:
        super().__init__()
        self.hidden, self.blocks_per_group, self.channels, self.vocab_size = hidden, blocks, channels, vocab_size
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", Conv(channels, hidden, 7))
        width = hidden
        for group in range(GROUPS):
            layers = nn.Sequential()
            for number in range(blocks):
                wider = hidden * 2**group
                layers.add_module(f"block_{number + 1}", Block(width, wider, GROUPS * blocks))
                width = wider
            if group < GROUPS - 1:
                layers.add_module("pool", nn.MaxPool2d(2))
            self.blocks.add_module(f"group_{group + 1}", layers)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", Conv(width, vocab_size, 1))
        self.blocks.add_module("output", output)
        self.requires_grad_(False)

    def ids(self, images: Tensor) -> Tensor:
        return self.logits(images.float() / 255).argmax(1).flatten(1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels in 0 .. 1, (B, C, H, W) -> (B, V, H / 8, W / 8)."""
        return self.blocks((1 - 2 * EPS) * pixels + EPS)

    def facts(self) -> dict[str, int]:
        return {
            "hidden": self.hidden,
            "blocks": self.blocks_per_group,
            "channels": self.channels,
            "vocab_size": self.vocab_size,
        }


def from_state(state: dict[str, Tensor], source: str) -> DalleTokenizer:
    """The tokenizer of a state dict by OpenAI's names; UserError for one that is not whole."""
    stem, head = state.get("blocks.input.w"), state.get("blocks.output.conv.w")
    numbers = [int(match[1]) for key in state if (match := re.match(r"blocks\.group_1\.block_(\d+)\.", key))]
    if stem is None or head is None or stem.ndim != 4 or head.ndim != 4 or not numbers:
        raise UserError(f"tokenizer {source}: no encoder of OpenAI's dVAE; pass their encoder.pkl or its state dict")
    tokenizer = DalleTokenizer(
        hidden=stem.shape[0], blocks=max(numbers), channels=stem.shape[1], vocab_size=head.shape[0]
    )
    try:
        tokenizer.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"tokenizer {source}: does not fit OpenAI's dVAE: {' '.join(str(error).split())}") from error
    return tokenizer


class Inert:
    """Stands in for a pickled class: takes its attributes and does nothing with them."""


def read_pickled_module(path: Path) -> dict[str, Tensor]:
    """The state dict of a pickled `dall_e` module; no code of the file is run.

    UserError if the file names anything beside CLASSES and what torch's restricted unpickler knows.
    """
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"tokenizer {path}: cannot be read safely ({reason}); where you trust the file, load it with OpenAI's "
            "dall_e package and save its state_dict()"
        ) from error
    state: dict[str, Tensor] = {}
    _collect(module, "", state)
    return state


def _collect(module: object, prefix: str, state: dict[str, Tensor]) -> None:
    content = vars(module) if isinstance(module, Inert) else {}
    for name, parameter in content.get("_parameters", {}).items():
        if parameter is not None:
            state[prefix + name] = parameter.detach()
    for name, child in content.get("_modules", {}).items():
        _collect(child, f"{prefix}{name}.", state)
