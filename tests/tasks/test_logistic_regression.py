"""The regression of the probes against scikit-learn's, on features like an encoder's: correlated, off the origin."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from mae_transfer.tasks.logistic_regression import Fitted, Regression


def clouds(classes: int, count: int = 200, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Features whose standard deviations span five powers of ten, and labels, of which the first is half."""
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.5, count) - 1, classes - 1)
    mixed = rng.normal(size=(width, width)) * np.logspace(0, -5, width)[:, None]
    return (rng.normal(size=(classes, width))[labels] + 2 * rng.normal(size=(count, width))) @ mixed + 3, labels


def probabilities(fitted: Fitted, features: np.ndarray) -> np.ndarray:
    return torch.from_numpy(features @ fitted.weight.T + fitted.bias).softmax(1).numpy()


@pytest.mark.reference
@pytest.mark.parametrize("c", [1e-4, 0.1, 10])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_minimiser_is_scikit_learns(classes: int, c: float) -> None:
    features, labels = clouds(classes)
    named = 2 * labels + 1  # classes without an image between and after them
    regression = Regression(features, named, 2 * classes + 2)
    fitted = regression.fit(c, 1000, 1e-8)
    exact = LogisticRegression(C=c, solver="newton-cg", tol=1e-9, max_iter=1000).fit(features, named)
    assert fitted.converged
    assert_allclose(probabilities(fitted, features)[:, exact.classes_], exact.predict_proba(features), atol=2e-5)
    assert np.isneginf(np.delete(fitted.bias, exact.classes_)).all()
    assert not np.delete(fitted.weight, exact.classes_, 0).any()
    usual = Regression(features.astype(np.float32), named, 2 * classes + 2).fit(c, 1000, 1e-4)
    assert usual.converged
    assert_allclose(probabilities(usual, features)[:, exact.classes_], exact.predict_proba(features), atol=3e-3)


@pytest.mark.reference
@pytest.mark.parametrize("c", [1e3, 1e5])
def test_classes_that_no_image_confuses_are_fitted_to_the_end(c: float) -> None:
    """The minimum is near zero there, and so is the gradient long before it."""
    rng = np.random.default_rng(1)
    scales, labels = np.logspace(0, -1.5, 96), rng.integers(0, 5, 120)
    features = (rng.normal(size=(5, 96))[labels] / 3 + rng.normal(size=(120, 96))) * scales
    new = rng.normal(size=(1000, 96)) * scales
    exact = LogisticRegression(C=c, solver="newton-cg", tol=1e-10, max_iter=1000).fit(features, labels)
    fitted = Regression(features.astype(np.float32), labels, 5).fit(c, 1000, 1e-4)
    assert fitted.converged
    assert fitted.top1(new, exact.predict(new)) > 97


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(6_000, 300)).astype(np.float32), rng.integers(0, 300, 6_000)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(Regression(features, labels, 300).fit(1.0, 5, 1e-12))
    assert found[0].weight.any()
    assert (found[0].weight == found[1].weight).all()


def test_the_gradient_is_zero_at_the_minimiser() -> None:
    features, labels = (torch.from_numpy(x) for x in clouds(4))
    fitted = Regression(features.numpy(), labels.numpy(), 4).fit(0.5, 1000, 1e-9)
    weight, bias = (torch.from_numpy(x).requires_grad_() for x in (fitted.weight, fitted.bias))
    loss = nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
    (0.5 * loss + (weight**2).sum() / 2).backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-5


def test_correlated_features_take_few_steps_and_no_fit_hangs_on_another() -> None:
    features, labels = clouds(5)
    regression = Regression(features, labels, 5)
    first = regression.fit(1.0, 60, 1e-4)
    assert first.converged
    with pytest.warns(ConvergenceWarning):
        LogisticRegression(C=1.0, max_iter=240).fit(features, labels)
    assert not regression.fit(100.0, 3, 1e-4).converged
    again = regression.fit(1.0, 60, 1e-4)
    assert np.array_equal(first.weight, again.weight)


def test_a_strength_without_bound_stays_finite() -> None:
    features, labels = clouds(3)
    for c in (1e-300, 1e300):
        fitted = Regression(features.astype(np.float32), labels, 3).fit(c, 50, 1e-4)
        assert np.isfinite(fitted.weight).all()
        assert np.isfinite(fitted.bias).all()
