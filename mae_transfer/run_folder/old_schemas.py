"""Records of the schemas 1 and 2, turned into those of schema 3.

Schema 2 had what schema 1 has, with `encoder_flops` and `per_image`. Neither describes its task: the tables below say
what the tasks of that time were.
"""

from collections.abc import Mapping
from typing import Any

_DENSE = {
    "coco": ("COCO", "COCO val2017", {"box_AP": "AP box", "mask_AP": "AP mask"}),
    "ade20k": ("ADE20K", "ADE20K val", {"mIoU": "mIoU"}),
}
_KINDS = {"coco": "Detection", "ade20k": "Segmentation", "folder": "Classification"}
"""Of records before `kind` was one of their keys, or where it was the task's name."""
_BENCHMARKS = {
    "imagenet": "ImageNet-1K val",
    "inat2017": "iNaturalist 2017 val",
    "inat2018": "iNaturalist 2018 val",
    "inat2019": "iNaturalist 2019 val",
    "inat2021": "iNaturalist 2021 val",
    "places205": "Places205 val",
    "places365": "Places365 val",
    "folder": None,
}
_ACCURACY = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
_ROBUSTNESS = {
    "imagenet_c_mCE": "IN-C mCE (lower is better)",
    "imagenet_a_top1": "IN-A top-1",
    "imagenet_r_top1": "IN-R top-1",
    "imagenet_sketch_top1": "IN-Sketch top-1",
}
_PROTOCOLS = ("finetune", "partial", "linear", "attentive", "logreg", "knn")
_TRAINED = ("finetune", "partial")
_METHODS = ("mae", "beit", "supervised", "dvae")
_LOWER = ("imagenet_c_mCE", "val_loss")


def kind_of(record: Mapping[str, object]) -> str:
    """What a record's task is called where the data are not its benchmark."""
    task, kind = str(record["task"]), record.get("kind")
    return str(kind if kind and kind != task else _KINDS.get(task, record["title"]))


def upgrade(record: dict[str, Any]) -> None:
    """Turn a record of schema 1 or 2 into one of schema 3, in place. A task that was none then gets an empty
    description, and so a place in the general table."""
    settings = record["settings"] = record.pop("protocol")
    record["settings_id"] = record.pop("protocol_id")
    task, metrics = record["task"], record["metrics"]
    title, benchmark, reports = task, None, list[dict[str, Any]]()
    names: tuple[str, ...] = ()
    if not isinstance(task, str):
        return  # the schema refuses it
    if task in _DENSE:
        title, benchmark, main = _DENSE[task]
        reports = [
            _report(key, main.get(key, key), key in main, "" if key in main else "details")
            for key in dict.fromkeys([*main, *_plain(metrics)])
        ]
    elif task in _BENCHMARKS:
        benchmark, names = _BENCHMARKS[task], _PROTOCOLS
        reports = [_report(key, name, key == "top1", "") for key, name in _ACCURACY.items()]
        reports += [_report(key, name, False, "robustness") for key, name in _ROBUSTNESS.items()]
    elif task == "pretrain":
        title, names = "pre-training", _METHODS
        reports = [_report(key, key, key in ("knn_top1", "val_loss"), "") for key in _plain(metrics)]
    name = settings.get("protocol") or settings.get("method") or ""
    record |= {
        "title": title,
        "reports": reports,
        "benchmark": benchmark,
        "controls": ["random"] if task == "imagenet" else ["sup", "random"],
        "transfers": task != "pretrain",
        "row": {
            "name": name,
            "frozen": task in _BENCHMARKS and name not in _TRAINED,
            "rank": names.index(name) if name in names else len(names),
        },
    }


def _plain(metrics: dict[str, object]) -> list[str]:
    return [key for key in metrics if "/" not in key]


def _report(key: str, title: str, main: bool, group: str) -> dict[str, object]:
    better = "lower" if key in _LOWER else "higher"
    return {"key": key, "title": title, "better": better, "unit": "%", "main": main, "group": group}
