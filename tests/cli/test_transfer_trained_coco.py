"""Trained detectors through the command line: those made here and under detectron2's names; val images are enough."""

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support.coco_command import TINY
from transformers import ViTConfig, ViTModel

import mae_transfer as mt
from mae_transfer.cli.convert import main as convert
from mae_transfer.cli.transfer import main
from mae_transfer.cli.verify import main as verify
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.record import read_record, read_records
from mae_transfer.run_folder.validation import validate
from mae_transfer.runs.tasks import descriptions

IMAGES = 16
LOOSE = ["eval.score_threshold=0", "eval.nms_threshold=0.9", "data.workers=0", "eval.pictures=0", "eval.images=null"]
OTHER = ["--task", "coco", "--device", "cpu", *TINY, *LOOSE]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=IMAGES, size=(48, 64))


@pytest.fixture(scope="module")
def val_alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("val") / "coco"
    shutil.copytree(data, root)
    shutil.rmtree(root / "train2017")
    (root / "annotations" / "instances_train2017.json").unlink()
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recipe -> run of a few steps."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    for recipe in ("vitdet_mask_rcnn", "vitdet_cascade", "mask_rcnn_li2021"):
        options = ["--backbone", "random_vit_nano", "--preset", "smoke", "--data", str(data), "subset=null"]
        options.append(f"recipe={recipe}")
        assert main([*OTHER, *options, "--output", str(folder / recipe)]) == 0
        found[recipe] = folder / recipe
    return found


OF = {
    "vitdet_mask_rcnn": "trained_vitdet",
    "vitdet_cascade": "trained_vitdet_cascade",
    "mask_rcnn_li2021": "trained_li2021",
}


def evaluate(checkpoint: Path, data: Path, output: Path, recipe: str, *more: str) -> int:
    options = ["--backbone", "mae_vit_nano", "--preset", "smoke", "--eval-only", f"recipe={recipe}", "subset=null"]
    where = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    return main([*OTHER, *options, *where, *more])


@pytest.mark.parametrize("recipe", OF)
def test_a_detectors_file_gives_the_numbers_of_its_run(
    recipe: str, trained: dict[str, Path], val_alone: Path, tmp_path: Path
) -> None:
    run = trained[recipe]
    wanted = read_record(run / "record.json")["metrics"]
    assert any(value for value in wanted.values()), "numbers that say nothing"
    assert evaluate(run, val_alone, tmp_path / "own", OF[recipe]) == 0
    theirs = tmp_path / "detectron2.pth"
    assert convert(["--to", "detectron2", str(run), str(theirs)]) == 0
    content = torch.load(theirs, weights_only=True)
    content["model"]["pixel_mean"] = torch.zeros(3, 1, 1)  # of older files
    arrays = {name: tensor.numpy() for name, tensor in content["model"].items()}
    pickled = tmp_path / "model_final.pkl"
    pickled.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    assert evaluate(pickled, val_alone, tmp_path / "pkl", OF[recipe]) == 0
    for name in ("own", "pkl"):
        record = read_record(tmp_path / name / "record.json")
        found = record["metrics"]
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] is None if value is None else found[key] == pytest.approx(value, abs=1e-9), key
        assert (record["row"]["name"], record["data"]["train_images"]) == ("trained", 0)
        assert (record["steps"], record["backbone"]["init"]) == (0, "mae")
    settings = [*TINY, *LOOSE, f"recipe={OF[recipe]}"]
    model, task = mt.load_model(run, backbone="mae_vit_nano", overrides=settings)
    assert task == "coco"
    found = mt.evaluate(model, val_alone, device="cpu")
    assert found == pytest.approx({k: math.nan if v is None else v for k, v in wanted.items()}, abs=1e-9, nan_ok=True)
    alone = shutil.copy(max((run / "checkpoints").glob("step_*.pt")), tmp_path / "alone.pt")
    for file in (run, alone):  # by the configuration in the checkpoint, wherever that lies
        again, task = mt.load_model(file)
        assert task == "coco"
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    report = "\n".join(record["backbone"]["load_report"])
    assert "(detectron2 detector)" in report
    assert "pixel_mean: constant that is no weight" in report
    records, _ = read_records(tmp_path)
    assert "trained" in make_tables(records, descriptions=descriptions())


def test_a_run_is_evaluated_by_its_own_configuration(
    val_alone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes, thresholds and windows of a run, and what its first weights said: positions, mean, std, eps."""
    first = tmp_path / "first"
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 256}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, layer_norm_eps=0.1), add_pooling_layer=False)
    vit.save_pretrained(first)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9] * 3}
    (first / "preprocessor_config.json").write_text(json.dumps(processor))
    start = ["--backbone", "mae_vit_nano", "--checkpoint", str(first), "--preset", "smoke", "--data", str(data)]
    run = tmp_path / "run"
    assert main([*OTHER, *start, "subset=null", "recipe=vitdet_mask_rcnn", "--output", str(run)]) == 0
    wanted = read_record(run / "record.json")["metrics"]
    assert any(value for value in wanted.values()), "numbers that say nothing"
    file = max((run / "checkpoints").glob("step_*.pt"))
    where = ["--checkpoint", str(file), "--data", str(val_alone), "--output", str(tmp_path / "again")]
    command = ["--task", "coco", "--eval-only", "--device", "cpu", "data.workers=0", "eval.pictures=0", *where]
    assert main(command) == 0
    found = read_record(tmp_path / "again" / "record.json")
    assert found["metrics"] == wanted
    assert (found["row"]["name"], found["settings"]["backbone.window_size"]) == ("trained", 2)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"config": content["config"] | {"protocol": "frozen"}}, tmp_path / "frozen.pt")
    capsys.readouterr()
    command[command.index(str(file))] = str(tmp_path / "frozen.pt")
    assert main([*command, "--output", str(tmp_path / "none")]) == 2
    assert "is of a run of the protocol frozen, whose pyramid may read other maps" in capsys.readouterr().err


def test_a_detector_of_another_recipe_is_an_error(
    trained: dict[str, Path], val_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(text: str, checkpoint: Path, recipe: str, *more: str) -> None:
        assert evaluate(checkpoint, val_alone, tmp_path / "run", recipe, *more) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert text in lines[0]
        assert not (tmp_path / "run").exists()

    mask_rcnn = trained["vitdet_mask_rcnn"]
    refused("is a cascade, unlike the recipe trained_vitdet: recipe=", trained["vitdet_cascade"], "trained_vitdet")
    refused("is no cascade, unlike the recipe trained_vitdet_cascade", mask_rcnn, "trained_vitdet_cascade")
    refused("missing rpn.head.conv.2.0.", mask_rcnn, "trained_vitdet", "model.rpn_convs=3")
    refused("does not fit the detector of recipe trained_li2021", mask_rcnn, "trained_li2021")
    refused("does not fit", mask_rcnn, "trained_vitdet", "model.box_fc=24")
    theirs = tmp_path / "detectron2.pth"
    assert convert(["--to", "detectron2", str(mask_rcnn), str(theirs)]) == 0
    state = torch.load(theirs, weights_only=True)["model"]
    for name in ("proposal_generator.rpn_head.conv.conv1.weight", "roi_heads.mask_head.predictor.bias"):
        torch.save({"model": {key: tensor for key, tensor in state.items() if key != name}}, theirs)
        refused("detectron2.pth: ", theirs, "trained_vitdet")
    encoder = tmp_path / "encoder.pth"
    torch.save({"model": {f"blocks.0.{i}": torch.zeros(2) for i in range(3)}}, encoder)
    refused("encoder.pth: ", encoder, "trained_vitdet")


def test_verify_says_both_numbers(
    trained: dict[str, Path], val_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read_record(trained["vitdet_mask_rcnn"] / "record.json")["metrics"]
    box, mask = metrics["box_AP"], metrics["mask_AP"]
    assert box is not None
    assert mask is not None

    def arguments(box_ap: float, images: int, *more: str) -> list[str]:
        settings = "{recipe: trained_vitdet}"
        text = f"tiny: {{task: coco, backbone: mae_vit_nano, metrics: {{box_AP: {box_ap}, mask_AP: {mask}}}, "
        text += f"tolerance: 0.01, images: {images}, settings: {settings}, source: this test}}\n"
        (tmp_path / "list.yaml").write_text(text)
        where = ["--models", str(tmp_path / "list.yaml"), "--data", str(val_alone), "--output", str(tmp_path / "run")]
        return [
            "tiny",
            *where,
            "--checkpoint",
            str(trained["vitdet_mask_rcnn"]),
            "--device",
            "cpu",
            *TINY,
            *LOOSE,
            *more,
        ]

    assert verify(arguments(box, IMAGES)) == 0
    assert verify(arguments(box + 1, IMAGES)) == 4
    assert f"expected {box + 1:.3f}, difference -1.000: DIFFERS" in capsys.readouterr().out
    assert verify(arguments(box, 5000)) == 4
    assert f"NO VERDICT on a part of {IMAGES} images" in capsys.readouterr().out
    words = [word.replace("eval.images=null", "eval.images=3") for word in arguments(box, IMAGES)]
    assert verify([*words, "--output", str(tmp_path / "fewer")]) == 4
    assert "NO VERDICT on a part of 3 images" in capsys.readouterr().out
    assert verify([*arguments(box, IMAGES), "--images", "2"]) == 2
    assert "--images 2: an interval for box_AP takes 100 images or more" in capsys.readouterr().err


def test_a_part_has_an_interval_for_ap(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_coco(tmp_path / "coco", train_images=1, val_images=130, size=(48, 64), seed=3)
    shutil.rmtree(data / "train2017")
    run = trained["vitdet_mask_rcnn"]
    few = "eval.max_detections=10"
    assert evaluate(run, data, tmp_path / "whole", "trained_vitdet", few) == 0
    whole = read_record(tmp_path / "whole" / "record.json")["metrics"]

    def verdict(only: str = "null", **changes: float) -> tuple[int, str]:
        model: dict[str, object] = {"task": "coco", "backbone": "mae_vit_nano", "source": "this test", "images": 130}
        model |= {"metrics": {key: whole[key] for key in ("box_AP", "mask_AP")} | changes, "tolerance": 0.001}
        (tmp_path / "list.yaml").write_text(
            yaml.safe_dump({"tiny": model | {"settings": {"recipe": "trained_vitdet"}}})
        )
        command = ["tiny", "--models", str(tmp_path / "list.yaml"), "--checkpoint", str(run), "--data", str(data)]
        more = ["--images", "110", "--output", str(tmp_path / f"part {only}"), "--device", "cpu", *TINY, few]
        return verify(
            [*command, *more, *(word.replace("images=null", f"images={only}") for word in LOOSE)]
        ), capsys.readouterr().out

    code, said = verdict(box_AP50=90.0)
    assert (code, said.count("95 % interval of the whole"), said.count("agrees")) == (0, 2, 2)
    assert said.count("NO VERDICT on a part of 110 images") == 1, "what has no interval decides nothing"
    assert read_record(tmp_path / "part null" / "record.json")["per_image"]["images"] == 110
    code, said = verdict("100", mask_AP=50.0)
    assert (code, said.count("NO VERDICT")) == (4, 2), "of images with objects alone"
    assert validate(tmp_path) == (3, []), "AP of the kept matches is that of the records"
