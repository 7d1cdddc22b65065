"""Lists of images: CSV, Parquet, iNaturalist's JSON and Places' text, damaged and odd."""

import csv
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from campaign import Trial, Wrong
from mutate import ODD, dump, mutate_bytes, mutate_tree

from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.layouts.find import find_images

Rows = list[tuple[str, str]]
"""Path and class name."""


class Family:
    def __init__(self, folder: Path) -> None:
        self.root = folder
        paths = [f"{c}/{i}.jpg" for c in "abc" for i in range(2)]
        for split in (".", "data_256", "val_256"):
            for path in paths:
                (folder / split / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / split / path).write_bytes(b"\xff\xd8\xff")
        self.rows = [(path, "abc".index(path[0])) for path in paths]
        table = pd.DataFrame(self.rows, columns=["path", "label"])
        table.to_csv(folder / "t.csv", index=False)
        table.to_parquet(folder / "t.parquet")
        inat: dict[str, Any] = {
            "categories": [{"id": i, "name": c} for i, c in enumerate("abc")],
            "images": [{"id": i, "file_name": path} for i, (path, _) in enumerate(self.rows)],
            "annotations": [{"image_id": i, "category_id": label} for i, (_, label) in enumerate(self.rows)],
        }
        self.inat = inat
        places = "".join(f"{path} {label}\n" for path, label in self.rows).encode()
        (folder / "categories_places365.txt").write_text("/a 0\n/b 1\n/c 2\n")
        for name in ("train.json", "val.json"):
            (folder / name).write_bytes(dump(inat))
        for name in ("places365_train_standard.txt", "places365_val.txt"):
            (folder / name).write_bytes(places)
        self.wholes = {
            "csv": ((folder / "t.csv").read_bytes(), "odd.csv"),
            "parquet": ((folder / "t.parquet").read_bytes(), "odd.parquet"),
            "inat2021": (dump(inat), "train.json"),
            "places365": (places, "places365_train_standard.txt"),
        }
        for form, (content, name) in self.wholes.items():
            (folder / name).write_bytes(content)
            found = self.read(form)
            assert [(path.rpartition("256/")[2], label) for path, label in found] == [
                (p, p[0] if form[0] in "ip" and form != "parquet" else str(n)) for p, n in self.rows
            ], (form, found)
        self.expected = {form: self.read(form) for form in self.wholes}

    def read(self, form: str) -> Rows:
        """Of the training split."""
        if form in ("csv", "parquet"):
            task, options = "folder", [f"data.train_list={self.root}/odd.{form}", f"data.val_list={self.root}/t.csv"]
        else:
            task, options = form, [f"data.root={self.root}"]
        found = find_images(task, load_config(task, "random_vit_nano", preset="smoke", overrides=options).data)  # type: ignore[arg-type]
        return [
            (name, found.class_names[i]) for name, i in zip(found.train.names, found.train.labels.tolist(), strict=True)
        ]

    def trial(self, rng: Random) -> Trial:
        form = rng.choice(list(self.wholes))
        content, name = self.wholes[form]
        if rng.random() < 0.5:
            what, changed = mutate_bytes(content, rng)
        elif form == "inat2021":
            what, _, tree = mutate_tree(self.inat, rng)
            changed = dump(tree)
        elif form == "parquet":
            what, changed = odd_table(self.rows, rng)
        else:
            lines = content.decode().splitlines()
            at = rng.randrange(len(lines))
            sign = "," if form == "csv" else " "
            path, _, label = lines[at].rpartition(sign)
            odd = str(rng.choice((*ODD, "2000000000", "-3", "1.0", "1e3", "²", "३", "a,b", '"a', "01")))
            lines[at] = rng.choice((f"{path}{sign}{odd}", f"{odd}{sign}{label}", lines[at] + "\n" + lines[at]))
            what, changed = f"line {at}: {odd[:20]!r}", "\n".join(lines).encode("utf-8", "surrogatepass")
        (self.root / name).write_bytes(changed)

        def judge(found: Rows) -> str | None:
            if found == self.expected[form]:
                return None
            said = independent(form, changed)
            if said is not None and sorted(said) != sorted(
                (path.rpartition("256/")[2], label) for path, label in found
            ):
                raise Wrong(f"read {found[:3]} for {said[:3]}")
            return f"a list ({form}) of other legal rows"

        def read() -> Rows:
            if form == "parquet" and len(changed) == 0:
                raise UserError("an empty file")
            return self.read(form)

        return Trial(f"{form}, {what}", read, judge)


def odd_table(rows: list[tuple[str, int]], rng: Random) -> tuple[str, bytes]:
    """A Parquet file of other types, names or values."""
    table = pd.DataFrame(rows, columns=["path", "label"])
    kind = rng.choice(("float", "text", "gap", "bool", "date", "bytes", "names", "value", "none", "lists"))
    at = rng.randrange(len(table))
    if kind == "float":
        table["label"] = table["label"] + rng.choice((0.0, 0.5))
    elif kind == "text":
        table["label"] = table["label"].map({0: "a", 1: "b", 2: rng.choice(("c", "", "NA"))})
    elif kind == "gap":
        table["label"] = table["label"].astype("Int64").mask(np.arange(len(table)) == at)
    elif kind == "bool":
        table["label"] = table["label"] > 0
    elif kind == "date":
        table["label"] = pd.to_datetime(table["label"], unit="D")
    elif kind == "bytes":
        table["path"] = table["path"].str.encode("utf-8")
    elif kind == "names":
        table.columns = pd.Index(rng.choice((["path", "Label"], ["a", "b"], ["label", "path"])))
    elif kind == "value":
        table.loc[at, "label"] = rng.choice((-1, 3, 7, 2_000_000_000, 2**62))
    elif kind == "none":
        table.loc[at, "path"] = None
    else:
        table["label"] = [[label] for label in table["label"]]
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return f"{kind} {at}", buffer.getvalue()


def independent(form: str, content: bytes) -> Rows | None:
    """Path and class name of each row, by the standard library; None for Parquet."""
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
        return [(row["path"], number(row["label"])) for row in rows]
    if form == "places365":
        lines = content.decode("utf-8-sig").splitlines()
        return [(line.rpartition(" ")[0].lstrip("/"), "abc"[int(line.rpartition(" ")[2])]) for line in lines]
    if form == "inat2021":
        tree = json.loads(content)
        names = {entry["id"]: entry["name"] for entry in tree["categories"]}
        files = {entry["id"]: entry["file_name"] for entry in tree["images"]}
        return [(files[entry["image_id"]], str(names[entry["category_id"]])) for entry in tree["annotations"]]
    return None


def number(text: str) -> str:
    """'01' and '1' are one label where all are numbers."""
    return str(int(text)) if text.strip().lstrip("+-").isdecimal() else text
