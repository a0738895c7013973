"""Claims: one taker wins, the dead are told from the silent, and no clock is compared."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from entries import age, make_spec, make_tokens, tree, write
from killing import in_child, killed_everywhere
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.claims import (
    Claims,
    claim_path,
    clear_lapsed,
    list_claims,
    read_claim,
    withdraw,
)
from vis4mer.store.errors import CacheFormatError
from vis4mer.store.files import StorageError, seal, write_atomic
from vis4mer.store.gc import collect_garbage
from vis4mer.store.status import StatusWatch
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import Lookout, Worker, list_workers, read_worker, worker_path

MINUTE = 60.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def look_for(self, lookout: Lookout, token: str, seconds: float, *, every: float = 30.0):
        """Look now and again for so long; what the last look saw."""
        sign = lookout.look(token)
        for _ in range(round(seconds / every)):
            self.now += every
            sign = lookout.look(token)
        return sign


def elsewhere(token: str, *, beat: int = 0, **changes) -> Worker:
    """A worker on another host, whose clock is hours ahead."""
    worker = Worker.here(token)
    fields = {"host": "node7", "machine": "another boot", "started": "2099-01-01T00:00:00+00:00"}
    return replace(worker, beat=beat, **{**fields, **changes})


def give_sign(root: Path, worker: Worker) -> None:
    write_atomic(worker_path(root, worker.token), seal(worker.to_json()))


def claim_for(root: Path, entry_id: str, worker: Worker) -> None:
    give_sign(root, worker)
    data = seal({"id": entry_id, "worker": worker.token})
    write_atomic(claim_path(root, entry_id), data)


TOKEN = "ab" * 8


def test_a_video_is_one_workers_until_it_is_released(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("../a:é") is None
        sign = other.take("../a:é")
        assert (sign.token, sign.worker.pid, sign.gone) == (one.token, os.getpid(), False)
        assert other.take("b") is None
        one.release("../a:é")
        assert other.take("../a:é") is None
        one.release("../a:é")  # no longer its own
        assert one.take("../a:é").token == other.token
    assert list(list_claims(tmp_path)) == []
    assert list_workers(tmp_path) == []


def test_nothing_is_written_before_the_first_claim(tmp_path):
    with Claims(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_releases_what_is_held(tmp_path):
    def fail() -> None:
        with Claims(tmp_path) as claims:
            claims.take("a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_heartbeat_counts_and_survives_a_file_server_that_stops(tmp_path, monkeypatch):
    lost, kept = threading.Semaphore(0), threading.Semaphore(0)

    def fail(*_):
        lost.release()
        raise OSError(116, "Stale file handle")

    def write(*arguments):
        write_atomic(*arguments)
        kept.release()

    with Claims(tmp_path, beat_seconds=0.01) as claims:
        claims.take("a")
        with monkeypatch.context() as patch:
            patch.setattr("vis4mer.store.workers.write_atomic", fail)
            assert all(lost.acquire(timeout=60) for _ in range(3))
        before = read_worker(tmp_path, claims.token).beat
        monkeypatch.setattr("vis4mer.store.workers.write_atomic", write)
        assert all(kept.acquire(timeout=60) for _ in range(2))
        assert read_worker(tmp_path, claims.token).beat > before


# Who lives ------------------------------------------------------------------------------------


def test_silence_is_measured_by_the_observers_clock_alone(tmp_path):
    give_sign(tmp_path, elsewhere(TOKEN))
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    sign = clock.look_for(lookout, TOKEN, 9.5 * MINUTE)
    assert (sign.silent_seconds, sign.lapsed) == (570, False)
    give_sign(tmp_path, elsewhere(TOKEN, beat=1))
    assert lookout.look(TOKEN).silent_seconds == 0
    assert not clock.look_for(lookout, TOKEN, 9.5 * MINUTE).lapsed
    sign = clock.look_for(lookout, TOKEN, 10 * MINUTE)
    assert sign.lapsed
    assert not sign.gone
    give_sign(tmp_path, elsewhere(TOKEN, beat=2))  # it was asleep
    assert not lookout.look(TOKEN).lapsed


def test_a_pause_of_the_observer_is_no_silence_of_others(tmp_path):
    give_sign(tmp_path, elsewhere(TOKEN))
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    assert clock.look_for(lookout, TOKEN, 3600, every=3600).silent_seconds == 60
    assert not lookout.look(TOKEN).lapsed


def test_a_file_server_that_gives_errors_is_no_sign_of_death(tmp_path, monkeypatch):
    give_sign(tmp_path, elsewhere(TOKEN))
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)

    def stale(*_, **__):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("vis4mer.store.workers.read_json_bytes", stale)
        assert not clock.look_for(lookout, TOKEN, 30 * MINUTE).lapsed
    assert not clock.look_for(lookout, TOKEN, 9 * MINUTE).lapsed


def test_a_process_of_this_machine_that_ended_is_gone_at_once():
    here = Worker.here(TOKEN)
    assert not here.is_gone
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gone = replace(here, pid=pid)
    assert gone.is_gone
    assert replace(here, process_start=here.process_start - 1).is_gone  # its pid is used again
    assert not replace(gone, machine="another boot").is_gone
    assert not replace(gone, host="another host").is_gone
    assert not replace(gone, machine="").is_gone


def test_a_process_that_is_dead_and_not_yet_buried_is_gone(tmp_path):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        give_sign(tmp_path, Worker.here(TOKEN))
        os.write(tell, b"x")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    worker = read_worker(tmp_path, TOKEN)
    assert not worker.is_gone
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is dead, and stays unburied
    assert worker.is_gone
    os.waitpid(pid, 0)


# Taking over ----------------------------------------------------------------------------------


def test_what_a_dead_worker_held_is_taken_at_once(tmp_path):
    def die():
        claims = Claims(tmp_path)
        claims.take("a")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        (claim,) = list_claims(tmp_path)
        assert (claim.id, claim.worker) == ("a", claims.token)


def test_what_a_silent_worker_held_is_taken_after_ten_minutes(tmp_path):
    claim_for(tmp_path, "a", elsewhere(TOKEN))
    clock = Clock()
    with Claims(tmp_path, clock=clock) as claims:
        for _ in range(20):
            assert claims.take("a").token == TOKEN
            clock.now += 30
        assert claims.take("a") is None
        assert read_claim(claim_path(tmp_path, "a")).worker == claims.token


def test_an_own_claim_whose_answer_was_lost_is_held(tmp_path, monkeypatch):
    """A file server's client sends the link again, which finds what it has made itself."""
    link = os.link

    def losing(source, target):
        link(source, target)
        raise FileExistsError

    with Claims(tmp_path) as claims:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", losing)
            assert claims.take("a") is None
        with Claims(tmp_path) as other:
            assert other.take("a").token == claims.token
    assert list(list_claims(tmp_path)) == []


def test_no_claim_is_no_yes(tmp_path, monkeypatch):
    """A video whose claim comes and goes at every try is somebody else's."""
    monkeypatch.setattr("vis4mer.store.claims.create_exclusive", lambda *_: False)
    with Claims(tmp_path) as claims:
        assert claims.take("a") is not None


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_a_workers_file_that_is_not_to_be_read_blocks_nobody_for_ever(tmp_path, monkeypatch, error):
    claim_for(tmp_path, "a", elsewhere(TOKEN))

    def refuse(*_):
        raise OSError(error, "refused")

    monkeypatch.setattr("vis4mer.store.workers.read_worker", refuse)
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    assert clock.look_for(lookout, TOKEN, 5 * MINUTE).silent_seconds == 5 * MINUTE
    give_sign(tmp_path, elsewhere(TOKEN, beat=1))  # which shows on the file without reading it
    assert clock.look_for(lookout, TOKEN, 9 * MINUTE).silent_seconds < 10 * MINUTE
    assert clock.look_for(lookout, TOKEN, MINUTE).lapsed


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_servers_trouble_is_no_sign_of_anything(tmp_path, monkeypatch, error):
    claim_for(tmp_path, "a", elsewhere(TOKEN))

    def fail(*_):
        raise OSError(error, "trouble")

    monkeypatch.setattr("vis4mer.store.workers.read_worker", fail)
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    assert clock.look_for(lookout, TOKEN, 60 * MINUTE).silent_seconds == 0


@pytest.mark.parametrize("folder", ["claims", "claims/workers"])
def test_linked_folders_of_claims_are_not_followed(tmp_path, folder):
    claim_for(tmp_path / "other", "a", elsewhere(TOKEN))
    root = tmp_path / "c.zarr"
    (root / folder).parent.mkdir(parents=True)
    (root / folder).symlink_to(tmp_path / "other" / folder)
    before = tree(tmp_path / "other")
    assert clear_lapsed(root, latest=time.time() + 1000) == {}
    with Claims(root) as claims, pytest.raises(StorageError, match="a link stands at"):
        claims.take("b")
    assert tree(tmp_path / "other") == before


@pytest.mark.parametrize("data", [b"", b"{}", b'{"id":"a"}', b"x" * 100_000, b"[" * 60_000])
def test_a_damaged_claim_is_one_of_a_silent_worker(tmp_path, data):
    path = claim_path(tmp_path, "a")
    write_atomic(path, data)
    clock = Clock()
    with Claims(tmp_path, clock=clock) as claims:
        sign = claims.take("a")
        assert sign.worker is None
        assert not sign.lapsed
        for _ in range(20):
            clock.now += 30
            sign = claims.take("a")
        assert sign is None
    assert not path.exists()


@pytest.mark.parametrize("worker", ["../../../etc/x", "AB" * 8, "", "a" * 17])
def test_a_claim_names_no_path(tmp_path, worker):
    path = claim_path(tmp_path, "a")
    write_atomic(path, seal({"id": "a", "worker": worker}))
    assert read_claim(path).id is None
    assert read_claim(path).worker == path.stem


def test_a_claim_of_another_video_is_damaged(tmp_path):
    path = claim_path(tmp_path, "a")
    write_atomic(path, seal({"id": "b", "worker": TOKEN}))
    assert read_claim(path).id is None


def test_a_worker_of_an_impossible_pid_is_refused(tmp_path):
    for pid in (0, -1, 1 << 40):
        give_sign(tmp_path, elsewhere(TOKEN, pid=pid))
        with pytest.raises(CacheFormatError, match="pid"):
            read_worker(tmp_path, TOKEN)
        assert Lookout(tmp_path).look(TOKEN).worker is None


def test_a_claim_that_changed_hands_is_given_back(tmp_path):
    claim_for(tmp_path, "a", elsewhere(TOKEN))
    observed = read_claim(claim_path(tmp_path, "a"))
    claim_for(tmp_path, "a", elsewhere("cd" * 8))
    assert not withdraw(observed)
    assert read_claim(claim_path(tmp_path, "a")).worker == "cd" * 8
    assert withdraw(read_claim(claim_path(tmp_path, "a")))
    assert not withdraw(observed)


def test_who_judges_late_moves_no_claim_of_the_living(tmp_path, monkeypatch):
    """A judges the dead, B takes over, and only then A acts: at no moment finds C no claim."""

    def die():
        Claims(tmp_path).take("a")
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(die)
    slow, quick, third = (Claims(tmp_path) for _ in range(3))
    look, rename = Lookout.look, Path.rename
    taken: list[str] = []

    def look_long(lookout, token):
        sign = look(lookout, token)
        if lookout is slow._lookout and not taken:
            assert quick.take("a") is None
            taken.append("by quick")
        return sign

    def rename_and_try(source, target):
        done = rename(source, target)
        if taken and source == claim_path(tmp_path, "a") and third.take("a") is None:
            taken.append("by third")
        return done

    monkeypatch.setattr(Lookout, "look", look_long)
    monkeypatch.setattr(Path, "rename", rename_and_try)
    holder = slow.take("a")
    monkeypatch.undo()
    assert taken == ["by quick"]
    assert holder.token == quick.token
    for claims in (slow, quick, third):
        claims.__exit__(None, None, None)
    assert list(list_claims(tmp_path)) == []


def test_of_many_takers_one_wins(tmp_path):
    """Threads that all see the same dead worker: each of its videos has one new owner."""
    ids = [f"v{i}" for i in range(12)]

    def die():
        claims = Claims(tmp_path)
        for entry_id in ids:
            claims.take(entry_id)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(die)
    workers = [Claims(tmp_path) for _ in range(6)]
    won: list[str] = []
    start = threading.Barrier(len(workers))

    def take_all(claims: Claims) -> None:
        start.wait()
        won.extend(entry_id for entry_id in ids if claims.take(entry_id) is None)

    threads = [threading.Thread(target=take_all, args=(claims,)) for claims in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(won) == Counter(ids)
    for claims in workers:
        claims.__exit__(None, None, None)
    assert list(list_claims(tmp_path)) == []


def _contend(root: Path, seconds: float, log: Path) -> None:
    """Take and release one video for a while; a file that two may not make at once tells."""
    with Claims(root) as claims:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if claims.take("a") is None:
                fd = os.open(log, os.O_CREAT | os.O_EXCL)
                os.close(fd)
                log.unlink()
                claims.release("a")


def test_processes_never_hold_one_video_together(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, 0.5, tmp_path / "in hand")
    processes = [context.Process(target=_contend, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_taker_killed_anywhere_leaves_the_video_to_the_next(tmp_path):
    def take() -> None:
        with Claims(tmp_path) as claims:
            claims.take("a")

    for _ in killed_everywhere(take):
        with Claims(tmp_path) as claims:
            assert claims.take("a") is None


def test_a_directory_that_refuses_is_named(tmp_path):
    (tmp_path / "claims").write_text("a file")
    with Claims(tmp_path) as claims, pytest.raises(StorageError, match="claims"):
        claims.take("a")


# Garbage, verification, status ----------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    write(cache, "a", make_tokens(3, spec=cache.spec))
    return cache


def kill_a_worker(root: Path, entry_id: str) -> str:
    def die():
        claims = Claims(root)
        claims.take(entry_id)
        os.kill(os.getpid(), signal.SIGKILL)

    before = set(list_workers(root))
    in_child(die)
    return (set(list_workers(root)) - before).pop()


def test_garbage_takes_the_claims_of_the_dead_and_no_others(cache):
    token = kill_a_worker(cache.path, "b")
    claim_for(cache.path, "c", elsewhere(TOKEN))
    with Claims(cache.path) as living:
        living.take("d")
        dry = collect_garbage(cache, dry_run=True)
        report = collect_garbage(cache, grace_seconds=0)
        expected = {
            claim_path(cache.path, "b").relative_to(cache.path).as_posix(),
            f"claims/workers/{token}.json",
        }
        assert set(report.paths) == set(dry.paths) == expected
        assert (report.num_claims, report.num_files) == (1, 2)
        assert {claim.id for claim in list_claims(cache.path)} == {"c", "d"}
        for path in (claim_path(cache.path, "c"), worker_path(cache.path, TOKEN)):
            age(path, 25)
        age(claim_path(cache.path, "d"), 25)  # a long video; its worker is fresh
        assert collect_garbage(cache).num_claims == 1
        assert {claim.id for claim in list_claims(cache.path)} == {"d"}
    assert collect_garbage(cache, grace_seconds=0).paths == ()


def test_claims_are_no_concern_of_verification(cache):
    kill_a_worker(cache.path, "b")
    write_atomic(claim_path(cache.path, "x"), b"damaged")
    assert verify_cache(open_cache(cache.path), mode="full").problems == ()


def test_status_says_who_does_what_and_writes_nothing(cache):
    dead = kill_a_worker(cache.path, "b")
    ended = kill_a_worker(cache.path, "e")
    withdraw(read_claim(claim_path(cache.path, "e")))
    claim_for(cache.path, "c", elsewhere(TOKEN, beat=7))
    write_atomic(claim_path(cache.path, "x"), b"damaged")
    clock = Clock()
    with Claims(cache.path) as living:
        living.take("d")
        before = tree(cache.path)
        watch = StatusWatch(cache, lookout=Lookout(cache.path, clock=clock))
        status = watch.look()
        assert (status.num_videos, status.num_failures, status.watched_seconds) == (1, 0, 0)
        workers = {worker.token: worker for worker in status.workers}
        assert (workers[dead].state, workers[dead].videos) == ("gone", ("b",))
        assert ended not in workers
        assert (workers[TOKEN].state, workers[TOKEN].videos) == ("working", ("c",))
        assert (workers[TOKEN].host, workers[TOKEN].beat) == ("node7", 7)
        assert (workers[living.token].pid, workers[living.token].videos) == (os.getpid(), ("d",))
        assert claim_path(cache.path, "x").stem not in workers
        assert status.damaged_claims == (claim_path(cache.path, "x").name,)
        for _ in range(20):
            clock.now += 30
            status = watch.look()
        workers = {worker.token: worker for worker in status.workers}
        assert (workers[TOKEN].state, workers[TOKEN].silent_seconds) == ("silent", 600)
        assert tree(cache.path) == before


def test_the_status_command(cache):
    kill_a_worker(cache.path, "b")
    claim_for(cache.path, "[red]c", elsewhere(TOKEN, host="[bold]node7\x1b"))
    write_atomic(claim_path(cache.path, "x"), b"\x1b[2Jdamaged")
    shown = CliRunner().invoke(app, ["cache", "status", str(cache.path)]).output
    assert "1 damaged claim in claims/" in shown
    assert "1 video done (by their records, unread), 0 failed" in shown
    assert "GONE: its process has ended" in shown
    assert "[bold]node7\\x1b pid" in shown
    assert "[red]c" in shown
    assert "--watch 30" in shown
    result = CliRunner().invoke(app, ["cache", "status", str(cache.path), "--json"])
    assert {worker["state"] for worker in json.loads(result.stdout)["workers"]} == {
        "gone",
        "working",
    }
