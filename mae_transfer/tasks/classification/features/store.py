"""Frozen features: what a probe reads from the encoder, computed on the fly, or once and kept in the run folder.

A feature is float32 (blocks, parts, C): for each of the last `blocks` blocks, ascending, the class token and/or the
average of the patch tokens, both after the final norm.

In the run folder each split lies in chunks of images, `features/<split>-<key>-<chunk>.npy`, written whole or not at
all: chunk c is computed by rank c % ranks, every rank maps all of them, and a resume computes only those that are not
there, with any number of ranks. The key is a hash of everything that the values depend on. A row of NaN is an image
that could not be decoded. float32 is kept as it is. What mixed precision computed is kept as float16: after a
LayerNorm it is far from float16's limits, and float16's 11 bits are finer than the 8 bits of a bf16 matrix product
(fp16's are the same); bfloat16 files would round again where the computation had rounded already.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch, ClassificationEval, ClassificationTrain
from mae_transfer.tasks.classification.protocols.config import Pooling
from mae_transfer.tasks.classification.transforms import EvalTransform, normalise

if TYPE_CHECKING:
    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.tasks.classification.task import ClassificationTask

CHUNK = 4096
"""Images in a file, about: a whole number of batches."""


class FrozenFeatures:
    """The frozen encoder as a function: a batch -> features float32 (B, blocks, parts, C).

    No module, so that the encoder is registered once, as the attribute `encoder` of the model. A batch holds "images"
    uint8 (B, 3, H, W), or "features" that were computed before. `poolings`: what is read of them; an encoder without
    class token gives the average where the class token is asked for, and its load report says so. UserError when the
    encoder has fewer blocks.
    """

    def __init__(self, encoder: "ViTEncoder", blocks: int, poolings: Sequence[Pooling]) -> None:
        if blocks > encoder.depth:
            raise UserError(f"probe.blocks: the last {blocks} blocks of {encoder.name}, which has {encoder.depth}")
        self.encoder = encoder
        encoder.freeze(0)
        self.has_class_token = encoder.vit.cls_token is not None
        if not self.has_class_token and set(poolings) != {"avg"}:
            encoder.load_report.warnings.append("no class token: the probe reads the average of the patch tokens")
        self.blocks = tuple(range(encoder.depth - blocks, encoder.depth))
        asked = {part for pooling in poolings for part in self.parts_of(pooling)}
        self.parts = tuple(part for part in ("cls", "avg") if part in asked)

    def parts_of(self, pooling: Pooling) -> tuple[str, ...]:
        """The parts of a feature that a pooling reads."""
        return tuple(pooling.split("+")) if self.has_class_token else ("avg",)

    def width(self, blocks: int, pooling: Pooling) -> int:
        """Length of what `select` gives."""
        parts = self.parts_of(pooling)
        return self.encoder.embed_dim * (blocks * len(parts) if len(parts) == 1 else blocks + 1)

    def select(self, features: Tensor, blocks: int, pooling: Pooling) -> Tensor:
        """(B, width): a part of the last `blocks` blocks side by side; of two parts the second of the last alone."""
        first, *rest = (features[:, -blocks:, self.parts.index(part)] for part in self.parts_of(pooling))
        return torch.cat([first.flatten(1), *(part[:, -1] for part in rest)], dim=1)

    @torch.no_grad()
    def tokens(self, batch: Batch) -> list[Tensor]:
        """The tokens (B, prefix + h * w, C) after each of the blocks and the final norm, float32."""
        mean, std = (
            torch.tensor(values, device=batch["images"].device).view(3, 1, 1)
            for values in (self.encoder.mean, self.encoder.std)
        )
        images = normalise(batch["images"], mean, std)
        norm = self.encoder.norm or nn.Identity()
        return [norm(x).float() for x in self.encoder.tokens(images, self.blocks)]

    def __call__(self, batch: Batch) -> Tensor:
        if "features" in batch:
            stored: Tensor = batch["features"]
            return stored.float()
        prefix = self.encoder.prefix
        of = {"cls": lambda x: x[:, 0], "avg": lambda x: x[:, prefix:].mean(1)}
        return torch.stack([torch.stack([of[part](x) for part in self.parts], 1) for x in self.tokens(batch)], 1)


@dataclass(frozen=True)
class Stored:
    """The features of a split: chunks (n, blocks, parts, C), all of `chunk` images but the last."""

    chunks: list[np.ndarray]
    chunk: int

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices), blocks, parts, C) in the type that they are stored in."""
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

    Batches are {"features": (B, blocks, parts, C), "labels": int64 (B,), "names", "skipped"}. An image that could not
    be decoded is stood in for by the next one in training and left out of evaluation, as in the data sets of images.
    `in_bank`: this set's images begin at this row of a bank of features; batches then hold their rows by that name.
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
        """Nothing to do: the data set of images knows from the start."""

    def whole(self) -> tuple[Tensor, Tensor]:
        """Features (n, blocks, parts, C) and labels (n,) of every image that could be decoded."""
        return torch.from_numpy(self.stored.rows(self.decoded)), torch.from_numpy(self.images.labels[self.decoded])


def store_features(
    task: "ClassificationTask",
    frozen: FrozenFeatures,
    fabric: Fabric,
    folder: "RunFolder | None",
    progress: bool,
    splits: Sequence[str] = ("train", "holdout", "eval"),
) -> dict[str, FeatureSet]:
    """Put features in the place of a task's `<split>_dataset`; those that its run folder holds are not computed again.

    Gives the new ones of the splits that the task has. The encoder must be frozen and its training images unaugmented.
    Leaves the encoder on the device. UserError where the folder cannot be written, or features are not finite.
    """
    path = Path(on_rank_zero(fabric, lambda: str(_make(folder.path / "features")) if folder else ""))
    fabric.to_device(frozen.encoder)
    about = _describe(task.config, frozen)
    replaced = {}
    for split in splits:
        images = getattr(task, f"{split}_dataset")
        if isinstance(images, ClassificationTrain):
            centre = EvalTransform(task.config)
            same = ClassificationEval(images.listing, images.indices, centre, on_bad_image=images.on_bad_image)
        elif isinstance(images, ClassificationEval):
            same = images
        else:  # no such split, or features already
            continue
        stored = _stored(same, frozen, fabric, task.config, path / f"{split}-{_key(about, same)}", split, progress)
        replaced[split] = FeatureSet(images, stored)
        setattr(task, f"{split}_dataset", replaced[split])
    return replaced


def _make(path: Path) -> Path:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; free space or choose another --output") from error
    return path


def _stored(
    images: ClassificationEval,
    frozen: FrozenFeatures,
    fabric: Fabric,
    config: ClassificationConfig,
    stem: Path,
    split: str,
    progress: bool,
) -> Stored:
    batch = config.eval.batch_size
    chunk = -(-CHUNK // batch) * batch
    files = [stem.with_name(f"{stem.name}-{chunk}-{i:05d}.npy") for i in range(-(-len(images) // chunk))]
    there = on_rank_zero(fabric, lambda: [file.exists() for file in files])
    mine = [i for i in range(len(files)) if not there[i]][fabric.global_rank :: fabric.world_size]
    _compute(images, frozen, fabric, config, [(files[i], i) for i in mine], chunk, split, progress)
    fabric.barrier()
    return Stored([_map(file) for file in files], chunk)


def _map(file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {file} ({error}); all nodes must share the run folder, and a damaged file is to be deleted"
        ) from None
    return array


def _compute(
    images: ClassificationEval,
    frozen: FrozenFeatures,
    fabric: Fabric,
    config: ClassificationConfig,
    wanted: list[tuple[Path, int]],
    chunk: int,
    split: str,
    progress: bool,
) -> None:
    """Write the chunks of the given files and numbers."""
    spans = [range(i * chunk, min((i + 1) * chunk, len(images))) for _, i in wanted]
    batches = evaluation_batches(
        _Marked(images),
        batch_size=config.eval.batch_size,  # divides a chunk, so that no batch reaches into two
        workers=config.data.workers,
        fabric=fabric,
        progress=progress,
        title=f"features of {split}",
        mine=[index for span in spans for index in span],
    )
    kind = torch.float32 if config.train.precision == "fp32" else torch.float16
    shape = (len(frozen.blocks), len(frozen.parts), frozen.encoder.embed_dim)
    with evaluating(frozen.encoder):
        for (file, _), span in zip(wanted, spans, strict=True):
            rows = torch.full((len(span), *shape), torch.nan, dtype=kind)
            done = 0
            while done < len(span):
                batch = next(batches)
                images.report_skipped(batch)
                place = done + batch["decoded"].nonzero()[:, 0]
                done += len(batch["decoded"])
                if not len(place):
                    continue
                with fabric.autocast():
                    found = frozen(fabric.to_device(batch)).to(kind).cpu()
                if not found.isfinite().all():
                    raise UserError(
                        f"features of {batch['names'][0]} or its neighbours are not finite; set train.precision=fp32 "
                        "or check the weights"
                    )
                rows[place] = found
            with atomic_write(file) as target:
                np.save(target, rows.numpy())
        next(batches, None)  # ends the loader and fills the bar


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
    digest = hashlib.sha256(about.encode())
    for i in range(len(images)):
        digest.update(images.file_name(i).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:12]
