"""Pushing and pulling caches, over a directory as the place: what arrives, what never does."""

from __future__ import annotations

import errno
import json
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from caches import make_cache, make_spec, write_tokens
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.catalog import CATALOG, catalog_bytes, parse_catalog
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import CacheFormatError, FingerprintError, UsageError, Vis4merError
from vis4mer.store.files import StorageError, seal
from vis4mer.store.pooling import pool_cache
from vis4mer.store.records import record_path
from vis4mer.store.remote.local import LocalPlace
from vis4mer.store.remote.place import PlacedObject, RemoteError
from vis4mer.store.transfer import arriving
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache

SPLITS = ["train", "train", "val", "test", "test", "train"]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = make_cache(
        tmp_path, num_videos=6, frames=[5, 300, 1, 7, 8, 3], grid=(4, 4), dim=8, splits=SPLITS
    )
    made.write_catalog()
    return made


class Recorder(LocalPlace):
    """A directory that notes what is asked of it, and fails when told to."""

    def __init__(self, root: Path, *, can_list: bool = True, puts_left: int = 10**9) -> None:
        super().__init__(root)
        self.can_list = can_list
        self.puts_left = puts_left
        self.put_keys: list[str] = []
        self._counting = threading.Lock()

    def put(self, key, source, *, only_new=False):
        with self._counting:
            if self.puts_left <= 0:
                raise RemoteError(f"{self.url}/{key}: no answer")
            self.puts_left -= 1
            self.put_keys.append(key)
        return super().put(key, source, only_new=only_new)

    def list(self, prefix):
        if not self.can_list:
            raise UsageError(f"{self.url}: cannot list")
        return super().list(prefix)


def same_values(left: Path, right: Path) -> bool:
    """By reading every array of every entry of both."""
    a, b = open_cache(left), open_cache(right)
    if a.ids() != b.ids() or a.tasks() != b.tasks():
        return False
    return all(
        np.array_equal(a.read(i, array), b.read(i, array))
        and a.record(i).pts_seconds == b.record(i).pts_seconds
        for i in a.ids()
        for array in a.record(i).token_arrays
    )


@pytest.mark.parametrize("pack_bytes", [None, 1, 20_000])
def test_a_round_trip_keeps_every_value(cache: Cache, tmp_path: Path, pack_bytes) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    pushed = push_cache(cache.path, str(there), pack_bytes=pack_bytes)
    assert (len(pushed.copied), pushed.exit_code, pushed.tasks) == (6, 0, ("toy/label",))
    assert (pushed.num_packs > 0) == (pack_bytes is not None)
    assert same_values(cache.path, there)
    pulled = pull_cache(str(there), back)
    assert len(pulled.copied) == 6
    assert same_values(cache.path, back)
    assert verify_cache(open_cache(there), "full").ok
    assert verify_cache(open_cache(back), "full").ok
    assert digest_cache(open_cache(back)).root == digest_cache(cache).root
    assert not (back / "packs").exists()


def test_only_what_is_lacking_travels(cache: Cache, tmp_path: Path) -> None:
    place = Recorder(tmp_path / "there")
    push_cache(cache.path, place)
    write_tokens(cache, "new", np.ones((2, 16, 8), np.float16))
    place.put_keys.clear()
    summary = push_cache(cache.path, place)
    assert (summary.copied, summary.present) == (("new",), 6)
    key = cache.record("new").key
    assert all(
        key in name or name in (CATALOG, "README.md") or name.endswith("/zarr.json")
        for name in place.put_keys
    )
    assert push_cache(cache.path, place).num_bytes == 0


def test_records_follow_their_objects_and_the_catalog_all(cache: Cache, tmp_path: Path) -> None:
    place = Recorder(tmp_path / "there")
    push_cache(cache.path, place, jobs=3)
    for entry_id in cache.ids():
        key = cache.record(entry_id).key
        record = next(
            i for i, k in enumerate(place.put_keys) if k.startswith("records/") and key in k
        )
        objects = [i for i, k in enumerate(place.put_keys) if k.startswith("videos/") and key in k]
        assert objects
        assert max(objects) < record
    table = place.put_keys.index("tasks/toy/label.json")
    assert max(i for i, k in enumerate(place.put_keys) if k.startswith("records/")) < table
    assert place.put_keys[-1] == CATALOG


@pytest.mark.parametrize(
    ("puts", "pack_bytes"),
    [*((puts, None) for puts in range(0, 30, 4)), *((puts, 20_000) for puts in range(0, 12, 2))],
)
def test_a_place_that_fails_leaves_a_smaller_cache(
    cache: Cache, tmp_path: Path, puts: int, pack_bytes
) -> None:
    there = tmp_path / "there"
    with pytest.raises(RemoteError):
        push_cache(cache.path, Recorder(there, puts_left=puts), jobs=2, pack_bytes=pack_bytes)
    if (there / "zarr.json").exists():
        half = open_cache(there)
        for entry_id in half.ids():
            assert np.array_equal(half.read(entry_id), cache.read(entry_id))
    push_cache(cache.path, str(there), pack_bytes=pack_bytes)
    assert same_values(cache.path, there)


def test_parts_by_task_split_ids_and_arrays(cache: Cache, tmp_path: Path) -> None:
    pool_cache(cache, (2,))
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    test = [row.id for row in cache.task("toy/label").split("test")]
    part = tmp_path / "part"
    chosen = Selection(task="toy/label", split="test", arrays=("grid2",))
    pulled = pull_cache(str(there), part, chosen)
    assert pulled.copied == tuple(sorted(test))
    opened = open_cache(part)
    assert opened.spec.arrays == ("grid2",)
    assert np.array_equal(opened.read(test[0], "grid2"), cache.read(test[0], "grid2"))
    files = {path.name for path in part.rglob("*") if path.is_dir()}
    assert "patch" not in files
    wider = pull_cache(str(there), part)
    assert len(wider.copied) == 6
    assert wider.num_bytes < sum(cache.record(i).num_bytes for i in cache.ids())
    assert same_values(cache.path, part)
    only = pull_cache(str(there), tmp_path / "only", Selection(ids=("v1",)))
    assert only.copied == ("v1",)


def test_a_place_that_cannot_list_is_read_by_its_catalog(cache: Cache, tmp_path: Path) -> None:
    push_cache(cache.path, str(tmp_path / "there"))
    pull_cache(Recorder(tmp_path / "there", can_list=False), tmp_path / "back")
    assert same_values(cache.path, tmp_path / "back")
    (tmp_path / "there" / CATALOG).unlink()
    with pytest.raises(Exception, match=r"catalog\.json: needed"):
        pull_cache(Recorder(tmp_path / "there", can_list=False), tmp_path / "other")


def test_a_catalog_that_is_behind_is_seen_through(cache: Cache, tmp_path: Path) -> None:
    """An entry overwritten after the catalog: its record has the same size and other objects."""
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    old = (there / CATALOG).read_bytes()
    other = open_cache(there)
    source = other.record("v0").source
    with other.write_entry("v0", source=source, overwrite=True) as entry:
        tokens = {
            "patch": np.ones((5, 16, 8), np.float16),
            "prefix": np.ones((5, 1, 8), np.float16),
        }
        entry.append(tokens, pts_seconds=[0, 1, 2, 3, 4])
        entry.commit(duration_seconds=5.0, provenance=cache.record("v0").provenance)
    (there / CATALOG).write_bytes(old)
    for folder in (there / "videos").glob(
        f"*/{cache.record('v0').key}.{cache.record('v0').attempt}"
    ):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    pull_cache(Recorder(there, can_list=False), tmp_path / "back")
    assert (open_cache(tmp_path / "back").read("v0") == 1).all()


def test_damage_at_the_source_is_a_failure_of_its_own(cache: Cache, tmp_path: Path) -> None:
    record = cache.record("v3")
    shard = cache.path / record.folder / "patch/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    for pack_bytes in (None, 10**6):
        summary = push_cache(cache.path, str(tmp_path / f"at{pack_bytes}"), pack_bytes=pack_bytes)
        assert [failure.id for failure in summary.failures] == ["v3"]
        assert (len(summary.copied), summary.exit_code) == (5, 3)
        assert "v3" not in open_cache(tmp_path / f"at{pack_bytes}")


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "longer"])
@pytest.mark.parametrize("pack_bytes", [None, 10**6])
def test_damage_at_the_place_never_arrives(
    cache: Cache, tmp_path: Path, harm: str, pack_bytes
) -> None:
    there = tmp_path / "there"
    push_cache(cache.path, str(there), pack_bytes=pack_bytes)
    record = open_cache(there).record("v1")
    path = there / record.folder / "patch/c/0/0/0"
    start = 0
    if record.pack is not None:
        path, start = there / record.pack.path, record.pack.offsets["patch/c/0/0/0"]
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[start + 50] ^= 16
    elif harm == "cut":
        del data[start + 60 :]
    elif harm == "longer":
        data += b"more"
    path.write_bytes(data)
    if harm == "gone":
        path.unlink()
    summary = pull_cache(str(there), tmp_path / "back")
    back = open_cache(tmp_path / "back")
    if harm == "longer":  # what the record names is there, and nothing else is read
        assert same_values(cache.path, tmp_path / "back")
        return
    assert "v1" in {failure.id for failure in summary.failures}
    assert "v1" not in back
    for entry_id in back.ids():
        assert np.array_equal(back.read(entry_id), cache.read(entry_id))


def test_hosts_and_folders_stay_home(cache: Cache, tmp_path: Path) -> None:
    data = json.loads(record_path(cache.path, cache.record("v0").key).read_text())
    assert data["provenance"] == {}
    spec = make_spec(grid=(4, 4), dim=8)
    own = create_cache(tmp_path / "own.zarr", spec)
    source = cache.record("v0").source.__class__(
        name="/home/ann/videos/v.mp4", size=1, mtime_ns=1, sha256="0" * 64
    )
    with own.write_entry("v", source=source) as entry:
        entry.append(
            {"patch": np.ones((1, 16, 8), np.float16), "prefix": np.ones((1, 1, 8), np.float16)},
            pts_seconds=[0.0],
        )
        entry.commit(duration_seconds=1.0, provenance={"host": "secret-host", "reader": "pyav"})
    push_cache(own.path, str(tmp_path / "there"))
    texts = [p.read_bytes() for p in (tmp_path / "there").rglob("*") if p.is_file()]
    assert not any(b"secret-host" in text or b"/home/ann" in text for text in texts)
    assert open_cache(tmp_path / "there").record("v").provenance == {"reader": "pyav"}


def test_somebody_elses_readme_stays(cache: Cache, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "README.md").write_text("# ours")
    push_cache(cache.path, str(there))
    assert (there / "README.md").read_text() == "# ours"
    (there / "README.md").unlink()
    push_cache(cache.path, str(there))
    assert "| videos | 6," in (there / "README.md").read_text()


def test_another_cache_is_never_mixed_in(cache: Cache, tmp_path: Path) -> None:
    create_cache(tmp_path / "other", make_spec(grid=(2, 2), dim=8))
    with pytest.raises(FingerprintError, match="grid"):
        push_cache(cache.path, str(tmp_path / "other"))
    with pytest.raises(FingerprintError, match="grid"):
        pull_cache(str(cache.path), tmp_path / "other")


def test_hostile_records_are_refused(cache: Cache, tmp_path: Path) -> None:
    """A record that names objects outside its entry, or is another video's, moves nothing of it."""
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    (there / CATALOG).unlink()
    key = cache.record("v2").key
    path = record_path(there, key)
    path.write_text(path.read_text().replace("patch/c/0/0/0", "../../../zarr.json"))
    record_path(there, cache.record("v4").key).write_bytes(
        record_path(there, cache.record("v5").key).read_bytes()
    )
    summary = pull_cache(str(there), tmp_path / "back")
    reasons = " ".join(failure.reason for failure in summary.failures)
    assert "does not belong to the key" in reasons
    assert "checksum" in reasons
    assert open_cache(tmp_path / "back").ids() == ["v0", "v1", "v3", "v5"]


def test_a_stop_leaves_what_is_done(cache: Cache, tmp_path: Path) -> None:
    stop = threading.Event()

    def after_two(progress) -> None:
        if progress.videos == 2:
            stop.set()

    summary = push_cache(cache.path, str(tmp_path / "there"), jobs=1, stop=stop, progress=after_two)
    assert (len(summary.copied), summary.left, summary.exit_code) == (2, 4, 1)
    assert len(push_cache(cache.path, str(tmp_path / "there")).copied) == 4
    assert same_values(cache.path, tmp_path / "there")


def test_a_dry_run_writes_nothing(cache: Cache, tmp_path: Path) -> None:
    summary = push_cache(cache.path, str(tmp_path / "there"), dry_run=True)
    assert len(summary.copied) == 6
    assert summary.num_bytes == sum(cache.record(i).num_bytes for i in cache.ids())
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"task": "toy/none"}, "no task 'toy/none'; it has toy/label"),
        ({"ids": ("v9",)}, "no video v9"),
        ({"split": "test"}, "--split test says nothing without --task"),
        ({"arrays": ("grid9",)}, "unknown array 'grid9'"),
    ],
)
def test_what_is_not_there_is_said(cache: Cache, tmp_path: Path, selection, said) -> None:
    with pytest.raises(UsageError, match=said):
        push_cache(cache.path, str(tmp_path / "there"), Selection(**selection))


def test_listing_is_not_trusted_for_names(cache: Cache, tmp_path: Path) -> None:
    class Lying(Recorder):
        def list(self, prefix):
            yield from super().list(prefix)
            yield PlacedObject(key="records/00/../../evil.json", size=3)
            yield PlacedObject(key="tasks/a/b/c.json", size=3)

    push_cache(cache.path, str(tmp_path / "there"))
    pull_cache(Lying(tmp_path / "there"), tmp_path / "back")
    assert same_values(cache.path, tmp_path / "back")


# What stands at the target already -------------------------------------------------------------


def test_copies_that_came_later_travel_alone(cache: Cache, tmp_path: Path) -> None:
    """Pooling makes new attempts of every entry; the full grids stay where they are."""
    there, back = tmp_path / "there", tmp_path / "back"
    push_cache(cache.path, str(there))
    pull_cache(str(there), back)
    pool_cache(cache, (2,))
    pooled = open_cache(cache.path)
    added = sum(
        stored.size
        for i in pooled.ids()
        for path, stored in pooled.record(i).objects.items()
        if path.startswith("grid2/")
    )
    assert push_cache(cache.path, str(there)).num_bytes == added
    pulled = pull_cache(str(there), back)
    assert (pulled.num_bytes, pulled.replaced) == (added, ())
    for path in (there, back):
        assert same_values(cache.path, path)
        assert verify_cache(open_cache(path), "full").ok
    assert digest_cache(open_cache(back)) == digest_cache(pooled)


def test_a_packed_place_takes_what_comes_later(cache: Cache, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push_cache(cache.path, str(there), pack_bytes=20_000)
    pool_cache(cache, (2,))
    push_cache(cache.path, str(there), pack_bytes=20_000)
    assert same_values(cache.path, there)
    pull_cache(str(there), tmp_path / "back")
    assert same_values(cache.path, tmp_path / "back")


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_what_a_killed_transfer_left_is_read_before_it_is_believed(
    tmp_path: Path, harm: str
) -> None:
    """An object without a record, of the right name, and maybe of the right size."""
    source = make_cache(tmp_path, num_videos=2, frames=300, grid=(8, 8), dim=64)
    there, back = tmp_path / "there", tmp_path / "back"
    for move in (
        lambda: push_cache(source.path, str(there)),
        lambda: pull_cache(str(there), back),
    ):
        move()
        root = back if back.exists() else there
        record = open_cache(root).record("v0")
        record_path(root, record.key).unlink()
        for path in (root / record.folder).rglob("0"):
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[100] ^= 4
                path.write_bytes(data[:-1] if harm == "cut" else data)
        summary = move()
        shards = sum(o.size for p, o in record.objects.items() if p.endswith("c/0/0/0"))
        assert shards <= summary.num_bytes <= record.num_bytes
        assert same_values(source.path, root)
        assert verify_cache(open_cache(root), "full").ok
    record_path(back, record.key).unlink()
    assert pull_cache(str(there), back).num_bytes == 0  # all of it is sound


def test_one_attempt_with_two_contents_never_mixes(cache: Cache, tmp_path: Path) -> None:
    """A place whose record has our attempt's name and other values for it."""
    back = tmp_path / "back"
    pull_cache(str(cache.path), back)
    other = make_cache(tmp_path / "other", num_videos=6, frames=[5, 300, 1, 7, 8, 3],
                       grid=(4, 4), dim=8, splits=SPLITS, seed=1)  # fmt: skip
    ours, theirs = cache.record("v0"), other.record("v0")
    (other.path / theirs.folder).rename(other.path / ours.folder)
    renamed = seal(replace(theirs, attempt=ours.attempt).to_json())
    record_path(other.path, theirs.key).write_bytes(renamed)
    summary = pull_cache(str(other.path), back, Selection(ids=("v0",)))
    assert summary.replaced == ("v0",)
    assert np.array_equal(open_cache(back).read("v0"), open_cache(other.path).read("v0"))
    assert verify_cache(open_cache(back), "full").ok


def test_a_damaged_record_here_is_pulled_again(cache: Cache, tmp_path: Path) -> None:
    back = tmp_path / "back"
    pull_cache(str(cache.path), back)
    path = record_path(back, cache.record("v0").key)
    path.write_bytes(path.read_bytes()[:-30])
    summary = pull_cache(str(cache.path), back)
    assert (summary.copied, summary.num_bytes) == (("v0",), 0)
    assert same_values(cache.path, back)


def test_a_damaged_record_there_is_pushed_again(cache: Cache, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    path = record_path(there, cache.record("v0").key)
    path.write_bytes(path.read_bytes()[:-30])
    pulled = pull_cache(str(there), tmp_path / "back")
    assert (len(pulled.copied), len(pulled.failures), pulled.exit_code) == (5, 1, 3)
    assert push_cache(cache.path, str(there)).copied == ("v0",)
    assert same_values(cache.path, there)


def test_what_was_being_written_by_a_killed_pull_goes(cache: Cache, tmp_path: Path) -> None:
    back = tmp_path / "back"
    record = cache.record("v1")
    beside = back / record.folder / "patch/c/0/0/.0.0123456789ab.tmp"
    create_cache(back, cache.spec)
    beside.parent.mkdir(parents=True)
    beside.write_bytes(b"half")
    pull_cache(str(cache.path), back)
    assert not list(back.rglob(".*.tmp"))
    assert same_values(cache.path, back)


def test_an_extraction_that_is_quicker_stands(cache: Cache, tmp_path: Path) -> None:
    back = tmp_path / "back"
    create_cache(back, cache.spec)

    class Slow(Recorder):
        def fetch(self, key, target, **about):
            if cache.record("v2").key in key and "v2" not in open_cache(back):
                write_tokens(open_cache(back), "v2", np.ones((1, 16, 8), np.float16))
            super().fetch(key, target, **about)

    summary = pull_cache(Slow(cache.path), back)
    assert [failure.id for failure in summary.failures] == ["v2"]
    assert "made by another process meanwhile" in summary.failures[0].reason
    assert (open_cache(back).read("v2") == 1).all()
    assert pull_cache(str(cache.path), back).replaced == ("v2",)
    assert same_values(cache.path, back)


def test_one_pull_at_a_time(cache: Cache, tmp_path: Path) -> None:
    back = tmp_path / "back"

    def second(_progress) -> None:
        with pytest.raises(Vis4merError, match="is at work in it"):
            pull_cache(str(cache.path), back)

    assert pull_cache(str(cache.path), back, progress=second, jobs=1).exit_code == 0


# Others who write, and lie ---------------------------------------------------------------------


def overwritten(cache: Cache, entry_id: str, frames: int) -> None:
    """Other values for an entry, whose record is as long as before."""
    with cache.write_entry(entry_id, source=cache.record(entry_id).source, overwrite=True) as entry:
        tokens = {
            "patch": np.ones((frames, 16, 8), np.float16),
            "prefix": np.ones((frames, 1, 8), np.float16),
        }
        entry.append(tokens, pts_seconds=list(range(frames)))
        entry.commit(duration_seconds=float(frames), provenance={})


def test_a_push_that_dies_leaves_no_old_catalog(cache: Cache, tmp_path: Path) -> None:
    """The record is new and the catalog's is of the same size: the listing must win."""

    class Bucket(Recorder):
        def list(self, prefix):
            return (replace(found, changed_ns=None) for found in super().list(prefix))

    push_cache(cache.path, Bucket(tmp_path / "there"))
    size = record_path(tmp_path / "there", cache.record("v0").key).stat().st_size
    overwritten(cache, "v0", 5)
    puts = 1 + len(cache.record("v0").objects) + 3  # catalog, objects, groups, record
    with pytest.raises(RemoteError):
        push_cache(cache.path, Bucket(tmp_path / "there", puts_left=puts))
    assert record_path(tmp_path / "there", cache.record("v0").key).stat().st_size == size
    assert pull_cache(Bucket(tmp_path / "there"), tmp_path / "back").exit_code == 0
    assert same_values(cache.path, tmp_path / "back")


def test_a_pull_while_the_source_is_extracted_to(cache: Cache, tmp_path: Path) -> None:
    """Entries that come and are overwritten after the catalog, in a directory."""
    overwritten(cache, "v0", 5)
    write_tokens(cache, "new", np.ones((2, 16, 8), np.float16))
    assert "new" in pull_cache(str(cache.path), tmp_path / "back").copied
    assert same_values(cache.path, tmp_path / "back")


def test_the_catalog_has_what_another_push_brought_meanwhile(cache: Cache, tmp_path: Path) -> None:
    class Busy(Recorder):
        def put(self, key, source, *, only_new=False):
            done = super().put(key, source, only_new=only_new)
            if key == CATALOG and not (tmp_path / "second").exists():
                (tmp_path / "second").mkdir()
                push_cache(cache.path, str(self.root), Selection(ids=("v4", "v5")))
                super().put(key, source)  # as if the first had been slower
            return done

    push_cache(cache.path, Busy(tmp_path / "there"), Selection(ids=("v0",)))
    pull_cache(Recorder(tmp_path / "there", can_list=False), tmp_path / "back")
    assert open_cache(tmp_path / "back").ids() == ["v0", "v4", "v5"]


def test_arrays_that_two_pushes_bring_are_both_named(cache: Cache, tmp_path: Path) -> None:
    """Each reads the spec before the other writes it; the last one to write finds out."""
    pool_cache(cache, (2,))
    there = tmp_path / "there"
    push_cache(cache.path, str(there), Selection(ids=("v0",), arrays=("grid2",)))
    spec = (there / "zarr.json").read_bytes()
    push_cache(cache.path, str(there), Selection(ids=("v1",)))

    class Late(Recorder):
        def put(self, key, source, *, only_new=False):
            if key.startswith("records/"):  # of what was read before the other push
                (there / "zarr.json").write_bytes(spec)
            return super().put(key, source, only_new=only_new)

    push_cache(cache.path, Late(there), Selection(ids=("v1", "v2")))
    assert set(open_cache(there).spec.arrays) >= {"patch", "prefix"}
    assert np.array_equal(open_cache(there).read("v1"), cache.read("v1"))


def test_claims_of_gigabytes_take_no_memory(cache: Cache, tmp_path: Path) -> None:
    """Sizes in a record, sealed as it must be, that nothing at the place has."""
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    record = open_cache(there).record("v0")
    objects = {path: replace(stored, size=1 << 30) for path, stored in record.objects.items()}
    hostile = seal(replace(record, objects=objects).to_json())
    record_path(there, record.key).write_bytes(hostile)
    tracemalloc.start()
    summary = pull_cache(str(there), tmp_path / "back")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [failure.id for failure in summary.failures] == ["v0"]
    assert peak < 64 << 20
    assert "v0" not in open_cache(tmp_path / "back")


def test_a_catalog_cannot_pass_one_video_off_as_another(cache: Cache, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    rows, tasks = parse_catalog((there / CATALOG).read_bytes(), name="catalog")
    keys = [cache.record(i).key for i in ("v0", "v1")]
    rows[keys[0]] = replace(rows[keys[0]], text=rows[keys[1]].text)
    (there / CATALOG).write_bytes(catalog_bytes(rows, tasks))
    summary = pull_cache(Recorder(there, can_list=False), tmp_path / "back", Selection(ids=("v0",)))
    assert [failure.id for failure in summary.failures] == ["v0"]
    assert open_cache(tmp_path / "back").ids() == []


def test_a_full_disk_is_one_line(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [0]
    real = arriving.Summing.write

    def full(summing, data):
        written[0] += len(data)
        if written[0] > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(summing, data)

    monkeypatch.setattr(arriving.Summing, "write", full)
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        pull_cache(str(cache.path), tmp_path / "back", jobs=2)
    monkeypatch.undo()
    half = open_cache(tmp_path / "back")
    assert all(np.array_equal(half.read(i), cache.read(i)) for i in half.ids())
    assert pull_cache(str(cache.path), tmp_path / "back").exit_code == 0
    assert same_values(cache.path, tmp_path / "back")


def test_no_room_is_said_before_anything_is_written(cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Vis4merError, match=r"needs 67\.\d MB, and 1\.0 kB are free there"):
        pull_cache(str(cache.path), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_of_other_things_is_left_alone(cache: Cache, tmp_path: Path) -> None:
    there = tmp_path / "home"
    there.mkdir()
    (there / "thesis.tex").write_text("…")
    with pytest.raises(UsageError, match=r"holds other things \(thesis.tex\)"):
        push_cache(cache.path, str(there))
    assert [path.name for path in there.iterdir()] == ["thesis.tex"]


def test_a_cache_is_not_its_own_target(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.path)
    for move in (push_cache, pull_cache):
        with pytest.raises(UsageError, match="is the place itself"):
            move(str(cache.path), str(tmp_path / "link"))


def test_a_cache_of_a_newer_version_is_not_half_copied(cache: Cache, tmp_path: Path) -> None:
    path = cache.path / "zarr.json"
    content = json.loads(path.read_bytes())
    about = content["attributes"]["vis4mer"]
    about["heads"] = 3
    content["attributes"]["vis4mer"] = json.loads(seal(about))
    path.write_text(json.dumps(content))
    for move in (push_cache, pull_cache):
        with pytest.raises(CacheFormatError, match="unknown fields heads"):
            move(str(cache.path), str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


# Kinds of caches ---------------------------------------------------------------------------------


def test_scales_travel_with_their_tokens(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "c", make_spec(grid=(4, 4), dim=8, stored_dtype="int8"))
    write_tokens(cache, "v", np.random.default_rng(0).standard_normal((9, 16, 8), np.float32))
    pool_cache(cache, (2,))
    cache = open_cache(cache.path)
    push_cache(cache.path, str(tmp_path / "there"), Selection(arrays=("grid2",)))
    pull_cache(str(tmp_path / "there"), tmp_path / "back")
    back = open_cache(tmp_path / "back")
    assert set(back.record("v").arrays) == {"grid2", "grid2_scale", "grid2_channel"}
    assert np.array_equal(back.read("v", "grid2"), cache.read("v", "grid2"))
    assert verify_cache(back, "full").ok


def test_entries_that_lack_some_of_what_is_asked_are_said(cache: Cache, tmp_path: Path) -> None:
    pool_cache(cache, (2,))
    write_tokens(cache, "late", np.ones((2, 16, 8), np.float16))
    asked = Selection(arrays=("grid2", "prefix"))
    summary = push_cache(cache.path, str(tmp_path / "there"), asked)
    assert summary.without_arrays == ("late",)
    assert open_cache(tmp_path / "there").record("late").token_arrays == ("prefix",)
    only = push_cache(cache.path, str(tmp_path / "only"), Selection(arrays=("grid2",)))
    assert (len(only.copied), only.without_arrays) == (6, ("late",))


@pytest.mark.parametrize(
    "entry_id",
    ["../x", "-rf", "__init__", "a/b.mp4@1000-2500", "фильм 1.mp4", "A.mp4", "x\ny|`<b>`"],
)
def test_ids_of_any_kind(tmp_path: Path, entry_id: str) -> None:
    cache = create_cache(tmp_path / "c", make_spec(grid=(2, 2), dim=8))
    write_tokens(cache, entry_id, np.ones((2, 4, 8), np.float16))
    write_tokens(cache, "a.mp4", np.zeros((2, 4, 8), np.float16))
    push_cache(cache.path, str(tmp_path / "there"), pack_bytes=10_000)
    pull_cache(str(tmp_path / "there"), tmp_path / "back", Selection(ids=(entry_id,)))
    assert open_cache(tmp_path / "back").ids() == [entry_id]
    assert {path.name for path in tmp_path.iterdir()} == {"c", "there", "back"}


def test_the_card_is_inert(tmp_path: Path) -> None:
    hostile = "`x`|<script>alert(1)</script> [a](http://b) www.evil.com\n# no"
    spec = replace(make_spec(grid=(2, 2), dim=8), backbone=hostile, layer=hostile)
    cache = create_cache(tmp_path / "c", spec)
    write_tokens(cache, "v", np.ones((2, 4, 8), np.float16))
    push_cache(cache.path, str(tmp_path / "there"))
    card = (tmp_path / "there/README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("| backbone |")]
    span = line.partition("| backbone | ")[2].partition(", weights ")[0]
    assert (span[0], span[-1], span.count("`")) == ("`", "`", 2)
    assert "|" not in span.replace("\\|", "")
    assert card.count("<script>") == 2
    assert "\n# no" not in card
