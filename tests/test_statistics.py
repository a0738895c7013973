"""Intervals and paired tests, against what can be counted by hand or in full."""

import math
from itertools import product

import numpy as np
import pytest
from vis4mer.decode.judging.statistics import (
    SeedStatistics,
    bootstrap_interval,
    mcnemar,
    paired_test,
)


def named(values):
    return dict(enumerate(map(float, values)))


def all_resamples(values):
    """Every one of the N^N resamples of N values: their means, sorted."""
    return np.sort([np.mean(drawn) for drawn in product(values, repeat=len(values))])


def all_sign_flips(differences):
    observed = abs(sum(differences))
    signs = list(product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(each, differences, strict=True))) for each in signs]
    return sum(total >= observed - 1e-9 for total in sums) / len(signs)


@pytest.mark.parametrize("values", [[0, 1, 1, 0, 1, 1], [0.1, 2.5, 0.3, 0.9, 4.0, 1.1]])
def test_the_interval_is_that_of_all_resamples(values):
    interval = bootstrap_interval(values, resamples=40_000)
    low, high = np.quantile(all_resamples(values), [0.025, 0.975])  # of 6^6 = 46,656
    spread = max(values) - min(values)
    assert interval.low == pytest.approx(low, abs=0.02 * spread)
    assert interval.high == pytest.approx(high, abs=0.02 * spread)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    """24 of 42 right: resampled counts are binomial, and its quantiles can be summed up exactly."""
    n, k = 42, 24
    mass = [math.comb(n, i) * (k / n) ** i * (1 - k / n) ** (n - i) for i in range(n + 1)]
    quantiles = [int(np.searchsorted(np.cumsum(mass), q)) / n for q in (0.025, 0.975)]
    interval = bootstrap_interval([1] * k + [0] * (n - k))
    assert [interval.low, interval.high] == pytest.approx(quantiles, abs=1e-9)


def test_an_interval_is_repeatable_and_knows_the_degenerate_cases():
    values = np.random.default_rng(1).random(3000)
    assert bootstrap_interval(values, resamples=500) == bootstrap_interval(values, resamples=500)
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([3.5]) is None
    assert bootstrap_interval([0.0, 1.0, 0.0, 1.0]) is None  # too few
    assert bootstrap_interval([1.0] * 40) is None  # nothing to resample
    assert bootstrap_interval([0.0, 1.0, 0.0, 1.0, 1.0]) is not None


def test_seeds_have_a_sample_deviation_and_one_seed_has_none():
    seeds = SeedStatistics.of([0.5, 0.6, 0.7])
    assert seeds.mean == pytest.approx(0.6)
    assert seeds.std == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert SeedStatistics.of([0.4]) == SeedStatistics(values=(0.4,), mean=0.4, std=None)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 · 1/2
        (5, 0, 2 / 32),
        (5, 1, 2 * (1 + 6) / 64),
        (3, 3, 1.0),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (2000, 0, 0.0),  # no overflow
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p_value):
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar(only_second, only_first) == pytest.approx(p_value)


def test_right_and_wrong_are_compared_on_the_videos_that_both_judged():
    first = named([1, 1, 1, 1, 0, 1, 0]) | {"only here": 1.0}
    second = named([1, 0, 0, 0, 1, 1, 0]) | {"only there": 0.0}
    test = paired_test(first, second)
    assert (test.num_videos, test.num_differ, test.method) == (7, 4, "exact McNemar")
    assert test.difference == pytest.approx(2 / 7)
    assert test.p_value == pytest.approx(2 * (1 + 4) / 16)  # 3 against 1
    assert -1 <= test.interval.low < 2 / 7 < test.interval.high <= 1
    mirrored = paired_test(second, first)
    assert (mirrored.difference, mirrored.p_value) == (-test.difference, test.p_value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1.0, 4.0, 0.25, 2.0, 0.1], [0.5, 1.0, 0.75, 0.2, 0.1]),  # squared errors
        ([1, 2 / 3, 1 / 3, 1, 1], [1 / 3, 1 / 3, 2 / 3, 0, 1]),  # means over three seeds
        ([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2]),  # equal but for the rounding
    ],
)
def test_sign_flips_are_all_counted(first, second):
    test = paired_test(named(first), named(second))
    differences = [a - b for a, b in zip(first, second, strict=True) if abs(a - b) > 1e-9]
    assert test.method == "exact sign flips"
    assert test.num_differ == len(differences)
    assert test.p_value == pytest.approx(all_sign_flips(differences))


@pytest.mark.parametrize("right", [0, 6, 14])
def test_drawn_sign_flips_come_near_the_exact_test(right):
    """Means over two seeds of 60 videos: in halves, so that all 2^M sums can be counted."""
    halves = np.random.default_rng(3).integers(0, 3, size=(2, 60))
    halves[:, :right] = [[2], [0]]
    test = paired_test(named(halves[0] / 2), named(halves[1] / 2))
    differences = halves[0] - halves[1]
    counts = {0: 1}
    for d in differences[differences != 0].tolist():
        flipped: dict[int, int] = {}
        for total, count in counts.items():
            for sign in (1, -1):
                flipped[total + sign * d] = flipped.get(total + sign * d, 0) + count
        counts = flipped
    as_large = sum(n for total, n in counts.items() if abs(total) >= abs(differences.sum()))
    assert test.method == "20,000 drawn sign flips"
    assert test.p_value == pytest.approx(as_large / sum(counts.values()), abs=0.015)


def test_a_drawn_p_value_is_never_zero():
    test = paired_test(named(range(100, 140)), named([0.5] * 40))
    assert test.p_value == pytest.approx(1 / 20_001)


def test_nothing_in_common_is_no_test():
    assert paired_test({"a": 1.0}, {"b": 1.0}) is None
    same = paired_test(named([1, 0]), named([1, 0]))
    assert (same.p_value, same.num_differ, same.difference) == (1.0, 0, 0.0)
