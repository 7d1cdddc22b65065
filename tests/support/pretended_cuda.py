"""Tensors that say they are on a GPU and hold values of the CPU: a GPU's rules about devices, where there is none.

Real code runs on them, forward, backward and optimizer, and with it every branch that asks for a device:

- a GPU tensor meets no CPU tensor but a single number (`RuntimeError`, as CUDA has it), and is no numpy array;
- autocast is CUDA's, and so is the choice of dtypes;
- a sum by index in half precision, which loses most of what it adds, is refused as well;
- each wait for the device is noted with its place: a copy from it, a number read from it, an operation whose result has
  a size that depends on values, a copy to it that is not `non_blocking`, a boolean mask as an index.

PyTorch's own core takes these tensors for meta tensors, because it asks a driver for the streams of any other device.
So CUDA's autocast is applied here, by its lists of operations (`aten/src/ATen/autocast_mode.h`), and attention is
written out. Speed, memory and the order of sums are the CPU's.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mae_transfer.engine.distributed import _precision

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(__file__).resolve().parents[2] / "mae_transfer")
WAITS = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2"),
    *("unique_dim", "unique_consecutive", "nms"),
)
"""Operations that give the host a number, or a tensor whose size depends on values."""
HALF = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu", "addmm"),
    *("addmv", "addr", "matmul", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm"),
    *("scaled_dot_product_attention",),
}
"""Operations that autocast runs in half precision, all their tensors cast to it; `__matmul__` is `matmul`."""
SINGLE = {
    *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow", "softplus", "layer_norm"),
    *("group_norm", "norm", "vector_norm", "normalize", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "mse_loss"),
    *("cross_entropy", "binary_cross_entropy_with_logits", "logsumexp", "softmax", "log_softmax", "cumsum", "cumprod"),
    *("prod", "sum", "cosine_similarity", "cdist", "interpolate", "roi_align", "nms"),
}
"""Operations that it runs in float32."""
ADDING = ("index_add", "index_add_", "scatter_add", "scatter_add_", "embedding_dense_backward", "index_reduce_")
"""Operations that add any number of values to one, in the dtype of their tensor, one after the other."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class CudaTensor(torch.Tensor):
    """Its values are those of `inner`, a CPU tensor."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda, is_cpu, is_meta = True, False, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "CudaTensor":
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            *(cls, inner.size()),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)  # a checkpoint holds values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a tensor of a pretended GPU is used outside of it")


class PretendedCuda(TorchDispatchMode):
    """Inside, `cuda` is the pretended GPU; `waits` are the places of the package that waited for it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def wait(self, kind: str) -> None:
        frames = traceback.extract_stack()
        own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
        where = own[-1] if own else frames[-4]
        self.waits.append(f"{kind} at {where.filename.removeprefix(PACKAGE)}:{where.lineno} {where.name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, CudaTensor)]
        here = [x for x in tensors if not isinstance(x, CudaTensor)]
        device = kwargs.get("device")
        target = None if device is None else "cpu" if torch.device(device).type == "cpu" else "cuda"
        if there:
            self._check(name, args, here)
            if name in ADDING and there[0].dtype in (torch.bfloat16, torch.float16):
                raise RuntimeError(f"{name} adds in {there[0].dtype}, whose sums stop growing; add in float32")
            if name in WAITS:
                self.wait(name)
        crosses = bool(there) if target == "cpu" else target == "cuda" and bool(here)
        if name == "_to_copy" and crosses and (target == "cpu" or not kwargs.get("non_blocking")):
            self.wait(f"copy to {target}")
        elif name == "copy_" and there and here and not (args[0] is there[0] and kwargs.get("non_blocking")):
            self.wait("copy_")

        inner_args, inner_kwargs = tree_map(_values, (args, kwargs))
        if target is not None:
            inner_kwargs["device"] = torch.device("cpu")
        result = func(*inner_args, **inner_kwargs)
        if name == "_to_copy" and result is inner_args[0]:
            result = result.clone()
        if name.endswith("_") and not name.startswith("_foreach") and isinstance(args[0], CudaTensor):
            assert args[0].shape == args[0].inner.shape, f"{name} changes a tensor's shape in place"
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        on_gpu = target == "cuda" if target is not None else bool(there)
        return tree_map(lambda x: CudaTensor(x) if isinstance(x, Tensor) else x, result) if on_gpu else result

    def _check(self, name: str, args: Any, here: list[Tensor]) -> None:
        """RuntimeError for operands on the CPU; indices may be there, and are copied."""
        mixed = [x for x in here if x.ndim > 0]
        if name in INDEXING:
            indices = [x for x in args[1] if isinstance(x, Tensor)]
            fills = len(args) > 2 and len(indices) == 1 and args[2].numel() == 1  # `x[mask] = number`
            if (not fills and any(x.dtype in (torch.bool, torch.uint8) for x in indices)) or any(
                x is y for x in mixed for y in indices
            ):
                self.wait("index by a mask or from the CPU")
            mixed = [x for x in mixed if not any(x is y for y in indices)]
        if mixed and name not in ("_to_copy", "copy_"):
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the cpu, {[tuple(x.shape) for x in mixed]}")


def _values(x: Any) -> Any:
    return x.inner if isinstance(x, CudaTensor) else x


class _Functions(TorchFunctionMode):
    """What does not come to `PretendedCuda` as an operation."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.to:  # the core would ask the driver for the current device
            args = tuple(CUDA if isinstance(x, str | torch.device) and str(x) == "cuda" else x for x in args)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(getattr(func, "__name__", ""), args, kwargs)
        if args and isinstance(args[0], CudaTensor):
            if func is nn.functional.scaled_dot_product_attention:
                return _attention(*args, **kwargs)
            if func is Tensor.tolist:
                self.cuda.wait("tolist")
                return args[0].inner.tolist()
            if func is Tensor.numpy or func is Tensor.__array__:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            del kwargs["device"]
            return func(*args, **kwargs).to(CUDA)
        return func(*args, **kwargs)


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    name = name.split(".")[-1].strip("_") if "." not in name else name.split(".")[0]
    if name not in HALF | SINGLE:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if name in HALF else torch.float32

    def cast(x: Any) -> Any:
        known = isinstance(x, CudaTensor) and x.is_floating_point() and x.dtype is not torch.float64
        return x.to(dtype) if known else x

    return tree_map(cast, (args, kwargs))


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """As the fused kernels: one dtype, logits and probabilities in float32."""
    assert not options.get("is_causal")
    assert not options.get("dropout_p")
    assert q.dtype == k.dtype == v.dtype
    scale = options.get("scale") or q.shape[-1] ** -0.5
    logits = q.float() @ k.float().transpose(-2, -1) * scale
    if attn_mask is not None:
        assert attn_mask.dtype == q.dtype
        logits = logits + attn_mask
    return (logits.softmax(-1) @ v.float()).to(q.dtype)


@contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """Inside, `.to("cuda")` gives `CudaTensor`."""
    mode = PretendedCuda()
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    stand_ins = {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed_all": nothing,
        "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (2**34, 2**34),
        "get_device_name": lambda *_: "pretended",
    }
    graphs = [name for name in dir(torch.optim.Optimizer) if name.endswith("_graph_capture_health_check")]
    with (
        patch.multiple(torch.cuda, **stand_ins),
        patch.multiple(torch.optim.Optimizer, **dict.fromkeys(graphs, nothing)),
        mode,
        _Functions(mode),
    ):
        yield mode


def to_cuda(model: nn.Module) -> nn.Module:
    """Move parameters and buffers in place, as `nn.Module.to` does, which cannot put one type for another."""
    moved: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if isinstance(tensor, CudaTensor):
            return tensor
        if id(tensor) not in moved:
            there = CudaTensor(tensor.detach().clone())
            is_parameter = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
        return moved[id(tensor)]

    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in list(own.items()):
                if tensor is not None:
                    own[name] = move(tensor)  # type: ignore[assignment]
    return model


class CudaFabric(Fabric):
    """A Fabric of one process whose device is the pretended GPU."""

    def __init__(self, precision: str) -> None:
        super().__init__(accelerator="cpu", devices=1, plugins=[_precision(precision, "cuda"), LightningEnvironment()])
        self.launch()

    @property
    def device(self) -> torch.device:
        return CUDA

    def to_device(self, obj: Any) -> Any:
        return to_cuda(obj) if isinstance(obj, nn.Module) else super().to_device(obj)
