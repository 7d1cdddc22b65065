"""Kill runs at random moments, go on with them, and compare what they leave with a run that nothing interrupted.

    python benchmarks/kills.py --kills 100                    # spread over all stages
    python benchmarks/kills.py --kills 6 --stages coco coco-2 # two stages, one of them on two gloo ranks

Each stage is a command line, on generated images with a nano model. It runs through once. Then it is started again and
again in a folder of its own; after a time drawn uniformly from the duration of the first, all its processes are killed
with SIGKILL. The same command with --resume (without, if no configuration was written yet) has to end, and to leave:
the same files and no temporary ones, the same metrics, losses and evaluations, the same bits in the last checkpoint.
Tables have to be the same bytes. The moments are the same for the same --seed; the machine decides what they hit.

Prints a row per stage and every difference; exit code 1 if there is one. Linux only.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_record

COMMON = ["--preset", "smoke", "--device", "cpu", "--allow-unread", "train.checkpoint_every=2"]  # knn has no steps
SMALL = {
    "coco": "schedule.steps=8 data.image_size=64 backbone.window_size=2 model.fpn_channels=16 model.head_channels=16 "
    "model.box_fc=32 model.rpn_batch_per_image=32 model.roi_batch_per_image=16 eval.score_threshold=0.01",
    "ade20k": "schedule.steps=20 data.image_size=32 data.short_side=32 data.long_side=128 eval.stride=24 "
    "model.head_channels=32 model.aux_channels=16",
    "folder": "schedule.steps=20 data.image_size=32 data.workers=1",
    "finetune": "model.mixup=0 model.cutmix=0",  # two ranks share a batch of two, and these mix pairs
    "mae": "schedule.steps=20 data.image_size=32 model.decoder_depth=1 model.decoder_width=32 eval.knn=3",
    "beit": "schedule.steps=20 data.image_size=32 mask.min_patches=4",
}
SUITE = {
    "name": "kills",
    "preset": "smoke",
    "pretrain_overrides": ["device=cpu", "data.image_size=32", "schedule.steps=20", "train.checkpoint_every=2"],
    "overrides": ["device=cpu", "data.image_size=32"],
    "pretrain": [{"label": "mae", "method": "mae", "backbone": "vit_nano_p8", "data": "folder"}],
    "tasks": [{"task": "folder", "protocol": "knn"}],
}
STAGES = ["mae", "beit", "coco", "ade20k", "finetune", "linear", "knn", "evaluation", "suite", "tables"]
TWO_RANKS = STAGES[:8]
MOMENTS = ["before step 1", "in steps", "in evaluation", "in writing", "after the record"]


@dataclass
class Stage:
    name: str
    ranks: int
    work: Path

    @property
    def title(self) -> str:
        return f"{self.name}-{self.ranks}" if self.ranks > 1 else self.name

    def command(self, output: Path, *, resume: bool) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        module = [sys.executable, *(launcher if self.ranks > 1 else []), "-m", "mae_transfer"]
        data, more = self.work / "data", ["--resume"] if resume else []
        if self.name == "tables":
            return [*module, "tables", "--runs", str(self.work / "runs"), "--output", str(output / "tables.md")]
        if self.name == "suite":
            suite = ["suite", str(self.work / "suite.yaml"), "--data", f"folder={data / 'folder'}"]
            return [*module, *suite, "--output", str(output), "--jobs", "2"]
        if self.name in ("mae", "beit"):
            options = ["pretrain", "--method", self.name, "--backbone", "vit_nano_p8", "--data", str(data / "folder")]
            return [*module, *options, "--output", str(output), *COMMON, *SMALL[self.name].split(), *more]
        task = {"coco": "coco", "ade20k": "ade20k", "evaluation": "ade20k"}.get(self.name, "folder")
        options = ["transfer", "--task", task, "--backbone", "random_vit_nano", "--data", str(data / task)]
        protocol = ["--protocol", self.name] if task == "folder" else []
        protocol += SMALL[self.name].split() if self.name == "finetune" else []
        if self.name == "evaluation":
            more = ["--eval-only"]
        return [*module, *options, *protocol, "--output", str(output), *COMMON, *SMALL[task].split(), *more]

    def prepare(self, output: Path) -> None:
        """What the command finds: a run that has trained, for an evaluation."""
        if self.name == "evaluation":
            shutil.copytree(self.work / "trained", output)
            for left in ("record.json", "per_image.npz"):
                (output / left).unlink(missing_ok=True)

    def begun(self, output: Path) -> bool:
        return self.name not in ("suite", "tables") and (output / "config.yaml").exists()


def start(command: list[str], work: Path, mark: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(work / "cache"), "KILLS_MARK": mark}
    with (work / "last.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=work)


def finish(stage: Stage, output: Path, *, resume: bool) -> None:
    command = stage.command(output, resume=resume)
    code = start(command, stage.work, "").wait()
    if code:
        log = (stage.work / "last.log").read_text(errors="replace")
        raise RuntimeError(f"exit code {code} of {' '.join(command)}\n{log[-3000:]}")


def kill_all(mark: str) -> None:
    """SIGKILL for all processes that carry the mark: torchrun gives its workers sessions of their own."""
    while True:
        found = 0
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("KILLS_MARK") == mark:
                    process.kill()
                    found += 1
        if not found:
            return


def moment(output: Path, before: set[Path], total: int, log_size: int) -> str:
    """Where the kill fell, told by what it left."""
    if any(path.suffix == ".tmp" or path.name.startswith(".") for path in set(output.rglob("*")) - before):
        return "in writing"
    logs = sorted(output.rglob("log.txt"), key=lambda path: path.stat().st_mtime)
    if not logs or logs[-1].stat().st_size <= log_size:
        return "before step 1"
    run = logs[-1].parent
    if (run / "record.json").exists():
        return "after the record"
    last = max((line["step"] for line in read_metrics(run)), default=0)
    # runs without steps log a line, and then compute features and evaluate
    return "in evaluation" if last >= total or (run / "features").exists() else "in steps" if last else "before step 1"


def leavings(stage: Stage, output: Path) -> dict[str, Any]:
    """All that has to be the same, by name."""
    found: dict[str, Any] = {"files": sorted(str(path.relative_to(output)) for path in output.rglob("*"))}
    for path in output.rglob("tables.md"):
        found["tables"] = path.read_bytes()
    for path in sorted(output.rglob("record.json")):
        run, name = path.parent, path.parent.relative_to(output)
        found[f"{name} metrics"] = read_record(path)["metrics"]
        kept = ("step", "epoch", "lr", "eval")
        lines = [{k: v for k, v in line.items() if k in kept or "loss" in k} for line in read_metrics(run)]
        found[f"{name} losses"] = lines
        for checkpoint in list_checkpoints(run / "checkpoints")[-1:]:
            state = load_checkpoint(checkpoint)
            found[f"{name} checkpoint"] = state["sha256"], state["step"]
        if (run / "per_image.npz").exists():
            found[f"{name} per image"] = (run / "per_image.npz").read_bytes()
    found["cache"] = sorted(str(p) for p in (stage.work / "cache").rglob(".*"))
    return found


def try_stage(stage: Stage, kills: int, draw: random.Random) -> int:
    """Kill the stage so many times; print its row; the number of differences."""
    output = stage.work / stage.title  # the same for all: names of runs follow from paths of checkpoints
    stage.prepare(output)
    started = time.monotonic()
    finish(stage, output, resume=False)
    seconds = time.monotonic() - started
    expected = leavings(stage, output)
    total = max((line["step"] for log in output.rglob("log.txt") for line in read_metrics(log.parent)), default=0)
    shutil.rmtree(output)
    moments: Counter[str] = Counter()
    faults = resumed = 0
    while moments.total() < kills:
        stage.prepare(output)
        before = set(output.rglob("*"))
        log_size = (output / "log.txt").stat().st_size if (output / "log.txt").exists() else 0
        mark, after = uuid.UUID(int=draw.getrandbits(128)).hex, draw.uniform(0, seconds)
        process = start(stage.command(output, resume=False), stage.work, mark)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        ended = process.poll() == 0
        kill_all(mark)
        process.wait()
        if not ended:  # faster than the first run, and over before the moment came
            where = "before step 1" if not output.exists() else moment(output, before, total, log_size)
            moments[where] += 1
            begun = stage.begun(output)
            resumed += begun
            try:
                finish(stage, output, resume=begun)
                actual = leavings(stage, output)
                different = [key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key)]
                odd = sorted(set(actual["files"]) ^ set(expected["files"]))
                text = f"{', '.join(different)}; files: {', '.join(odd[:5])}"
            except (RuntimeError, UserError) as error:
                different, text = ["error"], str(error)
            if different:
                faults += 1
                print(f"{stage.title}: killed {where} after {after:.2f} s: {text}", file=sys.stderr, flush=True)
        shutil.rmtree(output, ignore_errors=True)
    cells = [stage.title, f"{seconds:.1f}", kills, *(moments[name] for name in MOMENTS), resumed]
    print("| " + " | ".join(map(str, [*cells, f"no: {faults}" if faults else "yes"])) + " |", flush=True)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in total, spread over the stages; default: 100")
    names = [*STAGES, *(f"{name}-2" for name in TWO_RANKS)]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="default: all; -2 is two gloo ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kills.") as folder:
        work = Path(folder)
        make_classification(work / "data/folder", "folder", train_images=4, val_images=4)
        make_coco(work / "data/coco", train_images=6, val_images=3, size=(48, 64))
        make_ade20k(work / "data/ade20k", train_images=6, val_images=3, size=(40, 64))
        (work / "suite.yaml").write_text(yaml.safe_dump(SUITE))
        if {"evaluation", "evaluation-2"} & {*options.stages}:
            finish(Stage("ade20k", 1, work), work / "trained", resume=False)
        if "tables" in options.stages:
            finish(Stage("knn", 1, work), work / "runs" / "knn", resume=False)
        titles = ["stage", "seconds", "kills", *MOMENTS, "resumed", "identical"]
        print(f"| {' | '.join(titles)} |\n|---|{'---:|' * (len(titles) - 2)}---|", flush=True)
        faults = 0
        for number, title in enumerate(options.stages):
            name, _, ranks = title.partition("-")
            share = options.kills * (number + 1) // len(options.stages) - options.kills * number // len(options.stages)
            faults += try_stage(Stage(name, int(ranks or 1), work), share, random.Random(f"{options.seed} {title}"))
    print(f"{options.kills} kills, {faults} differences")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
