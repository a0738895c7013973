"""The pipeline: every frame arrives once and in order, and one video's trouble is its own."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import extraction as ex
import numpy as np
import pytest
import torch
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import FingerprintError, UsageError, Vis4merError
from vis4mer.store.verify import verify_cache

pytestmark = pytest.mark.timeout(120)  # a deadlock fails soon

LENGTHS = {"one": 1, "seven": 7, "eight": 8, "nine": 9, "hundred": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, frames) in enumerate(LENGTHS.items()):
        ex.write_video(tmp_path / "videos", name, frames, start=20 * i)
    return tmp_path / "videos"


def assert_complete(cache_path: Path) -> None:
    cache = open_cache(cache_path)
    assert cache.ids() == sorted(f"{name}.mp4" for name in LENGTHS)
    for i, (name, frames) in enumerate(LENGTHS.items()):
        ex.assert_entry(cache, f"{name}.mp4", frames, start=20 * i)
    assert verify_cache(cache, mode="full").problems == ()
    assert len(ex.attempts(cache)) == len(LENGTHS)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(("workers", "backbone_threads"), [(1, 1), (4, 1), (2, 3)])
def test_every_frame_arrives_once_and_in_order(
    folder: Path, tmp_path: Path, batch_size: int, workers: int, backbone_threads: int
) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(
        ex.videos(folder),
        cache,
        ex.grey_backbone(),
        ex.FakeReader(),
        batch_size=batch_size,
        workers=workers,
        backbone_threads=backbone_threads,
    )
    assert_complete(tmp_path / "c.zarr")
    assert (summary.extracted, summary.frames, summary.exit_code) == (5, 125, 0)
    assert (summary.left, summary.failures, summary.interrupted) == (0, (), False)
    assert cache.record("hundred.mp4").duration_seconds == 100


def test_frames_of_different_videos_share_a_batch_of_constant_size(
    folder: Path, tmp_path: Path
) -> None:
    backbone = ex.grey_backbone()
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    fill_cache(
        ex.videos(folder),
        cache,
        backbone,
        ex.FakeReader(),
        batch_size=16,
        workers=1,
        backbone_threads=1,
    )
    batches = backbone.module.batches
    assert [len(batch) for batch in batches] == [16] * 8  # ceil(125 / 16), the last one padded
    # The largest file first: hundred (80…), eight (40…), seven (20…), nine (60…), one (0).
    levels = [*range(80, 180), *range(40, 48), *range(20, 27), *range(60, 69), 0]
    assert [level for batch in batches for level in batch][:125] == levels


def test_stored_types_and_pooled_copies(folder: Path, tmp_path: Path) -> None:
    for dtype in ("bfloat16", "int8"):
        cache = ex.grey_cache(tmp_path / f"{dtype}.zarr", stored_dtype=dtype, grids=(1,))
        fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
        tokens = ex.expected_tokens(100, 80)
        close = np.allclose(cache.read("hundred.mp4"), tokens[:, 1:], rtol=0.01, atol=0.5)
        assert close
        pooled = tokens[:, 1:].mean(1, keepdims=True)
        assert np.allclose(cache.read("hundred.mp4", "grid1"), pooled, rtol=0.01, atol=0.5)


def test_int8_does_not_depend_on_how_frames_were_batched(folder: Path, tmp_path: Path) -> None:
    digests = set()
    for batch_size, workers in ((3, 1), (8, 3), (64, 2)):
        cache = ex.grey_cache(tmp_path / f"{batch_size}.zarr", stored_dtype="int8")
        fill_cache(
            ex.videos(folder),
            cache,
            ex.grey_backbone(),
            ex.FakeReader(),
            batch_size=batch_size,
            workers=workers,
        )
        digests.add(tuple(cache.record(i).arrays["patch"].sha256 for i in cache.ids()))
    assert len(digests) == 1


def test_the_callers_thread_count_is_given_back(folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cache = ex.grey_cache(tmp_path / "c.zarr")
        fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_provenance_says_what_made_an_entry(folder: Path, tmp_path: Path) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
    record = cache.record("one.mp4")
    assert record.provenance["reader"] == "pyav test"
    assert record.provenance["torch"] == torch.__version__
    assert record.provenance["host"] == os.uname().nodename
    assert record.source.name == str(folder / "one.mp4")
    assert record.source.size == (folder / "one.mp4").stat().st_size


# One video's trouble ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "stage", "reason"),
    [
        ({"open": "there is no video in it"}, "open", "there is no video in it"),
        ({"decode": "too much damage"}, "decode", "too much damage"),
        ({"decode": "too much damage", "decode_at": 40}, "decode", "too much damage"),
        ({"crash": "KeyError", "decode_at": 40}, "decode", "KeyError: 'told to'"),
        ({"crash": "MemoryError"}, "decode", "do not fit in memory"),
        ({"frames": 0}, "decode", "no frame could be read"),
    ],
)
def test_a_video_that_cannot_be_read_fails_alone(
    folder: Path, tmp_path: Path, trouble: dict[str, object], stage: str, reason: str
) -> None:
    ex.write_video(folder, "bad", **{"frames": 60, **trouble})
    cache = ex.grey_cache(tmp_path / "c.zarr")
    reader = ex.FakeReader()
    summary = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), reader)
    assert_complete(tmp_path / "c.zarr")
    (failure,) = cache.failures()
    assert (failure.id, failure.stage, summary.exit_code) == ("bad.mp4", stage, 3)
    assert reason in failure.reason
    assert failure.source_size == (folder / "bad.mp4").stat().st_size
    assert summary.failures == (failure,)
    assert all(stream.closed for stream in reader.streams)


def test_files_that_cannot_even_be_looked_at(folder: Path, tmp_path: Path) -> None:
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder / "nowhere")
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
    assert_complete(tmp_path / "c.zarr")
    assert {f.id: (f.stage, f.reason, f.source_size) for f in summary.failures} == {
        "folder.mp4": ("open", "is a directory, expected a video file", 0),
        "link.mp4": ("open", "there is no such file", 0),
    }


@pytest.mark.parametrize("backbone_threads", [1, 3])
def test_only_the_video_at_fault_fails_in_a_shared_batch(
    folder: Path, tmp_path: Path, backbone_threads: int
) -> None:
    ex.write_video(folder, "bad", 60, start=190)
    backbone = ex.grey_backbone()
    backbone.module.poison = {200: RuntimeError("cannot do this one"), 230: ValueError("nor this")}
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    summary = fill_cache(
        ex.videos(folder),
        cache,
        backbone,
        ex.FakeReader(),
        batch_size=7,
        backbone_threads=backbone_threads,
    )
    assert_complete(tmp_path / "c.zarr")
    (failure,) = summary.failures
    assert (failure.id, failure.stage) == ("bad.mp4", "encode")
    assert failure.reason.startswith("the backbone failed: ")


@pytest.mark.parametrize(
    ("value", "hint"), [(1e6, "--dtype bfloat16"), (float("nan"), "not a finite number")]
)
def test_values_that_cannot_be_stored_fail_at_writing(
    folder: Path, tmp_path: Path, value: float, hint: str
) -> None:
    ex.write_video(folder, "bad", 60, start=190)
    backbone = ex.grey_backbone()
    backbone.module.poison = {200: value}
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    summary = fill_cache(ex.videos(folder), cache, backbone, ex.FakeReader(), batch_size=4)
    assert_complete(tmp_path / "c.zarr")
    (failure,) = summary.failures
    assert (failure.id, failure.stage) == ("bad.mp4", "write")
    assert hint in failure.reason


def test_damaged_frames_are_kept_and_counted(folder: Path, tmp_path: Path) -> None:
    ex.write_video(folder, "hundred", 100, start=80, damaged=3)
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
    assert cache.record("hundred.mp4").damaged_frames == 3
    assert [(video.id, video.damaged_frames) for video in summary.damaged] == [("hundred.mp4", 3)]
    assert summary.exit_code == 0


def test_a_file_that_changes_while_it_is_read_fails(folder: Path, tmp_path: Path) -> None:
    path = ex.write_video(folder, "growing", 30)
    reader = ex.FakeReader(on_frame=lambda: path.write_text(path.read_text() + " "))
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(ex.videos(folder)[1:2], cache, ex.grey_backbone(), reader)
    assert [f.reason for f in summary.failures] == ["the file changed while it was being read"]
    assert len(cache) == 0
    assert ex.attempts(cache) == []


def test_a_file_that_vanishes_while_it_is_read_fails(folder: Path, tmp_path: Path) -> None:
    path = folder / "seven.mp4"
    reader = ex.FakeReader(on_frame=lambda: path.unlink(missing_ok=True))
    cache = ex.grey_cache(tmp_path / "c.zarr")
    chosen = [video for video in ex.videos(folder) if video.path == path]
    summary = fill_cache(chosen, cache, ex.grey_backbone(), reader)
    (failure,) = summary.failures
    assert failure.stage == "decode"
    assert failure.reason.endswith("while it was being read: there is no such file")


# Doing it again --------------------------------------------------------------------------------


def run(folder: Path, cache_path: Path, **options: object):
    reader = ex.FakeReader()
    cache = ex.grey_cache(cache_path)
    summary = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), reader, **options)
    return summary, len(reader.streams)


def test_running_again_opens_no_video(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "c.zarr")
    summary, opened = run(folder, tmp_path / "c.zarr")
    assert (summary.already_there, summary.extracted, opened) == (5, 0, 0)
    assert summary.bottleneck is None
    assert_complete(tmp_path / "c.zarr")


def test_the_same_content_is_known_and_the_same_name_is_not_enough(
    folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "c.zarr")
    one, seven = folder / "one.mp4", folder / "seven.mp4"
    os.utime(one, ns=(1, 1))  # the same bytes, another time
    text = seven.read_text()
    seven.write_text(text.replace('"start": 20', '"start": 30'))  # as many bytes, others
    summary, opened = run(folder, tmp_path / "c.zarr")
    assert (summary.already_there, summary.changed, opened) == (4, ("seven.mp4",), 0)
    ex.assert_entry(open_cache(tmp_path / "c.zarr"), "seven.mp4", 7, start=20)  # the old one
    seven.write_text(text + "   ")  # another size
    assert run(folder, tmp_path / "c.zarr")[0].changed == ("seven.mp4",)


def test_a_damaged_record_of_a_failure_stops_nothing(folder: Path, tmp_path: Path) -> None:
    """It says nothing, so its video is tried again, and then says what is."""
    ex.write_video(folder, "bad", 9, open="no")
    run(folder, tmp_path / "c.zarr")
    (path,) = (tmp_path / "c.zarr" / "failures").rglob("*.json")
    for damage in (b"{", b"", b"{}"):
        path.write_bytes(damage)
        assert open_cache(tmp_path / "c.zarr").failures() == []
        summary, _ = run(folder, tmp_path / "c.zarr")
        assert [failure.id for failure in summary.failures] == ["bad.mp4"]
    assert [f.id for f in open_cache(tmp_path / "c.zarr").failures()] == ["bad.mp4"]


def test_overwrite_replaces(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "c.zarr")
    ex.write_video(folder, "seven", 11, start=3)
    summary, opened = run(folder, tmp_path / "c.zarr", overwrite=True)
    assert (summary.extracted, opened) == (5, 5)
    ex.assert_entry(open_cache(tmp_path / "c.zarr"), "seven.mp4", 11, start=3)


def test_a_known_failure_is_left_until_its_file_changes_or_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    bad = ex.write_video(folder, "bad", 9, open="no")
    run(folder, tmp_path / "c.zarr")
    summary, opened = run(folder, tmp_path / "c.zarr")
    assert ([f.id for f in summary.known_failures], summary.exit_code, opened) == (
        ["bad.mp4"],
        3,
        0,
    )
    summary, _ = run(folder, tmp_path / "c.zarr", retry_failed=True)
    assert [f.id for f in summary.failures] == ["bad.mp4"]
    ex.write_video(folder, "bad", 9)
    assert bad.exists()
    summary, opened = run(folder, tmp_path / "c.zarr")
    assert (summary.extracted, opened, summary.exit_code) == (1, 1, 0)
    assert open_cache(tmp_path / "c.zarr").failures() == []


def test_a_failure_of_the_backbone_is_always_tried_again(folder: Path, tmp_path: Path) -> None:
    backbone = ex.grey_backbone()
    backbone.module.poison = {0: RuntimeError("a bad day")}
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    fill_cache(ex.videos(folder), cache, backbone, ex.FakeReader())
    assert [failure.id for failure in cache.failures()] == ["one.mp4"]
    summary, _ = run(folder, tmp_path / "c.zarr")
    assert (summary.extracted, summary.exit_code) == (1, 0)
    assert_complete(tmp_path / "c.zarr")


@pytest.mark.parametrize("workers", [1, 4])
def test_limit_counts_videos_that_are_not_there_yet(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    summary, opened = run(folder, tmp_path / "c.zarr", limit=2, workers=workers)
    assert (summary.extracted, summary.left, opened, summary.exit_code) == (2, 3, 2, 0)
    summary, opened = run(folder, tmp_path / "c.zarr", limit=2, workers=workers)
    assert (summary.extracted, opened) == (2, 2)
    assert summary.already_there + summary.left == 3
    run(folder, tmp_path / "c.zarr", limit=0, workers=workers)
    run(folder, tmp_path / "c.zarr", workers=workers)
    assert_complete(tmp_path / "c.zarr")


def test_another_backbone_is_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    reader = ex.FakeReader()
    with pytest.raises(FingerprintError, match="weights_sha256"):
        fill_cache(ex.videos(folder), cache, ex.grey_backbone(weight=2), reader)
    assert reader.streams == []
    with pytest.raises(UsageError, match="batch size is 0"):
        fill_cache(ex.videos(folder), cache, ex.grey_backbone(), reader, batch_size=0)


def test_no_videos_at_all(tmp_path: Path) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache([], cache, ex.grey_backbone(), ex.FakeReader())
    assert (summary.num_videos, summary.exit_code) == (0, 0)


# Progress and memory ---------------------------------------------------------------------------


def test_progress_tells_how_far_it_is(folder: Path, tmp_path: Path) -> None:
    ex.write_video(folder, "bad", 9, open="no")
    seen = []
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(
        ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader(), progress=seen.append
    )
    last = seen[-1]
    assert (last.num_videos, last.extracted, last.failed, last.frames) == (6, 5, 1, 125)
    assert last.reading == ()
    assert all(0 <= share <= 1 for p in seen for share in p.busy_share.values())
    assert summary.bottleneck in ("reading", "backbone", "writing")
    assert summary.frames_per_second == pytest.approx(125 / summary.seconds)


def test_frames_in_memory_are_bounded_however_long_the_video(tmp_path: Path) -> None:
    """A backbone that waits until reading can go no further meets a bounded lead."""
    ex.write_video(tmp_path / "v", "long", 600)
    backbone, batch_size, backbone_threads = ex.grey_backbone(), 4, 2
    read, encoded, leads = [0], [0], []
    lock, moved = threading.Lock(), threading.Condition()

    def on_frame() -> None:
        with moved:
            read[0] += 1
            moved.notify_all()

    def on_batch() -> None:
        with moved:
            before = -1
            while before != read[0]:  # until no frame has come for a while
                before = read[0]
                moved.wait(0.005)
        with lock:
            leads.append(read[0] - encoded[0])
            encoded[0] += batch_size

    backbone.module.on_batch = on_batch
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    fill_cache(
        ex.videos(tmp_path / "v"),
        cache,
        backbone,
        ex.FakeReader(on_frame),
        batch_size=batch_size,
        backbone_threads=backbone_threads,
    )
    ex.assert_entry(cache, "long.mp4", 600)
    # two batches an encoder wait, one an encoder is being encoded, the reader holds a part and a
    # batch of its own (5 frames)
    assert max(leads) <= 3 * batch_size * backbone_threads + batch_size + 5


# The run's own end -----------------------------------------------------------------------------


def no_threads_left() -> bool:
    names = ("reading", "backbone", "writing")
    return not any(thread.name.startswith(names) for thread in threading.enumerate())


@pytest.mark.parametrize("method", ["write_entry", "record_failure"])
@pytest.mark.parametrize("kind", ["full", "broken"])
def test_a_refusing_disk_ends_the_run_and_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    from vis4mer.store.files import StorageError

    error = StorageError("the disk is full") if kind == "full" else OSError(5, "I/O error")
    ex.write_video(folder, "bad", 9, open="no")
    cache = ex.grey_cache(tmp_path / "c.zarr")
    calls, real = [0], getattr(cache, method)

    def refuse(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == (3 if method == "write_entry" else 1):
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(cache, method, refuse)
    with pytest.raises(type(error)):
        fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader(), batch_size=2)
    assert no_threads_left()
    left = open_cache(tmp_path / "c.zarr")
    assert len(ex.attempts(left)) == len(left)
    run(folder, tmp_path / "c.zarr")
    assert_complete(tmp_path / "c.zarr")


@pytest.mark.parametrize("place", ["reading", "backbone", "writing", "progress"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, AssertionError])
def test_whatever_a_stage_raises_every_thread_leaves(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: type[BaseException],
) -> None:
    cache, backbone, reader = (
        ex.grey_cache(tmp_path / "c.zarr"),
        ex.grey_backbone(),
        ex.FakeReader(),
    )

    def fail(*_args: object, **_kwargs: object) -> None:
        raise error("told to")

    if place == "reading":
        monkeypatch.setattr("vis4mer.extract.stages.reading.decide", fail)
    elif place == "backbone":
        monkeypatch.setattr("vis4mer.extract.stages.encoding._split", fail)
    elif place == "writing":
        monkeypatch.setattr("vis4mer.extract.stages.progress.Tally.add_frames", fail)
    with pytest.raises(error):
        fill_cache(
            ex.videos(folder),
            cache,
            backbone,
            reader,
            batch_size=2,
            progress=fail if place == "progress" else None,
        )
    assert no_threads_left()
    monkeypatch.undo()
    left = open_cache(tmp_path / "c.zarr")
    assert len(ex.attempts(left)) == len(left)
    run(folder, tmp_path / "c.zarr")
    assert_complete(tmp_path / "c.zarr")


def test_too_little_memory_for_a_batch_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    backbone = ex.grey_backbone()
    backbone.module.poison = {100: torch.OutOfMemoryError("CUDA out of memory")}
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    with pytest.raises(Vis4merError, match="smaller --batch-size"):
        fill_cache(ex.videos(folder), cache, backbone, ex.FakeReader(), batch_size=4)
    assert no_threads_left()


@pytest.mark.parametrize("after", [1, 8, 60, 120])
def test_stopping_leaves_whole_entries_only(folder: Path, tmp_path: Path, after: int) -> None:
    stop, seen = threading.Event(), [0]

    def on_frame() -> None:
        seen[0] += 1
        if seen[0] == after:
            stop.set()

    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(
        ex.videos(folder),
        cache,
        ex.grey_backbone(),
        ex.FakeReader(on_frame),
        batch_size=2,
        workers=1,
        stop=stop,
    )
    assert summary.interrupted
    assert summary.exit_code == 1
    assert summary.left == 5 - summary.extracted
    left = open_cache(tmp_path / "c.zarr")
    assert len(ex.attempts(left)) == len(left) == summary.extracted
    assert verify_cache(left, mode="full").problems == ()
    run(folder, tmp_path / "c.zarr")
    assert_complete(tmp_path / "c.zarr")


def test_a_stop_after_the_last_frame_changes_nothing(folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    cache = ex.grey_cache(tmp_path / "c.zarr")
    sources = ex.videos(folder)

    def on_progress(progress: object) -> None:
        if getattr(progress, "frames", 0) == 125:
            stop.set()

    summary = fill_cache(
        sources, cache, ex.grey_backbone(), ex.FakeReader(), stop=stop, progress=on_progress
    )
    assert not summary.interrupted
    assert_complete(tmp_path / "c.zarr")


def test_an_entry_that_another_process_wrote_meanwhile_stands(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "c.zarr"
    mine = ex.grey_cache(other)
    theirs = ex.grey_cache(other)
    theirs_done = [False]

    def on_frame() -> None:
        if not theirs_done[0]:
            theirs_done[0] = True
            fill_cache(ex.videos(folder), theirs, ex.grey_backbone(), ex.FakeReader())

    fill_cache(ex.videos(folder), mine, ex.grey_backbone(), ex.FakeReader(on_frame), workers=1)
    assert_complete(other)
    shutil.rmtree(other)
