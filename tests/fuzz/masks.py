"""ADE20K's folders with a damaged mask, a damaged image, or a mask of odd values."""

import io
import shutil
from pathlib import Path
from random import Random

import numpy as np
from campaign import Trial, Wrong
from mutate import mutate_bytes
from PIL import Image

from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.config import Ade20kConfig
from mae_transfer.tasks.ade20k.data import Segmentation
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.values import check_values

SIZE, CLASSES = 32, 5


class Family:
    def __init__(self, folder: Path) -> None:
        self.root = folder
        for part in ("images", "annotations"):
            for split in ("training", "validation"):
                (folder / part / split).mkdir(parents=True)
        rows, columns = np.mgrid[0:SIZE, 0:SIZE]
        self.mask = ((rows // 7 + columns // 6) % (CLASSES + 1)).astype(np.uint8)
        self.image = np.stack([rows * 7, columns * 7, self.mask * 40], -1).astype(np.uint8)
        for split in ("training", "validation"):
            for name in "ab":
                Image.fromarray(self.image).save(folder / "images" / split / f"{name}.jpg")
                Image.fromarray(self.mask).save(folder / "annotations" / split / f"{name}.png")
        self.target = folder / "annotations/validation/a.png"
        self.whole = self.target.read_bytes()
        pairs = [f"data.root={folder}", f"data.num_classes={CLASSES}"]
        config = load_config("ade20k", "random_vit_nano", preset="smoke", overrides=pairs)
        assert isinstance(config, Ade20kConfig)
        self.config = config.data
        self.expected = self.read()

    def read(self) -> np.ndarray:
        """The labels of the validation set."""
        datasets = [Segmentation(find_pairs(self.config, split), self.config, None) for split in ("train", "val")]
        check_values(datasets)
        return np.stack([datasets[1].read(i)[1] for i in range(len(datasets[1]))])

    def trial(self, rng: Random) -> Trial:
        shutil.copy(self.root / "annotations/training/a.png", self.target)
        if rng.random() < 0.6:
            what, content = mutate_bytes(self.whole, rng)
            self.target.write_bytes(content)
            return Trial(f"mask file, {what}", self.read, self.same)
        values = self.mask.astype(np.int64)
        kind = rng.choice(("one value", "region", "shift", "255", "all", "size", "mode", "wide"))
        at = rng.randrange(SIZE), rng.randrange(SIZE)
        if kind == "one value":
            values[at] = rng.choice((0, 1, CLASSES, CLASSES + 1, 100, 254, 255))
        elif kind == "region":
            values[at[0] :, at[1] :] = rng.choice((0, 1, CLASSES + 1, 255))
        elif kind == "shift":
            values += rng.choice((1, 2, 100))
        elif kind == "255":
            values[values > 0] = 255
        elif kind == "all":
            values[:] = rng.choice((0, 3, 255))
        elif kind == "size":
            values = np.ascontiguousarray(values[: at[0] + 1])
        image = Image.fromarray(values.astype(np.uint8))
        if kind == "mode":
            image = image.convert(rng.choice(("RGB", "RGBA", "LA", "P", "1", "F", "I")))
        elif kind == "wide":
            image = Image.fromarray((values * rng.choice((1, 257, 1000))).astype(np.uint16))
        buffer = io.BytesIO()
        image.save(buffer, "TIFF" if image.mode in "FI" else "PNG")
        self.target.write_bytes(buffer.getvalue())

        def judge(labels: np.ndarray) -> str | None:
            first = np.asarray(image).astype(np.int64)
            said = np.where((first == 0) | (first == 255), 255, first - 1)
            found = labels[0].astype(np.int64)
            if not np.array_equal(np.where((found < 0) | (found == 255), 255, found), said):
                raise Wrong("other labels than the values of the file")
            return None if np.array_equal(labels, self.expected) else "a mask of other legal values"

        return Trial(f"mask, {kind} {at}", self.read, judge)

    def same(self, labels: np.ndarray) -> str | None:
        if not np.array_equal(labels, self.expected):
            raise Wrong("other labels from a PNG, which has checksums")
        return None
