"""A small discrete VAE, trained by this project on the user's own images (`tools/run_pretrain.py --method dvae`).

As in DALL-E (arXiv 2102.12092, 2.1), smaller: an encoder gives each patch logits over a vocabulary, a Gumbel-softmax
draws an embedding by them, a decoder paints the patch back from the embeddings around it. The draw is one-hot with
the gradient of the soft one (straight-through), so that the decoder sees what the tokenizer gives; the temperature is
constant. Loss: mean squared error of the pixels in -1 .. 1, plus `kl_weight` times the divergence of the logits'
distribution from the uniform one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.pretrain.tokenizers.base import Tokenizer


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.convs(x))


class DVAETokenizer(Tokenizer):
    """The encoder: convolutions that halve the size while the patch is even, then one over what is left of it."""

    kind = "dvae"

    def __init__(
        self, *, vocab_size: int, patch_size: int, width: int = 128, blocks: int = 2, channels: int = 3
    ) -> None:
        super().__init__()
        self.vocab_size, self.patch_size, self.width, self.channels = vocab_size, patch_size, width, channels
        self.blocks = blocks
        layers: list[nn.Module] = []
        n_in = channels
        for stride in strides(patch_size):
            layers += [nn.Conv2d(n_in, width, *window(stride)), nn.ReLU()]
            n_in = width
        layers += [Residual(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, vocab_size, 1))

    def ids(self, images: Tensor) -> Tensor:
        return self.logits(to_range(images)).argmax(1).flatten(1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels in -1 .. 1, (B, C, H, W) -> (B, V, h, w)."""
        return self.layers(pixels)

    def facts(self) -> dict[str, int]:
        names = ("vocab_size", "patch_size", "width", "blocks", "channels")
        return {name: getattr(self, name) for name in names}


class DiscreteVAE(nn.Module):
    """The tokenizer with what trains it.

    In training mode a batch with "images" uint8 (B, C, H, W) gives {"loss_pixels", "loss_kl"}. In eval mode nothing is
    drawn, the decoder sees the likeliest tokens: {"pixels", "kl"}, each (B,) and without the weight.
    """

    def __init__(self, tokenizer: DVAETokenizer, *, temperature: float = 1.0, kl_weight: float = 0.0) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.temperature, self.kl_weight = temperature, kl_weight
        width = tokenizer.width
        self.codebook = nn.Embedding(tokenizer.vocab_size, width)
        layers: list[nn.Module] = [Residual(width) for _ in range(tokenizer.blocks)]
        for stride in reversed(strides(tokenizer.patch_size)):
            layers += [nn.ConvTranspose2d(width, width, *window(stride)), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(width, tokenizer.channels, 1))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        pixels = to_range(batch["images"])
        logits = self.tokenizer.logits(pixels).float()
        if self.training:
            draw = F.gumbel_softmax(logits, tau=self.temperature, hard=True, dim=1)
        else:
            draw = F.one_hot(logits.argmax(1), self.tokenizer.vocab_size).movedim(-1, 1).to(logits.dtype)
        painted = self.decoder(torch.einsum("bvhw,vd->bdhw", draw, self.codebook.weight)).float()
        error = (painted - pixels).square().flatten(1).mean(1)
        log_q = logits.log_softmax(1)
        # KL(q, uniform) = sum q (log q + log V), a mean over the positions
        kl = (log_q.exp() * log_q).sum(1).flatten(1).mean(1) + math.log(self.tokenizer.vocab_size)
        if self.training:
            return {"loss_pixels": error.mean(), "loss_kl": self.kl_weight * kl.mean()}
        return {"pixels": error, "kl": kl}


def facts_of(state: dict[str, Tensor]) -> dict[str, int]:
    """`DVAETokenizer.facts` by the shapes of its tensors; ValueError if they are no convolutions."""
    convolutions = [state[f"layers.{i}.weight"] for i in range(len(state)) if f"layers.{i}.weight" in state]
    if len(convolutions) < 2 or not all(weight.ndim == 4 and weight.numel() for weight in convolutions):
        raise ValueError("its layers are no convolutions")
    *stem, head = convolutions
    return {
        "vocab_size": head.shape[0],
        "patch_size": math.prod(2 if weight.shape[-1] == 4 else weight.shape[-1] for weight in stem),
        "width": head.shape[1],
        "blocks": sum(name.endswith(".out.weight") for name in state),
        "channels": stem[0].shape[1],
    }


def strides(patch_size: int) -> list[int]:
    """16 -> 2, 2, 2, 2; 14 -> 2, 7."""
    found = []
    while patch_size % 2 == 0:
        found.append(2)
        patch_size //= 2
    return [*found, patch_size] if patch_size > 1 or not found else found


def window(stride: int) -> tuple[int, int, int]:
    """Kernel size, stride and padding. 4 wide to halve the size: each pixel is seen by two outputs."""
    return (4, 2, 1) if stride == 2 else (stride, stride, 0)


def to_range(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 -1 .. 1."""
    return images.float() / 127.5 - 1
