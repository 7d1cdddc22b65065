"""Lists, COCO JSON and tars in other forms, suites that name themselves, results of other programs."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import yaml
from campaign import command
from coco import truth
from odd_files import ODD_NAMES, Made, OddFiles
from PIL import Image

from mae_transfer.cli.suite import main as suite
from mae_transfer.cli.tables import main as tables
from mae_transfer.pretrain.data import find_images as find_pictures
from mae_transfer.pretrain.shards import expand, open_shards
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.files import check_files


def compressed_lists(family: OddFiles, rng: Random) -> Made:
    family.classes()
    text = b"path,label\n" + b"".join(b"train/%s/%d.png,%s\n" % (c, i, c) for c in (b"a", b"b") for i in range(2))
    expected = [(f"train/{c}/{i}.png", c) for c in "ab" for i in range(2)]
    ending = rng.choice((".gz", ".bz2", ".xz", ".zip", ".zst", ".tar", ".tar.gz", ".Z", ""))
    form = rng.choice(("plain", "gzip", "cut gzip", "damaged gzip", "zip", "two in a zip", "empty"))
    content, buffer = text, io.BytesIO()
    if "gzip" in form:
        content = gzip.compress(text)
        content = content[:-20] if form == "cut gzip" else content
        content = content[:20] + b"\xff\xff" + content[22:] if form == "damaged gzip" else content
    elif "zip" in form:
        with zipfile.ZipFile(buffer, "w") as archive:
            for i in range(1 + (form != "zip")):
                archive.writestr(f"{i}.csv", text)
        content = buffer.getvalue()
    elif form == "empty":
        content = b""
    path = family.write(f"t.csv{ending}", content)
    right = (form, ending) in (("plain", ""), ("plain", ".Z"), ("gzip", ".gz"), ("zip", ".zip"))
    return f"{form}, {ending}", lambda: family.read_lists(path), expected if right else None


def lists_of_other_forms(family: OddFiles, rng: Random) -> Made:
    family.classes()
    rows = [(f"train/{c}/{i}.png", c) for c in "ab" for i in range(2)]
    text = "path,label\n" + "".join(f"{path},{c}\n" for path, c in rows)
    long = 150_000
    forms: dict[str, tuple[bytes, Any]] = {
        "UTF-16": (text.encode("utf-16"), None),
        "a byte order mark": (text.encode("utf-8-sig"), rows),
        "semicolons": (text.replace(",", ";").encode(), None),
        "tabs": (text.replace(",", "\t").encode(), None),
        "carriage returns": (text.replace("\n", "\r").encode(), rows),
        "JSON lines": ("".join(json.dumps({"path": p, "label": c}) + "\n" for p, c in rows).encode(), None),
        "quotes": (("path,label\n" + "".join(f'"{p}","{c}"\n' for p, c in rows)).encode(), rows),
        "an open quote": (text.replace("train/b", '"train/b').encode(), None),
        "more columns": (text.replace("\n", ",x\n").replace("label,x", "label,more").encode(), rows),
        "columns in another order": (
            ("label,path\n" + "".join(f"{c},{p}\n" for p, c in rows)).encode(),
            rows,
        ),
        "a column twice": (text.replace("path,label", "path,path").encode(), None),
        "no header": (text.partition("\n")[2].encode(), None),
        "NUL": (text.encode() + b"\0\0\0", None),
        "a field of 2 million characters": (text.encode() + b"x" * 2_000_000 + b",a\n", None),
        "labels of long digits": (text.replace(",a", "," + "9" * 30).encode(), ...),
        "rows twice": ((text + text.partition("\n")[2]).encode(), rows + rows),
        "absolute paths": (text.replace("train/", f"{family.here}/set/train/").encode(), ...),
        "numbers and then names": (
            ("path,label\n" + "train/a/0.png,7\n" * long + "train/b/0.png,bee\n" * 9).encode(),
            [("train/a/0.png", "7")] * long + [("train/b/0.png", "bee")] * 9,
        ),
        "numbers and then numbers with zeros before": (
            ("path,label\n" + "train/a/0.png,7\n" * long + "train/b/0.png,x\ntrain/a/1.png,07\n").encode(),
            [("train/a/0.png", "7")] * long + [("train/b/0.png", "x"), ("train/a/1.png", "07")],
        ),
    }
    what = rng.choice(list(forms))
    path = family.write("t.csv", forms[what][0])
    return what, lambda: family.read_lists(path), forms[what][1]


def json_of_other_forms(family: OddFiles, rng: Random) -> Made:
    tree = truth()
    for image in tree["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(family.here / image["file_name"])
    text, count = json.dumps(tree), len(tree["images"])
    forms: dict[str, tuple[bytes, Any]] = {
        "a byte order mark": (text.encode("utf-8-sig"), count),
        "UTF-16": (text.encode("utf-16"), count),
        "gzip": (gzip.compress(text.encode()), None),
        "JSON lines": ("\n".join(json.dumps(row) for row in tree["annotations"]).encode(), None),
        "two objects": ((text + text).encode(), None),
        "a comma at the end": ((text[:-1] + ",}").encode(), None),
        "a comment": (("// COCO\n" + text).encode(), None),
        "annotations twice": ((text[:-1] + ', "annotations": []}').encode(), None),
        "a box twice": (text.replace('"bbox"', '"bbox": [0, 0, 9, 9], "bbox"', 1).encode(), None),
        "images by id": (json.dumps(tree | {"images": {i["id"]: i for i in tree["images"]}}).encode(), None),
        "1e400": (text.replace('"area": 480.0', '"area": 1e400').encode(), None),
        "a string of 10 MB": ((text[:-1] + ', "x": "' + "y" * 10**7 + '"}').encode(), count),
        "NUL": (text.encode() + b"\0", None),
        "results of a detector": (
            json.dumps([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}]).encode(),
            None,
        ),
        "a pipe as image": (text.encode(), None),
        "a folder as image": (text.encode(), None),
    }
    what = rng.choice(list(forms))
    path = family.write("c.json", forms[what][0])
    if what.endswith("as image"):
        (family.here / "1.jpg").unlink()
        os.mkfifo(family.here / "1.jpg") if "pipe" in what else (family.here / "1.jpg").mkdir()

    def read() -> int:
        annotations = CocoAnnotations(path)
        check_files(annotations, family.here, "error")
        return len(annotations)

    return what, read, forms[what][1]


def suites_that_name_themselves(family: OddFiles, rng: Random) -> Made:
    path, out = family.here / "s.yaml", str(family.here / "out")
    own: dict[str, Any] = {"label": "beit", "method": "beit", "backbone": "vit_nano"}
    tree: dict[str, Any] = {
        "name": "s",
        "preset": "smoke",
        "backbones": [{"name": "random_vit_nano"}],
        "tasks": [{"task": "folder"}],
    }
    what = rng.choice(
        (
            "a tokenizer that is its own",
            "tokenizers in a circle",
            "a checkpoint that is the suite",
            "a name of dots",
            "a label of dots",
            "a label that is a path",
            "a billion draws",
            "a huge shot",
            "a huge seed",
            "three hundred seeds",
            "a task for itself",
            "a pre-training as a task",
            "an output that is a file",
            "an output in a circle",
            "an output of another program",
            "an alias",
            "an override of its name",
            "a search of everything",
            "a subset of 2**70",
        )
    )
    expected: Any = None
    if what == "a tokenizer that is its own":
        tree["pretrain"] = [own | {"tokenizer": "beit"}]
    elif what == "tokenizers in a circle":
        tree["pretrain"] = [own | {"tokenizer": "two"}, own | {"label": "two", "tokenizer": "beit"}]
    elif what == "a checkpoint that is the suite":
        tree["backbones"] = [{"name": "mae_vit_nano", "checkpoint": str(path)}]
        expected = ...
    elif what == "a name of dots":
        tree["name"] = ".."
        expected = ...
    elif what == "a label of dots":
        tree["backbones"][0]["label"] = rng.choice(("..", ".", "", "../.."))
        expected = ...
    elif what == "a label that is a path":
        tree["tasks"][0]["label"] = rng.choice(("../x", "/tmp/x", "a/b", "a\nb"))
        expected = ...
    elif what == "a billion draws":
        tree["tasks"][0] |= {"shots": 1, "draws": 10**9, "protocol": "linear"}
    elif what == "a huge shot":
        tree["tasks"][0] |= {"shots": 10**30, "draws": 1, "protocol": "linear"}
        expected = ...
    elif what == "a huge seed":
        tree["seeds"] = [10**30]
        expected = ...
    elif what == "three hundred seeds":
        tree["seeds"] = list(range(300))
        expected = ...
    elif what == "a task for itself":
        tree["tasks"][0]["backbones"] = ["folder"]
    elif what == "a pre-training as a task":
        tree["tasks"] = [{"task": "pretrain"}]
    elif what in ("an output that is a file", "an output in a circle"):
        family.write("out", b"") if "file" in what else Path(out).symlink_to("out")
    elif what == "an output of another program":
        family.write("out/events.out.tfevents.1", b"\0" * 100)
        family.write("out/record.json", b"[1, 2]")
        family.write("out/random_vit_nano/record.json", b"{}")
        expected = ...
    elif what == "an alias":
        tree["tasks"][0]["overrides"] = ["optim.lr=*a"]
    elif what == "an override of its name":
        tree["overrides"] = ["name=x"]
    elif what == "a search of everything":
        tree["tasks"][0] |= {"search": True, "protocol": "linear"}
        expected = ...
    elif what == "a subset of 2**70":
        tree["tasks"][0]["subset"] = 2**70
        expected = ...
    path.write_text(yaml.safe_dump(tree))
    return what, lambda: command(suite, [str(path), "--status", "--output", out])[0], expected


def results_of_other_programs(family: OddFiles, rng: Random) -> Made:
    what = rng.choice(
        (
            "nothing",
            "TensorBoard",
            "a record that is a list",
            "an empty record",
            "gzip",
            "a record of 2**63",
            "links in circles",
            "a file for a folder",
            "an output that is a folder",
            "an output below a file",
            "a deep folder",
            "a log of MLflow",
            "a pipe",
            "an output of an odd name",
            "no folder",
        )
    )
    runs, output = family.here / "runs", family.here / "o.md"
    (runs / "a").mkdir(parents=True)
    files: dict[str, tuple[str, bytes]] = {
        "TensorBoard": ("a/events.out.tfevents.1", b"\0" * 99),
        "a record that is a list": ("a/record.json", b"[]"),
        "an empty record": ("a/record.json", b""),
        "gzip": ("a/record.json", gzip.compress(b"{}")),
        "a record of 2**63": ("a/record.json", b'{"schema": 9223372036854775808}'),
        "a log of MLflow": ("mlruns/0/meta.yaml", b"artifact_location: x\n"),
        "a deep folder": ("/".join("d" * 300) + "/record.json", b"{}"),
    }
    if what in files:
        family.write(f"runs/{files[what][0]}", files[what][1])
    elif what == "links in circles":
        (runs / "a/one").symlink_to(runs)
        (runs / "a/two").symlink_to(runs)
    elif what == "a file for a folder":
        runs = family.write("file", b"")
    elif what == "an output that is a folder":
        output = runs
    elif what == "an output below a file":
        output = family.write("file", b"") / "o.md"
    elif what == "an output of an odd name":
        output = family.here / "new\nline" / "ü.md"
    elif what == "a pipe":
        os.mkfifo(runs / "a/record.json")
    elif what == "no folder":
        runs = family.here / "gone"
    return what, lambda: command(tables, ["--runs", str(runs), "--output", str(output)])[0], ...


def tars_of_other_kinds(family: OddFiles, rng: Random) -> Made:
    what = rng.choice(
        (
            "plain",
            "gzip",
            "links",
            "devices",
            "a folder of an image's name",
            "a size that lies",
            "sparse",
            "long names",
            "empty",
            "a range of a billion",
            "a range backwards",
            "a missing one of a range",
            "a folder",
            "a pipe",
            "not there",
            "odd names",
        )
    )
    path, buffer, expected = family.here / "a.tar", io.BytesIO(), None
    with tarfile.open(fileobj=buffer, mode="w:gz" if what == "gzip" else "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, content: bytes = family.picture, type_: bytes = tarfile.REGTYPE, **more: Any) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size = type_, len(content)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        if what != "empty":
            add("1.png")
            expected = ["1.png"]
        if what == "links":
            add("2.png", b"", tarfile.SYMTYPE, linkname="/etc/passwd")
            add("3.png", b"", tarfile.LNKTYPE, linkname="1.png")
            expected = None
        elif what == "devices":
            add("2.png", b"", tarfile.CHRTYPE)
            expected = ...
        elif what == "a folder of an image's name":
            add("2.png", b"", tarfile.DIRTYPE)
        elif what == "a size that lies":
            add("2.png", pax_headers={"size": str(10**15)})
            expected = None
        elif what == "sparse":
            add("2.png", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"})
            expected = None
        elif what == "long names":
            add("x" * 300 + "/" + "y" * 200 + ".png")
            expected = ["1.png", "x" * 300 + "/" + "y" * 200 + ".png"]
        elif what == "odd names":
            names = [f"{i}{name.replace('.', '')}.png" for i, name in enumerate(ODD_NAMES) if "\udcff" not in name]
            for name in names:
                add(name)
            expected = ["1.png", *names]
    path.write_bytes(buffer.getvalue())
    if what == "gzip":
        expected = None
    elif what in ("a folder", "a pipe", "not there"):
        path.unlink()
        path.mkdir() if what == "a folder" else os.mkfifo(path) if what == "a pipe" else None
        expected = None
    pattern = {
        "a range of a billion": "a-{0..999999999}.tar",
        "a range backwards": "a-{9..0}.tar",
        "a missing one of a range": "a-{0..3}.tar",
    }.get(what)
    if pattern:
        family.write("a-0.tar", buffer.getvalue())
        config = load_config(
            "pretrain", "vit_nano", protocol="mae", preset="smoke", overrides={"data.root": str(family.here / pattern)}
        )
        return what, lambda: len(find_pictures(config.data).train), None

    def read() -> list[str]:
        found = open_shards(expand(str(path)))
        for i in range(len(found)):
            found.read(i)
        return sorted(name.partition("/")[2] for name in found.names)

    return what, read, sorted(expected) if isinstance(expected, list) else expected


class Family(OddFiles):
    kinds = (
        compressed_lists,
        lists_of_other_forms,
        json_of_other_forms,
        suites_that_name_themselves,
        results_of_other_programs,
        tars_of_other_kinds,
    )
