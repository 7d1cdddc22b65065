"""What a probe reads of the frozen encoder.

A feature is float32 (blocks, parts, C): for each of the blocks that are read, ascending, the class token, the average
of the patch tokens, or both, all after the final norm.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mae_transfer.config.layers import find_blocks
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.protocols.config import Pooling

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class FrozenFeatures:
    """The frozen encoder as a function: a batch -> features float32 (B, blocks, parts, C).

    No module, so that the encoder is registered once, as the attribute `encoder` of the model. A batch holds "images"
    uint8 (B, 3, H, W), or "features" that were computed before. `poolings`: what is read of them; an encoder without
    class token gives the average where the class token is asked for, and its load report says so. `layers`: numbers of
    the blocks to read, in the place of the last `blocks`. UserError for blocks that the encoder does not have.
    """

    def __init__(
        self,
        encoder: "Encoder",
        blocks: int,
        poolings: Sequence[Pooling],
        layers: tuple[int, ...] | None = None,
    ) -> None:
        if blocks > encoder.depth:
            raise UserError(f"probe.blocks: the last {blocks} blocks of {encoder.name}, which has {encoder.depth}")
        self.encoder = encoder
        encoder.freeze(0)
        self.has_class_token = encoder.has_class_token
        if not self.has_class_token and set(poolings) != {"avg"}:
            encoder.load_report.warnings.append("no class token: the probe reads the average of the patch tokens")
        self.blocks = tuple(range(encoder.depth - blocks, encoder.depth))
        if layers is not None:
            self.blocks = find_blocks(layers, encoder.depth, encoder.name)
            if encoder.pools:
                raise UserError(
                    f"probe.layers: probes of {encoder.name} read what it pools of its last map; leave it out"
                )
        asked = {part for pooling in poolings for part in self.parts_of(pooling)}
        self.parts = tuple(part for part in ("cls", "avg") if part in asked)

    def parts_of(self, pooling: Pooling) -> tuple[str, ...]:
        """The parts of a feature that a pooling reads."""
        return tuple(pooling.split("+")) if self.has_class_token else ("avg",)

    def of_layers(self, layers: tuple[int, ...]) -> "FrozenFeatures":
        """The same parts of other blocks."""
        return FrozenFeatures(self.encoder, 1, self.parts, layers)

    def width(self, blocks: int, pooling: Pooling) -> int:
        """Length of what `select` gives."""
        parts = self.parts_of(pooling)
        return self.encoder.embed_dim * (blocks * len(parts) if len(parts) == 1 else blocks + 1)

    def select(self, features: Tensor, blocks: int, pooling: Pooling) -> Tensor:
        """(B, width): a part of the last `blocks` blocks side by side; of two parts the second of the last alone."""
        first, *rest = (features[:, -blocks:, self.parts.index(part)] for part in self.parts_of(pooling))
        return torch.cat([first.flatten(1), *(part[:, -1] for part in rest)], dim=1)

    @torch.no_grad()
    def tokens(self, batch: Batch) -> list[Tensor]:
        """The tokens (B, prefix + h * w, C) after each of the blocks and the final norm, float32."""
        images = self.encoder.normalise(batch["images"])
        norm = self.encoder.norm or nn.Identity()
        return [norm(x).float() for x in self.encoder.tokens(images, self.blocks)]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        if "features" in batch:
            stored: Tensor = batch["features"]
            return stored.float()
        if self.encoder.pools:
            return self.encoder.pooled(self.encoder.normalise(batch["images"])).float()[:, None, None]
        prefix = self.encoder.prefix
        of = {"cls": self.encoder.class_token, "avg": lambda x: x[:, prefix:].mean(1)}
        return torch.stack([torch.stack([of[part](x) for part in self.parts], 1) for x in self.tokens(batch)], 1)
