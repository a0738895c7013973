"""Index arithmetic of sampling, against brute force on fractions and against drawn examples."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from vis4mer.extract.sampling import (
    Every,
    OutsideError,
    Segment,
    Slots,
    Spread,
    TargetClock,
    end_of_last,
    exact_rate,
    frames_for_targets,
    is_reachable,
    moments_of,
    plan_segments,
)
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Sampling


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(1, (1, 1)), (0.1, (1, 10)), (29.97, (2997, 100)), (1 / 3, (1, 3)), (1e-9, None)],
)
def test_a_rate_is_the_fraction_it_stands_for(fps, expected):
    rate = exact_rate(fps)
    assert rate == (Fraction(*expected) if expected else Fraction(fps))


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_positive_and_finite(fps):
    for ask in (exact_rate, lambda fps: Every(fps=fps), lambda fps: Spread(fps=fps, seconds=3)):
        with pytest.raises(ValueError, match="fps must be a positive number"):
            ask(fps)


def ticking(*, fps, time_base):
    """The clock of a stream whose first frame is at tick 0."""
    clock = Every(fps=fps).over(Fraction(10))
    return TargetClock.of(clock, first=0, time_base=time_base)


@pytest.mark.parametrize("seed", range(30))
def test_frames_and_counts_equal_brute_force(seed):
    rng = random.Random(seed)
    time_base = Fraction(1, rng.choice([10, 600, 1000, 90000, 12288]))
    fps = rng.choice([1, 3.0, 0.25, 29.97, 10])
    most = int(Fraction(2, 5) / time_base)  # ticks of the longest gap
    gaps = [rng.randrange(1, most) for _ in range(41)]
    pts = np.cumsum([rng.randrange(-50, 500), *gaps[:-1]])
    end = int(pts[-1]) + gaps[-1]
    duration = (end - int(pts[0])) * time_base
    moments_of_stream = Every(fps=fps).over(duration)
    clock = TargetClock.of(moments_of_stream, first=int(pts[0]), time_base=time_base)
    rate = Fraction(fps).limit_denominator(1000)

    moments = []
    while (moment := int(pts[0]) * time_base + len(moments) / rate) < end * time_base:
        moments.append(moment)
    shown = [max(i for i, p in enumerate(pts) if int(p) * time_base <= t) for t in moments]

    assert clock.num_before(end) == moments_of_stream.count == len(moments)
    chosen = frames_for_targets(pts, clock=clock, num_targets=len(moments))
    assert chosen.tolist() == shown


def test_a_frame_that_begins_at_a_target_is_its_answer():
    clock = ticking(fps=1, time_base=Fraction(1, 1000))
    pts = np.array([0, 999, 1000, 1001, 2000])
    assert frames_for_targets(pts, clock=clock, num_targets=3).tolist() == [0, 2, 4]
    # half-open: a target at the very end is not one
    assert (clock.num_before(2000), clock.num_before(2001)) == (2, 3)


def test_a_third_of_a_second_does_not_drift():
    clock = ticking(fps=3, time_base=Fraction(1, 90000))
    assert clock.tick(3 * 36000) == 36000 * 90000
    assert [clock.tick(k) for k in range(4)] == [0, 30000, 60000, 90000]


def test_a_target_before_every_frame_gets_the_first():
    clock = ticking(fps=1, time_base=Fraction(1, 10))
    assert frames_for_targets(np.array([15, 25]), clock=clock, num_targets=3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("pts", "duration", "expected"),
    [((0, 10, 20), 7, 27), ((0, 10, 14), None, 18), ((0, 10, 14), 0, 18), ((5,), None, 6)],
)
def test_the_end_of_the_last_frame(pts, duration, expected):
    assert end_of_last(pts, last_duration=duration) == expected


# Other ways to choose moments ------------------------------------------------------------------


def in_seconds(clock):
    return [clock.offset + k * clock.step for k in range(clock.count)]


def test_moments_spread_over_the_whole_video_are_as_many_as_it_is_said_to_last():
    """150.4 s are annotated and the file lasts 180 s: 150 moments, 1.2 s apart, from 0 on."""
    clock = Spread(fps=1, seconds=150.4).over(Fraction(180))
    assert in_seconds(clock) == [Fraction(6, 5) * k for k in range(150)]
    np.testing.assert_allclose(clock.seconds(), 1.2 * np.arange(150), rtol=1e-15)
    # Without an annotation it is the file's own time, and then a second is a second.
    assert in_seconds(Spread(fps=1).over(Fraction(7))) == list(range(7))
    assert in_seconds(Spread(fps=2).over(Fraction(5, 4))) == [0, Fraction(5, 8)]
    # A tenth of a second at ten a second is one moment, whatever the floats say; less is one too.
    assert Spread(fps=10, seconds=0.3).over(Fraction(1)).count == 3
    assert Spread(fps=1, seconds=0.2).over(Fraction(1)).count == 1


def test_slots_are_seen_at_their_middles():
    #        2.5          5            7.5
    #   |     x     |     x     |     x     |          of [1.25, 8.75), a video of 10 s
    clock = Slots(count=3, start_seconds=1.25, end_seconds=8.75).over(Fraction(10))
    assert in_seconds(clock) == [Fraction(5, 2), 5, Fraction(15, 2)]
    assert in_seconds(Slots(count=2).over(Fraction(10))) == [Fraction(5, 2), Fraction(15, 2)]
    # Cut at the video's end: what is asked for is [6, 10).
    late = Slots(count=4, start_seconds=6, end_seconds=99).over(Fraction(10))
    assert in_seconds(late) == [Fraction(13, 2), Fraction(15, 2), Fraction(17, 2), Fraction(19, 2)]


@pytest.mark.parametrize("start", [10, 10.5, 600])
def test_a_part_after_the_end_of_the_video_is_said(start):
    with pytest.raises(OutsideError, match=f"begins at {start:g} seconds.*ended at 10;"):
        Slots(count=3, start_seconds=start, end_seconds=700).over(Fraction(10))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Slots(count=0), "at least 1 part, got 0"),
        (lambda: Slots(count=1, start_seconds=-1.0), "from 0, got -1"),
        (lambda: Slots(count=1, start_seconds=3.0, end_seconds=3.0), "is empty"),
        (lambda: Slots(count=1, end_seconds=float("nan")), "got nan"),
        (lambda: Spread(fps=1, seconds=float("inf")), "got inf"),
    ],
)
def test_parts_that_make_no_sense_are_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_what_a_caches_sampling_asks_of_a_video():
    part = {"start_seconds": 2.0, "end_seconds": 8.0}
    assert moments_of(Sampling(fps=2), **part) == Every(fps=2)
    spread = Sampling(kind="spread", fps=2)
    assert moments_of(spread, end_seconds=8.0) == Spread(fps=2, seconds=8.0)
    clips = Sampling(kind="segments", segments=4, clip_frames=8)
    assert moments_of(clips, **part) == Slots(count=32, start_seconds=2.0, end_seconds=8.0)
    assert moments_of(clips) == Slots(count=32)
    with pytest.raises(UsageError, match=r"no start at 2 seconds.*--protocol clean"):
        moments_of(spread, **part)


@pytest.mark.parametrize("seed", range(10))
def test_a_clock_with_an_offset_equals_brute_force(seed):
    rng = random.Random(seed)
    time_base = Fraction(1, rng.choice([10, 600, 12288]))
    pts = np.cumsum([rng.randrange(-50, 500), *(rng.randrange(1, 200) for _ in range(30))])
    duration = (int(pts[-1]) + 7 - int(pts[0])) * time_base
    start = duration * Fraction(rng.randrange(0, 60), 100)
    moments = Slots(count=rng.randrange(1, 90), start_seconds=float(start)).over(duration)
    clock = TargetClock.of(moments, first=int(pts[0]), time_base=time_base)
    times = [int(pts[0]) * time_base + t for t in in_seconds(moments)]
    shown = [max(i for i, p in enumerate(pts) if int(p) * time_base <= t) for t in times]
    chosen = frames_for_targets(pts, clock=clock, num_targets=moments.count)
    assert chosen.tolist() == shown
    for p in pts:
        passed = sum(t < int(p) * time_base for t in times)
        assert min(clock.num_before(int(p)), moments.count) == passed


# Runs of packets --------------------------------------------------------------------------------

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
