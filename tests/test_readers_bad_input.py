"""Files that are no videos, or not whole: one line that a person understands, never a crash."""

from __future__ import annotations

import os
import random

import av
import media
import numpy as np
import pytest
from vis4mer.extract.readers import VideoError, get_reader
from vis4mer.extract.readers.truncation import missing_matroska_bytes, top_level_boxes
from vis4mer.extract.sampling import Every
from vis4mer.store.errors import UsageError, Vis4merError

LONG = {"num_frames": 120}


@pytest.fixture(params=["pyav", "decord", "torchcodec"])
def reader(request):
    try:
        return get_reader(request.param)
    except UsageError as error:
        pytest.skip(str(error))


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("This is no video, whatever its name says. Größe: 1 × 2.\n" * 100)


def _ffconcat(path):
    media.write_h264(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def _playlist(path):
    media.write_h264(path.with_name("other.ts"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n")


def _cut_before_index(path):
    media.write_h264(path)
    media.cut(path, keep=0.6)


def _random(path):
    path.write_bytes(random.Random(0).randbytes(5000))


def _png(path):
    with av.open(str(path), "w", format="image2") as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = media.WIDTH, media.HEIGHT, "rgb24"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(media.picture(1), format="rgb24")))
        output.mux(stream.encode(None))


def _nothing(path):
    assert not path.exists()


def _directory(path):
    path.mkdir()


def _below_a_file(path):
    path.parent.rmdir()
    path.parent.write_bytes(b"a file where a folder is expected")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_empty, "the file is empty (0 bytes)"),
        (_text, "a text file, not a video; expected MP4/MOV"),
        (_ffconcat, "a list of other files (ffconcat), which is never followed"),
        (_playlist, "a text file, not a video"),
        (media.write_audio_only, "it has no video stream, only: audio"),
        (_cut_before_index, "an MP4 file without its index (no moov box)"),
        (_random, "not a video container that is read here"),
        (_png, "not a video container that is read here"),
        (_directory, "is a directory, expected a video file"),
        (os.mkfifo, "is not a regular file, expected a video file"),
        (_below_a_file, "the file cannot be opened: Not a directory"),
        (_nothing, "there is no such file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(reader, tmp_path, make, reason):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "clip.mp4"
    make(path)
    with pytest.raises(VideoError) as failure:
        reader.open(path, moments=Every(fps=1))
    assert failure.value.reason.startswith(reason)
    message = str(failure.value)
    assert "\n" not in message
    assert message.count(str(path)) == 1
    assert isinstance(failure.value, Vis4merError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(reader, tmp_path):
    path = media.write_h264(tmp_path / "clip.mp4").path
    path.chmod(0)
    with pytest.raises(VideoError, match="the file cannot be opened: Permission denied"):
        reader.open(path, moments=Every(fps=1))


def test_large_frames_are_refused(reader, tmp_path):
    path = media.write_h264(tmp_path / "clip.mp4").path
    with pytest.raises(VideoError, match="64×48 = 3,072 pixels, expected at most 3,000"):
        reader.open(path, moments=Every(fps=1), max_pixels=3000)


def test_metadata_in_another_encoding_is_no_obstacle(reader, tmp_path):
    options = {"movflags": "faststart"}
    path = media.write_h264(tmp_path / "clip.mp4", container_options=options).path
    data = path.read_bytes()
    assert data.count(b"VideoHandler") == 1
    path.write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandl\xe9r"))
    with reader.open(path, moments=Every(fps=1)) as video:
        assert sum(batch.num_frames for batch in video) == 4


# ── damage, which only PyAV reports ───────────────────────────────────────────────────────────


def read(path, *, fps=2):
    with get_reader("pyav").open(path, moments=Every(fps=fps)) as video:
        found = [media.number_of(frame) for batch in video for frame in batch.frames]
        assert len(found) == video.info.num_targets
        return found, video.damaged_frames


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_zeroed_middle_is_counted_and_the_rest_is_right(tmp_path, suffix):
    path = media.write_h264(tmp_path / f"clip{suffix}", **LONG).path
    media.zero_middle(path)
    found, damaged = read(path)
    assert 1 <= damaged <= 20
    right = list(range(0, 120, 5))
    assert len(found) == len(right)
    # five of a hundred bytes, and at most what is left of a group of pictures after them
    assert found[:9] == right[:9]
    assert found[-6:] == right[-6:]


def test_a_video_that_is_mostly_damaged_is_refused(tmp_path):
    path = media.write_h264(tmp_path / "clip.mp4", **LONG).path
    media.zero_middle(path, fraction=0.45)
    with pytest.raises(VideoError, match=r"of its 120 frames are damaged.*25% that is accepted"):
        read(path)


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_video_that_was_cut_off_is_noticed(tmp_path, suffix, options):
    path = tmp_path / f"clip{suffix}"
    media.write_h264(path, container_options=options, **LONG)
    whole = path.read_bytes()
    media.cut(path, keep=0.9)
    found, damaged = read(path)
    assert 4 <= damaged <= 25
    # the frame at the cut may be gone while one that is shown later is there
    assert found[:-1] == list(range(0, 120, 5))[: len(found) - 1]
    path.write_bytes(whole)
    media.cut(path, keep=0.5)
    with pytest.raises(VideoError, match="lie beyond the end of the file"):
        read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".webm"])
def test_flipped_bits_end_in_frames_or_in_one_line(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    if suffix == ".webm":
        media.write_clip(path, codec="libvpx-vp9", b_frames=0, options=media.VPX)
    else:
        media.write_h264(path)
    whole = path.read_bytes()
    for seed in range(25):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        reason = ""
        try:
            read(path, fps=rng.choice([1, 10]))
        except VideoError as error:
            reason = str(error)
        assert "\n" not in reason


def test_a_damaged_group_of_pictures_equals_plain_decoding(tmp_path):
    path = media.write_h264(tmp_path / "clip.mp4", **LONG).path
    media.zero_middle(path, fraction=0.03)
    plain = {float(time): picture for time, picture in media.decode_everything(path)}
    with get_reader("pyav").open(path, moments=Every(fps=10)) as video:
        for batch in video:
            for frame, pts in zip(batch.frames, batch.pts_seconds, strict=True):
                np.testing.assert_array_equal(frame, plain[float(pts)])
        assert video.damaged_frames > 0
        assert video.method == "sequential"


# ── sizes that files state about themselves ───────────────────────────────────────────────────


def test_boxes_of_an_mp4_file(tmp_path):
    path = media.write_h264(tmp_path / "clip.mp4").path
    assert top_level_boxes(path) == [b"ftyp", b"free", b"mdat", b"moov"]
    path.write_bytes(b"\0\0\0\1mdat" + (16 + 4).to_bytes(8, "big") + b"abcd" + b"\0\0\0\0moov")
    assert top_level_boxes(path) == [b"mdat", b"moov"]


def test_missing_bytes_of_a_matroska_file(tmp_path):
    path = media.write_h264(tmp_path / "clip.mkv").path
    assert missing_matroska_bytes(path) == 0
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    assert missing_matroska_bytes(path) == 1000
    path.write_bytes(data[:3])
    assert missing_matroska_bytes(path) == 0


def test_a_recording_of_unknown_length_is_not_called_cut_off(tmp_path):
    path = media.Shelf(tmp_path).clip("vp8-no-duration").path
    assert missing_matroska_bytes(path) == 0
