"""What the families of odd files share: where they write, how they read, what they expect."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from campaign import Trial, Wrong
from PIL import Image
from safetensors.torch import save

from mae_transfer.backbones.load import load_backbone
from mae_transfer.data.decode import read_rgb
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.layouts.find import find_images

Made = tuple[str, Callable[[], Any], Any]
"""What was done, what reads it, and what has to come out; None where a refusal is the only right answer."""
ODD_NAMES = (
    "two words",
    " a",
    "a ",
    "new\nline",
    "tab\t",
    "ü",
    "u\u0308",
    "猫",
    "🐈",
    "a|b",
    "<b>",
    "-x",
    "--data",
    "%s",
    "$HOME",
    "~",
    "a=b",
    "[ab]",
    "{0..3}",
    "*",
    "?",
    "'",
    '"',
    "\\",
    "a:b",
    "#",
    "CON",
    "x" * 200,
    os.fsdecode(b"\xff\xfe"),
    "a.jpg",
)
NOBODY = 65534


class OddFiles:
    """A family that writes files of `kinds` below `here`, anew for each input."""

    kinds: tuple[Callable[[Any, Random], Made], ...] = ()

    def __init__(self, folder: Path) -> None:
        for place in (folder, folder.parent):
            place.chmod(0o755)
        self.here = folder / "here"
        picture = io.BytesIO()
        Image.new("RGB", (16, 16), (9, 99, 199)).save(picture, "PNG")
        self.picture = picture.getvalue()
        torch.manual_seed(0)
        encoder = load_backbone("random_vit_nano", final_norm=True)
        self.state = {key.removeprefix("vit."): value.clone() for key, value in encoder.state_dict().items()}
        self.images = torch.rand(1, 3, 64, 64)
        self.here.mkdir()
        self.expected = self.features(self.write("m.safetensors", save(self.state)))

    def write(self, name: str, content: bytes) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def classes(self, names: tuple[str, ...] = ("a", "b"), root: str = "set", count: int = 2) -> Path:
        for split in ("train", "val"):
            for name in names:
                for i in range(count):
                    self.write(f"{root}/{split}/{name}/{i}.png", self.picture)
        return self.here / root

    def features(self, path: Path) -> list[float]:
        with torch.no_grad():
            values: list[float] = load_backbone("mae_vit_nano", checkpoint=path)(self.images)[-1].flatten().tolist()
        return values

    def read_set(self, root: Path) -> list[tuple[str, str]]:
        """Name and class of each training image, once all images of both splits are read."""
        config = load_config("folder", "random_vit_nano", preset="smoke", overrides={"data.root": str(root)})
        found = find_images("folder", config.data)  # type: ignore[arg-type]
        for listing in (found.train, found.val):
            listing.identity(np.arange(len(listing)))
            for name in listing.names:
                read_rgb(str(listing.root / name))
        labels = found.train.labels.tolist()
        return [(name, found.class_names[label]) for name, label in zip(found.train.names, labels, strict=True)]

    def read_lists(self, path: Path) -> list[tuple[str, str]]:
        lists = {"data.train_list": str(path), "data.val_list": str(path), "data.root": str(self.here / "set")}
        config = load_config("folder", "random_vit_nano", preset="smoke", overrides=lists)
        found = find_images("folder", config.data).train  # type: ignore[arg-type]
        names = find_images("folder", config.data).class_names  # type: ignore[arg-type]
        return [(name, names[label]) for name, label in zip(found.names, found.labels.tolist(), strict=True)]

    def as_nobody(self, read: Callable[[], Any]) -> Any:
        """Permissions bind all but root."""
        if os.geteuid() != 0:
            return read()
        with contextlib.suppress(UserError):
            read()  # what is imported on the way lies where nobody may read
        os.seteuid(NOBODY)
        try:
            return read()
        finally:
            os.seteuid(0)

    def trial(self, rng: Random) -> Trial:
        for place, folders, _ in os.walk(self.here):
            for name in folders:
                if not os.path.islink(os.path.join(place, name)):
                    os.chmod(os.path.join(place, name), 0o755)
        shutil.rmtree(self.here)
        self.here.mkdir()
        chosen = rng.choice(self.kinds)
        what, read, expected = chosen(self, rng)

        def judge(found: Any) -> str | None:
            if expected is None:
                raise Wrong(f"accepted: {str(found)[:200]}")
            if expected is not ... and found != expected:
                raise Wrong(f"{str(found)[:200]} for {str(expected)[:200]}")
            return None

        def one_line() -> Any:
            """Errors as a command prints them: a name may hold a new line."""
            try:
                return read()
            except (UserError, PermissionError) as error:
                raise UserError(" ".join(str(error).splitlines())) from error

        return Trial(f"{chosen.__name__}, {what!r}"[:300], one_line, judge)


def pairs(names: tuple[str, ...], count: int = 2) -> list[tuple[str, str]]:
    return [(f"{name}/{i}.png", name) for name in sorted(names) for i in range(count)]
