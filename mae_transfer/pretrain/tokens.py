"""The tokens of a batch: which tokenizer a run uses, and where it comes from.

The tokenizer is no part of the model: it is not trained, no checkpoint holds it, and DDP does not see it. A run keeps
its tokenizer in the run folder, and a resume takes it from there.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.commands import command
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import BeitConfig, MaeConfig, PretrainConfig, TokenizerConfig
from mae_transfer.pretrain.tokenizers.base import Tokenizer
from mae_transfer.pretrain.tokenizers.kmeans import fit_kmeans
from mae_transfer.pretrain.tokenizers.load import FILE, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.data import PretrainImages
    from mae_transfer.run_folder.folder import RunFolder

_LOG = logging.getLogger(__name__)
KMEANS = "kmeans"
TOKEN_VIEW = "token_view"


class Tokens:
    """A batch -> the tokens of its patches, int64 (B, L)."""

    tokenizer: Tokenizer | None = None
    """Given by `prepare_tokens`."""

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        assert self.tokenizer is not None, "prepare_tokens comes first"
        view: Tensor = batch[TOKEN_VIEW] if TOKEN_VIEW in batch else batch["images"]
        return self.tokenizer.to(view.device)(view)


def tokenizer_from_config(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer in the file that the configuration names; None for k-means, which is fitted later."""
    kind = config.kind
    if kind == KMEANS:
        return None
    if kind == "dvae":
        raise UserError(
            f"--tokenizer dvae: train one first, by {command('pretrain')} --method dvae with the same --backbone and "
            "--data, and pass its run folder"
        )
    if kind in ("dalle", "dall-e", "openai"):
        raise UserError(f"--tokenizer {kind}: pass the path of OpenAI's encoder.pkl, or of its state dict")
    if kind is None:
        raise UserError("targets of tokens need a tokenizer: --tokenizer kmeans, or the file or run folder of one")
    return load_tokenizer(kind)


def vocabulary(config: TokenizerConfig) -> int:
    """The number of tokens."""
    tokenizer = tokenizer_from_config(config)
    return config.vocab_size if tokenizer is None else tokenizer.vocab_size


def view_size(config: PretrainConfig, tokenizer: TokenizerConfig) -> tuple[int, int] | None:
    """Height and width of the tokenizer's own view of the images; None if it takes the encoder's.

    Raises UserError for a tokenizer of another grid or another number of channels.
    """
    found, data = tokenizer_from_config(tokenizer), config.data
    if found is None:
        return None
    if found.channels != data.channels:
        raise UserError(
            f"the tokenizer {tokenizer.kind} is for images of {found.channels} channels, not {data.channels}; use "
            " one made for these images"
        )
    size = found.view_size(data.size, resolve(config.backbone.name).patch_size)
    return None if size == data.size else size


def token_view(region: Tensor, size: tuple[int, int]) -> Tensor:
    """The crop uint8 (C, h', w') at a tokenizer's size, by Lanczos as in BEiT (unilm `beit/transforms.py`)."""
    image = F.to_pil_image(region).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return F.pil_to_tensor(image)


def prepare_tokens(
    tokens: Tokens,
    config: MaeConfig | BeitConfig,
    dataset: "PretrainImages",
    fabric: "Fabric",
    folder: "RunFolder | None",
) -> None:
    """Give every rank the run's tokenizer: the one in its folder, else the configured one, which is then kept there.

    `dataset`: the training images, which k-means is fitted to.
    """
    options = config.tokenizer
    patch_size = resolve(config.backbone.name).patch_size

    def make() -> Tokenizer:
        assert folder is not None, "rank 0 has the folder"
        file = folder.path / FILE
        if file.is_file():
            return load_tokenizer(file)
        tokenizer = tokenizer_from_config(options)
        if tokenizer is None:
            images = min(options.fit_images, len(dataset))
            what = "k-means: reading %d images for %d tokens of patches of %d pixels"
            _LOG.info(what, images, options.vocab_size, patch_size)
            tokenizer = fit_kmeans(
                _sample(dataset, options.fit_images),
                vocab_size=options.vocab_size,
                patch_size=patch_size,
                patches_per_image=options.patches_per_image,
                seed=config.seed,
            )
        save_tokenizer(tokenizer, file)
        _LOG.info("tokenizer %s of %d tokens kept in %s", tokenizer.kind, tokenizer.vocab_size, file)
        return tokenizer

    tokens.tokenizer = on_rank_zero(fabric, make)


def _sample(dataset: "PretrainImages", count: int) -> Iterator[Tensor]:
    """Training images as the first epoch shows them."""
    chosen = np.random.default_rng(0).permutation(len(dataset))[:count]
    return (dataset[(0, int(index))]["image"] for index in np.sort(chosen))
