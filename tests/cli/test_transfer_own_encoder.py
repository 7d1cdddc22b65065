"""A user's own module through the tasks: passed in Python, and named by an entry point on the command line."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.coco_command import TINY
from support.command_line import TINY_ADE20K, launched
from support.own_encoder import TinyEncoder, WithTokens

from mae_transfer import load_backbone, register_backbone, run_transfer
from mae_transfer.backbones import plugins
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError

TINY_COCO = [option for option in TINY if "window" not in option]
PLAIN = ["backbone.window_size=0", "backbone.rel_pos=false", "backbone.drop_path=0"]


@pytest.fixture(autouse=True)
def _names_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})


def test_every_task_takes_a_module(tmp_path: Path) -> None:
    """COCO with both pyramids, ADE20K, fine-tuning and probes; the record says whose weights they are."""
    coco = make_coco(tmp_path / "coco", train_images=4, val_images=2, size=(48, 64))
    ade = make_ade20k(tmp_path / "ade", train_images=4, val_images=2, size=(40, 64))
    images = make_classification(tmp_path / "images", "folder", train_images=6, val_images=3)
    options = {"preset": "smoke", "device": "cpu"}
    small = ["data.image_size=32"]
    upernet = [*PLAIN, *TINY_ADE20K, "model.layer_scale=null"]
    register_backbone("mine", WithTokens)  # which takes the recipe's drop path
    module = TinyEncoder()
    runs = {
        "fpn": ("coco", module, coco, {}, [*TINY_COCO, *PLAIN]),
        "simple": ("coco", module, coco, {}, [*TINY_COCO, *PLAIN, "recipe=vitdet_mask_rcnn", "optim.layer_decay=0.7"]),
        "upernet": ("ade20k", module, ade, {}, upernet),
        "finetune": ("folder", "mine", images, {"protocol": "finetune"}, small),
        "partial": ("folder", module, images, {"protocol": "partial"}, [*small, *PLAIN, "model.blocks=2"]),
        "knn": ("folder", module, images, {"protocol": "knn"}, small),
        "linear": ("folder", WithTokens(), images, {"protocol": "linear"}, small),
        "attentive": ("folder", WithTokens(), images, {"protocol": "attentive"}, small),
    }
    records = {}
    for name, (task, encoder, data, more, overrides) in runs.items():
        output = tmp_path / name
        records[name] = run_transfer(task, encoder, data=data, output=output, overrides=overrides, **options, **more)
    fingerprint = load_backbone(module).load_report.fingerprint
    for name in ("fpn", "simple", "upernet", "partial", "knn"):
        backbone = records[name]["backbone"]
        assert (backbone["name"], backbone["init"], backbone["weights"]) == ("TinyEncoder", "own", "pretrained")
        assert backbone["fingerprint"] == fingerprint, "the module was trained in place"
        assert "support.own_encoder.TinyEncoder (a module of your own)" in backbone["load_report"][0]
        assert records[name]["encoder_flops"] > 0
    assert records["linear"]["backbone"]["init"] == "contrastive"
    assert {"box_AP", "mask_AP"} <= records["fpn"]["metrics"].keys()
    assert "mIoU" in records["upernet"]["metrics"]
    assert "top1" in records["knn"]["metrics"]

    trained = load_backbone(module, checkpoint=tmp_path / "fpn")
    assert trained.load_report.fingerprint != fingerprint
    with pytest.raises(UserError, match="set backbone.window_size=0 backbone.rel_pos=false backbone.drop_path=0.0, or"):
        run_transfer("coco", module, data=coco, output=tmp_path / "not", overrides=[*TINY, "backbone.window_size=2"])
    narrow = type("Narrow", (TinyEncoder,), {"embed_dim": 24})()
    with pytest.raises(UserError, match=r"width 24 is no multiple of 32, .*; model.pyramid=simple has none"):
        run_transfer("coco", narrow, data=coco, output=tmp_path / "not", overrides=[*TINY_COCO, *PLAIN])
    assert not (tmp_path / "not").exists()


def test_an_entry_point_on_the_command_line(tmp_path: Path) -> None:
    package = tmp_path / "package"
    info = package / "my_encoders-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-encoders\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mae_transfer.backbones]\nmine = my_encoders:make\n")
    source = Path(__file__).parents[1] / "support" / "own_encoder.py"
    (package / "my_encoders.py").write_text(source.read_text() + "\n\ndef make():\n    return TinyEncoder()\n")
    images = make_classification(tmp_path / "images", "folder", train_images=6, val_images=3)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))

    def command(backbone: str) -> "subprocess.CompletedProcess[str]":
        arguments = ["--task", "folder", "--backbone", backbone, "--protocol", "knn", "--preset", "smoke"]
        arguments += ["--device", "cpu", "--data", str(images), "--output", str(tmp_path / "run"), "data.image_size=32"]
        return subprocess.run(launched(arguments), capture_output=True, text=True, check=False, env=environment)

    environment["PYTHONPROFILEIMPORTTIME"] = "1"  # prints all that is imported
    done = command("mine")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| +mae_transfer\.runs\.series$", done.stderr, re.MULTILINE)
    assert not re.search(r"\| +(pandas|sklearn)$", done.stderr, re.MULTILINE), "a second that it never needs"
    del environment["PYTHONPROFILEIMPORTTIME"]
    assert "tensors loaded from the package my-encoders (my_encoders:make) (a module of your own)" in done.stderr
    done = command("mone")
    assert done.returncode == 2
    assert "did you mean mine" in done.stderr
