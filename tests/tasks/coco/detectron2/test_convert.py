"""Weights of whole detectors to detectron2's names and back, and its pickles read without running them."""

import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import vitdet_cases
from support.coco_command import BASE, TINY
from support.command_line import run, weights
from support.detector_goldens import NUM_CLASSES, golden_images
from support.detector_standin import seeded_weights, small_config
from support.detectron2_cases import vit_detector, vit_encoder
from support.paths import TOOLS

from mae_transfer import load_backbone
from mae_transfer.backbones.checkpoints import files, numpy_pickle
from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.detectron2.convert import convert, translate
from mae_transfer.tasks.coco.detectron2.names import prefix_pairs, to_detectron2
from mae_transfer.tasks.coco.model import build_mask_rcnn

TOOL = TOOLS / "convert_detector.py"


def detector(**model: Any) -> dict[str, torch.Tensor]:
    built = build_mask_rcnn(vit_encoder(), NUM_CLASSES, small_config(**model))
    seeded_weights(built, 5)
    return built.state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_a_run_goes_to_detectron2_and_back_with_the_same_bits(tmp_path: Path) -> None:
    data = make_coco(tmp_path / "coco", train_images=4, val_images=2, size=(48, 64))
    folder = tmp_path / "run"
    options = ["--data", str(data), "--output", str(folder), "schedule.steps=1", "schedule.warmup_steps=0"]
    assert main([*BASE, *options, *TINY]) == 0
    theirs, back = tmp_path / "theirs.pth", tmp_path / "back.pth"
    for to, source, out in (("detectron2", folder, theirs), ("mae_transfer", theirs, back)):
        done = run([sys.executable, str(TOOL), "--to", to, str(source), str(out)])
        assert done.returncode == 0, done.stderr
        assert f"under the names of {to}" in done.stdout
        assert ("MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and" in done.stdout) == (to == "detectron2")
    content = torch.load(theirs, weights_only=True)
    assert "backbone.bottom_up.encoder.vit.blocks.0.attn.qkv.weight" in content["model"]
    assert content["__author__"] == "mae_transfer"
    assert_equal(torch.load(back, weights_only=True)["model"], weights(folder))
    encoder = load_backbone("vit_nano", checkpoint=back, img_size=64, window_size=2, rel_pos=True)
    assert torch.equal(encoder.vit.pos_embed, weights(folder)["encoder.vit.pos_embed"])


def test_the_average_of_a_run_is_what_goes(tmp_path: Path) -> None:
    state = detector()
    average = {f"module.{name}": value + 1 for name, value in state.items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"step": 1, "model": state, "optimizer": {}, "ema": average, "origin": None}, tmp_path / "run.pt")
    lines = convert(tmp_path / "run.pt", tmp_path / "out.pth", "detectron2")
    assert "the moving average of the weights, which is what the run evaluates" in lines
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    name = "rpn.head.cls_logits.bias"
    assert torch.equal(written["proposal_generator.rpn_head.objectness_logits.bias"], state[name] + 1)


@pytest.mark.parametrize("depths", [{}, {"rpn_convs": 1, "box_convs": 2, "mask_convs": 1}, {"box_convs": 0}])
def test_depths_are_read_off_the_names(depths: dict[str, int]) -> None:
    state = detector(**depths)
    theirs = translate(state, "detectron2", "a")
    assert_equal(theirs, to_detectron2(state, prefix_pairs(**depths)))
    assert_equal(translate(theirs, "mae_transfer", "a"), state)


def test_every_missing_and_every_strange_tensor_is_named() -> None:
    """But for what an encoder may do without, which is asked when it is loaded: positions and their tables."""
    state = detector()
    theirs = translate(state, "detectron2", "a")
    optional = {"encoder.vit.pos_embed", "encoder.rel_pos_window", "encoder.rel_pos_global"}
    refused = 0
    for ours, name in zip(state, theirs, strict=True):
        for full, to, dropped in ((state, "detectron2", ours), (theirs, "mae_transfer", name)):
            rest = {key: value for key, value in full.items() if key != dropped}
            if ours in optional:
                continue
            with pytest.raises(UserError) as error:
                translate(rest, to, "a")
            assert f"checkpoint a: lacks {dropped}, " in str(error.value)
            odd = {key + "x" if key == dropped else key: value for key, value in full.items()}
            with pytest.raises(UserError, match="checkpoint a: "):
                translate(odd, to, "a")
            refused += 2
    assert refused == 4 * (len(state) - len(optional))


def test_the_norm_is_read_off_the_tensors_whatever_the_pyramid() -> None:
    """An FPN with layer norm, as `model.norm=LN` on the recipe of Li et al. builds it."""
    state = detector(norm="LN")
    assert not any("running_mean" in name for name in state)
    theirs = translate(state, "detectron2", "a")
    assert_equal(translate(theirs, "mae_transfer", "a"), state)
    for name in ("pyramid.fpn.inner_blocks.0.1.weight", "roi_heads.box_head.0.1.bias"):
        with pytest.raises(UserError, match=f"lacks {name}"):
            translate({key: value for key, value in state.items() if key != name}, "detectron2", "a")


@pytest.mark.parametrize("kind", vitdet_cases.KINDS)
def test_vitdets_detectors_go_there_and_back(kind: str) -> None:
    """Under the names of the released weights; every tensor outside the encoder that lacks is named."""
    state = vitdet_cases.ours(kind, 0).state_dict()
    theirs = translate(state, "detectron2", "a")
    assert {"backbone.net.pos_embed", "backbone.net.blocks.0.attn.rel_pos_h", "backbone.simfp_2.4.norm.weight"} <= set(
        theirs
    )
    assert ("roi_heads.box_predictor.2.bbox_pred.weight" in theirs) == (kind == "cascade")
    assert_equal(translate(theirs, "mae_transfer", "a"), state)
    for dropped in (name for name in theirs if not name.startswith("backbone.net.")):
        with pytest.raises(UserError, match=f"checkpoint a: lacks {re.escape(dropped)}, |has no counterpart"):
            translate({name: value for name, value in theirs.items() if name != dropped}, "mae_transfer", "a")


@pytest.mark.parametrize(
    "name", ["cls_token", "blocks.0.ls1.gamma", "blocks.0.attn.relative_position_bias_table", "norm_pre.weight"]
)
def test_what_detectron2s_vit_has_not_is_refused(name: str) -> None:
    state = vitdet_cases.ours("mask_rcnn", 0).state_dict() | {f"encoder.vit.{name}": torch.zeros(1)}
    with pytest.raises(UserError, match=f"'encoder.vit.{re.escape(name)}' has no counterpart"):
        translate(state, "detectron2", "a")


def test_a_pickle_takes_no_more_memory_than_its_arrays(tmp_path: Path) -> None:
    bomb, nested = tmp_path / "bomb.pkl", tmp_path / "nested.pkl"
    call = b"cnumpy.core.numeric\n_frombuffer\n(I400000000\ncnumpy\ndtype\n(S'u1'\ntR(I400000000\ntS'C'\ntR."
    bomb.write_bytes(call)
    with pytest.raises(UserError, match="bomb.pkl: not a readable checkpoint"):
        files.read(files.find(bomb))
    with pytest.raises(pickle.UnpicklingError, match="an array without its bytes"):
        numpy_pickle.read(bomb)
    inner: list[Any] = [np.zeros(1)]
    for _ in range(64):
        inner = [inner, inner]
    nested.write_bytes(pickle.dumps({"model": inner}))
    files.read(files.find(nested))  # 2 ** 64 leaves, were each named one copied


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_the_model_zoo_is_read(tmp_path: Path, protocol: int) -> None:
    state = detector()
    theirs = {name: value.numpy() for name, value in translate(state, "detectron2", "a").items()}
    theirs |= {"pixel_mean": np.ones((3, 1, 1), np.float32)}
    columns = np.asfortranarray(theirs["roi_heads.box_predictor.cls_score.weight"])
    theirs["roi_heads.box_predictor.cls_score.weight"] = columns
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": theirs, "__author__": "someone"}, protocol=protocol))
    lines = convert(path, tmp_path / "out.pth", "mae_transfer")
    assert any("left out: pixel_mean" in line for line in lines)
    assert_equal(torch.load(tmp_path / "out.pth", weights_only=True)["model"], state)


def test_numpys_own_old_names_and_big_endian_arrays_are_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": array}, protocol=2).replace(b"numpy._core.", b"numpy.core."))
    assert torch.equal(files.read(path)["a"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("new", [True, False])
def test_torchs_own_files_are_read_under_the_ending_pkl(tmp_path: Path, new: bool) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pkl", _use_new_zipfile_serialization=new)
    assert torch.equal(files.read(tmp_path / "a.pkl")["a"], torch.ones(2))


class Shell:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def bad_pickles(marker: Path) -> dict[str, tuple[bytes, str]]:
    array = pickle.dumps({"model": np.zeros(4, np.float32)}, protocol=2)
    return {
        "code": (pickle.dumps({"model": Shell(marker)}), r"it holds Python code \((posix|nt)\.system\)"),
        "objects": (pickle.dumps(np.array([{}, 1], dtype=object)), "not a readable checkpoint"),
        "tensors": (pickle.dumps({"a": torch.ones(1)}), r"it holds Python code \(torch\._utils\."),
        "larger shape": (array.replace(b"K\x04\x85", b"K\x08\x85"), "not a readable checkpoint"),
        "cut": (array[:-20], "not a readable checkpoint"),
        "state of a class": (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "not a readable checkpoint"),
    }


@pytest.mark.parametrize("kind", bad_pickles(Path()))
def test_a_bad_pickle_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content, reason = bad_pickles(marker)[kind]
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        convert(path, tmp_path / "out.pth", "mae_transfer")
    assert "\n" not in str(error.value)
    assert not marker.exists()
    assert not (tmp_path / "out.pth").exists()


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    state = detector()
    torch.save(state, tmp_path / "ours.pth")
    torch.save({"model": translate(state, "detectron2", "a")}, tmp_path / "theirs.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    out = tmp_path / "out.pth"
    for name, to, target, reason in (
        ("ours.pth", "mae_transfer", out, "is under the names of mae_transfer, .* use --to detectron2"),
        ("theirs.pth", "detectron2", out, "is under the names of detectron2, .* use --to mae_transfer"),
        ("other.pth", "detectron2", out, "parameter 'a' has no counterpart"),
        ("ours.pth", "detectron2", tmp_path / "out.pkl", "name it .pth"),
        ("none.pth", "detectron2", out, "no such file"),
        ("ours.pth", "detectron2", tmp_path / "none" / "out.pth", "cannot write"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            convert(tmp_path / name, target, to)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not out.exists()


def test_detectron2_loads_what_is_written_and_writes_what_is_loaded(tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("detectron2.checkpoint", reason="detectron2 is not installed")
    from mae_transfer.tasks.coco.detectron2.engine import build_detectron2

    ours = vit_detector(build_mask_rcnn, 3).eval()
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "theirs.pth", "detectron2")
    theirs = build_detectron2(vit_encoder(), NUM_CLASSES, small_config()).eval()
    checkpointer = checkpoint.DetectionCheckpointer(theirs.rcnn, str(tmp_path))
    incompatible = checkpointer.load(str(tmp_path / "theirs.pth"))
    assert set(incompatible) == {"__author__"}
    with torch.no_grad():
        for found, wanted in zip(theirs(golden_images(3)), ours(golden_images(3)), strict=True):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    checkpointer.save("model_final")
    convert(tmp_path / "model_final.pth", tmp_path / "back.pth", "mae_transfer")
    assert_equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], ours.state_dict())
