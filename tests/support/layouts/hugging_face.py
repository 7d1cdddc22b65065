"""Files of transformers, on disk and by the names of its version 5 in memory."""

import torch
import transformers
from support.layouts.case import (
    BEIT,
    DIM,
    HF,
    NAMES,
    OTHER,
    PATCH,
    Layout,
    hooked,
    randomise,
    tiny_arch,
)
from timm.layers import SwiGLUPacked
from torch import nn


def hugging_face(kind, config, new, root, blocks, call=None, **kwargs):
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
    return hugging_face(kind, config, new, "" if bare else "vit", "layers", _interpolating, sizes=OTHER)


def hf_deit(new=False):
    kind = transformers.DeiTForImageClassificationWithTeacher
    return hugging_face(
        kind, transformers.DeiTConfig(**HF), new, "deit", "layers", _interpolating, sizes=OTHER, prefix=2
    )


def hf_vitmae(new=False):
    """ViTMAE masks and shuffles always: no masking and an increasing noise keep the order."""
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**HF, **decoder, decoder_intermediate_size=64, mask_ratio=0.0)

    def call(model, images):
        tokens = (images.shape[2] // PATCH) * (images.shape[3] // PATCH)
        noise = torch.arange(tokens).float().expand(len(images), -1)
        return model.vit(images, noise=noise, interpolate_pos_encoding=True)

    return hugging_face(transformers.ViTMAEForPreTraining, config, new, "vit", "layers", call, sizes=OTHER)


def hf_beit(new=False, shared=False):
    bias = (
        {"use_shared_relative_position_bias": True, "use_mask_token": True}
        if shared
        else {"use_relative_position_bias": True}
    )
    kind = transformers.BeitForMaskedImageModeling if shared else transformers.BeitForImageClassification
    config = transformers.BeitConfig(**HF, **bias, vocab_size=50)
    layout = hugging_face(kind, config, new, "beit", "layers", reader=NAMES["hf_beit"], spec=BEIT)
    layout.spare = ("beit.embeddings.mask_token",)
    return layout


def data2vec():
    config = transformers.Data2VecVisionConfig(**HF, use_relative_position_bias=True)
    kind = transformers.Data2VecVisionForImageClassification
    return hugging_face(kind, config, False, "data2vec_vision", "encoder.layer", reader=NAMES["hf_beit"], spec=BEIT)


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
    layout = hugging_face(
        kind, config, new, root, "encoder.layer", reader=NAMES["hf_dinov2"], spec=spec, prefix=1 + registers
    )
    layout.sizes = OTHER
    layout.spare = (f"{root}.embeddings.mask_token".lstrip("."),)
    return layout
