"""Files of encoders with rotary positions: timm's Eva, DINOv3, EVA-02, Perception Encoder.

The source of the maps is timm's Eva with random weights, renamed as the public code of each project has its parameters.
"""

import torch
import torch.nn.functional as F
import transformers
from support.layouts.case import DIM, GRID, HF, NAMES, OTHER, SHAPE, of_timm, randomise, tiny_arch
from support.layouts.hugging_face import hugging_face
from timm.models.eva import Eva

ROPE = {"use_rot_pos_emb": True, "ref_feat_shape": GRID}
DINOV3 = {
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 3,
    "init_values": 0.1,
    "use_fc_norm": False,
}
SWIGLU = {"swiglu_mlp": True, "swiglu_align_to": 8}
EVA02 = {**ROPE, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}
PE = {
    **ROPE,
    "attn_type": "rope",
    "use_pre_transformer_norm": True,
    "rope_grid_offset": 1.0,
    "rope_grid_indexing": "xy",
}


def eva(name, spec=None, **kwargs):
    model = randomise(Eva(**{**SHAPE, **kwargs}))
    return model, tiny_arch(name, Eva, **{**kwargs, **(spec or {})})


def timm_eva(name, **kwargs):
    model, spec = eva(name, **kwargs)
    return of_timm(NAMES["timm"], model, model.state_dict(), spec=spec)


def named(state, names):
    """State with parts of its keys replaced, `names` timm's -> theirs."""
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


def dinov3(swiglu=False, biased=True):
    """Keys have a bias that `bias_mask` takes off; timm has no biases for files of zeros."""
    kind = DINOV3 | (SWIGLU if swiglu else {})
    model, spec = eva(f"eva_tiny_dinov3_{swiglu}_{biased}", {"qkv_bias": True}, **kind, qkv_bias=biased)
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"} if swiglu else {}
    state = named(model.state_dict(), names)
    for i in range(len(model.blocks)):
        attn = f"blocks.{i}.attn."
        q, v = (state.pop(f"{attn}{part}_bias", torch.zeros(DIM)) for part in "qv")
        state[f"{attn}qkv.bias"] = torch.cat([q, torch.full((DIM,), 0.7 if biased else 0.0), v])
        state[f"{attn}qkv.bias_mask"] = torch.cat([torch.ones(DIM), torch.zeros(DIM), torch.ones(DIM)])
    state["rope_embed.periods"] = torch.tensor([1.0, 10.0]).bfloat16()  # 100 ** (i / 2), heads being 8 wide
    state["mask_token"] = torch.zeros(1, DIM)
    return of_timm("DINOv3", model, state, spec=spec, spare=("mask_token",))


def hf_dinov3(new=False, gated=False):
    kind = DINOV3 | (SWIGLU | {"mlp_ratio": 48 / DIM} if gated else {})
    _, spec = eva(f"eva_tiny_hf_dinov3_{gated}", **kind)
    options = {**HF, "intermediate_size": 48 if gated else 4 * DIM, "num_register_tokens": 3}
    options |= {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    config = transformers.DINOv3ViTConfig(**options)
    layout = hugging_face(
        transformers.DINOv3ViTModel, config, new, "", "model.layer", spec=spec, reader="Hugging Face DINOv3", prefix=4
    )
    layout.sizes, layout.spare = OTHER, ("embeddings.mask_token",)
    return layout


def eva02(packed=False, pretraining=False):
    """`packed`: xFormers' SwiGLU and one layer for query, key and value, as tiny and small have them."""
    kind = {**ROPE, "swiglu_mlp": True} if packed else EVA02
    model, spec = eva(f"eva_tiny_eva02_{packed}", **kind, num_classes=0 if pretraining else 5)
    names = {"q_proj.bias": "q_bias", "v_proj.bias": "v_bias", "mlp.norm": "mlp.ffn_ln", "mlp.fc2": "mlp.w3"}
    names |= {"mlp.fc1.": "mlp.w12."} if packed else {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2"}
    names |= {"fc_norm": "norm"} if pretraining else {}
    state = named(model.state_dict(), names)
    sin, cos = model.rope.get_embed(shape=[GRID, GRID]).chunk(2, -1)
    for start in ("", *(f"blocks.{i}.attn." for i in range(len(model.blocks)))):
        state |= {f"{start}rope.freqs_cos": cos, f"{start}rope.freqs_sin": sin}
    if pretraining:
        state |= {
            "mask_token": torch.ones(1, 1, DIM),
            "lm_head.weight": torch.ones(7, DIM),
            "lm_head.bias": torch.ones(7),
        }
    tables = tuple(key for key in state if "freqs_" in key)
    return of_timm("EVA-02", model, {"model": state}, spec=spec, spare=tables)


def perception_encoder(core=True):
    """Core: a class token, attention pooling and the text tower; spatial: the tower alone, with LayerScale."""
    kind = PE | ({"global_pool": "map", "attn_pool_mlp_ratio": 4.0, "num_classes": 12} if core else {})
    kind |= {} if core else {"class_token": False, "init_values": 0.1, "use_post_transformer_norm": False}
    kind |= {} if core else {"use_fc_norm": False}
    model, spec = eva(f"eva_tiny_pe_{core}", **kind)
    spec = spec.__class__(**{**vars(spec), "pos_resampling": "bilinear", "final_norm": core})
    pool = {name: t for name, t in model.state_dict().items() if name.startswith("attn_pool.")}
    state = named({name: t for name, t in model.state_dict().items() if name not in pool}, PE_NAMES)
    state["positional_embedding"] = state["positional_embedding"][0]
    if not core:
        return of_timm("Perception Encoder", model, state, spec=spec, resampling=bilinear)
    state["ln_post.weight"], state["ln_post.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    state["class_embedding"] = state["class_embedding"].flatten()
    state["proj"] = state.pop("head.weight").T
    del state["head.bias"]
    for part in ("weight", "bias"):
        whole = [pool.pop(f"attn_pool.{name}.{part}") for name in ("q", "kv")]
        state[f"attn_pool.attn.in_proj_{part}"] = torch.cat(whole)
    names = {"latent": "probe", "attn_pool.proj": "attn_pool.attn.out_proj", "attn_pool.norm": "attn_pool.layernorm"}
    state |= named(pool, names | {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"})
    state = {f"visual.{key}": tensor for key, tensor in state.items()}
    blocks = [key for key in state if key.startswith("visual.transformer.resblocks.0.")]
    state |= {key.removeprefix("visual."): torch.randn(state[key].shape) for key in blocks}
    state |= {"token_embedding.weight": torch.randn(99, DIM), "positional_embedding": torch.randn(7, DIM)}
    state |= {"ln_final.weight": torch.ones(DIM), "ln_final.bias": torch.ones(DIM)}
    state |= {"text_projection": torch.randn(DIM, 12), "logit_scale": torch.tensor(2.0)}
    return of_timm("Perception Encoder", model, state, spec=spec, resampling=bilinear)


PE_NAMES = {
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "cls_token": "class_embedding",
    "norm_pre": "ln_pre",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "gamma_1": "ls_1.gamma",
    "gamma_2": "ls_2.gamma",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "blocks.": "transformer.resblocks.",
}


def bilinear(native, grid):
    return F.interpolate(native, size=grid, mode="bilinear", align_corners=False)
