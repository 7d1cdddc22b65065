"""Read a checkpoint of an mmengine training without the logs that it holds beside its tensors.

mmengine's `Runner.save_checkpoint` writes `message_hub`: buffers of losses as objects of its own class, with numpy
arrays and bound methods. They are code to a pickle reader, so they are refused elsewhere. Here nothing of them is made:
each name that they call is an empty class, and the entry is left out.

Source: mmengine `runner/runner.py`, `logging/history_buffer.py`.
"""

from pathlib import Path

import torch

BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = (
    *(BUFFER, "builtins.getattr", "numpy.ndarray", "numpy.dtype"),
    *(f"{module}.{name}" for module in _NUMPY for name in ("_reconstruct", "scalar")),
)


class _Nothing:
    """Takes whatever an object of the logs is made of, and keeps nothing."""

    def __new__(cls, *_: object) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read(path: Path) -> dict[str, object]:
    """The checkpoint without `message_hub`, on the CPU.

    Raises:
        pickle.UnpicklingError: it calls other names than mmengine's logs do.
    """
    names = [type(name.rpartition(".")[2], (_Nothing,), {"__module__": name.rpartition(".")[0]}) for name in _NAMES]
    with torch.serialization.safe_globals([*names]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in content.items() if key != "message_hub"}
