"""Predicted sizes against the files that are really written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from caches import make_spec, write_tokens
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.sizing import StoredSize, empty_cache_size, entries_size, entry_size
from vis4mer.store.tasks import TaskRow, TaskTable

LENGTHS = {"v0": 1, "v1": 7, "v2": 256, "v3": 257, "v4": 600}


def write(path: Path, lengths: dict[str, int], **fields: object) -> Cache:
    cache = create_cache(path, make_spec(dim=8, **fields))
    random = np.random.default_rng(0)
    for entry_id, frames in lengths.items():
        write_tokens(cache, entry_id, random.standard_normal((frames, 4, 8)).astype(np.float16))
    cache.write_catalog()
    return cache


def files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("arrays", [("patch", "prefix", "grid1"), ("prefix", "grid1")])
def test_as_many_files_and_bytes_as_are_written(
    tmp_path: Path, dtype: str, arrays: tuple[str, ...]
) -> None:
    cache = write(tmp_path / "c.zarr", LENGTHS, stored_dtype=dtype, arrays=arrays)
    found = files(cache.path)
    predicted = entries_size(cache.spec, LENGTHS) + empty_cache_size(cache.spec)
    assert predicted.num_objects == len(found)
    in_arrays = sum(
        stored.size
        for entry_id in LENGTHS
        for path, stored in cache.record(entry_id).objects.items()
        if path != "zarr.json"
    )
    assert predicted.array_bytes == in_arrays
    text = sum(found.values()) - in_arrays
    estimated = predicted.num_bytes - predicted.array_bytes
    # Here ids are short, times are whole and nothing is said of the machine.
    assert text < estimated < 1.6 * text


def test_a_cache_without_entries_to_the_byte(tmp_path: Path) -> None:
    cache = write(tmp_path / "c.zarr", {})
    row = TaskRow(id="v0", split="train", label=0)
    table = TaskTable(dataset="d", task="t", kind="classification", classes=("a",), rows=(row,))
    cache.save_task(table)
    found = files(cache.path)
    predicted = empty_cache_size(cache.spec, [table])
    assert (predicted.num_bytes, predicted.num_objects) == (sum(found.values()), len(found))


def test_a_frame_more_by_hand() -> None:
    """5 tokens of 8 values in two arrays: float16 has a checksum an array, int8 scales as well."""
    for dtype, expected in (("float16", 5 * 8 * 2 + 2 * 4), ("int8", 5 * 8 + 5 * 4 + 4 * 4)):
        spec = make_spec(dim=8, stored_dtype=dtype, arrays=("patch", "prefix"))
        longer, shorter = (entry_size(spec, frames).array_bytes for frames in (399, 300))
        assert longer - shorter == 99 * expected


def test_a_length_that_nobody_would_write_out() -> None:
    """Thirty years at one frame a second: 5 tokens of 16 values, two arrays, a shard each 256."""
    spec, frames = make_spec(), 10**9
    found = entry_size(spec, frames)
    shards = 2 * -(-frames // 256)
    assert found.num_objects == shards + 4  # two arrays' metadata, the group, the record
    by_hand = frames * (5 * 16 * 2 + 2 * 4) + shards * (256 * 16 + 4)
    assert 0 <= found.array_bytes - by_hand < 2000  # metadata
    assert found.num_bytes > found.array_bytes + 10 * frames  # each time, three times
    around = [entry_size(spec, frames).array_bytes for frames in range(20478, 20483)]
    assert {later - earlier for earlier, later in pairwise(around)} <= {168, 168 + 2 * 4100}


def test_sizes_add_up() -> None:
    spec = make_spec()
    one = entry_size(spec, 10)
    assert one.times(3) == one + one + one
    assert entries_size(spec, {}) == StoredSize()
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        entry_size(spec, 0)
