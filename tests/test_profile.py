"""What a profile says of a run: read back from its file, and compared with what was to be done."""

from __future__ import annotations

import errno
import io
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import extraction as ex
import media
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract.request import ExtractRequest
from vis4mer.extract.stages import steps as steps_module
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.extract.stages.profile import TraceFile, profile_of, recorded
from vis4mer.extract.stages.steps import STAGE_OF, STAGES, WAITS, Steps, StepTimes
from vis4mer.store.errors import UsageError
from vis4mer.store.files import StorageError

pytestmark = pytest.mark.timeout(120)
LENGTHS = {"one": 1, "seven": 7, "eight": 8, "nine": 9, "hundred": 100}
NUM_FRAMES = 125


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, frames) in enumerate(LENGTHS.items()):
        ex.write_video(tmp_path / "videos", name, frames, start=20 * i)
    return tmp_path / "videos"


def read_trace(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The events of a file, and the names of its rows."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [event for event in events if event["ph"] == "X"], names


def frames_by_video(events: list[dict[str, Any]], step: str) -> dict[str, int]:
    frames: Counter[str] = Counter()
    for event in events:
        if event["name"] == step and "frames" in event["args"]:
            frames[event["args"]["video"]] += event["args"]["frames"]
    return dict(frames)


@pytest.mark.parametrize("stored_dtype", ["float16", "int8"])
def test_every_frame_is_accounted_for_and_no_thread_does_two_things(
    folder: Path, tmp_path: Path, stored_dtype: str
) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr", stored_dtype=stored_dtype, grids=(1,))
    before = time.monotonic()
    fill_cache(
        ex.videos(folder),
        cache,
        ex.grey_backbone(),
        ex.FakeReader(),
        batch_size=4,
        workers=2,
        backbone_threads=2,
        profile=tmp_path / "p.json",
    )
    seconds = time.monotonic() - before
    events, names = read_trace(tmp_path / "p.json")
    assert sorted(names.values()) == [
        "backbone-0", "backbone-1", "reading-0", "reading-1", "writing-0",
    ]  # fmt: skip
    rows = defaultdict(list)
    for event in events:
        assert names[event["tid"]].startswith(STAGE_OF[event["name"]])
        assert event["cat"] == ("wait" if event["name"] in WAITS else STAGE_OF[event["name"]])
        rows[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        spans.sort()
        for (_, ended), (began, _) in itertools.pairwise(spans):
            assert began >= ended - 0.002  # microseconds; the file has three decimals
        assert spans[0][0] >= 0
        assert spans[-1][1] / 1e6 <= seconds
    expected = {f"{name}.mp4": frames for name, frames in LENGTHS.items()}
    for step in ("decode", "resize", "write"):
        assert frames_by_video(events, step) == expected
    for step in ("assemble", "backbone", "copy to host"):
        assert sum(e["args"].get("frames", 0) for e in events if e["name"] == step) == NUM_FRAMES
    for step in ("hash", "open", "commit", "quantise"):
        assert {e["args"]["video"] for e in events if e["name"] == step} == set(expected)


def test_the_sums_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    path = tmp_path / "p.json"
    summary = fill_cache(
        ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader(), profile=path
    )
    profile = summary.profile
    assert profile is not None
    assert profile.path == str(path)
    seconds: Counter[str] = Counter()
    for event in read_trace(path)[0]:
        seconds[event["name"]] += event["dur"] / 1e6
    for each in profile.steps:
        if not each.waits:  # the shortest waits are not in the file
            assert each.seconds == pytest.approx(seconds[each.step], abs=1e-5)
    for stage in profile.stages:
        assert stage.busy_seconds == pytest.approx(summary.busy_seconds[stage.stage])
        assert stage.threads == summary.threads[stage.stage]
    assert profile.limit == summary.bottleneck
    assert profile.efficiency == pytest.approx(
        max(each.busy_share for each in profile.stages), abs=1e-6
    )


def test_the_frames_of_a_batch_name_all_their_videos(folder: Path, tmp_path: Path) -> None:
    cache, path = ex.grey_cache(tmp_path / "c.zarr"), tmp_path / "p.json"
    fill_cache(
        ex.videos(folder),
        cache,
        ex.grey_backbone(),
        ex.FakeReader(),
        batch_size=128,
        workers=1,
        backbone_threads=1,
        profile=path,
    )
    (batch,) = [e for e in read_trace(path)[0] if e["name"] == "backbone"]
    assert set(batch["args"]["videos"]) == {f"{name}.mp4" for name in LENGTHS}
    assert batch["args"]["frames"] == NUM_FRAMES


def test_without_a_profile_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
    assert summary.profile is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr", "videos"]


def test_a_run_that_fails_leaves_a_whole_profile(folder: Path, tmp_path: Path) -> None:
    backbone, path = ex.grey_backbone(), tmp_path / "p.json"
    backbone.module.poison = {100: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        fill_cache(
            ex.videos(folder),
            ex.grey_cache(tmp_path / "c.zarr", backbone),
            backbone,
            ex.FakeReader(),
            backbone_threads=1,
            profile=path,
        )
    events, _ = read_trace(path)
    assert {"decode", "resize"} <= {event["name"] for event in events}
    *_, failed = [event for event in events if event["name"] == "backbone"]
    assert "frames" not in failed["args"]


# The parts, by hand ----------------------------------------------------------------------------


class Clock:
    """Seconds that pass when somebody says so."""

    now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def thread_time_ns(self) -> int:
        return self.now // 2

    def work(self, seconds: int) -> None:
        self.now += seconds * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steps_module, "time", clock)
    return clock


def test_a_step_inside_another_interrupts_it(clock: Clock) -> None:
    steps = Steps()
    with steps.step("write", "a", frames=5):
        clock.work(1)
        for _ in range(2):
            with steps.step("quantise", "a"):
                clock.work(10)
            clock.work(2)
    with steps.step("wait for tokens"):
        clock.work(100)
    times = {
        each.step: (each.seconds, each.cpu_seconds, each.times, each.frames)
        for each in steps.times()
    }
    assert times == {
        "wait for tokens": (100, 50, 1, 0),
        "write": (5, 2.5, 3, 5),  # three pieces, whose frames count once
        "quantise": (20, 10, 2, 0),
    }
    assert steps.busy_seconds() == {"reading": 0, "backbone": 0, "writing": 25}


def test_work_under_way_counts_and_an_error_deals_with_no_frame(clock: Clock) -> None:
    steps = Steps()

    def fail() -> None:
        with steps.step("decode", "a", frames=5):
            clock.work(3)
            assert steps.busy_seconds()["reading"] == 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(each.seconds, each.frames) for each in steps.times()] == [(3, 0)]


def test_stages_alone_and_which_of_them_limits() -> None:
    def times(step: str, seconds: float) -> StepTimes:
        stage, waits = STAGE_OF[step], step in WAITS  # type: ignore[index]
        return StepTimes(
            step=step,  # type: ignore[arg-type]
            stage=stage,
            waits=waits,
            seconds=seconds,
            cpu_seconds=seconds / 2,
            times=1,
            frames=0,
        )

    profile = profile_of(
        [
            times("decode", 6.0), times("resize", 2.0), times("wait for room", 12.0),
            times("backbone", 9.0), times("wait for frames", 1.0), times("write", 0.5),
        ],
        path=Path("p.json"),
        threads={"reading": 2, "backbone": 1, "writing": 1},
        frames=90,
        seconds=10.0,
    )  # fmt: skip
    reading, backbone, writing = profile.stages
    assert (reading.busy_seconds, reading.waited_seconds, reading.busy_share) == (8, 12, 0.4)
    assert reading.cpu_seconds == 4
    # 90 frames took 8 thread-seconds of reading: two threads do 22.5 a second
    assert reading.frames_per_second == pytest.approx(22.5)
    assert backbone.frames_per_second == pytest.approx(10)
    assert writing.frames_per_second == pytest.approx(180)
    assert profile.limit == "backbone"
    assert profile.efficiency == pytest.approx(0.9)  # 9 frames a second, of 10
    threads = dict.fromkeys(STAGES, 1)
    none = profile_of([], path=Path("p.json"), threads=threads, frames=0, seconds=0.0)
    assert (none.limit, none.efficiency) == (None, None)


def test_events_leave_memory_as_they_end() -> None:
    file = io.BytesIO()
    trace = TraceFile(file)
    steps = Steps(trace)
    sizes = []
    for k in range(100):
        with steps.step("decode", f"video {k}", frames=1):
            pass
        sizes.append(file.tell())
    assert all(b > a for a, b in itertools.pairwise(sizes))
    held = [value for value in vars(trace).values() if isinstance(value, (list, dict))]
    assert sum(map(len, held)) == 1  # the name of the one thread
    trace.finish()
    assert len(json.loads(file.getvalue())["traceEvents"]) == 102


class FullDisk(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() > 1000:
            raise OSError(errno.ENOSPC, "no space left")
        return super().write(data)


def test_a_disk_that_refuses_the_profile_spoils_no_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = TraceFile(FullDisk())
    steps = Steps(trace)
    for _ in range(30):
        with steps.step("decode", "a"):
            pass
    with pytest.raises(OSError, match="no space"):
        trace.finish()

    monkeypatch.setattr(
        "vis4mer.extract.stages.profile.TraceFile", lambda _file: TraceFile(FullDisk())
    )
    cache = ex.grey_cache(tmp_path / "c.zarr")
    with pytest.raises(StorageError, match=r"p\.json: the disk is full"):
        fill_cache(
            ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader(),
            profile=tmp_path / "p.json",
        )  # fmt: skip
    assert cache.ids() == sorted(f"{name}.mp4" for name in LENGTHS)
    assert not (tmp_path / "p.json").exists()


def test_a_profile_that_cannot_be_written_hides_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vis4mer.extract.stages.profile.TraceFile", lambda _file: TraceFile(FullDisk())
    )

    def work(trace: TraceFile) -> None:
        for _ in range(30):
            with Steps(trace).step("decode", "a"):
                pass
        raise ValueError("the real one")

    with pytest.raises(ValueError, match="the real one"), recorded(tmp_path / "p.json") as trace:
        work(trace)


def test_an_id_may_be_anything(tmp_path: Path) -> None:
    hostile = '"}],\n\x1b[2J\udc80'
    with recorded(tmp_path / "p.json") as trace:
        thread = threading.Thread(target=Steps(trace).step("decode", hostile).__enter__)
        thread.start()
        thread.join()
        with Steps(trace).step("decode", hostile):
            pass
    (event,), _ = read_trace(tmp_path / "p.json")
    assert event["args"]["video"] == hostile


@pytest.mark.parametrize(
    ("name", "reason"), [("dir.json", "directory"), ("p.txt", "ends with"), ("no/p.json", "make")]
)
def test_a_place_where_no_profile_can_be_is_refused_at_once(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(UsageError, match=reason):
        ExtractRequest(inputs=["x"], profile=tmp_path / name)


# As a command ----------------------------------------------------------------------------------

BACKBONE = ("--backbone", "vit_tiny_patch16_224@32", "--weights", "random:0", "--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_says_where_the_time_went(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    media.write_clip(tmp_path / "videos" / "a.mp4", num_frames=30)
    for flags in ((), ("--json", "--overwrite")):
        path = tmp_path / f"p{len(flags)}.json"
        asked = ("extract", tmp_path / "videos", "--cache", tmp_path / "c.zarr", *BACKBONE)
        result = run(*asked, "--profile", path, *flags)
        assert result.exit_code == 0, result.output
        events, _ = read_trace(path)
        assert frames_by_video(events, "resize") == {"a.mp4": 3}
        if not flags:
            assert "of the speed that it has alone" in result.stdout
            assert str(path) in result.stdout
            assert "decode" in result.stdout
            continue
        told = json.loads(result.stdout)["profile"]
        assert [stage["stage"] for stage in told["stages"]] == list(STAGES)
        frames = {step["step"]: step["frames"] for step in told["steps"]}
        assert frames["decode"] == frames["resize"] == frames["backbone"] == frames["write"] == 3


def test_a_profile_is_of_one_process(tmp_path: Path) -> None:
    result = run("extract", tmp_path, "--engine", "local", "--profile", tmp_path / "p.json")
    assert result.exit_code == 2
    assert "leave out --engine local" in result.stderr
