"""A module of a user's own as an encoder: what is asked of it, what is said of it, and that every part is its own."""

import hashlib

import numpy as np
import pytest
import timm
import torch
from support.own_encoder import TinyEncoder, WithTokens
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_transfer import check_encoder, load_backbone, register_backbone
from mae_transfer.backbones import plugins
from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.backbones.timm_vit import build, resolve
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task


@pytest.fixture(autouse=True)
def _names_of_the_test(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {})


def images(batch=2, size=(48, 80)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


class PlainViT(nn.Module):
    """timm's plain ViT through the interface."""

    embed_dim, depth, patch_size = 64, 8, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self):
        super().__init__()
        self.vit = VisionTransformer(
            img_size=64, embed_dim=64, depth=8, num_heads=4, num_classes=0, dynamic_img_size=True, final_norm=False
        )

    def feature_maps(self, images, blocks):
        return self.vit.forward_intermediates(images, list(blocks), norm=False, intermediates_only=True)


def test_maps_tokens_and_normalisation_are_the_modules():
    module = WithTokens().eval()
    encoder = load_backbone(module, taps=(0, 3)).eval()
    maps = encoder(images())
    assert [tuple(x.shape) for x in maps] == [(2, 32, 3, 5)] * 2
    for ours, theirs in zip(maps, module.feature_maps(images(), (0, 3)), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(encoder.tokens(images(), (1,))[0], module.tokens(images(), (1,))[0])
    assert (encoder.prefix, encoder.has_class_token, encoder.num_heads) == (2, True, 4)
    pixels = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    assert torch.equal(encoder.normalise(pixels), torch.full((1, 3, 16, 16), 2.0))

    bare = load_backbone(TinyEncoder()).eval()
    assert (bare.prefix, bare.has_class_token, bare.norm) == (0, False, None)
    assert torch.equal(bare.tokens(images(), (2,))[0], bare.module.feature_maps(images(), (2,))[0].flatten(2).mT)
    with pytest.raises(UserError, match="image size 50x64 is no multiple of the patch 16 of TinyEncoder; use 48x64"):
        bare(images(size=(50, 64)))


def test_the_report_and_the_record_say_whose_it_is():
    module = WithTokens()
    encoder = load_backbone(module)
    assert (encoder.name, encoder.spec.init, encoder.spec.size) == ("tiny-tokens", "contrastive", None)
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + np.ascontiguousarray(tensor.numpy()).tobytes())
    assert encoder.load_report.fingerprint == digest.hexdigest()
    lines = "\n".join(encoder.load_report.lines())
    assert "12 tensors loaded from support.own_encoder.WithTokens (a module of your own)" in lines
    assert "0x" not in lines
    assert facts_of(encoder)["mean"] == (0.5, 0.5, 0.5)
    assert resolve("tiny-tokens").origin == "support.own_encoder.WithTokens"
    with pytest.raises(UserError, match="is support.own_encoder.WithTokens, a module of your own; this is for plain"):
        build(resolve("tiny-tokens"), img_size=64)


def test_a_load_leaves_the_users_module_alone():
    module = TinyEncoder()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    encoder = load_backbone(module)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_checkpoint_must_fit_tensor_for_tensor(tmp_path):
    class Wrapped(TinyEncoder):
        """Its own names begin with a prefix that wrappers have too."""

        def __init__(self):
            super().__init__()
            self.backbone = nn.ModuleDict({"patch": self.patch, "blocks": self.blocks, "tail": self.tail})
            del self.patch, self.blocks, self.tail

        def feature_maps(self, images, blocks):
            return [self.backbone["patch"](images) for _ in blocks]

    for kind in (TinyEncoder, Wrapped):
        source, state = kind(), {}
        encoder = load_backbone(source)
        contents = {
            "bare": source.state_dict(),
            "ddp": {"state_dict": {f"module.{name}": x for name, x in source.state_dict().items()}},
            "encoder": encoder.state_dict(),
            "run": {"model": {f"encoder.{name}": x for name, x in encoder.state_dict().items()} | {"head.bias": x}}
            if (x := torch.zeros(2)) is not None
            else {},
        }
        for name, content in contents.items():
            torch.save(content, tmp_path / f"{name}.pt")
            loaded = load_backbone(kind(), checkpoint=tmp_path / f"{name}.pt")
            for key, tensor in loaded.module.state_dict().items():
                assert torch.equal(tensor, source.state_dict()[key]), (name, key)
            assert loaded.load_report.source == str(tmp_path / f"{name}.pt")
            assert loaded.load_report.fingerprint == encoder.load_report.fingerprint
        assert "head.bias" in loaded.load_report.ignored

    state = TinyEncoder().state_dict()
    wrong = {"missing tail.bias": {k: v for k, v in state.items() if k != "tail.bias"}}
    wrong["unexpected more"] = state | {"more": torch.zeros(1)}
    wrong[r"tail.bias is \(3,\), not \(32,\)"] = state | {"tail.bias": torch.zeros(3)}
    wrong["tail.bias holds NaN"] = state | {"tail.bias": torch.full((32,), torch.nan)}
    for message, content in wrong.items():
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match=f"wrong.pt: does not fit TinyEncoder, support.own_.*{message}"):
            load_backbone(TinyEncoder(), checkpoint=tmp_path / "wrong.pt")


def test_options_go_to_a_factory_that_takes_them_and_are_refused_in_one_line_else():
    asked = {"window_size": 2, "rel_pos": "per_block", "drop_path": 0.1, "grad_checkpointing": True, "layer_scale": 0.1}
    settings = "backbone.window_size=0 backbone.rel_pos=false backbone.drop_path=0.0 backbone.grad_checkpointing=false"
    with pytest.raises(UserError, match=f"set {settings} model.layer_scale=null, or register a factory"):
        load_backbone(TinyEncoder(), **asked)
    register_backbone("mine", WithTokens)
    assert load_backbone("mine", drop_path=0.1).module.drop_path == 0.1
    with pytest.raises(UserError, match="set backbone.window_size=0, or"):
        load_backbone("mine", drop_path=0.1, window_size=2)
    with pytest.raises(UserError, match="makes its weights itself; leave out weights=random"):
        load_backbone("mine", weights="random")
    register_backbone("odd", lambda: 3)
    with pytest.raises(UserError, match="returns a int, not an nn.Module or a Spec") as error:
        load_backbone("odd")
    assert "0x" not in str(error.value)


def test_layers_are_found_by_the_one_list_of_blocks():
    encoder = load_backbone(PlainViT())
    ids = {name: encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert ids["module.vit.pos_embed"] == ids["module.vit.patch_embed.proj.weight"] == 0
    assert {ids[f"module.vit.blocks.{i}.mlp.fc1.weight"] - i for i in range(8)} == {1}
    assert load_backbone(TinyEncoder()).layer_id("module.tail.bias") == 5

    class Told(TinyEncoder):
        def layer_id(self, name):
            return 3

    assert load_backbone(Told()).layer_id("module.tail.bias") == 3
    twice = TinyEncoder()
    twice.more = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(UserError, match=r"no list of 4 blocks; give it layer_id\(name\), or set optim.layer_decay=1"):
        load_backbone(twice).layer_id("module.tail.bias")


def test_freezing():
    encoder = load_backbone(WithTokens())
    encoder.freeze(1)
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == {
        "module.blocks.3.weight",
        "module.blocks.3.bias",
    }
    encoder.train()
    assert encoder.module.blocks[3].training
    assert not encoder.module.blocks[2].training
    encoder.freeze(0)
    encoder.train()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.module.training
    for number in (0.5, 5):
        with pytest.raises(UserError, match=f"{number:g} trainable blocks: tiny-tokens takes 0, 1, 2, ... 4"):
            encoder.freeze(number)


def test_flops_of_a_module_are_those_of_the_same_plain_vit():
    ours = load_backbone("random_vit_nano", img_size=64).eval()
    assert encoder_flops(load_backbone(PlainViT(), img_size=64)) == encoder_flops(ours)


def changed(**attributes):
    module = type("Changed", (TinyEncoder,), {})()
    for name, value in attributes.items():
        setattr(type(module), name, value)
    return module


FAULTS = [
    (changed(embed_dim=None), "embed_dim: missing, must be a positive whole number"),
    (changed(mean=(123.7, 116.3, 103.5)), "mean: (123.7, 116.3, 103.5), must be three numbers for R, G and B in 0..1"),
    (changed(std=(0, 0.1, 0.1)), "std: (0, 0.1, 0.1), must not be zero"),
    (changed(feature_maps=None), "feature_maps: missing"),
    (changed(feature_maps=lambda self, x, blocks: self.patch(x)), "gives a Tensor, must give a list of tensors"),
    (changed(feature_maps=lambda self, x, blocks: [self.patch(x)]), "gives 1 tensors for the 2 blocks (0, 3)"),
    (
        changed(feature_maps=lambda self, x, blocks: [self.patch(x).flatten(2) for _ in blocks]),
        "of images (2, 3, 112, 160): gives (2, 32, 70), (2, 32, 70), must give (2, 32, 7, 10) each",
    ),
    (changed(tokens=lambda self, x, blocks: [self.patch(x).flatten(2).mT for _ in blocks]), "must give (2, 71, 32)"),
    (changed(feature_maps=lambda self, x, blocks: [self.patch(x) / 0 for _ in blocks]), "NaN or infinite"),
    (
        changed(feature_maps=lambda self, x, blocks: [self.patch(x) + torch.rand(1) for _ in blocks]),
        "two results for the same images in eval mode",
    ),
    (
        changed(feature_maps=lambda self, x, blocks: [self.patch(x - x.mean(0)) for _ in blocks]),
        "an image gives another result beside another image",
    ),
    (changed(feature_maps=lambda self, x, blocks: [self.patch(x) for _ in blocks]), "the same map for the blocks 0"),
    (
        changed(feature_maps=lambda self, x, b: [m.mT for m in TinyEncoder.feature_maps(self, x, b)]),
        "must give (2, 32, 7, 10) each",
    ),
    (
        changed(feature_maps=lambda self, x, b: TinyEncoder.feature_maps(self, x, b)[::-1]),
        "asked for the blocks 0 and 3, must give them in that order",
    ),
    (
        changed(feature_maps=lambda self, x, b: [m.detach() for m in TinyEncoder.feature_maps(self, x, b)]),
        "maps without a gradient",
    ),
]


@pytest.mark.parametrize(("module", "line"), FAULTS)
def test_every_fault_has_its_line(module, line):
    assert any(line in found for found in check_encoder(module)), check_encoder(module)


def test_a_sound_module_is_run_as_often_as_the_check_says():
    """On two images, on one, and for the gradients; with tokens once more. At each load a user waits for this."""
    for kind, runs in ((TinyEncoder, 2), (WithTokens, 3)):
        module, calls = kind(), []
        module.patch.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        check_encoder(module, gradients=False)
        assert len(calls) == runs
        assert check_encoder(module) == []
        assert len(calls) == 2 * runs + 1


def test_what_is_sound_has_no_line_and_is_left_as_it_was():
    module = WithTokens().train()
    module.patch.weight.grad = torch.ones_like(module.patch.weight)
    plain, state = PlainViT(), torch.get_rng_state()
    assert check_encoder(module) == check_encoder(plain) == []
    assert module.training
    assert torch.equal(module.patch.weight.grad, torch.ones_like(module.patch.weight))
    assert module.patch.bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    module.tail.requires_grad_(True)
    assert check_encoder(module) == [
        "parameters: tail.weight, tail.bias get no gradient from the last map; what only tokens() uses wants "
        "requires_grad_(False)"
    ]
    with pytest.raises(
        UserError, match=r"Changed.*: depth: missing, .* \(and 1 more, see mae_transfer.check_encoder\)"
    ):
        load_backbone(changed(depth=None, std=None))


def test_a_run_says_what_the_check_finds():
    swapped = load_backbone(changed(feature_maps=lambda self, x, b: TinyEncoder.feature_maps(self, x, b)[::-1]))
    assert any("warning: feature_maps: asked for the blocks 0 and 3" in line for line in swapped.load_report.lines())
    module = changed(feature_maps=lambda self, x, b: [x.view(7, 9)]).train()
    with pytest.raises(RuntimeError, match="shape"):
        check_encoder(module)
    assert module.training
    picky = load_backbone(module)
    assert any("check_encoder could not run it: RuntimeError" in line for line in picky.load_report.lines())


def test_wrong_shapes_in_a_run_are_one_line():
    encoder = load_backbone(changed(feature_maps=lambda self, x, blocks: [self.patch(x)[:, :3] for _ in blocks]))
    with pytest.raises(UserError, match=r"feature_maps gives a tensor \(2, 3, 3, 5\), not \(2, 32, 3, 5\)"):
        encoder(images())


def test_maps_without_a_gradient_stop_a_fine_tuning_in_one_line():
    module = changed(feature_maps=lambda self, x, b: [m.detach() for m in TinyEncoder.feature_maps(self, x, b)])
    encoder = load_backbone(module)
    with pytest.raises(UserError, match=r"feature_maps gives maps without a gradient, .* take torch.no_grad or detach"):
        encoder.train()(images())
    with torch.no_grad():
        encoder(images())
    encoder.eval()(images())
    encoder.freeze(0)
    encoder.train()(images())


@pytest.mark.parametrize("depth", [1, 3])
def test_too_few_blocks_for_a_pyramid_are_refused_before_any_data_are_read(depth):
    register_backbone("shallow", type("Shallow", (TinyEncoder,), {"depth": depth}))
    for task in ("coco", "ade20k"):
        config = resolve_config(task, "shallow", data="nowhere")
        with pytest.raises(
            UserError, match=f"backbone shallow: it has {depth} blocks, and the pyramid takes the maps of 4"
        ):
            make_task(config)
    assert load_backbone("shallow").taps == tuple(range(depth))


def test_a_plain_vit_that_a_user_registers_with_timm():
    @timm.models.register_model
    def a_users_vit(pretrained=False, pretrained_cfg=None, **kwargs):
        config = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "input_size": (3, 32, 32)}
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3} | kwargs
        return timm.models.build_model_with_cfg(
            VisionTransformer, "a_users_vit", pretrained, pretrained_cfg or config, **options
        )

    @timm.models.register_model
    def a_vit_without_statistics(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None):
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)

    @timm.models.register_model
    def a_subclass(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        return type("Altered", (VisionTransformer,), {})(embed_dim=48, depth=4, num_heads=3)

    encoder = load_backbone("timm:a_users_vit", weights="random", img_size=(32, 48), window_size=2, drop_path=0.1)
    assert (encoder.patch_size, encoder.embed_dim, encoder.mean) == (8, 48, (0.4, 0.5, 0.6))
    assert [tuple(x.shape) for x in encoder(images(size=(32, 48)))] == [(2, 48, 4, 6)] * 4
    with pytest.raises(UserError, match="no pretrained_cfg with mean and std"):
        resolve("timm:a_vit_without_statistics")
    with pytest.raises(UserError, match="timm builds a Altered, not a plain ViT"):
        resolve("timm:a_subclass")
