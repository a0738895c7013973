"""One conformance suite for every reader: the right picture at the right time, or a known limit.

The pictures carry their own numbers, so that what is expected comes from how a file was written and
from no decoder. PyAV must be exact everywhere, bit for bit what plain decoding gives.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import media
import numpy as np
import pytest
from vis4mer.extract.readers import FrameBatch, VideoError, get_reader
from vis4mer.extract.readers.base import MAX_BATCH_BYTES, MAX_BATCH_FRAMES
from vis4mer.extract.readers.batching import ShownFrame, batch_frames
from vis4mer.extract.sampling import Every, Slots, Spread
from vis4mer.store.errors import UsageError

READERS = ("pyav", "decord", "torchcodec")
RATES = (1, 3, 0.5, 10, 25)

WRONG_FRAMES = "returns other frames than those asked for"
OTHER_CLOCK = "times count from the first frame and not from the file's zero"
OTHER_END = "ends the video before its last frame"
REFUSES = "cannot read it"

KNOWN_INEXACT = {
    ("decord", "h264-open-gop"): WRONG_FRAMES,
    ("decord", "h264-intra-refresh"): WRONG_FRAMES,
    ("decord", "h264-trimmed"): WRONG_FRAMES,
    ("decord", "h264-mkv"): WRONG_FRAMES,
    ("decord", "h264-ts"): WRONG_FRAMES,
    ("decord", "hevc-open-gop"): WRONG_FRAMES,
    ("decord", "h264-late-start"): OTHER_CLOCK,
    ("decord", "h264-fragmented"): OTHER_CLOCK,
    ("decord", "h264-irregular"): OTHER_END,
    ("decord", "h264-avi"): REFUSES,
    ("decord", "vp8-no-duration"): REFUSES,
    ("torchcodec", "h264-intra-refresh"): WRONG_FRAMES,
    ("torchcodec", "h264-trimmed"): WRONG_FRAMES,
    ("torchcodec", "h264-ts"): WRONG_FRAMES,
    ("torchcodec", "h264-avi"): WRONG_FRAMES,
    ("torchcodec", "h264-irregular"): OTHER_END,
    ("torchcodec", "h264-late-start"): OTHER_END,
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return media.Shelf(tmp_path_factory.mktemp("media"))


@pytest.fixture(params=READERS)
def reader(request):
    try:
        return get_reader(request.param)
    except UsageError as error:
        if request.param == "pyav":
            raise
        pytest.skip(str(error))


def read(reader, path, *, moments):
    """All frames and times of a video, checked to be well formed: (T, H, W, 3), (T,), damage."""
    with reader.open(path, moments=moments) as video:
        batches = list(video)
        assert video.info.num_targets == sum(batch.num_frames for batch in batches)
        assert video.info.duration_seconds > 0
        damaged = video.damaged_frames
    assert [batch.index for batch in batches] == np.cumsum(
        [0, *(batch.num_frames for batch in batches[:-1])]
    ).tolist()
    frames = np.concatenate([batch.frames for batch in batches])
    pts_seconds = np.concatenate([batch.pts_seconds for batch in batches])
    return frames, pts_seconds, damaged


@pytest.mark.parametrize("name", media.MEDIA)
def test_every_target_shows_the_right_picture(reader, shelf, name):
    clip = shelf.clip(name)
    for fps in RATES:
        if (reader.name, name) in KNOWN_INEXACT:
            with suppress(VideoError):
                read(reader, clip.path, moments=Every(fps=fps))
            continue
        frames, pts_seconds, damaged = read(reader, clip.path, moments=Every(fps=fps))
        expected = [clip.number_at(t) for t in clip.targets(Fraction(fps))]
        assert [media.number_of(frame) for frame in frames] == expected
        began = dict(zip(clip.numbers, clip.times, strict=True))
        np.testing.assert_allclose(
            pts_seconds, [float(began[number]) for number in expected], atol=1e-5
        )
        assert damaged == 0
        assert frames.shape[1:] == (media.HEIGHT, media.WIDTH, 3)


def slow_moments(clip, moments):
    """Each moment's time by the words of `Spread` and `Slots`, one after the other."""
    end = clip.times[-1] + clip.last_duration
    begin = clip.times[0]
    if isinstance(moments, Spread):
        count = max(1, int((moments.seconds or float(end - begin)) * moments.fps))
        return [begin + (end - begin) * k / count for k in range(count)]
    start = begin + Fraction(str(moments.start_seconds or 0))
    stop = end
    if moments.end_seconds is not None:
        stop = min(end, begin + Fraction(str(moments.end_seconds)))
    edges = [start + (stop - start) * k / moments.count for k in range(moments.count + 1)]
    return [(a + b) / 2 for a, b in pairwise(edges)]


WHERE = [
    Spread(fps=1, seconds=3.2),
    Spread(fps=5),
    Slots(count=7),
    Slots(count=4, start_seconds=1.3, end_seconds=2.7),
    Slots(count=150, start_seconds=2.9, end_seconds=60),
]


@pytest.mark.parametrize("name", sorted(set(media.MEDIA) - {"h264-one-frame"}))
def test_frames_spread_over_a_video_or_a_part_of_it(reader, shelf, name):
    """The slow definition: of all pictures, the last that begins no later than the moment."""
    if (reader.name, name) in KNOWN_INEXACT:
        pytest.skip(KNOWN_INEXACT[reader.name, name])
    clip = shelf.clip(name)
    for moments in WHERE:
        expected = [clip.number_at(t) for t in slow_moments(clip, moments)]
        frames, pts_seconds, damaged = read(reader, clip.path, moments=moments)
        assert [media.number_of(frame) for frame in frames] == expected
        began = dict(zip(clip.numbers, clip.times, strict=True))
        np.testing.assert_allclose(pts_seconds, [float(began[n]) for n in expected], atol=1e-5)
        assert damaged == 0


def test_a_video_that_ends_before_the_part_begins(reader, shelf):
    """40 pictures, ten a second: 4 s."""
    clip = shelf.clip("h264")
    with pytest.raises(VideoError, match=r"begins at 4 seconds.*ended at 4;") as caught:
        reader.open(clip.path, moments=Slots(count=2, start_seconds=4, end_seconds=9))
    assert "\n" not in str(caught.value)
    frames, _, _ = read(reader, clip.path, moments=Slots(count=2, start_seconds=3.9, end_seconds=9))
    assert [media.number_of(frame) for frame in frames] == [39, 39]


@pytest.mark.parametrize("name", media.MEDIA)
def test_pyav_gives_bit_for_bit_what_plain_decoding_gives(shelf, name):
    clip = shelf.clip(name)
    decoded = [picture for _, picture in media.decode_everything(clip.path)]
    assert len(decoded) == len(clip.numbers)
    turns = -clip.degrees_clockwise // 90
    plain = {n: np.rot90(p, turns) for n, p in zip(clip.numbers, decoded, strict=True)}
    for fps in (1, 3, 10):
        frames, _, _ = read(get_reader("pyav"), clip.path, moments=Every(fps=fps))
        for frame, moment in zip(frames, clip.targets(Fraction(fps)), strict=True):
            np.testing.assert_array_equal(frame, plain[clip.number_at(moment)])


@pytest.mark.parametrize("name", ["h264", "h264-trimmed", "h264-ts", "vp9"])
def test_info_says_what_was_written(reader, shelf, name):
    if (reader.name, name) in KNOWN_INEXACT:
        pytest.skip(KNOWN_INEXACT[reader.name, name])
    clip = shelf.clip(name)
    with reader.open(clip.path, moments=Every(fps=1)) as video:
        info = video.info
    end = float(clip.times[-1] + clip.last_duration)
    assert info.first_pts_seconds == pytest.approx(float(clip.times[0]), abs=1e-5)
    assert info.first_pts_seconds + info.duration_seconds == pytest.approx(end, abs=1e-4)
    assert (info.width, info.height) == (media.WIDTH, media.HEIGHT)
    assert info.codec == ("vp9" if name == "vp9" else "h264")


def test_a_stream_keeps_no_batch_that_its_consumer_let_go(reader, shelf, monkeypatch):
    for module in ("batching", "torchcodec"):
        try:
            monkeypatch.setattr(f"vis4mer.extract.readers.{module}.MAX_BATCH_FRAMES", 3)
        except ImportError:
            continue
    batches = []
    with reader.open(shelf.clip("h264").path, moments=Every(fps=10)) as video:
        for batch in video:
            assert sum(other() is not None for other in batches) == 0
            batches.append(weakref.ref(batch))
            del batch
    assert len(batches) > 10


def test_an_unknown_reader_is_answered_with_the_choices():
    with pytest.raises(UsageError, match=r"'opencv', expected one of: pyav, decord, torchcodec"):
        get_reader("opencv")


def test_a_reader_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "vis4mer.extract.readers.torchcodec", raising=False)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[torchcodec\]'"):
        get_reader("torchcodec")


# ── batches ───────────────────────────────────────────────────────────────────────────────────


def shown(height, num_targets, value):
    picture = np.full((height, 8, 3), value, np.uint8)
    return ShownFrame(picture=picture, pts_seconds=float(value), num_targets=num_targets)


def test_batches_are_bounded_and_consecutive():
    rows = MAX_BATCH_BYTES // (8 * 3) // 4  # four such pictures fit
    batches = list(batch_frames((shown(rows, 1, i) for i in range(10)), num_targets=10))
    assert [(b.index, b.num_frames) for b in batches] == [(0, 4), (4, 4), (8, 2)]
    assert all(b.frames.nbytes <= MAX_BATCH_BYTES for b in batches)
    assert [int(f[0, 0, 0]) for b in batches for f in b.frames] == list(range(10))


def test_a_picture_larger_than_a_batch_is_a_batch():
    rows = MAX_BATCH_BYTES // (8 * 3) + 1
    batches = list(batch_frames([shown(rows, 2, 1)], num_targets=2))
    assert [(b.index, b.num_frames) for b in batches] == [(0, 1), (1, 1)]


def test_one_picture_fills_every_target_it_answers():
    batches = list(batch_frames([shown(4, 70, 1), shown(4, 2, 9)], num_targets=72))
    assert [(b.index, b.num_frames) for b in batches] == [(0, MAX_BATCH_FRAMES), (64, 8)]
    assert batches[1].pts_seconds.tolist() == [1.0] * 6 + [9.0] * 2


def test_a_change_of_size_ends_a_batch():
    frames = [shown(4, 2, 1), shown(6, 3, 2), shown(4, 1, 3)]
    batches = list(batch_frames(frames, num_targets=6))
    assert [(b.index, b.frames.shape[:2]) for b in batches] == [
        (0, (2, 4)),
        (2, (3, 6)),
        (5, (1, 4)),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((2, 4, 4, 3), np.float32)}, "uint8"),
        ({"frames": np.zeros((2, 4, 4), np.uint8)}, "uint8"),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "T ≥ 1"),
        ({"pts_seconds": np.zeros(3)}, "pts_seconds"),
        ({"pts_seconds": np.array([0.0, np.nan])}, "finite"),
        ({"index": -1}, "index"),
    ],
)
def test_a_batch_is_checked_when_it_is_built(changes, message):
    good = {"frames": np.zeros((2, 4, 4, 3), np.uint8), "pts_seconds": np.zeros(2), "index": 0}
    FrameBatch(**good)
    with pytest.raises(ValueError, match=message):
        FrameBatch(**{**good, **changes})
