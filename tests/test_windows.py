"""Windows against the definition: frame k stands for k / fps, and everything is half-open."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from vis4mer.store.tasks import TaskRow
from vis4mer.store.windows import (
    Window,
    evaluation_windows,
    first_frame_at,
    frames_of_extent,
    random_window,
    spread_frames,
    window_length,
)


def row(start=None, end=None):
    return TaskRow(id="a", split="train", label=0, start_seconds=start, end_seconds=end)


@pytest.mark.parametrize("fps", [1, 2, 10, Fraction(24000, 1001), Fraction(1, 2)])
@pytest.mark.parametrize("num_frames", [1, 7, 60])
def test_extents_hold_the_frames_inside_them(fps, num_frames):
    tenths = [None, *(Fraction(k, 10) for k in (0, 1, 5, 10, 15, 40, 59, 60, 100, 600, 601))]
    for start in tenths:
        for end in tenths:
            if end is not None and end <= (start or 0):
                continue
            inside = [
                k
                for k in range(num_frames)
                if (start or 0) <= Fraction(k) / fps and (end is None or Fraction(k) / fps < end)
            ]
            found = frames_of_extent(
                row(start and float(start), end and float(end)),
                num_frames=num_frames,
                fps=float(fps),
            )
            assert list(range(found.start, found.stop) if found else []) == inside


def test_floats_do_not_move_a_boundary():
    """0.1 · k has no exact float, and 3 · 0.1 · 10 is more than 3."""
    for k in range(1000):
        assert first_frame_at(k * 0.1, fps=10) == k
        assert first_frame_at(k / 29.97, fps=29.97) == k
    assert first_frame_at(1e9, fps=1000) == 10**12


def test_windows_at_every_stride_are_those_that_fit():
    for num_frames in (1, 5, 10, 11, 33):
        for start in (0, 3):
            for length in (1, 10, 11):
                for stride in (1, 3, 10, 50):
                    extent = Window(start=start, stop=start + num_frames)
                    fit = [
                        Window(start=s, stop=s + length)
                        for s in range(start, extent.stop)
                        if (s - start) % stride == 0 and s + length <= extent.stop
                    ]
                    found = evaluation_windows(extent, length=length, stride=stride)
                    assert found == (fit or [extent])


def test_random_windows_are_uniform_and_a_function_of_seed_epoch_and_video():
    extent = Window(start=100, stop=110)
    starts = Counter(
        random_window(extent, length=4, seed=0, epoch=epoch, draw=f"v{i}").start
        for epoch in range(70)
        for i in range(100)
    )
    assert set(starts) == set(range(100, 107))
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in starts.values())
    once = [random_window(extent, length=4, seed=1, epoch=2, draw="v") for _ in range(3)]
    assert len(set(once)) == 1
    for change in ({"seed": 9}, {"epoch": 9}, {"draw": "w"}):
        drawn = {
            random_window(
                Window(start=0, stop=10**9), length=4, **({"seed": 1, "epoch": 2, "draw": "v"} | c)
            )
            for c in ({}, change)
        }
        assert len(drawn) == 2


def test_random_windows_of_known_draws_never_change():
    """A run that is resumed by a later version draws the same windows."""
    extent = Window(start=0, stop=1000)
    drawn = [
        random_window(extent, length=60, seed=0, epoch=epoch, draw="clip.mp4").start
        for epoch in range(3)
    ]
    # BLAKE2b-64 of "seed\0epoch\0draw", little-endian, modulo 941 choices; by hashlib alone.
    assert drawn == [113, 866, 502]


def test_a_short_extent_is_one_window():
    short = Window(start=5, stop=8)
    assert random_window(short, length=60, seed=0, epoch=0, draw="a") == short
    assert evaluation_windows(short, length=60, stride=60) == [short]


def test_spread_frames_are_evenly_spaced():
    full = Window(start=10, stop=70)
    assert spread_frames(full, length=60, frames=60) == list(range(10, 70))
    assert spread_frames(full, length=60, frames=30) == list(range(10, 70, 2))
    assert spread_frames(full, length=60, frames=1) == [10]
    cut = Window(start=10, stop=15)
    assert spread_frames(cut, length=60, frames=30) == [10, 12, 14]
    for frames in range(1, 61):
        spread = spread_frames(full, length=60, frames=frames)
        assert len(set(spread)) == frames
        steps = {b - a for a, b in itertools.pairwise(spread)}
        assert not steps or max(steps) - min(steps) <= 1
    for frames in (0, 61):
        with pytest.raises(ValueError, match="cannot give"):
            spread_frames(full, length=60, frames=frames)


def test_window_lengths():
    assert window_length(60, fps=1) == 60
    assert window_length(60, fps=0.5) == 30
    assert window_length(0.001, fps=1) == 1
    assert window_length(10, fps=23.976) == 240


def test_windows_that_cannot_be():
    for start, stop in ((-1, 3), (3, 3), (4, 3)):
        with pytest.raises(ValueError, match="0 <= start < stop"):
            Window(start=start, stop=stop)
    assert Window(start=2, stop=5).num_frames == 3
    for arguments in ({"length": 0, "stride": 1}, {"length": 1, "stride": 0}):
        with pytest.raises(ValueError, match="at least 1 frame"):
            evaluation_windows(Window(start=0, stop=5), **arguments)
