#!/usr/bin/env python
"""Makes detectron2_vit.npz: what detectron2 computes for the cases of `support/detectron2_cases.py`.

Needs detectron2.

    PYTHONPATH=tests python tests/goldens/make_detectron2.py

Everything runs in float64, so that no decision hangs on a rounding error, but for what is fp32 in this project whatever
the trunk is: anchors, and the predictions of RPN, box head and mask head.
"""

from pathlib import Path

import numpy as np
import torch
from support.detector_goldens import golden_batch, golden_images
from support.detectron2_cases import DETECTION_SEEDS, TRAINING_CASES, gradients, loss_curve, vit_detector

from mae_transfer.tasks.coco.detectron2.engine import Detectron2RCNN, build_detectron2

OUTPUT = Path(__file__).with_name("detectron2_vit.npz")


def in_float64(seed: int, *, fresh: bool = False) -> Detectron2RCNN:
    model = vit_detector(build_detectron2, seed, fresh=fresh).double()
    rpn, heads = model.rcnn.proposal_generator, model.rcnn.roi_heads
    rpn.anchor_generator.float()
    predictors = [rpn.rpn_head.objectness_logits, rpn.rpn_head.anchor_deltas, heads.mask_head.predictor]
    for predictor in [*predictors, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]:
        predictor.register_forward_hook(lambda module, inputs, output: output.float())
    return model


def main() -> None:
    values: dict[str, np.ndarray] = {}
    for seed in DETECTION_SEEDS:
        with torch.no_grad():
            found = in_float64(seed).eval()(golden_images(seed))
        for i, detections in enumerate(found):
            masks = detections.pop("masks")
            values |= {f"detect/{seed}/{i}/{name}": value.numpy() for name, value in detections.items()}
            values[f"detect/{seed}/{i}/areas"] = masks.sum(dim=(1, 2)).int().numpy()
            values[f"detect/{seed}/{i}/first_masks"] = np.packbits(masks[:3].numpy())
    for case, (seed, objects) in TRAINING_CASES.items():
        model = in_float64(seed).train()
        losses = model(golden_batch(seed, objects))
        sum(losses.values()).backward()
        values |= {f"train/{case}/{name}": np.array(loss.item()) for name, loss in losses.items()}
        norms = {name: gradient.norm().item() for name, gradient in gradients(model).items()}
        values[f"train/{case}/gradient_norms"] = np.array([norms[name] for name in sorted(norms)])
    curve = loss_curve(in_float64(20, fresh=True).train())
    values |= {f"curve/{name}": np.array([losses[name] for losses in curve]) for name in curve[0]}
    np.savez_compressed(OUTPUT, **values)
    print(f"{OUTPUT}: {len(values)} arrays")


if __name__ == "__main__":
    main()
