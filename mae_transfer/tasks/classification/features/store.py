"""Frozen features kept in the run folder: computed once, then trained on and evaluated in the place of the images.

Each split lies in chunks of images (`tasks/chunk_store.py`), `features/<split>-<key>-<chunk>-<number>.npy`. The key is
a hash of everything that the values depend on. With `--layers` one pass stores each of the layers, in files that are
those of a run of this layer alone, and the runs of a series find them in the first one's folder.

fp32 runs store float32. Runs of mixed precision store float16: after a LayerNorm values are far from float16's limits,
and float16's 11 bits are finer than the 8 bits of a bf16 matrix product (fp16's are the same). bfloat16 files would
round again where the computation had rounded already.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.data.identity import combine, identify
from mae_transfer.data.names import Names
from mae_transfer.engine.evaluation import evaluating
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.tasks.chunk_store import ChunkStore, Kind, Stored, chunk_of
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch, ClassificationEval, ClassificationTrain
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.transforms import EvalTransform

if TYPE_CHECKING:
    from mae_transfer.run_folder.folder import RunFolder

CHUNK = 4096
"""Images in a file, about: a whole number of batches."""


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

    def pieces(self, count: int) -> Iterator[Tensor]:
        """Features (m, blocks, parts, C) of every image that could be decoded, of `count` images at once."""
        for first in range(0, len(self.decoded), count):
            yield torch.from_numpy(self.stored.rows(self.decoded[first : first + count]))

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
        self.frozen, self.config = frozen, config
        self.shared = config.probe.layers is not None
        self.store = ChunkStore(
            fabric,
            folder,
            batch_size=config.eval.batch_size,
            workers=config.data.workers,
            progress=progress,
            beside=self.shared,
        )
        fabric.to_device(frozen.encoder)
        further = [(block,) for block in config.probe.stored_layers]
        self.layers = tuple(dict.fromkeys([frozen.blocks, *further]))
        self._about = [_describe(config, frozen, blocks) for blocks in self.layers]

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

    def of_val(self, images: ClassificationEval) -> FeatureSet | ClassificationEval:
        """Features where `probe.layers` names blocks, so that runs of other blocks need no pass; else the images."""
        return self.features_of("val", images) if self.shared else images

    def _stored(self, split: str, images: ClassificationEval) -> Stored:
        frozen, layers = self.frozen, self.layers
        chunk = chunk_of(CHUNK, self.config.eval.batch_size)
        stems = [f"{split}-{key}-{chunk}" for key in _keys(self._about, images)]
        dtype = torch.float32 if self.config.train.precision == "fp32" else torch.float16
        kinds = [Kind((len(blocks), len(frozen.parts), frozen.encoder.embed_dim), dtype) for blocks in layers]
        read = frozen
        if len(layers) > 1:
            read = frozen.of_layers(tuple(sorted({block for blocks in layers for block in blocks})))

        def compute(batch: Batch) -> dict[str, Tensor]:
            features = read(batch)
            by_block = dict(zip(read.blocks, features.unbind(1), strict=True))
            of_layers = [torch.stack([by_block[block] for block in blocks], dim=1) for blocks in layers]
            return dict(zip(stems, of_layers, strict=True))

        with evaluating(frozen.encoder):
            also = dict(zip(stems[1:], kinds[1:], strict=True))
            found = self.store.stored(f"features of {split}", images, chunk, {stems[0]: kinds[0]}, compute, also)
        return found[stems[0]]


def _describe(config: ClassificationConfig, frozen: FrozenFeatures, blocks: tuple[int, ...]) -> str:
    encoder = frozen.encoder
    weights = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    about: list[object] = [
        fingerprint(weights),
        [encoder.name, encoder.num_heads, encoder.spec.eps, encoder.mean, encoder.std, encoder.norm is None],
        [blocks, frozen.parts],
        [config.data.image_size, config.eval.crop_pct, config.train.precision],
    ]
    # only where they are not what all encoders of earlier versions had: features of those are still found
    backbone = config.backbone
    about += [encoder.spec.pos_resampling] if encoder.spec.pos_resampling != "bicubic" else []
    about += [encoder.spec.window_padding] if encoder.spec.window_padding else []
    about += [[backbone.window_size, backbone.num_global_blocks, backbone.window_rope]] if backbone.window_size else []
    if config.probe.layers is not None:  # files that runs share are those of one version
        code = "".join(map(inspect.getsource, (EvalTransform, FrozenFeatures, ClassificationEval)))
        about += [timm.__version__, torch.__version__, hashlib.sha256(code.encode()).hexdigest()]
    return json.dumps(about)


def _keys(about: Sequence[str], images: ClassificationEval) -> list[str]:
    """Of the encoder's blocks and of the images' contents."""
    files = identify(images.folder, Names(images.file_name(i) for i in range(len(images))))
    return [combine(each, files)[:12] for each in about]
