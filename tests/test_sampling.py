"""Index arithmetic of sampling, against brute force on fractions and against drawn examples."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from vis4mer.extract.sampling import (
    Segment,
    TargetClock,
    end_of_last,
    exact_rate,
    frames_for_targets,
    is_reachable,
    plan_segments,
)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(1, (1, 1)), (0.1, (1, 10)), (29.97, (2997, 100)), (1 / 3, (1, 3)), (1e-9, None)],
)
def test_a_rate_is_the_fraction_it_stands_for(fps, expected):
    rate = exact_rate(fps)
    assert rate == (Fraction(*expected) if expected else Fraction(fps))


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_positive_and_finite(fps):
    with pytest.raises(ValueError, match="fps must be a positive number"):
        exact_rate(fps)


@pytest.mark.parametrize("seed", range(30))
def test_frames_and_counts_equal_brute_force(seed):
    rng = random.Random(seed)
    time_base = Fraction(1, rng.choice([10, 600, 1000, 90000, 12288]))
    fps = rng.choice([1, 3.0, 0.25, 29.97, 10])
    most = int(Fraction(2, 5) / time_base)  # ticks of the longest gap
    gaps = [rng.randrange(1, most) for _ in range(41)]
    pts = np.cumsum([rng.randrange(-50, 500), *gaps[:-1]])
    end = int(pts[-1]) + gaps[-1]
    clock = TargetClock.of(int(pts[0]), fps=fps, time_base=time_base)
    rate = Fraction(fps).limit_denominator(1000)

    moments = []
    while (moment := int(pts[0]) * time_base + len(moments) / rate) < end * time_base:
        moments.append(moment)
    shown = [max(i for i, p in enumerate(pts) if int(p) * time_base <= t) for t in moments]

    assert clock.num_before(end) == len(moments)
    chosen = frames_for_targets(pts, clock=clock, num_targets=len(moments))
    assert chosen.tolist() == shown


def test_a_frame_that_begins_at_a_target_is_its_answer():
    clock = TargetClock.of(0, fps=1, time_base=Fraction(1, 1000))
    pts = np.array([0, 999, 1000, 1001, 2000])
    assert frames_for_targets(pts, clock=clock, num_targets=3).tolist() == [0, 2, 4]
    # half-open: a target at the very end is not one
    assert (clock.num_before(2000), clock.num_before(2001)) == (2, 3)


def test_a_third_of_a_second_does_not_drift():
    clock = TargetClock.of(0, fps=3, time_base=Fraction(1, 90000))
    assert clock.tick(3 * 36000) == 36000 * 90000
    assert [clock.tick(k) for k in range(4)] == [0, 30000, 60000, 90000]


def test_a_target_before_every_frame_gets_the_first():
    clock = TargetClock.of(0, fps=1, time_base=Fraction(1, 10))
    assert frames_for_targets(np.array([15, 25]), clock=clock, num_targets=3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("pts", "duration", "expected"),
    [((0, 10, 20), 7, 27), ((0, 10, 14), None, 18), ((0, 10, 14), 0, 18), ((5,), None, 6)],
)
def test_the_end_of_the_last_frame(pts, duration, expected):
    assert end_of_last(pts, last_duration=duration) == expected


#                    decoded   I0  P4  B2 | I8  B6 | P12 B10
OPEN_GOP = np.array([0, 4, 2, 8, 6, 12, 10])
KEYFRAMES = np.array([True, False, False, True, False, False, False])


@pytest.mark.parametrize(
    ("wanted", "segments"),
    [
        # B6 comes after I8 in the file and needs what is before it
        ([4], [(0, 5, (4,))]),
        ([3], [(3, 4, (3,))]),
        ([6], [(3, 7, (6,))]),
        # I0 and B10: what lies between is left out
        ([0, 6], [(0, 1, (0,)), (3, 7, (6,))]),
        # P4 and B10: the second run begins where the first ends, or overlaps it
        ([4, 6], [(0, 7, (4, 6))]),
        ([2, 3], [(0, 4, (2, 3))]),
    ],
)
def test_segments_of_an_open_group_of_pictures(wanted, segments):
    plan = plan_segments(wanted, pts=OPEN_GOP, is_keyframe=KEYFRAMES)
    assert plan == [Segment(start=a, stop=b, wanted=w) for a, b, w in segments]


def test_frames_that_lead_the_first_keyframe_cannot_be_reached():
    #        cut out of a longer file:  I8 B6 P12
    reachable = is_reachable(np.array([8, 6, 12]), np.array([True, False, False]))
    assert reachable.tolist() == [True, False, True]
    # a keyframe that is not shown still makes what follows it reachable
    assert is_reachable(np.array([-7, -3, 1]), np.array([True, False, False])).all()


@pytest.mark.parametrize("seed", range(20))
def test_segments_cover_what_is_wanted_and_never_overlap(seed):
    rng = random.Random(seed)
    num_packets = 60
    is_keyframe = np.array([i == 0 or rng.random() < 0.15 for i in range(num_packets)])
    pts = np.arange(num_packets) * 10
    for i in np.flatnonzero(is_keyframe)[1:]:  # one leading picture after most keyframes
        if i + 1 < num_packets and not is_keyframe[i + 1]:
            pts[i], pts[i + 1] = pts[i + 1], pts[i]
    wanted = sorted(rng.sample(range(num_packets), 15), key=lambda i: pts[i])
    plan = plan_segments(wanted, pts=pts, is_keyframe=is_keyframe)
    assert [w for segment in plan for w in segment.wanted] == wanted
    for segment in plan:
        assert is_keyframe[segment.start]
        assert all(segment.start <= w < segment.stop for w in segment.wanted)
        assert pts[segment.start] <= min(pts[w] for w in segment.wanted)
        assert max(segment.wanted) + 1 == segment.stop
    for before, after in pairwise(plan):
        assert before.stop < after.start
