"""Pooled copies: what an extraction would have stored, whenever the process dies."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest
import zarr
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
    write,
)
from killing import killed_everywhere
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store import pooling, replacement
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.convert.exporting import export_tokens
from vis4mer.store.errors import CacheFormatError, UsageError, Vis4merError
from vis4mer.store.gc import collect_garbage
from vis4mer.store.pooling import pool_cache
from vis4mer.store.summary import summarise, view_costs
from vis4mer.store.verify import verify_cache
from vis4mer.store.views import TokenView

DTYPES = ("float16", "bfloat16", "int8")
FRAME = 16 * 8 * 2  # bytes of a frame of the patch array


def float16_tokens(num_frames, spec, seed=0):
    """Tokens that float16 holds exactly."""
    tokens = make_tokens(num_frames, spec=spec, seed=seed)
    return {name: values.astype(np.float16) for name, values in tokens.items()}


def cache_of(root, name="c.zarr", *, frames=(20, 3), **changes):
    cache = create_cache(root / name, make_spec(**changes))
    for i, num_frames in enumerate(frames):
        write(cache, f"v{i}", float16_tokens(num_frames, cache.spec, seed=i), piece=16)
    return open_cache(cache.path)


def averages(patch, side):
    """The adaptive average of (T, 16, D) by its definition, in float64."""
    cells = patch.astype(np.float64).reshape(len(patch), 4, 4, -1)
    spans = [range(i * 4 // side, -(-(i + 1) * 4 // side)) for i in range(side)]
    means = [cells[:, list(r)][:, :, list(c)].mean(axis=(1, 2)) for r in spans for c in spans]
    return np.stack(means, axis=1)


@pytest.mark.parametrize("stored_dtype", ["float16", "bfloat16"])
def test_a_copy_is_what_an_extraction_stores(tmp_path, stored_dtype, monkeypatch):
    """Bit for bit where the stored type holds the tokens; 3 does not divide 4."""
    monkeypatch.setattr(pooling, "_BLOCK_BYTES", 7 * 4 * 16 * 8)  # pieces of seven frames
    dtype = {"stored_dtype": stored_dtype}
    extracted = cache_of(tmp_path, "e.zarr", arrays=("patch", "prefix", "grid3", "grid2"), **dtype)
    cache = cache_of(tmp_path, **dtype)
    summary = pool_cache(cache, (3, 2))
    assert (summary.changed, summary.unchanged, summary.exit_code) == (("v0", "v1"), 0, 0)
    opened = open_cache(cache.path)
    for entry_id in opened.ids():
        for array, side in (("grid2", 2), ("grid3", 3)):
            found = opened.read(entry_id, array)
            wanted = averages(opened.read(entry_id), side)
            steps = {"float16": 2**-11, "bfloat16": 2**-8}[stored_dtype]
            np.testing.assert_allclose(found, wanted, rtol=1.01 * steps, atol=1e-6)
            if stored_dtype == "float16":
                one, other = opened.record(entry_id), extracted.record(entry_id)
                assert one.arrays[array] == other.arrays[array]
                assert one.arrays == other.arrays
    assert verify_cache(opened, "full").ok


def test_int8_copies_have_scales_of_their_own(tmp_path):
    cache = cache_of(tmp_path, stored_dtype="int8")
    patch, before = cache.read("v0"), set(cache.record("v0").arrays)
    pool_cache(cache, (2,))
    opened = open_cache(cache.path)
    assert set(opened.record("v0").arrays) - before == {
        "grid2",
        "grid2_scale",
        "grid2_channel",
    }
    folder = opened.path / opened.record("v0").folder
    scale = zarr.open_array(folder / "grid2_scale", mode="r")[:]
    channel = zarr.open_array(folder / "grid2_channel", mode="r")[0]
    wanted = averages(patch, 2)
    # As in an extraction the channel scale is the root mean square of the first 16 frames.
    np.testing.assert_allclose(channel, np.sqrt((wanted[:16] ** 2).mean(axis=(0, 1))), rtol=1e-5)
    off = np.abs(opened.read("v0", "grid2") - wanted)
    assert (off <= 0.501 * scale[..., None] * channel).all()


@pytest.mark.parametrize("stored_dtype", DTYPES)
def test_views_are_read_from_where_they_are_cheap(tmp_path, stored_dtype):
    """In a cache of which one entry has the copy and one has not, each is read as it is."""
    cache = cache_of(tmp_path, stored_dtype=stored_dtype)
    view = TokenView.parse("2x2")
    before = {i: cache.read_view(i, view) for i in cache.ids()}
    pooling.with_copies(cache, cache.record("v0"), ["grid2"])
    opened = open_cache(cache.path)
    cost = {"float16": 8 * 2, "bfloat16": 8 * 2, "int8": 8 + 4}[stored_dtype]  # of a token
    for entry_id, tokens, frames in (("v0", 4, 20), ("v1", 16, 3)):
        found = opened.read_view(entry_id, view)
        assert found.num_bytes == tokens * cost * frames
        assert before[entry_id].num_bytes == 16 * cost * frames
        tolerance = 0.03 if stored_dtype == "int8" else 0.01
        np.testing.assert_allclose(
            found.patch, before[entry_id].patch, atol=tolerance * np.abs(found.patch).max()
        )
    assert opened.read_view("v0", view, pool=False).patch.shape == (20, 2, 2, 8)
    assert opened.read_view("v1", view, pool=False).patch.shape == (3, 4, 4, 8)
    with pytest.raises(UsageError, match="no array 'grid2', only patch, prefix"):
        opened.read("v1", "grid2")
    assert [summary_view.num_stored for summary_view in costs_of(opened, "60x2x2")] == [1]
    assert verify_cache(opened, "full").ok


def costs_of(cache, view):
    return [cost for cost in summarise(cache).views if cost.view == view]


def test_nothing_stored_is_copied_and_the_old_reader_goes_on(tmp_path):
    cache = cache_of(tmp_path)
    reader = open_cache(cache.path)
    held = reader.record("v0")
    stored = {p.stat().st_ino for p in (cache.path / held.folder).rglob("*") if p.is_file()}
    pool_cache(cache, (2,))
    new = open_cache(cache.path).record("v0")
    linked = {
        p.stat().st_ino
        for p in (cache.path / new.folder).rglob("*")
        if p.is_file() and "grid2" not in p.parts
    }
    assert linked == stored
    assert reader.read("v0").shape == (20, 16, 8)  # by the record that it read before
    late = open_cache(cache.path)
    assert late.spec == cache.spec
    assert late.spec.arrays == ("patch", "prefix")
    for folder in attempts(cache):
        age(cache.path / folder, 100)
        age(record_file(late, "v0"), 100)
        age(record_file(late, "v1"), 100)
    report = collect_garbage(late)
    assert len(report.paths) == 2
    assert report.num_files == 2 * 5  # group, and two arrays of two files
    assert report.num_bytes == 0  # all of it stands in the new attempts
    assert verify_cache(late, "full").ok
    assert late.read("v0", "grid2").shape == (20, 4, 8)


def test_the_same_command_goes_on_and_more_sides_may_follow(tmp_path):
    cache = cache_of(tmp_path)
    pooling.with_copies(cache, cache.record("v0"), ["grid2"])
    first = pool_cache(open_cache(cache.path), (2,))
    assert (first.changed, first.unchanged) == (("v1",), 1)
    again = pool_cache(open_cache(cache.path), (2,))
    assert (again.changed, again.unchanged, again.num_bytes) == ((), 2, 0)
    more = pool_cache(open_cache(cache.path), (2, 1))
    assert more.changed == ("v0", "v1")
    opened = open_cache(cache.path)
    assert opened.record("v0").token_arrays == ("patch", "prefix", "grid1", "grid2")
    new = write(create_cache(cache.path, make_spec()), "late", make_tokens(4, spec=make_spec()))
    assert new.token_arrays == ("patch", "prefix")  # the extraction's own command still goes on
    assert pool_cache(open_cache(cache.path), (2, 1)).changed == ("late",)


def test_copies_can_be_dropped(tmp_path):
    cache = cache_of(tmp_path, stored_dtype="int8")
    before = {i: cache.record(i) for i in cache.ids()}
    added = pool_cache(cache, (2, 1))
    dropped = pool_cache(open_cache(cache.path), (1,), drop=True)
    assert dropped.changed == ("v0", "v1")
    assert open_cache(cache.path).record("v0").token_arrays == ("patch", "prefix", "grid2")
    rest = pool_cache(open_cache(cache.path), (2, 1), drop=True)
    assert added.num_bytes == dropped.num_bytes + rest.num_bytes
    opened = open_cache(cache.path)
    for entry_id, record in before.items():
        assert opened.record(entry_id).arrays == record.arrays
        assert opened.record(entry_id).objects == record.objects
    assert pool_cache(opened, (2,), drop=True).changed == ()
    collect_garbage(opened, grace_seconds=-1)
    assert not list(cache.path.rglob("grid*"))
    assert verify_cache(opened, "full").ok


@pytest.mark.parametrize("drop", [False, True])
def test_killed_at_any_moment(tmp_path, drop):
    """The entry is as before or as asked, whole, and the same command ends what was begun."""
    cache = cache_of(tmp_path, frames=(3,), num_prefix=0)
    wanted = averages(cache.read("v0"), 2)
    if drop:
        pool_cache(cache, (2,))

    def work():
        pool_cache(open_cache(cache.path), (2,), drop=drop)

    seen = set()
    for _ in killed_everywhere(work):
        reader = open_cache(cache.path)
        assert verify_cache(reader, "full").ok
        held = "grid2" in reader.record("v0").token_arrays
        seen.add(held)
        if held:
            np.testing.assert_allclose(reader.read("v0", "grid2"), wanted, rtol=1e-3, atol=1e-6)
        if held != drop:
            pool_cache(reader, (2,), drop=not drop)  # so that the next process does it again
    assert seen == {True, False}
    pool_cache(open_cache(cache.path), (2,), drop=drop)
    reader = open_cache(cache.path)
    collect_garbage(reader, grace_seconds=-1)
    assert len(attempts(cache)) == 1
    assert verify_cache(reader, "full").ok


def test_what_was_written_meanwhile_stands(tmp_path, monkeypatch):
    """Somebody overwrites one entry and removes another while their copies are made."""
    cache = cache_of(tmp_path)
    sync = replacement.sync_directories
    tokens = make_tokens(5, spec=cache.spec, seed=9)

    def late(folder):
        sync(folder)
        other = open_cache(cache.path)
        if "v0" in folder.name:
            write(create_cache(cache.path, cache.spec), "v0", tokens, overwrite=True)
        else:
            other.remove("v1")

    monkeypatch.setattr(replacement, "sync_directories", late)
    summary = pool_cache(cache, (2,))
    assert [failure.id for failure in summary.failures] == ["v0", "v1"]
    assert all("meanwhile" in failure.reason for failure in summary.failures)
    assert (summary.changed, summary.exit_code) == ((), 1)
    opened = open_cache(cache.path)
    assert opened.ids() == ["v0"]
    assert opened.record("v0").num_frames == 5
    assert len(attempts(cache)) == 3  # two that were there, and the overwriter's


def test_two_at_once_do_the_work_once(tmp_path):
    """Each looks at what stands, not at what stood when it opened the cache."""
    cache = cache_of(tmp_path)
    late = open_cache(cache.path)
    late.ids()
    pool_cache(cache, (2,))
    after = attempts(cache)
    summary = pool_cache(late, (2,))
    assert (summary.changed, summary.unchanged, summary.failures) == ((), 2, ())
    assert attempts(cache) == after


def test_a_second_one_waits_for_the_first(tmp_path):
    """Else the later commit of an entry would drop the copies of the one before it."""
    cache = cache_of(tmp_path)
    refusals = []

    def at_work(*_):
        with pytest.raises(Vis4merError, match="another `vis4mer cache pool`") as caught:
            pool_cache(open_cache(cache.path), (1,))
        refusals.append(str(caught.value))

    assert pool_cache(cache, (2,), progress=at_work).changed == ("v0", "v1")
    assert len(refusals) == 2
    assert pool_cache(cache, (1,)).changed == ("v0", "v1")
    assert {"grid1", "grid2"} <= set(open_cache(cache.path).record("v0").token_arrays)
    assert verify_cache(cache, "full").ok


def test_a_damaged_entry_fails_alone_and_stays_as_it_was(tmp_path):
    cache = cache_of(tmp_path, frames=(4, 4, 4))
    flip(shard(cache, "v0"), 9)
    os.truncate(shard(cache, "v1", "prefix"), 5)
    before = record_file(cache, "v0").read_bytes()
    summary = pool_cache(cache, (2,))
    assert [failure.id for failure in summary.failures] == ["v0", "v1"]
    assert "fails its checksum" in summary.failures[0].reason
    assert "the file is torn" in summary.failures[1].reason
    assert (summary.changed, summary.exit_code) == (("v2",), 3)
    assert record_file(cache, "v0").read_bytes() == before
    assert len(attempts(cache)) == 4


def test_a_stop_between_videos(tmp_path):
    cache = cache_of(tmp_path)
    stop = threading.Event()

    def after_one(done, _total, _name):
        if done == 1:
            raise AssertionError("the second was begun")
        stop.set()

    summary = pool_cache(cache, (2,), stop=stop, progress=after_one)
    assert (summary.changed, summary.left, summary.exit_code) == (("v0",), 1, 1)


@pytest.mark.parametrize(
    ("sides", "drop", "message"),
    [
        ((), False, "no side"),
        ((5,), False, "5x5: the full grid of .* is 4x4; expected sides from 1 to 4"),
        ((4,), False, "4x4: the full grid"),
        ((0,), True, "0x0"),
        ((3,), True, "grid3 is one of the arrays that .* was extracted with"),
    ],
)
def test_sides_that_cannot_be_are_refused(tmp_path, sides, drop, message):
    cache = cache_of(tmp_path, frames=(1,), arrays=("patch", "grid3"))
    with pytest.raises(UsageError, match=message):
        pool_cache(cache, sides, drop=drop)


def test_there_must_be_a_full_grid(tmp_path):
    cache = cache_of(tmp_path, frames=(1,), arrays=("prefix", "grid3"))
    with pytest.raises(UsageError, match="no full grid to average"):
        pool_cache(cache, (2,))


@pytest.mark.parametrize(
    ("copy", "change"),
    [
        ("grid9", {}),  # larger than the full grid
        ("grid03", {}),
        ("gridlock", {}),
        ("other", {}),
        ("grid2", {"shape": [4, 5, 8]}),
        ("grid2", {"dtype": "float32"}),
    ],
)
def test_a_record_that_claims_other_copies_is_refused(tmp_path, copy, change):
    cache = one_entry(tmp_path, num_frames=4)
    pool_cache(cache, (2,))

    def claim(record):
        record["arrays"][copy] = record["arrays"]["grid2"] | change
        for path in [path for path in record["objects"] if path.startswith("grid2/")]:
            record["objects"][path.replace("grid2", copy)] = record["objects"][path]

    edit_record(open_cache(cache.path), "clip.mp4", claim)
    with pytest.raises(CacheFormatError):
        open_cache(cache.path).record("clip.mp4")


def test_exports_read_the_copies(tmp_path):
    cache = cache_of(tmp_path, frames=(4,))
    pool_cache(cache, (2,))
    opened = open_cache(cache.path)
    shutil.rmtree(cache.path / opened.record("v0").folder / "patch" / "c")  # not needed
    export_tokens(opened, tmp_path / "out", file_format="npy", tokens="2x2")
    (file,) = (tmp_path / "out").glob("*.npy")
    np.testing.assert_array_equal(np.load(file), opened.read("v0", "grid2"))
    with pytest.raises(UsageError, match="whole grids are exported; leave @stride2 out"):
        export_tokens(opened, tmp_path / "o", file_format="npy", tokens="2x2@stride2")


def test_what_views_cost_by_hand(tmp_path):
    spec = make_spec(grid=(14, 14), dim=8)
    cache = create_cache(tmp_path / "c.zarr", spec)
    assert view_costs(spec, []) == ()
    for i in range(2):
        write(cache, f"v{i}", make_tokens(3 + 6 * i, spec=spec))
    pooling.with_copies(cache, cache.record("v0"), ["grid7"])
    costs = {cost.view: cost for cost in summarise(open_cache(cache.path)).views}
    token = 8 * 2
    # Of the frames a quarter lies in v0, which holds grid7.
    mixed = 60 * (49 * token * 3 + 196 * token * 9) // 12
    assert {view: (c.num_bytes, c.num_stored, c.num_videos) for view, c in costs.items()} == {
        "60x14x14": (60 * 196 * token, 2, 2),
        "60x7x7": (mixed, 1, 2),
        "60x4x4": (60 * 196 * token, 0, 2),
        "60xcls": (60 * 2 * token, 2, 2),  # CLS is read with the register beside it
    }


def test_the_command(tmp_path):
    cache = cache_of(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, ["cache", *arguments])

    done = run("pool", str(cache.path), "--grid", "2,1")
    assert done.exit_code == 0, done.output
    assert "grid2, grid1 added to 2 videos" in done.stdout
    again = json.loads(run("pool", str(cache.path), "--grid", "2", "--json").stdout)
    assert (again["unchanged"], again["changed"]) == (2, [])
    listed = json.loads(run("ls", str(cache.path), "--json").stdout)["entries"]
    assert listed[0]["arrays"] == ["patch", "prefix", "grid1", "grid2"]
    info = run("info", str(cache.path)).stdout
    assert "60x2x2" in info
    assert "4 times less than the largest; stored" in info
    dropped = run("pool", str(cache.path), "--grid", "2", "--drop")
    assert "grid2 dropped from 2 videos" in dropped.stdout
    assert "cache gc" in dropped.stdout
    assert (
        "--grid 7x7: expected whole numbers" in run("pool", str(cache.path), "--grid", "7x7").stderr
    )
