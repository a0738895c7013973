"""Pushing and pulling caches, over a directory as the place: what arrives, what never does."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache, make_spec, write_tokens
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.catalog import CATALOG
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.pooling import pool_cache
from vis4mer.store.records import record_path
from vis4mer.store.remote.local import LocalPlace
from vis4mer.store.remote.place import PlacedObject, RemoteError
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
    """A record that names objects outside its entry, or is another video's, moves nothing."""
    there = tmp_path / "there"
    push_cache(cache.path, str(there))
    (there / CATALOG).unlink()
    key = cache.record("v2").key
    path = record_path(there, key)
    path.write_text(path.read_text().replace("patch/c/0/0/0", "../../../zarr.json"))
    record_path(there, cache.record("v4").key).write_bytes(
        record_path(there, cache.record("v5").key).read_bytes()
    )
    with pytest.raises(Exception, match=r"does not belong to the key|checksum"):
        pull_cache(str(there), tmp_path / "back")


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
