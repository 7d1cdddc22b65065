"""Devices, processes and precision, by Lightning Fabric; and what ranks have to agree on.

One process unless started by torchrun or by srun; then one process per device, with DDP over NCCL (gloo on CPU).
Precisions are fp32 and autocast in bf16 or fp16, of training and of evaluation. Two things differ from Fabric's own:

- Its mixed precision casts every floating-point INPUT to half precision before the model sees it, which would round
  ground-truth boxes to the 4-8 px grid of bf16; here inputs stay as they are and autocast does the rest.
- It announces itself on the console; here only its warnings come through.
"""

import importlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.fast import whole_products
from mae_transfer.engine.host_memory import keep_freed_memory
from mae_transfer.engine.shard import Sharding
from mae_transfer.errors import UserError

T = TypeVar("T")

_on_host: dist.ProcessGroup | None = None

_OF_DDP = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers": False
}
"""DDP sends no buffers at a forward pass; the option's newer name where this torch has it, as the older one warns."""

KEEP_THE_GROUP = (
    "torch.distributed.nn.functional",
    "torch.distributed.optim.zero_redundancy_optimizer",
    "torch.distributed.fsdp.sharded_grad_scaler",
)
"""Modules of torch with functions whose default value is the process group at the time of their import.

Where a library imports one during a run, as mmengine does, the group outlives `destroy_process_group`, and gloo's
threads with it (seen by their names). Such a thread may abort the process at its end ("terminate called without an
active exception"); github.com/pytorch/pytorch/pull/179291 describes how.
"""


class Autocast(MixedPrecision):
    """Fabric's mixed precision without the cast of the inputs."""

    def convert_input(self, data: object) -> object:
        return data


def make_fabric(device: str, precision: str, *, shard: bool = False) -> Fabric:
    """A launched Fabric for `device` (auto, cpu, cuda) and `precision` (fp32, bf16, fp16); `shard`: `engine/shard.py`.

    UserError where the device or the processes asked for are not there.
    """
    global _on_host
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: must be auto, cpu or cuda (choose GPUs by CUDA_VISIBLE_DEVICES)")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device=cuda, but torch sees no CUDA device; pass --device cpu or install a CUDA build of torch"
        )
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "fp16" and accelerator == "cpu":
        raise UserError("train.precision=fp16 needs a CUDA device; on CPU use train.precision=bf16 or fp32")

    environment, per_node, num_nodes = _processes()
    if accelerator == "cuda" and per_node > torch.cuda.device_count():
        raise UserError(
            f"{per_node} processes on this node but {torch.cuda.device_count()} visible GPUs; start one per GPU "
            "(under SLURM give GPUs by --gpus-per-node, not by --gpus-per-task)"
        )
    if accelerator == "cpu":
        keep_freed_memory()
    else:  # blocks of a detector's ever other numbers of boxes, without holes between them
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    for module in KEEP_THE_GROUP if environment else ():
        importlib.import_module(module)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    backend = "gloo" if accelerator == "cpu" else "nccl"
    _meet_anew(backend)
    # Gradients lie in DDP's buckets instead of beside them, and buffers are shared once a step, by `share_buffers`.
    strategy: Strategy | str = "auto"
    if environment and shard:
        strategy = Sharding(per_node * num_nodes, backend)
    elif environment:
        strategy = DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True, **_NO_BUFFERS)
    fabric = Fabric(
        accelerator=accelerator,
        devices=per_node,
        num_nodes=num_nodes,
        strategy=strategy,
        # Always given: Fabric's own search would take a plain `python` inside a SLURM allocation for one of its tasks.
        plugins=[_precision(precision, accelerator), environment or LightningEnvironment()],
    )
    fabric.launch()
    if fabric.world_size > 1 and backend == "nccl" and _on_host is None:
        _on_host = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    return fabric


def host_group() -> dist.ProcessGroup | None:
    """The group for objects that stay in host memory; None is the default group, gloo's own on a CPU.

    It is made at the start: where gloo finds no network interface, a run fails before its first step and not in its
    first evaluation.
    """
    return _on_host


def check_eval_precision(fabric: Fabric, config: RunConfig) -> None:
    """UserError if the device cannot evaluate in the precision that is asked for."""
    if config.eval.precision == "fp16" and fabric.device.type == "cpu":
        raise UserError("eval.precision=fp16 needs a CUDA device; on CPU use eval.precision=fp32 or bf16")


@contextmanager
def eval_precision(fabric: Fabric, config: RunConfig) -> Iterator[None]:
    """Inside, `fabric.autocast()` is of `eval.precision` instead of `train.precision`."""

    def forward_context() -> AbstractContextManager[object]:
        if config.eval.precision == "fp32":
            return nullcontext()
        return torch.autocast(fabric.device.type, torch.bfloat16 if config.eval.precision == "bf16" else torch.float16)

    if config.eval.precision is None:
        yield
        return
    with whole_products(), patch.object(fabric.strategy.precision, "forward_context", forward_context):
        yield


def on_rank_zero(fabric: Fabric, function: Callable[[], T]) -> T:
    """Run a function on rank 0; all ranks return its result or raise its UserError."""
    return _of_first(function, fabric.is_global_zero, fabric.broadcast if fabric.world_size > 1 else None)


def from_rank_zero(function: Callable[[], T]) -> T:
    """The same without a fabric at hand, in what every rank does at its start; a process alone runs the function."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return function()

    def broadcast(outcome: object) -> object:
        found = [outcome]
        dist.broadcast_object_list(found, src=0, group=_on_host)
        return found[0]

    return _of_first(function, dist.get_rank() == 0, broadcast)


def _of_first(function: Callable[[], T], first: bool, broadcast: Callable[[object], object] | None) -> T:
    failure: UserError | None = None
    result: T | None = None
    if first:
        try:
            result = function()
        except UserError as error:
            failure = error
    if broadcast is not None:
        failure, result = cast("tuple[UserError | None, T | None]", broadcast((failure, result)))
    if failure is not None:
        raise failure
    return cast(T, result)


def all_reduce(fabric: Fabric, tensor: torch.Tensor, operation: Literal["mean", "sum", "max"]) -> torch.Tensor:
    """The tensor, reduced over the ranks; the same on all of them."""
    return cast(torch.Tensor, fabric.all_reduce(tensor, reduce_op=operation))


@torch.no_grad()
def share_buffers(fabric: Fabric, module: torch.nn.Module) -> None:
    """Give every rank the floating-point buffers of rank 0, so that running statistics are the same everywhere.

    Batch norm that is not synchronised leaves each rank with its own; checkpoints hold rank 0's. DDP would do the same
    at each forward pass, too late for an evaluation and for an average of the weights.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if fabric.world_size == 1 or not buffers:
        return
    flat = torch.cat([buffer.double().flatten() for buffer in buffers])
    dist.broadcast(flat, 0)
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def gather_objects(fabric: Fabric, value: T) -> list[T]:
    """The value of every rank, in order of rank, on every rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(values, value)
    return values


def first_on_each_node(fabric: Fabric, function: Callable[[], T]) -> T:
    """Run a function on the first rank of each node and then on its other ranks, which find what it put in caches.

    If it raises a UserError anywhere, all ranks raise one.
    """
    result: T | None = None
    error: UserError | None = None
    for first in (True, False):
        if (fabric.local_rank == 0) == first:
            try:
                result = function()
            except UserError as caught:
                error = caught
        fabric.barrier()
    messages = [message for message in gather_objects(fabric, str(error) if error else None) if message]
    if messages:
        raise error or UserError(messages[0])
    return cast(T, result)


def shut_down() -> None:
    """Leave the process group, if there is one, and end its threads; at the end of a run that did not fail."""
    global _on_host
    _on_host = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _processes() -> tuple[ClusterEnvironment | None, int, int]:
    """(environment, processes per node, nodes) of the launcher that started this process; environment None for one."""
    if dist.is_available() and dist.is_torchelastic_launched():
        world, per_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if world % per_node != 0:
            raise UserError(f"torchrun: {world} processes are not {per_node} on each node; use as many on every node")
        return (TorchElasticEnvironment() if world > 1 else None), per_node, world // per_node
    # Only srun sets SLURM_STEP_NUM_TASKS: a plain `python` inside an allocation of several tasks is one process.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError("SLURM: give the number of processes by --ntasks-per-node (one per GPU), not by --ntasks")
        per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
        return SLURMEnvironment(auto_requeue=False), per_node, int(os.environ.get("SLURM_NNODES", "1"))
    return None, 1, 1


def _meet_anew(backend: str) -> None:
    """Make the process group of ranks that torchrun has started again on its one node.

    They get the store of those before them, where their addresses still are, and would wait for processes that are
    gone (seen with torch 2.14 and gloo): so their keys get a prefix. On several nodes the numbers of restarts may
    differ; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each start a store of its own.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    if restart == "0" or not shared or not one_node or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    store, rank, world_size = next(iter(dist.rendezvous("env://")))
    store = dist.PrefixStore(f"restart {restart}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def _precision(precision: str, accelerator: str) -> Precision:
    if precision == "fp32":
        return Precision()
    if precision not in ("bf16", "fp16"):
        raise UserError(f"train.precision={precision!r}: must be fp32, bf16 or fp16")
    kind: Literal["16-mixed", "bf16-mixed"] = "bf16-mixed" if precision == "bf16" else "16-mixed"
    return Autocast(kind, accelerator)
