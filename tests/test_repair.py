"""Real damage mended: what is sound stays, what can be had comes back, what is lost is said."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal

import pytest
from caches import make_cache
from entries import edit_record, flip, make_tokens, record_file, shard, tree, write
from killing import in_child, kill_at
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store import repair
from vis4mer.store.cache import open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import FingerprintError
from vis4mer.store.mending import files as mend_files
from vis4mer.store.mending.steps import Mending
from vis4mer.store.packing import pack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.remote.place import RemoteError
from vis4mer.store.repair import mend_all, repair_cache
from vis4mer.store.verify import entry_problems, verify_cache


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path, num_videos=4)


@pytest.fixture
def mirror(cache, tmp_path):
    shutil.copytree(cache.path, tmp_path / "mirror.zarr")
    return open_cache(tmp_path / "mirror.zarr")


def repaired(cache, *mirrors, **options):
    """What was done, and the cache as it is then; what a dry run says is compared with it."""
    before = tree(cache.path)
    planned = repair_cache(open_cache(cache.path), mirrors=mirrors, dry_run=True)
    assert tree(cache.path) == before
    report = repair_cache(open_cache(cache.path), mirrors=mirrors, **options)
    deeds = [(step.id, step.deed) for step in report.steps]
    assert [(step.id, step.deed) for step in planned.steps] == deeds
    assert all("\n" not in step.reason for step in report.steps)
    return report, deeds, open_cache(cache.path)


def swap(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def entry_file(cache, entry_id, below):
    return cache.path / cache.record(entry_id).folder / below


def test_a_sound_cache_is_left_alone(cache):
    before = tree(cache.path)
    report, deeds, _ = repaired(cache)
    assert (deeds, report.exit_code, report.num_entries) == ([], 0, 4)
    assert set(tree(cache.path)) - set(before) <= {"pool.lock"}


HARM = {
    "flipped": lambda path: flip(path, 9),
    "truncated": lambda path: os.truncate(path, 20),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=list(HARM))
def test_a_damaged_entry_alone_goes_and_waits_for_extraction(cache, harm):
    harm(shard(cache, "v1"))
    report, deeds, after = repaired(cache)
    assert deeds == [("v1", "dropped")]
    assert report.exit_code == 3
    assert after.ids() == ["v0", "v2", "v3"]
    assert verify_cache(after, "full").ok
    (failure,) = after.failures()
    assert (failure.id, failure.stage) == ("v1", "write")  # which extraction tries again
    assert failure.reason.startswith("damaged in the cache")
    assert report.dropped[0].source == cache.record("v1").source


@pytest.mark.parametrize("harm", HARM.values(), ids=list(HARM))
@pytest.mark.parametrize("packed", [False, True])
def test_a_mirror_gives_back_the_same_values(cache, mirror, harm, packed):
    expected = digest_cache(cache)
    if packed:
        pack_cache(mirror, free_at_once=True)
        mirror = open_cache(mirror.path)
    harm(shard(cache, "v1"))
    report, deeds, after = repaired(cache, mirror)
    assert (deeds, report.exit_code) == ([("v1", "copied")], 0)
    assert digest_cache(after) == expected
    assert verify_cache(after, "full").ok
    assert shard(after, "v1").stat().st_nlink == 1  # what is shared is damaged in both


def test_packed_entries_are_mended_too(cache, mirror):
    expected = digest_cache(cache)
    pack_cache(cache, free_at_once=True)
    opened = open_cache(cache.path)
    record = opened.record("v1")
    flip(cache.path / record.pack.path, record.pack.offsets["patch/c/0/0/0"] + 5)
    _, deeds, after = repaired(cache, mirror)
    assert deeds == [("v1", "copied")]
    assert digest_cache(after) == expected
    assert verify_cache(after, "full").ok


def test_a_mirror_with_other_values_or_damage_is_not_believed(cache, mirror, tmp_path):
    other = make_cache(tmp_path / "other", num_videos=4, seed=1)
    flip(shard(mirror, "v1"), 30)
    flip(shard(cache, "v1"), 9)
    _, deeds, after = repaired(cache, other, mirror)
    assert deeds == [("v1", "dropped")]
    assert verify_cache(after, "full").ok


def test_a_mirror_that_lies_is_not_believed(cache, mirror):
    """Its record claims our digests and its checksums fit its bytes, which are others."""
    other = make_cache(mirror.path.parent / "liar", num_videos=4, seed=1)
    truth = cache.record("v1").to_json()["arrays"]
    edit_record(other, "v1", lambda r: r.update(arrays=truth))
    flip(shard(cache, "v1"), 9)
    report = repair_cache(open_cache(cache.path), mirrors=[open_cache(other.path)])
    assert [(s.id, s.deed) for s in report.steps] == [("v1", "dropped")]


def test_a_mirror_of_other_settings_is_refused(cache, tmp_path):
    with pytest.raises(FingerprintError):
        repair_cache(cache, mirrors=[make_cache(tmp_path / "o", fps=2.0)])


@pytest.mark.parametrize("below", ["zarr.json", "patch/zarr.json", "prefix/zarr.json"])
def test_metadata_is_written_anew(cache, below):
    expected = digest_cache(cache)
    entry_file(cache, "v2", below).write_bytes(b"{}")
    report, deeds, after = repaired(cache)
    assert (deeds, report.exit_code) == ([("v2", "mended")], 0)
    assert digest_cache(after) == expected
    assert verify_cache(after, "full").ok


def test_only_the_pooled_copy_that_is_bad_goes(cache):
    expected = digest_cache(cache)
    pool_cache(cache, (1,))
    flip(shard(open_cache(cache.path), "v0", "grid1"), 3)
    report, deeds, after = repaired(cache)
    assert (deeds, report.exit_code) == ([("v0", "dropped copies")], 0)
    assert after.record("v0").token_arrays == ("patch", "prefix")
    assert after.record("v1").token_arrays == ("patch", "prefix", "grid1")
    assert digest_cache(after).arrays["patch"] == expected.arrays["patch"]


# Records ---------------------------------------------------------------------------------------


def test_a_torn_record_comes_back_from_the_catalog(cache):
    expected = digest_cache(cache)
    os.truncate(record_file(cache, "v3"), 50)
    _, deeds, after = repaired(cache)
    assert deeds == [("v3", "restored")]
    assert digest_cache(after) == expected


@pytest.mark.parametrize("catalog", [True, False])
def test_swapped_records_go_back_to_their_places(cache, catalog):
    expected = digest_cache(cache)
    swap(record_file(cache, "v0"), record_file(cache, "v1"))
    if not catalog:
        (cache.path / "catalog.json").unlink()
    _, deeds, after = repaired(cache)
    assert deeds == [("v0", "restored"), ("v1", "restored")]
    assert digest_cache(after) == expected


def test_a_moved_record_goes_back_to_its_place(cache):
    expected = digest_cache(cache)
    (cache.path / "catalog.json").unlink()
    record_file(cache, "v0").replace(record_file(cache, "v1"))
    _, deeds, after = repaired(cache)
    assert deeds == [("v0", "restored"), ("v1", "dropped")]
    assert after.ids() == ["v0", "v2", "v3"]
    assert digest_cache(after) != expected
    assert [failure.id for failure in after.failures()] == ["v1"]


def test_a_lost_record_whose_values_are_bad_too_comes_from_a_mirror(cache, mirror):
    expected = digest_cache(cache)
    flip(shard(cache, "v1"), 9)
    record_file(cache, "v1").write_bytes(b"")
    (cache.path / "catalog.json").unlink()
    _, deeds, after = repaired(cache, mirror)
    assert deeds == [("v1", "copied")]
    assert digest_cache(after) == expected


def test_what_a_newer_version_may_have_written_is_left(cache):
    path = record_file(cache, "v1")
    edit_record(cache, "v1", lambda r: r.update(new_room=["of", "bytes"]))
    (cache.path / "catalog.json").unlink()
    stands = path.read_bytes()
    report, deeds, _ = repaired(cache)
    assert (deeds, report.exit_code) == ([(None, "left")], 3)
    assert path.read_bytes() == stands


def test_a_removed_entry_does_not_come_back(cache):
    """A record that is not there is no entry, whatever the catalog still says."""
    record_file(cache, "v0").unlink()
    flip(shard(cache, "v1"), 9)
    _, deeds, after = repaired(cache)
    assert deeds == [("v1", "dropped")]
    assert after.ids() == ["v2", "v3"]


# What belongs to no entry ----------------------------------------------------------------------


def test_groups_tables_failures_and_the_catalog(cache, mirror):
    expected = digest_cache(cache)
    (cache.path / "videos" / "zarr.json").unlink()
    next((cache.path / "videos").glob("*/zarr.json")).write_text("{")
    (cache.path / "tasks" / "toy" / "label.json").write_text("{}")
    (cache.path / "failures" / "ab").mkdir(parents=True)
    (cache.path / "failures" / "ab" / "x.json").write_text("[]")
    (cache.path / "catalog.json").write_text("")
    root = json.loads((cache.path / "zarr.json").read_bytes())
    (cache.path / "zarr.json").write_text(json.dumps({**root, "node_type": "array"}))
    report, deeds, after = repaired(cache, mirror)
    assert sorted(deed for _, deed in deeds) == ["copied", *["rebuilt"] * 4, "removed"]
    assert report.exit_code == 0
    assert digest_cache(after) == expected
    assert verify_cache(after, "full").ok


def test_a_table_that_nobody_has_goes(cache):
    (cache.path / "tasks" / "toy" / "label.json").write_text("{}")
    report, deeds, after = repaired(cache)
    assert (deeds, report.exit_code) == ([(None, "removed")], 0)
    assert "vis4mer label" in report.steps[0].reason
    assert after.tasks() == []


def test_a_stranger_among_the_records_stays(cache):
    stranger = next((cache.path / "records").iterdir()) / "notes.json"
    stranger.write_text("mine")
    _, deeds, _ = repaired(cache)
    assert deeds == [(None, "left")]
    assert stranger.read_text() == "mine"


def test_a_repair_killed_anywhere_loses_nothing_that_is_sound(cache, mirror):
    flip(shard(cache, "v1"), 9)
    entry_file(cache, "v2", "patch/zarr.json").unlink()
    os.truncate(record_file(cache, "v3"), 10)
    before = cache.path.with_name("before")
    shutil.copytree(cache.path, before)
    expected = digest_cache(mirror)

    def killed(moment: int) -> None:
        kill_at(moment)
        repair_cache(open_cache(cache.path), mirrors=[mirror])

    for moment in range(1, 1000, 11):
        status = in_child(lambda moment=moment: killed(moment))
        after = open_cache(cache.path)
        assert len(list((cache.path / "records").glob("*/*.json"))) == 4
        assert (after.read("v0") == mirror.read("v0")).all()
        repair_cache(after, mirrors=[mirror])
        assert digest_cache(open_cache(cache.path)) == expected
        if status == 0:
            break
        shutil.rmtree(cache.path)
        shutil.copytree(before, cache.path)
    assert status == 0


# Others at work, and what cannot be read at the moment ------------------------------------------


def new_tokens(cache):
    return make_tokens(5, spec=cache.spec, seed=7)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_was_extracted_anew_meanwhile_stands(cache, mirror, mirrored):
    """The check of a large cache takes hours; what it has found may be out of date."""
    flip(shard(cache, "v1"), 9)
    opened = open_cache(cache.path)
    found = verify_cache(opened, "full")
    new = write(open_cache(cache.path), "v1", new_tokens(cache), overwrite=True)
    report = mended(opened, found, mirror if mirrored else None)
    assert report == []
    assert open_cache(cache.path).record("v1") == new
    assert verify_cache(open_cache(cache.path), "full").ok


def test_a_record_that_was_made_anew_meanwhile_stands(cache, mirror):
    os.truncate(record_file(cache, "v1"), 50)
    opened = open_cache(cache.path)
    found = verify_cache(opened, "full")
    new = write(open_cache(cache.path), "v1", new_tokens(cache), overwrite=True)
    assert mended(opened, found, mirror) == []
    assert open_cache(cache.path).record("v1") == new


def test_a_record_that_appears_while_another_is_put_back_stands(cache, monkeypatch):
    """The catalog knows the old one, whose objects take their time to check."""
    os.truncate(record_file(cache, "v1"), 50)
    made = []

    def slow(backing, record, mode):
        if record.id == "v1" and not made:
            made.append(write(open_cache(cache.path), "v1", new_tokens(cache), overwrite=True))
        return entry_problems(backing, record, mode)

    monkeypatch.setattr(mend_files, "entry_problems", slow)
    assert repair_cache(open_cache(cache.path)).steps == ()
    assert open_cache(cache.path).record("v1") == made[0]


def mended(opened, found, mirror):
    """The deeds of a repair whose check had found this."""
    run = Mending(opened, [mirror] if mirror else [], False)
    mend_all(run, found)
    return [step.deed for step in run.steps]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
@pytest.mark.parametrize("torn", [False, True])
def test_what_cannot_be_read_at_the_moment_is_left(cache, monkeypatch, number, torn):
    if torn:
        os.truncate(record_file(cache, "v1"), 50)
    before = tree(cache.path)
    with refusing(monkeypatch, number, "/v1-"):
        report = repair_cache(open_cache(cache.path))
    assert [step.deed for step in report.steps] == ["left"]
    assert report.exit_code == 3
    after = tree(cache.path)
    after.pop("pool.lock")
    assert after == before


def test_a_disk_that_cannot_give_it_back_is_damage(cache, monkeypatch):
    with refusing(monkeypatch, errno.EIO, "/v1-"):
        report = repair_cache(open_cache(cache.path))
    assert [(step.id, step.deed) for step in report.steps] == [("v1", "dropped")]


@pytest.mark.parametrize("torn", [False, True])
def test_a_mirror_that_cannot_be_reached_drops_nothing(cache, mirror, monkeypatch, torn):
    flip(shard(cache, "v1"), 9)
    if torn:
        os.truncate(record_file(cache, "v1"), 50)
    before = [path for path in tree(cache.path) if path.startswith("records")]

    def fail(*_):
        raise RemoteError("s3://bucket/c: no answer (tried 5 times)")

    monkeypatch.setattr(mirror.backing, "open", fail)
    with pytest.raises(RemoteError):
        repair_cache(open_cache(cache.path), mirrors=[mirror])
    assert [path for path in tree(cache.path) if path.startswith("records")] == before


def test_a_table_waits_for_a_mirror_that_cannot_be_reached(cache, mirror, monkeypatch):
    (table,) = (cache.path / "tasks").glob("*/*.json")
    table.write_bytes(b"{")

    def fail(*_):
        raise RemoteError("s3://bucket/c: no answer (tried 5 times)")

    monkeypatch.setattr(mirror.backing, "table", fail)
    with pytest.raises(RemoteError):
        repair_cache(open_cache(cache.path), mirrors=[mirror])
    assert table.exists()


@contextlib.contextmanager
def refusing(monkeypatch, number, part):
    """Opening a shard whose path holds `part` fails so."""
    real = os.open

    def refuse(path, *args, **kwargs):
        if part in str(path) and "/videos/" in str(path) and "/c/" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


def test_a_check_ends_when_it_is_told_to(cache, monkeypatch):
    """It takes hours, and loses nothing by being killed."""
    handlers = []

    def check(*args, **options):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return verify_cache(*args, **options)

    monkeypatch.setattr(repair, "verify_cache", check)
    assert CliRunner().invoke(app, ["cache", "repair", str(cache.path)]).exit_code == 0
    assert handlers == [signal.SIG_DFL]
