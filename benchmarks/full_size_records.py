#!/usr/bin/env python
"""Records of full size: the metrics of 500,000 steps, and the report of 1,000 runs. CPU seconds and memory.

    python benchmarks/full_size_records.py metrics --folder /tmp/full       # 124 MB of metrics.jsonl
    python benchmarks/full_size_records.py report --folder /tmp/full        # 1,000 runs of 1,000 steps

The runs are those of `results/` over and over under other seeds, with a metrics.jsonl each. Files are made unless they
are there. Each row is a process of its own; memory is what it takes beyond its imports.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS, EPOCHS = 500_000, 800
RUNS, STEPS_OF_A_RUN = 1000, 1000
CUT = STEPS - STEPS // EPOCHS
"""The step of the checkpoint that a resume goes on from: an epoch before the end."""


def lines(steps: int, epochs: int) -> list[str]:
    """Of a run's metrics.jsonl, one for each step."""
    found = []
    for step in range(1, steps + 1):
        loss = 0.4 + math.exp(-step / steps) + 0.01 * math.sin(step)
        line = {"step": step, "epoch": step * epochs / steps, "lr": 1.5e-4 * step / steps, "loss": loss}
        line |= {"loss_mae": loss, "grad_norm": 0.3 + loss / 7, "images_per_second": 5000 + step % 97}
        line |= {"data_wait": 0.01, "memory": 42949672960, "seconds": step * 0.81}
        found.append(json.dumps(line) + "\n")
    return found


def make_metrics(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        path.with_suffix(".tmp").write_text("".join(lines(STEPS, EPOCHS)))
        path.with_suffix(".tmp").rename(path)


def make_runs(folder: Path) -> None:
    if folder.is_dir():
        return
    records = sorted(ROOT.glob("results/*/*/record.json"))
    metrics = "".join(lines(STEPS_OF_A_RUN, 100))
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for number in range(RUNS):
        path = records[number % len(records)]
        record = json.loads(path.read_text())
        record["seed"] += 100 * (number // len(records))
        record["run_id"] = f"20261101T000000-{number:08x}"
        place = temporary / f"run{number:04d}"
        shutil.copytree(path.parent, place, ignore=shutil.ignore_patterns("record.json", "metrics.jsonl"))
        (place / "record.json").write_text(json.dumps(record))
        (place / "metrics.jsonl").write_text(metrics)
    temporary.rename(folder)


def cut_for_a_resume(folder: Path) -> Callable[[], object]:
    """`RunFolder.start_metrics`, with the epochs that a checkpoint keeps."""
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.metrics import history_of, lines_after
    from mae_transfer.runs.resolve import load_config

    copy = folder.with_name("metrics-cut")
    shutil.rmtree(copy, ignore_errors=True)
    run = RunFolder(copy, load_config("folder", "random_vit_nano", options={"data.root": str(folder)}))
    shutil.copy(folder / "metrics.jsonl", copy)
    shutil.copy(folder / "metrics.jsonl", copy / "whole.jsonl")
    kept, _ = lines_after(copy, CUT)
    (copy / "metrics.jsonl").write_bytes(kept)
    epochs = history_of(copy, None).epochs
    (copy / "whole.jsonl").rename(copy / "metrics.jsonl")
    return lambda: run.start_metrics(CUT, epochs)


def end_of_the_run(folder: Path) -> Callable[[], object]:
    """The history of the record, from what the run has kept."""
    from mae_transfer.run_folder.metrics import history_of

    history = history_of(folder, None)
    return history.entries


def the_reports_sample(folder: Path) -> Callable[[], object]:
    from mae_transfer.run_folder.metrics import sampled_metrics

    return lambda: sampled_metrics(folder)


def the_report(folder: Path) -> Callable[[], object]:
    from mae_transfer.__main__ import main as command

    output = folder.with_name("report.html")
    return lambda: command(["report", "--runs", str(folder), "--output", str(output)])


WAYS: dict[str, Any] = {
    "metrics": [cut_for_a_resume, end_of_the_run, the_reports_sample],
    "report": [the_report],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WAYS))
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made and left")
    parser.add_argument("--one", type=int, help="this measurement alone, in this process")
    args = parser.parse_args()
    folder = args.folder / args.what
    if args.one is not None:
        work = WAYS[args.what][args.one](folder)
        there = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        seconds = time.process_time() - cpu, time.perf_counter() - wall
        gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - there) * 1024 / 1e9
        print(f"| {seconds[0]:.2f} | {seconds[1]:.2f} | {gigabytes:.2f} |")
        return
    (make_metrics if args.what == "metrics" else make_runs)(folder)
    print("| what | CPU s | wall s | peak GB |\n|---|---:|---:|---:|")
    for number, way in enumerate(WAYS[args.what]):
        command = [sys.executable, __file__, args.what, "--folder", str(args.folder), "--one", str(number)]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.stderr)
        print(f"| {way.__name__.replace('_', ' ')} {done.stdout.splitlines()[-1]}")
    if args.what == "report":
        size = folder.with_name("report.html").stat().st_size
        print(f"{RUNS} runs of {STEPS_OF_A_RUN} steps: a page of {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
