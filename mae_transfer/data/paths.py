"""Where a data set lies: each path its own setting, or its place in the benchmark's layout below `data.root`."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_transfer.config.roles import Role, keys
from mae_transfer.config.sections import DataSection
from mae_transfer.errors import UserError
from mae_transfer.files import user_path


def is_address(text: str) -> bool:
    """Whether a place is none of this machine: `https://...`, `s3://...`."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def check_local(data: DataSection) -> None:
    """UserError for an address among the places of a data set that is read from this machine's disks."""
    for key in sorted(keys(type(data), Role.PLACE)):
        place = getattr(data, key)
        if place is not None and is_address(place):
            option = "--data" if key == "root" else f"data.{key}"
            raise UserError(
                f"{option} {place}: transfer reads folders of this machine, and addresses are for the shards of a "
                "pre-training; fetch the data set and name its folder"
            )


def find_paths(config: Any, layout: Mapping[str, str], expected: str) -> dict[str, Path]:
    """One path per key of `layout`.

    Args:
        config: the `data` section, with `root` and a field per key.
        layout: setting -> place below the root; a place that ends in .json is a file, any other a folder.
        expected: what a user should have, for the messages.

    Raises:
        UserError: a path is neither given nor in the root, or is not there, or is an address.
    """
    check_local(config)
    root = None if config.root is None else user_path(config.root)
    paths = {}
    for key, place in layout.items():
        own = getattr(config, key)
        if own is not None:
            path, source = user_path(own), f"data.{key}"
        elif root is None:
            raise UserError(f"neither data.root (--data) nor data.{key} is given; {expected}")
        elif not root.is_dir():
            raise UserError(f"data folder {root} (data.root) is not there; {expected}")
        else:
            path, source = root / place, "in data.root"
        if place.endswith(".json") and not path.is_file():
            raise UserError(f"file {path} ({source}) is not there; {expected}")
        if not place.endswith(".json") and not path.is_dir():
            raise UserError(f"folder {path} ({source}) is not there; {expected}")
        paths[key] = path
    return paths


def set_name(data: DataSection, places: Iterable[str | Path | None] = ()) -> str:
    """What a data set is called: `data.name`, else the name of its folder.

    The folder is the root or, of a set that is given file by file, the deepest one that holds all `places`. Of a
    pattern of files it is the one that they are in.
    """
    if data.name is not None:
        return data.name
    given = [place for place in ([data.root] if data.root is not None else places) if place is not None]
    paths = [Path(os.path.abspath(os.path.expanduser(place))) for place in given]
    folder = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths])) if paths else Path()
    return folder.name or str(folder)
