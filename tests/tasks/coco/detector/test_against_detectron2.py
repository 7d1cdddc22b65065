"""The detector against detectron2 itself, through `goldens/detectron2.npz`.

The file holds what detectron2 02b5c4e computed on a CPU for the cases below: `GeneralizedRCNN` with FPN, RPN,
StandardROIHeads, 4conv1fc box head and mask head, all with BN, the recipe's options, and as its `bottom_up`
`detector_standin.StandInEncoder` with the resampling stages of `ViTFPN`. Weights went through `detectron2_names`.
Everything ran in float64, so that no NMS decision hangs on a rounding error (boxes are fp32 in both detectors; NMS got
fp32 scores, which torchvision's kernel wants). Anchors and RoIs were drawn as `sampling.subsample` draws them.
"""

from typing import Any

import numpy as np
import pytest
import torch
from support import paths
from support.detector_goldens import golden_batch, golden_images, golden_model
from torch import nn

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.detectron2.names import from_detectron2, prefix_pairs, to_detectron2

GOLDENS = paths.GOLDENS / "detectron2.npz"
DETECTION_SEEDS = [0, 1, 3]
TRAINING_CASES = {
    "batch": (11, {"loss_average": "batch"}, [7, 4, 5]),
    "batch_empty_image": (12, {"loss_average": "batch"}, [40, 1, 0]),
    "image": (13, {"loss_average": "image"}, [30, 4, 0]),
}
"""Seed, model options, objects per image (the second image has bitmaps, the others polygons)."""


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@pytest.fixture(scope="module")
def goldens() -> Any:
    return np.load(GOLDENS, allow_pickle=False)


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
def test_detections_are_detectron2s(seed: int, goldens: Any) -> None:
    with torch.no_grad():
        detections = golden_model(seed).eval()(golden_images(seed))
    for i, found in enumerate(detections):
        wanted = {
            name: torch.from_numpy(goldens[f"detect/{seed}/{i}/{name}"]) for name in ("boxes", "scores", "classes")
        }
        assert len(found["boxes"]) == len(wanted["boxes"]) == 100
        assert found["classes"].tolist() == wanted["classes"].tolist()
        torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-5, rtol=0)
        areas = found["masks"].sum(dim=(1, 2)).numpy()
        assert np.abs(areas - goldens[f"detect/{seed}/{i}/areas"]).max() <= 1
        first = np.packbits(found["masks"][:3].numpy())
        assert (first != goldens[f"detect/{seed}/{i}/first_masks"]).sum() <= 1


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_losses_and_gradients_are_detectron2s(case: str, goldens: Any) -> None:
    """`image` was made by detectron2 on each image alone, with fixed norms, and averaged."""
    seed, options, objects = TRAINING_CASES[case]
    model = golden_model(seed, **options).train()
    if case == "image":
        freeze_norms(model)
    losses = model(golden_batch(seed, objects))
    sum(losses.values()).backward()
    wanted = {k.split("/")[-1]: v.item() for k, v in goldens.items() if k.startswith(f"train/{case}/loss_")}
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(wanted, abs=1e-5, rel=1e-6)
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    wanted_norms = dict(zip(sorted(norms), goldens[f"train/{case}/gradient_norms"].tolist(), strict=True))
    assert norms == pytest.approx(wanted_norms, rel=1e-5, abs=1e-8)


def test_names_go_both_ways_and_unknown_ones_are_refused() -> None:
    state = golden_model(0).state_dict()
    pairs = prefix_pairs()
    theirs = to_detectron2(state, pairs)
    assert len(theirs) == len(state)
    assert "proposal_generator.rpn_head.conv.conv1.weight" in theirs
    assert "backbone.fpn_lateral2.norm.running_mean" in theirs
    assert "roi_heads.mask_head.mask_fcn4.norm.weight" in theirs
    back = from_detectron2(theirs, pairs)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    with pytest.raises(UserError, match=r"box_head\.fc2\.weight"):
        from_detectron2(theirs | {"roi_heads.box_head.fc2.weight": torch.zeros(1)}, pairs)
