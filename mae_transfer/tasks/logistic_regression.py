"""Logistic regression with scikit-learn's objective, C x sum of cross-entropies + |W|^2 / 2, in fewer steps.

L-BFGS on the weights themselves, as in scikit-learn, takes hundreds of steps, because features of an encoder are
correlated and classes are of unlike frequency. Here its coordinates are principal components of the features and of the
classes, each in units in which the objective is curved by one at W = 0: the same minimiser, and a stop that does not
depend on the features' scale. Every C begins at zero, so that a fit depends neither on other C nor on the process.

Threads take spans of the rows and BLAS has one thread: products of so few columns lose more by BLAS's own threads than
they gain. The sums have one order, whatever the number of threads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import numpy as np
from threadpoolctl import threadpool_limits

ROWS = 2048
"""Of the features, that are multiplied at once: they stay in the cache for the value and the gradient."""
SPANS = 16
"""Of the rows, that threads take."""
THREAD_BYTES = 2**30
"""What all threads may hold at once, about."""
MEMORY = 30
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True)
class Fitted:
    """A linear classifier of K classes: weight (K, D) and bias (K,) in float64. A class without images has -inf."""

    weight: np.ndarray
    bias: np.ndarray
    converged: bool

    def top1(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Percent."""
        return 100 * float(((features @ self.weight.T + self.bias).argmax(1) == labels).mean())


class Regression:
    """What the fits of several C share.

    Args:
        features: (n, D) in the precision of the matrix products, float32 or float64; sums are float64.
        labels: (n,) from 0 to num_classes - 1, of two classes at least.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
        from scipy.linalg import eigh  # here, as in `fit`: time that no other protocol should wait

        count, width = features.shape
        self.num_classes = num_classes
        self.present, self.labels = np.unique(labels, return_inverse=True)
        self.mean = features.mean(0, dtype=np.float64)
        self.inputs = np.ones((count, width + 1), features.dtype)  # the last for the bias

        def covariance(rows: slice) -> tuple[float, np.ndarray]:
            centred = features[rows] - self.mean
            return 0.0, centred.T @ centred / count

        def project(rows: slice) -> None:
            self.inputs[rows, :-1] = (features[rows] - self.mean) @ self.components

        shares = np.bincount(self.labels) / count
        with _threads(width * width) as pool:
            variances, self.components = eigh(_sum(pool, covariance, count)[1])
            list(pool.map(project, _blocks(count)))
            spread, mixtures = eigh(np.diag(shares) - np.outer(shares, shares))
        # Without the first, which adds the same to every class: at the minimum those sums are zero.
        self.mixtures = mixtures[:, 1:]
        self.curvature = np.outer(spread[1:], np.append(variances, 1)).clip(min=0)
        """Of the mean loss at W = 0 (K - 1, D + 1)."""

    def fit(self, c: float, max_iter: int, tolerance: float) -> Fitted:
        """Stops when no entry of the gradient of the objective over C n, in the coordinates above, exceeds `tolerance`
        times the objective, or `tolerance` if that is less, or at the precision of the features.

        Where a large C lets classes be told apart without an error the minimum is near zero, and a gradient that is
        small beside 1 is still as large as the loss.
        """
        from scipy.optimize import minimize

        count, width = self.inputs.shape
        rounding = np.finfo(self.inputs.dtype).eps
        penalty = np.full(width, 1 / (c * count))
        if len(self.present) == 2:
            penalty *= 2  # scikit-learn's is of the difference w of two classes, and |W|^2 = |w|^2 / 2
        penalty[-1] = 0
        curvature = self.curvature + penalty
        unit = 1 / np.sqrt(curvature.clip(min=rounding * curvature.max()))

        last = np.inf, np.inf  # value, largest entry of the gradient

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal last
            weight = point.reshape(unit.shape) * unit
            loss, gradient = self._loss(pool, self.mixtures @ weight)
            gradient = (self.mixtures.T @ gradient + penalty * weight) * unit
            last = loss + float((penalty * weight**2).sum()) / 2, float(abs(gradient).max())
            return last[0], gradient.ravel()

        def stop(_: np.ndarray) -> None:
            if last[1] <= tolerance * min(1, last[0]):
                raise StopIteration

        limits = {"maxiter": max_iter, "maxfun": 50 * max_iter, "maxls": 50, "maxcor": MEMORY}
        options = limits | {"gtol": 0, "ftol": rounding / 100}
        start = np.zeros(unit.size)
        with _threads(len(self.present) * (ROWS + 2 * width)) as pool:
            found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options, callback=stop)
            solution = self.mixtures @ (found.x.reshape(unit.shape) * unit)
            weight, bias = np.zeros((self.num_classes, width - 1)), np.full(self.num_classes, -np.inf)
            weight[self.present] = solution[:, :-1] @ self.components.T
            bias[self.present] = solution[:, -1] - weight[self.present] @ self.mean
        return Fitted(weight, bias, found.status != 1)  # 1: of max_iter

    def _loss(self, pool: ThreadPoolExecutor, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean cross-entropy and its gradient at the weight (classes present, D + 1) of `inputs`."""
        of_inputs, count = weight.T.astype(self.inputs.dtype), len(self.inputs)

        def of_rows(rows: slice) -> tuple[float, np.ndarray]:
            inputs, labels = self.inputs[rows], self.labels[rows]
            own = np.arange(len(labels)), labels
            scores = inputs @ of_inputs
            scores -= scores.max(1, keepdims=True)
            of_label = scores[own]
            np.exp(scores, out=scores)
            first = scores[own]
            scores[own] = 0  # what the label's class lacks is the sum of the others: 1 less what it has loses digits
            others = scores.sum(1)
            sums = others + first
            loss = (np.log1p(np.where(of_label == 0, others, sums - 1)) - of_label).sum(dtype=np.float64)
            scores /= sums[:, None]
            scores[own] = -others / sums
            return float(loss), (scores.T @ inputs).astype(np.float64)

        total, gradient = _sum(pool, of_rows, count)
        return total / count, gradient / count


@contextmanager
def _threads(numbers: int) -> Iterator[ThreadPoolExecutor]:
    """As many threads as BLAS has outside, fewer where each of them holds many numbers."""
    with threadpool_limits(1, "blas") as limits:
        most = max(1, THREAD_BYTES // (8 * numbers))
        with ThreadPoolExecutor(min(limits.get_original_num_threads()["blas"] or 1, SPANS, most)) as pool:
            yield pool


def _sum(
    pool: ThreadPoolExecutor, part: Callable[[slice], tuple[float, np.ndarray]], count: int
) -> tuple[float, np.ndarray]:
    """Of the two values of `part` over all rows."""
    blocks = list(_blocks(count))
    spans = [blocks[i * len(blocks) // SPANS : (i + 1) * len(blocks) // SPANS] for i in range(SPANS)]

    def add(total: tuple[float, np.ndarray], more: tuple[float, np.ndarray]) -> tuple[float, np.ndarray]:
        return total[0] + more[0], total[1] + more[1]

    return reduce(add, pool.map(lambda span: reduce(add, map(part, span)), filter(None, spans)))


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))
