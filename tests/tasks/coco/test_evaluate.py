"""Scores against pycocotools, ground truth fed back, and the same result from two processes as from one."""

import contextlib
import io
import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning_fabric import Fabric
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from mae_transfer import bars
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.card import STATISTICS
from mae_transfer.tasks.coco.config import CocoConfig, DataConfig, EvalConfig
from mae_transfer.tasks.coco.data import CocoEval
from mae_transfer.tasks.coco.evaluate import encode, evaluate, score

IMAGES = 9


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(
        tmp_path_factory.mktemp("data") / "coco", train_images=1, val_images=IMAGES, size=(60, 400), seed=4
    )


def val_json(folder: Path) -> Path:
    return folder / "annotations/instances_val2017.json"


def eval_set(folder: Path, subset: int | None = None, **changes: Any) -> CocoEval:
    data = DataConfig.model_validate({"image_size": 64, "scale_min": 0.5, "scale_max": 2.0, "workers": 0} | changes)
    return CocoEval(CocoAnnotations(val_json(folder)), folder / "val2017", data, subset=subset)


def config(dataset: CocoEval, **evaluation: Any) -> CocoConfig:
    return CocoConfig.model_construct(data=dataset.config, eval=EvalConfig(**evaluation))


def cpu(precision: Any = "32-true") -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=precision)


class Oracle(nn.Module):
    """Stands in for a detector: the ground truth, or with noise > 0 a detector's kind of mistakes."""

    def __init__(self, dataset: CocoEval, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.classes = len(dataset.annotations.names)
        self.records = {int(i): dataset.annotations[k] for k, i in enumerate(dataset.annotations.image_ids)}
        self.seen: list[int] = []
        self.autocast: list[bool] = []

    def forward(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        assert not self.training
        assert "targets" not in batch
        assert not torch.is_grad_enabled()
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        self.seen += batch["image_ids"]
        return [self.detect(i, *size) for i, size in zip(batch["image_ids"], batch["sizes"], strict=True)]

    def detect(self, image_id: int, height: int, width: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(image_id)
        boxes, scores, classes, masks = [], [], [], []
        for item in self.records[image_id].objects:
            segmentation = item.segmentation
            if isinstance(segmentation, list):
                polygons = [p.tolist() for p in segmentation]
                segmentation = reference.merge(reference.frPyObjects(polygons, height, width))
            mask = reference.decode(segmentation)
            for _ in range(int(rng.integers(1, 4)) if self.noise else int(not item.crowd)):
                dx, dy, dw, dh = rng.normal(0, self.noise, 4)
                x, y, w, h = item.bbox
                x, y, w, h = x + dx * w, y + dy * h, w * math.exp(dw), h * math.exp(dh)
                boxes.append([x, y, x + w, y + h])
                masks.append(np.roll(mask, (round(dy * h), round(dx * w)), (0, 1)))
                confused = self.noise and rng.random() < 0.15
                classes.append(int(rng.integers(self.classes)) if confused else item.category)
                scores.append(round(float(rng.random()), 1))  # one digit: many ties
        for _ in range(int(rng.integers(3, 130)) if self.noise else 0):  # now and then more than 100
            x, y, w, h = rng.uniform(0, width / 2), rng.uniform(0, height / 2), *rng.uniform(3, height / 2, 2)
            mask = np.zeros((height, width), np.uint8)
            mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
            boxes.append([x, y, x + w, y + h])
            masks.append(mask)
            classes.append(int(rng.integers(self.classes)))
            scores.append(round(float(rng.random()) / 2, 1))
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            "scores": torch.tensor(scores),
            "classes": torch.tensor(classes, dtype=torch.int64),
            "masks": torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, height, width)),
        }


class Nothing(nn.Module):
    def forward(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        return [
            {
                "boxes": torch.zeros(0, 4),
                "scores": torch.zeros(0),
                "classes": torch.zeros(0, dtype=torch.int64),
                "masks": torch.zeros(0, *size, dtype=torch.bool),
            }
            for size in batch["sizes"]
        ]


def by_pycocotools(truth: Path, results: Path, image_ids: list[int] | None = None) -> dict[str, float]:
    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for prefix, kind in (("box", "bbox"), ("mask", "segm")):
            content = json.loads(results.read_text())
            for result in content:
                if kind == "segm":
                    del result["bbox"]  # else the area is the box's, which detectron2 avoids in this way too
            coco = COCO(str(truth))
            evaluator = COCOeval(coco, coco.loadRes(content), kind)
            if image_ids is not None:
                evaluator.params.imgIds = image_ids
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            metrics |= {f"{prefix}_{n}": 100 * s for n, s in zip(STATISTICS, evaluator.stats, strict=True) if s > -1}
            precision = evaluator.eval["precision"][:, :, :, 0, 2]
            for k, i in enumerate(evaluator.params.catIds):
                valid = precision[:, :, k][precision[:, :, k] > -1]
                metrics |= {f"{prefix}_AP/{coco.cats[i]['name']}": 100 * valid.mean()} if valid.size else {}
    return metrics


def test_ground_truth_scores_100(coco, tmp_path, capfd):
    dataset = eval_set(coco)
    metrics = evaluate(Oracle(dataset), dataset, config(dataset), cpu(), False)[0]
    assert list(metrics) == [f"{prefix}_{name}" for prefix in ("box", "mask") for name in STATISTICS]
    for name, value in metrics.items():
        if not name.endswith(("AR1", "AR10")):  # those stop at 1 and 10 detections
            assert value == pytest.approx(100, abs=1e-9), name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("subset", [None, 4])
def test_all_numbers_are_pycocotools(coco, tmp_path, subset):
    dataset = eval_set(coco, subset=subset)
    results = tmp_path / "predictions.json"
    metrics, _ = evaluate(
        Oracle(dataset, 0.08), dataset, config(dataset, per_class=True, batch_size=2), cpu(), False, results
    )
    expected = by_pycocotools(val_json(coco), results, dataset.image_ids)
    assert {name for name, value in metrics.items() if not math.isnan(value)} == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert 10 < metrics["box_AP"] < 90
    assert metrics["box_AP"] != metrics["mask_AP"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


def test_the_case_is_hard_enough(coco):
    """What the comparison rests on: crowds, all sizes, ties, more than 100 detections, images without objects."""
    dataset = eval_set(coco)
    oracle = Oracle(dataset, 0.08)
    found = [oracle.detect(r.id, r.height, r.width) for r in oracle.records.values()]
    objects = [o for r in oracle.records.values() for o in r.objects]
    assert any(o.crowd for o in objects)
    assert {sum(o.area > limit for limit in (32**2, 96**2)) for o in objects} == {0, 1, 2}
    assert max(len(f["scores"]) for f in found) > 100
    assert any(len(f["scores"]) > len(f["scores"].unique()) for f in found)
    assert any(not r.objects and len(f["scores"]) for r, f in zip(oracle.records.values(), found, strict=True))


def test_no_detections_score_0(coco, tmp_path):
    dataset = eval_set(coco)
    results = tmp_path / "predictions.json"
    metrics = evaluate(Nothing(), dataset, config(dataset, per_class=True), cpu(), False, results)[0]
    assert {value for value in metrics.values() if not math.isnan(value)} == {0.0}
    assert json.loads(results.read_text()) == []
    only_empty = score(dataset.annotations, [encode(3, Nothing()({"sizes": [(5, 5)]})[0])], per_class=False)
    assert all(math.isnan(value) for value in only_empty.values())


def test_masks_and_boxes_as_detectron2_writes_them(tmp_path, coco):
    """xywh by float32 subtraction, the file's category ids, column-major RLE of a mask that is not square."""
    dataset = eval_set(coco)
    mask = np.random.default_rng(0).random((7, 11)) < 0.5
    box = torch.tensor([[0.1, 0.2, 10.3, 6.7]])
    output = {"boxes": box, "scores": torch.tensor([0.3]), "classes": torch.tensor([4])}
    encoded = encode(1, output | {"masks": torch.from_numpy(mask[None])})
    assert (reference.decode(encoded.masks[0]) == mask).all()
    assert encoded.boxes.tolist() == torch.cat([box[:, :2], box[:, 2:] - box[:, :2]], dim=1).tolist()
    assert dataset.annotations.category_ids[encoded.classes[0]] == 90
    assert box.tolist()[0][2] == pytest.approx(10.3)  # the caller's tensor is as it was


def test_model_runs_in_the_runs_precision_and_keeps_its_mode(coco):
    dataset = eval_set(coco, workers=1)
    oracle = Oracle(dataset).train()
    state = torch.get_rng_state()
    evaluate(oracle, dataset, config(dataset, batch_size=4), cpu("bf16-mixed"), False)
    assert oracle.training
    assert oracle.autocast == [True] * 3
    assert oracle.seen == list(range(1, IMAGES + 1))
    assert torch.equal(torch.get_rng_state(), state)  # else a run that evaluates trains differently


def test_progress_is_shown_on_demand(coco, capfd, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.0)  # a line for every batch, as there is no terminal
    dataset = eval_set(coco)
    evaluate(Nothing(), dataset, config(dataset, batch_size=2), cpu(), True)
    assert f"{IMAGES} of {IMAGES} " in capfd.readouterr().err
    evaluate(Nothing(), dataset, config(dataset, batch_size=2), cpu(), False)
    assert f" of {IMAGES} " not in capfd.readouterr().err


def test_a_skipped_image_counts_as_without_detections(coco, tmp_path):
    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    val_json(folder).write_bytes(val_json(coco).read_bytes())
    for path in (coco / "val2017").iterdir():
        (folder / "val2017" / path.name).write_bytes(path.read_bytes() if path.stem[-1] != "4" else b"\xff\xd8")
    dataset = eval_set(folder)
    with pytest.raises(UserError, match=r"000000000004\.jpg: truncated"):
        evaluate(Oracle(dataset), dataset, config(dataset), cpu(), False)
    dataset = eval_set(folder, on_bad_image="skip")
    oracle = Oracle(dataset)
    metrics = evaluate(oracle, dataset, config(dataset), cpu(), False)[0]
    assert 4 not in oracle.seen
    assert dataset.skipped == {"000000000004.jpg": 1}
    detections = [encode(r.id, oracle.detect(r.id, r.height, r.width)) for r in oracle.records.values() if r.id != 4]
    detections.append(encode(4, Nothing()({"sizes": [(5, 5)]})[0]))
    assert metrics == pytest.approx(score(dataset.annotations, detections, per_class=False), nan_ok=True)
    assert metrics["box_AR100"] < 100


def _one_of_two(rank: int, folder: Path, port: int, out: Path) -> None:
    import os

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    dataset = eval_set(folder)
    oracle = Oracle(dataset, 0.08)
    metrics = [evaluate(oracle, dataset, config(dataset, batch_size=2), fabric, False)[0] for _ in range(2)]
    (out / f"{rank}.json").write_text(json.dumps({"metrics": metrics, "seen": oracle.seen}))
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(coco, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # forked, so that neither process has to import torch again
    mp.start_processes(_one_of_two, args=(coco, port, tmp_path), nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    dataset = eval_set(coco)
    alone = evaluate(Oracle(dataset, 0.08), dataset, config(dataset), cpu(), False)[0]
    for metrics in first["metrics"] + second["metrics"]:
        assert metrics == pytest.approx(alone, abs=1e-12, nan_ok=True)
    assert first["seen"] == [1, 3, 5, 7, 9] * 2
    assert second["seen"] == [2, 4, 6, 8] * 2
