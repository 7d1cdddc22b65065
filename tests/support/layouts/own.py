"""A checkpoint of a run of this project."""

import torch
from support.layouts.case import (
    BEIT,
    OTHER,
    PLAIN,
    Layout,
    beit,
    vit,
)

from mae_transfer.backbones.vit import ViTEncoder


def own_run(beit_tables=False, **options):
    """A run's checkpoint, of an encoder with these options; the source is that very encoder."""
    if beit_tables:
        from mae_transfer.backbones.checkpoints import loader

        model, _ = loader.load(BEIT, beit(use_rel_pos_bias=True).state_dict(), "test")
    else:
        model = vit(final_norm=False, dynamic_img_size=True)
    encoder = ViTEncoder(model, BEIT if beit_tables else PLAIN, taps=(0, 1), **options).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in encoder.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        assert name
    state = {f"encoder.{key}": t for key, t in encoder.state_dict().items()} | {"pyramid.0.weight": torch.randn(3, 3)}
    content = {"step": 5, "model": state, "optimizer": {"state": {}}, "ema": None}
    with torch.no_grad():
        layout = Layout("mae_transfer", content, torch.no_grad()(encoder), spec=BEIT if beit_tables else PLAIN)
    layout.sizes, layout.spare, layout.model = OTHER, ("pyramid.0.weight",), encoder
    return layout
