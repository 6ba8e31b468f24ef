"""Summaries of runs: medians with their intervals, and the scalability laws fitted to them.

                    rate * n                        rate:  what one worker gets done in a second (lambda)
X(n) = -----------------------------------------    sigma: share of the work that runs on one worker at a time
        1 + sigma * (n - 1) + kappa * n * (n - 1)   kappa: cost of coordination for each pair of workers

This is Gunther's Universal Scalability Law ("A General Theory of Computational Scalability Based on Rational
Functions", arXiv:0808.1431). Without kappa it is Amdahl's: sigma is his serial share s, for n / (1 + s * (n - 1)) is
1 / (s + (1 - s) / n). The reciprocal n / X(n) is linear in (1, sigma, kappa) / rate, so a first fit is a linear
regression. Gauss-Newton then minimises the squares in X itself, the measured quantity.
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
# The free parameters of (1, sigma, kappa) / rate, one in each column. The others are at a bound: sigma at 0 or at 1.
AMDAHL = tuple(np.array(face, float).T for face in ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]))
USL = AMDAHL + tuple(np.hstack([face, [[0], [0], [1]]]) for face in AMDAHL)


# --- intervals -------------------------------------------------------------------------------------------------------


def interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median: resample the values with replacement RESAMPLES times, and take
    the range of the middle 95 % of the medians. For 5 values it is about the smallest to the largest: 5 values cannot
    tell more.
    """
    known = np.asarray(values, float)
    drawn = np.random.default_rng(seed).choice(known, (RESAMPLES, len(known)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """Return a row for each group, sorted: the number of runs, the median of `value`, and its interval from `low` to
    `high`."""
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
    """Return the law without kappa, 0 <= sigma <= 1, that fits the throughputs (or speed-ups) x with n workers best.
    Raise ValueError if a number is not allowed, or there are too few different n."""
    return _fit(n, x, AMDAHL, parameters=2)


def fit_usl(n: Iterable[float], x: Iterable[float]) -> Law:
    """Return the law with 0 <= sigma <= 1 and kappa >= 0 that fits the throughputs x with n workers best. Raise
    ValueError if a number is not allowed, or there are too few different n."""
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
    """Take a Gauss-Newton step: near z = n / X, X is a line of slope -n / z**2, which reaches x at another z."""
    z = n / law(n)
    return _nearest(n, 2 * z - x * z * z / n, n / (z * z), faces, law)


def _nearest(n: Floats, z: Floats, weights: Floats, faces: tuple[Floats, ...], fallback: Law | None = None) -> Law:
    """Solve z = (1, n - 1, n * (n - 1)) . c by linear least squares within the bounds. The best c is inside the allowed
    region or on one of its few faces, so all of them are tried."""
    terms = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1) * weights[:, None]
    found = [face @ np.linalg.lstsq(terms @ face, z * weights, rcond=None)[0] for face in faces]
    allowed = [c for c in found if c[0] > 0 and 0 <= c[1] <= c[0] and c[2] >= 0]
    if not allowed and fallback is not None:
        return fallback
    c = min(allowed, key=lambda c: float(np.square(terms @ c - z * weights).sum()))
    return Law(float(1 / c[0]), float(c[1] / c[0]), float(c[2] / c[0]))
