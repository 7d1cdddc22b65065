"""UperNet against mmsegmentation's own segmentor: same weights, same logits, same loss, same learning rates."""

import dataclasses
import io
import subprocess
import sys
import warnings
from contextlib import redirect_stdout

import pytest
import timm
import torch
from support.ade20k_reference import CLASSES, make_encoder, make_mmseg, make_model, our_name, same_weights
from torch import nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import build
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.protocols.upernet import build_upernet, pixel_loss
from mae_transfer.tasks.ade20k.transforms import IGNORE


@pytest.mark.parametrize(
    ("name", "taps"),
    [("random_vit_nano", (2, 3, 4, 7)), pytest.param("random_vit_b", (3, 5, 7, 11), marks=pytest.mark.slow)],
)
def test_logits_equal_mmsegmentation_at_512(name, taps):
    ours, theirs = same_weights(512, name, taps)
    ours.eval()
    theirs.eval()
    images = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs.encode_decode(images, [{"img_shape": images.shape[2:]}])
        actual = ours.logits(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def normalised(images):
    """uint8 RGB as mmsegmentation's configs normalise it."""
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (images.float() - mean[:, None, None]) / std[:, None, None]


def test_evaluation_of_uint8_images_equals_mmsegmentation():
    ours, theirs = same_weights(64)
    ours.eval()
    theirs.eval()
    image = torch.randint(256, (3, 64, 101), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    with torch.no_grad():
        actual = ours({"views": [[image]], "sizes": [(70, 90)]})[0]
        logits = theirs.slide_inference(normalised(image)[None], [{"ori_shape": (64, 101), "img_shape": (64, 101)}])
        resized = nn.functional.interpolate(logits, size=(70, 90), mode="bilinear", align_corners=False)
    assert actual.unique().numel() > 1
    assert (actual == resized[0].argmax(0)).float().mean() > 0.999


def test_losses_and_gradients_equal_mmsegmentation():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    ours, theirs = same_weights(64)
    for model in (ours, theirs):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(IGNORE, CLASSES, (2, 64, 64), generator=generator, dtype=torch.int16)
    # what the pipeline gives: a crop short of the square, padded by either side in its own way
    batch = {
        "images": [images[0], images[1, :, :50, :40]],
        "labels": [labels[0], labels[1, :50, :40]],
        "file_names": ["a", "b"],
    }
    losses = ours(batch)
    sum(losses.values()).backward()

    whole = normalised(images)
    padded = torch.stack([whole[0], torch.zeros(3, 64, 64)])
    padded[1, :, :50, :40] = whole[1, :, :50, :40]
    targets = labels.long().masked_fill(labels == IGNORE, 255)
    targets[1, 50:], targets[1, :, 40:] = 255, 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=target[None])) for target in targets]
    expected = theirs.loss(padded, samples)
    (expected["decode.loss_ce"] + expected["aux.loss_ce"]).backward()
    torch.testing.assert_close(losses["loss_seg"], expected["decode.loss_ce"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(losses["loss_aux"], expected["aux.loss_ce"], atol=1e-6, rtol=1e-5)
    gradients = {our_name(n): p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=2e-6, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_parameter_groups_equal_mmsegmentations_constructor():
    from mmengine.optim import build_optim_wrapper

    ours, theirs = same_weights(64)
    config = load_config("ade20k", "random_vit_nano")
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmseg.engine  # noqa: F401  registers the constructor

        wrapper = build_optim_wrapper(
            theirs,
            {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.05},
                "paramwise_cfg": {"num_layers": ours.encoder.depth, "layer_decay_rate": 0.65},
                "constructor": "mmseg.LayerDecayOptimizerConstructor",
            },
        )
    names = {id(p): our_name(n) for n, p in theirs.named_parameters()}
    expected = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    actual = {
        name: (group["lr"], group["weight_decay"])
        for group in param_groups(ours, config.optim)
        for name in group["names"]
    }
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value == pytest.approx(expected[name], rel=1e-12), name
    assert len({lr for lr, _ in actual.values()}) == ours.encoder.depth + 2


def test_schedule_is_that_of_the_published_run():
    """mmcv 0.x: `PolyLrUpdaterHook` times its linear warm-up; ours meets the same decay at the end of the warm-up."""
    config = load_config("ade20k", "mae_vit_b")
    schedule = make_schedule(config.schedule, 20210, config.train.global_batch)
    assert (schedule.total, config.optim.lr, config.optim.layer_decay) == (160000, 1e-4, 0.65)
    for step in range(schedule.total):
        published = 1 - step / 160000
        if step < 1500:
            published *= 1 - (1 - step / 1500) * (1 - 1e-6)
        assert abs(schedule.factor(step) - published) <= (0.0024 if step < 1500 else 1e-12), step
    assert schedule.factor(0) == 1e-6


def test_initialised_as_mmsegmentation_initialises():
    ours = make_model()
    theirs = make_mmseg(ours.encoder, 64)
    from mmengine.logging import MMLogger

    MMLogger.get_instance("silent", log_level="ERROR")
    theirs.init_weights()
    mine = dict(ours.named_parameters())
    compared = 0
    for name, value in theirs.named_parameters():
        if name.startswith("backbone.") and "relative_position_bias_table" not in name and "gamma" not in name:
            continue  # weights that are loaded in a transfer
        own = mine[our_name(name)]
        if value.numel() > 3000:  # random: equal in distribution
            assert own.std().item() == pytest.approx(value.std().item(), rel=0.1), name
            assert own.abs().max().item() == pytest.approx(value.abs().max().item(), rel=0.35), name
        elif "bias" in name and "stages" in our_name(name):
            pass  # a few uniform numbers
        elif value.ndim == 1 or value.std() == 0:
            torch.testing.assert_close(own, value, msg=name)
        else:
            assert own.std().item() == pytest.approx(value.std().item(), rel=0.2), name
        compared += 1
    assert compared > 40
    assert mine["decode_head.conv_seg.weight"].std().item() == pytest.approx(0.01, rel=0.15)


def test_loss_is_a_mean_over_all_pixels_and_splits():
    logits = torch.randn(4, CLASSES, 8, 8, requires_grad=True)
    labels = torch.randint(IGNORE, CLASSES, (4, 32, 32))
    labels[3] = IGNORE
    whole = pixel_loss(logits, labels)
    parts = sum(pixel_loss(logits[i : i + 2], labels[i : i + 2]) / 2 for i in (0, 2))
    torch.testing.assert_close(whole, parts)
    assert pixel_loss(logits[3:], labels[3:]).item() == 0.0


def test_one_image_in_training_is_one_line():
    model = make_model().train()
    sample = {
        "images": [torch.zeros(3, 64, 64, dtype=torch.uint8)],
        "labels": [torch.zeros(64, 64, dtype=torch.int16)],
        "file_names": ["a"],
    }
    with pytest.raises(UserError, match=r"train\.micro_batch to 2"):
        model(sample)


@pytest.mark.parametrize(
    ("size", "taps", "message"),
    [
        (72, (2, 3, 4, 7), "image_size=72 is no multiple of the patch 16 of .*, at least 2 of them; use 64 or 80"),
        (64, (3, 5, 7), "needs 4"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(size, taps, message):
    config = load_config("ade20k", "random_vit_nano", overrides=[f"data.image_size={size}", "eval.stride=32"])
    with pytest.raises(UserError, match=message):
        build_upernet(make_encoder(taps=taps), CLASSES, config)


def test_importing_and_building_prints_nothing():
    code = (
        "import torch\n"
        "from mae_transfer.backbones.load import load_backbone\n"
        "from mae_transfer.runs.resolve import load_config\n"
        "from mae_transfer.tasks.ade20k.protocols.upernet import build_upernet\n"
        "encoder = load_backbone('random_vit_nano', img_size=64, taps=(2, 3, 4, 7))\n"
        "config = load_config('ade20k', 'random_vit_nano', overrides=['data.image_size=64', 'eval.stride=32'])\n"
        "model = build_upernet(encoder, 2, config).train()\n"
        "batch = {'images': [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2,\n"
        "         'labels': [torch.zeros(64, 64, dtype=torch.int16)] * 2, 'file_names': ['a', 'b']}\n"
        "sum(model(batch).values()).backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


NANO = registry.find("random_vit_nano")


@pytest.mark.parametrize(
    ("changes", "gamma"),
    [
        ({}, 1.0),
        ({"layer_scale": 0.1, "position_prefix": 0}, 0.1),  # DeiT-III
        ({"layer_scale": 0.1, "abs_pos": False, "rel_pos_tables": True}, 0.1),  # BEiT
        ({"patch_size": 14, "reg_tokens": 4, "layer_scale": 1e-5}, 1e-5),  # DINOv2 with registers
        ({"class_token": False, "position_prefix": 0}, 1.0),
    ],
)
def test_every_kind_of_vit_trains_and_predicts(changes, gamma):
    """LayerScale and tables are added only where a backbone has none; any patch, with and without prefix tokens."""
    spec = dataclasses.replace(NANO, **changes)
    side = 4 * spec.patch_size
    overrides = [f"data.image_size={side}", f"eval.stride={side // 2}", "model.aux_channels=16"]
    config = load_config("ade20k", "random_vit_nano", overrides=overrides)
    backbone = config.backbone
    encoder = ViTEncoder(
        build(spec, img_size=spec.img_size),
        spec,
        img_size=side,
        rel_pos=backbone.rel_pos,
        pos_embed="resized",
        layer_scale=1.0,
        taps=(1, 3, 5, 7),
    )
    gammas = torch.stack([block.ls1.gamma.detach() for block in encoder.vit.blocks])
    assert torch.equal(gammas, torch.full_like(gammas, gamma))
    assert all(hasattr(block.attn, "rel_pos_table") for block in encoder.vit.blocks)
    model = build_upernet(encoder, CLASSES, config).train()
    images = [torch.randint(256, (3, side, side - 7), dtype=torch.uint8) for _ in range(2)]
    labels = [torch.randint(IGNORE, CLASSES, (side, side - 7), dtype=torch.int16) for _ in range(2)]
    sum(model({"images": images, "labels": labels, "file_names": ["a", "b"]}).values()).backward()
    assert not [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    with torch.no_grad():
        prediction = model.eval()({"views": [images[:1]], "sizes": [(50, 31)]})[0]
    assert prediction.shape == (50, 31)


def test_a_trained_encoder_is_a_checkpoint_of_any_task(tmp_path):
    """Its tables, LayerScale and resampled positions come along, at its own size and at another."""
    encoder = make_encoder("mae_vit_nano", weights="random")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    path = tmp_path / "run.pth"
    torch.save({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, path)
    again = make_encoder("mae_vit_nano", checkpoint=path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for map_, expected in zip(again.eval()(image), encoder.eval()(image), strict=True):
            torch.testing.assert_close(map_, expected, atol=1e-5, rtol=1e-5)
        windowed = load_backbone("mae_vit_nano", checkpoint=path, img_size=128, window_size=2, rel_pos=True)
        assert windowed(torch.randn(1, 3, 128, 128))[0].shape == (1, 64, 8, 8)


def test_layer_scale_of_the_weights_is_kept(tmp_path):
    """Also of a model of timm's by its own name; only a ViT that has none gets a new one."""
    vit = timm.create_model("deit3_small_patch16_224", num_classes=0, img_size=32)
    with torch.no_grad():
        for block in vit.blocks:
            block.ls1.gamma.fill_(0.3)
    torch.save(vit.state_dict(), tmp_path / "deit3.pth")
    for name in ("timm:deit3_small_patch16_224", "sup_vit_s"):
        encoder = load_backbone(name, checkpoint=tmp_path / "deit3.pth", img_size=32, layer_scale=1.0)
        for block in encoder.vit.blocks:
            torch.testing.assert_close(block.ls1.gamma, torch.full_like(block.ls1.gamma, 0.3), msg=name)
    plain = load_backbone("random_vit_nano", img_size=32, layer_scale=1.0)
    assert {block.ls1.gamma[0].item() for block in plain.vit.blocks} == {1.0}
