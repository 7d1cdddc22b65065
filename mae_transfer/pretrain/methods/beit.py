"""BEiT-style masked image modelling (Bao et al. 2021, arXiv 2106.08254; microsoft/unilm `beit/modeling_pretrain.py`).

Rectangles of patches are masked, about 40 %; all patches go through the encoder, the masked ones as a mask token; a
linear layer predicts the token that a tokenizer gives each masked patch. The encoder has BEiT's relative position bias,
one table for all blocks, LayerScale and no absolute position embedding, each an option.

The biases of the keys, which BEiT leaves out, are here and without effect: softmax cannot see them.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.backbones.initialise import as_beit, cut_normal
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError
from mae_transfer.pretrain.block_masking import block_mask
from mae_transfer.pretrain.config import BeitConfig
from mae_transfer.pretrain.encoder import grid_of, new_encoder
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.tokens import TOKEN_VIEW, Tokens, prepare_tokens, token_view, view_size, vocabulary
from mae_transfer.pretrain.views import Views

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.data import PretrainImages
    from mae_transfer.run_folder.folder import RunFolder


class BeitViews(Views):
    """Adds "mask", bool (L,), and the tokenizer's view where it needs one."""

    jitters_whole_image = True  # unilm `beit/datasets.py`: ColorJitter comes first

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.mask, self.grid = config.mask, grid_of(config)
        self.count = num_masked(config)
        self.token_size = view_size(config, config.tokenizer)

    def extras(self, region: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        mask = block_mask(
            self.grid, self.count, rng, min_patches=self.mask.min_patches, max_patches=self.mask.max_patches
        )
        extras: dict[str, object] = {"mask": mask.reshape(-1)}
        if self.token_size is not None:
            extras[TOKEN_VIEW] = token_view(region, self.token_size)
        return extras


class Beit(nn.Module):
    """Encoder, head and loss.

    A batch holds "images" uint8 (B, C, H, W) and "mask" bool (B, L). In training mode {"loss_beit": the mean over the
    images of each image's mean cross-entropy over its masked patches}. BEiT's code takes the mean over all masked
    patches of a device's batch; their number differs from image to image (64 to 75 of 196), so that its result
    depends on how a batch is cut, and this one does not. In eval mode {"loss": (B,), "accuracy": (B,) in percent}.
    """

    def __init__(self, encoder: ViTEncoder, vocab_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = Tokens()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        self.lm_head = nn.Linear(encoder.embed_dim, vocab_size)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """As BEiT's code; LayerScale, zero tables and the final norm are left as they are."""
        cut_normal(self.mask_token)
        as_beit(self.encoder.vit)
        cut_normal(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        mask = batch["mask"]
        images = self.encoder.normalise(batch["images"])
        image, patch = mask.nonzero(as_tuple=True)
        wanted = self.tokens(batch)[image, patch]
        logits = self.logits(images, mask, image, patch)
        losses = F.cross_entropy(logits.float(), wanted, reduction="none")
        if self.training:
            return {"loss_beit": self._per_image(losses, image, mask).mean()}
        hits = 100 * (logits.argmax(1) == wanted).float()
        return {"loss": self._per_image(losses, image, mask), "accuracy": self._per_image(hits, image, mask)}

    def logits(self, images: Tensor, mask: Tensor, image: Tensor, patch: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (n, V) of the patches (n,) of these images (n,)."""
        assert self.encoder.norm is not None
        (encoded,) = self.encoder.tokens(images, (self.encoder.depth - 1,), mask, self.mask_token[0, 0])
        # the norm is of each token alone, so that those which are not predicted need none
        return self.lm_head(self.encoder.norm(encoded[:, self.encoder.prefix :][image, patch]))

    @staticmethod
    def _per_image(values: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Values (n,) of masked patches -> the mean of each image (B,), 0 for one without a masked patch."""
        return values.new_zeros(len(mask)).index_add(0, image, values) / mask.sum(1).clamp(min=1)


def num_masked(config: BeitConfig) -> int:
    """Patches to mask, int(L * ratio); UserError if that is none, or less than a block, or leaves none."""
    h, w = grid_of(config)
    count, mask = int(h * w * config.mask.ratio), config.mask
    if not 0 < count < h * w:
        what = "masks no patch" if count == 0 else "leaves no patch visible"
        raise UserError(f"mask.ratio={mask.ratio:g} {what} of {h}x{w}; choose one between 0 and 1 that does not")
    if mask.min_patches > count or round(math.sqrt(mask.min_patches)) >= min(h, w):
        raise UserError(
            f"mask.min_patches={mask.min_patches}: no such block fits into the {count} patches to mask of {h}x{w}; "
            "lower it"
        )
    return count


class BeitMethod(Method[BeitConfig, Beit]):
    def title(self) -> str:
        return "BEiT-style (this project)"

    def make_views(self) -> BeitViews:
        return BeitViews(self.config)

    def build_encoder(self) -> ViTEncoder:
        model = self.config.model
        spec = dataclasses.replace(self.spec(), abs_pos=model.abs_pos, layer_scale=model.layer_scale)
        return new_encoder(spec, self.config, rel_pos=model.rel_pos)

    def build_model(self, encoder: ViTEncoder, num_classes: int | None) -> Beit:
        return Beit(encoder, vocabulary(self.config.tokenizer))

    def prepare(self, model: Beit, dataset: "PretrainImages", fabric: "Fabric", folder: "RunFolder | None") -> None:
        prepare_tokens(model.tokens, self.config, dataset, fabric, folder)
