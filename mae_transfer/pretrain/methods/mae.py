"""Masked autoencoders (He et al. 2021, arXiv 2111.06377), in the arithmetic and the names of the released code.

The encoder sees the visible patches alone. A light decoder gets their tokens, and one shared mask token for each masked
patch, and predicts the masked patches. Parameters have the names, layouts and shapes of the released weights.

Two things differ from `models_mae.py`, the numbers do not. The decoder keeps the patches in their shuffled order and
shuffles its (fixed) position embedding instead: its blocks treat a sequence as a set. What is not needed is not
computed: embeddings of masked patches and, after the last attention, tokens of visible ones.
"""

from collections.abc import Callable
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
from mae_transfer.backbones.registry import with_class_tokens
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.engine.evaluation import drawing
from mae_transfer.errors import UserError
from mae_transfer.pretrain import pictures
from mae_transfer.pretrain.config import MaeConfig
from mae_transfer.pretrain.encoder import grid_of, new_encoder
from mae_transfer.pretrain.masking import Shuffle, check_mask, draw_noise, gather_patches, num_visible, shuffle
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.targets import MeanColorTarget, NormPixelTarget, PcaTarget, PixelTarget, Target, TokenTarget
from mae_transfer.pretrain.tokens import TOKEN_VIEW, Tokens, prepare_tokens, token_view, view_size, vocabulary
from mae_transfer.pretrain.views import Views

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.data import PretrainImages
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture

NORM: Any = partial(nn.LayerNorm, eps=1e-6)


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss.

    A batch holds "images" uint8 (B, C, H, W) and "noise" float32 (B, L), which says what is masked. In training mode
    {"loss_mae": the mean over all masked patches}, of which every image has as many. In eval mode {"loss": (B,),
    "patch_mean": (B,)}; the latter is the loss if each patch's own mean were predicted (targets of pixels only).
    """

    def __init__(
        self, encoder: ViTEncoder, target: Target, config: MaeConfig, *, mask_token_width: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        h, w = encoder.native_grid
        self.num_patches, self.patch_grid = h * w, config.mask.patch_grid
        self.len_keep = num_visible((h, w), config.mask.ratio, self.patch_grid)
        self.loss_on_all = config.model.loss_on == "all"
        self.grad_checkpointing = config.backbone.grad_checkpointing

        width, heads, depth = config.model.decoder_width, config.model.decoder_heads, config.model.decoder_depth
        self.mask_token = nn.Parameter(torch.zeros(1, 1, mask_token_width or width))
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, encoder.prefix + self.num_patches, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=NORM, mlp_layer=LeanMlp) for _ in range(depth)
        )
        self.decoder_norm = NORM(width)
        self.decoder_pred = nn.Linear(width, target.width)
        self.target, self.tokens = target, Tokens()
        self.initialize_weights(learned=config.model.positions == "learned")

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        patches, order = self.patchify(batch["images"]), shuffle(batch["noise"], self.len_keep)
        first = 0 if self.loss_on_all else self.len_keep
        ids = order.ids_shuffle[:, first:]  # the patches to predict: mask is true there
        latent = self.forward_encoder(patches, order)
        pred = self.forward_decoder(latent, order, first)
        return self.forward_loss(gather_patches(patches, ids), pred, self.token_ids(batch, ids))

    def forward_encoder(self, patches: Tensor, order: Shuffle) -> Tensor:
        """Patches (B, L, p * p * C) -> latents of class tokens and visible patches, (B, prefix + len_keep, C)."""
        assert self.encoder.norm is not None
        visible = gather_patches(patches, order.ids_keep)
        return self.encoder.norm(self.encoder.visible_tokens(visible, order.ids_keep))

    def forward_decoder(self, latent: Tensor, order: Shuffle, first: int) -> Tensor:
        """Predictions float32 (B, L - first, target width) of the patches ids_shuffle[:, first:]."""
        x = self.append_mask_tokens(self.decoder_embed(latent))
        position, prefix = self.decoder_pos_embed[0], self.encoder.prefix
        x = x + torch.cat([position[:prefix].expand(len(x), -1, -1), position[prefix:][order.ids_shuffle]], dim=1)
        for block in self.decoder_blocks[:-1]:
            x = self._run(block, x)
        x = self._run(partial(_run_tail, self.decoder_blocks[-1], prefix + first), x)
        return self.decoder_pred(self.decoder_norm(x)).float()

    def append_mask_tokens(self, x: Tensor) -> Tensor:
        """(B, prefix + len_keep, width) -> (B, prefix + L, width)."""
        masked = self.encoder.prefix + self.num_patches - x.shape[1]
        return torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), masked, -1)], dim=1)

    def forward_loss(self, patches: Tensor, pred: Tensor, token_ids: Tensor | None) -> dict[str, Tensor]:
        """What the model gives: from patches (B, n, p * p * C), their predictions and, for such a target, tokens."""
        loss = self.target.loss(pred, patches, token_ids).mean(1)
        if self.training:
            return {"loss_mae": loss.mean()}
        if not isinstance(self.target, PixelTarget):
            return {"loss": loss}
        target = self.target.of(patches)
        return {"loss": loss, "patch_mean": (target - target.mean(-1, keepdim=True)).square().mean((1, 2))}

    def predictions(self, batch: dict[str, Any], len_keep: int | None = None) -> Tensor:
        """Of all patches, float32 (B, L, target width), in the order of the grid (`ids_restore`)."""
        order = shuffle(batch["noise"], len_keep or self.len_keep)
        pred = self.forward_decoder(self.forward_encoder(self.patchify(batch["images"]), order), order, 0)
        return gather_patches(pred, order.ids_restore)

    def token_ids(self, batch: dict[str, object], ids: Tensor) -> Tensor | None:
        """The tokens int64 (B, n) of the patches `ids`, for a target of tokens."""
        return self.tokens(batch).gather(1, ids) if isinstance(self.target, TokenTarget) else None

    def patchify(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, L, p * p * C), normalised; channels last within a patch."""
        p = self.encoder.patch_size
        batch, channels, height, width = images.shape
        x = self.encoder.normalise(images).reshape(batch, channels, height // p, p, width // p, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, p * p * C) normalised -> (B, C, H, W) in 0 .. 1, not clipped."""
        return (self.to_images(patches) * self.encoder.pixel_std + self.encoder.pixel_mean) / 255

    def to_images(self, patches: Tensor) -> Tensor:
        """(B, L, p * p * C) -> (B, C, H, W), the same values."""
        p, (h, w) = self.encoder.patch_size, self.encoder.native_grid
        x = patches.reshape(len(patches), h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(x), -1, h * p, w * p)

    def _run(self, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    @torch.no_grad()
    def initialize_weights(self, learned: bool) -> None:
        """As the released code's; the bias of the patch embedding, which that leaves alone, keeps torch's own.
        LayerScale and rotary frequencies stay as timm makes them.

        learned: positions are learned, and drawn as Pixio's code draws them.
        """
        vit = self.encoder.vit
        for position in (vit.pos_embed, self.decoder_pos_embed):
            if position is None:  # rotary positions alone
                continue
            position.requires_grad_(learned)
            if learned:
                nn.init.trunc_normal_(position, std=0.02)
            else:
                fixed = table(self.encoder.native_grid, position.shape[2], columns_first=True)
                position.zero_()[:, -self.num_patches :] = fixed[:, -self.num_patches :]
        nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(self.encoder.embed_dim, -1))
        for token in (vit.cls_token, vit.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


class MaskTokensInEncoder(MaskedAutoencoder):
    """MAE Table 1 (c), the slow variant: masked patches go through the encoder as mask tokens of its width."""

    def __init__(self, encoder: ViTEncoder, target: Target, config: MaeConfig) -> None:
        super().__init__(encoder, target, config, mask_token_width=encoder.embed_dim)

    def forward_encoder(self, patches: Tensor, order: Shuffle) -> Tensor:
        """Patches (B, L, p * p * C) -> latents of class tokens and of all patches, shuffled, (B, prefix + L, C)."""
        assert self.encoder.norm is not None
        prefix = self.encoder.prefix
        images, last = self.to_images(patches), self.encoder.depth - 1
        (tokens,) = self.encoder.tokens(images, (last,), order.mask, self.mask_token[0, 0])
        shuffled = gather_patches(tokens[:, prefix:], order.ids_shuffle)
        return self.encoder.norm(torch.cat([tokens[:, :prefix], shuffled], dim=1))

    def append_mask_tokens(self, x: Tensor) -> Tensor:
        return x


class NoDecoder(MaskTokensInEncoder):
    """Mask tokens in the encoder, and a linear layer in place of the decoder, as BEiT and SimMIM have it.

    An early failure of masked autoencoding, for comparison: the encoder's last blocks have to be the decoder.
    """

    def __init__(self, encoder: ViTEncoder, target: Target, config: MaeConfig) -> None:
        super().__init__(encoder, target, config)
        del self.decoder_embed, self.decoder_pos_embed, self.decoder_blocks, self.decoder_norm
        self.decoder_pred = nn.Linear(encoder.embed_dim, target.width)
        nn.init.xavier_uniform_(self.decoder_pred.weight)
        nn.init.zeros_(self.decoder_pred.bias)

    def forward_decoder(self, latent: Tensor, order: Shuffle, first: int) -> Tensor:
        return self.decoder_pred(latent[:, self.encoder.prefix + first :]).float()


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


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, batch: dict[str, Any], ratio: float, *, honest: bool = False) -> Tensor:
    """Float32 (B, 4, 3, H, W) in 0 .. 1: the image, its visible patches, the reconstruction, and the reconstruction
    with the visible patches in their places.

    Args:
        batch: "images" and "noise".
        honest: take nothing from the true masked patches (`NormPixelTarget.to_pixels`).
    """
    len_keep = num_visible(model.encoder.native_grid, ratio, model.patch_grid)
    patches, mask = model.patchify(batch["images"]), shuffle(batch["noise"], len_keep).mask
    pred = model.target.to_pixels(model.predictions(batch, len_keep), patches, mask if honest else None)
    pasted = torch.where(mask[:, :, None], pred, patches)
    image, pred, pasted = (model.unpatchify(stage).clamp(0, 1) for stage in (patches, pred, pasted))
    masked = model.to_images(mask[:, :, None].expand_as(patches))
    stages = [image, image.masked_fill(masked, pictures.GREY), pred, pasted]
    return torch.stack(stages, dim=1).expand(-1, -1, 3, -1, -1)


class MaeViews(Views):
    """Adds "noise", float32 (L,), which says what is masked, and a tokenizer's own view where it needs one."""

    def __init__(self, config: MaeConfig) -> None:
        super().__init__(config)
        self.mask, self.grid = config.mask, grid_of(config)
        check_mask(self.mask.kind, self.grid, self.mask.ratio, self.mask.patch_grid)
        self.token_size = view_size(config, config.tokenizer) if config.model.target == "token" else None

    def extras(self, region: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        mask = self.mask
        extras: dict[str, object] = {"noise": draw_noise(mask.kind, self.grid, mask.ratio, rng, mask.patch_grid)}
        if self.token_size is not None:
            extras[TOKEN_VIEW] = token_view(region, self.token_size)
        return extras


class MaeMethod(Method[MaeConfig, MaskedAutoencoder]):
    rotary = True
    shards = True

    def title(self) -> str:
        what = {"pixel": ", pixels", "pca": ", PCA", "token": ", tokens", "mean_color": ", mean colour"}
        return f"MAE{what.get(self.config.model.target, '')} (this project)"

    def build_encoder(self) -> ViTEncoder:
        spec, count = self.spec(), self.config.model.class_tokens
        if count > 1 and spec.rotary:
            raise UserError(f"model.class_tokens={count}: {spec.name} has the prefix tokens of its architecture; use 1")
        return new_encoder(with_class_tokens(spec, count) if count > 1 else spec, self.config)

    def make_views(self) -> MaeViews:
        return MaeViews(self.config)

    def build_model(self, encoder: ViTEncoder, num_classes: int | None) -> MaskedAutoencoder:
        model = self.config.model
        kind = MaskTokensInEncoder if model.mask_token == "encoder" else MaskedAutoencoder
        kind = kind if model.decoder_depth else NoDecoder
        return kind(encoder, self._target(encoder), self.config)

    def _target(self, encoder: ViTEncoder) -> Target:
        model, values = self.config.model, encoder.patch_size**2 * self.config.data.channels
        if model.target == "token":
            return TokenTarget(vocabulary(self.config.tokenizer))
        if model.target == "mean_color":
            return MeanColorTarget(values, self.config.data.channels)
        if model.target != "pca":
            return NormPixelTarget(values) if model.target == "norm_pixel" else PixelTarget(values)
        if model.pca_coefficients > values:
            raise UserError(
                f"model.pca_coefficients={model.pca_coefficients}: a patch of {encoder.name} has {values} values"
            )
        return PcaTarget(values, model.pca_coefficients)

    def prepare(
        self, model: MaskedAutoencoder, dataset: "PretrainImages", fabric: "Fabric", folder: "RunFolder | None"
    ) -> None:
        if isinstance(model.target, TokenTarget):
            prepare_tokens(model.tokens, self.config, dataset, fabric, folder)
        if isinstance(model.target, PcaTarget):  # a resumed run then takes those of its checkpoint, which are the same
            model.target.load_state_dict(on_rank_zero(fabric, lambda: self._fit_components(model, dataset)))

    def _fit_components(self, model: MaskedAutoencoder, dataset: "PretrainImages") -> dict[str, Tensor]:
        """The state of a PCA target from all patches of training images, as the first epoch shows them."""
        assert isinstance(model.target, PcaTarget)
        chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[: self.config.model.pca_images])
        model.target.fit(model.patchify(dataset[(0, int(index))]["image"][None])[0] for index in chosen)
        return model.target.state_dict()

    def draw_pictures(
        self, model: MaskedAutoencoder, dataset: "PretrainImages", split: str, fabric: "Fabric"
    ) -> "list[Picture]":
        """With the masks of the evaluation; none of a target, or an image, that is no picture."""
        if self.config.model.target == "token" or self.config.data.channels not in (1, 3):
            return []
        ratio, found = self.config.mask.ratio, []
        facts = [f"{split} image, {100 * ratio:g} % of the patches masked", pictures.note(model.target)]
        for batch in pictures.chosen_batches(dataset, self.config.eval.pictures):
            with drawing(model), fabric.autocast():
                stages = reconstruct(model, fabric.to_device(batch), ratio)[0]
            found.append(pictures.run_picture(stages, batch["names"][0], "; ".join(filter(None, facts))))
        return found
