"""Nearest neighbours against scikit-learn, attentive pooling against its formula, and runs."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from mae_transfer.backbones.load import load_backbone
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.runs.api import run_transfer
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.series import run_series
from mae_transfer.tasks.classification.evaluate import flag_batch
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.protocols import knn, logreg
from mae_transfer.tasks.classification.protocols.attentive import Attentive
from mae_transfer.tasks.classification.protocols.knn import NearestNeighbours

SMALL = ("data.image_size=32", "data.workers=0")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_classification(tmp_path_factory.mktemp("set") / "set", "folder", classes=3, train_images=8)


def build(protocol, *overrides, num_classes=4):
    torch.manual_seed(0)
    config = load_config("folder", "random_vit_nano", protocol=protocol, overrides=[*SMALL, *overrides])
    made = {"knn": NearestNeighbours, "attentive": Attentive}[protocol](config)
    encoder = load_backbone("random_vit_nano", **made.encoder_options())
    return made.build_model(encoder, num_classes).eval()


def clouds(count, seed, classes=4, width=64):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, width, generator=generator), labels


def test_votes_are_scikit_learns():
    model = build("knn", "probe.k=[3,10,25]")
    features, labels = clouds(200, 0)
    queries, _ = clouds(50, 1)
    model.remember(lambda: features[:, None, None].split(64), labels)
    with torch.no_grad():
        scores = model({"features": queries[:, None, None]})
    assert scores.shape == (3, 50, 4)
    unit, unit_queries = (x / x.norm(dim=1, keepdim=True) for x in (features.double(), queries.double()))
    for k, ours in zip((3, 10, 25), scores, strict=True):
        # of vectors of length one, |a - b|^2 = 2 - 2 cos
        reference = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        expected = reference.fit(unit.numpy(), labels.numpy()).predict_proba(unit_queries.numpy())
        torch.testing.assert_close(ours.clamp(min=0).double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-5)
        assert torch.equal(ours < 0, torch.from_numpy(expected == 0))


@pytest.mark.parametrize("classes", [2, 5, 6])
def test_classes_without_a_vote_fill_the_top_five(classes):
    model = build("knn", "probe.k=[1]", num_classes=classes)
    features, labels = clouds(40, 0, classes=classes)
    model.remember(lambda: features[:, None, None].split(64), labels)
    queries, _ = clouds(30, 1, classes=classes)
    with torch.no_grad():
        scores = model({"features": queries[:, None, None]})
    unit, unit_queries = (x / x.norm(dim=1, keepdim=True) for x in (features, queries))
    voted = labels[(unit_queries @ unit.T).argmax(1)]
    for label in range(classes):
        _, first, among_five = flag_batch(scores, torch.full((30,), label))
        assert torch.equal(first, voted == label)
        # with one neighbour four classes without a vote follow, the lowest numbers first
        expected = (voted == label) | (label < 4) | ((label == 4) & (voted < 4))
        assert torch.equal(among_five, expected)


@pytest.mark.parametrize("kept", [knn.KEPT_BYTES, 0])
def test_an_image_of_the_bank_is_no_neighbour_of_its_own(kept, monkeypatch):
    monkeypatch.setattr(knn, "KEPT_BYTES", kept)
    model = build("knn", "probe.k=[1]", "data.holdout=0.1")
    features, labels = torch.eye(4)[:, None, None].repeat(1, 1, 1, 16), torch.arange(4)
    features[3, 0, 0, 0] += 0.5  # the fourth is the first's nearest
    model.remember(lambda: features.split(3), labels)
    with torch.no_grad():
        with_itself = model({"features": features[:1]})
        without = model({"features": features[:1], "in_bank": torch.tensor([0])})
    assert with_itself.argmax(-1).item() == 0
    assert without.argmax(-1).item() == 3


def run(protocol, images, output, *overrides, **options):
    return run_transfer(
        "folder", "random_vit_nano", protocol=protocol, data=images, output=output, overrides=[*SMALL, *overrides],
        **options,
    )  # fmt: skip


def test_a_run_of_knn_and_its_evaluation_again(images, tmp_path, monkeypatch):
    record = run("knn", images, tmp_path / "run", "probe.k=[1,5,10]", "data.holdout=0.25")
    metrics = record["metrics"]
    assert {f"{kind}/k{k}" for kind in ("top1", "holdout_top1") for k in (1, 5, 10)} <= metrics.keys()
    held = {k: metrics[f"holdout_top1/k{k}"] for k in (1, 5, 10)}
    best = max(held, key=held.__getitem__)
    assert record["data"]["selected_head"] == f"k{best}"
    assert metrics["top1"] == metrics[f"top1/k{best}"]
    monkeypatch.setattr(knn, "KEPT_BYTES", 0)
    monkeypatch.setattr(knn, "PIECE", 5)
    in_pieces = run("knn", images, tmp_path / "pieces", "probe.k=[1,5,10]", "data.holdout=0.25")
    assert in_pieces["metrics"] == pytest.approx(metrics)
    assert record["steps"] == 0
    assert record["wall_seconds"] > 0
    assert not list((tmp_path / "run/checkpoints").iterdir())
    again = run("knn", images, tmp_path / "run", "probe.k=[1,5,10]", "data.holdout=0.25", eval_only=True)
    assert again["metrics"] == metrics
    fewer = run("knn", images, tmp_path / "fewer", "data.holdout=0.25", "probe.k=[10,200]")
    assert "top1/k200" not in fewer["metrics"]
    with pytest.raises(UserError, match="there are 23 training images to be neighbours"):
        run("knn", images, tmp_path / "none", "data.holdout=0.25", "probe.k=[200]")


def test_every_layer_of_one_pass_is_that_of_a_run_of_its_own(images, tmp_path, monkeypatch):
    seen = []
    original = FrozenFeatures.tokens

    def counted(self, batch):
        seen.append(len(batch["images"]))
        return original(self, batch)

    monkeypatch.setattr(FrozenFeatures, "tokens", counted)
    options = (
        *SMALL,
        "eval.pictures=0",
        "probe.pooling=[avg]",
        "data.holdout=0.25",
        "train.precision=fp32",
        "eval.crop_pct=1",
        "probe.k=[1,5]",
        "probe.c_count=2",
    )
    series = run_series(
        "folder", "random_vit_nano", protocol="knn,logreg", layers="1,3,7", data=images, output=tmp_path / "runs",
        overrides=options,
    )  # fmt: skip
    assert len(series) == 6
    assert sum(seen) == 24 + len(list((images / "val").rglob("*.JPEG"))), "every image once"
    assert len({record["settings_id"] for record in series}) == 6
    of_layer = {(r["settings"]["protocol"], r["settings"]["probe.layers"][0]): r for r in series}
    for protocol, layer in (("knn", 3), ("logreg", 1), ("knn", 7)):
        output = tmp_path / f"alone-{protocol}-{layer}"
        alone = run(protocol, images, output, *options, f"probe.layers=[{layer}]", allow_unread=True)
        assert alone["metrics"] == of_layer[protocol, layer]["metrics"]
        assert alone["settings_id"] == of_layer[protocol, layer]["settings_id"]
    last = run("knn", images, tmp_path / "last", *options, allow_unread=True)
    assert last["metrics"]["holdout_top1/k5"] == of_layer["knn", 7]["metrics"]["holdout_top1/k5"]
    assert "probe.layers" not in last["settings"], "records of earlier versions share cells with it"


def test_a_run_of_logreg_chooses_c_on_the_images_set_aside_and_fits_all(images, tmp_path, monkeypatch):
    sizes = []

    class Counted(logreg.Regression):
        def fit(self, *options):
            sizes.append(len(self.inputs))
            return super().fit(*options)

    monkeypatch.setattr(logreg, "Regression", Counted)
    record = run("logreg", images, tmp_path / "run", "data.holdout=0.25", "probe.c_count=3", "probe.c_powers=[-4,0]")
    assert sizes == [18, 18, 18, 24]
    held = {name: value for name, value in record["metrics"].items() if name.startswith("holdout_top1/")}
    assert set(held) == {"holdout_top1/C0.0001", "holdout_top1/C0.01", "holdout_top1/C1"}
    assert held[f"holdout_top1/{record['data']['selected_head']}"] == max(held.values())
    assert record["metrics"]["top1"] > record["data"]["blind"]
    assert record["steps"] == 0


def test_attentive_pooling_is_its_formula():
    model = build("attentive", "probe.queries=3", "probe.attention_heads=2")
    data = {"images": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)}
    pool = model.pool
    with torch.no_grad():
        nn.init.normal_(pool.mlp.fc2.weight)
        tokens = model.frozen.tokens(data)[0][:, 1:]
        query = pool.q(pool.latent).expand(2, -1, -1)
        key, value = pool.kv(tokens).chunk(2, dim=-1)
        pooled = []
        for part in range(2):
            s = slice(32 * part, 32 * part + 32)
            pooled.append((query[..., s] @ key[..., s].mT / 32**0.5).softmax(-1) @ value[..., s])
        x = pool.proj(torch.cat(pooled, -1))
        x = (x + pool.mlp(pool.norm(x))).mean(1)
        torch.testing.assert_close(model(data), model.head(x)[None], rtol=1e-4, atol=1e-5)


def test_attentive_probe_starts_as_v_jepas():
    """attentive_pooler.py: `AttentivePooler._init_weights` is a normal of 0.02, and zero biases, of its own layers; the
    `linear` of AttentiveClassifier is left as torch makes it, weights and biases uniform within 1 / sqrt(C)."""
    model = build("attentive", num_classes=200)
    layers = [layer for layer in model.pool.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pool.latent.std().item() == pytest.approx(0.02, rel=0.4)
    bound = 64**-0.5
    for values in (model.head.weight, model.head.bias):
        assert 0.95 * bound < values.abs().max().item() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_only_the_attentive_head_learns_and_does(images, tmp_path):
    model = build("attentive")
    data = {"images": torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), "labels": torch.arange(4)}
    model.train()(data)["loss_ce"].backward()
    assert all((p.grad is not None) == (not name.startswith("encoder.")) for name, p in model.named_parameters())
    record = run("attentive", images, tmp_path / "run", "train.global_batch=8", "optim.lr=1e-3", "schedule.epochs=8")
    assert record["history"][-1]["loss"] < 0.8 * record["history"][0]["loss"]


@pytest.mark.parametrize(
    ("protocol", "override", "message"),
    [
        ("knn", "probe.pooling=[cls,avg]", "knn reads one kind of feature"),
        ("knn", "data.holdout=0", "several k need images to choose by"),
        ("knn", "probe.layers=[8]", r"probe.layers=\[8\]: give ascending block numbers from 0 to 7"),
        ("linear", "probe.layers=[3]", "probe.layers: protocol=linear never reads it"),
        ("logreg", "probe.pooling=[cls,avg]", "logreg reads one kind of feature"),
        ("logreg", "data.holdout=0", "several C need images to choose by"),
        ("attentive", "probe.attention_heads=5", "probe.attention_heads=5 does not divide the 64 channels"),
        ("linear", "probe.lrs=[0.1,0.1]", "lrs .* names one twice"),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_written(images, tmp_path, protocol, override, message):
    batch = ["train.global_batch=8"] if protocol in ("attentive", "linear") else []
    with pytest.raises(UserError, match=message) as error:
        run(protocol, images, tmp_path / "run", override, *batch)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
