"""One small model per checkpoint layout, with the file content that the layout's own code (or documentation) gives.

`LAYOUTS[name]()` makes a `Layout` with random weights. Where no package exists, the layout is built by hand on a model
of timm, from the description in the layout's reader or its public source.
"""

import argparse
import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.vit import ViTEncoder

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
    """`maps(images)` is the source's own output of each block as maps. `spare`: keys whose loss leaves a whole file."""

    reader: str
    content: Any
    maps: Callable
    spec: Spec = PLAIN
    sizes: tuple = ()
    spare: tuple = ()
    model: Any = None
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
    """Images -> the output of each block as maps, caught by hooks during the model's own forward."""

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
        return [tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2) for tokens in caught]

    return maps


def timm_maps(model):
    """timm's forward; at another size with its position embedding resampled as detectron2's get_abs_pos does."""

    def maps(images):
        size = tuple(images.shape[2:])
        resized = copy.deepcopy(model)
        if size != (SIZE, SIZE):
            resized.set_input_size(img_size=size)
            if model.pos_embed is not None:
                rows = model.pos_embed.shape[1] - GRID**2
                native = model.pos_embed[:, rows:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
                grid = (size[0] // PATCH, size[1] // PATCH)
                new = F.interpolate(native, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
                resized.pos_embed.data = torch.cat([model.pos_embed[:, :rows], new], dim=1)
        return hooked(resized, resized.blocks, resized.num_prefix_tokens, resized.forward_features)(images)

    return maps


def vit(**kwargs):
    return randomise(VisionTransformer(**{**SHAPE, **kwargs}))


def beit(**kwargs):
    return randomise(Beit(**{**SHAPE, "init_values": 0.1, "use_abs_pos_emb": False, **kwargs}))


def of_timm(reader, model, content, sizes=OTHER, **kwargs):
    return Layout(reader, content, timm_maps(model), sizes=sizes, model=model, **kwargs)


@functools.cache
def tiny_arch(name, **kwargs):
    """A timm arch of our size, so that a spec can name it."""

    def build(pretrained=False, **options):
        return VisionTransformer(**{**SHAPE, **dict(kwargs), **{k: v for k, v in options.items() if k in _OPTIONS}})

    build.__name__, build.__module__ = name, "timm.models.vision_transformer"
    import timm.models.vision_transformer as module

    setattr(module, name, build)
    if not hasattr(module, "__all__"):
        module.__all__ = []
    timm.models.register_model(build)
    rows = 0 if kwargs.get("no_embed_class") or not kwargs.get("class_token", True) else 1
    return dataclasses.replace(PLAIN, name=f"timm:{name}", init=name, timm_arch=name, position_prefix=rows)


_OPTIONS = ("num_classes", "img_size", "dynamic_img_size", "drop_path_rate", "class_token", "reg_tokens", "global_pool")


def mae_decoder(width=16, depth=1):
    blocks = VisionTransformer(embed_dim=width, depth=depth, num_heads=2, num_classes=0, img_size=SIZE).blocks
    parts = {
        "decoder_embed": nn.Linear(DIM, width),
        "decoder_blocks": blocks,
        "decoder_norm": nn.LayerNorm(width),
        "decoder_pred": nn.Linear(width, PATCH * PATCH * 3),
    }
    state = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
    return state | {"mask_token": torch.randn(1, 1, width), "decoder_pos_embed": torch.randn(1, GRID**2 + 1, width)}


def mae_full():
    model = vit()
    args = argparse.Namespace(lr=1e-3)
    training = {"optimizer": {"state": {}}, "epoch": 7, "scaler": {}, "args": args}
    return of_timm(NAMES["mae"], model, {"model": model.state_dict() | mae_decoder(), **training})


def linear_probe():
    model = vit()
    probe = {f"head.1.{key}": t for key, t in nn.Linear(DIM, 10).state_dict().items()}
    probe |= {f"head.0.{key}": t for key, t in nn.BatchNorm1d(DIM, affine=False).state_dict().items()}
    return of_timm(NAMES["timm"], model, {"model": model.state_dict() | probe, "epoch": 3})


def timm_plain(**kwargs):
    model = vit(**kwargs)
    return of_timm(NAMES["timm"], model, model.state_dict())


def timm_arch(name, **kwargs):
    spec, model = tiny_arch(name, **kwargs), vit(**kwargs)
    return of_timm(NAMES["timm"], model, model.state_dict(), spec=spec)


def deit_distilled():
    model = randomise(VisionTransformerDistilled(**{**SHAPE, "num_classes": 5}))
    return of_timm(NAMES["timm"], model, {"model": model.state_dict()}, sizes=())


def deit3():
    model = vit(init_values=0.1, no_embed_class=True, num_classes=5)
    names = {key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in model.state_dict()}
    content = {"model": {names[key]: t for key, t in model.state_dict().items()}}
    return of_timm(NAMES["timm"], model, content, spec=dataclasses.replace(PLAIN, init="sup"))


def moco_mlp(layers, inputs, hidden, outputs):
    """moco/builder.py `_build_mlp`: linear layers without bias, BatchNorm and ReLU, the last BatchNorm not affine."""
    modules = []
    for i in range(layers):
        last = i == layers - 1
        rows = outputs if last else hidden
        modules += [nn.Linear(hidden if i else inputs, rows, bias=False), nn.BatchNorm1d(rows, affine=not last)]
        modules += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*modules)


def mocov3():
    """moco/builder.py `MoCo`: base_encoder and momentum_encoder with a head of 3 layers, a predictor of 2; DDP."""
    model, hidden, features = vit(), 48, 8
    moco = nn.ModuleDict({"base_encoder": copy.deepcopy(model), "momentum_encoder": vit()})
    for encoder in moco.values():
        encoder.head = moco_mlp(3, DIM, hidden, features)
    moco["predictor"] = moco_mlp(2, features, hidden, features)
    state = {f"module.{key}": t for key, t in moco.state_dict().items()}
    content = {"state_dict": state, "epoch": 300, "arch": "vit_small", "optimizer": {}, "scaler": {}}  # main_moco.py
    return of_timm("MoCo v3", model, content)


def dino_head(name="head", hidden=24, patches=False, normalised=weight_norm):
    """DINO's and DINOv2's DINOHead, iBOT's iBOTHead: three layers, GELU between, then a weight-normalised one."""
    head = nn.Module()
    head.mlp = nn.Sequential(nn.Linear(DIM, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
    head.mlp.append(nn.Linear(hidden, 16))
    for last in ("last_layer", "last_layer2")[: 1 + patches]:
        setattr(head, last, normalised(nn.Linear(16, 40 if last == "last_layer" else 30, bias=False)))
    return {f"{name}.{key}": t for key, t in head.state_dict().items()}


def dino():
    """main_dino.py: DDP student, teacher without, both encoder (`backbone`) and head."""
    model = vit()
    teacher = {f"backbone.{key}": t for key, t in model.state_dict().items()} | dino_head()
    student = {f"module.{key}": torch.randn(t.shape) for key, t in teacher.items()}
    training = {"optimizer": {}, "epoch": 9, "dino_loss": {"center": torch.ones(1, 40)}}
    return of_timm(NAMES["dino"], model, {"student": student, "teacher": teacher, **training})


def ibot():
    """main_ibot.py: as DINO's, the head with a second last layer."""
    model = vit()
    teacher = {f"backbone.{key}": t for key, t in model.state_dict().items()} | dino_head(patches=True)
    student = {f"module.{key}": torch.randn(t.shape) for key, t in teacher.items()}
    student["module.backbone.masked_embed"] = torch.randn(1, DIM)
    return of_timm(NAMES["dino"], model, {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 9})


def ibot_student():
    """The student alone: models/vision_transformer.py with masked_im_modeling, whose `masked_embed` is (1, C)."""
    model = vit()
    state = {f"module.backbone.{key}": t for key, t in model.state_dict().items()} | {
        f"module.{key}": t for key, t in dino_head(patches=True).items()
    }
    state["module.backbone.masked_embed"] = torch.randn(1, DIM)
    return of_timm(NAMES["dino"], model, {"state_dict": state}, spare=("module.backbone.masked_embed",))


def dinov2(registers=0, swiglu=False, chunks=False, training=False):
    kwargs = {"init_values": 0.1}
    if registers:
        kwargs |= {"reg_tokens": registers, "no_embed_class": True}
    if swiglu:
        kwargs |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 3}
    spec, model = tiny_arch(f"vit_tiny_dinov2_{registers}_{swiglu}", **kwargs), vit(**kwargs)
    state = dict(model.state_dict())
    if registers:
        position = torch.randn(1, 1, DIM)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    if swiglu:
        state = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for key, t in state.items()}
    if chunks:
        state = {
            key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for key, t in state.items()
        }
    state |= {"mask_token": torch.randn(1, DIM)}
    spare = "mask_token"
    if training:
        state = (
            {f"backbone.{key}": t for key, t in state.items()}
            | dino_head("dino_head")
            | dino_head("ibot_head", normalised=parametrizations.weight_norm)  # torch's successor of weight_norm
        )
        spare = "backbone.mask_token"
    content = {"teacher": state} if training else state
    return of_timm(NAMES["dino"] if training else "DINOv2", model, content, spec=spec, spare=(spare,))


def beit_native(shared=False):
    model = beit(use_rel_pos_bias=True, global_pool="" if shared else "avg", num_classes=0 if shared else 7)
    state = dict(model.state_dict())
    index = torch.zeros(GRID**2 + 1, GRID**2 + 1, dtype=torch.long)
    if not shared:
        return of_timm(
            "BEiT",
            model,
            {"model": state | {f"blocks.{i}.attn.relative_position_index": index for i in range(DEPTH)}},
            spec=BEIT,
            spare=tuple(f"blocks.{i}.attn.relative_position_index" for i in range(DEPTH)),
        )
    return of_timm(
        "BEiT",
        model,
        {
            "model": _share(model)
            | {
                "rel_pos_bias.relative_position_index": index,
                "mask_token": torch.randn(1, 1, DIM),
                "lm_head.weight": torch.randn(99, DIM),
                "lm_head.bias": torch.randn(99),
            }
        },
        spec=BEIT,
        spare=("mask_token", "rel_pos_bias.relative_position_index"),
    )


def _share(model):
    """The model's state dict with one table for all blocks, as BEiT's pre-training has it; the model follows."""
    table = model.blocks[0].attn.relative_position_bias_table
    for block in model.blocks[1:]:
        block.attn.relative_position_bias_table = table
    state = {key: t for key, t in model.state_dict().items() if "relative_position" not in key}
    return state | {"rel_pos_bias.relative_position_bias_table": table.detach()}


def beit_timm():
    model = beit(use_rel_pos_bias=True)
    return of_timm("BEiT", model, model.state_dict(), spec=BEIT)


def simmim():
    model = beit(use_rel_pos_bias=True, global_pool="")
    index = {"encoder.rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}
    state = {f"encoder.{key}": t for key, t in _share(model).items()} | index
    state |= {"encoder.mask_token": torch.randn(1, 1, DIM)}
    state |= {"decoder.0.weight": torch.randn(PATCH**2 * 3, DIM, 1, 1), "decoder.0.bias": torch.randn(PATCH**2 * 3)}
    return of_timm("SimMIM", model, {"model": state, "optimizer": {}, "epoch": 1}, spec=BEIT, spare=tuple(index))


def _hf(kind, config, new, root, blocks, call=None, **kwargs):
    model = randomise(kind(config))
    state = dict(model.state_dict()) if new else _on_disk(model)
    body = getattr(model, root) if root else model
    prefix = kwargs.pop("prefix", 1)
    layers = body.get_submodule(blocks)
    reader = kwargs.pop("reader", NAMES["hf"])
    return Layout(
        reader, state, hooked(model, layers, prefix, call and (lambda x: call(model, x))), model=model, **kwargs
    )


def _on_disk(model):
    """What save_pretrained writes."""
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def _interpolating(model, images):
    return model(images, interpolate_pos_encoding=True)


def hf_vit(new=False, bare=False):
    config = transformers.ViTConfig(**HF)
    kind = transformers.ViTModel if bare else transformers.ViTForImageClassification
    return _hf(kind, config, new, "" if bare else "vit", "layers", _interpolating, sizes=OTHER)


def hf_deit(new=False):
    kind = transformers.DeiTForImageClassificationWithTeacher
    return _hf(kind, transformers.DeiTConfig(**HF), new, "deit", "layers", _interpolating, sizes=OTHER, prefix=2)


def hf_vitmae(new=False):
    """ViTMAE masks and shuffles always: no masking and an increasing noise keep the order."""
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**HF, **decoder, decoder_intermediate_size=64, mask_ratio=0.0)

    def call(model, images):
        tokens = (images.shape[2] // PATCH) * (images.shape[3] // PATCH)
        noise = torch.arange(tokens).float().expand(len(images), -1)
        return model.vit(images, noise=noise, interpolate_pos_encoding=True)

    return _hf(transformers.ViTMAEForPreTraining, config, new, "vit", "layers", call, sizes=OTHER)


def hf_beit(new=False, shared=False):
    bias = (
        {"use_shared_relative_position_bias": True, "use_mask_token": True}
        if shared
        else {"use_relative_position_bias": True}
    )
    kind = transformers.BeitForMaskedImageModeling if shared else transformers.BeitForImageClassification
    config = transformers.BeitConfig(**HF, **bias, vocab_size=50)
    layout = _hf(kind, config, new, "beit", "layers", reader=NAMES["hf_beit"], spec=BEIT)
    layout.spare = ("beit.embeddings.mask_token",)
    return layout


def data2vec():
    config = transformers.Data2VecVisionConfig(**HF, use_relative_position_bias=True)
    kind = transformers.Data2VecVisionForImageClassification
    return _hf(kind, config, False, "data2vec_vision", "encoder.layer", reader=NAMES["hf_beit"], spec=BEIT)


def hf_dinov2(new=False, registers=0, swiglu=False):
    options = {key: value for key, value in HF.items() if key != "intermediate_size"} | {"use_swiglu_ffn": swiglu}
    kwargs = {"init_values": 0.1}
    if registers:
        kwargs |= {"reg_tokens": registers, "no_embed_class": True}
    if swiglu:
        kwargs |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 176 / DIM}
    spec = tiny_arch(f"vit_tiny_hf_dinov2_{registers}_{swiglu}", **kwargs)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        kind, root = transformers.Dinov2WithRegistersModel, ""
    else:
        config, kind, root = transformers.Dinov2Config(**options), transformers.Dinov2ForImageClassification, "dinov2"
    layout = _hf(kind, config, new, root, "encoder.layer", reader=NAMES["hf_dinov2"], spec=spec, prefix=1 + registers)
    layout.sizes = () if registers else OTHER  # with registers its own resampling has antialiasing
    layout.spare = (f"{root}.embeddings.mask_token".lstrip("."),)
    return layout


def clip(text=True):
    kwargs = {"pre_norm": True, "num_classes": 12}
    model = vit(**kwargs)
    state = {}
    swaps = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "cls_token": "class_embedding",
        "norm_pre": "ln_pre",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "blocks.": "transformer.resblocks.",
        "norm.": "ln_post.",
    }
    for key, tensor in model.state_dict().items():
        for old, new in swaps.items():
            key = key.replace(old, new) if old != "norm." or key.startswith("norm.") else key
        if key == "head.weight":
            state["visual.proj"] = tensor.T
        elif key != "head.bias":
            state[f"visual.{key}"] = tensor
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    if text:
        blocks = [key for key in state if key.startswith("visual.transformer.resblocks.0.")]
        state |= {key.removeprefix("visual."): torch.randn(state[key].shape) for key in blocks}
        state |= {"token_embedding.weight": torch.randn(99, DIM), "positional_embedding": torch.randn(7, DIM)}
        state |= {"ln_final.weight": torch.ones(DIM), "ln_final.bias": torch.ones(DIM)}
        state |= {"text_projection": torch.randn(DIM, 12), "logit_scale": torch.tensor(2.0)}
    return of_timm("CLIP image tower", model, state, spec=tiny_arch("vit_tiny_clip", pre_norm=True))


def siglip():
    """OpenCLIP around a timm tower with attention pooling and no class token."""
    kwargs = {"class_token": False, "global_pool": "map"}
    model = vit(**kwargs)
    state = {f"visual.trunk.{key}": t for key, t in model.state_dict().items()}
    return of_timm("CLIP image tower", model, state, spec=tiny_arch("vit_tiny_siglip", **kwargs))


def augreg():
    model = vit(num_classes=5)
    state = {}
    for key, tensor in model.state_dict().items():
        array, parts = tensor.numpy(), key.split(".")
        if parts[0] == "blocks":
            block = f"Transformer/encoderblock_{parts[1]}"
            rest, end = ".".join(parts[2:-1]), parts[-1]
            kind = {"weight": "kernel", "bias": "bias"}[end]
            if rest.startswith("norm"):
                name = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}[rest]
                state[f"{block}/{name}/{'scale' if end == 'weight' else 'bias'}"] = array
            elif rest == "attn.qkv":
                attention = f"{block}/MultiHeadDotProductAttention_1"
                for name, part in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    shape = (DIM, HEADS, DIM // HEADS) if end == "weight" else (HEADS, DIM // HEADS)
                    state[f"{attention}/{name}/{kind}"] = part.T.reshape(shape)
            elif rest == "attn.proj":
                value = array.T.reshape(HEADS, DIM // HEADS, DIM) if end == "weight" else array
                state[f"{block}/MultiHeadDotProductAttention_1/out/{kind}"] = value
            else:
                name = {"mlp.fc1": "MlpBlock_3/Dense_0", "mlp.fc2": "MlpBlock_3/Dense_1"}[rest]
                state[f"{block}/{name}/{kind}"] = array.T
        elif key == "patch_embed.proj.weight":
            state["embedding/kernel"] = array.transpose(2, 3, 1, 0)
        elif parts[0] == "norm":
            state[f"Transformer/encoder_norm/{'scale' if parts[1] == 'weight' else 'bias'}"] = array
        elif parts[0] == "head":
            state[f"head/{'kernel' if parts[1] == 'weight' else 'bias'}"] = array.T
        else:
            names = {
                "cls_token": "cls",
                "pos_embed": "Transformer/posembed_input/pos_embedding",
                "patch_embed.proj.bias": "embedding/bias",
            }
            state[names[key]] = array
    state = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in state.items()}
    return of_timm("AugReg npz (JAX)", model, state)


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


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "MAE encoder": lambda: (lambda m: of_timm(NAMES["timm"], m, {"model": m.state_dict()}))(vit()),
    "MAE training": mae_full,
    "MAE fine-tuned": lambda: timm_plain(num_classes=5, global_pool="avg"),
    "MAE linear probe": linear_probe,
    "timm with LayerScale": lambda: timm_plain(init_values=0.1, num_classes=5),
    "timm with registers": lambda: timm_arch("vit_tiny_reg", reg_tokens=3, qk_norm=True),
    "timm with attention pooling": lambda: timm_arch("vit_tiny_map", class_token=False, global_pool="map"),
    "DeiT distilled": deit_distilled,
    "DeiT-III": deit3,
    "MoCo v3": mocov3,
    "DINO": dino,
    "iBOT": ibot,
    "iBOT student": ibot_student,
    "DINOv2": dinov2,
    "DINOv2 registers": lambda: dinov2(registers=4),
    "DINOv2 SwiGLU": lambda: dinov2(swiglu=True),
    "DINOv2 training": lambda: dinov2(chunks=True, training=True),
    "BEiT timm": beit_timm,
    "BEiT fine-tuned": beit_native,
    "BEiT pre-training": lambda: beit_native(shared=True),
    "SimMIM": simmim,
    "HF ViT": hf_vit,
    "HF ViT, names of 5": lambda: hf_vit(new=True),
    "HF ViT bare": lambda: hf_vit(bare=True),
    "HF DeiT": hf_deit,
    "HF DeiT, names of 5": lambda: hf_deit(new=True),
    "HF ViTMAE": hf_vitmae,
    "HF ViTMAE, names of 5": lambda: hf_vitmae(new=True),
    "HF BEiT": hf_beit,
    "HF BEiT, names of 5": lambda: hf_beit(new=True),
    "HF BEiT shared": lambda: hf_beit(shared=True),
    "HF BEiT shared, names of 5": lambda: hf_beit(shared=True, new=True),
    "HF data2vec-vision": data2vec,
    "HF Dinov2": hf_dinov2,
    "HF Dinov2, names of 5": lambda: hf_dinov2(new=True),
    "HF Dinov2 registers": lambda: hf_dinov2(registers=4),
    "HF Dinov2 SwiGLU": lambda: hf_dinov2(swiglu=True),
    "HF Dinov2 SwiGLU, names of 5": lambda: hf_dinov2(swiglu=True, new=True),
    "CLIP": clip,
    "SigLIP in OpenCLIP": siglip,
    "AugReg": augreg,
    "own run": own_run,
}


@functools.cache
def layout(name: str) -> Layout:
    torch.manual_seed(0)
    return LAYOUTS[name]()
