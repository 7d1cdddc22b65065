"""What a layout's case is, and small models of timm to make one of."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from mae_transfer.backbones.registry import Spec

DIM, DEPTH, HEADS, PATCH, SIZE = 32, 2, 4, 8, 32
GRID = SIZE // PATCH
PLAIN = Spec("tiny", "mae", None, DIM, DEPTH, HEADS, PATCH, img_size=SIZE)
BEIT = dataclasses.replace(PLAIN, abs_pos=False, rel_pos_tables=True, layer_scale=0.1)
SHAPE = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
OTHER = ((48, 48), (24, 56))
HF = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * DIM,
    "image_size": SIZE,
    "patch_size": PATCH,
}

NAMES = {
    "mae": "official MAE with decoder",
    "timm": "timm ViT / official MAE",
    "hf": "Hugging Face ViT / DeiT / ViTMAE",
    "hf_beit": "Hugging Face BEiT / data2vec-vision",
    "hf_dinov2": "Hugging Face Dinov2",
    "dino": "DINO / iBOT / DINOv2 training",
}


@dataclass
class Layout:
    """`maps(images)` is the source's own output of each block as maps. `spare`: keys whose loss leaves a whole file.
    `options`: of the encoder, for the same forward."""

    reader: str
    content: Any
    maps: Callable
    spec: Spec = PLAIN
    sizes: tuple = ()
    spare: tuple = ()
    model: Any = None
    options: dict = field(default_factory=dict)
    state: dict = field(init=False)

    def __post_init__(self):
        entry = self.content
        for key in ("model", "state_dict", "teacher"):
            if isinstance(entry.get(key), dict):
                entry = entry[key]
                break
        self.state = entry

    def with_state(self, state):
        """The content with another state dict in its place."""
        if self.state is self.content:
            return state
        return {key: state if value is self.state else value for key, value in self.content.items()}


def randomise(model, std=0.2):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def hooked(model, blocks, prefix, call=None):
    """Images -> the output (B, N, C) or (B, h, w, C) of each block as maps, caught by hooks during the model's own
    forward."""

    def maps(images):
        caught = []
        hooks = [
            b.register_forward_hook(lambda *a: caught.append(a[2] if torch.is_tensor(a[2]) else a[2][0]))
            for b in blocks
        ]
        with torch.no_grad():
            (call or model)(images)
        for hook in hooks:
            hook.remove()
        grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
        maps = [x if x.ndim == 4 else x[:, prefix:].unflatten(1, grid) for x in caught]
        return [x.permute(0, 3, 1, 2) for x in maps]

    return maps


def timm_maps(model, resampling=None):
    """timm's forward; at another size with its position embedding resampled as detectron2's get_abs_pos does, or by
    `resampling(native, grid)`, a source's own way."""

    def maps(images):
        size = tuple(images.shape[2:])
        resized = copy.deepcopy(model)
        if size != (SIZE, SIZE):
            resized.set_input_size(img_size=size)
            if model.pos_embed is not None:
                rows = model.pos_embed.shape[1] - GRID**2
                native = model.pos_embed[:, rows:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
                grid = (size[0] // PATCH, size[1] // PATCH)
                new = (resampling or bicubic)(native, grid).flatten(2).transpose(1, 2)
                resized.pos_embed.data = torch.cat([model.pos_embed[:, :rows], new], dim=1)
        return hooked(resized, resized.blocks, resized.num_prefix_tokens, resized.forward_features)(images)

    return maps


def vit(**kwargs):
    return randomise(VisionTransformer(**{**SHAPE, **kwargs}))


def beit(**kwargs):
    return randomise(Beit(**{**SHAPE, "init_values": 0.1, "use_abs_pos_emb": False, **kwargs}))


def bicubic(native, grid):
    return F.interpolate(native, size=grid, mode="bicubic", align_corners=False)


def of_timm(reader, model, content, sizes=OTHER, resampling=None, **kwargs):
    return Layout(reader, content, timm_maps(model, resampling), sizes=sizes, model=model, **kwargs)


@functools.cache
def tiny_arch(name, kind=VisionTransformer, **kwargs):
    """A timm arch of our size, so that a spec can name it; of another class than VisionTransformer too."""

    def build(pretrained=False, **options):
        model = kind(**{**SHAPE, **dict(kwargs), **{k: v for k, v in options.items() if k in _OPTIONS}})
        model.pretrained_cfg = {"architecture": name, "mean": PLAIN.mean, "std": PLAIN.std}
        return model

    build.__name__, build.__module__ = name, kind.__module__
    module = sys.modules[kind.__module__]
    setattr(module, name, build)
    if not hasattr(module, "__all__"):
        module.__all__ = []
    timm.models.register_model(build)
    tokens = kwargs.get("class_token", True) + kwargs.get("reg_tokens", kwargs.get("num_reg_tokens", 0))
    rows = 0 if kwargs.get("no_embed_class") else tokens
    spec = dataclasses.replace(PLAIN, name=f"timm:{name}", init=name, timm_arch=name, position_prefix=rows)
    if kind is VisionTransformer:
        return spec
    rotary, biased = kwargs.get("use_rot_pos_emb", False), kwargs.get("qkv_bias", True)
    return dataclasses.replace(spec, timm_class=kind.__name__, rotary=rotary, qkv_bias=biased)


_OPTIONS = ("num_classes", "img_size", "dynamic_img_size", "drop_path_rate", "class_token", "reg_tokens", "global_pool")
_OPTIONS += ("num_reg_tokens", "qkv_bias")
