"""Several at work in one cache: who is turned away, and whose record stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from caches import make_cache
from entries import age, record_file
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import Vis4merError
from vis4mer.store.gc import collect_garbage
from vis4mer.store.packing import pack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.remote.local import LocalPlace
from vis4mer.store.replacement import commit_over, current_record, rearranging
from vis4mer.store.transfer.contents import read_contents
from vis4mer.store.transfer.pull import _Pull, pull_cache
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache


@pytest.fixture
def cache(tmp_path):
    made = make_cache(tmp_path, num_videos=2)
    pool_cache(made, (1,))
    return open_cache(made.path)


def cut_off(root, entry_id="v1"):
    """A cache here as a transfer that was killed long ago left it: objects without their record."""
    opened = open_cache(root)
    age(root / opened.record(entry_id).folder, 10_000)
    record_file(opened, entry_id).unlink()
    age(record_file(opened, "v0"), 10_000)


@pytest.mark.parametrize("direction", ["pull", "push"])
def test_gc_leaves_what_a_resumed_transfer_is_about_to_name(cache, tmp_path, direction):
    there = tmp_path / "there"

    def move(**options):
        if direction == "pull":
            return pull_cache(str(cache.path), there, **options)
        return push_cache(cache.path, str(there), **options)

    move()
    cut_off(there)
    turned_away = []

    def collect(_progress):
        with pytest.raises(Vis4merError, match="at work in it"):
            collect_garbage(open_cache(there), grace_seconds=-1)
        turned_away.append(True)

    assert move(progress=collect).copied == ("v1",)
    assert turned_away
    assert verify_cache(open_cache(there), "full").ok


def test_two_pushes_may_go_on_at_once(cache, tmp_path):
    there = tmp_path / "there"
    others = []

    def second(_progress):
        if not others:
            others.append(None)
            others.append(push_cache(cache.path, str(there), Selection(ids=("v1",))).copied)

    push_cache(cache.path, str(there), Selection(ids=("v0",)), progress=second)
    assert others[1] == ("v1",)
    assert open_cache(there).ids() == ["v0", "v1"]


def test_gc_and_packing_turn_each_other_away_before_there_is_a_pack(cache):
    refused = []

    def collect(done, _total, _entry_id):
        with pytest.raises(Vis4merError, match="at work in it"):
            collect_garbage(open_cache(cache.path), grace_seconds=-1)
        refused.append(done)

    pack_cache(open_cache(cache.path), progress=collect)
    assert refused
    assert verify_cache(open_cache(cache.path), "full").ok


# Records that grow under the same attempt ------------------------------------------------------


def pulled(cache, target, *arrays):
    return pull_cache(str(cache.path), target, Selection(arrays=arrays))


def test_a_pull_takes_up_what_another_has_added_since_it_began(cache, tmp_path):
    target = tmp_path / "target"
    pulled(cache, target, "patch")
    contents = read_contents(LocalPlace(cache.path))
    late = _Pull(contents, target, Selection(arrays=("prefix",)))
    assert late._standing("v0").token_arrays == ("patch",)
    pulled(cache, target, "grid1")
    late.run(jobs=1, dry_run=False, stop=None, progress=None)
    for entry_id in ("v0", "v1"):
        arrays = open_cache(target).record(entry_id).token_arrays
        assert arrays == ("patch", "prefix", "grid1")
    assert verify_cache(open_cache(target), "full").ok


def test_a_record_that_has_grown_is_another_one(cache, tmp_path):
    target = tmp_path / "target"
    pulled(cache, target, "patch")
    reader = open_cache(target)
    old = reader.record("v0")
    pulled(cache, target, "grid1")
    grown = open_cache(target).record("v0")
    assert (grown.attempt, grown.token_arrays) == (old.attempt, ("patch", "grid1"))
    with pytest.raises(Vis4merError, match="replaced or removed meanwhile"):
        commit_over(reader, old, replace(old, provenance={"by": "nobody"}))
    assert open_cache(target).record("v0") == grown
    assert current_record(reader, "v0") == grown


def test_a_pull_that_is_turned_away_changes_nothing(cache, tmp_path):
    target = tmp_path / "target"
    pulled(cache, target, "patch")
    before = (target / "zarr.json").read_bytes()
    with rearranging(target), pytest.raises(Vis4merError, match="at work in it"):
        pull_cache(str(cache.path), target)
    assert (target / "zarr.json").read_bytes() == before
    pull_cache(str(cache.path), target)
    assert (target / "zarr.json").read_bytes() != before
