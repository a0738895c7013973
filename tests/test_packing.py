"""Packs: the same bytes in other files, whoever reads, whenever the process dies."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading

import numpy as np
import pytest
from caches import make_cache
from entries import (
    age,
    attempts,
    edit_record,
    flip,
    make_spec,
    make_tokens,
    one_entry,
    record_file,
    shard,
    tree,
    write,
)
from killing import killed_everywhere
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store import packing, replacement
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.convert.exporting import export_tokens
from vis4mer.store.errors import (
    CacheFormatError,
    DamagedEntryError,
    EntryNotFoundError,
    UsageError,
    Vis4merError,
)
from vis4mer.store.gc import collect_garbage
from vis4mer.store.packing import pack_cache, unpack_cache
from vis4mer.store.packs import lay_out, plan_packs, write_pack
from vis4mer.store.pooling import pool_cache
from vis4mer.store.summary import summarise
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.verify import verify_cache
from vis4mer.store.wording import human_bytes

DTYPES = ("float16", "bfloat16", "int8")
LENGTHS = (3, 260, 1)  # frames: one shard, two of which the second is odd, a single frame


def cache_of(root, name="c.zarr", *, frames=LENGTHS, **changes):
    cache = create_cache(root / name, make_spec(**changes))
    for i, num_frames in enumerate(frames):
        write(cache, f"v{i}", make_tokens(num_frames, spec=cache.spec, seed=i))
    cache.write_catalog()
    return open_cache(cache.path)


def packs(cache):
    return sorted((cache.path / "packs").glob("*"))


def values(cache):
    """Every stored byte of every object, by video and path."""
    return {
        (entry_id, path): cache.backing.open(record, path).read()
        for entry_id in cache.ids()
        for record in [cache.record(entry_id)]
        for path in record.objects
    }


def reads(cache):
    """What users read: whole arrays, and every third frame backwards."""
    return {
        (entry_id, array, step): cache.read(entry_id, array, slice(None, None, step))
        for entry_id in cache.ids()
        for array in cache.record(entry_id).token_arrays
        for step in (1, -3)
    }


def assert_same_reads(found, wanted):
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        np.testing.assert_array_equal(found[name], expected)


# Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored_dtype", DTYPES)
def test_what_is_packed_reads_as_before(tmp_path, stored_dtype):
    cache = cache_of(tmp_path, stored_dtype=stored_dtype)
    bytes_before, before = values(cache), reads(cache)
    summary = pack_cache(cache)
    assert (summary.changed, summary.num_packs, summary.exit_code) == (("v0", "v1", "v2"), 1, 0)
    collect_garbage(cache, grace_seconds=-1)
    assert attempts(cache) == []
    (pack,) = packs(cache)
    assert pack.stat().st_size == summary.num_bytes == sum(map(len, bytes_before.values()))
    for reader in (cache, open_cache(cache.path)):  # the same object, and another process's
        assert values(reader) == bytes_before
        assert_same_reads(reads(reader), before)
    for mode in ("quick", "full"):
        assert verify_cache(open_cache(cache.path), mode).ok
    again = pack_cache(open_cache(cache.path))
    assert (again.changed, again.unchanged, again.num_bytes) == ((), 3, 0)
    undone = unpack_cache(open_cache(cache.path), free_at_once=True)
    assert (undone.changed, undone.exit_code, packs(cache)) == (("v0", "v1", "v2"), 0, [])
    loose = open_cache(cache.path)
    assert values(loose) == bytes_before
    for (entry_id, path), data in bytes_before.items():
        assert (cache.path / loose.record(entry_id).folder / path).read_bytes() == data
    assert verify_cache(loose, "full").ok


def test_the_bytes_of_a_pack_by_hand(tmp_path):
    """Objects one right after another, each where its record says."""
    cache = one_entry(tmp_path, num_frames=257)
    before = values(cache)
    pack_cache(cache)
    record = open_cache(cache.path).record("clip.mp4")
    (pack,) = packs(cache)
    assert record.pack.path == f"packs/{pack.name}"
    order = [
        "zarr.json",
        *(
            f"{array}/{name}"
            for array in ("patch", "prefix")
            for name in ("zarr.json", "c/0/0/0", "c/1/0/0")
        ),
    ]
    assert sorted(record.pack.offsets, key=record.pack.offsets.get) == order
    assert pack.read_bytes() == b"".join(before["clip.mp4", path] for path in order)


def test_exports_views_and_windows_are_the_same(tmp_path):
    cache = make_cache(tmp_path, num_videos=4, frames=5)
    export_tokens(cache, tmp_path / "before", file_format="npy")
    windows = [cache.dataset("toy/label", "train", tokens="5x1x1", window_seconds=5)[0]]
    pack_cache(cache, free_at_once=True)
    packed = open_cache(cache.path)
    export_tokens(packed, tmp_path / "after", file_format="npy")
    windows += [packed.dataset("toy/label", "train", tokens="5x1x1", window_seconds=5)[0]]
    files = sorted(path.name for path in (tmp_path / "before").glob("*.npy"))
    assert len(files) == 4
    for name in files:
        one, other = (tmp_path / folder / name for folder in ("before", "after"))
        assert one.read_bytes() == other.read_bytes(), name
    for key, value in windows[0].items():
        np.testing.assert_array_equal(value, windows[1][key])


def test_whoever_holds_the_old_record_reads_on(tmp_path):
    cache = cache_of(tmp_path, frames=(4,))
    reader = open_cache(cache.path)
    before = reader.read("v0")
    pack_cache(cache)
    np.testing.assert_array_equal(reader.read("v0"), before)
    reader = open_cache(cache.path)
    reader.ids()
    unpack_cache(open_cache(cache.path))
    np.testing.assert_array_equal(reader.read("v0"), before)
    assert collect_garbage(cache).paths == ()  # within the grace period


# Plans ---------------------------------------------------------------------------------------


def test_plans_by_hand(tmp_path):
    cache = cache_of(tmp_path, frames=(1,))
    record = cache.record("v0")

    class Sized:
        def __init__(self, name, num_bytes):
            self.name, self.num_bytes = name, num_bytes

    def plan(*sizes):
        groups = plan_packs([Sized(i, size) for i, size in enumerate(sizes)], 10)
        return [[record.name for record in group] for group in groups]

    assert plan() == []
    assert plan(10, 1) == [[0], [1]]
    assert plan(3, 3, 4, 6, 4) == [[0, 1, 2], [3, 4]]
    assert plan(25, 2) == [[0], [1]]
    assert plan(4, 8, 4) == [[1], [0, 2]]  # the small ones at the ends are joined
    assert plan_packs([record], 1) == [[record]]


def test_the_same_work_gives_the_same_pack(tmp_path):
    cache = cache_of(tmp_path)
    records = [cache.record(entry_id) for entry_id in cache.ids()]
    files = [io.BytesIO(), io.BytesIO()]
    one, other = (write_pack(cache.backing, records, file) for file in files)
    assert one == other == lay_out(records)
    assert files[0].getvalue() == files[1].getvalue()
    assert [record.attempt for record in one] == [record.attempt for record in records]
    assert lay_out(records[:2])[0].pack.name != one[0].pack.name
    assert len({record.pack.name for record in one}) == 1


def test_packs_are_about_as_large_as_asked(tmp_path):
    cache = cache_of(tmp_path, frames=(10,) * 7)
    size = cache.record("v0").num_bytes
    summary = pack_cache(cache, size_bytes=2.5 * size)
    assert summary.num_packs == 4
    assert sorted(path.stat().st_size // size for path in packs(cache)) == [1, 2, 2, 2]
    for size_bytes in (2.5 * size, 2 * size):
        assert pack_cache(open_cache(cache.path), size_bytes=size_bytes).changed == ()
    larger = pack_cache(open_cache(cache.path), size_bytes=7 * size, free_at_once=True)
    assert (larger.num_packs, len(larger.changed), len(packs(cache))) == (1, 7, 1)
    assert verify_cache(open_cache(cache.path), "full").ok


def test_new_videos_join_a_pack_that_is_not_half_full(tmp_path):
    cache = cache_of(tmp_path, frames=(10,))
    size = cache.record("v0").num_bytes
    pack_cache(cache, size_bytes=5 * size)
    writer = create_cache(cache.path, cache.spec)
    for name in ("v1", "v2"):
        write(writer, name, make_tokens(10, spec=cache.spec))
    joined = pack_cache(open_cache(cache.path), size_bytes=5 * size)
    assert (joined.changed, joined.num_packs) == (("v0", "v1", "v2"), 1)
    write(writer, "v3", make_tokens(10, spec=cache.spec))
    alone = pack_cache(open_cache(cache.path), size_bytes=5 * size)
    assert (alone.changed, alone.unchanged) == (("v3",), 3)


def test_only_the_videos_that_are_named(tmp_path):
    cache = cache_of(tmp_path)
    assert pack_cache(cache, ids=["v2", "v0"]).changed == ("v0", "v2")
    assert open_cache(cache.path).record("v1").pack is None
    assert unpack_cache(open_cache(cache.path), ids=["v2"]).changed == ("v2",)
    summary = summarise(open_cache(cache.path))
    assert (summary.num_packed, summary.num_packs) == (1, 1)
    assert summary.packed_bytes == cache.record("v0").num_bytes
    with pytest.raises(EntryNotFoundError, match="nobody"):
        pack_cache(cache, ids=["nobody"])
    with pytest.raises(UsageError, match="size of a pack"):
        pack_cache(cache, size_bytes=0)


# Together with the other commands ------------------------------------------------------------


def test_pooling_takes_entries_out_of_their_pack(tmp_path):
    cache = cache_of(tmp_path, frames=(20, 3), stored_dtype="int8")
    loose = cache_of(tmp_path, "l.zarr", frames=(20, 3), stored_dtype="int8")
    pack_cache(cache, free_at_once=True)
    for each in (cache, loose):
        assert pool_cache(open_cache(each.path), (2,)).changed == ("v0", "v1")
    assert open_cache(cache.path).record("v0").pack is None
    assert values(open_cache(cache.path)) == values(open_cache(loose.path))
    assert verify_cache(open_cache(cache.path), "full").ok
    pack_cache(open_cache(cache.path), free_at_once=True)
    assert values(open_cache(cache.path)) == values(open_cache(loose.path))
    pool_cache(open_cache(cache.path), (2,), drop=True)
    assert open_cache(cache.path).record("v0").token_arrays == ("patch", "prefix")
    assert verify_cache(open_cache(cache.path), "full").ok


def test_an_overwriting_leaves_dead_bytes_that_packing_frees(tmp_path):
    cache = cache_of(tmp_path, frames=(10, 10, 10))
    pack_cache(cache, free_at_once=True)
    (old,) = packs(cache)
    size = cache.record("v0").num_bytes
    new = make_tokens(5, spec=cache.spec, seed=9)
    write(create_cache(cache.path, cache.spec), "v0", new, overwrite=True)
    assert collect_garbage(open_cache(cache.path), grace_seconds=-1).dead_bytes == size
    summary = pack_cache(open_cache(cache.path), free_at_once=True)
    assert (summary.changed, packs(cache) != [old]) == (("v0", "v1", "v2"), True)
    assert len(packs(cache)) == 1
    assert collect_garbage(open_cache(cache.path), grace_seconds=-1).dead_bytes == 0
    reader = open_cache(cache.path)
    assert reader.record("v0").num_frames == 5
    assert verify_cache(reader, "full").ok


def test_a_pack_that_no_record_names_goes_after_its_grace_period(tmp_path):
    cache = cache_of(tmp_path, frames=(3, 3))
    pack_cache(cache, free_at_once=True)
    (pack,) = packs(cache)
    age(pack, 10_000)
    for path in (cache.path / "videos").glob("*/*"):
        age(path, 10_000)
    assert collect_garbage(open_cache(cache.path)).paths == ()
    open_cache(cache.path).remove("v0")
    half = collect_garbage(open_cache(cache.path))
    assert (half.paths, half.dead_bytes) == ((), pack.stat().st_size // 2)
    age(pack, 10_000)
    write(create_cache(cache.path, cache.spec), "v1", make_tokens(2, spec=cache.spec),
          overwrite=True)  # fmt: skip
    # Somebody may have begun to read it a moment ago.
    assert collect_garbage(open_cache(cache.path)).paths == ()
    age(pack, 25)
    before = tree(cache.path)
    dry = collect_garbage(open_cache(cache.path), dry_run=True)
    assert tree(cache.path) == before
    assert dry.paths == (f"packs/{pack.name}",)
    assert collect_garbage(open_cache(cache.path)) == dry
    assert packs(cache) == []


def test_files_of_an_entry_that_is_packed_are_garbage_whatever_their_name(tmp_path):
    """A cache that was filled loose and then again, packed, by the same attempt."""
    cache = cache_of(tmp_path, frames=(3,))
    pack_cache(cache)
    (left,) = attempts(cache)
    twin = open_cache(cache.path).record("v0").folder
    (cache.path / left).rename(cache.path / twin)
    assert collect_garbage(open_cache(cache.path), grace_seconds=-1).paths == (twin,)
    assert verify_cache(open_cache(cache.path), "full").ok


def test_garbage_among_packs_is_told_from_what_is_not_ours(tmp_path):
    cache = cache_of(tmp_path, frames=(3,))
    pack_cache(cache)
    (pack,) = packs(cache)
    folder = pack.parent
    outside = tmp_path / "outside"
    outside.write_bytes(b"1")
    kept = [folder / "notes.txt", folder / "x.pack", folder / f"{'0' * 31}G.pack", pack]
    for path in kept[:3]:
        path.write_bytes(b"1")
    (folder / f"{'1' * 32}.pack").symlink_to(outside)
    gone = [folder / f"{'2' * 32}.pack", folder / f".{pack.name}.0123456789ab.tmp"]
    for path in gone:
        path.write_bytes(b"1")
        age(path, 100)
    path = record_file(cache, "v0")
    data = path.read_bytes()
    path.write_bytes(data[:-3])  # it is not clear what it names
    assert collect_garbage(open_cache(cache.path)).paths == (f"packs/{gone[1].name}",)
    path.write_bytes(data)
    assert collect_garbage(open_cache(cache.path)).paths == (f"packs/{gone[0].name}",)
    assert all(path.exists() for path in (*kept, outside))
    assert (folder / f"{'1' * 32}.pack").is_symlink()


def test_what_an_extraction_writes_meanwhile_stands(tmp_path, monkeypatch):
    """Somebody overwrites one entry and removes another after their bytes were read."""
    cache = cache_of(tmp_path, frames=(4, 4, 4))
    written = packing.write_pack
    tokens = make_tokens(7, spec=cache.spec, seed=9)

    def late(*arguments):
        done = written(*arguments)
        write(create_cache(cache.path, cache.spec), "v0", tokens, overwrite=True)
        open_cache(cache.path).remove("v1")
        return done

    monkeypatch.setattr(packing, "write_pack", late)
    summary = pack_cache(cache, free_at_once=True)
    assert [failure.id for failure in summary.failures] == ["v0", "v1"]
    assert all("meanwhile" in failure.reason for failure in summary.failures)
    assert (summary.changed, summary.exit_code) == (("v2",), 3)
    opened = open_cache(cache.path)
    assert opened.ids() == ["v0", "v2"]
    assert (opened.record("v0").num_frames, opened.record("v0").pack) == (7, None)
    assert verify_cache(opened, "full").ok


def test_one_at_a_time(tmp_path):
    cache = cache_of(tmp_path, frames=(3, 3))
    refused = []

    def at_work(*_):
        for work in (pack_cache, unpack_cache, lambda c: pool_cache(c, (2,))):
            with pytest.raises(Vis4merError, match="is at work in it; wait for it"):
                work(open_cache(cache.path))
            refused.append(work)

    pack_cache(cache, progress=at_work)
    assert len(refused) == 3

    def gc_at_work(*_):
        with pytest.raises(Vis4merError, match="is at work in it; wait for it"):
            collect_garbage(open_cache(cache.path), grace_seconds=-1)
        refused.append(collect_garbage)

    unpack_cache(cache, progress=gc_at_work)
    assert len(refused) == 5
    assert verify_cache(open_cache(cache.path), "full").ok


def test_a_stop_between_packs(tmp_path):
    cache = cache_of(tmp_path, frames=(10, 10, 10))
    stop = threading.Event()
    size = cache.record("v0").num_bytes
    summary = pack_cache(cache, size_bytes=size, stop=stop, progress=lambda *_: stop.set())
    assert (summary.changed, summary.left, summary.exit_code) == (("v0",), 2, 1)
    stop.clear()
    opened = open_cache(cache.path)
    assert pack_cache(opened, size_bytes=size, stop=stop).changed == ("v1", "v2")


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    cache = cache_of(tmp_path, frames=(10, 10))
    size = cache.record("v0").num_bytes
    free = shutil.disk_usage(tmp_path)._replace(free=size + 10)
    said = human_bytes(size + 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    for work in (pack_cache, lambda c: pack_cache(c, free_at_once=True)):
        with pytest.raises(Vis4merError, match=rf"needs .*B of room, but {said} are free"):
            work(cache)
    assert packs(cache) == []
    assert len(pack_cache(cache, size_bytes=size, free_at_once=True).changed) == 2


# Damage and lies -----------------------------------------------------------------------------


def test_damaged_entries_stay_loose(tmp_path):
    cache = cache_of(tmp_path, frames=(4, 4, 4, 4))
    flip(shard(cache, "v0"), 9)
    os.truncate(shard(cache, "v1", "prefix"), 5)
    shard(cache, "v2").unlink()
    before = record_file(cache, "v0").read_bytes()
    summary = pack_cache(cache, free_at_once=True)
    assert {failure.id for failure in summary.failures} == {"v0", "v1", "v2"}
    assert (summary.changed, summary.exit_code) == (("v3",), 3)
    assert record_file(cache, "v0").read_bytes() == before
    assert len(attempts(cache)) == 3
    assert open_cache(cache.path).read("v3").shape == (4, 16, 8)
    (pack,) = packs(cache)
    assert pack.stat().st_size == cache.record("v3").num_bytes


@pytest.mark.parametrize("work", ["pack", "unpack", "pool"])
def test_a_torn_record_stops_no_other_entry(tmp_path, work):
    cache = make_cache(tmp_path, num_videos=4)
    if work == "unpack":
        pack_cache(cache, free_at_once=True)
        cache = open_cache(cache.path)
    packs = sorted((cache.path / "packs").glob("*"))
    record_file(cache, "v1").write_bytes(b"{")  # does not say whose it is
    path = record_file(cache, "v2")
    path.write_bytes(path.read_bytes().replace(b'"num_frames":8', b'"num_frames":9'))
    (cache.path / "catalog.json").unlink()
    torn = open_cache(cache.path)
    if work == "pool":
        summary = pool_cache(torn, (1,))
    else:
        summary = {"pack": pack_cache, "unpack": unpack_cache}[work](torn, free_at_once=True)
    assert sorted(summary.changed) == ["v0", "v3"]
    assert sorted(failure.id for failure in summary.failures) == ["a record", "v2"]
    assert summary.exit_code == 3
    # What the torn records name is not known to be garbage.
    assert all(pack.exists() for pack in packs)


def test_arrays_of_other_codecs_stay_loose(tmp_path):
    cache = cache_of(tmp_path, frames=(4, 4))
    path = cache.path / cache.record("v0").folder / "patch" / "zarr.json"
    metadata = json.loads(path.read_bytes())
    metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    path.write_bytes(json.dumps(metadata).encode())

    def adopt(record):
        data = path.read_bytes()
        from vis4mer.store.layout import crc32c

        record["objects"]["patch/zarr.json"] = {"size": len(data), "crc32c": crc32c(data)}

    edit_record(cache, "v0", adopt)
    summary = pack_cache(open_cache(cache.path))
    assert (summary.kept_loose, summary.changed, summary.failures) == (("v0",), ("v1",), ())
    again = pack_cache(open_cache(cache.path))
    assert (again.kept_loose, again.changed, again.exit_code) == (("v0",), (), 0)

    unpack_cache(cache, free_at_once=True)
    push_cache(cache.path, str(tmp_path / "there"), pack_bytes=10**6)
    there = open_cache(tmp_path / "there")
    assert [there.record(i).pack is None for i in ("v0", "v1")] == [True, False]


@pytest.mark.parametrize("offset", [0, 700, -1])
def test_flipped_bytes_of_a_pack_are_found(tmp_path, offset):
    cache = cache_of(tmp_path, frames=(3, 3))
    pack_cache(cache, free_at_once=True)
    flip(packs(cache)[0], offset)
    reader = open_cache(cache.path)
    assert verify_cache(reader, "quick").ok
    problems = verify_cache(reader, "full").problems
    assert problems
    assert packs(cache)[0].name in problems[0].reason
    summary = unpack_cache(open_cache(cache.path))
    assert len(summary.failures) == 1
    assert len(summary.changed) == 1


@pytest.mark.parametrize("damage", ["cut", "gone", "link", "folder", "pipe"])
def test_a_pack_that_is_not_there_as_recorded(tmp_path, damage):
    cache = cache_of(tmp_path, frames=(3, 3))
    pack_cache(cache, free_at_once=True)
    (pack,) = packs(cache)
    moved = pack.rename(tmp_path / "moved")
    if damage == "cut":
        pack.write_bytes(moved.read_bytes()[:-1])
    elif damage == "link":
        pack.symlink_to(moved)
    elif damage == "folder":
        pack.mkdir()
    elif damage == "pipe":
        os.mkfifo(pack)
    reader = open_cache(cache.path)
    with pytest.raises(DamagedEntryError, match="v1"):
        reader.read("v1", "prefix")
    assert not verify_cache(reader, "quick").ok
    if damage == "cut":
        assert reader.read("v0").shape == (3, 16, 8)  # which lies before the cut
    assert pack_cache(open_cache(cache.path)).changed in ((), ("v0",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../../../etc/passwd"}, "expected 32 hex digits"),
        ({"name": "../" + "0" * 32 + ".pack"}, "expected 32 hex digits"),
        ({"name": "0" * 32 + ".pack\n"}, "expected 32 hex digits"),
        ({"name": "A" * 32 + ".pack"}, "expected 32 hex digits"),
        ({"name": 7}, "expected text"),
        ({"name": None}, "expected text"),
        ({"offsets": []}, "expected an object"),
        ({"offsets": {}}, "is not both listed and packed"),
        ({"zarr.json": -1}, "at least 0"),
        ({"zarr.json": 1.5}, "an integer"),
        ({"zarr.json": True}, "an integer"),
        ({"zarr.json": 1 << 63}, "an integer of at most 9007199254740992"),
        ({"zarr.json": 10**400}, "an integer of at most 9007199254740992"),
        ({"../zarr.json": 0}, "is not both listed and packed"),
        ({"patch/c/9/0/0": 0}, "is not both listed and packed"),
        ({"patch/c/0/0/0": 0}, "'patch/c/0/0/0' and 'zarr.json' overlap in their pack"),
        ({"prefix/c/0/0/0": 1}, "'zarr.json' and 'prefix/c/0/0/0' overlap in their pack"),
    ],
    ids=str,
)
def test_records_that_lie_about_their_pack_are_refused(tmp_path, change, message):
    cache = one_entry(tmp_path, num_frames=2)
    pack_cache(cache)

    def lie(record):
        for field, value in change.items():
            part = record["pack"] if field in ("name", "offsets") else record["pack"]["offsets"]
            part[field] = value

    edit_record(open_cache(cache.path), "clip.mp4", lie)
    with pytest.raises(CacheFormatError, match=message):
        open_cache(cache.path).record("clip.mp4")


@pytest.mark.parametrize("pack", [None, [], "x", 3])
def test_a_pack_that_is_no_object_is_refused(tmp_path, pack):
    cache = one_entry(tmp_path, num_frames=2)
    edit_record(cache, "clip.mp4", lambda record: {**record, "pack": pack})
    with pytest.raises(CacheFormatError, match="field 'pack'"):
        open_cache(cache.path).record("clip.mp4")


@pytest.mark.parametrize("offset", ["end", 1 << 40, 1 << 53])
def test_offsets_outside_the_pack_are_met_before_anything_is_read(tmp_path, offset):
    cache = one_entry(tmp_path, num_frames=2)
    pack_cache(cache)
    end = packs(cache)[0].stat().st_size

    def lie(record):
        record["pack"]["offsets"]["patch/c/0/0/0"] = end if offset == "end" else offset

    edit_record(open_cache(cache.path), "clip.mp4", lie)
    reader = open_cache(cache.path)
    with pytest.raises(DamagedEntryError, match="but the pack has"):
        reader.read("clip.mp4")
    assert reader.read("clip.mp4", "prefix").shape == (2, 2, 8)
    assert not verify_cache(reader, "quick").ok


def test_an_offset_at_other_bytes_is_never_taken_for_tokens(tmp_path):
    cache = cache_of(tmp_path, frames=(2, 2))
    pack_cache(cache)
    other = open_cache(cache.path).record("v1").pack

    def lie(record):
        record["pack"]["offsets"]["patch/c/0/0/0"] = other.offsets["patch/c/0/0/0"] - 4

    edit_record(open_cache(cache.path), "v0", lie)
    reader = open_cache(cache.path)
    for verify in (True, False):
        with pytest.raises(DamagedEntryError, match="index fails its checksum"):
            reader.read("v0", verify=verify)
    assert not verify_cache(reader, "full").ok


def test_a_packed_array_of_other_codecs_is_refused(tmp_path):
    """Only a hostile record says so; zarr is never pointed at a folder that nobody checked."""
    cache = one_entry(tmp_path, num_frames=2)
    pack_cache(cache)
    reader = open_cache(cache.path)
    with pytest.raises(DamagedEntryError, match="never packed"):
        reader.backing.zarr_folder(reader.record("clip.mp4"))


def test_a_record_of_a_newer_version_is_refused_not_misread(tmp_path):
    cache = one_entry(tmp_path, num_frames=2)
    edit_record(cache, "clip.mp4", lambda record: {**record, "elsewhere": {"url": "s3://x"}})
    with pytest.raises(CacheFormatError, match=r"newer version \(unknown fields elsewhere\)"):
        open_cache(cache.path).record("clip.mp4")
    assert not verify_cache(open_cache(cache.path), "quick").ok


def test_loose_records_are_written_as_they_always_were(tmp_path):
    cache = one_entry(tmp_path, num_frames=2)
    assert "pack" not in json.loads(record_file(cache, "clip.mp4").read_bytes())


# kill -9 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pack", "pack at once", "unpack"])
def test_killed_at_any_moment(tmp_path, way):
    """Every entry is loose or packed, and whole, and the same command ends what was begun."""
    cache = cache_of(tmp_path, frames=(2, 2), num_prefix=0, arrays=("patch",))
    before = {i: cache.read(i) for i in cache.ids()}
    if way == "unpack":
        pack_cache(cache, free_at_once=True)

    def work():
        opened = open_cache(cache.path)
        if way == "unpack":
            unpack_cache(opened, free_at_once=True)
        else:
            pack_cache(opened, free_at_once=way == "pack at once")

    seen = set()
    for _ in killed_everywhere(work):
        reader = open_cache(cache.path)
        for entry_id, expected in before.items():
            np.testing.assert_array_equal(reader.read(entry_id), expected)
        held = tuple(reader.record(i).pack is not None for i in ("v0", "v1"))
        seen.add(held)
        if all(held) if way != "unpack" else not any(held):
            (unpack_cache if way != "unpack" else pack_cache)(reader, free_at_once=True)
    assert {(True, True), (False, False)} <= seen
    assert len(seen) > 2  # killed between two records
    assert verify_cache(open_cache(cache.path), "full").ok
    work()
    reader = open_cache(cache.path)
    collect_garbage(reader, grace_seconds=-1)
    assert verify_cache(reader, "full").ok
    assert (len(attempts(cache)), len(packs(cache))) == ((2, 0) if way == "unpack" else (0, 1))


def test_garbage_collection_killed_at_any_moment(tmp_path):
    cache = cache_of(tmp_path, frames=(2, 2), num_prefix=0, arrays=("patch",))
    pack_cache(cache)
    open_cache(cache.path).remove("v0")
    pack_cache(open_cache(cache.path))  # a second pack; the first is garbage
    for _ in killed_everywhere(lambda: collect_garbage(open_cache(cache.path), grace_seconds=-1)):
        assert verify_cache(open_cache(cache.path), "full").ok
    assert (len(attempts(cache)), len(packs(cache))) == (0, 1)


def test_nothing_is_lost_when_the_disk_is_full(tmp_path, monkeypatch):
    cache = cache_of(tmp_path, frames=(2, 2))
    before = tree(cache.path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "write_pack", full)
    with pytest.raises(Vis4merError, match="the disk is full"):
        pack_cache(cache, free_at_once=True)
    after = tree(cache.path)
    assert {path: after[path] for path in before if not path.startswith(".")} == before
    assert packs(cache) == []
    monkeypatch.setattr(replacement, "sync_directories", full)
    monkeypatch.setattr(packing, "write_pack", write_pack)
    pack_cache(open_cache(cache.path), free_at_once=True)
    with pytest.raises(Vis4merError, match="the disk is full"):
        unpack_cache(open_cache(cache.path), free_at_once=True)
    assert attempts(cache) == []
    assert verify_cache(open_cache(cache.path), "full").ok


# The commands --------------------------------------------------------------------------------


def test_the_commands(tmp_path):
    cache = cache_of(tmp_path, frames=(10, 10, 10))

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["cache", arguments[0], str(cache.path), *arguments[1:]])
        assert done.exit_code == code, done.output
        return done.stdout

    size = cache.record("v0").num_bytes
    done = run("pack", "--size", f"{2 * size / 1000}kB")
    assert "3 videos put into 2 packs" in done
    assert "cache gc" in done
    assert "freed" in run("gc", "--grace-hours", "0")
    again = json.loads(run("pack", "--size", f"{2 * size}", "--json"))
    assert (again["unchanged"], again["changed"], again["direction"]) == (3, [], "pack")
    assert "3 of 3 videos" in run("info")
    listed = json.loads(run("ls", "--json"))["entries"]
    assert [entry["pack"] for entry in listed] == [
        open_cache(cache.path).record(entry["id"]).pack.name for entry in listed
    ]
    assert "(packed)" in run("ls")
    run("rm", "v0")
    assert "lie unused in packs" in run("gc", "--grace-hours", "0")
    assert verify_cache(open_cache(cache.path), "full").ok
    undone = run("unpack", "--free-at-once")
    assert "2 videos taken out of packs" in undone
    assert "cache gc" not in undone
    assert packs(cache) == []
    refused = CliRunner().invoke(app, ["cache", "pack", str(cache.path), "--size", "large"])
    assert refused.exit_code == 2
    assert "--size large: expected a size such as 200MB" in refused.stderr
