"""Engines: several processes of one machine fill one cache, whatever becomes of one of them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import engine_children as children
import extraction as ex
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract import request
from vis4mer.extract.engines import child, local
from vis4mer.extract.engines.base import ENGINES, EngineOptions, engine_named
from vis4mer.extract.engines.local import _devices, _each, extract_locally
from vis4mer.extract.engines.together import Outset, Part, progress_together, summary_together
from vis4mer.extract.planning.share import Share
from vis4mer.extract.request import ExtractRequest
from vis4mer.extract.stages.progress import ExtractProgress, ExtractSummary, HeldVideos
from vis4mer.extract.stages.steps import STAGES
from vis4mer.store.cache import open_cache
from vis4mer.store.claims import list_claims
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import UsageError, Vis4merError
from vis4mer.store.failures import FailureRecord
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import list_workers

pytestmark = pytest.mark.timeout(120)
TWO = EngineOptions(processes=2)


@pytest.fixture(scope="module")
def quick() -> Iterator[ForkServerContext]:
    """Processes that begin at once: a server that has torch forks them. Its own must import it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine_children", "vis4mer.extract.stages.pipeline"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        first = context.Process(target=children.crash)
        first.start()
        first.join()
        yield context


@pytest.fixture
def asked(tmp_path: Path, monkeypatch, quick) -> ExtractRequest:
    monkeypatch.setattr(local, "work", children.work)
    monkeypatch.setattr(local, "multiprocessing", SimpleNamespace(get_context=lambda _: quick))
    return children.asked_for(children.write_videos(tmp_path / "videos"), tmp_path / "c.zarr")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A file: until it goes, no process comes to its end."""
    slow = children.slowly(tmp_path / "videos")
    slow.touch()
    return slow


def assert_whole(path: Path) -> None:
    """Every video once, with its values, and nothing else."""
    cache = open_cache(path)
    assert cache.ids() == [f"{i:02}.mp4" for i in range(16)]
    for i, video_id in enumerate(cache.ids()):
        ex.assert_entry(cache, video_id, children.NUM_FRAMES, start=i)
    assert not verify_cache(cache, "full").problems
    nothing_claimed(path)


def nothing_claimed(path: Path) -> None:
    assert not list(list_claims(path))
    assert not list_workers(path)


# Processes ------------------------------------------------------------------------------------


def test_two_processes_share_the_videos(asked, tmp_path):
    notes: list[str] = []
    seen: list[ExtractProgress] = []
    summary = extract_locally(asked, options=TWO, progress=seen.append, on_note=notes.append)
    assert (summary.num_videos, summary.extracted, summary.left) == (16, 16, 0)
    assert (summary.frames, summary.exit_code, notes) == (16 * 6, 0, [])
    assert all(each.extracted <= 16 and each.num_videos == 16 for each in seen)
    assert_whole(tmp_path / "c.zarr")
    assert len(ex.attempts(open_cache(tmp_path / "c.zarr"))) == 16


def test_the_command_has_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    """With processes as they really begin."""
    monkeypatch.setattr(local, "work", children.work)
    monkeypatch.setattr(request, "get_reader", lambda _: ex.FakeReader())
    monkeypatch.setattr(request, "_load", lambda *_, **__: ex.grey_backbone())
    for i in range(3):
        ex.write_video(tmp_path / "clips", f"{i}", 4, start=i)
    found = []
    for name, more in {"one": [], "two": ["--engine", "local", "--processes", "2"]}.items():
        command = ["extract", str(tmp_path / "clips"), "--cache", str(tmp_path / name)]
        options = ["--weights", "random:0", "--json"]
        result = CliRunner().invoke(app, [*command, *options, *more])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["extracted"] == 3
        found.append(digest_cache(open_cache(tmp_path / name)).root)
    assert found[0] == found[1]


def test_a_killed_process_is_said_and_the_other_does_its_videos(asked, slow, tmp_path):
    notes: list[str] = []
    killed: list[int] = []

    def kill(progress: ExtractProgress) -> None:
        if progress.frames and not killed:
            child = multiprocessing.active_children()[0]
            killed.append(child.pid or 0)
            os.kill(killed[0], signal.SIGKILL)
            slow.unlink()

    summary = extract_locally(asked, options=TWO, progress=kill, on_note=notes.append)
    (note,) = notes
    assert f"(pid {killed[0]}) died of SIGKILL (exit code -9)" in note
    assert any(str(killed[0]) in each for each in summary.notes)
    assert (summary.left, summary.exit_code) == (0, 0)
    assert summary.extracted + summary.already_there == 16
    cache = open_cache(tmp_path / "c.zarr")
    assert len(cache.ids()) == 16
    assert not verify_cache(cache, "full").problems
    assert not list(list_claims(cache.path))


def test_a_stop_reaches_all_and_the_same_request_goes_on(asked, slow, tmp_path):
    stop = threading.Event()

    def stop_soon(progress: ExtractProgress) -> None:
        if progress.frames:
            stop.set()

    summary = extract_locally(asked, options=TWO, stop=stop, progress=stop_soon)
    assert (summary.interrupted, summary.exit_code) == (True, 1)
    path = tmp_path / "c.zarr"
    assert len(open_cache(path).ids()) == summary.extracted == 16 - summary.left < 16
    nothing_claimed(path)
    slow.unlink()
    again = extract_locally(asked, options=TWO)
    assert (again.already_there, again.extracted) == (summary.extracted, summary.left)
    assert_whole(path)


@pytest.mark.usefixtures("slow")
def test_ctrl_c_ends_all_and_nothing_stays_claimed(asked, tmp_path):
    def interrupt(progress: ExtractProgress) -> None:
        if progress.frames:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_locally(asked, options=TWO, progress=interrupt)
    assert not multiprocessing.active_children()
    nothing_claimed(tmp_path / "c.zarr")


@pytest.mark.usefixtures("slow")
def test_a_process_whose_parent_is_gone_lets_go_of_everything(asked, tmp_path, quick):
    path = tmp_path / "c.zarr"
    pipe, its_own = quick.Pipe(duplex=False)
    process = quick.Process(target=children.work, args=(asked, its_own, [], None))
    process.start()
    its_own.close()
    wait_for(lambda: list(list_claims(path)))
    pipe.close()  # as the system does for a process that was killed
    process.join(60)
    assert process.exitcode == 0
    nothing_claimed(path)
    assert len(open_cache(path).ids()) < 16


def test_a_process_begins_deaf_to_ctrl_c_and_knows_what_is_to_be_replaced(asked, monkeypatch):
    """Ctrl-C reaches it before it can say what is to become of it."""
    heard: list[object] = []
    given: list[object] = []

    class Process:
        pid = 1

        def __init__(self, *, target, args, daemon) -> None:
            assert daemon
            given.append((target, args[-1]))

        def start(self) -> None:
            heard.append(signal.getsignal(signal.SIGINT))

        def is_alive(self) -> bool:
            return False

        def join(self) -> None:
            pass

    context = SimpleNamespace(Process=Process, Pipe=multiprocessing.Pipe)
    monkeypatch.setattr(local, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
    before = signal.getsignal(signal.SIGINT)

    def begin_all() -> None:
        each = local._each(asked, ("cpu", "cpu"))
        options = {"stop": threading.Event(), "on_note": None}
        with local._Processes(each, attempts={"a": "0"}, **options):
            pass

    begin_all()
    assert heard == [signal.SIG_IGN] * 2
    assert given == [(children.work, {"a": "0"})] * 2
    assert signal.getsignal(signal.SIGINT) is before
    elsewhere = threading.Thread(target=begin_all)  # where no handler can be set
    elsewhere.start()
    elsewhere.join()
    assert heard[2:] == [before] * 2


def test_an_error_of_any_kind_is_told_in_one_line(asked, monkeypatch):
    told: list[child.Ended] = []

    def fail(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(child, "extract_videos", fail)
    monkeypatch.setattr(child.signal, "signal", lambda *_: None)
    child.work(asked, SimpleNamespace(send=told.append), [], None)
    (ended,) = told
    assert (ended.error, ended.exit_code) == ("RuntimeError: CUDA error: out of memory", 1)


def wait_for(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_the_error_of_all_processes_is_raised(asked, monkeypatch):
    monkeypatch.setattr(local, "work", children.refuse)
    with pytest.raises(UsageError, match="never heard of it on cpu"):
        extract_locally(asked, options=TWO)


def test_when_none_comes_to_its_end_each_death_is_said(asked, monkeypatch):
    monkeypatch.setattr(local, "work", children.crash)
    ends = r"no process came to its end: .*ended with exit code 7; .*ended with exit code 7$"
    notes: list[str] = []
    with pytest.raises(Vis4merError, match=ends):
        extract_locally(asked, options=TWO, on_note=notes.append)
    taken_up = [note.endswith("; the others take up its videos") for note in notes]
    assert taken_up == [True, False]  # by whom, when none is left?


def test_what_is_wrong_with_the_request_is_said_before_any_process_begins(asked, monkeypatch):
    monkeypatch.setattr(local, "_Processes", None)
    with pytest.raises(UsageError, match="nothing-here"):
        extract_locally(replace(asked, inputs=["nothing-here"]), options=TWO)


# Options --------------------------------------------------------------------------------------


def test_each_engine_of_the_catalogue_is_there():
    for name in ENGINES:
        with contextlib.suppress(ModuleNotFoundError):  # an optional library
            assert callable(engine_named(name))
    with pytest.raises(UsageError, match="expected one of inline, local"):
        engine_named("cloud")


def test_one_process_is_this_one(asked, monkeypatch):
    monkeypatch.setattr(request, "get_reader", lambda _: ex.FakeReader())
    monkeypatch.setattr(request, "_load", lambda *_, **__: ex.grey_backbone())
    pids: set[int] = set()

    def look(_: ExtractProgress) -> None:
        pids.update(child.pid or 0 for child in multiprocessing.active_children())

    options = EngineOptions(processes=1)
    assert extract_locally(asked, options=options, progress=look).extracted == 16
    assert not pids


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("inline", EngineOptions(devices=("cuda:0",)), "--devices goes with --engine local, not"),
        ("inline", TWO, "--processes goes with --engine local or ray"),
        (
            "local",
            EngineOptions(address="auto"),
            "--address goes with --engine ray, not with local",
        ),
        ("local", EngineOptions(devices=("cuda:0",), processes=2), "expected one of them"),
        ("local", EngineOptions(devices=("cuda:0", "cuda:0")), "expected each device once"),
        ("local", EngineOptions(processes=9999), "--processes 9999: .*expected at most"),
    ],
)
def test_options_that_an_engine_has_no_use_for_are_refused(asked, engine, options, words):
    with pytest.raises(UsageError, match=words):
        engine_named(engine)(asked, options=options)


@pytest.mark.parametrize(
    ("options", "device", "words"),
    [
        (TWO, "cuda:0", "--device cuda:0 beside --processes"),
        (EngineOptions(devices=("cuda:0", "cuda:1")), "cpu", "--device cpu beside --devices"),
    ],
)
def test_a_device_beside_other_devices_is_refused(asked, options, device, words):
    with pytest.raises(UsageError, match=words):
        extract_locally(replace(asked, device=device), options=options)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_profile_is_of_one_process(asked, tmp_path, engine):
    asked = replace(asked, profile=tmp_path / "p.json")
    with pytest.raises(UsageError, match=f"shows one process; leave out --engine {engine}"):
        engine_named(engine)(asked, options=EngineOptions())


def test_a_machine_without_gpu_says_what_to_do(asked, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError, match="--processes N"):
        extract_locally(asked, options=EngineOptions())


def test_each_gpu_has_a_process_a_share_and_its_part_of_the_limit(asked, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    devices = _devices(asked, EngineOptions())
    assert devices == ("cuda:0", "cuda:1", "cuda:2")
    each = _each(replace(asked, limit=7, share=Share(number=2, count=4)), devices)
    assert [request.device for request, _ in each] == list(devices)
    assert [str(request.share) for request, _ in each] == ["2/12", "6/12", "10/12"]
    assert [request.limit for request, _ in each] == [3, 2, 2]
    own = Share(number=2, count=4, helps=False)
    assert {request.share for request, _ in _each(replace(asked, share=own), devices)} == {own}


# Together -------------------------------------------------------------------------------------

ZERO = dict.fromkeys(STAGES, 0.0)


def ended(**about) -> ExtractSummary:
    plain = {
        **{"num_videos": 6, "extracted": 0, "already_there": 0, "changed": (), "failures": ()},
        **{"known_failures": (), "damaged": (), "left": 0, "frames": 0, "seconds": 1.0},
        **{"busy_seconds": ZERO, "threads": dict.fromkeys(STAGES, 1), "interrupted": False},
    }
    return ExtractSummary(**{**plain, **about})


def snapshot(**about) -> ExtractProgress:
    plain = {
        **{"num_videos": 6, "extracted": 0, "skipped": 0, "failed": 0, "frames": 0},
        **{"seconds": 1.0, "busy_share": ZERO, "reading": ()},
    }
    return ExtractProgress(**{**plain, **about})


def failure(video_id: str) -> FailureRecord:
    return FailureRecord(
        id=video_id,
        stage="decode",
        reason="told to",
        source_name=video_id,
        source_size=1,
        source_mtime_ns=1,
        time="2026-01-01T00:00:00+00:00",
    )


def counted(summary: ExtractSummary) -> int:
    held = sum(len(each.ids) for each in summary.held)
    counts = (summary.changed, summary.failures, summary.known_failures)
    return summary.extracted + summary.already_there + sum(map(len, counts)) + held + summary.left


def test_every_video_is_in_one_count_of_the_common_summary():
    outset = Outset(ids=tuple("abcdef"), attempts={"a": "0"}, overwrite=False)
    one = ended(extracted=1, already_there=2, failures=(failure("d"),), left=2, frames=10)
    other = ended(extracted=1, already_there=2, known_failures=(failure("d"),), frames=20)
    held = HeldVideos(host="elsewhere", pid=7, ids=("e", "b"), silent_seconds=1.0)
    parts = [
        Part(pid=1, summary=replace(one, held=(held,))),
        Part(pid=2, summary=replace(other, held=(held,))),
    ]
    attempts = {"a": "0", "b": "1", "c": "2"}  # b was done after it was seen in other hands
    summary = summary_together(parts, outset, attempts, stopped=False)
    assert (summary.extracted, summary.already_there, summary.frames) == (2, 1, 30)
    assert [each.id for each in summary.failures] == ["d"]
    assert not summary.known_failures
    assert [each.ids for each in summary.held] == [("e",)]
    assert summary.left == 1  # f
    assert counted(summary) == 6
    assert not summary.interrupted


def test_what_a_dead_process_had_done_counts_and_what_it_held_is_left():
    outset = Outset(ids=tuple("abcdef"), attempts={}, overwrite=False)
    held = HeldVideos(host=platform.node(), pid=2, ids=("f",), silent_seconds=0.0)
    parts = [
        Part(pid=1, summary=ended(extracted=3, already_there=2, held=(held,))),
        Part(pid=2, progress=snapshot(extracted=2, frames=9)),
    ]
    summary = summary_together(parts, outset, dict.fromkeys("abcde", "1"), stopped=True)
    assert (summary.extracted, summary.already_there, summary.held) == (5, 0, ())
    assert (summary.left, summary.interrupted, summary.exit_code) == (1, True, 1)
    assert counted(summary) == 6


def test_with_overwrite_only_a_new_attempt_is_done():
    outset = Outset(ids=tuple("abcdef"), attempts=dict.fromkeys("abc", "0"), overwrite=True)
    attempts = {"a": "1", "b": "0", "c": "0", "d": "1"}
    parts = [Part(pid=1, summary=ended(extracted=2, left=4, interrupted=True))]
    summary = summary_together(parts, outset, attempts, stopped=True)
    assert (summary.extracted, summary.left, summary.interrupted) == (2, 4, True)
    assert outset.num_skipped == 0


def test_one_snapshot_of_all():
    outset = Outset(ids=tuple("abcdef"), attempts={"a": "0"}, overwrite=False)
    assert progress_together([Part(pid=1)], outset) is None
    parts = [
        Part(pid=1, progress=snapshot(extracted=2, frames=8, skipped=1, reading=("d",))),
        Part(pid=2, progress=snapshot(extracted=1, frames=4, skipped=3, reading=("c",), failed=1)),
        Part(pid=3),
    ]
    together = progress_together(parts, outset)
    assert together is not None
    assert (together.extracted, together.skipped, together.failed) == (3, 1, 1)
    assert (together.num_videos, together.frames, together.reading) == (6, 12, ("c", "d"))
