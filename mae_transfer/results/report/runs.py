"""What the page shows of one run, from its record and what else is in its folder."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_transfer.errors import UserError
from mae_transfer.results.data_names import task_heading
from mae_transfer.results.names import init_title
from mae_transfer.results.plots.curves import curve_plots, shows_steps
from mae_transfer.results.plots.figure import Plot
from mae_transfer.run_folder.metrics import sampled_metrics
from mae_transfer.run_folder.pictures import StoredPicture, read_pictures
from mae_transfer.run_folder.schema import RunRecord

WARNING = re.compile(r"^\S+ \S+ WARNING (.*)$")
"""A line of log.txt."""
WARNINGS = 50
"""At most this many of a run are shown."""
APART = 3
"""So many differences between two runs are named."""
JPEG = b"\xff\xd8\xff"


@dataclass
class Run:
    """Everything as text or numbers; the template escapes it."""

    anchor: str
    name: str
    data: str
    """The name of its data set."""
    headline: tuple[str, float] | None
    record: RunRecord
    plots: list[Plot]
    pictures: list[StoredPicture]
    warnings: list[str]
    config: str | None
    svgs: list[str] = field(default_factory=list)
    images: list[tuple[StoredPicture, str]] = field(default_factory=list)
    """Pictures on the page, with their data URIs."""
    apart: str = ""
    """What tells it from other runs of the same name, data and preset."""

    @property
    def row(self) -> list[tuple[str, float | None]]:
        """Of the table of all runs: text, and the number to sort by if it is one."""
        record, backbone = self.record, self.record["backbone"]
        metric, value = self.headline or ("-", None)
        seconds, memory = record.get("wall_seconds"), record.get("peak_memory_bytes")
        return [
            (" ".join(filter(None, (task_heading(record), _row(record)))), None),
            (init_title(backbone["init"]), None),
            (backbone["name"], None),
            (self.data, None),
            (record["preset"], None),
            (str(record["seed"]), float(record["seed"])),
            (metric, None),
            ("-" if value is None else f"{value:.2f}", value),
            ("-" if seconds is None else duration(seconds), seconds),
            ("-" if memory is None else f"{memory / 2**30:.2f} GiB", memory),
            (record.get("finished", "-")[:10], None),
        ]

    @property
    def words(self) -> str:
        """What a search finds beside the row and the head of the card."""
        record, checkpoint = self.record, self.record["backbone"].get("checkpoint")
        return " ".join(map(str, filter(None, (record["settings"].get("recipe"), checkpoint, record["run_id"]))))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Environment and origin."""
        record, backbone, data = self.record, self.record["backbone"], self.record["data"]
        found: list[tuple[str, object]] = [
            ("run", record["run_id"]),
            ("finished", record.get("finished")),
            ("recipe", record["settings"].get("recipe")),
            ("settings id", record["settings_id"]),
            ("seed", record["seed"]),
            ("weights", backbone.get("checkpoint") or backbone.get("weights")),
            ("weights fingerprint", backbone.get("fingerprint")),
            ("data", self.data),
            ("data fingerprint", data["fingerprint"]),
            ("training, val images", f"{data.get('train_images', '-')}, {data.get('val_images', '-')}"),
            ("parameters", f"{record['parameters']:,}" if record.get("parameters") is not None else None),
            ("steps", record.get("steps")),
            ("device", f"{record['device']} x {record.get('world_size', 1)}" if record.get("device") else None),
            ("wall time", None if (seconds := record.get("wall_seconds")) is None else duration(seconds)),
            ("images per second", _number(record.get("images_per_second"))),
            ("commit", record.get("commit")),
            ("versions", ", ".join(f"{name} {v}" for name, v in (record.get("versions") or {}).items())),
            ("command", " ".join(map(str, record.get("command") or []))),
        ]
        return [(name, str(value)) for name, value in found if value not in (None, "")]

    @property
    def metrics(self) -> list[tuple[str, float | None]]:
        return list(self.record["metrics"].items())

    @property
    def protocol(self) -> list[tuple[str, str]]:
        return [(key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(self.record["settings"].items())]

    @property
    def history(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the table of epochs; of a long history every n-th and the last."""
        lines = self.record.get("history") or []
        lines = [line for i, line in enumerate(lines) if i % max(len(lines) // 40, 1) == 0 or i == len(lines) - 1]
        flat = [{**line, **_dict(line.get("eval"))} for line in lines]
        heads = list(dict.fromkeys(key for line in flat for key in line if key != "eval" and "/" not in key))
        return heads, [[_number(line.get(head)) or "-" for head in heads] for line in flat]

    @property
    def load_report(self) -> list[str]:
        return list(self.record["backbone"].get("load_report") or [])


def read_run(record: RunRecord, number: int, data: str) -> Run:
    """`number` makes the anchor; what is wrong with a file of the folder becomes a warning on the page.

    data: the name of its data set.
    """
    backbone = record["backbone"]
    parts = (task_heading(record), _row(record), init_title(backbone["init"]), backbone["name"])
    name = " · ".join([*filter(None, parts), f"seed {record['seed']}"])
    run = Run(f"run-{number}", name, data, headline(record), record, [], [], [], None)
    steps: list[dict[str, Any]] = []
    if record.get("folder"):
        folder = Path(record["folder"])
        run.pictures, problem = read_pictures(folder)
        run.warnings += [problem] if problem else []
        run.warnings += _logged(folder / "log.txt")
        try:
            steps = sampled_metrics(folder) if shows_steps(record) else []
        except UserError as error:
            run.warnings.append(str(error))
        run.config = _text(folder / "config.yaml")
    skipped = record["data"].get("skipped_files") or []
    if skipped:
        names = ", ".join(map(str, skipped[:10])) + (" and others" if len(skipped) > 10 else "")
        run.warnings.append(f"{len(skipped)} images could not be decoded and were skipped: {names}")
    overlap = record["data"].get("overlap")
    if overlap:
        run.warnings.append(f"{overlap} val images are training images too")
    try:
        run.plots = curve_plots(record, steps)
    except (KeyError, TypeError, ValueError) as error:
        run.warnings.append(f"no curves: {folder_of(record)}/metrics.jsonl or its record holds odd values ({error})")
    return run


def tell_apart(runs: Iterable[Run]) -> None:
    """Give runs of the same name, data and preset a word for what differs: settings, weights, in the end the folder."""
    alike: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.name, run.data, run.record["preset"]), []).append(run)
    for group in alike.values():
        facts = [_told(run.record) for run in group] if len(group) > 1 else []
        keys = dict.fromkeys(key for of_run in facts for key in of_run)
        differing = [key for key in keys if len({of_run.get(key) for of_run in facts}) > 1][:APART]
        for run, of_run in zip(group, facts, strict=False):
            run.apart = ", ".join(f"{key} {of_run.get(key, '-')}" for key in differing)
        for run in group:
            if [other.apart for other in group].count(run.apart) > 1:
                run.apart = ", ".join(filter(None, (run.apart, folder_of(run.record))))


def _told(record: RunRecord) -> dict[str, str]:
    """Recipe, weights and settings as texts, in the order in which they are shown."""
    backbone, settings = record["backbone"], record["settings"]
    weights = {"checkpoint": backbone.get("checkpoint"), "fingerprint": backbone.get("fingerprint")}
    first = {"recipe": settings.get("recipe"), "draw": record["data"].get("draw"), **weights}
    return {key: str(value) for key, value in (first | settings).items() if value is not None}


def folder_of(record: Mapping[str, object]) -> str:
    return str(record.get("folder") or f"run {record['run_id']}")


def headline(record: RunRecord) -> tuple[str, float] | None:
    """The metric that a run is judged by: the first main one that it has, else the first that it has."""
    names = {report["key"]: report["title"] for report in record["reports"] if report["main"]}
    for name, title in (names | {name: name for name in record["metrics"] if name not in names}).items():
        if (value := record["metrics"].get(name)) is not None:
            return title, value
    return None


def data_uri(picture: StoredPicture) -> str | None:
    """None for a file that is no JPEG or cannot be read."""
    try:
        content = picture.path.read_bytes()
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content.startswith(JPEG) else None


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(record: RunRecord) -> str:
    """Protocol or method, with the number of blocks."""
    blocks = record["settings"].get("model.blocks")
    return str(record["row"]["name"]) + (f" {blocks:g} blocks" if isinstance(blocks, (int, float)) else "")


def _logged(path: Path) -> list[str]:
    lines = (WARNING.match(line) for line in (_text(path) or "").splitlines())
    found = list(dict.fromkeys(match[1] for match in lines if match))
    return [*found[:WARNINGS], *([f"{len(found) - WARNINGS} more in log.txt"] if len(found) > WARNINGS else [])]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(value: object) -> str | None:
    if value is None:
        return None
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
