"""Files of Pixio, and of timm's NaFlexVit, whose embeddings have other shapes than a plain ViT's."""

import torch
import transformers
from support.layouts.case import (
    DEPTH,
    DIM,
    GRID,
    HEADS,
    OTHER,
    PATCH,
    PLAIN,
    SIZE,
    Layout,
    hooked,
    of_timm,
    randomise,
    tiny_arch,
    vit,
)
from support.layouts.hugging_face import hugging_face
from support.layouts.pretraining import mae_decoder
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

TOKENS = 3


def pixio(decoder=False):
    """The forward of pixio.py is timm's of a class token and registers, all with positions: prefix tokens are added to
    their positions, patches to theirs, and put behind."""
    model = vit(reg_tokens=TOKENS - 1)
    state = dict(model.state_dict())
    state["cls_token"] = torch.cat([state["cls_token"], state.pop("reg_token")], dim=1)
    if decoder:
        state |= mae_decoder() | {"decoder_pos_embed": torch.randn(1, GRID**2 + TOKENS, 16)}
    return of_timm("Pixio", model, {"model": state, "epoch": 3} if decoder else state)


def hf_pixio(new=False):
    config = transformers.PixioConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        n_cls_tokens=TOKENS,
    )
    kind, reader = transformers.PixioModel, "Hugging Face Pixio"
    return hugging_face(kind, config, new, "", "layers", sizes=OTHER, prefix=TOKENS, reader=reader)


def naflexvit(tokens=True):
    """At the native grid, and at others, to which the class resamples with antialiasing."""
    options = {"class_token": tokens, "reg_tokens": 2 if tokens else 0, "global_pool": "token" if tokens else "map"}
    shape = {"patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    cfg = NaFlexVitCfg(**shape, **options, pos_embed_grid_size=(GRID, GRID), fc_norm=False)
    model = randomise(NaFlexVit(cfg, num_classes=0))
    plain = {"class_token": tokens, "reg_tokens": options["reg_tokens"], "global_pool": options["global_pool"]}
    plain |= {"no_embed_class": True} if tokens else {}
    spec = tiny_arch(f"vit_tiny_naflex_{tokens}", **plain) if tokens else PLAIN
    prefix = model.num_prefix_tokens
    maps = hooked(model, model.blocks, prefix, model.forward_features)
    return Layout("timm NaFlexVit", model.state_dict(), maps, sizes=OTHER, model=model, spec=spec)
