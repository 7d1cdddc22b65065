"""The whole detector: batches of unlike images, splits, autocast, bad input."""

from typing import Any

import pytest
import torch
from support.detector_standin import StandInEncoder, seeded_image, seeded_target, seeded_weights, small_config
from torch import nn

from mae_transfer.adapters.square_input import square_batch
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn

SIZES = [(128, 96), (80, 128)]


def detector(config: CocoConfig | None = None, patch: int = 16) -> MaskRCNN:
    torch.manual_seed(0)
    config = config or small_config(128, box_convs=2, mask_convs=2)
    model = build_mask_rcnn(StandInEncoder(patch_size=patch), 3, config)
    seeded_weights(model, 0)
    return model


def batch(objects: list[int], first: int = 0) -> dict[str, Any]:
    sizes = SIZES[first : first + len(objects)]
    seeds = range(first, first + len(objects))
    return {
        "images": [seeded_image(s, *size) for s, size in zip(seeds, sizes, strict=True)],
        "file_names": [f"{s}.jpg" for s in seeds],
        "sizes": sizes,
        "targets": [
            seeded_target(s, *size, n, 3, bitmaps=False) for s, size, n in zip(seeds, sizes, objects, strict=True)
        ],
    }


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@pytest.mark.parametrize("objects", [[3], [0], [3, 0]])
def test_every_parameter_has_a_gradient(objects: list[int]) -> None:
    model = detector().train()
    losses = model(batch(objects))
    assert sorted(losses) == ["loss_box_reg", "loss_cls", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"]
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    if objects == [0]:
        assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize("objects", [[5, 2], [0, 4]])
def test_losses_and_gradients_do_not_depend_on_the_split(objects: list[int]) -> None:
    model = detector().double().train()
    freeze_norms(model)
    whole = model(batch(objects))
    sum(whole.values()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = [model(batch(objects[k : k + 1], first=k)) for k in range(2)]
    (sum(parts[0].values()) / 2 + sum(parts[1].values()) / 2).backward()
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value, atol=1e-7, rtol=1e-6)
    for one, (name, p) in zip(gradients, model.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, one, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_seed_of_a_sample_decides_its_draw() -> None:
    model = detector().train()
    freeze_norms(model)
    data = batch([4])
    first, again = model(data), model(data)
    assert all(first[name].equal(again[name]) for name in first)
    data["targets"][0]["seed"] += 1
    assert not model(data)["loss_cls"].equal(first["loss_cls"])


def test_detections_at_original_size() -> None:
    model = detector().eval()
    data = batch([1, 1])
    at_input = model(data)
    data["sizes"] = [(256, 192), (160, 256)]
    doubled = model(data)
    for found, twice, (height, width) in zip(at_input, doubled, SIZES, strict=True):
        assert 0 < len(found["boxes"]) <= 100
        assert (found["scores"].diff() <= 0).all()
        assert found["scores"].min() > 0.05
        assert found["classes"].dtype == torch.int64
        assert set(found["classes"].tolist()) <= {0, 1, 2}
        assert found["masks"].dtype == torch.bool
        assert found["masks"].shape == (len(found["boxes"]), height, width)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"][:, 0::2] <= width).all()
        assert (found["boxes"][:, 1::2] <= height).all()
        torch.testing.assert_close(twice["boxes"], found["boxes"] * 2)


def test_no_detections() -> None:
    config = small_config(128).model_copy(
        update={"eval": small_config().eval.model_copy(update={"score_threshold": 0.9999})}
    )
    found = detector(config).eval()(batch([1]))[0]
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["classes"].shape == (0,)
    assert found["masks"].shape == (0, *SIZES[0])


@pytest.mark.parametrize("training", [True, False])
def test_boxes_stay_fp32_under_bf16_autocast(training: bool) -> None:
    """On a bf16 grid every coordinate would survive the trip to bf16 and back."""
    model = detector(small_config(512)).train(training)
    data = batch([3])
    data["images"], data["sizes"] = [seeded_image(0, 500, 510)], [(500, 510)]
    proposals = []
    model.rpn.register_forward_hook(lambda module, args, output: proposals.extend(output[0]))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        found = model(data)
    boxes = proposals + ([] if training else [found[0]["boxes"]])
    for box in boxes:
        assert box.dtype == torch.float32
        inside = box[(box > 0) & (box < 500)]
        assert len(inside) > 100
        assert (inside == inside.bfloat16().float()).float().mean() < 0.1
    if training:
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in found.values())
        sum(found.values()).backward()


def test_padding_is_zeros_after_normalising_up_to_two_patches() -> None:
    model = detector(small_config(100), patch=14)
    assert model.side == 112
    image = torch.full((3, 50, 70), 51, dtype=torch.uint8)
    padded = square_batch(model.encoder, [image], ["x"], model.side)
    assert padded.shape == (1, 3, 112, 112)
    wanted = [(0.2 - m) / s for m, s in zip(model.encoder.mean, model.encoder.std, strict=True)]
    assert padded[0, :, 49, 69].tolist() == pytest.approx(wanted, rel=1e-5)
    assert not padded[:, :, 50:].any()
    assert not padded[:, :, :, 70:].any()


def test_patch_14_runs() -> None:
    model = detector(small_config(100), patch=14)
    data = batch([2])
    data["images"], data["sizes"] = [seeded_image(0, 100, 90)], [(100, 90)]
    data["targets"] = [seeded_target(0, 100, 90, 2, 3, bitmaps=True)]
    assert model.rpn.strides == (3.5, 7, 14, 28, 56)
    assert all(loss.isfinite() for loss in model(data).values())
    assert model.eval()(data)[0]["masks"].shape[1:] == (100, 90)


def test_bad_input_is_named() -> None:
    model = detector()
    data = batch([1])
    data["images"] = [seeded_image(0, 100, 129)]
    with pytest.raises(UserError, match=r"0\.jpg is 129x100.*square of 128.*data\.image_size"):
        model(data)
    for key, value, message in (
        ("boxes", torch.tensor([[5.0, 5.0, 5.0, 9.0]]), r"0\.jpg has a box of no area"),
        ("classes", torch.tensor([3]), r"0\.jpg has a class outside 0\.\.2"),
    ):
        data = batch([1])
        data["targets"][0][key] = value
        with pytest.raises(UserError, match=message):
            model(data)
    encoder = StandInEncoder()
    encoder.taps = (0, 1)
    with pytest.raises(UserError, match="gives 2 feature maps"):
        build_mask_rcnn(encoder, 3, small_config())
