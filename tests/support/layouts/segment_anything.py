"""Files of Segment Anything, official, of timm, and of transformers, whose class is a copy of the official encoder."""

import copy

import torch
import transformers
from support.layouts.case import DEPTH, DIM, GRID, HEADS, OTHER, PATCH, SIZE, Layout, bicubic, hooked, randomise
from timm.models.vision_transformer_sam import VisionTransformerSAM

WINDOW, NECK = 3, 8
"""Windows that do not divide the grid, so that they are padded."""
OFFICIAL = {
    "layers.": "blocks.",
    ".layer_norm": ".norm",
    "patch_embed.projection.": "patch_embed.proj.",
    "neck.conv1.": "neck.0.",
    "neck.norm1.": "neck.1.",
    "neck.conv2.": "neck.2.",
    "neck.norm2.": "neck.3.",
}
"""transformers' names of the encoder -> those of segment_anything/modeling/image_encoder.py."""


def model(depth=DEPTH, dim=DIM, heads=HEADS, size=SIZE, patch=PATCH):
    """Every second block attends to the whole image."""
    small = {"hidden_size": NECK, "image_size": size, "patch_size": patch}
    encoder = small | {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_dim": 4 * dim,
        "window_size": WINDOW,
        "global_attn_indexes": list(range(1, depth, 2)),
        "output_channels": NECK,
        "num_pos_feats": NECK // 2,
    }
    decoder = {"hidden_size": NECK, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = transformers.SamConfig(vision_config=encoder, prompt_encoder_config=small, mask_decoder_config=decoder)
    return randomise(transformers.SamModel(config))


def official(encoder):
    """The file of a SamVisionEncoder, with two of the tensors that stand beside it there."""
    state = {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.randn(2, NECK // 2),
        "mask_decoder.mask_tokens.weight": torch.randn(4, NECK),
    }
    for key, tensor in encoder.state_dict().items():
        for theirs, ours in OFFICIAL.items():
            key = key.replace(theirs, ours)
        state[f"image_encoder.{key}"] = tensor
    return state


def sam(names="official"):
    """The forward is that of its own size alone: others have the position embedding resampled, as detectron2 does."""
    whole = model()
    encoder = whole.vision_encoder
    state = official(encoder) if names != "transformers" else dict(whole.state_dict())
    root = "vision_encoder." if names == "transformers" else "image_encoder."
    if names == "bare":
        state = {key.removeprefix(root): t for key, t in state.items() if key.startswith(root)}

    def maps(images):
        size = tuple(images.shape[2:])
        resized = copy.deepcopy(encoder)
        resized.patch_embed.image_size = size
        if size != (SIZE, SIZE):
            grid = (size[0] // PATCH, size[1] // PATCH)
            position = bicubic(encoder.pos_embed.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
            resized.pos_embed.data = position
        return hooked(resized, resized.layers, 0)(images)

    assert GRID % WINDOW
    return Layout(
        "Segment Anything",
        state,
        maps,
        sizes=OTHER,
        model=encoder,
        spare=tuple(key for key in state if names != "bare" and not key.startswith(root)),
        options={"window_size": WINDOW, "num_global_blocks": 1},
    )


def timm_sam(**options):
    """timm's class, of the sizes here; off its own size the position embedding is resampled as detectron2 does."""
    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    shape |= {"window_size": WINDOW, "global_attn_indexes": (1,), "neck_chans": NECK, "num_classes": 5}
    model = randomise(VisionTransformerSAM(**shape | options, use_rel_pos=True))

    def maps(images):
        size = tuple(images.shape[2:])
        resized = copy.deepcopy(model)
        if size != (SIZE, SIZE) and model.pos_embed is not None:
            grid = (size[0] // PATCH, size[1] // PATCH)
            resized.pos_embed.data = bicubic(model.pos_embed.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
        return hooked(resized, resized.blocks, 0)(images)

    return Layout(
        "Segment Anything",
        model.state_dict(),
        maps,
        sizes=OTHER,
        model=model,
        options={"window_size": model.blocks[0].window_size, "num_global_blocks": 1},
    )
