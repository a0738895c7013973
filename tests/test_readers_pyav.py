"""What is particular to the PyAV reader: when it seeks, when it stops seeking, what it closes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import pytest
from vis4mer.extract.readers import VideoError, get_reader
from vis4mer.extract.readers import pyav as implementation
from vis4mer.extract.sampling import Every

PLAIN_ONLY = {"h264-ts", "h264-avi", "mpeg4-avi"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return media.Shelf(tmp_path_factory.mktemp("media"))


def numbers(path, *, fps):
    with get_reader("pyav").open(path, moments=Every(fps=fps)) as video:
        found = [media.number_of(frame) for batch in video for frame in batch.frames]
        return found, video.method


@pytest.mark.parametrize("name", sorted(set(media.MEDIA) - {"h264-intra-refresh"}))
def test_it_seeks_where_the_container_allows(shelf, name):
    _, method = numbers(shelf.clip(name).path, fps=1)
    assert method == ("sequential" if name in PLAIN_ONLY else "seek")


def test_seeking_decodes_fewer_frames_than_there_are(shelf, monkeypatch):
    decoded = []
    decode_segment = implementation.PyAVStream._decode_segment

    def counting(*arguments):
        for frame in decode_segment(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(implementation.PyAVStream, "_decode_segment", counting)
    found, method = numbers(shelf.clip("h264").path, fps=1)
    assert (found, method) == ([0, 10, 20, 30], "seek")
    assert len(decoded) < 25  # 40 frames; two of three are B-frames that nothing refers to


def test_it_gives_up_seeking_midway_without_a_wrong_or_repeated_frame(shelf):
    """After a seek into an intra-refresh stream the first pictures cannot be shown."""
    clip = shelf.clip("h264-intra-refresh")
    with get_reader("pyav").open(clip.path, moments=Every(fps=3)) as video:
        assert video.method == "seek"
        batches = list(video)
        assert video.method == "sequential"
    found = [media.number_of(frame) for batch in batches for frame in batch.frames]
    assert found == [clip.number_at(t) for t in clip.targets(Fraction(3))]


@pytest.mark.parametrize("given_up_after", range(5))
def test_any_answer_may_be_the_last_one_of_an_attempt(shelf, monkeypatch, given_up_after):
    clip = shelf.clip("h264")

    def interrupted(name):
        attempt = getattr(implementation.PyAVStream, name)

        def run(self):
            for index, answer in enumerate(attempt(self)):
                if index == given_up_after:
                    raise implementation._NotExactError
                yield answer

        return run

    for name in ("_by_seeking", "_plainly"):
        monkeypatch.setattr(implementation.PyAVStream, name, interrupted(name))
    found, method = numbers(clip.path, fps=2)
    assert found == [clip.number_at(t) for t in clip.targets(Fraction(2))]
    assert method == "sequential"


@pytest.mark.parametrize(
    ("name", "may_skip"),
    [("h264", True), ("hevc", True), ("hevc-layers", False), ("vp9", False)],
)
def test_frames_are_skipped_only_where_the_bitstream_says_enough(shelf, name, may_skip):
    with av.open(str(shelf.clip(name).path)) as container:
        context = container.streams.video[0].codec_context
        assert implementation._says_what_is_referred_to(context) is may_skip


def test_videos_may_be_read_side_by_side(shelf):
    names = ["h264", "hevc", "vp9", "h264-ts", "h264-open-gop", "rotated-90"] * 2
    paths = [shelf.clip(name).path for name in names]
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(lambda path: numbers(path, fps=10)[0], paths))
    assert side_by_side == [list(range(40))] * len(names)


def num_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def num_threads():
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_every_file_and_decoder_is_closed(shelf):
    paths = [shelf.clip(n).path for n in ("h264", "h264-ts", "h264-intra-refresh")]
    before = num_open_files(), num_threads()
    for path in paths * 5:
        with get_reader("pyav").open(path, moments=Every(fps=3)) as video:
            next(iter(video))  # abandoned at once
        numbers(path, fps=3)
        with pytest.raises(VideoError):
            get_reader("pyav").open(path, moments=Every(fps=3), max_pixels=10)
    assert num_open_files() == before[0]
    assert num_threads() <= before[1] + 2


def test_rows_with_padding_are_read_right():
    """A width that is no multiple of 32 leaves unused bytes at the end of every row."""
    pixels = np.random.default_rng(0).integers(0, 255, (34, 50, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    upright = implementation.upright_rgb(frame, av.video.reformatter.VideoReformatter())
    np.testing.assert_array_equal(upright, pixels)
    assert upright.dtype == np.uint8
