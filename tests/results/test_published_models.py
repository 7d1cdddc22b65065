"""The list of published models: whole, of backbones and tasks that there are, with the settings of a trained model."""

import re

import numpy as np
import pytest
import timm
from scipy.stats import binom

from mae_transfer.config.overrides import leaf_keys
from mae_transfer.results.published_models import PublishedModel, read_published_models
from mae_transfer.results.statistics import wilson_interval
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import config_class, task_card

MODELS = read_published_models()


def test_each_can_be_asked_for() -> None:
    for name, model in MODELS.items():
        card = task_card(model.task)
        assert card.benchmark is not None, name
        assert model.metrics.keys() <= {report["key"] for report in card.metrics}, name
        assert all(0 < value < 100 for value in model.metrics.values()), name
        assert model.settings.keys() <= set(leaf_keys(config_class(card, card.protocol("trained")))), name
        timms = model.backbone.removeprefix("timm:")
        if timms == model.backbone:
            resolve_config(model.task, model.backbone, protocol="trained", overrides=model.settings)
        else:
            assert timms in timm.list_models(pretrained=model.file is None), name
        assert (model.file is None) == (model.url is None), name
        assert (model.classifier is None) == (model.classifier_url is None), name
        for file, url in ((model.file, model.url), (model.classifier, model.classifier_url)):
            assert url is None or url.endswith(f"/{file}"), name


def test_hashes_in_the_names_of_files_are_those_of_the_list() -> None:
    """torch.hub's convention: -<first digits of SHA-256>.pth."""
    found = 0
    for model in MODELS.values():
        named = re.search(r"-([0-9a-f]{8})\.pth$", model.file or "")
        if named:
            found += 1
            assert model.digest == f"sha256 {named[1]}"
    assert found == 11


def test_a_model_needs_a_source() -> None:
    given = MODELS["deit_b"].model_dump()
    assert PublishedModel.model_validate(given) == MODELS["deit_b"]
    with pytest.raises(ValueError, match="source"):
        PublishedModel.model_validate({**given, "source": ""})


@pytest.mark.parametrize("share", [0.3, 0.678, 0.83664, 0.9653])
@pytest.mark.parametrize("count", [200, 1000, 5000])
def test_an_interval_covers_the_whole_in_95_percent_of_draws(share: float, count: int) -> None:
    """Each image independent: exactly, by the binomial probabilities of all counts."""
    right = np.arange(count + 1)
    inside = np.zeros(count + 1, dtype=bool)
    for k in right[np.abs(right / count - share) < 0.2].tolist():
        interval = wilson_interval(k / count, count)
        inside[k] = interval.low <= share <= interval.high
    assert 0.93 <= binom.pmf(right, count, share)[inside].sum() <= 0.97


@pytest.mark.parametrize("count", [1000, 10_000, 40_000])
def test_an_interval_of_a_part_of_the_benchmark_covers_the_whole_of_it(count: int) -> None:
    """Parts of 50000 images drawn without replacement."""
    whole, right = 50_000, 41_832
    rng = np.random.default_rng(0)
    draws = rng.hypergeometric(right, whole - right, count, size=4000)
    covered = 0
    for k in draws.tolist():
        interval = wilson_interval(k / count, count, whole)
        covered += interval.low <= right / whole <= interval.high
    assert 0.93 <= covered / len(draws) <= 0.97
