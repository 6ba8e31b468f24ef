"""From many numbers to a few: the median of runs with its interval, and the scalability laws fitted to them.

                    rate * n                        rate:  what one worker gets done in a second (lambda)
X(n) = -----------------------------------------    sigma: share of the work that only one can do at a time
        1 + sigma * (n - 1) + kappa * n * (n - 1)   kappa: what it costs each pair of workers to agree

This is Gunther's Universal Scalability Law ("A General Theory of Computational Scalability Based on Rational
Functions", arXiv:0808.1431). Without kappa it is Amdahl's: sigma is his serial share s, for n / (1 + s * (n - 1)) is
1 / (s + (1 - s) / n). Upside down, n / X(n) is linear in (1, sigma, kappa) / rate, and so a first fit is plain linear
regression. Gauss-Newton then makes it least squares in X itself, which is what one has measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
STEPS = 100  # of Gauss-Newton, at most; a handful is enough
# What is left free of (1, sigma, kappa) / rate: a column for each. The rest stands on its bound, sigma on 0 or on 1.
AMDAHL = tuple(np.array(face, float).T for face in ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]))
USL = AMDAHL + tuple(np.hstack([face, [[0], [0], [1]]]) for face in AMDAHL)


# --- intervals -------------------------------------------------------------------------------------------------------


def interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median: draws as many values, with replacement, many times, and looks where 95 %
    of the medians lie. Of 5 values it is about the smallest to the largest, and that is honest: no 5 values tell more.
    """
    known = np.asarray(values, float)
    drawn = np.random.default_rng(seed).choice(known, (RESAMPLES, len(known)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """A row for each group, sorted: how many runs, the median of `value`, and the interval from `low` to `high`."""
    by = [by] if isinstance(by, str) else [*by]
    rows = [
        (*group, len(values), float(values.median()), *interval(values)) for group, values in frame.groupby(by)[value]
    ]
    return pd.DataFrame(rows, columns=[*by, "runs", "median", "low", "high"])


# --- laws ------------------------------------------------------------------------------------------------------------


class Law(msgspec.Struct, frozen=True):
    """Throughput by number of workers: `law(n)`, for one n or many."""

    rate: float
    sigma: float = 0.0
    kappa: float = 0.0

    def __call__(self, n: ArrayLike) -> Floats:
        n = np.asarray(n, float)
        return np.asarray(self.rate * n / (1 + self.sigma * (n - 1) + self.kappa * n * (n - 1)))

    @property
    def peak(self) -> float:
        """The number of workers with the highest throughput; with more it falls. Infinite without kappa."""
        return max(1.0, math.sqrt((1 - self.sigma) / self.kappa)) if self.kappa else math.inf

    def __str__(self) -> str:
        return f"rate {self.rate:.4g}, sigma {self.sigma:.3f}, kappa {self.kappa:.2g}"


def fit_amdahl(n: Iterable[float], x: Iterable[float]) -> Law:
    """The law without kappa, 0 <= sigma <= 1, that comes nearest to throughputs (or speed-ups) x with n workers."""
    return _fit(n, x, AMDAHL, parameters=2)


def fit_usl(n: Iterable[float], x: Iterable[float]) -> Law:
    """The law with 0 <= sigma <= 1 and kappa >= 0 that comes nearest to throughputs x with n workers."""
    return _fit(n, x, USL, parameters=3)


def _fit(n: Iterable[float], x: Iterable[float], faces: tuple[Floats, ...], parameters: int) -> Law:
    n, x = np.array([*n], float), np.array([*x], float)
    _check(n, x, parameters)
    law = _nearest(n, n / x, x * x / n, faces)
    for _ in range(STEPS):
        better = _step(law, n, x, faces)
        if _misfit(better, n, x) >= _misfit(law, n, x):
            break
        law = better
    return law


def _check(n: Floats, x: Floats, parameters: int) -> None:
    if not (np.isfinite(x).all() and (x > 0).all() and (n >= 1).all()):
        raise ValueError(f"n is {n.tolist()} and x is {x.tolist()}; expected: n of 1 or more, x finite and above 0")
    if len(set(n.tolist())) < parameters:
        raise ValueError(
            f"there are {len(set(n.tolist()))} different n, {sorted(set(n.tolist()))}; the law has {parameters} "
            f"parameters: measure with at least as many numbers of workers, better twice as many"
        )


def _misfit(law: Law, n: Floats, x: Floats) -> float:
    return float(np.square(law(n) - x).sum())


def _step(law: Law, n: Floats, x: Floats, faces: tuple[Floats, ...]) -> Law:
    """Gauss-Newton: near z = n / X, X is a straight line of slope -n / z**2; along it, x is reached at another z."""
    z = n / law(n)
    return _nearest(n, 2 * z - x * z * z / n, n / (z * z), faces, law)


def _nearest(n: Floats, z: Floats, weights: Floats, faces: tuple[Floats, ...], fallback: Law | None = None) -> Law:
    """Linear least squares of z = (1, n - 1, n * (n - 1)) . c within the bounds. The best c lies inside, or on a face
    of what is allowed: there are few, so all are tried."""
    terms = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1) * weights[:, None]
    found = [face @ np.linalg.lstsq(terms @ face, z * weights, rcond=None)[0] for face in faces]
    allowed = [c for c in found if c[0] > 0 and 0 <= c[1] <= c[0] and c[2] >= 0]
    if not allowed and fallback is not None:
        return fallback
    c = min(allowed, key=lambda c: float(np.square(terms @ c - z * weights).sum()))
    return Law(float(1 / c[0]), float(c[1] / c[0]), float(c[2] / c[0]))
