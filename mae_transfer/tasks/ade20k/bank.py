"""Nearest patches among those of the training images, found piece by piece: memory does not grow with the set."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.tasks.ade20k.patch_features import PatchSet, Standardise
from mae_transfer.tasks.ade20k.protocols.config import Metric
from mae_transfer.tasks.ade20k.transforms import IGNORE

KEPT_BYTES = 2**31
"""Features of a bank that stay in memory between two searches; a larger bank is read again each time."""


class Bank:
    """The patches of training images, numbered through.

    Args:
        sets: whose patches.
        scale: what features go through.
        chosen: for each set which patches are in the bank, bool (images * h * w); None is every patch whose commonest
            label is a class (CAPI).
    """

    def __init__(
        self, sets: Sequence[PatchSet], scale: Standardise, chosen: Sequence[np.ndarray] | None = None
    ) -> None:
        self.sets, self.scale = sets, scale
        self.chosen = [labelled(each) for each in sets] if chosen is None else list(chosen)
        self._memory: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return sum(int(each.sum()) for each in self.chosen)

    def nearest(self, queries: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
        """The k patches nearest to scaled features (q, C), the nearest first; all of a smaller bank.

        Returns:
            Cosine similarities (q, k), or for `l2` what is the higher the nearer; and numbers int64 (q, k).
        """
        queries = F.normalize(queries, dim=1) if metric == "cosine" else queries
        best = queries.new_empty(len(queries), 0)
        numbers = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for features, ids in self._pieces():
            features, ids = features.to(queries.device), ids.to(queries.device)
            if metric == "cosine":
                near = queries @ F.normalize(features, dim=1).T
            else:  # |a - b|^2 without |a|^2, which is the same for all patches
                near = 2 * (queries @ features.T) - features.square().sum(1)
            top = near.topk(min(k, len(ids)), dim=1)
            best, numbers = torch.cat([best, top.values], 1), torch.cat([numbers, ids[top.indices]], 1)
            top = best.topk(min(k, best.shape[1]), dim=1)
            best, numbers = top.values, numbers.gather(1, top.indices)
        return best, numbers

    def labels(self, numbers: Tensor) -> Tensor:
        """The pixels int16 (..., p * p) of patches of the bank."""
        flat, first = numbers.flatten().cpu().numpy(), 0
        found = np.empty((len(flat), self.sets[0].patch ** 2), np.int16)
        for each, chosen in zip(self.sets, self.chosen, strict=True):
            here = (flat >= first) & (flat < first + len(chosen))
            if here.any():
                image, patch = np.divmod(flat[here] - first, len(chosen) // len(each))
                images, back = np.unique(image, return_inverse=True)
                found[here] = each.labels.rows(each.places[images])[back, patch]
            first += len(chosen)
        return torch.from_numpy(found).to(numbers.device).view(*numbers.shape, -1)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled features (n, C) and numbers (n,) of the bank's patches, a piece of the files at a time."""
        if self._memory is not None:
            yield from self._memory
            return
        memory, size, first = list[tuple[Tensor, Tensor]](), 0, 0
        for each, chosen in zip(self.sets, self.chosen, strict=True):
            for places in each.blocks():
                features = each.vectors(places)
                (here,) = np.nonzero(chosen[: len(features)])
                chosen = chosen[len(features) :]
                piece = self.scale(features[here]), torch.from_numpy(first + here)
                first += len(features)
                if not len(here):
                    continue
                size += piece[0].numel() * piece[0].element_size()
                if size <= KEPT_BYTES:
                    memory.append(piece)
                yield piece
        if size <= KEPT_BYTES:
            self._memory = memory


def labelled(patches: PatchSet) -> np.ndarray:
    """Which patches have a class as their commonest label, bool (images * h * w)."""
    found: np.ndarray = np.concatenate([modes(patches.pixels(places)).numpy() != IGNORE for places in patches.blocks()])
    return found


def modes(pixels: Tensor) -> Tensor:
    """The commonest label of each patch, (n, p * p) -> (n,); of equals the lowest, IGNORE being below the classes."""
    return pixels.mode(dim=1).values


def votes(pixels: Tensor, num_classes: int) -> Tensor:
    """The commonest class of each pixel over its neighbours: int16 (q, k, p * p) -> int16 (q, p * p).

    Of equals the lowest. IGNORE has no vote; a pixel that no neighbour labels gets the commonest class of them all.
    """
    counts = torch.zeros(len(pixels), pixels.shape[2], num_classes + 1, dtype=torch.int32, device=pixels.device)
    ones = torch.ones(1, 1, 1, dtype=torch.int32, device=pixels.device)
    for neighbour in pixels.unbind(1):
        labels = neighbour.long()[..., None]
        counts.scatter_add_(2, torch.where(labels == IGNORE, num_classes, labels), ones.expand_as(labels))
    counts = counts[..., :num_classes]
    anywhere = counts.sum(1).argmax(1)[:, None]
    return torch.where(counts.sum(2) > 0, counts.argmax(2), anywhere).to(torch.int16)
