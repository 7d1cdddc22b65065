"""Attentive probe of the frozen encoder: learned queries pool its patch tokens by cross-attention, then a linear layer.

timm's AttentionPoolLatent on the patch tokens of the last block after the final norm: query -> cross-attention ->
x + MLP(norm(x)) -> linear classifier: much as V-JEPA's evaluation (facebookresearch/jepa attentive_pooler.py). There
the keys have a norm of their own (here it is the encoder's final one), the query is added to what it pools, the
attention has no output projection, and the MLP's second layer starts smaller by the square root of 2. As there, the
pooling block starts from a truncated normal of `probe.init_std` and the classifier from torch's own initialisation.
"""

from typing import TYPE_CHECKING

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.protocols.frozen import FrozenProtocol
from mae_transfer.tasks.classification.protocols.protocol import TRAINING, ProbeModel

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class AttentiveProbe(ProbeModel):
    """Frozen encoder, attention pooling, classifier of K classes; one head.

    Training: {"loss_ce": mean cross-entropy}. Evaluation: scores float32 (1, B, K).
    """

    head_names = ("attentive",)

    def __init__(self, encoder: "Encoder", num_classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        probe = config.probe
        heads = probe.attention_heads or encoder.num_heads
        if encoder.embed_dim % heads:
            raise UserError(
                f"probe.attention_heads={heads} does not divide the {encoder.embed_dim} channels of {encoder.name}; "
                f"its own number is {encoder.num_heads}"
            )
        self.encoder = encoder
        self.frozen = FrozenFeatures(encoder, 1, ("avg",))
        self.pool = AttentionPoolLatent(
            encoder.embed_dim,
            num_heads=heads,
            latent_len=probe.queries,
            pool_type="token" if probe.queries == 1 else "avg",
            norm_layer=nn.LayerNorm,
        )
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        for module in self.pool.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=probe.init_std)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pool.latent, std=probe.init_std)

    def forward(self, batch: Batch) -> dict[str, Tensor] | Tensor:
        tokens = self.frozen.tokens(batch)[-1][:, self.encoder.prefix :]
        scores = self.head(self.pool(tokens)).float()
        return {"loss_ce": F.cross_entropy(scores, batch["labels"])} if self.training else scores[None]


class Attentive(FrozenProtocol[AttentiveProbe]):
    reads = (
        *(*FrozenProtocol.reads, *TRAINING),
        *("probe.queries", "probe.attention_heads", "probe.init_std"),
    )

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> AttentiveProbe:
        return AttentiveProbe(encoder, num_classes, self.config)
