#!/usr/bin/env python
"""Makes vitdet.npz: what detectron2 computes for the cases of `tests/support/vitdet_cases.py`. Needs detectron2.

    PYTHONPATH=.:tests python tests/goldens/make_vitdet.py

Everything runs in float64, so that no decision hangs on a rounding error (see `vitdet_cases.in_float64`).
"""

from pathlib import Path

import numpy as np
import torch
from support.vitdet_cases import (
    DETECTION_SEEDS,
    KINDS,
    MAP_CASES,
    TRAINING_CASES,
    batch,
    in_float64,
    map_image,
    ours,
    their_detections,
    their_losses,
)

from mae_transfer.tasks.coco.detectron2.names import from_detectron2, options_of, prefix_pairs

OUTPUT = Path(__file__).with_name("vitdet.npz")


def main() -> None:
    values: dict[str, np.ndarray] = {}
    with torch.no_grad():
        rcnn = in_float64("mask_rcnn", ours("mask_rcnn", 5))
        for case in MAP_CASES:
            maps = rcnn.backbone(map_image(case).double())
            values |= {f"maps/{case}/{name}": m[:, ::4, ::3, ::3].float().numpy() for name, m in maps.items()}
    for kind in KINDS:
        for seed in DETECTION_SEEDS:
            for i, found in enumerate(their_detections(in_float64(kind, ours(kind, seed)), batch(seed))):
                masks = found.pop("masks")
                values |= {f"{kind}/detect/{seed}/{i}/{name}": value.numpy() for name, value in found.items()}
                values[f"{kind}/detect/{seed}/{i}/areas"] = masks.sum(dim=(1, 2)).int().numpy()
                values[f"{kind}/detect/{seed}/{i}/first_masks"] = np.packbits(masks[:3].numpy())
        for case, (seed, objects) in TRAINING_CASES.items():
            rcnn = in_float64(kind, ours(kind, seed))
            losses = their_losses(rcnn, batch(seed, objects))
            sum(losses.values()).backward()
            values |= {f"{kind}/train/{case}/{name}": np.array(loss.item()) for name, loss in losses.items()}
            state = {name: p.grad for name, p in rcnn.named_parameters()}
            gradients = from_detectron2(state, prefix_pairs(**options_of(state)))
            norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
            values[f"{kind}/train/{case}/gradient_norms"] = np.array([norms[name] for name in sorted(norms)])
    np.savez_compressed(OUTPUT, **values)
    print(f"{OUTPUT}: {len(values)} arrays")


if __name__ == "__main__":
    main()
