"""What thousands of workers would ask of a file server: nothing that grows with their number."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import extraction as ex
import pytest
from vis4mer.extract.engines.together import attempts_of
from vis4mer.extract.planning.share import Share
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.extract.stages.progress import Tally
from vis4mer.extract.stages.sharing import Sharing, leave_catalog
from vis4mer.render.status import print_status
from vis4mer.store import catalog, claims, workers
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.claims import Claims, claim_path, list_claims
from vis4mer.store.files import StorageError, seal, write_atomic
from vis4mer.store.gc import collect_garbage
from vis4mer.store.keys import entry_key
from vis4mer.store.records import record_path
from vis4mer.store.status import StatusWatch
from vis4mer.store.workers import LAPSE_SECONDS, Lookout, Worker, worker_path

FOUR = [f"{name}.mp4" for name in "abcd"]
MOST = 32  # looks at workers that live, with each sign


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def token_of(number: int) -> str:
    return f"{number:016x}"


def beat(root, number: int, count: int) -> None:
    worker = replace(Worker.here(token_of(number)), host="elsewhere", machine="", beat=count)
    path = worker_path(root, worker.token)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(seal(worker.to_json()))  # unflushed: there are thousands of them


def claimed_by(root, number: int, entry_id: str) -> None:
    write_atomic(claim_path(root, entry_id), seal({"id": entry_id, "worker": token_of(number)}))


@pytest.fixture
def looked(monkeypatch) -> Counter[str]:
    """How often each worker's file was read."""
    counts: Counter[str] = Counter()
    read = workers.read_worker

    def counted(root, token):
        counts[token] += 1
        return read(root, token)

    monkeypatch.setattr(workers, "read_worker", counted)
    return counts


def test_a_claim_that_stands_is_met_without_making_a_file(tmp_path, monkeypatch):
    beat(tmp_path, 1, 0)
    claimed_by(tmp_path, 1, "a")
    ours = Claims(tmp_path)
    assert ours.take("b") is None

    def refuse(*_):
        raise AssertionError("a file was made")

    monkeypatch.setattr(claims, "create_exclusive", refuse)
    with ours:
        sign = ours.take("a")
        assert sign is not None
        assert sign.token == token_of(1)


def test_one_that_lives_is_enough_to_know_that_others_are_at_work(tmp_path, looked):
    for number in range(20):
        beat(tmp_path, number, 0)
        claimed_by(tmp_path, number, f"v{number}")
    assert Claims(tmp_path).others_at_work()
    assert looked.total() == 1


def test_of_many_that_live_some_are_looked_at_with_each_sign_and_all_in_turn(tmp_path, looked):
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    for number in range(100):
        beat(tmp_path, number, 0)
        lookout.look(token_of(number))
    looked.clear()
    for turn in range(1, 5):
        clock.now += 30
        for number in range(100):
            beat(tmp_path, number, turn)
        before = looked.total()
        lookout.look_at_all()
        assert looked.total() - before == MOST
    assert len(looked) == 100
    assert max(looked.values()) <= 2


def test_who_falls_silent_among_many_has_lapsed_ten_minutes_later(tmp_path, looked):
    clock = Clock()
    lookout = Lookout(tmp_path, clock=clock)
    for number in range(100):
        beat(tmp_path, number, 0)
        lookout.look(token_of(number))
    for turn in range(1, 26):  # 4 signs until its turn has come, 20 of silence
        clock.now += 30
        for number in range(99):
            beat(tmp_path, number, turn)
        lookout.look_at_all()
    assert lookout.look(token_of(99)).lapsed
    assert not any(lookout.look(token_of(number)).lapsed for number in range(99))
    looked.clear()
    clock.now += 30
    lookout.look_at_all()
    assert looked[token_of(99)] == 0  # nothing more is to be learnt of it until it is met again
    beat(tmp_path, 99, 1)
    assert not lookout.look(token_of(99)).lapsed


@pytest.fixture
def cache(tmp_path):
    for name in ("a", "b", "c", "d"):
        ex.write_video(tmp_path / "videos", name, 3)
    return ex.grey_cache(tmp_path / "c.zarr")


def sharing_of(cache, claiming, *, overwrite=False) -> tuple[Sharing, Tally]:
    tally = Tally(num_videos=4, threads={})
    return Sharing(cache, claiming, overwrite=overwrite, tally=tally), tally


def fill(folder, cache, **options):
    return fill_cache(
        ex.videos(folder),
        create_cache(cache.path, cache.spec),
        ex.grey_backbone(),
        ex.FakeReader(),
        claiming=True,
        workers=1,
        **options,
    )


def test_what_is_there_of_others_shares_is_passed_by_after_one_listing(
    tmp_path, cache, monkeypatch
):
    videos = ex.videos(tmp_path / "videos")
    with Claims(cache.path) as claiming:
        sharing, tally = sharing_of(cache, claiming)
        helping = sharing.help_with(videos)  # asked for only when the own share is done
        fill(tmp_path / "videos" / "b.mp4", cache)
        fill(tmp_path / "videos" / "d.mp4", cache)
        assert sorted(video.id for video in helping) == ["a.mp4", "c.mp4"]
        assert tally.summary(interrupted=False).already_there == 2
        again, _ = sharing_of(cache, claiming, overwrite=True)
        assert len(list(again.help_with(videos))) == 4
        monkeypatch.setattr(catalog, "RECORDS", "nowhere")
        assert list(sharing.help_with([])) == []


def test_a_helper_looks_at_what_was_there_before_it_began(tmp_path, cache):
    """What others have just read is passed by; what is older may be damaged or of another file."""
    folder = tmp_path / "videos"
    fill(folder, cache)
    ex.write_video(folder, "b", 7)
    ex.write_video(folder, "c", 3)  # rewritten, and the same
    record_path(cache.path, entry_key("d.mp4")).write_text("{")
    share = next(each for each in shares(50) if not any(map(each.has, FOUR)))
    summary = fill(folder, cache, share=share)
    assert (summary.already_there, summary.changed) == (2, ("b.mp4",))
    (failure,) = summary.failures
    assert failure.id == "d.mp4"
    assert summary.exit_code == 3
    assert [video.id for video in help_from(cache, folder)] == FOUR


def shares(count: int) -> list[Share]:
    return [Share(number=number, count=count) for number in range(1, count + 1)]


def help_from(cache, folder) -> list[VideoSource]:
    with Claims(cache.path) as claiming:
        sharing, tally = sharing_of(cache, claiming)
        found = list(sharing.help_with(ex.videos(folder)))
        assert tally.summary(interrupted=False).already_there == 0
        return found


def test_with_overwrite_nothing_is_made_twice_whenever_workers_begin(tmp_path, cache):
    folder = tmp_path / "videos"
    fill(folder, cache)
    before = attempts_of(open_cache(cache.path), FOUR)
    again = [
        fill(folder, cache, share=share, overwrite=True, attempts=before) for share in shares(3)
    ]
    assert [(each.extracted, each.already_there) for each in again] == [(4, 0), (0, 4), (0, 4)]
    alone = fill(folder, cache, overwrite=True)  # which says by itself what was there
    assert alone.extracted == 4


def test_a_cache_that_has_all_may_be_read_only(tmp_path, cache, monkeypatch):
    folder = tmp_path / "videos"
    fill(folder, cache)
    (cache.path / catalog.CATALOG).unlink()

    def refuse(path, *_):
        raise StorageError(f"cannot write {path}: no permission")

    monkeypatch.setattr(claims, "create_exclusive", refuse)
    assert fill(folder, cache).already_there == 4
    leave_catalog(open_cache(cache.path))
    assert not (cache.path / catalog.CATALOG).exists()
    monkeypatch.undo()
    monkeypatch.setattr(catalog, "write_atomic", refuse)
    assert fill(folder, cache).already_there == 4
    ex.write_video(folder, "e", 3)
    with pytest.raises(StorageError):  # what it added should be in it
        fill(folder, cache)
    assert not list(list_claims(cache.path))


def test_who_led_others_writes_the_catalog_that_they_did_not(tmp_path, cache):
    catalog_file = cache.path / catalog.CATALOG
    with Claims(cache.path) as other:
        other.take("elsewhere.mp4")
        fill(tmp_path / "videos", cache)
        leave_catalog(cache)
        assert not catalog_file.exists()
    leave_catalog(cache)
    assert catalog_file.exists()
    assert not list(list_claims(cache.path))


def test_gc_writes_the_catalog_that_waited_for_a_lost_worker(tmp_path, cache):
    beat(cache.path, 1, 0)
    claimed_by(cache.path, 1, "elsewhere.mp4")
    fill(tmp_path / "videos", cache)
    later = time.time() - LAPSE_SECONDS - 60
    for path in (worker_path(cache.path, token_of(1)), claim_path(cache.path, "elsewhere.mp4")):
        os.utime(path, (later, later))
    collect_garbage(cache, grace_seconds=0, dry_run=True)
    assert not (cache.path / catalog.CATALOG).exists()
    assert collect_garbage(cache, grace_seconds=0).num_claims == 1
    assert (cache.path / catalog.CATALOG).exists()


def test_the_catalog_that_somebody_writes_is_no_video(cache, capsys):
    with Claims(cache.path) as claiming:
        claiming.take_chore(catalog.CATALOG)
        status = StatusWatch(cache).look()
        print_status(status, as_json=False)
        assert ": writes the catalog" in capsys.readouterr().out
        (worker,) = status.workers
        assert (worker.videos, worker.chores, worker.state) == ((), ("the catalog",), "working")
        claiming.take("a.mp4")
        (worker,) = StatusWatch(cache).look().workers
        assert worker.videos == ("a.mp4",)


def test_a_folder_of_records_may_go_while_the_catalog_is_judged(tmp_path, cache, monkeypatch):
    fill(tmp_path / "videos", cache)
    glob = Path.glob

    def with_one_gone(path, pattern):
        yield from glob(path, pattern)
        yield path / "gone"

    monkeypatch.setattr(Path, "glob", with_one_gone)
    assert not catalog.is_catalog_behind(cache.path)


def test_the_last_to_work_brings_the_catalog_up_to_date(tmp_path, cache):
    catalog_file = cache.path / catalog.CATALOG
    with Claims(cache.path) as other:
        other.take("d.mp4")
        assert fill(tmp_path / "videos", cache).extracted == 3
        assert not catalog_file.exists()  # the other will
        assert len(open_cache(cache.path)) == 3
    # It had nothing to encode any more, but saw what others have done.
    fill(tmp_path / "videos" / "d.mp4", cache)
    assert catalog_file.exists()
    assert not list(list_claims(cache.path))
    before = catalog_file.stat().st_mtime_ns
    assert fill(tmp_path / "videos", cache).already_there == 4
    assert catalog_file.stat().st_mtime_ns == before  # nothing new
