"""Run records, damaged and odd, through `validate` and `tables`; other runs beside them must stay in the tables."""

import json
import shutil
from pathlib import Path
from random import Random

from campaign import Trial, Wrong, command
from mutate import dump, mutate_bytes, mutate_tree

from mae_transfer.cli.tables import main as tables
from mae_transfer.cli.validate import main as validate
from mae_transfer.errors import UserError

STUDY = Path(__file__).resolve().parents[2] / "results/evidence"


def copy_runs(folder: Path, count: int = 3) -> list[Path]:
    """Runs of the small study: nearest neighbours, with results of single images."""
    found = []
    for run in sorted(STUDY.glob("folder-knn*"))[:count]:
        shutil.copytree(run, folder / run.name)
        found.append(folder / run.name)
    return found


class Family:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = copy_runs(folder / "runs")
        self.file = self.runs[0] / "record.json"
        self.whole = self.file.read_bytes()
        self.expected = self.read()
        shutil.move(self.runs[0], folder / "aside")
        self.without = self.read()
        shutil.move(folder / "aside", self.runs[0])

    def read(self) -> str:
        out, _ = command(tables, ["--runs", str(self.folder / "runs"), "--output", str(self.folder / "tables.md")])
        return out

    def trial(self, rng: Random) -> Trial:
        key = ""
        if rng.random() < 0.35:
            what, content = mutate_bytes(self.whole, rng)
        else:
            what, key, tree = mutate_tree(json.loads(self.whole), rng)
            content = dump(tree)
        self.file.write_bytes(content)

        def judge(out: str) -> str | None:
            if out == self.expected:
                return None
            try:
                command(validate, [str(self.folder / "runs")])
            except UserError:
                if out == self.without:
                    raise  # left out of the tables, with a line
                return "a record unlike its results of single images, which `mae-transfer validate` says"
            if out != self.without and key in ("top1",):
                raise Wrong("another top-1 than the results of single images give, in the tables")
            return "a record of other legal values"

        return Trial(what, self.read, judge)
