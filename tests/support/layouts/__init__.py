"""One small model per checkpoint layout, with the file content that the layout's own code (or documentation) gives.

`layout(name)` is a `Layout` with random weights. Where no package exists, the layout is built by hand on a model of
timm, by the names and shapes of the public source that stands beside it in `LAYOUTS`, not of the reader.
"""

import functools
from collections.abc import Callable

import torch
from support.layouts.case import (
    BEIT,
    DIM,
    GRID,
    HF,
    NAMES,
    PATCH,
    PLAIN,
    SIZE,
    Layout,
    beit,
    hooked,
    of_timm,
    randomise,
    timm_maps,
    tiny_arch,
    vit,
)
from support.layouts.hugging_face import (
    data2vec,
    hf_beit,
    hf_deit,
    hf_dinov2,
    hf_vit,
    hf_vitmae,
)
from support.layouts.others import (
    augreg,
    clip,
    mmpretrain_beit,
    mmpretrain_deit3,
    mmpretrain_vit,
    mmsegmentation_vit,
    siglip,
)
from support.layouts.own import (
    own_run,
)
from support.layouts.pretraining import (
    beit_native,
    beit_timm,
    crossmae,
    deit3,
    deit_distilled,
    dino,
    dino_head,
    dinov2,
    franca,
    ibot,
    ibot_student,
    ijepa,
    linear_probe,
    mae_decoder,
    mae_full,
    mocov3,
    simmim,
    timm_arch,
    timm_plain,
)
from support.layouts.rotary import DINOV3, EVA02, ROPE, dinov3, eva02, hf_dinov3, perception_encoder, timm_eva
from support.layouts.segment_anything import sam, timm_sam
from support.layouts.several_tokens import hf_pixio, naflexvit, pixio

LAYOUTS: dict[str, tuple[str, Callable[[], Layout]]] = {
    "MAE encoder": (
        "facebookresearch/mae models_mae.py, PRETRAIN.md: the encoder alone under `model`",
        lambda: (lambda m: of_timm(NAMES["timm"], m, {"model": m.state_dict()}))(vit()),
    ),
    "MAE training": ("facebookresearch/mae models_mae.py, util/misc.py save_model", mae_full),
    "MAE fine-tuned": (
        "facebookresearch/mae models_vit.py with global_pool: fc_norm, no norm",
        lambda: timm_plain(num_classes=5, global_pool="avg"),
    ),
    "MAE linear probe": (
        "facebookresearch/mae main_linprobe.py: BatchNorm1d(affine=False) and Linear as `head`",
        linear_probe,
    ),
    "timm with LayerScale": ("timm's class", lambda: timm_plain(init_values=0.1, num_classes=5)),
    "timm with registers": ("timm's class", lambda: timm_arch("vit_tiny_reg", reg_tokens=3, qk_norm=True)),
    "timm with attention pooling": (
        "timm's class",
        lambda: timm_arch("vit_tiny_map", class_token=False, global_pool="map"),
    ),
    "DeiT distilled": ("timm's class, a copy of facebookresearch/deit models.py", deit_distilled),
    "DeiT-III": ("facebookresearch/deit models_v2.py: gamma_1, gamma_2, pos_embed without the class token", deit3),
    "timm Eva, EVA-02": ("timm's class", lambda: timm_eva("eva_tiny_own_eva02", **EVA02, scale_attn_inner=True)),
    "timm Eva, DINOv3": ("timm's class", lambda: timm_eva("eva_tiny_own_dinov3", **DINOV3)),
    "timm Eva, mixed": (
        "timm's class",
        lambda: timm_eva(
            *("eva_tiny_own_mixed",), **ROPE, attn_type="rope", rope_type="mixed", no_embed_class=True, init_values=0.1
        ),
    ),
    "DINOv3": ("facebookresearch/dinov3 models/vision_transformer.py, layers/attention.py LinearKMaskedBias", dinov3),
    "DINOv3 of zero biases": ("the same", lambda: dinov3(biased=False)),
    "DINOv3 SwiGLU": ("facebookresearch/dinov3 layers/ffn_layers.py: w1, w2, w3", lambda: dinov3(swiglu=True)),
    "HF DINOv3": ("transformers' class, save_pretrained", hf_dinov3),
    "HF DINOv3 gated, names of 5": ("transformers' class, state_dict()", lambda: hf_dinov3(new=True, gated=True)),
    "EVA-02": ("baaivision/EVA EVA-02/asuka/modeling_finetune.py, rope.py", eva02),
    "EVA-02 pre-training, packed": (
        "baaivision/EVA EVA-02/asuka/modeling_pretrain.py; xFormers' SwiGLU: w12, w3",
        lambda: eva02(packed=True, pretraining=True),
    ),
    "Perception Encoder": ("facebookresearch/perception_models core/vision_encoder/pe.py", perception_encoder),
    "Perception Encoder, tower alone": ("the same: load_ckpt", lambda: perception_encoder(core=False)),
    "Pixio": ("facebookresearch/pixio pixio/pixio.py: cls_token (1, n, C), pos_embed (1, n + N, C)", pixio),
    "Pixio training": ("facebookresearch/pixio pretraining/models_pixio.py", lambda: pixio(decoder=True)),
    "HF Pixio": ("transformers' class, save_pretrained", hf_pixio),
    "HF Pixio, names of 5": ("transformers' class, state_dict()", lambda: hf_pixio(new=True)),
    "Segment Anything": ("facebookresearch/segment-anything modeling/image_encoder.py, build_sam.py", sam),
    "Segment Anything, encoder alone": ("the same", lambda: sam("bare")),
    "HF Segment Anything": ("transformers' class, state_dict()", lambda: sam("transformers")),
    "timm Segment Anything": ("timm's class", timm_sam),
    "timm Segment Anything, one window": (
        "timm's class, as samvit_base_patch16_224 has it: no neck, no absolute positions, windows of the whole grid",
        lambda: timm_sam(window_size=GRID, use_abs_pos=False, neck_chans=None),
    ),
    "NaFlexVit": ("timm's class", naflexvit),
    "NaFlexVit without tokens": ("timm's class", lambda: naflexvit(tokens=False)),
    "CrossMAE": ("TonyLianLong/CrossMAE models_cross.py, transformer_utils.py, weight_fm", crossmae),
    "CrossMAE with self-attention": ("the same, self_attn", lambda: crossmae(weighted=False, self_attn=True)),
    "I-JEPA": ("facebookresearch/ijepa src/models/vision_transformer.py, src/train.py", ijepa),
    "Franca": ("valeoai/Franca franca/hub/backbones.py, franca/models/vision_transformer.py", franca),
    "Web-DINO": (
        "facebookresearch/webssl dinov2/vision_transformer.py: SwiGLU, chunks",
        lambda: dinov2(swiglu=True, chunks=True),
    ),
    "Web-MAE": ("facebookresearch/webssl mae/mae.py: timm's class", timm_plain),
    "MoCo v3": ("facebookresearch/moco-v3 moco/builder.py, main_moco.py", mocov3),
    "DINO": ("facebookresearch/dino vision_transformer.py DINOHead, main_dino.py", dino),
    "iBOT": ("bytedance/ibot models/head.py, main_ibot.py", ibot),
    "iBOT student": ("bytedance/ibot models/vision_transformer.py: masked_embed (1, C)", ibot_student),
    "DINOv2": ("facebookresearch/dinov2 models/vision_transformer.py: mask_token (1, C)", dinov2),
    "DINOv2 registers": (
        "the same: register_tokens (1, n, C), pos_embed with a row for the class token alone",
        lambda: dinov2(registers=4),
    ),
    "DINOv2 SwiGLU": (
        "facebookresearch/dinov2 layers/swiglu_ffn.py: w12 (2 h, C), w3 (C, h)",
        lambda: dinov2(swiglu=True),
    ),
    "DINOv2 training": (
        "facebookresearch/dinov2 train/train.py, layers/dino_head.py, BlockChunk",
        lambda: dinov2(chunks=True, training=True),
    ),
    "BEiT timm": ("timm's class", beit_timm),
    "BEiT fine-tuned": ("microsoft/unilm beit/modeling_finetune.py", beit_native),
    "BEiT pre-training": (
        "microsoft/unilm beit/modeling_pretrain.py: lm_head, mask_token (1, 1, C), rel_pos_bias",
        lambda: beit_native(shared=True),
    ),
    "SimMIM": ("microsoft/SimMIM models/simmim.py: encoder, decoder of one 1x1 convolution and PixelShuffle", simmim),
    "HF ViT": ("transformers' class, save_pretrained", hf_vit),
    "HF ViT, names of 5": ("transformers' class, state_dict()", lambda: hf_vit(new=True)),
    "HF ViT bare": ("transformers' class, save_pretrained", lambda: hf_vit(bare=True)),
    "HF DeiT": ("transformers' class, save_pretrained", hf_deit),
    "HF DeiT, names of 5": ("transformers' class, state_dict()", lambda: hf_deit(new=True)),
    "HF ViTMAE": ("transformers' class, save_pretrained", hf_vitmae),
    "HF ViTMAE, names of 5": ("transformers' class, state_dict()", lambda: hf_vitmae(new=True)),
    "HF BEiT": ("transformers' class, save_pretrained", hf_beit),
    "HF BEiT, names of 5": ("transformers' class, state_dict()", lambda: hf_beit(new=True)),
    "HF BEiT shared": ("transformers' class, save_pretrained", lambda: hf_beit(shared=True)),
    "HF BEiT shared, names of 5": ("transformers' class, state_dict()", lambda: hf_beit(shared=True, new=True)),
    "HF data2vec-vision": ("transformers' class, save_pretrained", data2vec),
    "HF Dinov2": ("transformers' class, save_pretrained", hf_dinov2),
    "HF Dinov2, names of 5": ("transformers' class, state_dict()", lambda: hf_dinov2(new=True)),
    "HF Dinov2 registers": ("transformers' class, save_pretrained", lambda: hf_dinov2(registers=4)),
    "HF Dinov2 SwiGLU": ("transformers' class, save_pretrained", lambda: hf_dinov2(swiglu=True)),
    "HF Dinov2 SwiGLU, names of 5": ("transformers' class, state_dict()", lambda: hf_dinov2(swiglu=True, new=True)),
    "CLIP": ("openai/CLIP clip/model.py VisionTransformer, Transformer", clip),
    "SigLIP in OpenCLIP": ("mlfoundations/open_clip timm_model.py: trunk is timm's class", siglip),
    "AugReg": ("google-research/vision_transformer vit_jax/models_vit.py, as flax names its parameters", augreg),
    "mmpretrain ViT": ("open-mmlab/mmpretrain models/backbones/vision_transformer.py", mmpretrain_vit),
    "mmpretrain DeiT-III": ("open-mmlab/mmpretrain models/backbones/deit3.py", mmpretrain_deit3),
    "mmpretrain BEiT": ("open-mmlab/mmpretrain models/backbones/beit.py, utils/attention.py", mmpretrain_beit),
    "mmsegmentation ViT": ("open-mmlab/mmsegmentation mmseg/models/backbones/vit.py", mmsegmentation_vit),
    "own run": ("this project's engine/loop.py", own_run),
}
"""Name -> where its names and shapes are from, and what makes it."""


@functools.cache
def layout(name: str) -> Layout:
    torch.manual_seed(0)
    return LAYOUTS[name][1]()


__all__ = ["BEIT", "DIM", "HF", "LAYOUTS", "PATCH", "PLAIN", "SIZE", "Layout", "beit", "dino_head", "hooked"]
__all__ += ["layout", "mae_decoder", "of_timm", "randomise", "timm_maps", "tiny_arch", "vit"]
