"""Tokenizers: ids of their definition, files, and what is refused."""

import json
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save, save_file
from torch import nn

from mae_transfer.errors import UserError
from mae_transfer.pretrain.tokenizers.dalle import CLASSES, DalleTokenizer, read_pickled_module
from mae_transfer.pretrain.tokenizers.dvae import DiscreteVAE, DVAETokenizer, facts_of, strides
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer, fit_kmeans
from mae_transfer.pretrain.tokenizers.load import FILE, load_tokenizer, save_tokenizer


def photos(batch=3, height=32, width=48, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


# --- k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
def test_kmeans_ids_are_the_nearest_centres(channels):
    images = photos(channels=channels)
    centres = torch.rand(7, channels * 64, generator=torch.Generator().manual_seed(1))
    ids = KMeansTokenizer(centres, patch_size=8)(images)
    for b in range(3):
        for y in range(4):
            for x in range(6):
                patch = images[b, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].float() / 255
                distances = ((centres.view(7, channels, 8, 8) - patch) ** 2).sum((1, 2, 3))
                assert ids[b, 6 * y + x] == distances.argmin()


def test_kmeans_finds_the_clusters_that_are_there():
    """Patches of four colours and a little noise: each colour is one token."""
    rng = np.random.default_rng(0)
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]])
    truth = rng.integers(4, size=(10, 4, 4))
    images = np.repeat(np.repeat(colours[truth], 8, 1), 8, 2) + rng.integers(0, 6, (10, 32, 32, 3))
    images = torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2)
    tokenizer = fit_kmeans(images, vocab_size=4, patch_size=8, patches_per_image=16, seed=0)
    ids = tokenizer(images).view(10, 4, 4).numpy()
    pairs = set(zip(ids.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert len(pairs) == 4
    again = fit_kmeans(images, vocab_size=4, patch_size=8, patches_per_image=16, seed=0)
    assert torch.equal(again.centres, tokenizer.centres)


def test_kmeans_needs_enough_patches():
    with pytest.raises(UserError, match=r"k-means: 100 tokens cannot be made of 15 patches \(3 images\)"):
        fit_kmeans(photos(), vocab_size=100, patch_size=8, patches_per_image=5, seed=0)


# --- the small discrete VAE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "expected"), [(16, [2, 2, 2, 2]), (14, [2, 7]), (8, [2, 2, 2]), (5, [5]), (1, [1])])
def test_strides_multiply_to_the_patch(patch, expected):
    assert strides(patch) == expected


@pytest.mark.parametrize(("patch", "blocks", "channels"), [(16, 2, 3), (14, 0, 1), (5, 1, 3)])
def test_dvae_is_known_by_its_tensors(patch, blocks, channels):
    tokenizer = DVAETokenizer(vocab_size=9, patch_size=patch, width=8, blocks=blocks, channels=channels)
    assert facts_of(tokenizer.state_dict()) == tokenizer.facts()


@pytest.mark.parametrize("patch", [4, 6, 14])
def test_dvae_gives_a_token_a_patch_and_paints_the_image_back(patch):
    images = photos(2, 3 * patch, 2 * patch)
    model = DiscreteVAE(DVAETokenizer(vocab_size=11, patch_size=patch, width=8), kl_weight=0.5)
    assert model.tokenizer(images).shape == (2, 6)
    losses = model({"images": images})
    assert set(losses) == {"loss_pixels", "loss_kl"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dvae_losses_are_those_of_the_definition():
    images = photos(2, 16, 16)
    model = DiscreteVAE(DVAETokenizer(vocab_size=5, patch_size=4, width=8), kl_weight=0.5)
    model.tokenizer.layers[-1].weight.data *= 30  # away from the uniform distribution
    pixels = images.float() / 255 * 2 - 1
    q = model.tokenizer.layers(pixels).softmax(1)  # (2, 5, 4, 4)
    ids = q.argmax(1)
    painted = model.decoder(model.codebook.weight[ids].permute(0, 3, 1, 2))
    losses = model.eval()({"images": images})
    torch.testing.assert_close(losses["pixels"], ((painted - pixels) ** 2).mean((1, 2, 3)))
    kl = (q * (q / (1 / 5)).log()).sum(1).mean((1, 2))
    torch.testing.assert_close(losses["kl"], kl)
    torch.testing.assert_close(model.train()({"images": images})["loss_kl"], 0.5 * kl.mean())
    assert torch.equal(model.tokenizer(images), ids.flatten(1))


def test_dvae_learns_to_tell_colours_apart():
    torch.manual_seed(0)
    colours = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250]], dtype=torch.uint8)
    truth = torch.randint(3, (8, 4, 4))
    images = colours[truth].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    model = DiscreteVAE(DVAETokenizer(vocab_size=8, patch_size=4, width=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model({"images": images}).values()).backward()
        optimizer.step()
    ids = model.tokenizer(images).view(8, 4, 4)
    red, green, blue = (set(ids[truth == colour].tolist()) for colour in range(3))
    assert len(red | green | blue) == len(red) + len(green) + len(blue)  # no token of two colours
    blind = ((images.float() / 127.5 - 1) ** 2).mean()
    assert model.eval()({"images": images})["pixels"].mean() < 0.1 * blind


# --- OpenAI's dVAE ---------------------------------------------------------------------------------------------------


class Conv2d(nn.Module):
    """As a pickled `dall_e.utils.Conv2d`: sizes and options among its attributes."""

    def __init__(self, n_in, n_out, kw, use_float16=True):
        super().__init__()
        self.n_in, self.n_out, self.kw, self.use_float16 = n_in, n_out, kw, use_float16
        self.device, self.requires_grad = torch.device("cpu"), False
        self.w, self.b = nn.Parameter(torch.randn(n_out, n_in, kw, kw) * 0.1), nn.Parameter(torch.randn(n_out))


class EncoderBlock(nn.Module):
    def __init__(self, n_in, n_out, n_layers):
        super().__init__()
        self.n_in, self.n_out, self.n_layers, self.device = n_in, n_out, n_layers, None
        n_hid = n_out // 4
        self.n_hid, self.post_gain = n_hid, 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        parts = [("conv_1", n_in, n_hid, 3), ("conv_2", n_hid, n_hid, 3), ("conv_3", n_hid, n_hid, 3)]
        parts += [("conv_4", n_hid, n_out, 1)]
        layers = OrderedDict()
        for i, (name, a, b, kw) in enumerate(parts, 1):
            layers[f"relu_{i}"] = nn.ReLU()
            layers[name] = Conv2d(a, b, kw)
        self.res_path = nn.Sequential(layers)


class Encoder(nn.Module):
    def __init__(self, n_hid=16, vocab_size=24):
        super().__init__()
        self.group_count, self.n_hid, self.n_blk_per_group, self.vocab_size = 4, n_hid, 2, vocab_size
        widths = [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)]
        blocks = [EncoderBlock(a * n_hid, b * n_hid, 8) for a, b in widths]
        groups = OrderedDict(input=Conv2d(3, n_hid, 7))
        for g in range(4):
            layers = OrderedDict(block_1=blocks[2 * g], block_2=blocks[2 * g + 1])
            if g < 3:
                layers["pool"] = nn.MaxPool2d(kernel_size=2)
            groups[f"group_{g + 1}"] = nn.Sequential(layers)
        groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(8 * n_hid, vocab_size, 1, False)))
        self.blocks = nn.Sequential(groups)


def logits_by_hand(state, pixels):
    """The definition with functions: names as OpenAI's, all paddings 'same'."""

    def conv(x, name):
        w = state[f"{name}.w"]
        return F.conv2d(x, w, state[f"{name}.b"], padding=(w.shape[2] - 1) // 2)

    x = conv(0.8 * pixels + 0.1, "blocks.input")
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            h = x
            for i in (1, 2, 3, 4):
                h = conv(F.relu(h), f"{name}.res_path.conv_{i}")
            x = (conv(x, f"{name}.id_path") if f"{name}.id_path.w" in state else x) + h / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv(F.relu(x), "blocks.output.conv")


@pytest.fixture
def openai_file(tmp_path, monkeypatch):
    """encoder.pkl as OpenAI's: a pickled module of the package dall_e, which is gone when the file is read."""
    for name, members in {"dall_e.encoder": (Encoder, EncoderBlock), "dall_e.utils": (Conv2d,)}.items():
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        for member in members:
            monkeypatch.setattr(member, "__module__", name)
            setattr(module, member.__name__, member)
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    torch.manual_seed(0)
    encoder = Encoder()
    torch.save(encoder, tmp_path / "encoder.pkl")
    for name in ("dall_e.encoder", "dall_e.utils", "dall_e"):
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "encoder.pkl", encoder.state_dict()


def test_openai_encoder_is_read_whole_and_gives_its_logits(openai_file):
    path, state = openai_file
    with pytest.raises(ModuleNotFoundError, match="dall_e"):
        torch.load(path, weights_only=False)  # so it is a pickle that needs the package
    tokenizer = load_tokenizer(path)
    assert tokenizer.kind == "dalle"
    assert tokenizer.vocab_size == 24
    for name, tensor in state.items():
        assert torch.equal(tokenizer.state_dict()[name], tensor)
    images = photos(2, 24, 16)
    expected = logits_by_hand(state, images.float() / 255)
    torch.testing.assert_close(tokenizer.logits(images.float() / 255), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tokenizer(images), expected.argmax(1).flatten(1))
    assert not any(p.requires_grad for p in tokenizer.parameters())


def test_openai_state_dict_gives_the_same_tokenizer(openai_file, tmp_path):
    path, state = openai_file
    torch.save(state, tmp_path / "encoder_state.pt")
    save_file(state, tmp_path / "encoder.safetensors")
    images = photos(2, 24, 16)
    ids = load_tokenizer(path)(images)
    for name in ("encoder_state.pt", "encoder.safetensors"):
        assert torch.equal(load_tokenizer(tmp_path / name)(images), ids)


def test_architecture_of_the_published_encoder():
    """The released file: 8192 tokens, n_hid 256, two blocks a group; 53.8 million parameters, 215 MB in float32."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DalleTokenizer().parameters())
    blocks = 0
    for n_in, n_out in [(256, 256)] * 2 + [
        (256, 512),
        (512, 512),
        (512, 1024),
        (1024, 1024),
        (1024, 2048),
        (2048, 2048),
    ]:
        h = n_out // 4
        blocks += (n_in + 2 * h) * h * 9 + 3 * h + h * n_out + n_out + (n_in != n_out) * (n_in + 1) * n_out
    assert parameters == 3 * 256 * 49 + 256 + blocks + 2048 * 8192 + 8192
    assert parameters == 53_786_240


def test_tokens_of_openais_stand_for_patches_of_any_size():
    tokenizer = DalleTokenizer(hidden=16, vocab_size=8)
    assert tokenizer.view_size((224, 224), 16) == (112, 112)
    assert tokenizer.view_size((448, 224), 14) == (256, 128)


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "encoder.pkl"
    torch.save({"w": torch.ones(1), "evil": Evil()}, path)
    with pytest.raises(UserError, match=r"encoder\.pkl: cannot be read safely.*state_dict\(\)"):
        load_tokenizer(path)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="cannot be read safely"):
        read_pickled_module(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"encoder\.pkl"):
        load_tokenizer(path)
    assert capsys.readouterr().out == ""


def test_only_the_encoders_classes_are_let_in():
    assert all(name.startswith(("dall_e.", "torch.nn.modules.")) for name in CLASSES)


def test_damaged_files_are_refused(openai_file, tmp_path):
    path, state = openai_file
    (tmp_path / "cut.pkl").write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cut\.pkl"):
        load_tokenizer(tmp_path / "cut.pkl")
    torch.save({key: value for key, value in state.items() if "conv_2.w" not in key}, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"less\.pt: does not fit OpenAI's dVAE.*conv_2\.w"):
        load_tokenizer(tmp_path / "less.pt")
    torch.save(state | {"blocks.input.b": torch.full((16,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"nan\.pt: blocks\.input\.b holds NaN"):
        load_tokenizer(tmp_path / "nan.pt")
    torch.save({"head.weight": torch.ones(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: no encoder of OpenAI's dVAE"):
        load_tokenizer(tmp_path / "other.pt")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: KMeansTokenizer(torch.rand(6, 3 * 64), patch_size=8),
        lambda: DVAETokenizer(vocab_size=6, patch_size=8, width=8, blocks=1),
        lambda: DalleTokenizer(hidden=16, blocks=1, vocab_size=6),
    ],
    ids=["kmeans", "dvae", "dalle"],
)
def test_a_tokenizer_comes_back_from_its_file_and_from_the_runs_folder(tokenizer, tmp_path):
    tokenizer, images = tokenizer(), photos()
    save_tokenizer(tokenizer, tmp_path / FILE)
    for place in (tmp_path, tmp_path / FILE):
        loaded = load_tokenizer(place)
        assert (loaded.kind, loaded.vocab_size, loaded.patch_size) == (tokenizer.kind, 6, 8)
        assert torch.equal(loaded(images), tokenizer(images))
        assert not loaded.training


def test_a_tokenizer_of_another_grid_is_refused():
    with pytest.raises(UserError, match=r"the tokenizer dvae has patches of 8 pixels and the encoder of 16"):
        DVAETokenizer(vocab_size=4, patch_size=8, width=8).view_size((64, 64), 16)
    assert DVAETokenizer(vocab_size=4, patch_size=8, width=8).view_size((64, 32), 8) == (64, 32)


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file"):
        load_tokenizer(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"a folder with neither"):
        load_tokenizer(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(UserError, match=r"broken\.safetensors: damaged"):
        load_tokenizer(tmp_path / "broken.safetensors")


def test_ids_do_not_depend_on_autocast():
    images = photos()
    tokenizer = DVAETokenizer(vocab_size=64, patch_size=8, width=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = tokenizer(images)
    assert torch.equal(half, tokenizer(images))


@pytest.mark.parametrize("kind", ["kmeans", "dvae"])
@pytest.mark.parametrize(
    "facts",
    [
        None, "", "{", "[" * 100_000, "5", "{}", '{"patch_size": 8}', '{"kind": "x"}', '{"kind": []}', "KIND",
        "KIND patch_size null", "KIND patch_size 0", "KIND patch_size -8", "KIND patch_size 9", "KIND patch_size 8.0",
        "KIND patch_size true", 'KIND patch_size "8"', "KIND width 1000000000000", "KIND x 1",
    ],
)  # fmt: skip
def test_a_file_whose_facts_do_not_fit_its_tensors_is_refused(kind, facts, tmp_path):
    made = KMeansTokenizer(torch.rand(4, 192), patch_size=8) if kind == "kmeans" else small_dvae()
    about = {"kind": made.kind, **made.facts()}
    if facts is not None and facts.startswith("KIND"):
        _, *pair = facts.split()
        about = about | {pair[0]: json.loads(pair[1])} if pair else {"kind": kind}
        facts = json.dumps(about)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(save(made.tensors(), {} if facts is None else {"mae_transfer_tokenizer": facts}))
    with pytest.raises(UserError, match=r"odd\.safetensors: ") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda t: t[..., :-1], lambda t: t[None], lambda t: t[:0], lambda t: t.int()])
@pytest.mark.parametrize("kind", ["kmeans", "dvae"])
def test_a_file_whose_tensors_do_not_fit_is_refused(kind, change, tmp_path):
    made = KMeansTokenizer(torch.rand(4, 192), patch_size=8) if kind == "kmeans" else small_dvae()
    for name, tensor in made.tensors().items():
        tensors = made.tensors() | {name: change(tensor).contiguous()}
        path = tmp_path / "odd.safetensors"
        facts = json.dumps({"kind": kind, **made.facts()})
        path.write_bytes(save(tensors, {"mae_transfer_tokenizer": facts}))
        with pytest.raises(UserError, match=r"odd\.safetensors: damaged") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)


def small_dvae():
    return DVAETokenizer(vocab_size=4, patch_size=8, width=8, blocks=1)
