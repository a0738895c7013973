"""Moving a cache in parts, in any order, ends with the very cache that one whole copy makes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from caches import make_cache, make_spec
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.diff import diff_caches
from vis4mer.store.merge import merge_caches
from vis4mer.store.pooling import pool_cache
from vis4mer.store.spec import joined_spec
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache


@pytest.fixture
def pooled(tmp_path: Path) -> Cache:
    """Extracted with patch and prefix; the copies came later."""
    made = make_cache(tmp_path, num_videos=2, frames=3, grid=(4, 4), dim=8)
    pool_cache(made, (1, 2))
    return open_cache(made.path)


def part(*arrays: str) -> Selection:
    return Selection(arrays=arrays)


PARTS = [
    [part("grid2", "prefix"), Selection()],
    [part("grid2"), part("grid1"), part("prefix"), part("patch")],
    [part("patch", "grid2"), Selection()],
    [part("prefix"), part("patch", "grid1", "grid2")],
    [Selection(), part("grid2")],
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("move", [push_cache, pull_cache])
def test_parts_make_the_whole(pooled: Cache, tmp_path: Path, move, parts) -> None:
    target = tmp_path / "target"
    for selection in parts:
        move(str(pooled.path), str(target), selection)
    there = open_cache(target)
    assert there.spec == pooled.spec
    assert diff_caches(pooled, there).equal
    assert verify_cache(there, "full").ok
    assert create_cache(target, pooled.spec).spec == pooled.spec  # extraction goes on


def test_a_part_without_the_full_grid_names_all_that_it_holds(pooled: Cache, tmp_path) -> None:
    pull_cache(str(pooled.path), tmp_path / "small", part("grid2"))
    pull_cache(str(pooled.path), tmp_path / "small", part("grid1"))
    small = open_cache(tmp_path / "small")
    assert small.spec.arrays == ("grid1", "grid2")
    pull_cache(str(pooled.path), tmp_path / "back")
    pull_cache(str(tmp_path / "small"), tmp_path / "back")
    assert open_cache(tmp_path / "back").spec == pooled.spec


@pytest.mark.parametrize("order", [0, 1])
def test_a_merge_of_parts_makes_the_whole(pooled: Cache, tmp_path: Path, order) -> None:
    sources = []
    for name, arrays in (("a", ("grid1", "grid2")), ("b", ("patch", "prefix"))):
        pull_cache(str(pooled.path), tmp_path / name, part(*arrays))
        sources.append(open_cache(tmp_path / name))
    merge_caches(tmp_path / "all", sources[::-1] if order else sources)
    assert diff_caches(pooled, open_cache(tmp_path / "all")).equal


def test_what_the_source_is_extracted_with_is_named_in_any_order() -> None:
    whole = make_spec(grid=(4, 4), arrays=("patch", "prefix", "grid2", "grid4"))
    one_by_one = [replace(whole, arrays=(array,)) for array in (*whole.arrays, "grid3")]
    for order in itertools.permutations(one_by_one):
        spec = None
        for moved in order:
            spec = joined_spec(spec, moved, whole)
        assert spec == whole


def test_what_the_target_is_extracted_with_stays_named() -> None:
    ours = make_spec(grid=(4, 4), arrays=("patch", "prefix", "grid1"))
    theirs = make_spec(grid=(4, 4), arrays=("patch", "prefix", "grid2"))
    joined = joined_spec(ours, theirs, theirs)
    assert joined.arrays == ("patch", "prefix", "grid1", "grid2")
    assert joined_spec(joined, theirs, theirs) == joined


def test_a_grid_of_full_size_is_no_copy() -> None:
    """It may have been extracted instead of `patch`, and cannot be said to have come later."""
    whole = make_spec(grid=(2, 2))
    joined = joined_spec(replace(whole, arrays=("prefix", "grid1", "grid2")), whole, whole)
    assert joined.arrays == ("patch", "prefix", "grid2")
