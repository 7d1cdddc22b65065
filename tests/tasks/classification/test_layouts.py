"""Image classification's data sets on disk: every layout against torchvision's own reader or the files themselves."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torchvision.datasets import ImageFolder, Places365

from mae_transfer.data import index_cache
from mae_transfer.data.names import Names
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import DataConfig
from mae_transfer.tasks.classification.layouts import folders
from mae_transfer.tasks.classification.layouts.find import find_images
from mae_transfer.tasks.classification.layouts.listing import ImageSet
from mae_transfer.tasks.classification.layouts.lists import _read_list

TASKS = ("imagenet", "folder", "inat2017", "inat2018", "inat2019", "inat2021", "places205", "places365")


def data_config(root: Path | None, **more: Any) -> DataConfig:
    return DataConfig(root=None if root is None else str(root), image_size=32, crop="random", flip=0.5, **more)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {task: make_classification(folder / task, task, train_images=3, val_images=2) for task in TASKS}


@pytest.fixture
def root(request: pytest.FixtureRequest, roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the task's set that a test may damage."""
    return Path(shutil.copytree(roots[request.param], tmp_path / "set"))


def pairs(images: ImageSet, split: str) -> set[tuple[str, int]]:
    listing = getattr(images, split)
    return {(str(listing.root / n), int(i)) for n, i in zip(listing.names, listing.labels, strict=True)}


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_is_found_whole(roots: dict[str, Path], task: str) -> None:
    images = find_images(task, data_config(roots[task]))
    assert len(images.class_names) == 5
    for split, count in (("train", 3), ("val", 2)):
        found = pairs(images, split)
        assert len(found) == 5 * count
        assert all(Path(path).is_file() for path, _ in found)
        assert np.bincount([label for _, label in found]).tolist() == [count] * 5
    assert not images.warnings


@pytest.mark.parametrize("task", ["imagenet", "folder"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_folders_are_those_of_torchvision(roots: dict[str, Path], task: str, split: str) -> None:
    reference = ImageFolder(str(roots[task] / split))
    images = find_images(task, data_config(roots[task]))
    assert images.class_names == reference.classes
    assert pairs(images, split) == set(reference.samples)


@pytest.mark.parametrize("split", ["train", "val"])
def test_places365_is_that_of_torchvision(
    roots: dict[str, Path], split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision wants the training folder renamed and the true set's MD5 sums; the rest is its own reading."""
    root = Path(shutil.copytree(roots["places365"], tmp_path / "places"))
    images = find_images("places365", data_config(root))
    ours = {(path.replace("data_256/", "data_256_standard/"), label) for path, label in pairs(images, split)}
    (root / "data_256").rename(root / "data_256_standard")
    monkeypatch.setattr(Places365, "_check_integrity", lambda *_: True)
    reference = Places365(str(root), split="train-standard" if split == "train" else "val", small=True)
    assert ours == set(reference.imgs)
    assert [name.strip("/") for name in reference.classes] == images.class_names
    assert find_images("places365", data_config(root)).class_names == images.class_names, "torchvision's name is found"


@pytest.mark.parametrize("task", ["inat2017", "inat2018", "inat2019", "inat2021"])
def test_inat_labels_are_those_of_the_json(roots: dict[str, Path], task: str) -> None:
    year = "" if task == "inat2021" else task[4:]
    images = find_images(task, data_config(roots[task]))
    for split in ("train", "val"):
        content = json.loads((roots[task] / f"{split}{year}.json").read_text())
        frame = pd.DataFrame(content["annotations"]).merge(
            pd.DataFrame(content["images"]), left_on="image_id", right_on="id"
        )
        wanted = {(str(roots[task] / n), c) for n, c in zip(frame["file_name"], frame["category_id"], strict=True)}
        assert pairs(images, split) == wanted
    assert images.class_names == [entry["name"] for entry in content["categories"]]


def test_large_and_small_images_of_places365_are_not_the_same_data(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["places365"], tmp_path / "places"))
    small = find_images("places365", data_config(root))
    (root / "data_256").rename(root / "data_large")
    (root / "val_256").rename(root / "val_large")
    assert find_images("places365", data_config(root)).names_fingerprint() != small.names_fingerprint()


@pytest.mark.parametrize("root", ["places205"], indirect=True)
def test_places205_classes_are_paths_and_lists_may_lie_at_the_root(root: Path) -> None:
    names = find_images("places205", data_config(root)).class_names
    assert names[0].startswith("a/")
    assert names[2].endswith("/indoor")
    for file in (root / "trainvalsplit_places205").iterdir():
        file.rename(root / file.name)
    assert find_images("places205", data_config(root)).class_names == names


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("labels", ["names", "numbers"])
def test_lists_give_what_the_folders_give(roots: dict[str, Path], tmp_path: Path, kind: str, labels: str) -> None:
    folders = find_images("folder", data_config(roots["folder"]))
    files = {}
    for split in ("train", "val"):
        listing = getattr(folders, split)
        label = listing.labels if labels == "numbers" else [folders.class_names[i] for i in listing.labels]
        frame = pd.DataFrame({"path": [f"{split}/{name}" for name in listing.names], "label": label, "other": 1})
        files[split] = tmp_path / f"{split}.{kind}"
        if kind == "csv":
            frame.to_csv(files[split], index=False)
        else:
            frame.to_parquet(files[split])
    config = data_config(roots["folder"], train_list=str(files["train"]), val_list=str(files["val"]))
    lists = find_images("folder", config)
    for split in ("train", "val"):
        assert pairs(lists, split) == pairs(folders, split)
    assert lists.class_names == (folders.class_names if labels == "names" else [str(i) for i in range(5)])


def test_paths_of_a_list_are_relative_to_it_without_a_root(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["folder"], tmp_path / "set"))
    frame = pd.DataFrame({"path": ["anemone/train_0000.JPEG", "birch/train_0001.JPEG"], "label": ["a", "b"]})
    frame.to_csv(root / "train" / "t.csv", index=False)
    file = str(root / "train" / "t.csv")
    images = find_images("folder", data_config(None, train_list=file, val_list=file))
    assert images.class_names == ["a", "b"]
    assert images.train.root == root / "train"


def test_the_fingerprint_is_of_names_and_labels_not_of_the_place(roots: dict[str, Path], tmp_path: Path) -> None:
    one = find_images("folder", data_config(roots["folder"])).names_fingerprint()
    copy = Path(shutil.copytree(roots["folder"], tmp_path / "elsewhere"))
    assert find_images("folder", data_config(copy)).names_fingerprint() == one
    (copy / "train" / "birch" / "train_0000.JPEG").rename(copy / "train" / "birch" / "x.JPEG")
    assert find_images("folder", data_config(copy)).names_fingerprint() != one


def test_images_may_lie_deeper_and_other_files_are_told(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["folder"], tmp_path / "set"))
    (root / "train" / "birch" / "images").mkdir()
    for file in list((root / "train" / "birch").glob("*.JPEG")):
        file.rename(file.parent / "images" / file.name)
    (root / "train" / "birch" / "boxes.txt").write_text("")
    (root / "train" / "loose.jpg").write_bytes(b"")
    shutil.rmtree(root / "val" / "dune")
    images = find_images("folder", data_config(root))
    assert len(images.train) == 15
    assert any("1 files that are no images" in line and "boxes.txt" in line for line in images.warnings)
    assert any("1 images beside the class folders are left out, e.g. loose.jpg" in line for line in images.warnings)
    assert any("1 of 5 classes have no val image, such as dune" in line for line in images.warnings)


def test_many_classes_are_listed_once_and_again_when_files_come(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "LEAST_CLASSES", 1)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    root = Path(shutil.copytree(roots["folder"], tmp_path / "set"))
    (root / "train" / "birch" / "boxes.txt").write_text("")
    listed, image_files = [], folders.image_files
    monkeypatch.setattr(
        folders, "image_files", lambda folder, other: listed.append(folder) or image_files(folder, other)
    )

    def check(listings: int) -> None:
        images = find_images("folder", data_config(root))
        for split in ("train", "val"):
            assert pairs(images, split) == set(ImageFolder(str(root / split)).samples)
        assert any("1 files that are no images" in line and "boxes.txt" in line for line in images.warnings)
        assert len(listed) == listings

    check(10)
    check(10)
    image = next((root / "train" / "birch").glob("*.JPEG"))
    shutil.copy(image, image.with_name("new.JPEG"))
    check(15)  # the five classes of the training set
    check(15)
    image.unlink()
    check(20)
    (image.parent / "empty").mkdir()  # what comes into it does not change the time of the class's folder
    check(25)
    shutil.copy(image.with_name("new.JPEG"), image.parent / "empty" / "deep.JPEG")
    check(30)


def test_what_notebooks_and_macs_leave_is_no_image_and_no_class(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["folder"], tmp_path / "set"))
    (root / "train" / "birch" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "__MACOSX").mkdir()
    image = next((root / "train" / "birch").glob("*.JPEG"))
    shutil.copy(image, root / "train" / "birch" / ".ipynb_checkpoints" / "a-checkpoint.JPEG")
    shutil.copy(image, root / "train" / "__MACOSX" / "._a.JPEG")
    images = find_images("folder", data_config(root))
    assert (len(images.train), len(images.class_names), images.warnings) == (15, 5, [])


def test_names_are_a_sequence_of_strings() -> None:
    texts = ["a/b.jpg", "", "ü/é.png", "x" * 300]
    names = Names(texts)
    assert list(names) == texts
    assert names[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        names[4]


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def damage(root: Path, how: str) -> None:
    """Break a set in place."""
    if how == "empty class":
        shutil.rmtree(root / "train" / "crane")
        (root / "train" / "crane").mkdir()
    elif how == "no split":
        (root / "val").rename(root / "validation")
    elif how == "strange class":
        (root / "val" / "crane").rename(root / "val" / "krane")
    elif how == "flat":
        for file in list((root / "val").rglob("*.JPEG")):
            file.rename(root / "val" / f"{file.parent.name}_{file.name}")
        for folder in [p for p in (root / "val").iterdir() if p.is_dir()]:
            folder.rmdir()
    elif how == "one class":
        for split in ("train", "val"):
            for folder in sorted((root / split).iterdir())[1:]:
                shutil.rmtree(folder)
    elif how == "missing files":
        for file in sorted((root / "train_val2018").rglob("train*.jpg"))[:2]:
            file.unlink()
    elif how == "no images":
        shutil.rmtree(root / "train_val2018")
    elif how == "gap":
        edit_json(root / "train2018.json", lambda c: [e.update(id=e["id"] + 1) for e in c["categories"] if e["id"] > 1])
    elif how == "unknown category":
        edit_json(root / "train2018.json", lambda c: c["annotations"][3].update(category_id=77))
    elif how == "unknown image":
        edit_json(root / "val2018.json", lambda c: c["annotations"][3].update(image_id=7777))
    elif how == "no annotation":
        edit_json(root / "val2018.json", lambda c: c["annotations"].pop())
    elif how == "two annotations":
        edit_json(root / "val2018.json", lambda c: c["annotations"].append(c["annotations"][0] | {"category_id": 4}))
    elif how == "other categories":
        edit_json(root / "val2018.json", lambda c: c["categories"][0].update(name="?"))
    elif how == "not json":
        (root / "train2018.json").write_text("{")
    elif how == "not coco":
        (root / "train2018.json").write_text('{"images": []}')
    elif how == "no json":
        (root / "val2018.json").unlink()
    elif how == "both sizes":
        (root / "data_large").mkdir()
        (root / "val_large").mkdir()
    elif how == "no sizes":
        (root / "val_256").rename(root / "val_x")
    elif how == "bad line":
        (root / "places365_val.txt").write_text("Places365_val_00000001.jpg\n")
    elif how == "label beyond":
        (root / "places365_val.txt").write_text("Places365_val_00000001.jpg 365\n")
    elif how == "class gap":
        text = (root / "categories_places365.txt").read_text()
        (root / "categories_places365.txt").write_text(text.replace(" 2\n", " 9\n"))


@pytest.mark.parametrize(
    ("root", "how", "expected"),
    [
        ("folder", "empty class", "class folder .*crane has no image"),
        ("folder", "no split", r"has no folder val/ \(it has: synthetic.json, train, validation\)"),
        ("folder", "strange class", "krane is no class of the training set"),
        ("imagenet", "flat", "val has no class folders; it has images without a class.*sort them"),
        ("folder", "one class", "one class only, anemone"),
        ("inat2018", "missing files", r"train0000.jpg is not there \(2 of 15 images are missing\)"),
        ("inat2018", "no images", r"is not there \(15 of 15 images are missing\)"),
        ("inat2018", "gap", "class numbers must be 0 .. K-1 without gaps; 1 numbers below.* such as 2"),
        (
            "inat2018",
            "unknown category",
            "train2018.json: the annotation of .* has category_id 77, which is no category",
        ),
        ("inat2018", "unknown image", "val2018.json: an annotation is of image id 7777"),
        ("inat2018", "no annotation", "has no annotation"),
        ("inat2018", "two annotations", "more than one annotation"),
        ("inat2018", "other categories", "different categories"),
        ("inat2018", "not json", "train2018.json is not valid JSON"),
        ("inat2018", "not coco", "lacks 'categories'; needed are"),
        ("inat2018", "no json", "val2018.json is not there; expected is train2018.json"),
        ("places365", "both sizes", "choose with data.places_size=large or"),
        ("places365", "no sizes", "has no large or small Places365 images"),
        ("places365", "bad line", "places365_val.txt line 1: .* is not a name, a blank and a class number"),
        ("places365", "label beyond", "has class 365, but the classes are 0 .. 4"),
        ("places365", "class gap", "without gaps"),
    ],
    indirect=["root"],
)
def test_bad_sets_are_one_line(root: Path, request: pytest.FixtureRequest, how: str, expected: str) -> None:
    task = request.node.callspec.params["root"]
    damage(root, how)
    with pytest.raises(UserError, match=expected) as caught:
        find_images(task, data_config(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ("path,label\na.jpg,x\n", None, "give both data.train_list and data.val_list"),
        ("file,label\na.jpg,x\n", "path,label\n", r"has no column path \(it has file, label\)"),
        ("path,label\na.jpg,x\nb.jpg,\n", "path,label\n", "row 2 has no path or no label"),
        ("path,label\n", "path,label\n", "has no rows"),
        ("path,label,label\na.jpg,x,y\n", "path,label\n", "has the column label twice"),
        ("path,label\na.jpg,0\nb.jpg,2\n", "path,label\na.jpg,0\n", "without gaps; 1 numbers below.*such as 1"),
        ("path,label\na.jpg,0\nb.jpg,1\n", "path,label\na.jpg,x\n", "labels that are numbers and one has names"),
        ("path,label\na.jpg,x\nb.jpg,y\n", "path,label\na.jpg,z\n", "has label z, which .*t.csv has not"),
        ("path,label\na.jpg,x\nb.jpg,y\n", "path,label\na.jpg,x\n", r"a.jpg is not there \(2 of 2 images"),
    ],
)
def test_bad_lists_are_one_line(tmp_path: Path, train: str, val: str | None, expected: str) -> None:
    (tmp_path / "t.csv").write_text(train)
    lists: dict[str, Any] = {"train_list": str(tmp_path / "t.csv")}
    if val is not None:
        (tmp_path / "v.csv").write_text(val)
        lists["val_list"] = str(tmp_path / "v.csv")
    with pytest.raises(UserError, match=expected) as caught:
        find_images("folder", data_config(None, **lists))
    assert "\n" not in str(caught.value)


def test_no_data_and_a_wrong_folder_say_what_is_expected() -> None:
    with pytest.raises(UserError, match=r"no data: give --data with train2018.json"):
        find_images("inat2018", data_config(None))
    with pytest.raises(UserError, match=r"/nowhere \(--data\) is not there; expected is train/<class>/"):
        find_images("folder", data_config(Path("/nowhere")))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions mean nothing to root: its effective user is "nobody" meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("root", ["folder"], indirect=True)
@pytest.mark.parametrize("place", ["train", "val/{}", "train/{}/deep"])
def test_a_folder_that_cannot_be_listed_is_not_left_out(
    root: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sorted(entry.name for entry in (root / "train").iterdir())[0]
    folder = root / place.format(first)
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    root.chmod(0o755)
    find_images("folder", data_config(Path()))
    folder.chmod(0o000)
    try:
        with unprivileged(), pytest.raises(UserError, match=rf"folder {folder.name}|{folder.name} cannot be listed"):
            find_images("folder", data_config(Path()))
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_a_class_folder_that_is_a_broken_link_is_not_left_out(root: Path) -> None:
    (root / "train" / "zebra").symlink_to(root / "unmounted")
    with pytest.raises(UserError, match=r"zebra is a link to nowhere \(1 such\)"):
        find_images("folder", data_config(root))


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_files_of_macos_are_no_images(root: Path) -> None:
    before = pairs(find_images("folder", data_config(root)), "train")
    for path in list((root / "train").glob("*/*")):
        (path.parent / f"._{path.name}").write_bytes(b"attributes")
    images = find_images("folder", data_config(root))
    assert pairs(images, "train") == before
    assert not images.warnings


def write_lists(folder: Path, labels: list[int], bom: bool = False) -> DataConfig:
    for index in range(len(labels)):
        (folder / f"{index}.jpg").touch()
    rows = "".join(f"{index}.jpg,{label}\n" for index, label in enumerate(labels))
    (folder / "list.csv").write_text(f"path,label\n{rows}", encoding="utf-8-sig" if bom else "utf-8")
    return data_config(None, train_list=str(folder / "list.csv"), val_list=str(folder / "list.csv"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2_000_000_000], "1999999999 numbers below the highest, 2000000000, are missing, such as 1"),
        ([0, 1, 2**62], "are missing, such as 2"),
        ([1, 2], "1 numbers below the highest, 2, are missing, such as 0"),
        ([-1, 0], "there is -1"),
    ],
)
def test_class_numbers_with_gaps_are_one_line_at_once(tmp_path: Path, labels: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_images("folder", write_lists(tmp_path, labels))


def test_a_list_gives_each_image_one_label_and_keeps_their_spelling(tmp_path: Path) -> None:
    write_lists(tmp_path, [0, 1])
    config = data_config(None, train_list=str(tmp_path / "list.csv"), val_list=str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label\n0.jpg,01\n1.jpg,1\n")
    assert find_images("folder", config).class_names == ["01", "1"]
    for again in ("./0.jpg", f"{tmp_path}/0.jpg", f"../{tmp_path.name}/0.jpg"):
        (tmp_path / "list.csv").write_text(f"path,label\n0.jpg,a\n1.jpg,b\n{again},b\n")
        with pytest.raises(UserError, match=r"csv: 0.jpg has the labels a and b \(1 such images\)"):
            find_images("folder", config)
        (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,b\n0.jpg,a\n{again},a\n{again},a\n")
        with pytest.raises(UserError, match=r"csv: \S*0.jpg is listed 3 times \(2 of 4 rows repeat an image\)"):
            find_images("folder", config)


def test_a_label_that_is_a_list_is_refused_and_an_image_that_links_to_itself_is_listed(tmp_path: Path) -> None:
    write_lists(tmp_path, [0, 1])
    file = tmp_path / "list.parquet"
    pd.DataFrame({"path": ["0.jpg", "1.jpg"], "label": [[0], [1]]}).to_parquet(file)
    with pytest.raises(UserError, match=r"list.parquet: row 1 has the label \[0\], which is no name or number"):
        find_images("folder", data_config(None, train_list=str(file), val_list=str(file)))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").symlink_to(tmp_path / split / name / "0.jpg")
    assert list(find_images("folder", data_config(tmp_path)).train.names) == ["a/0.jpg", "b/0.jpg"], (
        "read, they are named"
    )


@pytest.mark.parametrize("root", ["places365", "places205", "inat2021"], indirect=True)
def test_an_entry_that_repeats_an_image_is_said(root: Path, request: pytest.FixtureRequest) -> None:
    task = request.node.callspec.params["root"]
    pattern = {"places365": "places365_val.txt", "places205": "val_places205.csv", "inat2021": "val.json"}[task]
    (path,) = root.rglob(pattern)
    if task == "inat2021":
        content = json.loads(path.read_text())
        image, of_image = content["images"][0], {a["image_id"]: a for a in content["annotations"]}
        content["images"].append(image | {"id": 900})
        content["annotations"].append(of_image[image["id"]] | {"id": 900, "image_id": 900})
        path.write_text(json.dumps(content))
    else:
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines, f"/{lines[0].lstrip('/')}"]))
    (warning,) = find_images(task, data_config(root)).warnings
    assert warning.startswith(f"{path}: ")
    assert warning.endswith(" is there more than once (1 entries repeat an image), and each entry counts")
    if task == "places365":
        path.write_text("\n".join([*lines, lines[0].rsplit(" ", 1)[0] + " 4"]))
        with pytest.raises(UserError, match=rf"{path}: \S+ has the categories .* \(1 such images\); leave it one"):
            find_images(task, data_config(root))


def test_a_byte_order_mark_is_no_part_of_a_name(roots: dict[str, Path], tmp_path: Path) -> None:
    assert len(find_images("folder", write_lists(tmp_path, [0, 1], bom=True)).train) == 2
    for task, kinds in (("places365", ["*.txt"]), ("inat2021", ["*.json"])):
        root = Path(shutil.copytree(roots[task], tmp_path / task))
        before = pairs(find_images(task, data_config(root)), "train")
        for path in (path for kind in kinds for path in root.glob(kind)):
            path.write_text(path.read_text(), encoding="utf-8-sig")
        assert pairs(find_images(task, data_config(root)), "train") == before


@pytest.mark.parametrize("root", ["inat2021"], indirect=True)
@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("images", "file_name"), None, "the file_name None of an image is no path"),
        (("images", "file_name"), 5, "the file_name 5 of an image is no path"),
        (("annotations", "image_id"), [], r"an annotation is of image id \[\]"),
        (("annotations", "category_id"), {}, "which is no category"),
        (("images", "id"), "second", "occurs more than once"),
        (("images", "file_name"), "last", r"has the categories .* and .* \(1 such images\)"),
    ],
)
def test_odd_entries_of_inaturalist_are_one_line(root: Path, where: tuple[str, str], value: Any, message: str) -> None:
    content = json.loads((root / "train.json").read_text())
    rows, key = where
    content[rows][0][key] = (
        content[rows][{"second": 1, "last": -1}[value]][key] if value in ("second", "last") else value
    )
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        find_images("inat2021", data_config(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", ["inat2021"], indirect=True)
def test_ids_above_the_whole_numbers_of_a_double_stay_apart(root: Path) -> None:
    expected = pairs(find_images("inat2021", data_config(root)), "train")
    content = json.loads((root / "train.json").read_text())
    for rows, key in (("images", "id"), ("annotations", "image_id")):
        for entry in content[rows]:
            entry[key] += 2**60
    (root / "train.json").write_text(json.dumps(content))
    assert pairs(find_images("inat2021", data_config(root)), "train") == expected


@pytest.mark.parametrize("content", [b"\xff\xfe 1\n", "a.jpg \u00b2\n".encode(), b"a.jpg " + b"9" * 5000])
@pytest.mark.parametrize("root", ["places365"], indirect=True)
def test_odd_lists_of_places_are_one_line(root: Path, content: bytes) -> None:
    (root / "places365_val.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"places365_val\.txt.*(cannot be read|is not a name)") as caught:
        find_images("places365", data_config(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zip", ".tar", ".tar.gz", ".zst"])
def test_a_list_that_is_not_packed_as_its_name_says(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.csv{ending}"
    for content in (b"path,label\na.png,x\n", gzip.compress(b"path,label\na.png,x\n" * 99)[:40], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"t\.csv\S* cannot be read \(") as caught:
            find_images("folder", data_config(None, train_list=str(path), val_list=str(path)))
        assert "\n" not in str(caught.value)


def test_labels_of_a_long_list_are_one_kind(tmp_path: Path) -> None:
    """pandas reads in parts: the numbers of the first, and the texts of one with a name, would be different classes."""
    rows = [f"{number}.png,7" for number in range(150_000)] + ["a.png,bee", "b.png,07", "c.png,7"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    table = _read_list(tmp_path / "t.csv", None)
    assert table["label"].value_counts().to_dict() == {"7": 150_001, "bee": 1, "07": 1}


@pytest.mark.parametrize("root", ["inat2021"], indirect=True)
def test_inaturalist_from_the_cache_and_with_ids_of_other_kinds(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 0)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    first = find_images("inat2021", data_config(root))
    kept = list((tmp_path / "cache").rglob("*.index"))
    assert len(kept) == 2
    again = find_images("inat2021", data_config(root))
    for split in ("train", "val"):
        assert pairs(again, split) == pairs(first, split)
    assert again.class_names == first.class_names
    content = json.loads((root / "train.json").read_text())
    for rows, key in (("images", "id"), ("annotations", "image_id")):
        for entry in content[rows]:
            entry[key] = f"é{entry[key]}"
    content["annotations"].reverse()
    (root / "train.json").write_text(json.dumps({key: content[key] for key in reversed(content)}))
    assert pairs(find_images("inat2021", data_config(root)), "train") == pairs(first, "train")
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 2
