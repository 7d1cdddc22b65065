"""What is around the tensors: folders, configurations, wrappers, heads, runs of this project, and hostile files."""

import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.layouts import HF, PLAIN, SIZE, beit, hooked, layout, randomise, vit
from timm.models.vision_transformer import VisionTransformer

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import files, fixed_position, hf_config, loader
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def load_path(path, spec=PLAIN):
    found = files.find(path)
    return loader.load(spec, files.read(found), str(found), config=hf_config.beside(found))


def images(*size):
    return torch.randn(2, 3, *(size or (SIZE, SIZE)), generator=torch.Generator().manual_seed(4))


# --- Hugging Face and timm folders


@pytest.fixture
def hf_folder(tmp_path):
    config = transformers.ViTConfig(**HF, layer_norm_eps=0.05)
    model = randomise(transformers.ViTModel(config))
    model.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "size": {"height": SIZE, "width": SIZE}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path, model


def test_a_model_folder_settles_eps_and_normalisation(hf_folder):
    folder, model = hf_folder
    for path in (folder, folder / "model.safetensors"):
        loaded, report = load_path(path)
        encoder = ViTEncoder(loaded, report.spec, taps=(0, 1)).eval()
        expected = hooked(model, model.layers, 1)(images())
        with torch.no_grad():
            for ours, theirs in zip(encoder(images()), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert (encoder.mean, encoder.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
        assert "  from the file: LayerNorm eps 0.05" in report.lines()
        assert "  from the file: normalisation mean (0.5, 0.4, 0.3)" in report.lines()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 8}, "has 8 heads, tiny has 4; the shapes agree but the attention would be wrong"),
        ({"hidden_act": "quick_gelu"}, "has hidden_act 'quick_gelu', tiny has gelu"),
    ],
)
def test_a_configuration_that_does_not_fit(hf_folder, change, message):
    folder, _ = hf_folder
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in refusal(load_path, folder)
    path.write_text("{")
    assert f"{path}: cannot be read" in refusal(load_path, folder)


def test_shards_and_other_folders(tmp_path):
    model = vit()
    state = model.state_dict()
    names = sorted(state)
    for shard, keys in (("model-1.safetensors", names[::2]), ("model-2.safetensors", names[1::2])):
        save_file({key: state[key] for key in keys}, tmp_path / shard)
    weight_map = {key: f"model-{1 + i % 2}.safetensors" for i, key in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}})
    )
    loaded, report = load_path(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], state[key]) for key in loaded.state_dict())
    assert report.spec.mean == (0.1, 0.2, 0.3)
    save_file(
        {names[0]: state[names[0]] + 1} | {key: state[key] for key in names[1::2]}, tmp_path / "model-2.safetensors"
    )
    loaded, _ = load_path(tmp_path)  # of a tensor in both that of the shard that the index names
    assert torch.equal(loaded.state_dict()[names[0]], state[names[0]])
    for other in ("../other.safetensors", index.name):
        index.write_text(json.dumps({"weight_map": weight_map | {names[0]: other}}))
        assert f"names a shard that is no file beside it ({other})" in refusal(load_path, tmp_path)
    index.write_text('{"weight_map": {}, "weight_map": {}}')
    assert "the key 'weight_map' is twice in an object" in refusal(load_path, tmp_path)
    index.unlink()
    assert "has model-1.safetensors, model-2.safetensors; pass one of its files" in refusal(load_path, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "neither a run's checkpoints nor model.safetensors" in refusal(load_path, tmp_path / "empty")


# --- wrappers and entries


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "_forward_module.", "net."])
@pytest.mark.parametrize("name", ["MAE encoder", "HF ViT", "BEiT timm", "DINOv2 registers"])
def test_wrappers_of_ddp_compile_and_lightning(name, prefix):
    case = layout(name)
    content = {"state_dict": {prefix + key: t for key, t in case.state.items()}, "pytorch-lightning_version": "2.5"}
    _, report = loader.load(case.spec, content, "test")
    _, bare = loader.load(case.spec, case.content, "test")
    assert report.fingerprint == bare.fingerprint
    assert "pytorch-lightning_version" in report.ignored


def test_teacher_unless_the_student_is_asked_for():
    case = layout("DINO")
    _, teacher = loader.load(case.spec, case.content, "test")
    _, student = loader.load(case.spec, case.content, "test", key="student")
    assert teacher.fingerprint != student.fingerprint
    assert "checkpoint_key=student" in teacher.ignored["student"]
    message = refusal(loader.load, case.spec, case.content, "some.pth", key="ema")
    assert "has no entry 'ema' and no keys ema.*; it has student, teacher, optimizer" in message


# --- number of heads


def moco_table(side, width):
    """facebookresearch/moco-v3's 2D sin-cos position embedding, number by number."""
    rows = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            angles = [[place / 10000 ** (4 * i / width) for i in range(width // 4)] for place in (row, column)]
            rows.append([f(a) for angle in angles for f in (np.sin, np.cos) for a in angle])
    return torch.tensor(rows, dtype=torch.float32)[None]


@pytest.mark.parametrize("name", ["sup_vit_s", "timm:vit_small_patch16_224", "mae_vit_s", "dino_vit_s"])
def test_mocov3_small_is_refused_by_six_heads(name):
    """The shapes agree, so heads are told by the layout, or by the frozen position embedding after its conversion."""
    model = randomise(VisionTransformer(img_size=64, embed_dim=384, depth=12, num_heads=12, num_classes=0))
    model.pos_embed.data = moco_table(4, 384)
    converted = {"model": model.state_dict()}
    released = {"state_dict": {f"module.base_encoder.{key}": t for key, t in model.state_dict().items()}}
    for layer, shape in ((0, (9, 384)), (3, (9, 9)), (6, (5, 9))):
        released["state_dict"][f"module.base_encoder.head.{layer}.weight"] = torch.ones(shape)
        bn = torch.nn.BatchNorm1d(shape[0], affine=layer < 6).state_dict()
        released["state_dict"] |= {f"module.base_encoder.head.{layer + 1}.{key}": t for key, t in bn.items()}
    for content in (converted, released):
        message = refusal(loader.load, load_spec(name), content, "vit-s.pth")
        assert "has 12 heads" in message
        assert "pass --backbone mocov3_vit_s" in message
        loaded, report = loader.load(registry.find("mocov3_vit_s"), content, "vit-s.pth")
        assert loaded.blocks[0].attn.num_heads == 12
        encoder = ViTEncoder(loaded, report.spec, taps=(11,)).eval()
        expected = model.forward_intermediates(images(64, 64), [11], norm=False, intermediates_only=True)[0]
        with torch.no_grad():
            torch.testing.assert_close(encoder(images(64, 64))[0], expected, rtol=1e-4, atol=1e-4)
    converted["model"]["pos_embed"] = torch.randn(1, 17, 384)  # learned: DeiT's, which has 6 heads
    loader.load(load_spec(name), converted, "deit-s.pth")


def load_spec(name):
    from mae_transfer.backbones.timm_vit import resolve

    return resolve(name)


def test_frozen_positions_are_told_apart():
    assert fixed_position.origin(moco_table(4, 384)) == "mocov3"
    assert fixed_position.origin(torch.cat([torch.zeros(1, 1, 384), transposed(moco_table(4, 384)[:, 1:])], 1)) == "mae"
    assert fixed_position.origin(torch.randn(1, 17, 384)) is None


def transposed(grid):
    return grid.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)


# --- runs of this project


def save_run(folder, encoder, step=5, ema=None):
    state = {f"encoder.{key}": t for key, t in encoder.state_dict().items()} | {"pyramid.weight": torch.ones(3)}
    (folder / "checkpoints").mkdir(exist_ok=True)
    content = {"step": step, "model": state, "optimizer": {"state": {}}, "ema": ema}
    torch.save(content, folder / "checkpoints" / f"step_{step:08d}.pt")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": 3, "num_global_blocks": 2},
        {"rel_pos": True, "img_size": (64, 96)},
        {"window_size": 3, "num_global_blocks": 2, "rel_pos": True, "img_size": 64},
    ],
    ids=str,
)
def test_a_run_is_loaded_as_it_was(tmp_path, options):
    name = "mae_vit_nano"
    trained = randomise(load_backbone(name, weights="random", **options))
    save_run(tmp_path, load_backbone(name, weights="random", **options), step=3)
    save_run(tmp_path, trained, step=12)
    encoder = load_backbone(name, checkpoint=tmp_path, **options).eval()
    assert encoder.load_report.source.endswith("step_00000012.pt")
    assert encoder.load_report.ignored["pyramid.weight"] == "another part of the task's model"
    assert encoder.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), trained.parameters(), strict=True))
    if options.get("rel_pos"):
        message = refusal(load_backbone, name, checkpoint=tmp_path, **{**options, "rel_pos": False})
        assert ": rel_pos_" in message
        assert "pass the window_size" in message
    if options == {"window_size": 3, "num_global_blocks": 2}:
        plain = load_backbone(name, checkpoint=tmp_path).eval()  # from windows to global attention
        assert "it was trained with windowed attention" in "\n".join(plain.load_report.lines())
        assert plain.vit.cls_token is None
        assert plain(images(64, 64))[0].shape == (2, 64, 4, 4)


def test_the_moving_average_of_a_run_is_what_is_read(tmp_path):
    model, average = (randomise(load_backbone("mae_vit_nano", weights="random"), std=s) for s in (0.1, 0.3))
    ema = {f"module.encoder.{key}": t for key, t in average.state_dict().items()} | {"n_averaged": torch.tensor(4)}
    save_run(tmp_path, model, ema=ema)
    encoder = load_backbone("mae_vit_nano", checkpoint=tmp_path)
    assert torch.equal(encoder.vit.cls_token, average.vit.cls_token)
    encoder = load_backbone("mae_vit_nano", checkpoint=tmp_path, checkpoint_key="model")
    assert torch.equal(encoder.vit.cls_token, model.vit.cls_token)


@pytest.mark.parametrize("options", [{}, {"window_size": 3, "num_global_blocks": 1, "img_size": (40, 48)}], ids=str)
def test_a_run_of_beit_keeps_its_tables(options):
    case = layout("BEiT timm")
    loaded, report = loader.load(case.spec, case.content, "test")
    trained = randomise(ViTEncoder(loaded, report.spec, taps=(0, 1), **options))
    content = {"model": {f"encoder.{key}": t for key, t in trained.state_dict().items()}}
    loaded, report = loader.load(case.spec, content, "run")
    again = ViTEncoder(loaded, report.spec, taps=(0, 1), **options).eval()
    for ours, theirs in zip(again(images(40, 48)), trained.eval()(images(40, 48)), strict=True):
        assert torch.equal(ours, theirs)
    if options:
        loaded, report = loader.load(case.spec, content, "run")
        message = refusal(ViTEncoder, loaded, report.spec, taps=(0, 1), window_size=2, num_global_blocks=1)
        assert "pass the window_size" in message


# --- what is refused


FLAT = {
    "0 in blocks.1.mlp.fc2.weight:": {"blocks.1.mlp.fc2.weight": 0.0},
    "0 in blocks.0.norm1.weight, blocks.0.attn.qkv.weight:": {
        "blocks.0.attn.qkv.weight": 0,
        "blocks.0.norm1.weight": 0,
    },
    "0.5 in patch_embed.proj.weight:": {"patch_embed.proj.weight": 0.5},
    "0 in pos_embed:": {"pos_embed": 0.0},
    " and 4 more:": {
        f"blocks.{i}.{name}.weight": 0.0 for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    },
}


@pytest.mark.parametrize("expected", FLAT)
def test_weights_of_one_value_are_warned_of(expected):
    state = vit().state_dict()
    for key, value in FLAT[expected].items():
        state[key] = torch.full_like(state[key], value)
    _, report = loader.load(PLAIN, state, "test")
    (warning,) = report.warnings
    assert warning.startswith("every value is ")
    assert expected in warning
    assert f"  warning: {warning}" in report.lines()


def test_a_new_layer_scale_biases_and_norms_of_ones_are_no_warning():
    state = vit(init_values=0.1).state_dict()
    for key, tensor in state.items():
        if tensor.ndim == 1:
            state[key] = torch.full_like(tensor, 1e-5 if key.endswith("gamma") else "norm" in key and "weight" in key)
    _, report = loader.load(PLAIN, state, "test")
    assert report.warnings == []


def bomb(path, kind):
    """A file of some kB whose tensor unpacks to 64 MB."""
    if kind == "npz":
        np.savez_compressed(path, kernel=np.zeros(16_000_000, np.float32))
        return
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(16_000_000)}}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    arrays = {key: tensor.numpy() for key, tensor in vit().state_dict().items()}
    np.savez(tmp_path / "m.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("pos_embed.npy", archive.read("cls_token.npy"))
    assert "an archive that has pos_embed.npy twice" in refusal(load_path, tmp_path / "m.npz")
    save_file(vit().state_dict(), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = b'{"pos_embed":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' + content[9 : 8 + size]
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert "not a readable checkpoint" in refusal(load_path, tmp_path / "m.safetensors")


@pytest.mark.parametrize("kind", ["npz", "pth"])
def test_zip_bombs(tmp_path, kind):
    path = tmp_path / f"bomb.{kind}"
    bomb(path, kind)
    assert path.stat().st_size < 200_000
    message = refusal(files.read, path)
    assert "refused" in message
    assert "would unpack to 64" in message


class Payload:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_code_in_npz_is_not_run(tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "evil.npz"
    np.savez(path, a=np.array([Payload(proof)], dtype=object))
    assert "not a readable checkpoint (ValueError)" in refusal(files.read, path)
    assert not proof.exists()
    with np.load(path, allow_pickle=True) as arrays:
        arrays["a"]
    assert proof.exists()  # the payload works: it was the reader that stopped it


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert "a TorchScript archive, which is code" in refusal(files.read, path)


def test_npz_files_are_read_and_cut_ones_refused(tmp_path):
    case, path = layout("AugReg"), tmp_path / "augreg.npz"
    np.savez(path, **{key: tensor.numpy() for key, tensor in case.state.items()})
    _, report = loader.load(case.spec, files.read(path), "test")
    _, expected = loader.load(case.spec, case.content, "test")
    assert report.fingerprint == expected.fingerprint
    assert "has 4 heads" in refusal(loader.load, dataclasses.replace(PLAIN, num_heads=8), case.content, "test")
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        assert "truncated or of another format" in refusal(files.read, path)


def test_weights_own_their_memory(tmp_path):
    """A table shared by all blocks becomes one per block, and the file may be written over while they are used."""
    case = layout("BEiT pre-training")
    path = tmp_path / "beit.pth"
    torch.save(case.content, path)
    loaded, _ = loader.load(case.spec, files.read(path), str(path), copy=False)
    path.write_bytes(b"0" * path.stat().st_size)
    tables = [block.attn.rel_pos_table for block in loaded.blocks]
    assert torch.equal(tables[0], tables[1])
    tables[0].data.zero_()
    assert tables[1].any()
    source = beit(use_rel_pos_bias=True)
    state = source.state_dict()
    loaded, _ = loader.load(case.spec, state, "memory")
    loaded.cls_token.data.zero_()
    assert state["cls_token"].any()
