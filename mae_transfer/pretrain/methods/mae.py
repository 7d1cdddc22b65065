"""Masked autoencoders (He et al. 2021, arXiv 2111.06377), in the arithmetic of the released code (`models_mae.py`).

The visible patches alone go through the encoder; a light decoder gets their tokens, and one shared mask token at the
place of each masked patch, and predicts the masked patches.

The decoder here keeps the patches in their shuffled order, visible ones first, and shuffles the (fixed) position
embedding instead: its blocks treat a sequence as a set, so that the numbers are those of the released code, which puts
the tokens back into the order of the grid first. What is not needed is not computed: no embedding of masked patches,
and after the last attention nothing of the visible ones.

Names of the decoder's parameters, and all layouts and shapes, are those of the released weights.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae_transfer.backbones.checkpoints.fixed_position import table
from mae_transfer.backbones.lean_mlp import LeanMlp
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import MaeConfig
from mae_transfer.pretrain.encoder import grid_of
from mae_transfer.pretrain.masking import Shuffle, check_grid, draw_noise, num_visible, shuffle, take
from mae_transfer.pretrain.targets import NormPixelTarget, PcaTarget, PixelTarget, Target, TokenTarget
from mae_transfer.pretrain.tokens import TOKEN_VIEW, Tokens, prepare_tokens, token_view, view_size, vocabulary
from mae_transfer.pretrain.views import Views

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.task import PretrainTask
    from mae_transfer.run_folder.folder import RunFolder

EPS = 1e-6
"""Of all LayerNorms."""
NORM: Any = partial(nn.LayerNorm, eps=EPS)


class MaeViews(Views):
    """Adds "noise", float32 (L,), which says what is masked, and a tokenizer's own view where one is needed."""

    def __init__(self, config: MaeConfig) -> None:
        super().__init__(config)
        self.mask, self.grid = config.mask, grid_of(config)
        self.token_size = view_size(config, config.tokenizer) if config.model.target == "token" else None

    def extras(self, region: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        extras: dict[str, Any] = {"noise": draw_noise(self.mask.kind, self.grid, self.mask.ratio, rng)}
        if self.token_size is not None:
            extras[TOKEN_VIEW] = token_view(region, self.token_size)
        return extras


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss.

    A batch holds "images" uint8 (B, C, H, W) and "noise" float32 (B, L). In training mode {"loss_mae": the mean over
    the images of each image's mean over its masked patches}; every image has as many of them, so this is the released
    code's mean over all, however a batch is cut. In eval mode {"loss": (B,), "patch_mean": (B,)}, the latter the loss
    that each masked patch's own mean would have as prediction (targets of pixels only).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ViTEncoder, target: Target, config: MaeConfig) -> None:
        super().__init__()
        model, width = config.model, config.model.decoder_width
        self.encoder = encoder
        self.visible = num_visible(encoder.native_grid, config.mask.ratio)
        self.loss_on_all = model.loss_on == "all"
        self.masks_in_encoder = model.mask_token == "encoder"
        self.grad_checkpointing = config.backbone.grad_checkpointing

        token_width = encoder.embed_dim if self.masks_in_encoder else width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, token_width))
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.num_patches, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, model.decoder_heads, qkv_bias=True, norm_layer=NORM, mlp_layer=LeanMlp)
            for _ in range(model.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=EPS)
        self.decoder_pred = nn.Linear(width, target.width)
        self.target = target
        self.tokens = Tokens()
        # once for each value of a patch, whose channels are last
        values = encoder.patch_size**2
        self.register_buffer("mean", torch.tensor(encoder.mean).repeat(values), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).repeat(values), persistent=False)
        self.initialise()

    @property
    def num_patches(self) -> int:
        h, w = self.encoder.native_grid
        return h * w

    @torch.no_grad()
    def initialise(self) -> None:
        """As `initialize_weights` of the released code; what it leaves alone keeps torch's own (the bias of the patch
        embedding)."""
        vit, grid = self.encoder.vit, self.encoder.native_grid
        vit.pos_embed.copy_(table(grid, self.encoder.embed_dim, columns_first=True))
        vit.pos_embed.requires_grad_(False)
        self.decoder_pos_embed.copy_(table(grid, self.decoder_norm.normalized_shape[0], columns_first=True))
        nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(self.encoder.embed_dim, -1))
        nn.init.normal_(vit.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        patches = self.patchify(batch["images"])
        order = shuffle(batch["noise"], self.visible)
        first = 0 if self.loss_on_all else self.visible  # in the order of the shuffle
        predicted = self.decode(self.encode(patches, order), order, first).float()
        wanted = take(patches, order.order[:, first:])
        loss = self.target.loss(predicted, wanted, self.ids(batch, order.order[:, first:])).mean(1)
        if self.training:
            return {"loss_mae": loss.mean()}
        result = {"loss": loss}
        if isinstance(self.target, PixelTarget):
            aims = self.target.of(wanted)
            result["patch_mean"] = (aims - aims.mean(-1, keepdim=True)).square().mean((1, 2))
        return result

    def predictions(self, batch: dict[str, Any]) -> Tensor:
        """Of all patches, float32 (B, L, target width), in the order of the grid."""
        order = shuffle(batch["noise"], self.visible)
        predicted = self.decode(self.encode(self.patchify(batch["images"]), order), order, 0)
        return take(predicted.float(), order.restore)

    def ids(self, batch: dict[str, Any], places: Tensor) -> Tensor | None:
        """The tokens of patches, for a target of tokens."""
        return self.tokens(batch).gather(1, places) if isinstance(self.target, TokenTarget) else None

    def patchify(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, L, p * p * C), normalised; channels last within a patch."""
        p = self.encoder.patch_size
        batch, channels, height, width = images.shape
        x = images.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(batch, -1, p * p * channels).to(torch.float32)
        return x.sub_(255 * self.mean).div_(255 * self.std)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, p * p * C) normalised -> (B, C, H, W) in 0 .. 1, not clipped."""
        return self._to_images(patches * self.std + self.mean)

    def encode(self, patches: Tensor, order: Shuffle) -> Tensor:
        """Tokens after the final norm, (B, 1 + visible, C); with mask tokens in the encoder (B, 1 + L, C), shuffled."""
        assert self.encoder.norm is not None
        if not self.masks_in_encoder:
            return self.encoder.norm(self.encoder.visible_tokens(take(patches, order.keep), order.keep))
        images, last = self._to_images(patches), self.encoder.depth - 1
        (tokens,) = self.encoder.tokens(images, (last,), order.mask(), self.mask_token[0, 0])
        tokens = torch.cat([tokens[:, :1], take(tokens[:, 1:], order.order)], dim=1)
        return self.encoder.norm(tokens)

    def decode(self, latent: Tensor, order: Shuffle, first: int) -> Tensor:
        """Predictions (B, L - first, target width) of the patches from the `first` of the shuffle on."""
        x = self.decoder_embed(latent)
        if not self.masks_in_encoder:
            missing = self.num_patches - self.visible
            x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), missing, -1)], dim=1)
        position = self.decoder_pos_embed[0]
        x = x + torch.cat([position[:1].expand(len(x), 1, -1), position[1:][order.order]], dim=1)
        for block in self.decoder_blocks[:-1]:
            x = self._run(block, x)
        x = self._run(partial(_run_tail, self.decoder_blocks[-1], 1 + first), x)
        return self.decoder_pred(self.decoder_norm(x))

    def _run(self, block: Any, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _to_images(self, patches: Tensor) -> Tensor:
        """(B, L, p * p * C) -> (B, C, H, W), the same values."""
        p, (h, w) = self.encoder.patch_size, self.encoder.native_grid
        x = patches.reshape(len(patches), h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(x), -1, h * p, w * p)


def _run_tail(block: Any, first: int, x: Tensor) -> Tensor:
    """A timm Block's output of the tokens from `first` on, which attend to all of x (B, N, C)."""
    attn, normed = block.attn, block.norm1(x)
    (batch, tokens, width), heads = x.shape, attn.num_heads
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query = F.linear(normed[:, first:], weight[:width], bias[:width])
    key, value = F.linear(normed, weight[width:], bias[width:]).view(batch, tokens, 2, heads, -1).unbind(2)
    query = query.view(batch, tokens - first, heads, -1)
    attended = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    x = x[:, first:] + attn.proj(attended.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def title(config: MaeConfig) -> str:
    """The row of such an encoder in the tables."""
    what = {"pixel": ", pixels", "norm_pixel": "", "pca": ", PCA", "token": ", tokens"}[config.model.target]
    return f"MAE{what} (this project)"


def make_views(config: MaeConfig) -> MaeViews:
    if config.mask.kind == "grid":
        check_grid(grid_of(config), config.mask.ratio)
    num_visible(grid_of(config), config.mask.ratio)
    return MaeViews(config)


def build_model(encoder: ViTEncoder, config: MaeConfig, num_classes: int | None) -> MaskedAutoencoder:
    values = encoder.patch_size**2 * config.data.channels
    kind = config.model.target
    if kind == "pca" and config.model.pca_coefficients > values:
        raise UserError(
            f"model.pca_coefficients={config.model.pca_coefficients}: a patch of {encoder.name} has {values} values"
        )
    target: Target
    if kind == "token":
        target = TokenTarget(vocabulary(config.tokenizer))
    elif kind == "pca":
        target = PcaTarget(values, config.model.pca_coefficients)
    else:
        target = NormPixelTarget(values) if kind == "norm_pixel" else PixelTarget(values)
    return MaskedAutoencoder(encoder, target, config)


def prepare(
    model: MaskedAutoencoder, task: "PretrainTask", fabric: "Fabric", folder: "RunFolder | None", progress: bool
) -> None:
    if isinstance(model.target, TokenTarget):
        prepare_tokens(model.tokens, task, fabric, folder)
    if isinstance(model.target, PcaTarget):  # a resumed run then takes those of its checkpoint, which are the same
        model.target.load_state_dict(on_rank_zero(fabric, lambda: fit_components(model, task)))


def fit_components(model: MaskedAutoencoder, task: "PretrainTask") -> dict[str, Tensor]:
    """The state of a PCA target from all patches of training images, as the first epoch shows them."""
    dataset, target = task.train_dataset, model.target
    assert isinstance(target, PcaTarget)
    assert isinstance(task.config, MaeConfig)
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[: task.config.model.pca_images])
    count, total, products = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for index in chosen.tolist():
        patches = model.patchify(dataset[(0, index)]["image"][None])[0].double()
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    target.fit(count, total, products)
    return target.state_dict()
