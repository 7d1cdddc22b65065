"""Files of a folder at any depth: links to other folders are followed, links in circles are not."""

import os
from pathlib import Path

import pytest

from mae_transfer.data.identity import identify
from mae_transfer.data.names import walk_files
from mae_transfer.errors import UserError


def folders(place: Path) -> Path:
    for name in ("a", "b/c"):
        (place / name).mkdir(parents=True)
        (place / name / "0.png").write_bytes(b"0")
    return place


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    place = folders(tmp_path / "set")
    (place / "a/also").symlink_to("../b")
    assert sorted(walk_files(place)) == ["a/0.png", "a/also/c/0.png", "b/c/0.png"]
    (tmp_path / "link").symlink_to("set")
    assert sorted(walk_files(f"{tmp_path}/link/")) == ["a/0.png", "a/also/c/0.png", "b/c/0.png"]


@pytest.mark.parametrize("links", [{"a/x": "."}, {"b/c/x": "../.."}, {"a/x": "../b", "b/x": "../a"}])
def test_links_in_circles_are_refused_at_once(tmp_path: Path, links: dict[str, str]) -> None:
    """Two in one folder would give 2**40 paths before the system refuses one."""
    place = folders(tmp_path)
    for name, target in links.items():
        (place / name).symlink_to(target)
        (place / f"{name}2").symlink_to(target)
    with pytest.raises(UserError, match=r"folder .*/x\S* is a link to a folder that it lies in; take the link out"):
        list(walk_files(place))


def test_the_identity_waits_for_no_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert len(identify(tmp_path, ["pipe.png"])) == 64
