"""Features and labels of all patches of a split, computed once and mapped (`tasks/chunk_store.py`).

The key of a file holds the weights, the encoder's windows and positions, the blocks, the size, the precision, the
contents of images and masks, the code that makes pixels and patch tokens, and the versions of timm and torch: a file of
anything else is never taken. Runs that lie beside each other share files, so `--protocol knn,logreg,in_context` takes
one pass of the encoder. With `--layers` that pass stores each of the layers in files of its own
(`probe.stored_layers`), which are those that a run of this layer alone would make.
"""

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.data.identity import combine
from mae_transfer.engine.evaluation import evaluating
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.data import Batch
from mae_transfer.tasks.ade20k.patch_data import PatchImages, cut, joined, stretch
from mae_transfer.tasks.ade20k.patch_tokens import PatchTokens, patch_maps
from mae_transfer.tasks.ade20k.protocols.config import PatchesConfig
from mae_transfer.tasks.chunk_store import ChunkStore, Kind, Stored, chunk_of

if TYPE_CHECKING:
    from mae_transfer.run_folder.folder import RunFolder

CHUNK_BYTES = 2**28
"""Features in a file, about, and in memory while it is made or read."""


@dataclass(frozen=True)
class PatchSet:
    """The patches of some images, in the place of a data set of pairs.

    Batches are {"features": float32 (B, h * w, C), "labels": int16 (H, W) each, "sizes", "file_names", "skipped"}.
    """

    images: PatchImages
    features: Stored
    """(n, h * w, C)."""
    labels: Stored
    """(n, h * w, p * p), the pixels of each patch."""
    places: np.ndarray
    """Of the images in the files."""
    patch: int

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, samples: list[int]) -> Batch:
        places, size = self.places[samples], self.images.stretched
        labels = joined(torch.from_numpy(self.labels.rows(places)), size, self.patch)
        return {
            "features": torch.from_numpy(self.features.rows(places)).float(),
            "labels": list(labels),
            "sizes": [size] * len(places),
            "file_names": [self.images.file_name(int(place)) for place in places],
            "skipped": [],
        }

    def report_skipped(self, batch: Batch, /) -> None:
        """Nothing to do: `images.skipped` is complete from the start."""

    def of(self, names: set[str], *, without: bool = False) -> "PatchSet":
        """Only the images of these names, or only the others."""
        kept = [self.images.file_name(int(place)) in names for place in self.places]
        return replace(self, places=self.places[np.array(kept, dtype=bool) != without])

    def blocks(self) -> Iterator[np.ndarray]:
        """The places in pieces of a chunk at most."""
        yield from np.split(self.places, range(self.features.chunk, len(self.places), self.features.chunk))

    def vectors(self, places: np.ndarray) -> Tensor:
        """Features float32 (n, C) of all patches of these images."""
        return torch.from_numpy(self.features.rows(places)).float().flatten(0, 1)

    def pixels(self, places: np.ndarray) -> Tensor:
        """Labels int16 (n, p * p) of all patches of these images."""
        return torch.from_numpy(self.labels.rows(places)).flatten(0, 1)


class Standardise:
    """Features less their mean, over their standard deviation: scikit-learn's StandardScaler of all patches of a set.

    A feature that never changes keeps its scale.
    """

    def __init__(self, patches: PatchSet | None) -> None:
        self.mean: Tensor | None = None
        if patches is None:  # features stay as they are
            return
        count = len(patches) * patches.features.chunks[0].shape[1]
        self.mean = sum(patches.vectors(places).double().sum(0) for places in patches.blocks()) / count
        squares = [(patches.vectors(places).double() - self.mean).square().sum(0) for places in patches.blocks()]
        deviation = (sum(squares) / count).sqrt()
        self.deviation = torch.where(deviation > 0, deviation, 1.0)

    def __call__(self, features: Tensor) -> Tensor:
        """float32 (..., C), on any device."""
        return features if self.mean is None else (features - self.mean.to(features)) / self.deviation.to(features)


def store_patches(
    tokens: PatchTokens,
    config: PatchesConfig,
    splits: "dict[str, PatchImages]",
    fabric: Fabric,
    folder: "RunFolder | None",
    progress: bool,
) -> dict[str, PatchSet]:
    """The patches of each split; only what the files lack is computed. Called on every rank.

    Raises:
        UserError: the files cannot be written, no pair can be decoded, or features are not finite.
    """
    batch = config.eval.batch_size
    store = ChunkStore(fabric, folder, batch_size=batch, workers=config.data.workers, progress=progress, beside=True)
    encoder, patch = tokens.encoder, tokens.encoder.patch_size
    fabric.to_device(encoder)
    further = [(block,) for block in config.probe.stored_layers]
    layers = tuple(dict.fromkeys([tokens.blocks, *further]))
    read = PatchTokens(encoder, tuple(sorted({block for blocks in layers for block in blocks})))
    about, of_labels = _describe(config, tokens), _describe_labels(config, patch)
    found, dtype = {}, torch.float32 if config.train.precision == "fp32" else torch.float16

    with evaluating(encoder):
        for split, images in splits.items():
            height, width = images.stretched
            count, channels = height // patch * (width // patch), encoder.embed_dim * len(tokens.blocks)
            chunk = chunk_of(max(CHUNK_BYTES // (count * channels * dtype.itemsize), 1), batch)
            files = images.pairs.identity(images.indices)
            stems = [f"{split}-{combine([*about, blocks], files)[:12]}-{chunk}" for blocks in layers]
            labels = f"{split}-labels-{combine(of_labels, files)[:12]}-{chunk}"
            kinds = [Kind((count, encoder.embed_dim * len(blocks)), dtype) for blocks in layers]
            own = {stems[0]: kinds[0], labels: Kind((count, patch * patch), torch.int16)}
            also = dict(zip(stems[1:], kinds[1:], strict=True))

            def compute(batch: Batch, stems: Sequence[str] = stems, labels: str = labels) -> dict[str, Tensor]:
                maps = dict(zip(read.blocks, read(encoder.normalise(batch["images"])), strict=True))
                of_layers = [torch.cat([maps[block] for block in blocks], dim=1) for blocks in layers]
                rows = [each.flatten(2).transpose(1, 2) for each in of_layers]
                return dict(zip(stems, rows, strict=True)) | {labels: cut(torch.stack(batch["labels"]), patch)}

            arrays = store.stored(f"features of {split}", images, chunk, own, compute, also)
            features = arrays[stems[0]]
            places = features.decoded()
            if not len(places):
                raise UserError(f"{images.folder}: none of {len(images)} pairs can be decoded; fetch them again")
            missing = np.setdiff1d(np.arange(len(images)), places)
            images.skipped = Counter(images.file_name(int(place)) for place in missing)
            found[split] = PatchSet(images, features, arrays[labels], places, patch)
    return found


def _describe(config: PatchesConfig, tokens: PatchTokens) -> list[object]:
    encoder, backbone = tokens.encoder, config.backbone
    weights = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    return [
        fingerprint(weights),
        [encoder.name, encoder.num_heads, encoder.spec.eps, encoder.mean, encoder.std, encoder.norm is None],
        [config.data.image_size, config.train.precision],
        [backbone.window_size, backbone.num_global_blocks, backbone.window_rope, encoder.spec.pos_resampling],
        *([encoder.spec.window_padding] if encoder.spec.window_padding else []),
        [timm.__version__, torch.__version__],
        _code_of(stretch, PatchTokens, patch_maps, PatchImages),
    ]


def _describe_labels(config: PatchesConfig, patch: int) -> list[object]:
    masks = config.data.num_classes, config.data.reduce_zero_label, config.data.ignore_value
    return [masks, config.data.image_size, patch, _code_of(stretch, cut, PatchImages)]


def _code_of(*parts: Callable[..., object]) -> str:
    return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()
