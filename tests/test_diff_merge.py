"""Two caches compared, and several brought together: what is the same, what is not, who wins."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from caches import make_cache, make_spec, write_tokens
from entries import edit_record, flip, record_file, shard, tree
from killing import killed_everywhere
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.diff import diff_caches
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.merge import merge_caches, merge_tables
from vis4mer.store.packing import pack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.verify import verify_cache


def reopened(cache):
    return open_cache(cache.path)


def rows(**labels: int) -> TaskTable:
    found = tuple(TaskRow(id=name, split="train", label=label) for name, label in labels.items())
    return TaskTable(dataset="d", task="t", kind="classification", classes=("x", "y"), rows=found)


# diff ------------------------------------------------------------------------------------------


def test_equal_caches_are_equal_however_they_lie(tmp_path):
    a, b = make_cache(tmp_path / "a"), make_cache(tmp_path / "b")
    pack_cache(b)
    found = diff_caches(a, reopened(b))
    assert found.equal
    assert found.num_same == 8


def test_what_differs_is_told(tmp_path):
    a = make_cache(tmp_path / "a", num_videos=5)
    b = make_cache(tmp_path / "b", num_videos=4, seed=0)
    b.remove("v0")
    for entry_id, shift, late in (("v1", 1, 0.0), ("v2", 0, 0.5)):
        patch, prefix = a.read(entry_id), a.read(entry_id, "prefix")
        b.remove(entry_id)
        write_tokens(b, entry_id, patch + shift, prefix, pts_seconds=[i + late for i in range(8)])
    pool_cache(b, (1,))
    b.save_task(rows(v1=0))
    found = diff_caches(a, reopened(b))
    assert (found.only_a, found.only_b) == (("v0", "v4"), ())
    differing = {entry.id: (entry.values, entry.only_a, entry.only_b) for entry in found.entries}
    assert differing == {
        "v1": (("patch",), (), ("grid1",)),
        "v2": (("times",), (), ("grid1",)),
        "v3": ((), (), ("grid1",)),
    }
    assert [(t.reference, t.reasons[0][:9]) for t in found.tasks] == [
        ("d/t", "only in B"),
        ("toy/label", "1 row onl"),
    ]
    assert not found.equal


def test_settings_are_compared_field_by_field(tmp_path):
    a = create_cache(tmp_path / "a.zarr", make_spec())
    b = create_cache(tmp_path / "b.zarr", make_spec(fps=2.0, arrays=("patch",)))
    fields = {d.field: (d.stored, d.wanted) for d in diff_caches(a, b).spec}
    assert fields == {"sampling.fps": ("1.0", "2.0"), "arrays": ("patch, prefix", "patch")}


# merge -----------------------------------------------------------------------------------------


def two_halves(tmp_path, **options):
    """Two caches that share v2, and what is in both together."""
    whole = make_cache(tmp_path / "whole", num_videos=5, frames=(3, 4, 300, 5, 2), **options)
    halves = []
    for name, gone in (("a", ("v3", "v4")), ("b", ("v0", "v1"))):
        shutil.copytree(whole.path, tmp_path / f"{name}.zarr")
        half = open_cache(tmp_path / f"{name}.zarr")
        for entry_id in gone:
            half.remove(entry_id)
        half.write_catalog()
        halves.append(open_cache(half.path))
    return whole, halves


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_two_halves_make_the_whole(tmp_path, link, packed):
    whole, (a, b) = two_halves(tmp_path)
    if packed:
        pack_cache(a, free_at_once=True)
        a = reopened(a)
    before = tree(a.path), tree(b.path)
    summary = merge_caches(tmp_path / "all.zarr", [a, b], link=link)
    assert (tree(a.path), tree(b.path)) == before
    assert summary.added == ("v0", "v1", "v2", "v3", "v4")
    assert (summary.same, summary.exit_code) == (1, 0)
    merged = open_cache(tmp_path / "all.zarr")
    assert digest_cache(merged) == digest_cache(whole)
    assert verify_cache(merged, "full").ok
    shared = shard(merged, "v3").stat().st_nlink > 1
    assert shared == link
    again = merge_caches(merged.path, [a, b])
    assert (again.added, again.same, again.tasks) == ((), 6, ())


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path):
    _, (a, b) = two_halves(tmp_path)
    before = tree(tmp_path)
    planned = merge_caches(tmp_path / "all.zarr", [a, b], dry_run=True)
    assert tree(tmp_path) == before
    done = merge_caches(tmp_path / "all.zarr", [a, b])
    assert (planned.added, planned.same, planned.num_bytes, planned.tasks) == (
        done.added,
        done.same,
        done.num_bytes,
        done.tasks,
    )


def test_other_values_are_a_conflict_until_somebody_decides(tmp_path):
    a = make_cache(tmp_path / "a", num_videos=2, seed=0)
    b = make_cache(tmp_path / "b", num_videos=3, seed=0)
    patch, prefix = b.read("v1"), b.read("v1", "prefix")
    b.remove("v1")
    write_tokens(b, "v1", patch + 1, prefix)
    b = reopened(b)
    summary = merge_caches(a.path, [b])
    assert [(c.name, c.reason) for c in summary.conflicts] == [("v1", "other values: patch")]
    assert (summary.added, summary.same, summary.exit_code) == (("v2",), 1, 3)
    assert (reopened(a).read("v1") == patch).all()
    kept = merge_caches(a.path, [b], prefer="target")
    assert (kept.conflicts, kept.replaced, kept.exit_code) == ((), (), 0)
    taken = merge_caches(a.path, [b], prefer="source")
    assert (taken.replaced, taken.exit_code) == (("v1",), 0)
    assert digest_cache(reopened(a)).root == digest_cache(b).root
    assert verify_cache(reopened(a), "full").ok


def test_arrays_that_only_the_source_has_are_added(tmp_path):
    a, b = make_cache(tmp_path / "a"), make_cache(tmp_path / "b")
    pool_cache(b, (1,))
    b = reopened(b)
    summary = merge_caches(a.path, [b])
    assert len(summary.extended) == 8
    assert digest_cache(reopened(a)) == digest_cache(b)
    assert verify_cache(reopened(a), "full").ok
    assert merge_caches(a.path, [b]).same == 8


def test_a_damaged_source_is_no_entry_of_the_target(tmp_path):
    """Copied bytes are compared with their record; what was linked shows in a full check."""
    _, (a, b) = two_halves(tmp_path)
    flip(shard(b, "v3"), 7)
    summary = merge_caches(tmp_path / "all.zarr", [a, b], link=False)
    assert [f.name for f in summary.failures] == ["v3"]
    assert summary.exit_code == 3
    merged = open_cache(tmp_path / "all.zarr")
    assert merged.ids() == ["v0", "v1", "v2", "v4"]
    assert verify_cache(merged, "full").ok
    os.truncate(shard(b, "v4"), 10)
    assert {f.name for f in merge_caches(tmp_path / "more.zarr", [b]).failures} == {"v4"}


def test_an_empty_target_is_filled(tmp_path):
    source = make_cache(tmp_path, num_videos=2)
    create_cache(tmp_path / "t.zarr", source.spec)
    assert merge_caches(tmp_path / "t.zarr", [source]).added == ("v0", "v1")
    assert open_cache(tmp_path / "t.zarr").ids() == ["v0", "v1"]


def test_a_torn_record_or_table_stops_nothing_else(tmp_path):
    """Each is told with the cache that it is of, and the rest is merged."""
    _, (a, b) = two_halves(tmp_path)
    b.save_task(rows(v3=1))
    (b.path / "tasks" / "toy" / "label.json").write_bytes(b"{")
    record_file(b, "v3").write_bytes(b"{")  # does not say whose it is
    text = record_file(b, "v4").read_bytes()
    record_file(b, "v4").write_bytes(text.replace(b'"num_frames":2', b'"num_frames":3'))
    (b.path / "catalog.json").unlink()
    summary = merge_caches(tmp_path / "all.zarr", [a, reopened(b)])
    assert summary.added == ("v0", "v1", "v2")
    assert summary.tasks == ("toy/label", "d/t")
    found = [(failure.name, failure.source) for failure in summary.failures]
    assert found == [(name, b.name) for name in ("a record", "v4", "task toy/label")]
    assert summary.exit_code == 3
    assert verify_cache(open_cache(tmp_path / "all.zarr"), "full").ok


def test_what_is_torn_in_the_target_is_told_of_the_target(tmp_path):
    _, (a, b) = two_halves(tmp_path)
    (a.path / "tasks" / "toy" / "label.json").write_bytes(b"{")
    record_file(a, "v2").write_bytes(b"{")
    (a.path / "catalog.json").unlink()
    summary = merge_caches(a.path, [b])
    found = [(failure.name, failure.source) for failure in summary.failures]
    assert found == [("v2", a.name), ("task toy/label", a.name)]
    assert summary.added == ("v3", "v4")


def test_another_duration_is_another_value(tmp_path):
    a, b = make_cache(tmp_path / "a", num_videos=2), make_cache(tmp_path / "b", num_videos=2)
    edit_record(b, "v1", lambda record: record.update(duration_seconds=9.5))
    b = reopened(b)
    assert [entry.values for entry in diff_caches(a, b).entries] == [("duration",)]
    assert digest_cache(a).root != digest_cache(b).root
    assert [c.reason for c in merge_caches(a.path, [b]).conflicts] == ["other values: duration"]


@pytest.mark.parametrize("link", [True, False])
def test_links_in_a_source_lead_nowhere(tmp_path, link):
    source = make_cache(tmp_path, num_videos=2)
    folder = shard(source, "v0").parents[3]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    summary = merge_caches(tmp_path / "all.zarr", [reopened(source)], link=link)
    assert [failure.name for failure in summary.failures] == ["v0"]
    assert "a link stands at" in summary.failures[0].reason
    assert open_cache(tmp_path / "all.zarr").ids() == ["v1"]


def test_private_files_are_copied_into_a_shared_directory(tmp_path):
    """A second name has the file's own mode, which the group could not read."""
    source = make_cache(tmp_path, num_videos=2)
    for path in source.path.rglob("*"):
        if path.is_file() and path.parent.name != "v1":
            path.chmod(0o600)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    merge_caches(shared / "all.zarr", [source])
    merged = open_cache(shared / "all.zarr")
    assert digest_cache(merged).root == digest_cache(source).root
    files = [path for path in merged.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o060 for path in files} == {0o060}
    assert shard(merged, "v0").stat().st_nlink == 1
    again = merge_caches(shared / "again.zarr", [merged])  # which is shared already
    assert shard(open_cache(again.target), "v0").stat().st_nlink == 2


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path):
    a = make_cache(tmp_path / "a")
    other = make_cache(tmp_path / "b", fps=2.0)
    narrow = create_cache(tmp_path / "n.zarr", replace(a.spec, arrays=("prefix", "grid1")))
    before = tree(tmp_path)
    with pytest.raises(FingerprintError, match=r"sampling\.fps"):
        merge_caches(a.path, [other])
    with pytest.raises(UsageError, match="the target itself"):
        merge_caches(a.path, [reopened(a)])
    with pytest.raises(UsageError, match="holds patch, which"):
        merge_caches(narrow.path, [a])
    with pytest.raises(UsageError, match="no cache to merge"):
        merge_caches(a.path, [])
    assert tree(tmp_path) == before


def test_tables_are_united_row_by_row():
    merged, reasons = merge_tables(rows(a=0, b=1), rows(b=1, c=0), prefer=None)
    assert merged == rows(a=0, b=1, c=0)
    assert reasons == ()
    merged, reasons = merge_tables(rows(a=0, b=1), rows(b=0, c=0), prefer=None)
    assert merged == rows(a=0, b=1, c=0)
    assert reasons == ("1 row with another label: b",)
    merged, reasons = merge_tables(rows(a=0, b=1), rows(b=0, c=0), prefer="source")
    assert merged == rows(a=0, b=0, c=0)
    assert reasons == ()


def test_tables_of_other_classes_are_never_mixed():
    other = replace(rows(c=0), classes=("y", "x"))
    for prefer, stands, told in ((None, 0, 2), ("target", 0, 0), ("source", 1, 0)):
        merged, reasons = merge_tables(rows(a=0), other, prefer=prefer)
        assert merged == (rows(a=0), other)[stands]
        assert len(reasons) == told


def test_a_merge_killed_anywhere_has_made_a_smaller_cache(tmp_path):
    whole, (a, b) = two_halves(tmp_path)
    expected = digest_cache(whole)
    target = tmp_path / "all.zarr"
    for moment in killed_everywhere(lambda: merge_caches(target, [a, b])):
        if (target / "zarr.json").exists():
            found = open_cache(target)
            assert set(found.ids()) <= set(whole.ids())
            if moment % 20 == 0:
                assert verify_cache(found, "full").ok
                shutil.rmtree(target)
    merge_caches(target, [a, b])
    assert digest_cache(open_cache(target)) == expected
