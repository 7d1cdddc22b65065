"""From timm's VisionTransformer names, which readers give, to those of its Eva class, which differ in LayerScale."""

import re
from typing import Any

from mae_transfer.backbones.checkpoints.layout import Converted

_MODULE, _PARAMETER = re.compile(r"^(blocks\.\d+)\.ls([12])\.gamma$"), re.compile(r"^(blocks\.\d+)\.gamma_([12])$")


def rename(converted: Converted) -> None:
    """Give LayerScale the names of Eva's parameters, in place: `blocks.0.ls1.gamma` -> `blocks.0.gamma_1`."""
    inner: Any = converted.original
    converted.tensors = {_MODULE.sub(r"\1.gamma_\2", name): tensor for name, tensor in converted.tensors.items()}
    converted.original = lambda name: inner(_PARAMETER.sub(r"\1.ls\2.gamma", name))
