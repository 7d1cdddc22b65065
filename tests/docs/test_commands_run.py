"""Command lines of README, docs and `--help` run as they stand there, at the smallest size.

Written for a line: `--preset smoke` on a CPU, tiny models for the encoders that it names, tiny sets and files of the
kinds that it names. The rest is the reader's own line. Lines that say the same at this size run once. `NOT_RUN` has the
lines that cannot run here, and where else they do.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from PIL import Image
from support.coco_command import TINY
from support.command_line import run, start
from support.documents import NAMES, command_of, commands_of
from support.paths import ROOT, TOOLS

from mae_transfer.commands import TOOLS as FILE_OF
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.data.synthetic.coco import make_coco

NOT_RUN = {
    "mae-transfer demo": "make demo; tests/test_wheel.py runs it with fewer steps",
    "--task depth|dinov3_s": "they want packages of the pages, whose own tests run them",
    "--engine detectron2": "tests/tasks/coco/detectron2, where detectron2 is installed",
    r"verify (mae|timm|--all)|mae_finetuned|\.pkl|upernet_mae-base|dinov2_vits14_(reg4|pretrain)": "they want files of "
    "others; tests/cli/test_verify.py, test_transfer_trained*.py, tests/tasks/ade20k/test_trained_linear.py and "
    "tests/pretrain/tokenizers write small ones of their layouts",
    r"real_weights\.yaml": "it wants weights of others; tests/suites/test_plan.py plans it",
    "plan --suite": "minutes; tests/suites/test_costs.py has a small one",
    "rope_224 --checkpoint": "tests/pretrain/methods/test_rotary.py takes such a run to transfer",
    r"data\.imagenet_a": "tests/tasks/classification/test_evaluate.py has such sets",
    r"COMMAND|transfer \.\.\.": "a form, not a line",
}
"""Pattern of a line -> where else it runs."""

ENCODERS = {"vit_b", "vit_l", "vit_ti", "vit_ti_p8", "vit_s_p8", "vit_h_p16", "mae_vit_b", "mae_vit_l"}
ENCODERS |= {"random_vit_ti", "random_vit_nano"}
"""Here they are vit_nano, with random weights where the line has no file."""
FILES = {
    **{"RUN_FOLDER": "my-mae", "mae_pretrain_vit_base_full.pth": "my_full.pth", "./vit-mae-base": "hf"},
    **{"/scratch/runs": "results/runs", "/scratch/a": "results/runs", "/scratch/b": "my-mae"},
    **{"0,1,2,4,12": "0,8", "1,2,5,10,100": "5,100", "1,10,100": "5,100", "1,2,5,10": "5,10", "curve": "0,1"},
}
"""What a line names -> what stands for it here, of the same kind."""
SIZES = re.compile(r"schedule\.|train\.(global|micro)_batch=|data\.image_size=|model\.(fpn|head|box|roi|decoder)")
"""Overrides of a line that are its size."""
SMALL = {
    "coco": TINY,
    "ade20k": ["data.image_size=32", "eval.stride=24"],
    "pretrain": ["data.image_size=64", "device=cpu"],
}
OTHERS = ("imagenet", "inat2017", "inat2018", "inat2019", "places205", "places365")
STUDIES = ["tiny_imagenet=data/tiny_imagenet", "flowers=flowers", "persons=persons", "camvid=data/camvid"]
SETS = {
    "transfer_study": STUDIES,
    "paper_claims": STUDIES[:1],
    "dense_protocols": STUDIES[::3],
    "many_classes": [STUDIES[0], "panoptic=data/photographs"],
    "frozen": ["imagenet=data/imagenet", "coco=data/coco", "ade20k=data/ADEChallengeData2016"],
    "mae_vs_baselines": [
        *("coco=data/coco", "ade20k=data/ADEChallengeData2016"),
        *(f"{name}=data/{name}" for name in OTHERS),
    ],
}
"""Data sets of a suite; its lines leave most of them to the reader."""


def lines() -> list[str]:
    """Of all pages and of the examples in --help; one of those that are the same at this size."""
    texts = [(ROOT / name).read_text() for name in NAMES]
    texts += [(ROOT / f"mae_transfer/cli/{name}.py").read_text().replace("\\\\\n", "\\\n") for name in FILE_OF]
    found = [re.sub(r"\s+# .*", "", line) for text in texts for line in commands_of(text)]
    here = [line for line in found if not any(re.search(pattern, line) for pattern in NOT_RUN)]
    return list({said(line): line for line in here}.values())


@cache
def parser(command: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"mae_transfer.cli.{command}").build_parser()


def said(line: str) -> str:
    """What a line says, in whatever order and with or without a slash at the end of a folder."""
    command, words = small(line)
    try:
        options = vars(parser(command).parse_intermixed_args(words))
    except SystemExit:
        return line
    options = {name: sorted(map(str, x)) if isinstance(x, list) else str(x) for name, x in options.items()}
    return f"{line.startswith('torchrun')} {command} {options}".replace("./", "").replace("/'", "'")


def small(line: str) -> tuple[str, list[str]]:
    """The command of a line and its arguments at the size of this test."""
    same = "--method mae" if "pretrain <" in line else "--task folder"
    line = line.replace("<the same options>", f"{same} --backbone vit_b --data my_images --output run")
    line = line.replace("--checkpoint dinov2s.safetensors", "--weights random").replace("..000146}", "..000001}")
    line = line.replace("--backbone vit_nano_p8 --checkpoint moco0", "--backbone vit_b --checkpoint my-mae")
    command, words = command_of(line)
    words = [FILES.get(word, "vit_nano" if word in ENCODERS else word) for word in words if word != "..."]
    words = [re.sub("^(.*=)?/data/", r"\1data/", word) for word in words if not SIZES.match(word)]
    task = words[words.index("--task") + 1] if "--task" in words else command
    if command == "suite":
        words = re.sub(r"--data( [^-]\S*)*", "", " ".join(words)).replace("--gpus 8", "--gpus 1").split()
        own = Path(words[0]).stem in ("transfer_study", "paper_claims", "dense_protocols", "many_classes")
        weights = [] if own else ["--preset", "smoke", "--checkpoint", "mocov3_vit_b=my.pth"]
        dry = [] if {"--status", "--dry-run"} & set(words) else ["--dry-run"]
        words += [*weights, *dry, "--data", *SETS[Path(words[0]).stem]]
    elif command == "plan":
        words += SMALL.get(task, ["data.image_size=64"])
        words = [word for word in words if word != "device=cpu"]
    elif command in ("transfer", "pretrain"):
        if "--preset" in words:
            del words[words.index("--preset") : words.index("--preset") + 2]
        words += ["--preset", "smoke", *(["--device", "cpu"] if command == "transfer" else [])]
        words += SMALL.get(task, ["data.image_size=32"])
        words += ["data.image_size=128"] if {"recipe=pixio", "beit"} & set(words) else []
        words += ["data.image_size=56"] if "patch14" in line else []
        words = [word for word in words if word != "eval.stride=24" or "knn" not in line]
        words += ["subset=null"] if "--fraction" in words else []
    if "--draws" in words:
        words[words.index("--draws") + 1] = "2"
    return command, words


def call(command: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"mae_transfer.cli.{command}").main(words)
    return code


def two_ranks(line: str, command: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """By torchrun where it has more to do than start them; else its options are read as it reads them."""
    launcher = shlex.split(line[: line.index(f" {command} ")].replace("--nproc-per-node 8", "--nproc-per-node 2"))
    if "--max-restarts" in launcher:
        return run([sys.executable, "-m", "torch.distributed.run", "--standalone", *launcher[1:], command, *words])
    options = torch.distributed.run.parse_args(launcher[1:])
    assert (options.module, options.training_script, options.nproc_per_node) == (True, "mae_transfer", "2")
    return start(words, 2, TOOLS / FILE_OF[command]).wait()


def write_masks(folder: Path, classes: int) -> Path:
    """An image and mask folder pair for each split, with the values 0 to `classes` - 1 in each mask."""
    rng = np.random.default_rng(0)
    mask = np.resize(np.repeat(np.arange(classes), 8), (48, 64)).astype(np.uint8)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(mask).save(folder / "annotations" / split / f"{i}.png")
            pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.jpg")
    return folder


def write_coco(here: Path, coco: Path) -> None:
    """The set of `coco` as two files and one folder of images."""
    (here / "imgs").mkdir()
    for split, name in (("train", "a.json"), ("val", "b.json")):
        content = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
        for image in content["images"]:
            new = f"{split}{image['file_name']}"
            shutil.copy(coco / f"{split}2017" / image["file_name"], here / "imgs" / new)
            image["file_name"] = new
        (here / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the lines name."""
    here = tmp_path_factory.mktemp("world")
    for name in ("data", "photos", "shards", "output", "results"):
        (here / name).mkdir()
    data = here / "data"
    for task in OTHERS:
        make_classification(data / task, task, train_images=4, val_images=3)
    images = make_classification(here / "my_images", "folder", train_images=8, val_images=3)
    for name in ("flowers", "data/tiny_imagenet", "data/imagenet21k"):
        (here / name).symlink_to(images)
    files = [path for path in sorted((images / "train").rglob("*")) if path.is_file()]
    for i in range(2):
        with tarfile.open(here / f"shards/train-{i:06d}.tar", "w") as shard:
            for file in files[4 * i : 4 * i + 4]:
                shutil.copy(file, here / "photos" / f"{file.stem}.jpg")
                shard.add(file, f"{file.stem}.jpg")
    coco = make_coco(data / "coco", train_images=40, val_images=3, size=(48, 64))
    for name in ("data/coco_small", "persons"):
        (here / name).symlink_to(coco)
    write_coco(here, coco)
    for name in ("ADEChallengeData2016", "ade20k"):
        write_masks(data / name, 151)
    write_masks(data / "camvid", 12)
    (write_masks(data / "photographs", 134) / "classes.txt").write_text("".join(f"c{i}\n" for i in range(133)))
    own = write_masks(here / "own", 20)
    for name, split in (("ab", "training"), ("cd", "validation")):
        (here / name[0]).symlink_to(own / "images" / split)
        (here / name[1]).symlink_to(own / "annotations" / split)
    (here / "configs").symlink_to(ROOT / "configs")
    for study in ("evidence", "dense_protocols", "many_classes", "real_weights"):
        (here / "results" / study).symlink_to(ROOT / "results" / study)

    before = Path.cwd()
    os.chdir(here)
    try:
        for line in (
            "mae-transfer pretrain --method mae --backbone vit_b --data my_images --output my-mae",
            "mae-transfer pretrain --method dvae --backbone vit_b --data my_images --output my_tokenizer",
            "mae-transfer transfer --task coco --backbone mae_vit_b --data data/coco --output results/runs/my-run",
            "mae-transfer transfer --task folder --backbone vit_b --data my_images --output results/runs/my-classifier",
            "mae-transfer convert --to detectron2 results/runs/my-run output/model_final.pth",
            "mae-transfer convert --to mae_transfer output/model_final.pth detector.pth",
            "mae-transfer recipe new my.yaml --task coco",
            "mae-transfer inspect my-mae --backbone vit_nano --export official my.pth",
            "mae-transfer inspect my-mae --backbone vit_nano --export official_full my_full.pth",
            "mae-transfer inspect my-mae --backbone vit_nano --export hf hf",
        ):
            assert call(*small(line)) == 0, line
    finally:
        os.chdir(before)
    torch.save({"student": torch.load(here / "my.pth", weights_only=True)["model"]}, here / "checkpoint.pth")
    return here


@pytest.mark.parametrize("line", lines())
def test_a_line_runs(line: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "results").unlink()
    shutil.copytree(world / "results", tmp_path / "results", symlinks="tables.md" not in line)
    for name in ("my-mae", "my_tokenizer", "detector.pth", "my.yaml"):
        if re.search(rf"(--output|convert|recipe new)( \S+)* {name}", line):
            (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command, words = small(line)
    if "<the same options>" in line:
        assert call(command, [word for word in words if word not in ("--resume", "auto", "--eval-only")]) == 0
    if line.startswith("torchrun"):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        done = two_ranks(line, command, words)
        assert done.returncode == 0, done.stderr
    else:
        assert call(command, words) == 0
