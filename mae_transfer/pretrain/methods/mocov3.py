"""MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057; facebookresearch/moco-v3 `moco/builder.py`, `vits.py`).

Two views of an image go through encoder, projector and predictor. Each has to be told by the other's key among the keys
of all images of the step. Keys come from the momentum encoder, a slow copy of encoder and projector. The patch
projection keeps its random weights, and positions are fixed sines and cosines.

What differs from the released code: the loss is computed in float32, there in half precision. The momentum encoder
moves by a linear interpolation, so that weights which are equal stay equal to the last bit. The rows of the position
table follow the image's rows for images that are no squares too.
"""

import copy
import math
from collections.abc import Collection
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from mae_transfer.adapters.norm import BatchNorm
from mae_transfer.backbones.checkpoints.fixed_position import table
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.schedule import make_schedule
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import MocoConfig, MocoModelConfig
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.two_views import SECOND, TwoViews

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.data import PretrainImages
    from mae_transfer.run_folder.folder import RunFolder


class MoCoV3(nn.Module):
    """Encoder, projector, predictor, momentum encoder and loss.

    A batch holds the views "images" and "second", uint8 (B, C, H, W). In training mode {"loss_moco": the mean over the
    images, of both views}; each such forward pass is a step of the momentum encoder. In eval mode {"similarity": (B,)},
    the cosine of a prediction from "images" and a key from "second".
    """

    steps_done: Tensor

    def __init__(self, encoder: ViTEncoder, config: MocoModelConfig) -> None:
        super().__init__()
        initialise(encoder, frozen_patches=config.freeze_patch_embed)
        self.encoder, self.temperature, self.momentum = encoder, config.temperature, config.momentum
        self.projector = mlp(encoder.embed_dim, config.mlp_dim, config.mlp_dim, config.dim)
        self.predictor = mlp(config.dim, config.mlp_dim, config.dim)
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.total_steps: int | None = None
        """Length of the training; None keeps the first momentum."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        views = [self.encoder.normalise(batch[name]) for name in ("images", SECOND)]
        if not self.training:
            return {"similarity": F.cosine_similarity(self.query(views[0]).float(), self.key(views[1]).float())}
        queries = [self.query(view) for view in views]
        with torch.no_grad():
            self.follow()
            keys = [self.key(view) for view in views]
        with torch.autocast(views[0].device.type, enabled=False):
            losses = [
                contrastive_loss(query.float(), *gather(key.float()), self.temperature)
                for query, key in zip(queries, reversed(keys), strict=True)
            ]
        return {"loss_moco": losses[0] + losses[1]}

    def query(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> predictions (B, dim)."""
        return self.predictor(self.projector(class_token(self.encoder, images)))

    def key(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> keys (B, dim)."""
        return self.momentum_projector(class_token(self.momentum_encoder, images))

    @torch.no_grad()
    def follow(self) -> None:
        """A step of the momentum encoder: m times itself and 1 - m times the encoder, m by a cosine from
        `momentum` to 1."""
        done = self.steps_done.double() / (self.total_steps or math.inf)
        share = (1 - self.momentum) * 0.5 * (1 + torch.cos(math.pi * done))
        followed = chain(self.encoder.parameters(), self.projector.parameters())
        following = chain(self.momentum_encoder.parameters(), self.momentum_projector.parameters())
        for mine, theirs in zip(following, followed, strict=True):
            mine.lerp_(theirs, share.to(mine.dtype))
        self.steps_done += 1


class VectorNorm(BatchNorm):
    """Batch norm of (B, C), statistics over all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, None, None])[:, :, 0, 0]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers without bias from width to width, each with batch norm, and ReLU between them. The last norm has
    neither weight nor bias."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=2):
        last = number == len(widths)
        layers += [nn.Linear(before, after, bias=False), VectorNorm(after, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def class_token(encoder: ViTEncoder, images: Tensor) -> Tensor:
    """The class token after the final norm, (B, C), of normalised images."""
    assert encoder.norm is not None  # `new_encoder` gives it one
    (tokens,) = encoder.tokens(images, (encoder.depth - 1,))
    return encoder.class_token(encoder.norm(tokens))


def contrastive_loss(queries: Tensor, keys: Tensor, first: int, temperature: float) -> Tensor:
    """Mean cross-entropy of queries (N, D) telling their keys among keys (M, D), times twice the temperature.

    Query i belongs to key `first` + i. Both are scaled to unit length.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    labels = torch.arange(first, first + len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(logits, labels)


def gather(keys: Tensor) -> tuple[Tensor, int]:
    """The keys (N, D) of all ranks in order of rank, without gradient, and where this rank's begin."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return keys, 0
    found = [torch.empty_like(keys) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, keys)
    return torch.cat(found), len(keys) * distributed.get_rank()


@torch.no_grad()
def initialise(encoder: ViTEncoder, *, frozen_patches: bool) -> None:
    """As the released `vits.py`: Glorot uniform, queries, keys and values each by themselves; positions are fixed.

    frozen_patches: the patch projection stays as it is drawn.
    """
    vit = encoder.vit
    vit.pos_embed.copy_(table(encoder.native_grid, encoder.embed_dim, columns_first=False)).requires_grad_(False)
    nn.init.normal_(vit.cls_token, std=1e-6)
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            rows = module.out_features // 3 if name.endswith("qkv") else module.out_features
            _uniform(module, rows + module.in_features)
    projection = vit.patch_embed.proj
    _uniform(projection, projection.weight[0].numel() + encoder.embed_dim)
    projection.requires_grad_(not frozen_patches)


def _uniform(layer: nn.Linear | nn.Conv2d, fans: int) -> None:
    """Glorot's uniform weights of this sum of inputs and outputs, and zeros as bias."""
    bound = math.sqrt(6 / fans)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class MocoMethod(Method[MocoConfig, MoCoV3]):
    def title(self) -> str:
        return "MoCo v3 (this project)"

    def make_views(self) -> TwoViews:
        return TwoViews(self.config)

    def build_model(self, encoder: ViTEncoder, num_classes: int | None) -> MoCoV3:
        return MoCoV3(encoder, self.config.model)

    def check_batches(self, sizes: Collection[int]) -> None:
        ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if min(sizes) * ranks < 2:
            raise UserError(
                "--method mocov3 tells images of a step from each other and needs at least 2; set train.global_batch "
                "to 2 or more"
            )

    def prepare(self, model: MoCoV3, dataset: "PretrainImages", fabric: "Fabric", folder: "RunFolder | None") -> None:
        config = self.config
        model.total_steps = make_schedule(config.schedule, len(dataset), config.train.global_batch).total
