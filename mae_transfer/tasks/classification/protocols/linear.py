"""Linear probe of the frozen encoder: the MAE paper's (Table 10), and a sweep of many heads on one forward pass.

Features (class token after the final norm, or what `probe.blocks` and `probe.pooling` say) -> BatchNorm without affine
parameters -> linear classifier (facebookresearch/mae main_linprobe.py). Each combination of blocks, pooling and
learning rate is a head; heads of the same features share their BatchNorm. A head is trained as it would be alone: its
first weights are drawn from (seed, its name), its logits and gradients are computed for it alone, its parameters have a
learning rate of their own. Which head counts is decided on images set aside from the training set (`data.holdout`).

Without augmentation features are computed once and trained on from the run folder (`features.py`). The heads compute in
float32 in any precision.
"""

import hashlib
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.store import FrozenFeatures, store_features
from mae_transfer.tasks.classification.protocols.config import Pooling

if TYPE_CHECKING:
    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.tasks.classification.task import ClassificationTask


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
    """One linear classifier and where its features come from. `lr_scale` is its share of optim.lr (see `optim.py`)."""

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


class LinearProbe(nn.Module):
    """Frozen encoder and heads of K classes.

    Training: {"loss_heads": sum over the heads of their mean cross-entropy}; the sum, so that a head's gradient is what
    it is alone. Evaluation: scores float32 (heads, B, K).
    """

    def __init__(self, encoder: "ViTEncoder", num_classes: int, config: ClassificationConfig) -> None:
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
    """W (x - mean) / sqrt(var + eps) + b as one layer, computed in float64; a norm that is none leaves the layer."""
    folded = nn.Linear(linear.in_features, linear.out_features)
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    if isinstance(norm, nn.BatchNorm1d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = weight / (norm.running_var.double() + norm.eps).sqrt()
        bias = bias - weight @ norm.running_mean.double()
    folded.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return folded


def encoder_options(config: ClassificationConfig) -> dict[str, Any]:
    return {"img_size": config.data.image_size, "final_norm": config.probe.final_norm}


def build_model(encoder: "ViTEncoder", num_classes: int, config: ClassificationConfig) -> LinearProbe:
    model = LinearProbe(encoder, num_classes, config)
    if len(model.heads) > 1 and not config.data.holdout:
        raise UserError(
            f"{len(model.heads)} heads need images to choose by that are set aside from the training set: set "
            "data.holdout, for example to 0.1, or name one of probe.blocks, probe.pooling and probe.lrs"
        )
    return model


def prepare(
    task: "ClassificationTask", model: LinearProbe, fabric: Fabric, folder: "RunFolder | None", progress: bool
) -> None:
    if task.config.probe.cache and not task.config.data.augments:
        store_features(task, model.frozen, fabric, folder, progress)
