"""The wrapper through which every task uses a module of a user's own."""

from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.own_module_layers import find_blocks, layer_ids
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError


class ModuleEncoder(Encoder):
    """The wrapper of an `own_module.EncoderModule`; its parameters are named `module.*`."""

    module: Any

    def __init__(
        self,
        module: nn.Module,
        spec: Spec,
        report: LoadReport,
        *,
        img_size: int | Grid | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> None:
        default = max(224 // spec.patch_size, 1) * spec.patch_size
        super().__init__(spec, report, taps, default if img_size is None else img_size)
        self.module = module
        self.gives_tokens = callable(getattr(module, "tokens", None))
        self.prefix = int(getattr(module, "num_prefix_tokens", 1)) if self.gives_tokens else 0
        self.has_class_token = self.prefix > 0
        self._layer_ids = None if hasattr(module, "layer_id") else layer_ids(module, spec.depth)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self._maps(images, self.taps)

    def tokens(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        if not self.gives_tokens:
            return [x.flatten(2).transpose(1, 2) for x in self._maps(images, blocks)]
        h, w = self.grid_of(images.shape[2], images.shape[3])
        found = list(self.module.tokens(images, blocks))
        return self._checked("tokens", found, blocks, (len(images), self.prefix + h * w, self.embed_dim))

    def layer_id(self, name: str) -> int:
        """Raises UserError if the module neither says it nor has one list of blocks."""
        name = name.removeprefix("module.")
        if hasattr(self.module, "layer_id"):
            return int(self.module.layer_id(name))
        if self._layer_ids is None:
            raise UserError(
                f"backbone {self.name!r}: layer-wise lr decay needs the block of each parameter, and "
                f"{self.spec.origin} has no list of {self.depth} blocks; give it layer_id(name), or set "
                "optim.layer_decay=1"
            )
        return self._layer_ids[name]

    def freeze(self, trainable: float) -> None:
        if not (float(trainable).is_integer() and 0 <= trainable <= self.depth):
            raise UserError(f"{trainable:g} trainable blocks: {self.name} takes 0, 1, 2, ... {self.depth}.")
        if trainable == self.depth:
            return
        self.module.requires_grad_(False)
        if trainable:
            blocks = find_blocks(self.module, self.depth)
            if blocks is None:
                raise UserError(
                    f"{trainable:g} trainable blocks: {self.spec.origin} has no list of {self.depth} blocks; 0 or "
                    f"{self.depth} will do"
                )
            for block in list(blocks.children())[self.depth - int(trainable) :]:
                block.requires_grad_(True)
        self._resting = [
            part
            for part in self.module.modules()
            if any(True for _ in part.parameters()) and not any(p.requires_grad for p in part.parameters())
        ]
        self.train(self.training)

    def _maps(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        grid = self.grid_of(images.shape[2], images.shape[3])
        found = list(self.module.feature_maps(images, blocks))
        return self._checked("feature_maps", found, blocks, (len(images), self.embed_dim, *grid))

    def _checked(self, method: str, found: list[Tensor], blocks: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """Raises UserError for other shapes, and for maps without a gradient while the encoder is trained."""
        if len(found) != len(blocks):
            raise UserError(f"backbone {self.name!r}: {method} gives {len(found)} tensors for {len(blocks)} blocks")
        for x in found:
            if tuple(x.shape) != shape:
                raise UserError(f"backbone {self.name!r}: {method} gives a tensor {tuple(x.shape)}, not {shape}")
        trained = self.training and torch.is_grad_enabled() and self.depth - 1 in blocks
        if trained and not any(x.requires_grad for x in found) and any(p.requires_grad for p in self.parameters()):
            raise UserError(
                f"backbone {self.name!r}: {method} gives maps without a gradient, so that the encoder cannot be "
                "trained; take torch.no_grad or detach out of it, or choose a protocol that freezes the encoder"
            )
        return found
