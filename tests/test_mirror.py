"""Caches at a place: read through bounded copies here, with the values that are there or an error.

The place is a directory that delays, fails and counts; what came is compared with what the same
cache gives when it is opened by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import servers
from caches import make_cache
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import Cache, create_cache, find_cache, open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import DamagedEntryError, EntryNotFoundError, UsageError
from vis4mer.store.files import read_sealed, seal
from vis4mer.store.gc import collect_garbage
from vis4mer.store.layout import crc32c
from vis4mer.store.merge import merge_caches
from vis4mer.store.packing import pack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.records import record_path
from vis4mer.store.remote import retry
from vis4mer.store.remote.local import LocalPlace
from vis4mer.store.remote.mirror import cache_at, mirror_of
from vis4mer.store.remote.place import RemoteError, open_place
from vis4mer.store.remote.shelf import Shelf, default_shelf
from vis4mer.store.repair import repair_cache
from vis4mer.store.verify import verify_cache

MANY = 10**9  # bytes: a limit that nothing here reaches
PATIENCE_SECONDS = 30.0  # with others of which a test says that they come at the same time


class FarPlace(LocalPlace):
    """A directory that answers late, counts what is fetched, and spoils what it is told to.

    latency: seconds before each answer. together: so many must be fetched at the same time before
    the first of them is answered; it gives up waiting for the others in the end. spoil: by key, how
    often its bytes come wrong.
    """

    def __init__(
        self, root: Path, *, latency: float = 0.0, together: int = 1, can_list: bool = True
    ) -> None:
        super().__init__(root)
        self.latency = latency
        self.can_list = can_list
        self.fetched: Counter[str] = Counter()
        self.asked_sizes: Counter[str] = Counter()
        self.spoil: Counter[str] = Counter()
        self.broken = False
        self.at_once = self.most_at_once = 0
        self.together = together
        self._count = threading.Condition()

    def size(self, key: str) -> int | None:
        self.asked_sizes[key] += 1
        return super().size(key)

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        with self._count:
            self.fetched[key] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self._count.notify_all()
            if not self._count.wait_for(
                lambda: self.most_at_once >= self.together, PATIENCE_SECONDS
            ):
                self.together = 1
        try:
            time.sleep(self.latency)
            if self.broken:
                raise RemoteError(f"{self.url}/{key}: no answer in time (tried 5 times)")
            if self.spoil[key]:
                self.spoil[key] -= 1
                target.write(b"x" * (length or 1))
                return
            super().fetch(key, target, start=start, length=length)
        finally:
            with self._count:
                self.at_once -= 1


def remote(cache: Cache, folder: Path, *, limit: int = MANY, **fields) -> tuple[Cache, FarPlace]:
    place = FarPlace(cache.path, **fields)
    return cache_at(place, shelf=Shelf(folder / "shelf", limit_bytes=limit)), place


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_same_values(one: Cache, other: Cache) -> None:
    assert one.ids() == other.ids()
    for entry_id in one.ids():
        for array in one.record(entry_id).token_arrays:
            np.testing.assert_array_equal(one.read(entry_id, array), other.read(entry_id, array))


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_the_values_are_those_of_the_directory(tmp_path, packed):
    cache = make_cache(tmp_path, num_videos=3, frames=[8, 300, 1])
    if packed:
        pack_cache(cache, size_bytes=10**6)
        cache.refresh()
    far, _ = remote(cache, tmp_path)
    assert_same_values(cache, far)
    frames = [299, 0, 255, 256, 0]
    np.testing.assert_array_equal(
        far.read("v1", "patch", frames), cache.read("v1", "patch")[frames]
    )
    assert far.tasks() == ["toy/label"]
    assert far.task("toy/label") == cache.task("toy/label")
    assert digest_cache(far) == digest_cache(cache)
    assert far.failures() == []


def test_an_object_is_fetched_once_whoever_reads_it(tmp_path):
    cache = make_cache(tmp_path, num_videos=2, frames=20)
    far, place = remote(cache, tmp_path, latency=0.01)
    with ThreadPoolExecutor(8) as readers:
        list(readers.map(lambda i: far.read("v0", "patch", [i % 20]), range(40)))
    assert set(place.fetched.values()) == {1}
    again, second = remote(cache, tmp_path)
    again.read("v0")
    assert not second.fetched


def test_metadata_that_follows_from_the_record_is_not_asked_for(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    far, place = remote(cache, tmp_path)
    far.read("v0")
    assert [key.rpartition("/")[2] for key in place.fetched] == ["0"]  # the shard alone


def test_the_shards_of_one_clip_come_side_by_side(tmp_path):
    cache = make_cache(tmp_path, num_videos=1, frames=4 * 256)
    far, place = remote(cache, tmp_path, together=4)
    far.read("v0")
    assert len(place.fetched) == place.most_at_once == 4


def test_an_epoch_over_a_slow_place_is_not_serial(tmp_path):
    """Reads of a loader overlap: far more than the 4 threads of a cache on a disk."""
    import torch
    from vis4mer.decode.data.loader import TrainLoader
    from vis4mer.decode.data.plan import Sample, WindowPlan
    from vis4mer.store.windows import Window

    cache = make_cache(tmp_path, num_videos=24, frames=8)
    far, place = remote(cache, tmp_path, together=9)
    loader = TrainLoader(
        far,
        [Sample(id=f"v{i}", label=0, extent=Window(start=0, stop=8)) for i in range(24)],
        WindowPlan.of(far.spec, tokens="4x2x2", window_seconds=4.0),
        kind="classification",
        batch_size=4,
        windows_per_video=1,
        seed=0,
        workers=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert sum(len(batch.labels) for batch in loader.epoch(0)) == 24
    assert place.most_at_once > 8


# The copies -----------------------------------------------------------------------------------


def test_copies_stay_within_their_limit_and_nobody_notices(tmp_path):
    cache = make_cache(tmp_path, num_videos=12, frames=64)
    num_bytes = max(path.stat().st_size for path in files_of(cache.path / "videos"))
    far, place = remote(cache, tmp_path, limit=3 * num_bytes)
    expected = {entry_id: cache.read(entry_id) for entry_id in cache.ids()}

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 12, size=60):
            np.testing.assert_array_equal(far.read(f"v{i}"), expected[f"v{i}"])

    with ThreadPoolExecutor(2) as readers:
        list(readers.map(read, range(2)))
    assert sum(place.fetched.values()) > 12  # some were fetched again
    assert mirror_of(far).shelf.use().num_bytes <= 3 * num_bytes
    assert len(files_of(tmp_path / "shelf")) <= 3


def test_the_least_recently_used_goes_first(tmp_path):
    shelf = Shelf(tmp_path, limit_bytes=250)
    for name in ("aaaaaaaa", "bbbbbbbb"):
        put(shelf, name, b"x" * 100)
    close(shelf.open("aaaaaaaa", 100))
    put(shelf, "cccccccc", b"x" * 100)
    assert [shelf.has(name * 8, 100) for name in "abc"] == [True, False, True]


def test_another_size_is_another_file(tmp_path):
    shelf = Shelf(tmp_path, limit_bytes=MANY)
    put(shelf, "aaaaaaaa", b"xyz")
    assert shelf.open("aaaaaaaa", 4) is None
    (tmp_path / "elsewhere").write_bytes(b"abc")
    path = tmp_path / "objects/aa/aaaaaa"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert shelf.open("aaaaaaaa", 3) is None


def test_what_a_killed_process_left_goes_after_a_while(tmp_path):
    shelf = Shelf(tmp_path, limit_bytes=MANY)
    put(shelf, "aaaaaaaa", b"x")
    young, old = (tmp_path / f"objects/aa/.aaaaaa.{n}.tmp" for n in ("00", "11"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert shelf.use().num_bytes == 1
    assert young.exists()
    assert not old.exists()


def test_a_failed_copy_leaves_nothing(tmp_path):
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RemoteError("gone")

    with pytest.raises(RemoteError):
        Shelf(tmp_path, limit_bytes=MANY).add("aaaaaaaa", fail)
    assert files_of(tmp_path) == []


def put(shelf: Shelf, name: str, data: bytes) -> None:
    close(shelf.add(name, lambda file: file.write(data)))


def close(fd: int | None) -> None:
    assert fd is not None
    os.close(fd)


def test_all_copies_may_be_deleted_at_any_moment(tmp_path):
    cache = make_cache(tmp_path, num_videos=6, frames=64)
    far, _ = remote(cache, tmp_path)
    expected = {entry_id: cache.read(entry_id) for entry_id in cache.ids()}
    done, deleted = threading.Event(), []

    def delete() -> None:
        while not done.is_set():
            shutil.rmtree(tmp_path / "shelf", ignore_errors=True)
            deleted.append(True)

    with ThreadPoolExecutor(1) as other:
        deleting = other.submit(delete)
        try:
            read = 0
            while read < 100 or len(deleted) < 100:
                entry_id = f"v{read % 6}"
                np.testing.assert_array_equal(far.read(entry_id), expected[entry_id])
                read += 1
        finally:
            done.set()
    deleting.result()


def test_a_copy_that_rotted_is_fetched_again(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    remote(cache, tmp_path)[0].read("v0")
    (copy,) = files_of(tmp_path / "shelf")
    data = bytearray(copy.read_bytes())
    data[100] ^= 1
    copy.write_bytes(data)
    far, place = remote(cache, tmp_path)
    np.testing.assert_array_equal(far.read("v0"), cache.read("v0"))
    assert sum(place.fetched.values()) == 1


def read_all(path: str, folder: str, seed: int) -> str:
    """In a process of its own: the digest of all values, read in a random order."""
    far = cache_at(FarPlace(Path(path)), shelf=Shelf(Path(folder), limit_bytes=30_000))
    digest = hashlib.sha256()
    for i in np.random.default_rng(seed).permutation(np.repeat(range(8), 5)):
        far.read(f"v{i}")
    for entry_id in far.ids():
        digest.update(far.read(entry_id).tobytes())
    return digest.hexdigest()


def test_processes_share_the_copies(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=32)
    expected = hashlib.sha256(b"".join(cache.read(i).tobytes() for i in cache.ids())).hexdigest()
    code = "import sys, test_mirror; print(test_mirror.read_all(*sys.argv[1:3], int(sys.argv[3])))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(cache.path), str(tmp_path / "shelf"), str(seed)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    assert [process.communicate()[0].strip() for process in processes] == [expected, expected]
    assert Shelf(tmp_path / "shelf", limit_bytes=30_000).use().num_bytes <= 40_000


def test_a_forked_process_is_told_to_open_the_cache_itself(tmp_path):
    far, _ = remote(make_cache(tmp_path, num_videos=1), tmp_path)
    mirror_of(far)._process += 1
    with pytest.raises(UsageError, match=r"forked; open it here"):
        far.read("v0")


def test_where_copies_go_and_how_much_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VIS4MER_CACHE_DIR", raising=False)
    monkeypatch.delenv("VIS4MER_CACHE_SIZE", raising=False)
    assert default_shelf().folder == tmp_path / ".cache/vis4mer"
    free = shutil.disk_usage(tmp_path).free
    assert default_shelf().limit_bytes <= min(10**11, free)
    monkeypatch.setenv("VIS4MER_CACHE_DIR", str(tmp_path / "x"))
    monkeypatch.setenv("VIS4MER_CACHE_SIZE", "1.5GB")
    assert (default_shelf().folder, default_shelf().limit_bytes) == (tmp_path / "x", 1.5e9)
    monkeypatch.setenv("VIS4MER_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match=r"VIS4MER_CACHE_SIZE='much': expected a size"):
        default_shelf()


# Damage and failures --------------------------------------------------------------------------


def shard_of(cache: Cache, entry_id: str = "v0") -> Path:
    return cache.path / cache.record(entry_id).folder / "patch/c/0/0/0"


def test_a_download_that_came_wrong_is_asked_for_again(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    far, place = remote(cache, tmp_path)
    place.spoil[str(shard_of(cache).relative_to(cache.path))] = 1
    np.testing.assert_array_equal(far.read("v0"), cache.read("v0"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "crc32c"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "torn"),
        (lambda path: path.unlink(), "not there"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), None),
    ],
)
def test_a_damaged_object_is_an_error_with_its_address_and_video(tmp_path, harm, words):
    cache = make_cache(tmp_path, num_videos=1)
    far, place = remote(cache, tmp_path)
    expected = cache.read("v0")
    harm(shard_of(cache))
    if words is None:  # bytes beyond those recorded are never asked for
        np.testing.assert_array_equal(far.read("v0"), expected)
        return
    with pytest.raises(DamagedEntryError, match=words) as caught:
        far.read("v0")
    assert f"{place.url}/videos/" in str(caught.value)
    assert "'v0'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "shelf") == []


def edit_record(cache: Cache, entry_id: str, change) -> None:
    path = record_path(cache.path, cache.record(entry_id).key)
    content = read_sealed(path)
    change(content)
    content.pop("checksum")
    path.write_bytes(seal(content))


def test_a_claim_of_10_gb_is_refused_before_any_room_is_taken(tmp_path):
    cache = make_cache(tmp_path, num_videos=1, frames=1)
    edit_record(
        cache, "v0", lambda content: content["objects"]["patch/c/0/0/0"].update(size=10**10)
    )
    far, _ = remote(cache, tmp_path, limit=10**11)
    with pytest.raises(DamagedEntryError, match="torn"):
        far.read("v0")
    assert files_of(tmp_path / "shelf") == []
    small, place = remote(cache, tmp_path)
    with pytest.raises(UsageError, match="set VIS4MER_CACHE_SIZE, or pull"):
        small.read("v0")
    assert not place.fetched


def test_more_frames_than_there_are_bytes_take_no_memory(tmp_path):
    """Shapes that follow from nothing but the record, and a shard too small for them."""
    cache = make_cache(tmp_path, num_videos=1, frames=256)
    frames = 256 * 400

    def claim(content) -> None:
        content.update(num_frames=frames, pts_seconds=list(range(frames)))
        for array, about in content["arrays"].items():
            about["shape"][0] = frames
            first = content["objects"][f"{array}/c/0/0/0"]
            for shard in range(1, 400):
                content["objects"][f"{array}/c/{shard}/0/0"] = first

    edit_record(cache, "v0", claim)
    far, _ = remote(cache, tmp_path)
    with pytest.raises(DamagedEntryError, match="not there"):
        far.read("v0")


def test_a_list_that_is_older_than_the_cache_says_so(tmp_path):
    cache = make_cache(tmp_path, num_videos=2)
    old = cache.record("v0")
    from caches import write_tokens

    cache.remove("v0")
    write_tokens(cache, "v0", np.ones((8, 4, 16), np.float16))
    shutil.rmtree(cache.path / old.folder)
    assert cache.record("v0").attempt != old.attempt
    far, _ = remote(cache, tmp_path, can_list=False)  # catalog.json is all there is
    with pytest.raises(DamagedEntryError, match="replaced there since its list was made"):
        far.read("v0")
    cache.write_catalog()
    assert np.all(remote(cache, tmp_path, can_list=False)[0].read("v0") == 1)
    far.refresh()
    assert np.all(far.read("v0") == 1)


def test_entries_that_came_later_are_seen_after_a_refresh(tmp_path):
    from caches import write_tokens

    cache = make_cache(tmp_path, num_videos=1)
    far, place = remote(cache, tmp_path)
    assert far.ids() == ["v0"]
    write_tokens(cache, "late", np.ones((2, 4, 16), np.float16))
    asked = sum(place.asked_sizes.values())
    with pytest.raises(EntryNotFoundError):
        far.record("late")
    assert "late" not in far
    assert sum(place.asked_sizes.values()) == asked  # no request for each that is missing
    far.refresh()
    assert np.all(far.read("late") == 1)


def test_a_place_that_fails_is_no_damage(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    far, place = remote(cache, tmp_path)
    place.broken = True
    with pytest.raises(RemoteError, match=r"patch/c/0/0/0: no answer in time"):
        far.read("v0")
    place.broken = False
    np.testing.assert_array_equal(far.read("v0"), cache.read("v0"))


def test_an_array_of_other_codecs_is_read_from_a_directory_alone(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    path = cache.path / cache.record("v0").folder / "patch/zarr.json"
    data = path.read_bytes().replace(b'"bytes"', b'"bytez"')
    path.write_bytes(data)
    edit_record(
        cache,
        "v0",
        lambda content: content["objects"]["patch/zarr.json"].update(crc32c=crc32c(data)),
    )
    far, _ = remote(cache, tmp_path)
    with pytest.raises(UsageError, match="vis4mer cache pull"):
        far.read("v0")


# Checks of the place itself -------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", ["quick", "full"])
def test_verify_finds_nothing_in_a_sound_cache(tmp_path, mode, packed):
    cache = make_cache(tmp_path, num_videos=3)
    if packed:
        pack_cache(cache, size_bytes=10**6)
    far, place = remote(cache, tmp_path)
    report = verify_cache(far, mode)
    assert (report.num_entries, report.problems) == (3, ())
    assert (mode == "full") == bool(place.fetched)
    assert list((tmp_path / "shelf").iterdir()) == []


def test_verify_looks_at_the_place_not_at_the_copies(tmp_path):
    cache = make_cache(tmp_path, num_videos=2)
    far, _ = remote(cache, tmp_path)
    far.read("v0")
    shard = shard_of(cache)
    shard.write_bytes(b"x" * shard.stat().st_size)
    assert verify_cache(far, "quick").ok
    problems = verify_cache(far, "full").problems
    assert {(problem.id, problem.path) for problem in problems} == {("v0", "patch/c/0/0/0")}
    shard.write_bytes(b"x")
    assert [p.path for p in verify_cache(far, "quick").problems] == ["patch/c/0/0/0"]
    record = record_path(cache.path, cache.record("v1").key)
    record.write_bytes(b"{")
    (cache.path / "tasks/toy/label.json").write_bytes(b"{}")
    found = verify_cache(far, "quick").problems
    assert found[0].path == "tasks/toy/label.json"
    assert any(str(record.relative_to(cache.path)) in problem.reason for problem in found)
    assert len(found) == 3


def test_verify_removes_what_a_killed_one_left(tmp_path):
    far, _ = remote(make_cache(tmp_path, num_videos=1), tmp_path)
    young, old = (tmp_path / "shelf" / name for name in ("verify-young", "verify-old"))
    for folder in (young, old):
        (folder / "objects").mkdir(parents=True)
    os.utime(old, (1, 1))
    assert verify_cache(far, "full").ok
    assert (young.exists(), old.exists()) == (True, False)


def test_verify_of_a_place_that_fails_ends(tmp_path):
    far, place = remote(make_cache(tmp_path, num_videos=1), tmp_path)
    place.broken = True
    with pytest.raises(RemoteError, match="no answer"):
        verify_cache(far, "full")


def test_damaged_metadata_that_reading_needs_not_is_found_by_verify(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    far, _ = remote(cache, tmp_path)
    path = cache.path / cache.record("v0").folder / "patch/zarr.json"
    path.write_bytes(b"x" * path.stat().st_size)
    far.read("v0")
    assert {problem.path for problem in verify_cache(far, "full").problems} == {"patch/zarr.json"}


# What writes ----------------------------------------------------------------------------------

WRITERS = {
    "save_task": lambda cache, _: cache.save_task(cache.task("toy/label")),
    "write_entry": lambda cache, _: cache.write_entry("new", source=cache.record("v0").source),
    "remove": lambda cache, _: cache.remove("v0"),
    "write_catalog": lambda cache, _: cache.write_catalog(),
    "clear_failure": lambda cache, _: cache.clear_failure("v0"),
    "gc": lambda cache, _: collect_garbage(cache),
    "pool": lambda cache, _: pool_cache(cache, (1,)),
    "pack": lambda cache, _: pack_cache(cache, size_bytes=10**6),
    "repair": lambda cache, _: repair_cache(cache),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_writes_refuses(tmp_path, name):
    cache = make_cache(tmp_path, num_videos=2)
    before = {path: path.stat().st_mtime_ns for path in files_of(cache.path)}
    far, place = remote(cache, tmp_path)
    with pytest.raises(UsageError, match=f"{place.url} is remote and read-only: pull it first"):
        WRITERS[name](far, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in files_of(cache.path)} == before


@pytest.mark.parametrize("url", ["s3://bucket/x.zarr", "https://host/x.zarr", "hf://datasets/a/b"])
@pytest.mark.parametrize("kind", [str, Path])
def test_no_cache_is_made_at_an_address(tmp_path, monkeypatch, url, kind):
    monkeypatch.chdir(tmp_path)
    spec = make_cache(tmp_path / "here", num_videos=1).spec
    for make in (find_cache, lambda path: create_cache(path, spec)):
        with pytest.raises(UsageError, match=f"{url} is an address, expected a directory"):
            make(kind(url))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_file_address_is_the_directory(tmp_path):
    cache = make_cache(tmp_path, num_videos=1)
    opened = open_cache(f"file://{cache.path}")
    assert (opened.path, opened.is_remote) == (cache.path, False)
    assert open_cache(cache.path).name == str(cache.path)


def test_a_remote_cache_is_a_source_of_merges_and_repairs(tmp_path):
    cache = make_cache(tmp_path, num_videos=3)
    far, _ = remote(cache, tmp_path)
    merge_caches(tmp_path / "merged.zarr", [far])
    merged = open_cache(tmp_path / "merged.zarr")
    assert digest_cache(merged).root == digest_cache(cache).root
    assert verify_cache(merged, "full").ok
    shard = shard_of(merged)
    shard.unlink()
    assert repair_cache(merged, mirrors=[far]).exit_code == 0
    assert verify_cache(open_cache(merged.path), "full").ok


# Servers and commands -------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(a cache, its address on a web server, the server)."""
    pytest.importorskip("obstore")
    cache = make_cache(tmp_path, num_videos=12, frames=8, signal=1.0)
    monkeypatch.setenv("VIS4MER_CACHE_DIR", str(tmp_path / "copies"))
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    with servers.web_server() as site:
        for path in files_of(cache.path):
            site.objects[f"lvu.zarr/{path.relative_to(cache.path).as_posix()}"] = path.read_bytes()
        yield cache, f"{site.url}/lvu.zarr", site


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_a_cache_behind_a_web_server(served):
    cache, url, _ = served
    far = open_cache(url)
    assert_same_values(cache, far)
    again = pickle.loads(pickle.dumps(far))
    assert (again.address, again.spec) == (url, cache.spec)
    np.testing.assert_array_equal(again.read("v0"), cache.read("v0"))


def test_a_failing_server_is_asked_again_and_then_named(served):
    cache, url, site = served
    far = open_cache(url)
    site.faults += ["unavailable", "cut", "reset"]
    np.testing.assert_array_equal(far.read("v0"), cache.read("v0"))
    site.faults += ["unavailable"] * 50
    with pytest.raises(RemoteError, match=r"lvu\.zarr/videos/.*/patch/c/0/0/0: .*503.*tried"):
        far.read("v1")


def test_no_cache_at_an_address_is_said(served):
    _, url, _ = served
    with pytest.raises(UsageError, match="holds no feature cache"):
        open_cache(url.replace("lvu", "other"))


def test_commands_that_read_take_an_address(served, tmp_path):
    cache, url, _ = served
    for command in ("info", "ls", "digest", "verify"):
        code, here = run("cache", command, str(cache.path), "--json")
        there_code, there = run("cache", command, url, "--json")
        assert (code, there_code) == (0, 0), there
        if command in ("ls", "digest", "verify"):
            assert json.loads(there) == json.loads(here)
    code, text = run("cache", "info", url)
    assert code == 0
    assert url in text
    assert "remote and read-only" in text
    for to, source in (("a", str(cache.path)), ("b", url)):
        code, text = run("cache", "export", source, "--to", str(tmp_path / to), "--format", "npy")
        assert code == 0, text
    for path in (tmp_path / "a").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert list((tmp_path / "b").glob("*.npy"))


def test_training_from_an_address_is_training_from_the_directory(served, tmp_path):
    cache, url, _ = served
    settings = ["--task", "toy/label", "--decoder", "mean", "--epochs", "2", "--device", "cpu"]
    settings += ["--window", "4", "--batch-size", "4"]
    runs = [tmp_path / "near", tmp_path / "far"]
    for folder, source in zip(runs, (str(cache.path), url), strict=True):
        code, text = _train(folder, source, settings)
        assert code == 0, text
    near, far = ((folder / "last.safetensors").read_bytes() for folder in runs)
    assert near == far
    about = b"".join(path.read_bytes() for path in files_of(runs[1]))
    assert b"127.0.0.1" not in about  # a run knows what the cache is, not where it lay
    code, text = run("evaluate", "--run", str(runs[0]), "--cache", url, "--split", "test")
    assert code == 0, text


def test_a_run_goes_on_from_the_same_cache_elsewhere(served, tmp_path):
    cache, url, _ = served
    from vis4mer.decode.config import load_config
    from vis4mer.decode.train import train_decoder

    flags = {"task": "toy/label", "decoder.name": "mean", "device": "cpu", "epochs": 3}
    config = load_config(flags={**flags, "window_seconds": 4, "batch_size": 4})
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    train_decoder(cache, config, whole)

    def stop(_: object) -> None:
        if (moved / "last.safetensors").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_decoder(cache, config, moved, progress=stop)
    assert not (moved / "results.json").exists()
    train_decoder(open_cache(url), config, moved)
    assert (whole / "last.safetensors").read_bytes() == (moved / "last.safetensors").read_bytes()


def _train(folder: Path, cache: str, settings: list[str]) -> tuple[int, str]:
    return run("train-decoder", "--run", str(folder), "--cache", cache, *settings)


@pytest.mark.parametrize("command", ["gc", "unpack", "status"])
def test_commands_that_write_refuse_an_address(served, command):
    _, url, _ = served
    code, text = run("cache", command, url)
    assert code == 2
    assert "remote and read-only" in " ".join(text.split())


def test_a_cache_in_an_object_store(tmp_path, monkeypatch):
    for name in ("obstore", "moto", "flask_cors"):
        pytest.importorskip(name)
    cache = make_cache(tmp_path, num_videos=2)
    pack_cache(cache, size_bytes=10**6)
    cache.write_catalog()
    monkeypatch.setenv("VIS4MER_CACHE_DIR", str(tmp_path / "copies"))
    with servers.s3_server() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        place = open_place(f"{bucket.url}/lvu.zarr", writable=True)
        for path in files_of(cache.path):
            place.put(path.relative_to(cache.path).as_posix(), path)
        far = open_cache(f"{bucket.url}/lvu.zarr")
        assert_same_values(cache, far)
        assert verify_cache(far, "full").ok
