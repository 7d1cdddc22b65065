"""A run whose `metrics.jsonl` or `per_image.npz` is damaged or odd, through `tables` and `report`."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from campaign import Trial, Wrong, command
from mutate import ODD, dump, mutate_bytes, mutate_tree
from records import copy_runs

from mae_transfer.cli.report import main as report
from mae_transfer.cli.tables import main as tables

LINES = [{"step": i, "epoch": i / 2, "loss": 3 / i, "lr": 0.01, "time": 0.1} for i in range(1, 9)]


class Family:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = copy_runs(folder / "runs")
        for run in self.runs:
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        self.kept = folder / "kept"
        shutil.copytree(self.runs[0], self.kept)
        self.names = [run.name for run in self.runs]
        self.expected = self.read("tables")

    def read(self, name: str) -> str:
        output = self.folder / f"{name}.out"
        output.unlink(missing_ok=True)
        out, _ = command(
            {"tables": tables, "report": report}[name], ["--runs", str(self.folder / "runs"), "--output", str(output)]
        )
        if not output.is_file():
            raise Wrong("nothing is written")
        return out

    def trial(self, rng: Random) -> Trial:
        shutil.rmtree(self.runs[0])
        shutil.copytree(self.kept, self.runs[0])
        run = self.runs[0]
        name = rng.choice(("tables", "report", "report"))
        what = odd_metrics(run, rng) if rng.random() < 0.5 else odd_per_image(run, rng)

        def judge(out: str) -> str | None:
            if name == "tables" and "| " not in out:
                raise Wrong("the other runs are not in the tables")
            return None

        return Trial(f"{name}, {what}", lambda: self.read(name), judge)


def odd_metrics(run: Path, rng: Random) -> str:
    path = run / "metrics.jsonl"
    if rng.random() < 0.3:
        what, content = mutate_bytes(path.read_bytes(), rng)
    else:
        what, _, tree = mutate_tree({"": LINES}, rng)
        lines: Any = tree.get("", [])
        content = b"".join(dump(line) + b"\n" for line in lines) if isinstance(lines, list) else dump(lines)
    path.write_bytes(content)
    return f"metrics.jsonl, {what}"


def odd_per_image(run: Path, rng: Random) -> str:
    """Of odd arrays the record has the hash."""
    path, record = run / "per_image.npz", json.loads((run / "record.json").read_text())
    kind = rng.choice(("bytes", "hash", "hash", "missing", "arrays", "arrays", "arrays", "entry"))
    if kind == "missing":
        path.unlink()
        return "no per_image.npz"
    if kind == "entry":
        what, _, record["per_image"] = mutate_tree({"": record["per_image"]}, rng)
        record["per_image"] = record["per_image"].get("")
    elif kind in ("bytes", "hash"):
        what, content = mutate_bytes(path.read_bytes(), rng)
        path.write_bytes(content)
    else:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        name = rng.choice(list(arrays))
        value = arrays[name]
        odd: list[Any] = [
            value[:-1], value[:0], value[None], value.astype("S3"), value[::-1], np.array(1), np.zeros(len(value)),
            np.array(["x"]), np.full(len(value), np.nan), np.array([rng.choice((-1, 2**40))]), np.zeros((3, 3)),
            value.astype("U8"),
        ]  # fmt: skip
        if rng.random() < 0.2:
            arrays = {rng.choice(("x", "correct", "ids")): value}
        else:
            arrays[name] = rng.choice(odd)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path.write_bytes(buffer.getvalue())
        what = f"{name} {arrays.get(name, value).dtype} {arrays.get(name, value).shape}"
    if kind in ("hash", "arrays"):
        record["per_image"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if rng.random() < 0.1 and isinstance(record["per_image"], dict):
        record["per_image"]["images"] = rng.choice(ODD)
    (run / "record.json").write_bytes(dump(record))
    return f"per_image.npz, {kind}: {what}"
