"""Mean attention distance against its definition, and what encoders it is for."""

import math

import numpy as np
import pytest
import torch

from mae_transfer.backbones.attention_distance import attention_distance, pixel_distances
from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError
from mae_transfer.tasks.attention_picture import attention_pictures

ROPE = "timm:eva02_tiny_patch14_224"
SIZES = {"random_vit_nano": (48, 32), ROPE: (42, 28)}


def build(name, size, **options):
    torch.manual_seed(0)
    encoder = load_backbone(name, weights="random", img_size=size, **options).eval()
    with torch.no_grad():
        for block in encoder.vit.blocks:  # so that attention is far from uniform
            for weight in (block.attn.qkv, block.attn.q_proj) if hasattr(block.attn, "q_proj") else (block.attn.qkv,):
                if weight is not None:
                    weight.weight.mul_(12)
    return encoder


def plainly(encoder, images, grid):
    """The sum over keys, written out, of the probabilities that timm's own unfused attention drops out of."""
    found = []
    for block in encoder.vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: found.append(args[0].numpy()))
    with torch.no_grad():
        encoder.tokens(images, (encoder.depth - 1,))
    patch, prefix, columns = encoder.patch_size, encoder.prefix, grid[1]
    result = np.zeros((encoder.depth, encoder.num_heads))
    for i, attention in enumerate(found):
        batch, heads, count, _ = attention.shape
        for head in range(heads):
            of_queries = []
            for image in range(batch):
                for q in range(count - prefix):
                    total = 0.0
                    for k in range(count - prefix):
                        down, across = q // columns - k // columns, q % columns - k % columns
                        total += attention[image, head, prefix + q, prefix + k] * patch * math.hypot(down, across)
                    of_queries.append(total)
            result[i, head] = np.mean(of_queries)
    return result


@pytest.mark.parametrize("name", SIZES)
def test_it_is_the_plain_definition(name):
    size = SIZES[name]
    encoder = build(name, size)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    ours = attention_distance(encoder, images)
    expected = plainly(encoder, images, (3, 2))
    assert ours.shape == (encoder.depth, encoder.num_heads)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4)
    assert expected.std() > 0.5, "heads differ, so that a mix-up would show"


def test_uniform_attention_and_one_of_each_patch_to_itself():
    """Without queries attention is uniform over prefix and patches; a large bias at no offset leaves a patch itself."""
    images = torch.randn(1, 3, 48, 32)
    uniform = build("random_vit_nano", (48, 32))
    with torch.no_grad():
        for block in uniform.vit.blocks:
            block.attn.qkv.weight[:64], block.attn.qkv.bias[:64] = 0, 0
    mean = float(pixel_distances((3, 2), 16).mean()) * 6 / 7
    np.testing.assert_allclose(attention_distance(uniform, images).numpy(), mean, rtol=1e-5)
    biased = build("random_vit_nano", (48, 32), rel_pos="per_block")
    with torch.no_grad():
        for block in biased.vit.blocks:
            block.attn.rel_pos_table[2 * 3 + 1] = 1e4  # row 2, column 1 of 5 x 3: no offset
    assert attention_distance(biased, images).max() < 1e-3


def test_the_scale_that_attention_is_called_with_holds():
    """Decomposed tables scale the queries themselves; at zero they leave the probabilities of queries and keys."""
    options = {"rel_pos": "decomposed", "window_size": 2, "num_global_blocks": 8}  # windows alone drop the class token
    encoder, images, made = build("random_vit_nano", (48, 32), **options), torch.randn(2, 3, 48, 32), []
    for block in encoder.vit.blocks:
        block.attn.qkv.register_forward_hook(lambda module, args, out: made.append(out.detach()))
    ours = attention_distance(encoder, images)
    heads, distances = encoder.num_heads, pixel_distances((3, 2), 16)
    assert len(made) == encoder.depth
    for block, out in enumerate(made):
        q, k, _ = out.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        assert q.shape[2] == 6, "patches alone"
        for head in range(heads):
            probabilities = (q[:, head] @ k[:, head].mT / math.sqrt(q.shape[-1])).softmax(-1)
            expected = float((probabilities * distances).sum(-1).mean())
            assert float(ours[block, head]) == pytest.approx(expected, rel=1e-4)
    assert ours.std() > 0.5


def test_encoders_without_global_attention_are_told_in_a_line(caplog):
    images = torch.randn(1, 3, 64, 64)
    windowed = build("random_vit_nano", 64, window_size=2, num_global_blocks=2)
    with pytest.raises(UserError, match="2 of 8 blocks of random_vit_nano attend over all 4x4 patches"):
        attention_distance(windowed, images)
    caplog.set_level("INFO")

    class Dataset(list):
        def file_name(self, index):
            return str(index)

    dataset = Dataset([{"image": torch.zeros(3, 70, 64, dtype=torch.uint8)}, {"image": None}])
    assert attention_pictures(windowed, dataset, 2) == []
    assert "no picture of the attention distance: 2 of 8 blocks" in caplog.text
    (picture,) = attention_pictures(build("random_vit_nano", 64), dataset, 2)
    assert picture.caption.startswith("1 val images; mean over the heads in pixels, block by block: 0: ")
    assert picture.image.convert("RGB").getpixel((3, 3)) == (255, 255, 255)
