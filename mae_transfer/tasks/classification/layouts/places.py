"""Places365 and Places205: lists of a name and a class number a line."""

import re
from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.layouts.listing import EXPECTED, SPLITS, Found, check_numbers, make_listing


def from_places365(root: Path, size: str | None) -> Found:
    sizes = {"large": "large", "small": "256"}
    folders = {
        name: (
            next((root / f"data_{px}{end}" for end in ("", "_standard") if (root / f"data_{px}{end}").is_dir()), None)
        )
        for name, px in sizes.items()
    }
    there = [name for name, folder in folders.items() if folder is not None and (root / f"val_{sizes[name]}").is_dir()]
    if size is None and len(there) > 1:
        raise UserError(
            f"{root} has large and small images; choose with data.places_size=large or data.places_size=small"
        )
    size = size or (there[0] if there else None)
    if size not in there:
        raise UserError(
            f"{root} has no {size or 'large or small'} Places365 images; expected is {EXPECTED['places365']}"
        )
    classes_file = root / "categories_places365.txt"
    rows = _read_pairs(classes_file, "places365")
    check_numbers(classes_file, [label for _, label in rows])
    names = {label: name.strip("/") for name, label in rows}
    class_names = [names[i] for i in range(len(names))]
    listings = []
    for file, folder in (
        ("places365_train_standard.txt", folders[size]),
        ("places365_val.txt", root / f"val_{sizes[size]}"),
    ):
        assert folder is not None
        # with the folder's name, so that large and small images are not the same data
        pairs = [(f"{folder.name}/{name.lstrip('/')}", label) for name, label in _read_pairs(root / file, "places365")]
        listings.append(make_listing(root / file, root, pairs, class_names))
    (train, of_train), (val, of_val) = listings
    return train, val, class_names, of_train + of_val


def from_places205(root: Path) -> Found:
    images = root / "data/vision/torralba/deeplearning/images256"
    if not images.is_dir():
        raise UserError(f"folder {images} is not there; expected is {EXPECTED['places205']}")
    files = {}
    for split in SPLITS:
        places = [root / folder / f"{split}_places205.csv" for folder in ("trainvalsplit_places205", ".")]
        files[split] = next((place for place in places if place.is_file()), places[0])
    rows = {split: _read_pairs(file, "places205") for split, file in files.items()}
    # The archives hold no list of names: the class is the path between the images' folder and the file.
    names = {label: str(Path(name).parent) for name, label in rows["train"]}
    check_numbers(files["train"], list(names))
    classes = [names[i] for i in range(len(names))]
    (train, of_train), (val, of_val) = (make_listing(files[split], images, rows[split], classes) for split in SPLITS)
    return train, val, classes, of_train + of_val


def _read_pairs(path: Path, task: str) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    if not path.is_file():
        raise UserError(f"{path} is not there; expected is {EXPECTED[task]}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); unpack it again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.rpartition(" ")
        if not name or not re.fullmatch("[0-9]{1,9}", label):
            raise UserError(f"{path} line {number}: '{line[:80]}' is not a name, a blank and a class number")
        rows.append((name, int(label)))
    return rows
