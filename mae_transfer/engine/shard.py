"""`train.shard`: each rank holds a part of parameters, gradients and optimizer states. torch's FSDP2, through Fabric.

Each block of the encoder is a group, whose weights are whole on a rank while its forward or backward pass runs there.
All other parameters are one more group, whole during a micro-batch. Names stay, so parameter groups do; a parameter is
a DTensor, of which a rank has its rows, outside of these passes.

Checkpoints hold whole tensors, as those of any run. What is evaluated is a plain copy with whole weights: ranks may
evaluate different numbers of batches, and rank 0 draws pictures alone.
"""

import copy

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.checkpoint_writer import each_tensor
from mae_transfer.errors import UserError


class Sharding(ModelParallelStrategy):
    """Fabric's strategy for FSDP2 over all ranks. Unlike its parent it moves a module that is asked for whole."""

    def __init__(self, ranks: int, backend: str) -> None:
        super().__init__(
            shard,
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            process_group_backend=backend,
        )

    def module_to_device(self, module: nn.Module) -> None:
        module.to(self.root_device)


def check_shard(config: RunConfig, ranks: int, shards: bool, what: str) -> None:
    """UserError for a run with `train.shard` that is not known to give what it gives without.

    Args:
        shards: whether the task's model is known to (`BaseTask.shards`).
        what: the name of task and method or protocol.
    """
    train = config.train
    for wrong, why in (
        (not shards, f"{what} has not been compared with a run without"),
        (ranks == 1, "there is one process; start one per GPU by torchrun or srun"),
        (train.precision == "fp16", "its scaler looks at one rank's gradients; use train.precision=bf16"),
        (train.compile, "blocks are not compiled; use train.compile=false"),
    ):
        if train.shard and wrong:
            raise UserError(f"train.shard=true: {why}")


def check_blocks(config: RunConfig, encoder: Encoder) -> None:
    """UserError for a run with `train.shard` of an encoder that is not a plain ViT."""
    if config.train.shard and not encoder.shards:
        raise UserError(
            f"train.shard=true: {encoder.name} is no plain ViT, whose blocks weights are cut by; leave it out"
        )


def is_sharded(fabric: Fabric) -> bool:
    """Whether what the fabric sets up is cut over its ranks."""
    return isinstance(fabric.strategy, Sharding)


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut a model's parameters over the ranks of the mesh, in place; they go to its devices block by block."""
    mesh, encoder = mesh["data_parallel"], model.encoder
    assert isinstance(encoder, ViTEncoder)
    encoder.shard(mesh)
    fully_shard(model, mesh=mesh)
    return model


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters are on the meta device."""
    memo = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in model.parameters()
    }
    return copy.deepcopy(model, memo)


def with_weights(bare: nn.Module, sharded: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `bare`, which `without_weights` gave, with the whole weights of a sharded model; on every rank."""
    model = copy.deepcopy(bare)
    model.load_state_dict(each_tensor(sharded.state_dict(), whole), assign=True)
    return model.to(device)


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which ranks have parts, on every rank; all have to call it. Another one is given back."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(fabric: Fabric, state: dict[str, object]) -> dict[str, object]:
    """A state; if sharded, with whole tensors on rank 0's CPU and None in their places on other ranks."""
    if not is_sharded(fabric):
        return state

    def take(tensor: Tensor) -> Tensor | None:
        found = whole(tensor)
        return found.cpu() if fabric.is_global_zero else None

    return each_tensor(state, take)


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as `like`; the tensor where `like` is whole or of another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None).clone()
