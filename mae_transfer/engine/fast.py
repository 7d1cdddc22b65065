"""`train.fast`: what a GPU does faster in training where the last digits need not repeat. On a CPU it changes nothing.

Evaluations in fp32 keep whole products, and so do detectron2's and mmengine's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

from mae_transfer.config.sections import TrainConfig


@contextmanager
def training_arithmetic(device: torch.device, config: TrainConfig, *, fixed_sizes: bool) -> Iterator[None]:
    """Inside, with `train.fast`: fp32 matrices are multiplied in TF32, and the fastest convolutions are tried for where
    sizes are fixed. Without: whole fp32 products and convolutions, and cuDNN's repeatable algorithms."""
    if device.type != "cuda":
        yield
        return
    fast = config.fast
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    torch.set_float32_matmul_precision("high" if fast else "highest")
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = fast, fast and fixed_sizes, not fast
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[1:]


@contextmanager
def whole_products() -> Iterator[None]:
    """Inside, products of fp32 matrices are in fp32, and no algorithms are tried: an evaluation's images differ in
    size."""
    before = torch.get_float32_matmul_precision(), cudnn.benchmark
    torch.set_float32_matmul_precision("highest")
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.benchmark = before[1]


def takes_fused_optimizer(device: torch.device, config: TrainConfig) -> bool:
    """Whether AdamW's update is one kernel. Fabric cannot unscale the gradients of fp16 before a fused one."""
    return config.fast and device.type == "cuda" and config.precision != "fp16"
