"""What loading an encoder did, for the log and the run record."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mae_transfer.backbones.registry import Spec


@dataclass
class LoadReport:
    """Account of one load.

    `fingerprint` is the sha256 of the encoder's tensors as the file has them, by timm's names and in float32: the same
    for the same weights in any layout or container; None for random weights. `resized` and `new`: parameter -> how.
    `ignored`: key in the file -> why. `settled`: what the file decided instead of the name. `shared_tables`: relative
    position tables of a run, for the encoder to take, and `final_norm` the norm after the blocks, by timm's names, for
    an encoder that asks for it. `beside`: the file's tensors that are ignored, by its own names, where they are asked
    for (a classifier's). `spec`: that of the name with what is settled. `trained_by`: the title of this
    project's pre-training that the file is from; `trained_as`: the id of its protocol, which other seeds share.
    """

    name: str
    source: str
    layout: str = ""
    fingerprint: str | None = None
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shared_tables: dict[str, Tensor] = field(default_factory=dict, repr=False)
    final_norm: dict[str, Tensor] = field(default_factory=dict, repr=False)
    beside: dict[str, Tensor] = field(default_factory=dict, repr=False)
    spec: Spec | None = field(default=None, repr=False)
    trained_by: str | None = None
    trained_as: str | None = None

    def lines(self) -> list[str]:
        """The account in lines to print; ignored tensors are grouped by reason."""
        if self.fingerprint is None:
            lines = [f"{self.name}: RANDOM weights, nothing loaded"]
        else:
            lines = [
                f"{self.name}: {len(self.loaded)} tensors loaded from {self.source} ({self.layout})",
                f"  sha256: {self.fingerprint}",
            ]
        lines += [f"  from the file: {what}" for what in self.settled]
        lines += [f"  warning: {what}" for what in self.warnings]
        lines += [f"  resized: {key}: {how}" for key, how in self.resized.items()]
        lines += [f"  new: {key}: {how}" for key, how in self.new.items()]
        for reason, count in Counter(self.ignored.values()).items():
            keys = [key for key, why in self.ignored.items() if why == reason]
            more = f" and {count - 2} more" if count > 2 else ""
            lines.append(f"  ignored: {', '.join(keys[:2])}{more}: {reason}")
        return lines


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over the tensors' names, shapes and float32 values, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.float().numpy()).data)
    return digest.hexdigest()
