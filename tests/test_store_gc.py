"""Garbage goes after its grace period; what a record names never does."""

from __future__ import annotations

import errno
import os
import shutil
import time

import pytest
from entries import SOURCE, age, attempts, make_spec, make_tokens, record_file, tree, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import EntryNotFoundError, Vis4merError
from vis4mer.store.files import StorageError
from vis4mer.store.gc import collect_garbage
from vis4mer.store.replacement import rearranging, remove_entries
from vis4mer.store.verify import verify_cache

HOUR = 3600


@pytest.fixture
def cache(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    for entry_id in ("a", "b"):
        write(cache, entry_id, make_tokens(3, spec=cache.spec))
    return cache


def orphan(cache, entry_id="killed", hours=48.0):
    """An attempt as a killed writer leaves it."""
    writer = cache.write_entry(entry_id, source=SOURCE)
    before = set(attempts(cache))
    with writer as entry:
        entry.append(make_tokens(300, spec=cache.spec), pts_seconds=range(300))
        (name,) = set(attempts(cache)) - before
        shutil.copytree(cache.path / name, cache.path / (name[:-12] + "0" * 12))
    path = cache.path / (name[:-12] + "0" * 12)
    age(path, hours)
    return path


def test_nothing_to_do(cache):
    for path in (cache.path / "videos").glob("*/*"):
        age(path, 10_000)
    cache.write_catalog()
    before = tree(cache.path)
    report = collect_garbage(cache, grace_seconds=0)
    assert (report.num_files, report.num_bytes, report.paths) == (0, 0, ())
    after = tree(cache.path)
    del after["pool.lock"]  # stays
    assert after == before


def test_an_orphan_goes_after_the_grace_period(cache):
    old, young = orphan(cache), orphan(cache, "at work", hours=1)
    files = [path for path in old.rglob("*") if path.is_file()]
    expected = (len(files), sum(path.stat().st_size for path in files))
    before = tree(cache.path)
    dry = collect_garbage(cache, dry_run=True)
    assert tree(cache.path) == before
    report = collect_garbage(cache)
    assert report == dry
    assert (report.num_files, report.num_bytes) == expected
    assert report.num_bytes > 256 * 16 * 8 * 2
    assert report.paths == (old.relative_to(cache.path).as_posix(),)
    assert not old.exists()
    assert young.exists()
    assert collect_garbage(cache, grace_seconds=0.5 * HOUR).paths != ()
    assert not young.exists()
    assert verify_cache(open_cache(cache.path), "full").ok


def test_one_new_file_keeps_an_attempt(cache):
    path = orphan(cache)
    newest = next(path.glob("patch/c/0/0/0"))
    os.utime(newest)
    folders = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_dir()}
    assert all(ns < time.time_ns() - HOUR * 1e9 for ns in folders.values())
    assert collect_garbage(cache).paths == ()


def test_what_was_overwritten_rests_from_the_overwriting_on(cache):
    """However old its files are: somebody may have begun to read it a moment ago."""
    old = cache.path / cache.record("a").folder
    write(cache, "a", make_tokens(5, spec=cache.spec), overwrite=True)
    age(old, 10_000)
    assert collect_garbage(cache).paths == ()
    age(record_file(cache, "a"), 25)
    assert collect_garbage(cache).paths == (old.relative_to(cache.path).as_posix(),)
    assert open_cache(cache.path).read("a").shape[0] == 5


def test_removed_entries_rest_from_the_removal_on(cache):
    """However old their files are: somebody may have begun to read one a moment ago."""
    old = cache.path / cache.record("a").folder
    age(old, 10_000)
    reader = open_cache(cache.path)
    assert "a" in reader
    cache.remove("a")
    assert collect_garbage(cache).paths == ()
    assert reader.read("a").shape[0] == 3
    age(old, 25)
    assert collect_garbage(cache).paths == (old.relative_to(cache.path).as_posix(),)
    assert open_cache(cache.path).ids() == ["b"]


def test_an_unreadable_record_keeps_everything_of_its_video(cache):
    beside = orphan(cache, "a")
    path = record_file(cache, "a")
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    age(path, 10_000)
    for folder in attempts(cache):
        age(cache.path / folder, 10_000)
    assert collect_garbage(cache).paths == ()
    path.write_bytes(data)
    age(path, 10_000)
    assert collect_garbage(cache).paths == (beside.relative_to(cache.path).as_posix(),)


def test_temporary_files_go_and_nothing_else(cache):
    key = cache.record("a").key
    fan = cache.path / "records" / key[-16:-14]
    (cache.path / "tasks" / "lvu").mkdir(parents=True)
    garbage = [
        cache.path / ".catalog.json.0123456789ab.tmp",
        fan / f".{key}.json.0123456789ab.tmp",
        cache.path / "tasks" / "lvu" / ".way.json.0123456789ab.tmp",
        cache.path / "videos" / ".zarr.json.0123456789ab.tmp",
    ]
    kept = [cache.path / "notes.tmp", cache.path / ".hidden", fan / "x.json", cache.path / "x.tmp"]
    outside = cache.path.parent / ".outside.tmp"
    for path in (*garbage, *kept, outside):
        path.write_bytes(b"12345")
        age(path, 25)
    link = cache.path / ".link.tmp"
    link.symlink_to(outside)
    os.utime(link, (0, 0), follow_symlinks=False)
    young = cache.path / ".zarr.json.ffffffffffff.tmp"
    young.write_bytes(b"1")
    report = collect_garbage(cache)
    wanted = sorted(path.relative_to(cache.path).as_posix() for path in garbage)
    assert sorted(report.paths) == wanted
    assert (report.num_files, report.num_bytes) == (4, 20)
    assert not any(path.exists() for path in garbage)
    assert all(path.exists() for path in (*kept, outside, link, young))


def test_foreign_folders_and_links_are_never_touched(cache):
    outside = cache.path.parent / "outside"
    shutil.copytree(orphan(cache), outside)
    age(outside, 100)
    target = next(p for p in (cache.path / "videos").iterdir() if p.is_dir())
    link = target / f"{'x' * 10}-{target.name}{'0' * 14}.0123456789ab"
    link.symlink_to(outside)
    foreign = [target / "backup", target / "a.b", cache.path / "videos" / "zz"]
    wrong = cache.path / "videos" / "zz" / f"x-{'0' * 16}.0123456789ab"
    for path in (*foreign, wrong):
        path.mkdir()
        age(path, 100)
    report = collect_garbage(cache)
    assert len(report.paths) == 1
    assert all(path.exists() for path in (*foreign, wrong, outside, link))
    assert any(outside.iterdir())


def test_a_file_system_that_refuses_is_named(cache, monkeypatch):
    path = orphan(cache)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StorageError, match=path.name):
        collect_garbage(cache)


def test_ages_are_told_by_the_clock_of_the_files(cache, monkeypatch):
    """A machine two hours ahead of its file server must not take an attempt for an old one."""
    young = orphan(cache, hours=0.5)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * HOUR)
    assert collect_garbage(cache, grace_seconds=HOUR).paths == ()
    assert young.exists()
    assert collect_garbage(cache, grace_seconds=HOUR, dry_run=True).paths != ()  # as it says


@pytest.mark.parametrize("reason", [errno.ENOTEMPTY, errno.EBUSY])
def test_what_a_file_server_keeps_open_waits_for_the_next_run(cache, monkeypatch, reason):
    stuck, free = orphan(cache, "x"), orphan(cache, "y")
    remove = shutil.rmtree

    def refuse(path):
        if path == stuck:
            raise OSError(reason, os.strerror(reason), str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    report = collect_garbage(cache)
    assert report.kept == (stuck.relative_to(cache.path).as_posix(),)
    assert report.paths == (free.relative_to(cache.path).as_posix(),)
    monkeypatch.undo()
    assert collect_garbage(cache).kept == ()
    assert not stuck.exists()


def test_what_another_removes_meanwhile_is_gone(cache, monkeypatch):
    path = orphan(cache)
    remove = shutil.rmtree

    def late(path):
        next(path.glob("patch/c/0/0/0")).unlink()
        remove(path / "prefix")
        monkeypatch.undo()
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    monkeypatch.setattr(shutil, "rmtree", late)
    report = collect_garbage(cache)
    assert (len(report.paths), report.kept) == (1, ())
    assert not path.exists()


def test_two_at_once_take_turns(cache):
    path = orphan(cache)
    with rearranging(cache.path), pytest.raises(Vis4merError, match="at work in it"):
        collect_garbage(cache)
    assert path.exists()
    assert collect_garbage(cache, dry_run=True).paths != ()  # which needs no turn


def test_what_a_killed_pull_left_in_an_attempt_that_stands(cache):
    """It had begun to add an array, and was writing an object of it."""
    record = cache.record("a")
    folder = cache.path / record.folder
    garbage = [folder / "grid2/zarr.json", folder / "grid2/c/.0.0123456789ab.tmp"]
    kept = [folder / "notes.txt"]
    young = folder / "grid2/c/0/0/0"
    for path in (*garbage, *kept, young):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    age(folder, 25)
    os.utime(young)
    assert collect_garbage(cache).paths == ()  # the record is as young as that
    age(record_file(cache, "a"), 25)
    report = collect_garbage(cache)
    assert sorted(report.paths) == sorted(p.relative_to(cache.path).as_posix() for p in garbage)
    assert (report.num_files, report.num_bytes) == (2, 10)
    assert all(path.exists() for path in (*kept, young))
    assert verify_cache(open_cache(cache.path), "full").ok


def test_removing_takes_turns_and_counts_each_once(cache):
    with rearranging(cache.path), pytest.raises(Vis4merError, match="at work in it"):
        remove_entries(cache, ["a"])
    with pytest.raises(EntryNotFoundError):
        remove_entries(cache, ["a", "nobody"])
    assert cache.ids() == ["a", "b"]
    assert remove_entries(cache, ["a", "a"]) == 1
    assert open_cache(cache.path).ids() == ["b"]
    assert b'"a"' not in (cache.path / "catalog.json").read_bytes()
