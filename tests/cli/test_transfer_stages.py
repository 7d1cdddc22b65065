"""A hierarchical encoder through each kind of task: trained, evaluated, with its pyramid and its strides."""

from pathlib import Path

import pytest

from mae_transfer import run_transfer
from mae_transfer.errors import UserError

NAME = "timm:convnextv2_atto"
SMALL = {"backbone.window_size": 0, "backbone.rel_pos": False, "backbone.weights": "random"}
RUNS = {
    "coco": SMALL | {"model.fpn_channels": 16, "model.head_channels": 16},
    "ade20k": SMALL
    | {"model.layer_scale": None, "model.head_channels": 16, "model.aux_channels": 8, "data.image_size": 96},
    "folder": {"backbone.weights": "random"},
}


@pytest.mark.parametrize(("task", "protocol"), [("coco", None), ("ade20k", None), ("folder", "knn")])
def test_every_kind_of_task(task: str, protocol: str | None, tmp_path: Path) -> None:
    record = run_transfer(
        task, NAME, preset="smoke", protocol=protocol, overrides=RUNS[task], output=tmp_path / "run", device="cpu"
    )
    assert record["metrics"]
    assert record["backbone"]["size"] == "320x4"


def test_a_pyramid_of_plain_vits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pyramid=simple is for plain ViTs"):
        run_transfer(
            "coco",
            NAME,
            preset="smoke",
            overrides=RUNS["coco"] | {"recipe": "vitdet_mask_rcnn"},
            output=tmp_path / "run",
            device="cpu",
        )
