"""Tar shards: every image is found and comes back byte for byte; what is damaged is named."""

import json
import os
import tarfile

import numpy as np
import pytest
from support.pretraining import resolve_pretrain
from support.tar_shards import samples, write

from mae_transfer.data.images import ImageError
from mae_transfer.errors import UserError
from mae_transfer.pretrain import shards
from mae_transfer.pretrain.data import find_images
from mae_transfer.pretrain.shards import expand, find_shards, is_shards, list_images, open_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mae_transfer"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_image_comes_back_byte_for_byte_in_any_order(tmp_path, format):
    (first, images), (second, more) = samples(7), samples(5, seed=1)
    paths = [write(tmp_path / "a-0.tar", first, format), write(tmp_path / "a-1.tar", second, format)]
    found = open_shards(paths)
    assert len(found) == 12
    for index in (11, 0, 6, 7, 3):
        assert found.read(index).tobytes() == (images + more)[index]
    assert found.names[8] == "a-1.tar/1/00001.jpg"
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 0, 1]


def test_long_names_and_other_members(tmp_path):
    long = "d" * 90 + "/" + "e" * 120
    members = {f"{long}.jpeg": b"abc", "x.seg.png": b"no", "x.png": b"def", "x.txt": b"a caption", "y.json": b"{}"}
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = write(tmp_path / f"{format}.tar", members, format)
        found = open_shards([path])
        assert [found.read(i).tobytes() for i in range(len(found))] == [b"abc", b"def"]
        assert found.labels is None


@pytest.mark.parametrize("kind", ["hard link", "link", "sparse file"])
def test_images_without_content_are_not_left_out(tmp_path, kind):
    path = write(tmp_path / "a.tar", {"1.jpg": b"1"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("2.jpg")
        if kind == "sparse file":
            info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": "9", "GNU.sparse.map": "0,0"}
        else:
            info.type, info.linkname = (tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE), "1.jpg"
        tar.addfile(info)
    with pytest.raises(
        UserError, match=r"a\.tar: 2\.jpg is a link or a sparse file, of which the shard has no content"
    ):
        open_shards([path])


def test_labels_in_json_and_where_they_are_bad(tmp_path):
    members = {"a.json": json.dumps({"label": 4}).encode(), "a.jpg": b"1", "b.jpg": b"2", "b.json": b'{"label": 0}'}
    assert open_shards([write(tmp_path / "a.tar", members)]).labels.tolist() == [4, 0]
    for kind, bad in (("cls", b"cat"), ("cls", b"-1"), ("cls", b"1.5"), ("cls", b"9" * 30), ("json", b"[" * 100000)):
        path = write(tmp_path / "b.tar", {"a.jpg": b"1", f"a.{kind}": bad})
        with pytest.raises(UserError, match=rf"shard .*b\.tar: a\.{kind} holds .*not the number of a class"):
            open_shards([path])
    path = write(tmp_path / "high.tar", {"a.jpg": b"1", "a.cls": b"0", "b.jpg": b"2", "b.cls": b"2000000000"})
    with pytest.raises(UserError, match="the highest label is 2000000000, of 2 images"):
        find_images(resolve_pretrain("mae", "vit_nano_p8", data=path).data)


def test_names_with_dots_are_not_left_out(tmp_path):
    for name in ("photo.v1.jpg", "set.2/12.5.PNG"):
        path = write(tmp_path / "a.tar", {"b.jpg": b"1", name: b"2"})
        with pytest.raises(UserError, match=rf"{name} has a dot within its name \(1 such samples"):
            open_shards([path])
    # a folder may have dots, and macOS keeps attributes beside each file
    path = write(tmp_path / "a.tar", {"v1.0/b.jpg": b"1", "v1.0/._b.jpg": b"2", "._b.jpg": b"3"})
    assert list(open_shards([path]).names) == ["a.tar/v1.0/b.jpg"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_index_is_set_aside(tmp_path, cache, caplog, content):
    path = write(tmp_path / "a.tar", samples(4)[0])
    first = open_shards([path])
    (index,) = cache.rglob("shards_*.npz")
    if content is None:
        np.savez(index, names=np.zeros(3, np.uint8), rows=np.zeros((9, 4), np.int64))
    else:
        index.write_bytes(content)
    assert list(open_shards([path]).names) == list(first.names)
    assert f"{index}: the index of the shards is damaged" in caplog.text
    assert index.with_suffix(".damaged").is_file()
    caplog.clear()
    assert list(open_shards([path]).names) == list(first.names)
    assert not caplog.text


def test_the_index_is_made_once_and_again_when_a_shard_changes(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.tar", samples(4)[0])
    first = open_shards([path])
    calls = []
    monkeypatch.setattr(shards, "list_images", lambda path: calls.append(path) or list_images(path))
    second = open_shards([path])
    assert not calls
    assert list(second.names) == list(first.names)
    assert second.names_fingerprint() == first.names_fingerprint()
    for name in ("shard", "offset", "size", "labels"):
        assert (getattr(first, name) == getattr(second, name)).all()
    write(path, samples(5)[0])
    assert len(open_shards([path])) == 5
    assert calls


def test_the_fingerprint_is_of_the_samples_and_not_of_the_place(tmp_path):
    prints = set()
    for folder, count, label in (("a", 4, True), ("b", 4, True), ("c", 5, True), ("d", 4, False)):
        prints.add(
            open_shards([write(tmp_path / folder / "x.tar", samples(count, label=label)[0])]).names_fingerprint()
        )
    assert len(prints) == 3


def test_without_a_cache_folder_the_index_is_made_anew(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_shards([write(tmp_path / "a.tar", samples(4)[0])])) == 4
    assert "cannot be written" in caplog.text


def test_folders_and_patterns(tmp_path):
    for name in ("train-000008.tar", "train-000009.tar", "train-000010.tar", "val-0.tar"):
        write(tmp_path / "flat" / name, {"a.jpg": b"1"})
    write(tmp_path / "split" / "train" / "x.tar", {"a.jpg": b"1"})
    write(tmp_path / "split" / "val" / "y.tar", {"a.jpg": b"1"})
    write(tmp_path / "plain" / "z.tar", {"a.jpg": b"1"})
    (tmp_path / "none").mkdir()

    def names(found):
        return [[path.name for path in group] for group in found]

    train = [f"train-{i:06d}.tar" for i in (8, 9, 10)]
    assert names(find_shards(tmp_path / "flat")) == [train, ["val-0.tar"]]
    assert names(find_shards(tmp_path / "split")) == [["x.tar"], ["y.tar"]]
    assert names(find_shards(tmp_path / "plain")) == [["z.tar"], []]
    assert names(find_shards(f"{tmp_path}/flat/train-{{000008..000010}}.tar")) == [train, []]
    assert names(find_shards(f"{tmp_path}/flat/train-*.tar")) == [train, []]
    assert [p.name for p in expand(f"{tmp_path}/{{flat/val-0,plain/z}}.tar")] == ["val-0.tar", "z.tar"]
    assert [is_shards(tmp_path / name) for name in ("flat", "split", "plain", "none")] == [True, True, True, False]
    assert is_shards("a/{0..3}.tar")
    with pytest.raises(UserError, match=r"train-000011\.tar is not there"):
        find_shards(f"{tmp_path}/flat/train-{{000008..000011}}.tar")
    with pytest.raises(UserError, match=r"train-000000000\.tar is not there"):  # at once, not after a billion names
        find_shards(f"{tmp_path}/flat/train-{{000000000..999999999}}.tar")
    with pytest.raises(UserError, match=r"nothing\*\.tar is not there"):
        find_shards(f"{tmp_path}/flat/nothing*.tar")
    with pytest.raises(UserError, match=r"has no \.tar shards"):
        find_shards(tmp_path / "none")


def test_every_cut_and_every_damaged_header_is_found(tmp_path):
    """Python's tarfile would take most of these for the end of the archive and lose the samples after it."""
    path = write(tmp_path / "whole.tar", samples(3)[0], tarfile.USTAR_FORMAT)
    content = path.read_bytes()
    last = len(content.rstrip(b"\0")) // 512 * 512
    for cut in [*range(0, last, 700), last, last + 512]:
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"shard .*cut\.tar: .*(truncated|corrupt)"):
            open_shards([path, tmp_path / "cut.tar"])
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    assert len(headers) == 9
    for header in headers:
        broken = bytearray(content)
        broken[header + 150] ^= 0xFF  # in the checksum
        (tmp_path / "broken.tar").write_bytes(bytes(broken))
        with pytest.raises(UserError, match=r"shard .*broken\.tar: .*(truncated|corrupt)"):
            open_shards([tmp_path / "broken.tar"])
    (tmp_path / "two.tar").write_bytes(content + content)  # `cat` of two archives: the second would be lost
    with pytest.raises(UserError, match=r"two\.tar: truncated or corrupt after"):
        open_shards([tmp_path / "two.tar"])


def test_other_files_are_refused(tmp_path):
    for compression in ("gz", "xz"):
        path = write(tmp_path / f"{compression}.tar", samples(2)[0], mode=f"w:{compression}")
        with pytest.raises(UserError, match=rf"{compression}\.tar: is compressed.*unpack it"):
            open_shards([path])
    with pytest.raises(UserError, match="holds no image"):
        open_shards([write(tmp_path / "text.tar", {"a.txt": b"1"})])
    with pytest.raises(UserError, match=r"a\.jpg and a\.png are two images of one sample"):
        open_shards([write(tmp_path / "twice.tar", {"a.jpg": b"1", "a.png": b"2"})])


def test_a_shard_that_shrinks_or_goes_during_a_run(tmp_path):
    path = write(tmp_path / "a.tar", samples(4)[0])
    found = open_shards([path])
    with path.open("r+b") as file:
        file.truncate(int(found.offset[-1]))
    with pytest.raises(ImageError, match=r"a\.tar: ends within a\.tar/0/00003\.jpg"):
        found.read(3)
    os.remove(path)
    with pytest.raises(ImageError, match=r"a\.tar: cannot be read"):
        found.read(0)
