"""The backbone names, and what each stands for. Pure data: importing this loads neither torch nor timm.

`<init>_vit_<size>`; `init` is a table's row and `size` its column. Where published weights exist they are taken from
timm's hub by the tag in `hub`; the other names need a checkpoint file. `timm:<model[.tag]>` (docs/encoders.md) is
resolved by `timm_vit.spec_of`. Normalisation statistics are those of the weights' tag.

How the published weights differ from those behind MAE Table 4 (Li et al. 2021, arXiv 2111.11429, section 3):
- mae: the same files (1600 epochs).
- sup: ti, s, b are DeiT (ImageNet-1K, 300 epochs), as in Li et al. for b. Their l is the MAE paper's own supervised
  recipe (ImageNet-1K, 200 epochs), never released; ours is DeiT-III l (ImageNet-1K, 800 epochs, with LayerScale and no
  position for the class token), the public l trained on the same data. h is DeiT-III too. A plain supervised ViT given
  as checkpoint is built as a plain one.
- beit: trained on ImageNet-22K and then fine-tuned there with labels; Li et al. pre-trained their own for 800 epochs on
  ImageNet-1K without labels (not released). Files of BEiT's own pre-training load as a checkpoint.
- mocov3: published by its authors only for s and b, and not in timm: pass the file. Its s has 12 heads, not 6.

`vit_<size>` (init `own`) is the plain architecture, for this project's pre-training and its checkpoints; `vit_b_p8` is
one with patches of 8 pixels instead of the size's own.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mae_transfer.errors import UserError

Statistics = tuple[float, ...]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: Statistics = (0.5, 0.5, 0.5)

TIMM_PREFIX = "timm:"


@dataclass(frozen=True)
class Spec:
    """What a backbone name stands for.

    Attributes:
        hub: timm's `model.tag` of the published weights, None where there are none.
        layer_scale: the initial value of LayerScale (None: no such layer).
        position_prefix: rows of the position embedding for prefix tokens, before the patches' own.
        rel_pos_tables: each block has a BEiT relative position table.
        decomposed_tables: each block has ViTDet's two tables.
        timm_arch: the timm model that it is built by, instead of from the fields.
        final_norm: checkpoints of this model end with a norm (which the encoder leaves out).
        reg_tokens: tokens beside the class token.
        class_tokens: class tokens; those after the first are counted in `reg_tokens` too, and held as such.
        eps: of the LayerNorms, None for timm's own (1e-6).
        final_eps: of the final norm, None where it is that of the others.
        origin: where a module of the user's own is from; it is not built from the fields then.
        timm_class: the class of timm that it is built as, `VisionTransformer` or `Eva`.
        rotary: its attention has rotary positions.
        stages: channels of the maps of a hierarchical encoder, shallow to deep; `depth` counts its stages and
            `patch_size` is the stride of the last. Empty for others.
        pos_resampling: rule by which the position embedding is resampled (`positions/resampling.py`).
        window_padding: how maps are padded to windows off the native size where that is not timm's way (`swin.py`).
    """

    name: str
    init: str
    size: str | None
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD
    hub: str | None = None
    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    position_prefix: int = 1
    abs_pos: bool = True
    rel_pos_tables: bool = False
    decomposed_tables: bool = False
    timm_arch: str | None = None
    final_norm: bool = True
    class_token: bool = True
    reg_tokens: int = 0
    class_tokens: int = 1
    qkv_bias: bool = True
    eps: float | None = None
    final_eps: float | None = None
    origin: str | None = None
    timm_class: str = "VisionTransformer"
    rotary: bool = False
    pos_resampling: str = "bicubic"
    stages: tuple[int, ...] = ()
    window_padding: str | None = None


def with_class_tokens(spec: Spec, count: int) -> Spec:
    """The spec with so many class tokens, each with a position, as Pixio has them."""
    fields: dict = class_token_fields(count)
    return replace(spec, **fields)


def class_token_fields(count: int) -> dict[str, int]:
    """Fields of a Spec with so many class tokens, each with a position."""
    return {"class_tokens": count, "reg_tokens": count - 1, "position_prefix": count}


SIZES: dict[str, tuple[int, int, int, int]] = {
    "nano": (64, 8, 4, 16),
    "ti": (192, 12, 3, 16),
    "s": (384, 12, 6, 16),
    "b": (768, 12, 12, 16),
    "l": (1024, 24, 16, 16),
    "h": (1280, 32, 16, 14),
}
"""Embed dim, depth, heads, patch. `nano` is for tests and smoke runs only."""

INITS = ("mae", "sup", "beit", "mocov3", "dino", "own", "random")


def size_of(embed_dim: int, depth: int) -> str | None:
    """The size letter of these dimensions, None if they are no standard size."""
    return next((size for size, dims in SIZES.items() if dims[:2] == (embed_dim, depth)), None)


def _spec(init: str, size: str, hub: str | None = None, **fields: object) -> Spec:
    embed_dim, depth, num_heads, patch_size = SIZES[size]
    values: dict = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "patch_size": patch_size, **fields}
    return Spec(name=f"{init}_vit_{size}", init=init, size=size, hub=hub, **values)


def _own(size: str, patch: int | None = None) -> Spec:
    fields: dict = {} if patch is None else {"patch_size": patch}
    name = f"vit_{size}" if patch is None else f"vit_{size}_p{patch}"
    return replace(_spec("own", size, **fields), name=name)


_BEIT = {"mean": HALF, "std": HALF, "abs_pos": False, "rel_pos_tables": True}
_DEIT3 = {"layer_scale": 1e-6, "position_prefix": 0}

_DINO = {"pos_resampling": "offset"}

_SPECS = {
    spec.name: spec
    for spec in (
        _spec("mae", "nano"),
        _spec("mae", "ti"),
        _spec("mae", "s"),
        _spec("mae", "b", "vit_base_patch16_224.mae"),
        _spec("mae", "l", "vit_large_patch16_224.mae"),
        _spec("mae", "h", "vit_huge_patch14_224.mae"),
        _spec("sup", "ti", "deit_tiny_patch16_224.fb_in1k"),
        _spec("sup", "s", "deit_small_patch16_224.fb_in1k"),
        _spec("sup", "b", "deit_base_patch16_224.fb_in1k"),
        _spec("sup", "l", "deit3_large_patch16_224.fb_in1k", **_DEIT3),
        _spec("sup", "h", "deit3_huge_patch14_224.fb_in1k", **_DEIT3),
        _spec("beit", "b", "beit_base_patch16_224.in22k_ft_in22k", layer_scale=0.1, **_BEIT),
        _spec("beit", "l", "beit_large_patch16_224.in22k_ft_in22k", layer_scale=1e-5, **_BEIT),
        _spec("mocov3", "s", num_heads=12),
        _spec("mocov3", "b"),
        _spec("dino", "s", "vit_small_patch16_224.dino", **_DINO),
        _spec("dino", "b", "vit_base_patch16_224.dino", **_DINO),
        *(_own(size) for size in SIZES),
        *(_spec("random", size) for size in SIZES),
    )
}
_OWN_WITH_PATCH = re.compile(rf"vit_({'|'.join(SIZES)})_p([1-9][0-9]*)")


def names() -> list[str]:
    """All registered names (the `timm:` ones are not listed)."""
    return list(_SPECS)


def knows(name: str) -> bool:
    """Whether the name is one of this project's own."""
    return name in _SPECS or bool(_OWN_WITH_PATCH.fullmatch(name)) or name.startswith(TIMM_PREFIX)


def find(name: str, added: Iterable[str] = ()) -> Spec:
    """The spec of a registered name; raises UserError with the nearest names, of `added` too, if there is none."""
    if own := _OWN_WITH_PATCH.fullmatch(name):
        return _own(own[1], int(own[2]))
    if name not in _SPECS:
        known = [*_SPECS, *added]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise UserError(
            f"backbone {name!r}: unknown; {hint} A model of timm (docs/encoders.md) is `{TIMM_PREFIX}<model[.tag]>`."
        )
    return _SPECS[name]
