"""Frozen features kept in the run folder: computed once, then trained on and evaluated in the place of the images.

Each split lies in chunks of images, `features/<split>-<key>-<chunk>.npy`, written whole or not at all. Chunk c is
computed by rank c % ranks, and every rank maps all of them. A resume, with any number of ranks, computes only what is
missing. The key is a hash of everything that the values depend on. A row of NaN is an image that could not be decoded.

fp32 runs store float32. Runs of mixed precision store float16: after a LayerNorm values are far from float16's limits,
and float16's 11 bits are finer than the 8 bits of a bf16 matrix product (fp16's are the same). bfloat16 files would
round again where the computation had rounded already.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.data.identity import combine, identify
from mae_transfer.data.names import Names
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch, ClassificationEval, ClassificationTrain
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.transforms import EvalTransform

if TYPE_CHECKING:
    from mae_transfer.run_folder.folder import RunFolder

CHUNK = 4096
"""Images in a file, about: a whole number of batches."""


@dataclass(frozen=True)
class Stored:
    """The features of a split: chunks (n, blocks, parts, C). Each has `chunk` images, the last one may have fewer."""

    chunks: list[np.ndarray]
    chunk: int

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices), blocks, parts, C), in the type of the files."""
        found = np.empty((len(indices), *self.chunks[0].shape[1:]), self.chunks[0].dtype)
        number, place = np.divmod(indices, self.chunk)
        for i in np.unique(number):
            here = number == i
            found[here] = self.chunks[i][place[here]]
        return found

    def decoded(self) -> np.ndarray:
        """Indices of the images that could be decoded."""
        return np.flatnonzero(np.concatenate([~np.isnan(chunk[:, 0, 0, 0]) for chunk in self.chunks]))


class FeatureSet:
    """Features and labels in the place of a data set of images, for training by (epoch, index) and for evaluation.

    Batches are {"features": (B, blocks, parts, C), "labels": int64 (B,), "names", "skipped"}. In training the next
    image stands in for one that could not be decoded; evaluation leaves it out. Data sets of images do the same.
    `in_bank`: row of a bank of features at which this set begins. Batches then hold the bank's rows as "in_bank" (B,).
    """

    in_bank: int | None = None

    def __init__(self, images: ClassificationTrain | ClassificationEval, stored: Stored) -> None:
        self.images, self.stored = images, stored
        self.decoded = stored.decoded()
        if not len(self.decoded):
            raise UserError(f"{images.listing.root}: none of {len(images)} images can be decoded; fetch them again")
        everything = np.arange(len(images))
        if isinstance(images, ClassificationTrain):
            self.rows = self.decoded[np.searchsorted(self.decoded, everything) % len(self.decoded)]
        else:
            self.rows = self.decoded
        self.labels = images.labels[self.rows]
        images.skipped = Counter(images.file_name(int(i)) for i in np.setdiff1d(everything, self.decoded))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey | int) -> int:
        return key if isinstance(key, int) else key[1]

    def collate(self, samples: list[int]) -> Batch:
        rows = self.rows[samples]
        batch: Batch = {
            "features": torch.from_numpy(self.stored.rows(rows)),
            "labels": torch.from_numpy(self.labels[samples]),
            "names": [self.images.file_name(int(row)) for row in rows],
            "skipped": [],
        }
        if self.in_bank is not None:
            batch["in_bank"] = torch.tensor(samples) + self.in_bank
        return batch

    def report_skipped(self, batch: Batch) -> None:
        """Nothing to do: `images.skipped` is complete from the start."""

    def whole(self) -> tuple[Tensor, Tensor]:
        """Features (n, blocks, parts, C) and labels (n,) of every image that could be decoded."""
        return torch.from_numpy(self.stored.rows(self.decoded)), torch.from_numpy(self.images.labels[self.decoded])


class FeatureStore:
    """The features of one encoder in the `features/` of a run folder. The encoder is moved to the device.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(
        self,
        frozen: FrozenFeatures,
        config: ClassificationConfig,
        fabric: Fabric,
        folder: "RunFolder | None",
        progress: bool,
    ) -> None:
        self.frozen, self.config, self.fabric, self.progress = frozen, config, fabric, progress
        self.path = Path(on_rank_zero(fabric, lambda: str(_make(folder.path / "features")) if folder else ""))
        fabric.to_device(frozen.encoder)
        self._about = _describe(config, frozen)

    def features_of(self, split: str, images: ClassificationTrain | ClassificationEval) -> FeatureSet:
        """The features of a split, named in its files; only what the run folder lacks is computed.

        Training images are read as in evaluation, without augmentation. Called on every rank.

        Raises:
            UserError: the files cannot be written, no image can be decoded, or features are not finite.
        """
        centre = EvalTransform(self.config)
        plain = ClassificationEval(images.listing, images.indices, centre, on_bad_image=images.on_bad_image)
        if isinstance(images, ClassificationEval):
            plain = images
        return FeatureSet(images, self._stored(split, plain))

    def _stored(self, split: str, images: ClassificationEval) -> Stored:
        batch = self.config.eval.batch_size
        chunk = -(-CHUNK // batch) * batch
        stem = f"{split}-{_key(self._about, images)}-{chunk}"
        files = [self.path / f"{stem}-{i:05d}.npy" for i in range(-(-len(images) // chunk))]
        there = on_rank_zero(self.fabric, lambda: [file.exists() for file in files])
        missing = [i for i in range(len(files)) if not there[i]]
        mine = missing[self.fabric.global_rank :: self.fabric.world_size]
        spans = {files[i]: range(i * chunk, min((i + 1) * chunk, len(images))) for i in mine}
        self._compute(split, images, spans)
        self.fabric.barrier()
        return Stored([_map(file) for file in files], chunk)

    def _compute(self, split: str, images: ClassificationEval, spans: dict[Path, range]) -> None:
        """Write each file: the features of the images of its span."""
        batches = evaluation_batches(
            _Marked(images),
            batch_size=self.config.eval.batch_size,  # divides a chunk, so that no batch reaches into two
            workers=self.config.data.workers,
            fabric=self.fabric,
            progress=self.progress,
            title=f"features of {split}",
            mine=[index for span in spans.values() for index in span],
        )
        frozen = self.frozen
        kind = torch.float32 if self.config.train.precision == "fp32" else torch.float16
        shape = (len(frozen.blocks), len(frozen.parts), frozen.encoder.embed_dim)
        with evaluating(frozen.encoder):
            for file, span in spans.items():
                rows = torch.full((len(span), *shape), torch.nan, dtype=kind)
                done = 0
                while done < len(span):
                    batch = next(batches)
                    images.report_skipped(batch)
                    place = done + batch["decoded"].nonzero()[:, 0]
                    done += len(batch["decoded"])
                    if not len(place):
                        continue
                    with self.fabric.autocast():
                        found = frozen(self.fabric.to_device(batch)).to(kind).cpu()
                    if not found.isfinite().all():
                        raise UserError(
                            f"features of {batch['names'][0]} or its neighbours are not finite; set "
                            "train.precision=fp32 or check the weights"
                        )
                    rows[place] = found
                with atomic_write(file) as target:
                    np.save(target, rows.numpy())
            next(batches, None)  # ends the loader and fills the bar


def _make(path: Path) -> Path:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; free space or choose another --output") from error
    return path


def _map(file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {file} ({error}); all nodes must share the run folder, and a damaged file is to be deleted"
        ) from None
    return array


class _Marked:
    """The data set, its batches with "decoded" (B,): which of the images asked for are in them."""

    def __init__(self, images: ClassificationEval) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.images[index]

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        decoded = torch.tensor([sample["image"] is not None for sample in samples])
        return self.images.collate(samples) | {"decoded": decoded}


def _describe(config: ClassificationConfig, frozen: FrozenFeatures) -> str:
    encoder = frozen.encoder
    weights = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    return json.dumps(
        [
            fingerprint(weights),
            [encoder.name, encoder.num_heads, encoder.spec.eps, encoder.mean, encoder.std, encoder.norm is None],
            [frozen.blocks, frozen.parts],
            [config.data.image_size, config.eval.crop_pct, config.train.precision],
        ]
    )


def _key(about: str, images: ClassificationEval) -> str:
    """Of the encoder and of the images' contents."""
    names = Names(images.file_name(i) for i in range(len(images)))
    return combine(about, identify(images.folder, names))[:12]
