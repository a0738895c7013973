"""How sure a figure over a few videos is: bootstrap intervals and paired tests.

Everything is over videos, since windows of a video are no independent evidence, and takes what each
video counts: 1 or 0 for right or wrong, or its squared error. A figure is the mean of that. Plain
float64 NumPy, seeded: the same numbers in, the same interval out. Knows no task and no decoder.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)  # what names a video
LEVEL = 0.95
MAX_EXACT = 16  # differing videos: up to 2^16 sign patterns are all counted
SIGN_DRAWS = 20_000
_MAX_CELLS = 1 << 20  # numbers drawn at once: 8 MB
MIN_VIDEOS = 5  # of fewer there is no interval
_TINY = 1e-9  # sums of the same numbers in another order are equal


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval, both ends included."""

    low: float
    high: float

    def to_json(self) -> list[float]:
        return [self.low, self.high]


@dataclass(frozen=True, kw_only=True)
class SeedStatistics:
    """A figure over seeds. std: sample standard deviation (n - 1), None for a single seed."""

    values: tuple[float, ...]
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedStatistics:
        """Of at least one value."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(values=tuple(values), mean=float(np.mean(values)), std=std)

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Two decoders on the same videos; see `paired_test`.

    num_videos: judged by both. num_differ: those that count differently for the two.
    difference: mean of the first minus mean of the second. p_value: two-sided, not corrected for
    other tests made beside this one.
    """

    num_videos: int
    num_differ: int
    difference: float
    interval: Interval | None
    p_value: float
    method: str

    def to_json(self) -> dict[str, Any]:
        return {
            "num_videos": self.num_videos,
            "num_differ": self.num_differ,
            "difference": self.difference,
            "interval": None if self.interval is None else self.interval.to_json(),
            "p_value": self.p_value,
            "method": self.method,
        }


def bootstrap_interval(
    per_video: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap of the mean of `per_video` (N,): N videos are drawn with replacement.

    None with fewer than MIN_VIDEOS videos, and where all count the same: a sample without a single
    mistake cannot show how often mistakes occur.
    """
    values = np.asarray(per_video, dtype=np.float64)  # N
    if values.size < MIN_VIDEOS or np.ptp(values) <= _TINY:
        return None
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[random.integers(values.size, size=(count, values.size))].mean(axis=1)  # R
            for count in _blocks(resamples, values.size)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def paired_test(
    a: Mapping[Key, float], b: Mapping[Key, float], *, seed: int = 0
) -> PairedTest | None:
    """Compare what each video counts for two decoders, over the videos that both judged.

    Right or wrong: McNemar's exact test, which asks whether the videos that only one of them has
    right fall to both alike. Anything else, squared errors or means over seeds: under the null
    hypothesis every video's difference could as well have the other sign, so the p-value is the
    share of sign patterns whose mean difference is at least as large; all of them are counted up
    to 2^16, else 20,000 are drawn. None where no video was judged by both.
    """
    shared = [key for key in a if key in b]
    first = np.array([a[key] for key in shared])  # N
    second = np.array([b[key] for key in shared])  # N
    differences = first - second  # N
    if not shared:
        return None
    differing = differences[np.abs(differences) > _TINY]  # M
    p_value, method = _p_value(first, second, differing, seed=seed)
    return PairedTest(
        num_videos=len(shared),
        num_differ=len(differing),
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences, seed=seed),
        p_value=p_value,
        method=method,
    )


def _p_value(first: Array, second: Array, differing: Array, *, seed: int) -> tuple[float, str]:
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        return mcnemar(int((differing > 0).sum()), int((differing < 0).sum())), "exact McNemar"
    if len(differing) <= MAX_EXACT:
        return _all_sign_flips(differing), "exact sign flips"
    return _drawn_sign_flips(differing, seed=seed), f"{SIGN_DRAWS:,} drawn sign flips"


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: videos that only one of two has right, as throws of a fair coin."""
    total = only_first + only_second
    tail = sum(math.comb(total, i) for i in range(min(only_first, only_second) + 1))
    p_value: float = 2 * tail / 2**total
    return min(1.0, p_value)


def _all_sign_flips(differences: Array) -> float:
    """Over all 2^M patterns of signs for M differences, one of which is what was observed."""
    bits = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))  # 2^M M
    sums = (1.0 - 2.0 * (bits & 1)) @ differences  # 2^M
    return float(_as_large(sums, differences).mean())


def _drawn_sign_flips(differences: Array, *, seed: int) -> float:
    """Over drawn patterns; the observed one is counted among them, so that p is never 0."""
    random = np.random.default_rng(seed)
    as_large = 0
    for count in _blocks(SIGN_DRAWS, len(differences)):
        signs = random.integers(2, size=(count, len(differences))) * 2.0 - 1.0  # R M
        as_large += int(_as_large(signs @ differences, differences).sum())
    return (1 + as_large) / (1 + SIGN_DRAWS)


def _as_large(sums: Array, differences: Array) -> NDArray[np.bool_]:
    """Which sums are at least as far from zero as the observed one."""
    rounding = _TINY * np.abs(differences).sum()
    return np.abs(sums) >= abs(differences.sum()) - rounding  # type: ignore[no-any-return]


def _blocks(total: int, width: int) -> list[int]:
    """`total` rows of `width` numbers in blocks that stay small in memory."""
    size = max(1, _MAX_CELLS // max(1, width))
    return [min(size, total - start) for start in range(0, total, size)]
