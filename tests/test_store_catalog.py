"""The catalog is derived: without it, with a torn, old or forged one, answers are right."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from entries import make_spec, make_tokens, one_entry, record_file, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.catalog import load_snapshot
from vis4mer.store.errors import EntryNotFoundError
from vis4mer.store.files import seal


@pytest.fixture
def cache(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    for i in range(5):
        write(cache, f"v{i}", make_tokens(3, spec=cache.spec, seed=i))
    cache.write_catalog()
    return cache


IDS = [f"v{i}" for i in range(5)]


def catalog(cache):
    return cache.path / "catalog.json"


def is_used(cache, entry_id):
    """Does the catalog answer for this record, so that its file is not read?"""
    path = record_file(cache, entry_id)
    data, stat = path.read_bytes(), path.stat()
    changed = data.replace(b'"vit_', b'"VIT_') if b'"vit_' in data else data[:-2] + b" }"
    path.write_bytes(changed[: len(data)].ljust(len(data)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    row = load_snapshot(cache.path).rows.get(cache.record(entry_id).key)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return row is not None and row.text.encode() == data


def later(path, seconds=10):
    """Move a file's time of change, as if it had been written later (or earlier)."""
    stat = path.stat()
    moved = stat.st_mtime_ns + int(seconds * 1e9)
    os.utime(path, ns=(moved, moved))


def test_the_catalog_answers_for_unchanged_records(cache):
    later(catalog(cache))
    assert is_used(cache, "v3")
    assert open_cache(cache.path).ids() == IDS


@pytest.mark.parametrize(
    "harm",
    [
        os.unlink,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes()[:-10]),
        lambda p: p.write_bytes(p.read_bytes().replace(b"v3", b"v9")),
        lambda p: p.write_bytes(seal({"entries": [[1]]})),
        lambda p: p.write_bytes(seal({"entries": [["k", "v3", "1", 2, "{}"]]})),
        lambda p: p.write_bytes(seal({"entries": 5})),
        lambda p: p.write_bytes(b"[" * 100_000),
        lambda p: os.truncate(p, 2 << 30),
    ],
)
def test_no_catalog_or_a_broken_one(cache, harm):
    harm(catalog(cache))
    fresh = open_cache(cache.path)
    assert fresh.ids() == IDS
    assert fresh.read("v3").shape == (3, 16, 8)


def test_an_old_catalog_hides_nothing(cache):
    """Added, overwritten and removed after it was written."""
    write(cache, "new", make_tokens(2, spec=cache.spec))
    write(cache, "v1", make_tokens(7, spec=cache.spec), overwrite=True)
    cache.remove("v2")
    fresh = open_cache(cache.path)
    assert fresh.ids() == ["new", "v0", "v1", "v3", "v4"]
    assert fresh.read("v1").shape[0] == 7
    assert fresh.read("new").shape[0] == 2
    with pytest.raises(EntryNotFoundError):
        fresh.read("v2")


def test_overwritten_within_one_tick_of_the_clock(cache):
    """Same size, same time of change: the record is newer although nothing shows it."""
    path = record_file(cache, "v1")
    before = path.stat()
    os.utime(catalog(cache), ns=(before.st_mtime_ns, before.st_mtime_ns))
    old = cache.read("v1")
    write(cache, "v1", make_tokens(3, spec=cache.spec, seed=77), overwrite=True)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    fresh = open_cache(cache.path).read("v1")
    assert not np.array_equal(fresh, old)


def test_a_forged_row_is_not_believed(cache):
    """A row under another's key, and text that is no record."""
    path = catalog(cache)
    content = json.loads(path.read_bytes())
    del content["checksum"]
    rows = content["entries"]
    rows[0][1], rows[1][1] = rows[1][1], rows[0][1]
    path.write_bytes(seal(content))
    later(path)
    assert open_cache(cache.path).ids() == IDS


def test_the_catalog_is_written_without_what_is_gone(tmp_path):
    cache = one_entry(tmp_path)
    writing = create_cache(cache.path, cache.spec)
    write(writing, "b", make_tokens(1, spec=cache.spec))
    writing.remove("clip.mp4")
    writing.write_catalog()
    rows = json.loads(catalog(cache).read_bytes())["entries"]
    assert [row[1] for row in rows] == ["b"]


def test_foreign_files_among_the_records_are_passed_by(cache):
    folder = record_file(cache, "v0").parent
    key = cache.record("v1").key
    for name in ("README", ".DS_Store", "x.json", f".{key}.json.0123456789ab.tmp"):
        (folder / name).write_text("{}")
    (cache.path / "records" / "note.txt").write_text("x")
    (cache.path / "records" / "zz").mkdir()
    (cache.path / "records" / "zz" / f"{key}.json").write_text("{}")
    (folder / f"{folder.name.ljust(16, '0')}.json").mkdir()
    assert open_cache(cache.path).ids() == IDS
