"""The encoder in frozen use: token sequences, the weights' final norm, and what freezing leaves of autograd."""

import pytest
import torch
from support.layouts import LAYOUTS, layout
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.backends.debugging import aot_eager

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError

DEPTH = 8  # of the nano encoder


def nano(**kwargs):
    """timm's own model of the nano size, every parameter away from its special initial value."""
    model = VisionTransformer(img_size=224, embed_dim=64, depth=DEPTH, num_heads=4, num_classes=0, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path):
    model = nano()
    torch.save(model.state_dict(), tmp_path / "nano.pth")
    return model, tmp_path / "nano.pth"


def images(batch=2):
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_tokens_and_final_norm_are_timms(checkpoint):
    model, path = checkpoint
    encoder = load_backbone("mae_vit_nano", checkpoint=path, final_norm=True).eval()
    with torch.no_grad():
        tokens = encoder.tokens(images(), (0, 5, 7))
        expected = model.forward_intermediates(
            images(), [0, 5, 7], output_fmt="NLC", return_prefix_tokens=True, norm=True, intermediates_only=True
        )
        for ours, (patches, prefix) in zip(tokens, expected, strict=True):
            torch.testing.assert_close(encoder.norm(ours), torch.cat([prefix, patches], 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder.norm(tokens[-1]), model.forward_features(images()), rtol=1e-5, atol=1e-5)
        maps = encoder(images())
        torch.testing.assert_close(maps[-1].flatten(2).mT, tokens[-1][:, 1:], rtol=0, atol=0)


def test_the_final_norm_is_asked_for_and_reported(checkpoint, tmp_path):
    model, path = checkpoint
    plain, normed = (load_backbone("mae_vit_nano", checkpoint=path, final_norm=asked) for asked in (False, True))
    assert plain.norm is None
    assert "norm.weight" in plain.load_report.ignored
    assert "norm.weight" not in normed.load_report.ignored
    assert "norm.weight" in normed.load_report.loaded
    assert plain.load_report.fingerprint == normed.load_report.fingerprint
    assert normed.layer_id("norm.weight") == DEPTH + 1

    random = load_backbone("random_vit_nano", final_norm=True)
    assert torch.equal(random.norm.weight, torch.ones(64))
    assert random.load_report.new == {"norm.weight, norm.bias": "ones and zeros"}

    state = {f"encoder.{name}": tensor for name, tensor in normed.state_dict().items()}
    torch.save({"step": 1, "model": state, "optimizer": {}, "ema": None}, tmp_path / "run.pth")
    again = load_backbone("mae_vit_nano", checkpoint=tmp_path / "run.pth", final_norm=True)
    assert torch.equal(again.norm.bias, model.norm.bias)
    assert load_backbone("mae_vit_nano", checkpoint=tmp_path / "run.pth").norm is None

    for key in ("norm.weight", "norm.bias"):
        del state[f"encoder.{key}"]
    torch.save(state, tmp_path / "without.pth")
    with pytest.raises(UserError, match=r"has no norm.bias, the final norm .*; .* probe.final_norm=false"):
        load_backbone("mae_vit_nano", checkpoint=tmp_path / "without.pth", final_norm=True)


WITHOUT_FINAL_NORM = ("own run", "mmsegmentation ViT", "CrossMAE")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in WITHOUT_FINAL_NORM])
def test_every_layout_gives_its_final_norm(name):
    case = layout(name)
    _, report = loader.load(case.spec, case.content, "test")
    if not report.spec.final_norm:
        assert report.final_norm == {}
        return
    last = [report.final_norm[f"norm.{part}"] for part in ("weight", "bias")]
    assert all(any(torch.equal(tensor, other) for other in case.state.values()) for tensor in last)
    assert last[0].shape == last[1].shape == (case.spec.embed_dim,)


def gradients(encoder, drop=0.0):
    encoder.train()
    (encoder.tokens(images(), (DEPTH - 1,))[0] ** 2).mean().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trainable", [0.5, 1, 3, DEPTH])
def test_frozen_parts_stay_out_of_autograd_and_the_rest_learns_as_before(checkpoint, trainable):
    _, path = checkpoint
    full = gradients(load_backbone("mae_vit_nano", checkpoint=path))
    encoder = load_backbone("mae_vit_nano", checkpoint=path)
    encoder.freeze(trainable)
    partial = gradients(encoder)
    if trainable == 0.5:
        expected = {n for n in full if n.startswith((f"vit.blocks.{DEPTH - 1}.norm2", f"vit.blocks.{DEPTH - 1}.mlp"))}
    elif trainable == DEPTH:
        expected = set(full)
    else:
        expected = {n for n in full if n.startswith(tuple(f"vit.blocks.{DEPTH - 1 - i}." for i in range(trainable)))}
    assert partial.keys() == expected
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == expected
    for name in expected:
        torch.testing.assert_close(partial[name], full[name], rtol=1e-5, atol=1e-7)


def test_no_graph_is_recorded_before_the_trainable_blocks(checkpoint):
    encoder = load_backbone("mae_vit_nano", checkpoint=checkpoint[1])
    encoder.freeze(2)
    tokens = encoder.train().tokens(images(), tuple(range(DEPTH)))
    assert [x.grad_fn is not None for x in tokens] == [False] * (DEPTH - 2) + [True] * 2


def test_frozen_blocks_rest_in_eval_mode(checkpoint):
    """With drop path on every block, a frozen encoder gives in training mode what it gives in eval mode."""
    encoder = load_backbone("mae_vit_nano", checkpoint=checkpoint[1], drop_path=0.5, final_norm=True)
    expected = encoder.eval().tokens(images(8), (DEPTH - 3, DEPTH - 1))
    encoder.freeze(2)
    frozen, trained = encoder.train().tokens(images(8), (DEPTH - 3, DEPTH - 1))
    assert torch.equal(frozen, expected[0])
    assert not torch.equal(trained, expected[1])
    assert encoder.norm.training
    encoder.freeze(0)
    assert torch.equal(encoder.train().tokens(images(8), (DEPTH - 1,))[0], expected[1])
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.norm.training


@pytest.mark.parametrize("trainable", [-1, 1.5, DEPTH + 1])
def test_numbers_of_blocks_that_cannot_be(checkpoint, trainable):
    encoder = load_backbone("mae_vit_nano", checkpoint=checkpoint[1])
    with pytest.raises(UserError, match=rf"{trainable:g} trainable blocks: mae_vit_nano takes 0, 0.5, 1, 2, ... 8"):
        encoder.freeze(trainable)


def test_compile_takes_block_by_block_and_changes_nothing(checkpoint):
    """Every graph is of one block, forward and backward give what they gave, with drop path and for masked images."""
    encoder = load_backbone("mae_vit_nano", checkpoint=checkpoint[1], drop_path=0.5).train()
    graphs = []

    def run():
        torch.manual_seed(0)
        encoder.zero_grad()
        maps = encoder(images())
        patches = torch.randn(2, 3, encoder.vit.patch_embed.proj.weight[0].numel())
        masked = encoder.visible_tokens(patches, torch.tensor([[0, 2, 3], [1, 2, 0]]))
        (sum(each.square().mean() for each in maps) + masked.square().mean()).backward()
        grads = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        return [*maps, masked], grads

    def backend(graph, inputs):
        parts = [part.graph for part in graph.modules() if hasattr(part, "graph")]  # that of the MLP has its own
        calls = [node for part in parts for node in part.nodes if node.op == "call_function"]
        graphs.append(sum("linear" in str(node.target) for node in calls))
        return aot_eager(graph, inputs)

    eager = run()
    encoder.compile(backend=backend)
    torch.testing.assert_close(run(), eager, rtol=1e-5, atol=1e-6)
    assert set(graphs) == {4}, "query, key and value in one, projection, and two of the MLP"
    assert len(graphs) >= DEPTH, "each drop path has its own"
