"""Writing: what is committed stands whole, what is not leaves nothing, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading

import numpy as np
import pytest
from entries import SOURCE, attempts, make_spec, make_tokens, record_file, tree, write
from killing import in_child, killed_everywhere
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, Vis4merError
from vis4mer.store.failures import FailureRecord
from vis4mer.store.files import StorageError
from vis4mer.store.records import SourceRecord
from vis4mer.store.verify import verify_cache


@pytest.fixture
def cache(tmp_path):
    return create_cache(tmp_path / "c.zarr", make_spec())


def tokens_of(cache, value, num_frames=3):
    """Tokens that say which writer wrote them."""
    return {
        name: np.full_like(v, value) for name, v in make_tokens(num_frames, spec=cache.spec).items()
    }


def assert_clean(cache, *, entries, num_attempts=None):
    """Whole entries and nothing else; no temporary file anywhere."""
    fresh = open_cache(cache.path)
    assert fresh.ids() == sorted(entries)
    assert verify_cache(fresh, "full").ok
    assert len(attempts(cache)) == (len(entries) if num_attempts is None else num_attempts)
    assert not list(cache.path.rglob("*.tmp"))


def test_the_record_tells_what_was_given(cache):
    source = SourceRecord(name="a/ü.mp4", size=5, mtime_ns=-7, sha256="cd" * 32)
    tokens = make_tokens(3, spec=cache.spec)
    with cache.write_entry("a", source=source) as entry:
        entry.append(tokens, pts_seconds=[0.1, 1.0333333333, 2])
        assert entry.num_frames == 3
        assert open_cache(cache.path).ids() == []
        record = entry.commit(
            duration_seconds=3, damaged_frames=1, provenance={"host": "here", "torch": "2"}
        )
    stored = open_cache(cache.path).record("a")
    assert stored == record
    assert stored.pts_seconds == (0.1, 1.033333, 2.0)
    assert (stored.num_frames, stored.duration_seconds, stored.damaged_frames) == (3, 3.0, 1)
    assert stored.source == source
    assert stored.provenance == {"host": "here", "torch": "2"}
    assert_clean(cache, entries=["a"])


def test_pieces_of_any_size_give_the_same_entry(cache):
    tokens = make_tokens(300, spec=cache.spec)
    records = [write(cache, f"by {n}", tokens, piece=n) for n in (1, 7, 256, 300)]
    assert len({str(r.arrays) for r in records}) == 1
    objects = [{p: o for p, o in r.objects.items() if p != "zarr.json"} for r in records]
    assert all(o == objects[0] for o in objects)


def test_a_name_that_is_no_unicode_is_escaped():
    name = os.fsdecode(b"caf\xe9.mp4")
    assert SourceRecord(name=name, size=1, mtime_ns=1, sha256="").name == "caf\\udce9.mp4"


def test_leaving_without_commit_leaves_nothing(cache):
    before = set(tree(cache.path))
    with cache.write_entry("a", source=SOURCE) as entry:
        entry.append(make_tokens(300, spec=cache.spec), pts_seconds=range(300))
        assert len(attempts(cache)) == 1
    with contextlib.suppress(KeyboardInterrupt), cache.write_entry("b", source=SOURCE) as entry:
        entry.append(make_tokens(3, spec=cache.spec), pts_seconds=range(3))
        raise KeyboardInterrupt
    assert_clean(cache, entries=[])
    left = set(tree(cache.path)) - before  # the two groups that entries of these ids would be in
    assert {path.count("/") for path in left} <= {1, 2}
    assert not [path for path in left if path.endswith(".json") and "videos" not in path]


def test_the_first_commit_stands(cache):
    with (
        cache.write_entry("a", source=SOURCE) as slow,
        cache.write_entry("a", source=SOURCE) as fast,
    ):
        for writer, value in ((slow, 1), (fast, 2)):
            writer.append(tokens_of(cache, value), pts_seconds=range(3))
        first = fast.commit(duration_seconds=3)
        second = slow.commit(duration_seconds=3)
    assert second == first
    assert (open_cache(cache.path).read("a") == 2).all()
    assert_clean(cache, entries=["a"])


def test_one_of_many_threads_wins(cache):
    barrier = threading.Barrier(6)
    standing = []

    def run(value):
        with cache.write_entry("a", source=SOURCE) as entry:
            entry.append(tokens_of(cache, value), pts_seconds=range(3))
            barrier.wait()
            standing.append(entry.commit(duration_seconds=3))

    threads = [threading.Thread(target=run, args=(value,)) for value in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(standing) == 6
    assert len({record.attempt for record in standing}) == 1
    assert len(np.unique(open_cache(cache.path).read("a"))) == 1
    assert_clean(cache, entries=["a"])


def test_one_of_many_processes_wins(cache):
    ready, go = os.pipe(), os.pipe()
    children = []
    for value in range(1, 5):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                with cache.write_entry("a", source=SOURCE) as entry:
                    entry.append(tokens_of(cache, value), pts_seconds=range(3))
                    os.write(ready[1], b"x")
                    os.read(go[0], 1)
                    entry.commit(duration_seconds=3)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"xxxx")
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    for end in (*ready, *go):
        os.close(end)
    assert len(np.unique(open_cache(cache.path).read("a"))) == 1
    assert_clean(cache, entries=["a"])


def test_overwrite_replaces_and_a_failed_overwrite_does_not(cache):
    write(cache, "a", tokens_of(cache, 1))
    with cache.write_entry("a", source=SOURCE, overwrite=True) as entry:
        entry.append(tokens_of(cache, 2), pts_seconds=range(3))
    assert (open_cache(cache.path).read("a") == 1).all()
    write(cache, "a", tokens_of(cache, 3, num_frames=5), overwrite=True)
    assert (cache.read("a") == 3).all()
    assert open_cache(cache.path).read("a").shape[0] == 5
    assert_clean(cache, entries=["a"], num_attempts=2)  # a reader may still be in the old one


def test_removed_entries_can_be_written_again(cache):
    write(cache, "a", tokens_of(cache, 1))
    cache.remove("a")
    assert "a" not in open_cache(cache.path)
    write(cache, "a", tokens_of(cache, 2))
    assert (open_cache(cache.path).read("a") == 2).all()


def test_success_clears_the_failure(cache):
    failure = FailureRecord(
        id="a", stage="decode", reason="torn", source_name="a.mp4", source_size=1,
        source_mtime_ns=-1, time="2026-11-21T00:00:00Z",
    )  # fmt: skip
    cache.record_failure(failure)
    assert open_cache(cache.path).failures() == [failure]
    write(cache, "a", tokens_of(cache, 1))
    assert open_cache(cache.path).failures() == []


# What must not be committed ------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4])
@pytest.mark.parametrize("array", ["patch", "prefix"])
def test_values_that_do_not_fit_are_refused(cache, value, array):
    tokens = make_tokens(3, spec=cache.spec)
    tokens[array][1, 1, 1] = value
    said = "float16 cannot hold .* --dtype bfloat16" if value == 7e4 else "not a finite number"
    with pytest.raises(Vis4merError, match=said), cache.write_entry("a", source=SOURCE) as entry:
        entry.append(tokens, pts_seconds=range(3))
    assert_clean(cache, entries=[])


def test_times_that_are_no_numbers_are_refused(cache):
    tokens = make_tokens(3, spec=cache.spec)
    with cache.write_entry("a", source=SOURCE) as entry:
        with pytest.raises(Vis4merError, match="time is not a finite number"):
            entry.append(tokens, pts_seconds=[0, np.nan, 2])
        entry.append(tokens, pts_seconds=range(3))
        with pytest.raises(Vis4merError, match="duration"):
            entry.commit(duration_seconds=np.inf)
    assert_clean(cache, entries=[])


def test_an_entry_whose_append_failed_half_way_is_not_committed(cache):
    tokens = make_tokens(3, spec=cache.spec)
    with cache.write_entry("a", source=SOURCE) as entry:
        with pytest.raises(Vis4merError, match="not a finite"):
            entry.append(tokens | {"prefix": tokens["prefix"] * np.nan}, pts_seconds=range(3))
        entry.append(tokens, pts_seconds=range(3))
        with pytest.raises(CacheFormatError, match="array patch"):
            entry.commit(duration_seconds=3)
    assert_clean(cache, entries=[])


def test_frames_of_another_shape_are_refused(cache):
    tokens = make_tokens(3, spec=cache.spec)
    with cache.write_entry("a", source=SOURCE) as entry:
        with pytest.raises(ValueError, match="shape"):
            entry.append(tokens | {"patch": tokens["patch"][:, :5]}, pts_seconds=range(3))
        with pytest.raises(ValueError, match="3 frames, 2 timestamps"):
            entry.append(tokens, pts_seconds=range(2))
    with cache.write_entry("a", source=SOURCE) as entry:
        entry.append({name: v[:0] for name, v in tokens.items()}, pts_seconds=[])
        with pytest.raises(ValueError, match="no frames"):
            entry.commit(duration_seconds=1)
    assert_clean(cache, entries=[])


# Disks that refuse ---------------------------------------------------------------------------


def test_a_file_that_may_not_grow(cache):
    """A real refusal by the kernel, in the middle of a shard."""
    write(cache, "kept", tokens_of(cache, 1))

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match=r"cannot write .* may grow"):
            write(cache, "large", make_tokens(300, spec=cache.spec))

    assert in_child(work) == 0
    assert_clean(cache, entries=["kept"])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_every_flush(cache, error, monkeypatch):
    """Each fsync of a commit in turn finds the disk full (NFS says so only there)."""
    write(cache, "kept", tokens_of(cache, 1))
    fsync = os.fsync
    left = [0]

    def full(fd):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(error, os.strerror(error))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    refused = 0
    for n in range(1, 100):
        left[0] = n
        before = len(attempts(cache))
        try:
            write(cache, f"video {n}", tokens_of(cache, 2))
        except StorageError as refusal:
            said = str(refusal)
        else:
            break
        refused += 1
        assert str(cache.path) in said
        assert "free some space" in said
        standing = f"video {n}" in open_cache(cache.path)  # refused after the record stood
        assert len(attempts(cache)) - before == standing
        assert verify_cache(open_cache(cache.path), "full").ok
    assert refused > 10
    assert not list(cache.path.rglob("*.tmp"))


def test_a_commit_interrupted_after_its_record_keeps_its_tokens(cache, monkeypatch):
    """Ctrl-C between the record and the return of `commit` must not remove what it names."""

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "clear_failure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(cache, "a", tokens_of(cache, 1))
    assert (open_cache(cache.path).read("a") == 1).all()
    assert_clean(cache, entries=["a"])


# kill -9 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_moment_of_a_write(cache, overwrite):
    write(cache, "kept", tokens_of(cache, 1))
    if overwrite:
        write(cache, "a", tokens_of(cache, 2))

    def work():
        write(cache, "a", tokens_of(cache, 3), overwrite=overwrite)
        cache.write_catalog()

    seen = set()
    for _ in killed_everywhere(work):
        reader = open_cache(cache.path)
        assert verify_cache(reader, "full").ok
        assert (reader.read("kept") == 1).all()
        seen.add(float(reader.read("a").max()) if "a" in reader else None)
        if not overwrite and "a" in reader:  # so that the next process writes it again
            reader.remove("a")
    assert seen == ({2.0, 3.0} if overwrite else {None, 3.0})
    assert open_cache(cache.path).ids() == (["a", "kept"] if overwrite else ["kept"])


def test_killed_at_any_moment_of_making_a_cache(tmp_path):
    """The same command goes on."""

    def work():
        create_cache(tmp_path / f"{moments}.zarr", make_spec())

    moments = 0
    for moment in killed_everywhere(work):
        again = create_cache(tmp_path / f"{moments}.zarr", make_spec())
        write(again, "a", tokens_of(again, 1))
        assert open_cache(again.path).ids() == ["a"]
        assert verify_cache(again).ok
        moments = moment
    assert moments > 5


def test_torn_json_is_never_seen(cache):
    """A reader meets whole records at every moment of an overwrite."""
    write(cache, "a", tokens_of(cache, 0))
    path = record_file(cache, "a")
    stop = threading.Event()

    def overwrite():
        for value in range(1, 30):
            write(cache, "a", tokens_of(cache, value), overwrite=True)
        stop.set()

    writer = threading.Thread(target=overwrite)
    writer.start()
    values = []
    while not stop.is_set():
        values.append(float(open_cache(cache.path).read("a")[0, 0, 0]))
    writer.join()
    assert values == sorted(values)
    assert path.exists()
