"""Lanes: every window of every video once, in order, in one lane."""

from collections import defaultdict

import pytest
from vis4mer.decode.data.lanes import (
    LaneWindow,
    consecutive_windows,
    lane_rows,
    lane_steps,
    num_lane_steps,
)
from vis4mer.decode.data.plan import Stretch
from vis4mer.store.windows import Window


def stretch(name, start, stop):
    return Stretch(id=name, extent=Window(start=start, stop=stop))


VIDEOS = [
    stretch(f"v{i}", 3 * i, 3 * i + frames) for i, frames in enumerate([1, 59, 60, 61, 240, 7])
]
VIDEOS += [stretch("v3", 100, 161), stretch("v3", 100, 161)]  # rows may share a video


def by_lane(steps):
    """The windows of each lane, in order, and nothing after its end."""
    walks = []
    for lane in zip(*steps, strict=True):
        real = [one for one in lane if one is not None]
        assert list(lane[: len(real)]) == real
        walks.append(real)
    return walks


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("length", [1, 20, 60])
def test_every_frame_of_every_stretch_once_and_in_order(lanes, length):
    steps = lane_steps(VIDEOS, length=length, lanes=lanes, seed=0, epoch=0)
    assert {len(step) for step in steps} == {lanes}
    frames, home = defaultdict(list), defaultdict(set)
    for number, walk in enumerate(by_lane(steps)):
        before = None
        for one in walk:
            frames[one.stretch] += range(one.window.start, one.window.stop)
            home[one.stretch].add(number)
            assert one.window.num_frames <= length
            assert one.starts == (one.window.start == VIDEOS[one.stretch].extent.start)
            assert one.starts or one.stretch == before
            before = one.stretch
    assert len(frames) == len(VIDEOS)
    for i, each in enumerate(VIDEOS):
        assert frames[i] == list(range(each.extent.start, each.extent.stop))
        assert len(home[i]) == 1


def test_by_hand():
    """Whatever the order, one lane holds the long video or is followed by it."""
    videos = [stretch("long", 0, 50), stretch("a", 0, 10), stretch("b", 5, 25)]
    (walk,) = by_lane(lane_steps(videos[:1], length=20, lanes=1, seed=0, epoch=0))
    assert walk == [
        LaneWindow(stretch=0, window=Window(start=0, stop=20), starts=True),
        LaneWindow(stretch=0, window=Window(start=20, stop=40), starts=False),
        LaneWindow(stretch=0, window=Window(start=40, stop=50), starts=False),
    ]
    for seed in range(6):
        steps = lane_steps(videos, length=20, lanes=2, seed=seed, epoch=0)
        assert len(steps) in (3, 4)  # 5 windows; 4 where the long one is dealt last
    assert lane_steps([], length=20, lanes=2, seed=0, epoch=0) == []
    assert num_lane_steps([], length=20, lanes=2, seed=0, epoch=0) == 0


def test_lanes_are_even():
    """No lane is behind another by more than the longest video."""
    videos = [stretch(str(i), 0, 60 * (1 + i % 5)) for i in range(200)]
    lengths = [
        len(walk) for walk in by_lane(lane_steps(videos, length=60, lanes=16, seed=1, epoch=2))
    ]
    assert max(lengths) - min(lengths) <= 5
    assert sum(lengths) == sum(1 + i % 5 for i in range(200))


@pytest.mark.parametrize("lanes", [1, 3, 20])
@pytest.mark.parametrize("epoch", range(3))
def test_the_rows_of_a_batch_are_the_lanes_that_are_left(lanes, epoch):
    steps = lane_steps(VIDEOS, length=20, lanes=lanes, seed=0, epoch=epoch)
    assert num_lane_steps(VIDEOS, length=20, lanes=lanes, seed=0, epoch=epoch) == len(steps)
    walks = by_lane(steps)
    home = [lane for lane, walk in enumerate(walks) if walk]  # the lane of each row
    for number, rows in enumerate(lane_rows(steps)):
        left = [lane for lane in home if len(walks[lane]) > number]
        assert (rows.before is None) == (left == home)
        home = home if rows.before is None else [home[place] for place in rows.before]
        assert home == left
        assert rows.windows == tuple(walks[lane][number] for lane in home)
        assert rows.starts == tuple(one.starts for one in rows.windows)


def test_the_order_is_a_function_of_seed_and_epoch():
    videos = [stretch(str(i), 0, 60) for i in range(50)]

    def order(seed, epoch, chosen=videos):
        steps = lane_steps(chosen, length=60, lanes=4, seed=seed, epoch=epoch)
        return [chosen[one.stretch].id for step in steps for one in step if one]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 0)
    assert order(0, 0) == order(0, 0, videos[::-1])  # not of the order in which they are listed


def test_an_odd_id_can_be_dealt():
    (step,) = lane_steps([stretch("\udce9\0", 0, 5)], length=9, lanes=1, seed=0, epoch=0)
    assert step[0].window == Window(start=0, stop=5)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 1 lane, got 0"):
        lane_steps(VIDEOS, length=60, lanes=0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        consecutive_windows(Window(start=0, stop=5), length=0)
