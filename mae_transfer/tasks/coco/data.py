"""COCO images and targets as map-style datasets, and the check of where they lie.

Reading follows detectron2's `DatasetMapper` (how a file is decoded: `data/decode.py`): an image whose size is not that
of the annotation file is an error; training leaves out images without objects that are no crowd. All randomness of a
training sample comes from (seed, epoch, index), so workers and ranks do not matter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.dataset import ImageDataset, collate
from mae_transfer.data.decode import read_image
from mae_transfer.data.fractions import hash_fraction, mmdetection_fold
from mae_transfer.data.images import choose_subset
from mae_transfer.data.paths import find_paths
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations, ImageRecord
from mae_transfer.tasks.coco.config import DataConfig
from mae_transfer.tasks.coco.targets import check_targets
from mae_transfer.tasks.coco.transforms import draw_jitter, resize_for_evaluation, transform_objects

Batch = dict[str, Any]


@dataclass(frozen=True)
class CocoPaths:
    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path


LAYOUT = {
    "train_json": "annotations/instances_train2017.json",
    "train_images": "train2017",
    "val_json": "annotations/instances_val2017.json",
    "val_images": "val2017",
}
EXPECTED = (
    "expected is the COCO 2017 layout, to be had from https://cocodataset.org/#download: data.root (--data) with "
    f"{', '.join(LAYOUT.values())}; or any COCO-format set by data.train_json=, data.train_images=, data.val_json= and "
    "data.val_images="
)


def resolve_paths(config: DataConfig, *, train: bool = True) -> CocoPaths:
    """The four paths of a data set, each its own setting or its place in the COCO 2017 layout below `root`.

    Raises UserError that says which is missing and what is expected, unless all exist. Without `train` those of the
    training are the validation's.
    """
    if train:
        return CocoPaths(**find_paths(config, LAYOUT, EXPECTED))
    val = find_paths(config, {key: place for key, place in LAYOUT.items() if key.startswith("val_")}, EXPECTED)
    return CocoPaths(val["val_json"], val["val_images"], **val)


class _CocoImages(ImageDataset[Image.Image]):
    """What both datasets share: which images, and where they lie; `whole` are those of which a fraction is taken."""

    def __init__(
        self,
        annotations: CocoAnnotations,
        folder: Path,
        config: DataConfig,
        indices: np.ndarray,
        whole: np.ndarray | None = None,
    ) -> None:
        super().__init__(folder, indices, config.on_bad_image)
        self.annotations = annotations
        self.whole = indices if whole is None else whole
        self.config = config

    @property
    def image_ids(self) -> list[int]:
        ids: list[int] = self.annotations.image_ids[self.indices].tolist()
        return ids

    def record(self, place: int) -> ImageRecord:
        return self.annotations[int(self.indices[place])]

    def file_name(self, place: int) -> str:
        return self.annotations.file_names[int(self.indices[place])]

    def read(self, place: int) -> Image.Image:
        record = self.record(place)
        return read_image(self.folder / record.file_name, record.height, record.width)


class CocoTrain(_CocoImages):
    """Jittered training samples, keyed by (epoch, index).

    A sample is {"image": uint8 (3, h, w) RGB, "target", "size": original (height, width), "image_id", "file_name",
    "skipped"}. A target has "boxes" float32 (n, 4) xyxy in pixels of the jittered image, "classes" int64 (n,) in
    0..K-1, "masks": per object a list of float64 (2k,) polygons or a uint8 (h, w) bitmap (none in a set of boxes
    alone), and "seed" for samplers. n can be 0: a crop may leave nothing.
    """

    def __init__(
        self, annotations: CocoAnnotations, folder: Path, config: DataConfig, *, seed: int, subset: int | None = None
    ) -> None:
        usable = np.flatnonzero(annotations.num_objects)
        if not len(usable):
            raise UserError(f"{annotations.path}: no image has an object that is no crowd; nothing to train on")
        whole = usable[choose_subset(annotations.image_ids[usable], subset)]
        chosen = choose_fraction(annotations, whole, config, subset)
        super().__init__(annotations, folder, config, chosen, whole)
        self.seed = seed

    def classes_present(self) -> np.ndarray:
        """Bool (K,): whether an image has an object of the class that is no crowd."""
        present = np.zeros(len(self.annotations.names), dtype=bool)
        for place in range(len(self)):
            present[[item.category for item in self.record(place).objects if not item.crowd]] = True
        return present

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        place, image, skipped = self.read_or_next(index)
        record = self.record(place)
        jitter = draw_jitter(record.height, record.width, self.config, rng)
        boxes, classes, masks = transform_objects(record.objects, jitter)
        target = {
            "boxes": torch.from_numpy(boxes),
            "classes": torch.from_numpy(classes),
            "masks": masks,
            "seed": int(rng.integers(2**62)),
        }
        check_targets([target], [record.file_name], len(self.annotations.names))
        return {
            "image": F.pil_to_tensor(jitter.image(image)),
            "target": target,
            "size": (record.height, record.width),
            "image_id": record.id,
            "file_name": record.file_name,
            "skipped": skipped,
        }

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        return _collate(samples) | {"targets": [sample["target"] for sample in samples]}


def choose_fraction(
    annotations: CocoAnnotations, whole: np.ndarray, config: DataConfig, subset: int | None
) -> np.ndarray:
    """Those of the indices `whole` that `data.fraction` and `data.fraction_rule` take, ascending; all without them.

    Raises UserError if they are none, or for a published fold of a subset.
    """
    percent, draw = config.fraction, config.draw
    if percent is None:
        return whole
    if config.fraction_rule == "hash":
        return whole[hash_fraction([annotations.file_names[i] for i in whole.tolist()], percent, draw)]
    if subset is not None:
        raise UserError(
            f"data.fraction_rule=mmdetection is of the whole annotation file, not of --subset {subset}; leave it out "
            "(subset=null)"
        )
    fold = annotations.listed[mmdetection_fold(len(annotations), percent, draw)]
    chosen = whole[np.isin(annotations.image_ids[whole], fold)]
    if not len(chosen):
        raise UserError(
            f"data.fraction={percent:g}: of the {len(fold)} images of fold {draw + 1} of {annotations.path} none has "
            "an object that is no crowd; give a larger fraction"
        )
    return chosen


class CocoEval(_CocoImages):
    """All images, also those without objects, resized for evaluation; keyed by int.

    images: take only so many, of those with objects.

    A sample is one of CocoTrain without target; its image is None when it cannot be decoded and may be skipped.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        folder: Path,
        config: DataConfig,
        *,
        subset: int | None = None,
        images: int | None = None,
    ) -> None:
        chosen = choose_subset(annotations.image_ids, subset)
        if images is not None:
            chosen = chosen[annotations.num_objects[chosen] > 0]
            chosen = chosen[choose_subset(annotations.image_ids[chosen], images)]
        super().__init__(annotations, folder, config, chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, image = self.record(index), self.read_or_skip(index)
        resized = None if image is None else F.pil_to_tensor(resize_for_evaluation(image, self.config.image_size))
        return {
            "image": resized,
            "size": (record.height, record.width),
            "image_id": record.id,
            "file_name": record.file_name,
            "skipped": [record.file_name] if image is None else [],
        }

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """A batch of the images that can be used, which may be none; "skipped_ids" are the others'."""
        usable = [sample for sample in samples if sample["image"] is not None]
        unusable = [sample["image_id"] for sample in samples if sample["image"] is None]
        return _collate(usable) | {
            "skipped": [name for sample in samples for name in sample["skipped"]],
            "skipped_ids": unusable,
        }


def _collate(samples: list[dict[str, object]]) -> Batch:
    """Lists of what the samples hold, since the images differ in size."""
    return collate(samples) | {
        "images": [sample["image"] for sample in samples],
        "image_ids": [sample["image_id"] for sample in samples],
    }
