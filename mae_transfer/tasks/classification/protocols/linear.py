"""Linear probe of the frozen encoder: the MAE paper's (Table 10), and a sweep of many heads on one forward pass.

Features (class token after the final norm, or what `probe.blocks` and `probe.pooling` say) -> BatchNorm without affine
parameters -> linear classifier (facebookresearch/mae main_linprobe.py). Each combination of blocks, pooling and
learning rate is a head; heads of the same features share their BatchNorm. A head is trained as it would be alone: its
first weights are drawn from (seed, its name), its logits and gradients are computed for it alone, its parameters have a
learning rate of their own. Which head counts is decided on images set aside from the training set (`data.holdout`).

Without augmentation features are computed once and trained on from the run folder (`features/store.py`). The heads
compute in float32 in any precision.
"""

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.features.store import FeatureStore
from mae_transfer.tasks.classification.protocols.config import Pooling
from mae_transfer.tasks.classification.protocols.frozen import FrozenProtocol
from mae_transfer.tasks.classification.protocols.protocol import TRAINING, ProbeModel
from mae_transfer.tasks.classification.splits import ImageSplits, Splits

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder


class FeatureNorm(nn.BatchNorm1d):
    """BatchNorm1d(affine=False, eps=1e-6) of features that need no gradient, (B, C); statistics over all ranks.

    So R ranks give what one rank gives on the whole batch. `nn.SyncBatchNorm` refuses CPU tensors.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if not self.training or ranks == 1:
            return super().forward(input)
        gathered = [torch.empty_like(input[:1].expand(3, -1), dtype=torch.float64) for _ in range(ranks)]
        var, mean = torch.var_mean(input.double(), dim=0, correction=0)
        distributed.all_gather(gathered, torch.stack([torch.full_like(mean, len(input)), mean, var]))
        counts, means, variances = torch.stack(gathered, dim=1)
        share = counts / counts.sum(0)
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        total = counts.sum(0)
        self.running_mean.lerp_(mean.to(input), self.momentum)
        self.running_var.lerp_((var * total / (total - 1)).to(input), self.momentum)
        self.num_batches_tracked.add_(1)
        return (input - mean.to(input)) * (var + self.eps).rsqrt().to(input)


class Head(nn.Module):
    """A linear classifier and its features. `lr_scale` (`engine/optim.py`): its learning rate over optim.lr."""

    def __init__(
        self, width: int, num_classes: int, blocks: int, pooling: Pooling, lr: float, config: ClassificationConfig
    ) -> None:
        super().__init__()
        self.blocks, self.pooling, self.lr_scale = blocks, pooling, lr / config.optim.lr
        self.name = f"blocks{blocks}-{pooling}-lr{lr:g}"
        self.key = f"{blocks}_{pooling.replace('+', '_')}"
        self.linear = nn.Linear(width, num_classes)
        digest = hashlib.sha256(f"{config.seed} {self.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        nn.init.trunc_normal_(self.linear.weight, std=config.probe.init_std, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class LinearProbe(ProbeModel):
    """Frozen encoder and heads of K classes.

    Training: {"loss_heads": sum over the heads of their mean cross-entropy}. With the sum, not the mean, a head's
    gradient is what it would be alone. Evaluation: scores float32 (heads, B, K).
    """

    def __init__(self, encoder: "Encoder", num_classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        probe = config.probe
        self.encoder = encoder
        self.frozen = FrozenFeatures(encoder, max(probe.blocks), probe.pooling)
        heads = [
            Head(self.frozen.width(blocks, pooling), num_classes, blocks, pooling, lr, config)
            for blocks in probe.blocks
            for pooling in probe.pooling
            for lr in probe.lrs or (config.optim.lr,)
        ]
        self.heads = nn.ModuleList(heads)
        self.head_names = tuple(head.name for head in heads)
        self.norms = nn.ModuleDict(
            {head.key: FeatureNorm(head.linear.in_features) if probe.batch_norm else nn.Identity() for head in heads}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor] | Tensor:
        features = self.frozen(batch)
        heads = cast(list[Head], list(self.heads))
        with torch.autocast(features.device.type, enabled=False):
            inputs = {}
            for head in heads:
                if head.key not in inputs:
                    inputs[head.key] = self.norms[head.key](self.frozen.select(features, head.blocks, head.pooling))
            if not self.training:
                return torch.stack([head(inputs[head.key]) for head in heads])
            losses = [F.cross_entropy(head(inputs[head.key]), batch["labels"]) for head in heads]
            return {"loss_heads": torch.stack(losses).sum()}

    def folded(self, head: int = 0) -> nn.Linear:
        """BatchNorm and classifier of a head as one linear layer of its features: the same scores in eval mode."""
        chosen = cast(Head, self.heads[head])
        return fold(self.norms[chosen.key], chosen.linear)


def fold(norm: nn.Module, linear: nn.Linear) -> nn.Linear:
    """W (x - mean) / sqrt(var + eps) + b as one layer, computed in float64; with nn.Identity as norm, W x + b."""
    folded = nn.Linear(linear.in_features, linear.out_features)
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    if isinstance(norm, nn.BatchNorm1d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = weight / (norm.running_var.double() + norm.eps).sqrt()
        bias = bias - weight @ norm.running_mean.double()
    folded.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return folded


class Linear(FrozenProtocol[LinearProbe]):
    shards = True
    reads = (
        *(*FrozenProtocol.reads, *TRAINING, "data.holdout"),
        *("probe.blocks", "probe.pooling", "probe.lrs", "probe.batch_norm", "probe.init_std"),
    )

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> LinearProbe:
        model = LinearProbe(encoder, num_classes, self.config)
        if len(model.heads) > 1 and not self.config.data.holdout:
            raise UserError(
                f"{len(model.heads)} heads need images to choose by that are set aside from the training set: set "
                "data.holdout, for example to 0.1, or name one of probe.blocks, probe.pooling and probe.lrs"
            )
        return model

    @override
    def check_batches(self, sizes: Collection[int]) -> None:
        if self.config.probe.batch_norm and 1 in sizes:
            raise UserError(
                "BatchNorm needs more than one image and a device gets a batch of 1; choose another train.global_batch "
                "or train.micro_batch, or probe.batch_norm=false"
            )

    @override
    def prepare(
        self, model: LinearProbe, images: ImageSplits, fabric: Fabric, folder: "RunFolder | None", progress: bool
    ) -> Splits:
        if not self.config.probe.cache or self.config.data.augments:
            return images
        store = FeatureStore(model.frozen, self.config, fabric, folder, progress)
        return Splits(
            train=store.features_of("train", images.train),
            holdout=store.features_of("holdout", images.holdout) if images.holdout else None,
            val=store.features_of("eval", images.val),
        )
