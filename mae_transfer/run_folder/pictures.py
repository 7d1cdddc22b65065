"""The pictures that a run leaves of its last evaluation, as files: `pictures/` in its folder. No torch.

00.jpg, 01.jpg, ...    drawn by the tasks
index.json             [{"file", "title", "caption"}, ...], written last
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "pictures"
_INDEX = "index.json"
_QUALITY = 88


class Picture(NamedTuple):
    """A drawn image, what it is of (an image's name), and what is to be seen in a few words."""

    image: "Image"
    title: str
    caption: str


class StoredPicture(NamedTuple):
    path: Path
    title: str
    caption: str


def write_pictures(run: Path, pictures: Sequence[Picture]) -> None:
    """Write the pictures of a run folder in the place of those of an earlier evaluation, each file whole or not at all.

    Raises UserError where the folder cannot be written.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _INDEX).unlink(missing_ok=True)
        for stale in folder.glob("[0-9][0-9]*.jpg"):
            stale.unlink()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; make room or change --output") from error
    entries = []
    for number, picture in enumerate(pictures):
        content = io.BytesIO()
        # text and thin lines need the colours of every pixel
        picture.image.convert("RGB").save(content, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
        entry = {"file": f"{number:02}.jpg", "title": picture.title, "caption": picture.caption}
        with atomic_write(folder / entry["file"]) as file:
            file.write(content.getvalue())
        entries.append(entry)
    with atomic_write(folder / _INDEX) as file:
        file.write(json.dumps(entries, indent=1).encode() + b"\n")


def read_pictures(run: Path) -> tuple[list[StoredPicture], str | None]:
    """The pictures of a run folder that are there, and one line on what is wrong with its index, if anything is."""
    path = run / FOLDER / _INDEX
    if not path.exists():
        return [], None
    try:
        entries: Any = parse_json(path.read_bytes())
        found = [StoredPicture(path.parent / e["file"], str(e["title"]), str(e["caption"])) for e in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [], f"{path} is no readable list of pictures ({type(error).__name__}); evaluate again with --eval-only"
    named = all(re.fullmatch(r"[0-9]+\.jpg", picture.path.name) for picture in found)
    if not named or any(picture.path.parent != path.parent for picture in found):  # never read a file from elsewhere
        return [], f"{path} names files that no run writes; evaluate again with --eval-only"
    return found, None
