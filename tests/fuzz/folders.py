"""Class folders: names, links, permissions, things that are no images, files that change while they are read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from campaign import command
from coco import truth
from odd_files import ODD_NAMES, Made, OddFiles, pairs
from safetensors.torch import save

from mae_transfer.cli.suite import main as suite
from mae_transfer.cli.tables import main as tables
from mae_transfer.data.decode import read_rgb
from mae_transfer.errors import UserError
from mae_transfer.pretrain.data import find_images as find_pictures
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.layouts.find import find_images
from mae_transfer.tasks.coco.annotations import CocoAnnotations


def class_names(family: OddFiles, rng: Random) -> Made:
    names = tuple(rng.sample(ODD_NAMES, rng.choice((2, 3, 5))))
    root = family.classes(names, root=rng.choice(ODD_NAMES))
    return f"{names} in {root.name}", lambda: family.read_set(root), pairs(names)


def other_things_in_class_folders(family: OddFiles, rng: Random) -> Made:
    root = family.classes()
    what = rng.choice(
        (
            ".DS_Store",
            "Thumbs.db",
            "._0.png",
            "notes.txt",
            "0.png.txt",
            ".hidden/9.png",
            "folder.png/",
            "folder.png/9.png",
            "PIPE",
            "9.PNG",
            "9.png as a link",
            "9.png as a broken link",
            "9.png as a loop",
            "9.png of zero bytes",
            "SOCKET.png",
            "9.jpg as a png",
        )
    )
    place, expected = root / "train/a", pairs(("a", "b"))
    name, _, about = what.partition(" ")
    if about == "as a link":
        (place / name).symlink_to("0.png")
    elif about == "as a broken link":
        (place / name).symlink_to("gone.png")
    elif about == "as a loop":
        (place / name).symlink_to(name)
    elif name == "PIPE":
        os.mkfifo(place / "9.png")
    elif name.startswith("SOCKET"):
        import socket

        with socket.socket(socket.AF_UNIX) as end:
            here = os.getcwd()
            os.chdir(place)
            end.bind("9.png")
            os.chdir(here)
    elif what.endswith("/"):
        (place / name).mkdir()
    else:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"" if "zero" in about else family.picture)
    refused = name in ("PIPE", "SOCKET.png") or any(word in about for word in ("broken", "loop", "zero"))
    if "9.PNG" in what or about in ("as a link", "as a png") or what == "folder.png/9.png":
        expected = sorted([*expected, (f"a/{name}", "a")], key=lambda pair: (pair[1], pair[0]))
    return what, lambda: family.read_set(root), None if refused else expected


def links_in_circles(family: OddFiles, rng: Random) -> Made:
    """Circles would be walked for ever: with two links in each folder 2**40 of them."""
    root, pretraining = family.classes(), rng.random() < 0.5
    what = rng.choice(("self", "parent", "two", "each other", "root", "twice to a sibling"))
    for place in (root / "train/a", root / "train/b"):
        if what == "self":
            (place / "loop").symlink_to(".")
        elif what == "parent":
            (place / "loop").symlink_to("..")
        elif what == "two":
            (place / "one").symlink_to(".")
            (place / "two").symlink_to("..")
        elif what == "each other":
            (place / "x").symlink_to("../b" if place.name == "a" else "../a")
            (place / "y").symlink_to("../b" if place.name == "a" else "../a")
        elif what == "root":
            (place / "loop").symlink_to(root)
            (place / "more").symlink_to(root)
        else:
            family.write("set/train/c/9.png", family.picture)
            family.write("set/val/c/9.png", family.picture)
            (place / "also").symlink_to("../c")
    if what == "twice to a sibling":
        expected: Any = [(f"{c}/{n}", c) for c in "ab" for n in ("0.png", "1.png", "also/9.png")] + [("c/9.png", "c")]
    else:
        expected = None
    if pretraining:
        config = load_config("pretrain", "vit_nano", protocol="mae", preset="smoke", overrides={"data.root": str(root)})
        return f"{what}, pre-training", lambda: len(find_pictures(config.data).train), 7 if expected else None
    return what, lambda: family.read_set(root), expected


def class_folders_of_two_splits(family: OddFiles, rng: Random) -> Made:
    root, expected = family.classes(), None
    what = rng.choice(
        ("ü decomposed", "case", "a file", "link to val", "link to nowhere", "only val", "empty class", "no b")
    )
    train = root / "train"
    if what == "ü decomposed":
        (train / "a").rename(train / "ü")
        (root / "val/a").rename(root / "val/u\u0308")
    elif what == "case":
        (root / "val/a").rename(root / "val/A")
    elif what == "a file":
        shutil.rmtree(train)
        train.write_bytes(b"")
    elif what == "link to val":
        shutil.rmtree(train)
        train.symlink_to("val")
        expected = pairs(("a", "b"))
    elif what == "link to nowhere":
        (train / "c").symlink_to("nowhere")
    elif what == "only val":
        shutil.rmtree(train)
    elif what == "empty class":
        (train / "c").mkdir()
    else:
        shutil.rmtree(root / "val/b")
        expected = pairs(("a", "b"))  # a class without val images is said
    return what, lambda: family.read_set(root), expected


def without_permission(family: OddFiles, rng: Random) -> Made:
    root = family.classes()
    csv = family.write("t.csv", b"path,label\ntrain/a/0.png,0\ntrain/b/0.png,1\n")
    weights, recipe = (
        family.write("m.safetensors", save(family.state)),
        family.write("r.yaml", b"base: {}\npresets: {}\n"),
    )
    coco, record = family.write("c.json", json.dumps(truth()).encode()), family.write("runs/r/record.json", b"{}")

    def said(runs: Path) -> None:
        """A record that cannot be read is left out, with a line that says so."""
        _, warnings = command(tables, ["--runs", str(runs)])
        if "Permission denied" in warnings:
            raise UserError(warnings.splitlines()[0])

    reads: dict[str, tuple[Path, Callable[[], Any]]] = {
        "image": (root / "train/a/0.png", lambda: family.read_set(root)),
        "class folder": (root / "train/a", lambda: family.read_set(root)),
        "split": (root / "val", lambda: family.read_set(root)),
        "set": (root, lambda: family.read_set(root)),
        "list": (csv, lambda: family.read_lists(csv)),
        "weights": (weights, lambda: family.features(weights)),
        "weights' folder": (weights.parent, lambda: family.features(weights)),
        "folder of weights": (root, lambda: family.features(root)),
        "recipe": (recipe, lambda: load_config("coco", "mae_vit_b", overrides=[f"recipe={recipe}"])),
        "COCO file": (coco, lambda: CocoAnnotations(coco)),
        "suite": (recipe, lambda: command(suite, [str(recipe), "--status"])),
        "record": (record, lambda: said(record.parents[1])),
        "runs": (record.parents[1], lambda: said(record.parents[1])),
    }
    what = rng.choice(list(reads))
    place, read = reads[what]
    place.chmod(0)
    return what, lambda: family.as_nobody(read), None


def files_that_change(family: OddFiles, rng: Random) -> Made:
    """Between the listing of a set and the reading of its images."""
    root = family.classes()
    what, place = rng.choice(("gone", "cut", "empty", "text", "a folder", "a pipe")), root / "train/a/0.png"
    config = load_config("folder", "random_vit_nano", preset="smoke", overrides={"data.root": str(root)})

    def read() -> Any:
        found = find_images("folder", config.data).train  # type: ignore[arg-type]
        place.unlink()
        if what == "a folder":
            place.mkdir()
        elif what == "a pipe":
            os.mkfifo(place)
        elif what != "gone":
            place.write_bytes({"cut": family.picture[:40], "empty": b"", "text": b"text"}[what])
        found.identity(np.arange(len(found)))
        return [read_rgb(str(found.root / name)).shape for name in found.names]

    return what, read, None


class Family(OddFiles):
    kinds = (
        class_names,
        other_things_in_class_folders,
        links_in_circles,
        class_folders_of_two_splits,
        without_permission,
        files_that_change,
    )
