"""Changes of a COCO file's tree that keep its form: what other tools write, and what people mistake.

A change takes the tree, a random generator and the folder of the pictures, and works in place. `UNSEEN` has the name
under which a change is counted that no reader of the file can see.
"""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as masks

Tree = dict[str, Any]
Change = Callable[[Tree, Random, Path], None]
CHANGES: list[Change] = []
UNSEEN: dict[Change, str] = {}
ROUNDED = "COCO boxes off their masks that cost less than half a point of box AP"


def bitmap(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """Bool (h, w) of rectangles and Ls at whole pixels."""
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2).astype(int)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        mask[top:bottom, left:right] = True
        if len(points) == 6:
            mask[top : points[3, 1], points[2, 0] : right] = False
    return mask


def runs(mask: np.ndarray, order: Any = "F") -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, the first of 0. COCO's go down the columns."""
    ends = np.r_[np.flatnonzero(np.diff(np.r_[0, mask.ravel(order=order).astype(int)])), mask.size]
    return np.diff(ends, prepend=0).tolist()


def change(unseen: str | None = None) -> Callable[[Change], Change]:
    def add(function: Change) -> Change:
        CHANGES.append(function)
        UNSEEN.update({function: unseen} if unseen else {})
        return function

    return add


def some(tree: Tree, rng: Random) -> list[Tree]:
    """All objects, those of one image, or one."""
    rows = tree["annotations"]
    image = rng.choice(tree["images"])["id"]
    return rng.choice((rows, [row for row in rows if row["image_id"] == image] or rows, [rng.choice(rows)]))


def image_of(tree: Tree, row: Tree) -> Tree:
    found: Tree = next(image for image in tree["images"] if image["id"] == row["image_id"])
    return found


def mask_of(tree: Tree, row: Tree) -> np.ndarray:
    image, shape = image_of(tree, row), row["segmentation"]
    if isinstance(shape, list):
        return bitmap(shape, image["height"], image["width"])
    return masks.decode(masks.frPyObjects(shape, *shape["size"])).astype(bool)


def set_mask(row: Tree, mask: np.ndarray) -> None:
    """As a run-length encoding, with the box and the area of the mask."""
    row["segmentation"] = {"size": list(mask.shape), "counts": runs(mask)}
    row["bbox"] = masks.toBbox(masks.frPyObjects(row["segmentation"], *mask.shape)).tolist()
    row["area"] = float(mask.sum())


def move(rows: list[Tree], tree: Tree, x: int, y: int) -> None:
    for row in rows:
        row["bbox"][0] += x
        row["bbox"][1] += y
        if isinstance(row["segmentation"], list):
            row["segmentation"] = [[v + (y if i % 2 else x) for i, v in enumerate(p)] for p in row["segmentation"]]
        else:
            row["segmentation"]["counts"] = runs(np.roll(mask_of(tree, row), (y, x), (0, 1)))


def renumber(tree: Tree, kind: str, new: Callable[[int], Any]) -> None:
    """The ids of a kind and all that refer to them."""
    key = {"images": "image_id", "categories": "category_id"}.get(kind)
    for row in tree[kind]:
        row["id"] = new(row["id"])
    for row in tree["annotations"] if key else ():
        row[key] = new(row[key])


def free_id(rows: list[Tree]) -> int:
    return max(int(row["id"]) for row in rows) + 1


@change()
def ids_permuted(tree: Tree, rng: Random, _: Path) -> None:
    kind = rng.choice(("images", "categories", "annotations"))
    ids = [row["id"] for row in tree[kind]]
    renumber(tree, kind, dict(zip(ids, rng.sample(ids, len(ids)), strict=True)).__getitem__)


@change()
def ids_odd(tree: Tree, rng: Random, _: Path) -> None:
    scale, shift = rng.choice(
        ((-1, 0), (1, -1), (1, 2**53), (2**53, 1), (1, 2**62), (-(2**40), 7), (1, 2**63), (1, 2**31), (10**9, 0))
    )
    renumber(tree, rng.choice(("images", "categories", "annotations")), lambda value: value * scale + shift)


@change()
def ids_of_another_type(tree: Tree, rng: Random, _: Path) -> None:
    renumber(tree, rng.choice(("images", "categories", "annotations")), rng.choice((str, float, lambda v: v == 1)))


@change()
def rows_in_another_order(tree: Tree, rng: Random, _: Path) -> None:
    rng.shuffle(tree[rng.choice(("images", "categories", "annotations"))])


@change()
def class_numbers_in_place_of_ids(tree: Tree, rng: Random, _: Path) -> None:
    first = rng.choice((0, 1))
    numbers = {c["id"]: i for i, c in enumerate(sorted(tree["categories"], key=lambda c: c["id"]), first)}
    for row in tree["annotations"]:
        row["category_id"] = numbers[row["category_id"]]


@change("class names in another order")
def names_permuted(tree: Tree, rng: Random, _: Path) -> None:
    names = rng.sample([c["name"] for c in tree["categories"]], len(tree["categories"]))
    for category, name in zip(tree["categories"], names, strict=True):
        category["name"] = name


@change("objects of another class")
def classes_rotated(tree: Tree, rng: Random, _: Path) -> None:
    ids = [c["id"] for c in tree["categories"]]
    for row in some(tree, rng):
        row["category_id"] = ids[(ids.index(row["category_id"]) + 1) % len(ids)]


@change()
def categories_that_no_object_has(tree: Tree, rng: Random, _: Path) -> None:
    tree["categories"] += [{"id": free_id(tree["categories"]), "name": rng.choice(("dog", "ant", "", "Ant", " ant"))}]


@change("objects moved with their masks")
def moved_with_mask(tree: Tree, rng: Random, _: Path) -> None:
    move(some(tree, rng), tree, rng.choice((1, 2, 5, 20, -1)), rng.choice((1, 1, 3, 30, -2)))


@change(ROUNDED)
def boxes_moved_alone(tree: Tree, rng: Random, _: Path) -> None:
    shift = rng.choice((3, 5, 10, 30))
    for row in some(tree, rng):
        row["bbox"][rng.choice((0, 1))] += shift


@change()
def boxes_of_other_forms(tree: Tree, rng: Random, _: Path) -> None:
    kind = rng.randrange(6)
    for row in some(tree, rng):
        (x, y, w, h), image = row["bbox"], image_of(tree, row)
        high, wide = image["height"], image["width"]
        row["bbox"] = (
            [x, y, x + w, y + h], [x + w / 2, y + h / 2, w, h], [y, x, h, w], [x / wide, y / high, w / wide, h / high],
            [1000 * x / wide, 1000 * y / high, 1000 * w / wide, 1000 * h / high], [x, high - y - h, w, h],
        )[kind]  # fmt: skip


@change("masks drawn from boxes that were misread")
def boxes_as_corners_with_masks(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        x, y, w, h = row["bbox"]
        row["bbox"] = [x, y, x + w, y + h]
        row["segmentation"] = [[x, y, x + x + w, y, x + x + w, y + y + h, x, y + y + h]]
        row["area"] = (x + w) * (y + h)


@change("masks that fill their boxes")
def masks_of_boxes(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        row["area"] = rng.choice((row["area"], w * h))


@change()
def boxes_alone(tree: Tree, rng: Random, _: Path) -> None:
    empty = rng.choice(([], None, "gone", [[]], {}))
    for row in some(tree, rng):
        row["segmentation"] = empty
        if empty == "gone":
            del row["segmentation"]


@change()
def areas_scaled(tree: Tree, rng: Random, _: Path) -> None:
    factor = rng.choice((0.25, 0.45, 0.6, 0.8, 0.95, 1.05, 1.25, 1.4, 1.6, 2, 4))
    for row in some(tree, rng):
        row["area"] *= factor


@change()
def areas_of_boxes(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        row["area"] = row["bbox"][2] * row["bbox"][3]


@change()
def fields_that_may_lack(tree: Tree, rng: Random, _: Path) -> None:
    key = rng.choice(("area", "iscrowd"))
    for row in some(tree, rng):
        if not row["iscrowd"]:
            del row[key]


@change()
def fields_that_others_add(tree: Tree, rng: Random, _: Path) -> None:
    for row in tree["annotations"]:
        row |= {"keypoints": [0] * 51, "num_keypoints": 0, "ignore": 0, "score": 1.0, "rotation": 0, "attributes": {}}
        row["iscrowd"] = rng.choice((row["iscrowd"], bool(row["iscrowd"])))


@change()
def sizes_swapped(tree: Tree, rng: Random, _: Path) -> None:
    for image in rng.choice((tree["images"], [rng.choice(tree["images"])])):
        image["height"], image["width"] = image["width"], image["height"]


@change("annotations of the image at another size")
def annotated_at_half_size(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        mask = mask_of(tree, row)
        half = np.zeros_like(mask)
        half[: (mask.shape[0] + 1) // 2, : (mask.shape[1] + 1) // 2] = mask[::2, ::2]
        set_mask(row, half)


@change("an image that EXIF turns to its own size, annotated as stored")
def turned_by_exif(tree: Tree, rng: Random, folder: Path) -> None:
    exif, path = Image.Exif(), folder / rng.choice(tree["images"])["file_name"]
    exif[274] = rng.choice((2, 3, 6, 8))
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


@change()
def sizes_of_the_stored_pixels(tree: Tree, rng: Random, folder: Path) -> None:
    """Only the files of images that are not square change."""
    exif, image = Image.Exif(), rng.choice(tree["images"][:2])
    exif[274] = rng.choice((5, 6, 7, 8))
    with Image.open(folder / image["file_name"]) as picture:
        picture.load()
    picture.save(folder / image["file_name"], exif=exif)


@change()
def an_image_twice(tree: Tree, rng: Random, folder: Path) -> None:
    image = rng.choice(tree["images"])
    again = image | {"id": free_id(tree["images"])}
    if rng.random() < 0.5:
        again["file_name"] = "copy.png"
        shutil.copyfile(folder / image["file_name"], folder / "copy.png")
    tree["images"].append(again)
    for row in [row for row in tree["annotations"] if row["image_id"] == image["id"]]:
        tree["annotations"].append(copy.deepcopy(row) | {"id": free_id(tree["annotations"]), "image_id": again["id"]})


@change()
def an_image_twice_with_half_of_the_objects_each(tree: Tree, rng: Random, _: Path) -> None:
    image = rng.choice(tree["images"])
    tree["images"].append(image | {"id": free_id(tree["images"])})
    for row in [row for row in tree["annotations"] if row["image_id"] == image["id"]][::2]:
        row["image_id"] = tree["images"][-1]["id"]


@change("a copy of an image, with half of the objects each")
def a_copy_with_half_of_the_objects(tree: Tree, rng: Random, folder: Path) -> None:
    an_image_twice_with_half_of_the_objects_each(tree, rng, folder)
    shutil.copyfile(folder / tree["images"][-1]["file_name"], folder / "half.png")
    tree["images"][-1]["file_name"] = "half.png"


@change()
def an_object_twice(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng)[:]:
        tree["annotations"].append(copy.deepcopy(row) | {"id": free_id(tree["annotations"])})


@change("an object that the file leaves out")
def an_object_left_out(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng)[:4]:
        tree["annotations"].remove(row)


@change()
def an_image_left_out(tree: Tree, rng: Random, _: Path) -> None:
    image = tree["images"].pop(rng.randrange(len(tree["images"])))
    tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] != image["id"]]


@change("objects of another image")
def images_of_objects_exchanged(tree: Tree, rng: Random, _: Path) -> None:
    ids = [image["id"] for image in tree["images"]]
    for row in some(tree, rng):
        row["image_id"] = ids[(ids.index(row["image_id"]) + 1) % len(ids)]


@change()
def paths_of_files(tree: Tree, rng: Random, folder: Path) -> None:
    for image in tree["images"]:
        name = image["file_name"]
        image["file_name"] = rng.choice(
            (f"./{name}", str(folder / name), f"../{folder.name}/{name}", f"images\\{name}", name.upper(), f"{name} ")
        )


@change("an object called a crowd")
def crowd_on(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        row["iscrowd"] = 1


@change("a crowd called an object")
def crowd_off(tree: Tree, _: Random, __: Path) -> None:
    for row in tree["annotations"]:
        row["iscrowd"] = 0


@change()
def polygons_of_other_forms(tree: Tree, rng: Random, _: Path) -> None:
    """The same shape: reversed, from another point, closed, with points on its edges, in two parts."""
    kind = rng.randrange(5)
    for row in tree["annotations"]:
        if isinstance(row["segmentation"], list):
            pairs = [list(zip(p[::2], p[1::2], strict=True)) for p in row["segmentation"]]
            middle = [
                [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in zip(p, p[1:] + p[:1], strict=True)] for p in pairs
            ]
            dense = [[v for both in zip(p, m, strict=True) for v in both] for p, m in zip(pairs, middle, strict=True)]
            halves = [
                [(x, top), (right, top), (right, bottom), (x, bottom)]
                for p in pairs if len(p) == 4
                for x, right in ((p[0][0], middle[0][0][0]), (middle[0][0][0], p[2][0]))
                for top, bottom in ((p[0][1], p[2][1]),)
            ]  # fmt: skip
            forms = (
                [p[::-1] for p in pairs], [p[2:] + p[:2] for p in pairs], [p + p[:1] for p in pairs], dense,
                halves or pairs,
            )  # fmt: skip
            row["segmentation"] = [[v for point in p for v in point] for p in forms[kind]]


@change()
def polygons_as_pairs_or_flat(tree: Tree, rng: Random, _: Path) -> None:
    kind = rng.randrange(4)
    for row in some(tree, rng):
        if isinstance(row["segmentation"], list):
            first = row["segmentation"][0]
            pairs = [list(point) for point in zip(first[::2], first[1::2], strict=True)]
            row["segmentation"] = (pairs, [pairs], first, [[y for point in pairs for y in point[::-1]]])[kind]


@change()
def masks_as_runs(tree: Tree, rng: Random, _: Path) -> None:
    compressed = rng.random() < 0.5
    for row in some(tree, rng):
        mask = mask_of(tree, row)
        row["segmentation"] = {"size": list(mask.shape), "counts": runs(mask)}
        if compressed:
            packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            row["segmentation"]["counts"] = packed["counts"].decode()


@change()
def runs_along_the_rows(tree: Tree, rng: Random, _: Path) -> None:
    turned = rng.random() < 0.5
    for row in some(tree, rng):
        mask = mask_of(tree, row)
        row["segmentation"] = {"size": list(mask.shape)[:: -1 if turned else 1], "counts": runs(mask, "C")}


@change("masks of another shape, with boxes to match")
def runs_along_the_rows_with_boxes(tree: Tree, rng: Random, _: Path) -> None:
    for row in some(tree, rng):
        mask = mask_of(tree, row)
        set_mask(row, np.array(mask.ravel()).reshape(mask.shape, order="F"))
