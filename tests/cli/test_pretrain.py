"""Whole pre-training runs by the command line: resume, two processes, the options of Table 1, what becomes of the
checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import pretrain

from mae_transfer.backbones.load import load_backbone
from mae_transfer.cli import transfer as transfer_cli
from mae_transfer.cli.pretrain import main
from mae_transfer.cli.visualize import main as visualize
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.pretrain.methods.mae_checkpoint import load_mae
from mae_transfer.pretrain.pictures import CAPTION_WIDTH
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics

SMALL = ["data.image_size=32", "model.decoder_depth=1", "model.decoder_width=32", "device=cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=3, val_images=2)


def command(images: Path, output: Path, *more: str, backbone: str = "vit_nano_p8") -> list[str]:
    options = ["--method", "mae", "--backbone", backbone, "--data", str(images), "--preset", "smoke"]
    return [*options, "--output", str(output), *SMALL, *more]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(output / "checkpoints")[-1])["model"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "mae"
    assert main(command(images, output, "eval.knn=3")) == 0
    return output


def test_record_and_metrics(run: Path) -> None:
    record = json.loads((run / "record.json").read_text())
    assert (record["task"], record["recipe"], record["steps"]) == ("pretrain", "pretrain_mae", 3)
    assert record["settings"]["method"] == "mae"
    assert record["metrics"].keys() == {"val_loss", "val_patch_mean", "knn_top1"}
    assert 0.5 < record["metrics"]["val_loss"] < 3
    assert record["metrics"]["val_patch_mean"] == pytest.approx(191 / 192, abs=0.02)  # normalised, almost all variance
    lines = read_metrics(run)
    assert [line["loss_mae"] > 0 for line in lines if "loss" in line] == [True] * 3
    assert all("data_wait" in line for line in lines if "loss" in line)


def test_resume_gives_the_same_weights(images, run, tmp_path) -> None:
    stopped = tmp_path / "stopped"
    assert main(command(images, stopped, "eval.knn=3", "train.checkpoint_every=1", "train.keep_checkpoints=3")) == 0
    for path in list_checkpoints(stopped / "checkpoints")[1:]:
        path.unlink()
    (stopped / "record.json").unlink()
    assert main([*command(images, stopped, "eval.knn=3"), "--resume"]) == 0
    ours, theirs = weights(stopped), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_do_what_one_does(images, tmp_path) -> None:
    """Masks are drawn for each image and not for each batch, so that the split does not matter."""
    more = ["train.micro_batch=1", "eval.knn=3"]
    assert main(command(images, tmp_path / "one", "train.micro_batch=4", "eval.knn=3")) == 0
    done = pretrain(command(images, tmp_path / "two", *more), ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = ([line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    records = [json.loads((tmp_path / name / "record.json").read_text())["metrics"] for name in ("one", "two")]
    assert records[1] == pytest.approx(records[0], rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.target=pixel", "model.loss_on=all", "data.crop=center", "data.flip=0"],
        ["model.target=pca", "model.pca_coefficients=20", "model.pca_images=4", "data.crop=fixed"],
        ["model.mask_token=encoder", "data.color_jitter=0.4"],
        ["mask.kind=block", "mask.ratio=0.5", "model.decoder_depth=2"],
        ["mask.kind=grid", "model.decoder_width=64", "train.precision=bf16"],
        ["data.image_size=[16,40]", "mask.ratio=0.4"],
    ],
    ids=["all", "pca", "encoder", "block", "grid", "oblong"],
)
def test_every_option_of_table_1_trains(images, tmp_path, overrides) -> None:
    assert main(command(images, tmp_path / "run", *overrides)) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
    assert load_backbone("vit_nano_p8", checkpoint=tmp_path / "run", final_norm=True).norm is not None


def test_pca_target_is_numpys(images, tmp_path) -> None:
    more = ["model.target=pca", "model.pca_coefficients=20", "model.pca_images=4"]
    assert main(command(images, tmp_path / "run", *more)) == 0
    model, config = load_mae(tmp_path / "run")
    from mae_transfer.pretrain.task import PretrainTask

    dataset = PretrainTask(config).train_dataset
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:4])
    images_ = torch.stack([dataset[(0, int(i))]["image"] for i in chosen])
    patches = model.patchify(images_).flatten(0, 1).double().numpy()
    centred = patches - patches.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    ours = model.target.components.double().numpy()
    assert np.abs(np.abs(np.sum(ours * directions[:20].T, axis=0)) - 1).max() < 1e-4
    coefficients = model.target.of(model.patchify(images_)).flatten(0, 1).numpy()
    assert np.allclose(np.abs(coefficients), np.abs(centred @ directions[:20].T), atol=1e-3)
    assert torch.allclose(
        model.target.to_pixels(model.target.of(model.patchify(images_)), images_).flatten(0, 1).double(),
        torch.from_numpy(centred @ directions[:20].T @ directions[:20] + patches.mean(0)),
        atol=1e-3,
    )


def test_a_run_transfers_by_its_folder_with_nothing_else_to_say(images, run, tmp_path) -> None:
    output = tmp_path / "transfer"
    options = ["--task", "folder", "--backbone", "vit_nano_p8", "--checkpoint", str(run), "--data", str(images)]
    more = ["--preset", "smoke", "--output", str(output), "data.image_size=32"]
    assert transfer_cli.main([*options, *more]) == 0
    record = json.loads((output / "record.json").read_text())
    assert record["backbone"]["init"] == "MAE (this project)"
    assert record["backbone"]["fingerprint"] is not None
    state = weights(run)
    encoder = load_backbone("vit_nano_p8", checkpoint=list_checkpoints(run / "checkpoints")[-1], final_norm=True)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"]), name
    ignored = {name for name, why in encoder.load_report.ignored.items() if why == "decoder of the pre-training"}
    assert ignored == {name for name in state if not name.startswith("encoder.")}


def test_statistics_and_shape_come_with_the_checkpoint(images, tmp_path) -> None:
    more = ["data.image_size=[16,40]", "data.mean=[.1,.2,.3]", "data.std=[.5,.6,.7]"]
    assert main(command(images, tmp_path / "run", *more)) == 0
    encoder = load_backbone("vit_nano_p8", checkpoint=tmp_path / "run")
    assert (encoder.mean, encoder.std, encoder.native_grid) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (2, 5))


def test_other_channels_do_not_transfer(images, tmp_path, capsys) -> None:
    more = ["data.channels=1", "data.mean=[.5]", "data.std=[.2]"]
    assert main(command(images, tmp_path / "run", *more)) == 0
    options = ["--task", "folder", "--backbone", "vit_nano_p8", "--checkpoint", str(tmp_path / "run")]
    assert transfer_cli.main([*options, "--preset", "smoke", "--output", str(tmp_path / "t")]) == 2
    assert "its images have 1 channels; the tasks have RGB images only" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["official", "official_full", "timm"])
def test_exports_are_the_official_layouts(run, tmp_path, form: str) -> None:
    import timm

    from mae_transfer.backbones.checkpoints.export import export

    export(run, "vit_nano_p8", form, tmp_path / "out.pth")
    file = torch.load(tmp_path / "out.pth", weights_only=True)
    state = file if form == "timm" else file["model"]
    kept = weights(run)
    names = {name.removeprefix("encoder.").removeprefix("vit.") for name in kept}
    decoder = {name for name in names if name.startswith(("mask_token", "decoder_"))}
    assert state.keys() == (names if form == "official_full" else names - decoder)
    for name, tensor in state.items():
        ours = kept.get(name, kept.get(f"encoder.{name}", kept.get(f"encoder.vit.{name}")))
        assert torch.equal(tensor, ours), name
    if form == "timm":  # timm takes it without a word
        model = timm.models.VisionTransformer(32, 8, embed_dim=64, depth=8, num_heads=4, num_classes=0)
        model.load_state_dict(state, strict=True)


def columns(path: Path) -> list[np.ndarray]:
    """The four pictures of the first row, 32 x 32 each."""
    picture = np.asarray(Image.open(path)).astype(int)
    return [picture[:32, i * 36 : i * 36 + 32] for i in range(4)]


def test_pictures(run, images, tmp_path, capsys) -> None:
    out = tmp_path / "out.png"
    options = ["--checkpoint", str(run), "--images", str(images / "val" / "*" / "*.JPEG"), "--output", str(out)]
    assert visualize([*options, "--limit", "3"]) == 0
    flattering, said = columns(out), capsys.readouterr().out
    original, masked, predicted, pasted = flattering
    grey = (masked == 128).all(-1)
    assert grey.mean() == pytest.approx(12 / 16, abs=0.01)
    assert np.array_equal(masked[~grey], original[~grey])
    assert np.array_equal(pasted[~grey], original[~grey])
    assert np.array_equal(pasted[grey], predicted[grey])
    assert not np.array_equal(predicted[~grey], original[~grey])
    assert "mean and deviation of the TRUE patch" in said
    assert "--honest" in said
    page = np.asarray(Image.open(out))
    below = page[3 * 36 - 4 :]
    assert page.shape[1] == CAPTION_WIDTH
    assert below.shape[0] > 18
    assert (below < 128).any()  # the caption

    assert visualize([*options, "--limit", "3", "--honest"]) == 0
    assert "mean of the visible patches' means and variances" in capsys.readouterr().out
    honest = columns(out)
    assert np.array_equal(honest[1], masked)
    assert np.array_equal(honest[2][~grey], predicted[~grey])
    assert not np.array_equal(honest[2][grey], predicted[grey])

    assert visualize([*options, "--mask-ratio", "0.999"]) == 2
    assert visualize([*options, "--mask-ratio", "1.5"]) == 2
    assert visualize(["--checkpoint", str(run), "--images", "nothing*.jpg"]) == 2
    assert "error: --images nothing*.jpg: no such file" in capsys.readouterr().err


def test_pictures_of_an_official_file_are_the_runs(run, images, tmp_path) -> None:
    from mae_transfer.backbones.checkpoints.export import export

    export(run, "vit_nano_p8", "official_full", tmp_path / "full.pth")
    # its decoder has 4 heads, which no official file tells; these have 16
    with pytest.raises(UserError, match="pass --target norm_pixel"):
        load_mae(tmp_path / "full.pth")
    model, _ = load_mae(tmp_path / "full.pth", target="norm_pixel")
    ours, _ = load_mae(run)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_denormalised_by_the_true_patches_statistics(run) -> None:
    """A perfect prediction of normalised pixels gives the picture back."""
    model, _ = load_mae(run)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    patches = model.patchify(images)
    assert torch.allclose(model.target.to_pixels(model.target.of(patches), patches), patches, atol=1e-4)


def test_bad_input_makes_no_folder(images, tmp_path, capsys) -> None:
    for more in (["mask.ratio=0.99"], ["data.image_size=33"], ["mask.kind=grid", "mask.ratio=0.5"]):
        assert main(command(images, tmp_path / "none", *more)) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none").exists()
    assert main(command(images, tmp_path / "none", backbone="mae_vit_b")) == 2
    assert "pre-train vit_b" in capsys.readouterr().err
    assert transfer_cli.main(["--task", "pretrain", "--backbone", "vit_b"]) == 2
    assert "mae-transfer pretrain" in capsys.readouterr().err
    assert transfer_cli.main(["--task", "coco", "--backbone", "vit_b", "--data", str(images)]) == 2
    assert "\n" not in capsys.readouterr().err.rstrip("\n")
