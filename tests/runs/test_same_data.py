"""Other data under the same names are refused, and the run folder stays as it was."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from support.coco_command import TINY
from support.paths import GOLDENS

from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.run import run_task
from mae_transfer.runs.same_data import difference
from mae_transfer.runs.tasks import make_task

EARLIER = GOLDENS / "earlier_run"
OPTIONS = [
    *("--task", "folder", "--protocol", "linear", "--backbone", "random_vit_nano", "--preset", "smoke"),
    *("--device", "cpu", "data.image_size=32", "schedule.steps=6", "train.checkpoint_every=3", "data.workers=0"),
    *("train.keep_checkpoints=10", "train.global_batch=4", "train.micro_batch=4", "eval.pictures=0", "optim.lr=0.001"),
]


def exchange(folder: Path) -> None:
    """Exchange the pictures of two classes under the same names."""
    one, other = (sorted(place.iterdir())[0] for place in sorted(folder.iterdir()))
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


@pytest.mark.parametrize(("split", "title"), [("train", "training"), ("val", "val")])
def test_pictures_exchanged_after_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, title: str
) -> None:
    data, output = shutil.copytree(EARLIER / "data", tmp_path / "data"), tmp_path / "run"
    command = [*OPTIONS, "--data", str(data), "--output", str(output)]
    assert main(command) == 0
    written = {name: (output / name).read_bytes() for name in ("record.json", "config.yaml")}
    exchange(data / split)
    for option in ("--eval-only", "--resume"):
        if option == "--resume":
            (output / "record.json").unlink()
        assert main([*command, option, "data.on_bad_image=skip"]) == 2
        said = capsys.readouterr().err
        assert f"error: {output} is a run on other data: the {title} images, or what belongs to them" in said
        assert len(re.findall("they had the fingerprint [0-9a-f]{16}, now it is [0-9a-f]{16}; ", said)) == 1
        assert all((output / name).read_bytes() == content for name, content in written.items() if name[0] == "c")
        assert option == "--resume" or (output / "record.json").read_bytes() == written["record.json"]
    exchange(data / split)
    shutil.move(data, tmp_path / "elsewhere")
    again = [*OPTIONS, "--data", str(tmp_path / "elsewhere"), "--output", str(output)]
    assert main([*again, "--resume"]) == 0
    assert "RANDOM weights" in capsys.readouterr().err, "the run started from them"
    assert main([*again, "--eval-only"]) == 0
    said = capsys.readouterr().err
    assert "RANDOM weights" not in said
    assert "random_vit_nano: the weights of the run" in said
    assert "new: every weight" not in said
    metrics = output / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:2]))
    for option in ("--eval-only", "--resume"):
        assert main([*again, option]) == 2
        assert f"error: {metrics} ends at step 2, and the run's checkpoint is after step 6" in capsys.readouterr().err


def test_pictures_of_a_set_beside_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet-A's numbers stand in the record: an evaluation of another set under its name replaces them and says so,
    and where nothing is evaluated it is refused."""
    data = make_classification(tmp_path / "data", "imagenet", train_images=2, val_images=1, classes=2)
    a = Path(shutil.copytree(data / "val", tmp_path / "a"))
    options = [
        *OPTIONS,
        "--task",
        "imagenet",
        "--protocol",
        "knn",
        "--data",
        str(data),
        "--output",
        str(tmp_path / "run"),
    ]
    options = [word for word in options if "=" not in word or word.startswith(("data.image_size", "data.workers"))]
    assert main([*options, f"data.imagenet_a={data / 'train'}", "--output", str(tmp_path / "of_train")]) == 0
    assert "of 4 val images are training images too" in capsys.readouterr().err
    assert main([*options, f"data.imagenet_a={a}"]) == 0
    record = tmp_path / "run" / "record.json"
    before = record.read_bytes()
    exchange(a)
    assert main([*options, f"data.imagenet_a={a}", "--resume", "auto"]) == 2
    assert "was evaluated on other images beside the val images: imagenet_a had" in capsys.readouterr().err
    assert record.read_bytes() == before
    assert main([*options, f"data.imagenet_a={a}", f"data.imagenet_r={a}", "--eval-only"]) == 0
    said = capsys.readouterr().err
    assert "evaluated on other images than before: imagenet_a had the fingerprint" in said
    assert "imagenet_r had" not in said
    assert read_record(record)["data"]["robustness"]["imagenet_a"] in said
    both = read_record(record)
    wanted = {key: value for key, value in both["metrics"].items() if key.startswith("imagenet_")}
    assert len(wanted) == 2

    # without these sets their numbers stay, and a line says so
    assert main([*options, f"data.imagenet_r={a}", "--eval-only"]) == 0
    assert "IN-A top-1: not evaluated now; the record keeps its numbers" in capsys.readouterr().err
    assert main([*options, "--eval-only"]) == 0
    alone = read_record(record)
    assert wanted.items() <= alone["metrics"].items()
    assert alone["data"]["robustness"] == both["data"]["robustness"]
    assert main([*options, f"data.imagenet_r={a}", "--eval-only", "eval.mask_classes=false"]) == 0
    said = capsys.readouterr().err
    assert "IN-A top-1: not evaluated now, and its numbers leave the record, since the evaluation is another" in said
    assert "imagenet_a_top1" not in read_record(record)["metrics"], "of other settings than the rest"


def test_finished_runs_of_a_series_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures exchanged in their folder, or another folder with other pictures; data that are gone cannot be."""
    data, output = shutil.copytree(EARLIER / "data", tmp_path / "data"), tmp_path / "runs"
    command = ["knn,linear" if word == "linear" else word for word in OPTIONS if not word.startswith("optim")]
    command += ["--output", str(output), "--allow-unread"]
    assert main([*command, "--data", str(data)]) == 0
    written = {path: path.read_bytes() for path in output.rglob("record.json")}
    assert main([*command, "--data", str(data), "--resume"]) == 0
    other = shutil.copytree(data, tmp_path / "other")
    assert main([*command, "--data", str(other), "--resume"]) == 0, "the same pictures elsewhere"
    exchange(other / "train")
    exchange(data / "val")
    for place, title in ((data, "val"), (other, "training")):
        capsys.readouterr()
        assert main([*command, "--data", str(place), "--resume"]) == 2
        assert re.search(
            f"error: {output}/knn is a run on other data: the {title} images, or what belongs to them, are not the "
            "same: they had the fingerprint [0-9a-f]{16}, now it is [0-9a-f]{16}; give it the data of its training",
            capsys.readouterr().err,
        )
    assert main([*command, "--data", str(tmp_path / "nowhere"), "--resume"]) == 2
    shutil.rmtree(data)
    assert main([*command, "--data", str(data), "--resume"]) == 0
    assert {path: path.read_bytes() for path in output.rglob("record.json")} == written


@pytest.mark.parametrize(
    ("protocols", "make", "options"),
    [
        ("knn,logreg,in_context", make_ade20k, ["--task", "ade20k", "data.image_size=32"]),
        ("linear", make_ade20k, ["--task", "ade20k", "data.image_size=32", "eval.stride=32"]),
        ("frozen", make_coco, ["--task", "coco", *(option for option in TINY if not option.startswith("backbone"))]),
    ],
    ids=["ade20k, patches", "ade20k, linear", "coco"],
)
def test_other_pixels_under_frozen_dense_protocols(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    protocols: str,
    make: Callable[..., Path],
    options: list[str],
) -> None:
    """Names, sizes and annotations stay."""
    data = make(tmp_path / "data", train_images=4, val_images=2, size=(48, 64))
    output = tmp_path / "runs"
    command = [*options, "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu", "--data", str(data)]
    command += ["data.workers=0", "eval.pictures=0"]
    assert main([*command, "--protocol", protocols, "--output", str(output), "--allow-unread"]) == 0
    (record, *_) = written = {path: path.read_bytes() for path in output.rglob("record.json")}
    assert len(written) == len(protocols.split(","))
    for split, title in (("train", "training"), ("val", "val")):
        image = min(path for path in data.rglob("*.jpg") if split in str(path.relative_to(data)))
        before = image.read_bytes()
        ImageOps.invert(Image.open(image)).save(image)
        capsys.readouterr()
        for protocol in protocols.split(","):
            place = record.parent if len(written) == 1 else output / protocol
            for option in ("--eval-only", "--resume"):
                assert main([*command, "--protocol", protocol, "--output", str(place), option, "--allow-unread"]) == 2
                said = capsys.readouterr().err
                assert f"error: {place} is a run on other data: the {title} images, or what belongs to them" in said
        image.write_bytes(before)
    assert {path: path.read_bytes() for path in output.rglob("record.json")} == written


def test_nothing_is_evaluated_in_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    config = resolve_config("folder", "random_vit_nano", protocol="knn", preset="smoke", data=EARLIER / "data")
    fabric, task = make_fabric("cpu", config.train.precision), make_task(config)
    with pytest.raises(UserError, match=r"nothing to evaluate in .*run: it has no config\.yaml; train first"):
        run_task(fabric, task, tmp_path / "run", resume=False, eval_only=True, progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_run_of_an_earlier_version_is_compared_by_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = shutil.copytree(EARLIER, tmp_path / "earlier")
    command = [*OPTIONS, "--data", str(earlier / "data"), "--output", str(earlier / "stopped"), "--resume"]
    image = next((earlier / "data/train").glob("*/*"))
    image.rename(image.with_name("renamed.png"))
    assert main(command) == 2
    assert "they had the fingerprint" in capsys.readouterr().err
    image.with_name("renamed.png").rename(image)
    assert main(command) == 0
    before = read_record(earlier / "finished/record.json")
    record = read_record(earlier / "stopped/record.json")
    assert record["data"]["fingerprint"] == before["data"]["fingerprint"] == record["data"]["names_fingerprint"]
    assert not difference(before["data"], record["data"])


def test_like_is_compared_with_like() -> None:
    one = {"fingerprint": "new", "names_fingerprint": "old", "parts": {"train": "a", "val": "b"}}
    assert not difference(one, one)
    assert "val images" in difference(one, one | {"parts": {"train": "a", "val": "c"}})
    assert "training and val images" in difference(one, one | {"parts": {"train": "d", "val": "c"}})
    assert "fingerprint new" in difference(one, one | {"fingerprint": "of another subset"})
    assert not difference({"fingerprint": "old"}, one)
    assert not difference(one, {"fingerprint": "old"})
    assert "fingerprint older, now it is old" in difference({"fingerprint": "older"}, one)
