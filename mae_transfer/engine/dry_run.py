"""A step without its arithmetic: real shapes, real control flow, counted bytes and operations, in seconds on a CPU.

Under `DryRun` the dense arithmetic (linear layers, convolutions, attention, RoIAlign), what is written into large
tensors (new weights, updates) and all that follows from these is not computed: an operation returns memory of the right
shape that nobody has written to, which costs nothing until it is touched. What does not follow from it runs as ever:
anchors, matching, sampling, NMS. So a detector goes through its own code, with the proposals of an untrained one: few
of them are objects.

`as_on_cuda` takes attention's path on GPUs beside it.
"""

import copy
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, shape_wrapper

from mae_transfer.backbones.flops import FUSED_ON_CPU
from mae_transfer.backbones.positions.bias_attention import fused_everywhere

aten = torch.ops.aten
Tree: TypeAlias = Any
"""An operation, its arguments or results: tensors, numbers, and lists and tuples of them."""
_OPERATIONS = {**flop_registry, **{packet: shape_wrapper(count) for packet, count in FUSED_ON_CPU.items()}}
"""Dense operation -> how many floating-point operations it is, as `backbones/flops.py` counts them."""
SMALL = 1 << 21
"""Elements. A smaller result is noise as of a new layer: scores differ, boxes are nearly their anchors."""


class OutOfTime(Exception):
    """A dry run has taken longer than it may."""


class DryRun(TorchDispatchMode):
    """`now` and `peak`: bytes of the tensors that are alive, and the most there have been; `flops` up to here.

    seconds: of wall time, after which an operation raises OutOfTime.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.now = self.peak = self.flops = 0
        self._bytes: dict[int, int] = {}
        self._hollow: set[int] = set()
        self._shapes: dict[object, Tree] = {}
        self._noise = torch.randn(SMALL, generator=torch.Generator().manual_seed(0)) * 0.01
        torchvision.extension._assert_has_ops()
        self._dense = {*_OPERATIONS, torch.ops.torchvision.roi_align, torch.ops.torchvision._roi_align_backward}

    def __torch_dispatch__(
        self, func: Tree, types: Sequence[type], args: tuple[Tree, ...] = (), kwargs: dict[str, Tree] | None = None
    ) -> Tree:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime
        out = self._call(func, args, kwargs or {})
        if func._overloadpacket in _OPERATIONS:
            self.flops += _OPERATIONS[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    @torch.no_grad()
    def copy_of(self, model: nn.Module) -> nn.Module:
        """A copy on the CPU whose large tensors nobody has written to; those that are trained have gradients."""
        memo: dict[int, Tree] = {}
        for each in (*model.parameters(), *model.buffers()):
            made = self._like(each)
            memo[id(each)] = nn.Parameter(made, each.requires_grad) if isinstance(each, nn.Parameter) else made
        copied = copy.deepcopy(model, memo)
        for parameter in copied.parameters():
            if parameter.requires_grad:
                parameter.grad = self._like(parameter)
        return copied

    def _like(self, tensor: Tensor) -> Tensor:
        if not _large(tensor):
            return tensor.to("cpu", copy=True)
        made = torch.empty_like(tensor, device="cpu", requires_grad=False)
        self._hollow.add(made.untyped_storage()._cdata)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._bytes:
            self._bytes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._bytes.pop(key, 0)
        self._hollow.discard(key)

    def _call(self, func: Tree, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        packet = func._overloadpacket
        skipped = packet in self._dense or any(x.untyped_storage()._cdata in self._hollow for x in tensors)
        skipped = skipped or (func._schema.is_mutable and _large(args[0]))
        if func.is_view or not skipped:
            return func(*args, **kwargs)
        if func._schema.is_mutable and all(each.alias_info is not None for each in func._schema.returns):
            return self._in_place(func._schema, args, kwargs)
        key = (func, str(structure), *(_described(leaf) for leaf in leaves))
        if key not in self._shapes:
            self._shapes[key] = func(*tree_map(_shape_of, args), **tree_map(_shape_of, kwargs))
        return tree_map(self._unwritten, self._shapes[key])

    def _in_place(self, schema: Tree, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        """The arguments that the operation would have written to."""
        given = [args[i] if i < len(args) else kwargs.get(each.name) for i, each in enumerate(schema.arguments)]
        pairs = zip(schema.arguments, given, strict=True)
        written = [value for each, value in pairs if each.alias_info is not None and each.alias_info.is_write]
        for leaf in tree_leaves(written):
            if isinstance(leaf, Tensor) and leaf.numel() > SMALL:
                self._hollow.add(leaf.untyped_storage()._cdata)
        if not schema.returns:
            return None
        return written[0] if len(schema.returns) == 1 else tuple(written)

    def _unwritten(self, shape: Tree) -> Tree:
        if not isinstance(shape, Tensor):
            return shape
        out = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)
        if not shape.is_floating_point():
            return out.zero_()
        if shape.numel() <= SMALL:
            return out.copy_(self._noise[: shape.numel()].view(shape.shape))
        self._hollow.add(out.untyped_storage()._cdata)
        return out


class _FusedWithMask(TorchFunctionMode):
    """Attention with a mask by the kernel that CUDA has for it; the CPU's own falls back to (B, heads, N, N) logits."""

    def __torch_function__(
        self, func: Tree, types: Sequence[type], args: tuple[Tree, ...] = (), kwargs: dict[str, Tree] | None = None
    ) -> Tree:
        kwargs = kwargs or {}
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        mask = given.get("attn_mask")
        if func is not F.scaled_dot_product_attention or mask is None:
            return func(*args, **kwargs)
        query, key, value = given["query"], given["key"], given["value"]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        mask = mask.to(dtype).expand(*query.shape[:-1], key.shape[-2])
        query, key, value = (x.to(dtype) for x in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(query, key, value, mask, torch.is_grad_enabled())[0]


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within `DryRun`: attention's code, memory and operations of a GPU."""
    with fused_everywhere(), _FusedWithMask():
        yield


def _large(leaf: Tree) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > SMALL


def _shape_of(leaf: Tree) -> Tree:
    if isinstance(leaf, Tensor):
        return leaf.to("meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _described(leaf: Tree) -> str:
    return f"{tuple(leaf.shape)}{leaf.stride()}{leaf.dtype}" if isinstance(leaf, Tensor) else str(leaf)
