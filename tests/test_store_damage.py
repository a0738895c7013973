"""Damage and malice: an error that names file and video, never zeros, never another file."""

from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc

import pytest
from entries import edit_record, edit_spec, flip, make_tokens, one_entry, record_file, shard, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, DamagedEntryError
from vis4mer.store.layout import array_metadata, crc32c
from vis4mer.store.verify import verify_cache

FRAME = 16 * 8 * 2  # bytes of a frame of the patch array


def group_file(cache, below=""):
    return cache.path / cache.record("clip.mp4").folder / below / "zarr.json"


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def zero_frame(path):
    with path.open("r+b") as file:
        file.seek(3 * (FRAME + 4))
        file.write(bytes(FRAME + 4))


def link(path):
    shutil.move(path, path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


# name: (what is done to the first shard of `patch`, what is read, does `quick` see it)
DAMAGE = {
    "missing": (os.unlink, None, True),
    "truncated": (truncate, None, True),
    "empty": (lambda p: os.truncate(p, 0), None, True),
    "longer": (lambda p: os.truncate(p, p.stat().st_size + 1), None, True),
    "a link": (link, None, True),
    "a pipe": (pipe, None, True),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), None, True),
    "byte of a frame": (lambda p: flip(p, 3 * (FRAME + 4) + 9), [3], False),
    "byte of a checksum": (lambda p: flip(p, 4 * (FRAME + 4) - 1), [3], False),
    "frame of zeros": (zero_frame, [3], False),
    "byte of the index": (lambda p: flip(p, -30), [0], False),
    "checksum of the index": (lambda p: flip(p, -1), [0], False),
    "all zeros": (lambda p: p.write_bytes(bytes(p.stat().st_size)), [0], False),
}


@pytest.mark.parametrize(("harm", "frames", "quick"), DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_shard_raises_and_is_found(tmp_path, harm, frames, quick):
    cache = one_entry(tmp_path)
    write(create_cache(cache.path, cache.spec), "whole", make_tokens(4, spec=cache.spec))
    harm(shard(cache, "clip.mp4"))
    opened = open_cache(cache.path)
    with pytest.raises(DamagedEntryError, match=r"patch/c/0/0/0 .*'clip\.mp4'"):
        opened.read("clip.mp4", frames=frames)
    assert opened.read("whole").any()
    assert opened.read("clip.mp4", "prefix").any()
    reports = {mode: verify_cache(opened, mode) for mode in ("quick", "full")}
    assert reports["quick"].ok != quick
    problems = reports["full"].problems
    assert [problem.id for problem in problems] == ["clip.mp4"]
    assert "patch/c/0/0/0" in problems[0].reason
    assert reports["full"].num_entries == 2


def test_frames_beside_a_damaged_one_are_read(tmp_path):
    cache = one_entry(tmp_path)
    wanted = cache.read("clip.mp4")
    flip(shard(cache, "clip.mp4"), 3 * (FRAME + 4) + 9)
    assert (cache.read("clip.mp4", frames=[2, 4]) == wanted[[2, 4]]).all()
    unchecked = cache.read("clip.mp4", frames=[3], verify=False)
    assert (unchecked != wanted[[3]]).sum() == 1


def test_damaged_metadata_raises_and_is_found(tmp_path):
    for harm in (os.unlink, truncate, lambda p: flip(p, 40), link, pipe):
        cache = one_entry(tmp_path / str(harm))
        harm(group_file(cache, "patch"))
        opened = open_cache(cache.path)
        with pytest.raises(DamagedEntryError, match=r"patch/zarr.json .*'clip\.mp4'"):
            opened.read("clip.mp4")
        assert [p.id for p in verify_cache(opened, "full").problems] == ["clip.mp4"]


def test_an_entrys_own_group_is_checked(tmp_path):
    cache = one_entry(tmp_path)
    group_file(cache).unlink()
    assert [p.id for p in verify_cache(cache, "quick").problems] == ["clip.mp4"]
    cache = one_entry(tmp_path / "other")
    flip(group_file(cache), 50)
    assert verify_cache(cache, "quick").ok
    assert [p.id for p in verify_cache(cache, "full").problems] == ["clip.mp4"]


def test_missing_groups_are_found(tmp_path):
    cache = one_entry(tmp_path)
    (cache.path / "videos" / "zarr.json").unlink()
    (problem,) = verify_cache(cache).problems
    assert "videos/zarr.json: missing" in problem.reason


def test_values_that_are_not_those_recorded_are_found(tmp_path):
    """The digest of the values, apart from the checksums of the files."""
    cache = one_entry(tmp_path)
    edit_record(cache, "clip.mp4", lambda r: r["arrays"]["patch"].update(sha256="0" * 64))
    assert verify_cache(open_cache(cache.path), "quick").ok
    (problem,) = verify_cache(open_cache(cache.path), "full").problems
    assert re.search("array patch of video 'clip.mp4'", problem.reason)


def test_a_sound_cache_has_no_problems(tmp_path):
    for dtype in ("float16", "bfloat16", "int8"):
        cache = one_entry(tmp_path / dtype, num_frames=300, stored_dtype=dtype)
        done = []
        report = verify_cache(cache, "full", progress=lambda *args, done=done: done.append(args))
        assert report.ok
        assert done == [(1, 1)]
        assert report.num_bytes == sum(
            p.stat().st_size for p in (cache.path / "videos").glob("*/*/**/*") if p.is_file()
        )


# Records -------------------------------------------------------------------------------------


def moved(objects):
    """An object whose path leaves the entry."""
    objects["objects"]["../../../x y/zarr.json"] = {"size": 1, "crc32c": 1}


TAMPERED = {
    "path that climbs": lambda r: r["objects"].update(
        {"../../zarr.json": {"size": 1, "crc32c": 0}}
    ),
    "path that climbs, with a space": moved,
    "absolute path": lambda r: r["objects"].update({"/etc/passwd": {"size": 1, "crc32c": 0}}),
    "attempt that climbs": lambda r: r.update(attempt="../../../../x"),
    "attempt of other digits": lambda r: r.update(attempt="0123456789ag"),
    "another id": lambda r: r.update(id="other.mp4"),
    "empty id": lambda r: r.update(id=""),
    "long id": lambda r: r.update(id="x" * 2000),
    "id that is a number": lambda r: r.update(id=5),
    "another shape": lambda r: r["arrays"]["patch"].update(shape=[10, 17, 8]),
    "more frames": lambda r: r["arrays"]["patch"].update(shape=[11, 16, 8]),
    "huge shape": lambda r: r["arrays"]["patch"].update(shape=[10**12, 16, 8]),
    "negative shape": lambda r: r["arrays"]["patch"].update(shape=[-1, 16, 8]),
    "four dimensions": lambda r: r["arrays"]["patch"].update(shape=[10, 16, 8, 1]),
    "another type": lambda r: r["arrays"]["patch"].update(dtype="float32"),
    "object type": lambda r: r["arrays"]["patch"].update(dtype="object"),
    "huge shards": lambda r: r["arrays"]["patch"].update(frames_per_shard=10**30),
    "no shards": lambda r: r["arrays"]["patch"].update(frames_per_shard=0),
    "small shards": lambda r: r["arrays"]["patch"].update(frames_per_shard=1),
    "frames that are true": lambda r: r.update(num_frames=True),
    "half frames": lambda r: r.update(num_frames=10.0),
    "no frames": lambda r: r.update(num_frames=0, pts_seconds=[]),
    "huge claim": lambda r: r.update(num_frames=10**15),
    "too few times": lambda r: r.update(pts_seconds=[0.0]),
    "times in words": lambda r: r.update(pts_seconds=["0"] * 10),
    "a time of many digits": lambda r: r.update(duration_seconds=10**400),
    "another array": lambda r: r["arrays"].update({"grid2": r["arrays"]["patch"]}),
    "array that climbs": lambda r: r["arrays"].update({"../patch": r["arrays"]["patch"]}),
    "no arrays": lambda r: r.update(arrays={}),
    "list of arrays": lambda r: r.update(arrays=[]),
    "no objects": lambda r: r.update(objects={}),
    "no metadata": lambda r: r["objects"].pop("patch/zarr.json") and None,
    "missing field": lambda r: r.pop("source") and None,
    "provenance in numbers": lambda r: r.update(provenance={"host": 5}),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=list(TAMPERED))
@pytest.mark.parametrize("catalog", [False, True])
def test_a_record_that_claims_what_cannot_be_is_refused(tmp_path, change, catalog):
    cache = one_entry(tmp_path)
    path = record_file(cache, "clip.mp4")
    write(create_cache(cache.path, cache.spec), "whole", make_tokens(4, spec=cache.spec))
    edit_record(cache, "clip.mp4", change)
    if catalog:
        open_cache(cache.path).write_catalog()
    opened = open_cache(cache.path)
    with pytest.raises(CacheFormatError, match=re.escape(str(path))):
        opened.read("clip.mp4")
    assert opened.read("whole").shape == (4, 16, 8)
    report = verify_cache(opened, "full")
    assert [str(path) in problem.reason for problem in report.problems] == [True]
    assert report.num_entries == 1


BROKEN_JSON = {
    "torn": lambda data: data[:-20],
    "empty": lambda _: b"",
    "one bit": lambda data: data.replace(b'"num_frames":10', b'"num_frames":11'),
    "a list": lambda _: b"[]",
    "deep": lambda _: b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half deep": lambda _: b'{"id":"clip.mp4","checksum":' + b"[" * 900 + b"]" * 900 + b"}",
    "NaN": lambda data: data.replace(b'"damaged_frames":0', b'"damaged_frames":NaN'),
    "infinity": lambda data: data.replace(b'"damaged_frames":0', b'"damaged_frames":1e999'),
    "many digits": lambda data: data.replace(b'"num_frames":10', b'"num_frames":' + b"1" * 9999),
    "surrogate": lambda data: data.replace(b'"vit', b'"\\ud800vit').replace(b"clip", b"\\ud800"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "no UTF-8": lambda data: data.replace(b"clip", b"cl\xff\xfe"),
}


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_broken_json_is_named_and_harms_no_other_entry(tmp_path, name):
    change, nameless = BROKEN_JSON[name], name not in ("one bit", "half deep", "infinity")
    cache = one_entry(tmp_path)
    write(create_cache(cache.path, cache.spec), "whole", make_tokens(4, spec=cache.spec))
    path = record_file(cache, "clip.mp4")
    path.write_bytes(change(path.read_bytes()))
    opened = open_cache(cache.path)
    with pytest.raises(CacheFormatError, match=re.escape(str(path))):
        opened.read("clip.mp4")
    assert opened.read("whole").shape == (4, 16, 8)
    report = verify_cache(opened, "full")
    assert [str(path) in problem.reason for problem in report.problems] == [True]
    if nameless:
        with pytest.raises(CacheFormatError, match=re.escape(str(path))):
            opened.ids()
    else:
        assert opened.ids() == ["clip.mp4", "whole"]


def test_a_record_under_anothers_name_is_refused(tmp_path):
    cache = one_entry(tmp_path)
    writing = create_cache(cache.path, cache.spec)
    write(writing, "other", make_tokens(4, spec=cache.spec))
    path = record_file(writing, "other")
    shutil.copy(record_file(cache, "clip.mp4"), path)
    opened = open_cache(cache.path)
    with pytest.raises(CacheFormatError, match=r"says video 'clip\.mp4'"):
        opened.record("other")
    assert [str(path) in problem.reason for problem in verify_cache(opened).problems] == [True]


@pytest.mark.parametrize("consistent", [False, True])
def test_claims_take_no_memory(tmp_path, consistent):
    """Records and array metadata that claim gigabytes are refused before anything is allocated."""
    cache = one_entry(tmp_path, grid=(16, 16), dim=4096, num_frames=1, num_prefix=0)
    frames = 30_000  # of 2 MB each

    def claim(record):
        record.update(num_frames=frames, pts_seconds=[0] * frames)
        record["arrays"]["patch"].update(shape=[frames, 256, 4096], frames_per_shard=frames)
        if consistent:
            data = json.dumps(
                array_metadata(
                    (frames, 256, 4096), dtype="float16", frames_per_shard=frames, attributes={}
                )
            ).encode()
            group_file(cache, "patch").write_bytes(data)
            record["objects"]["patch/zarr.json"] = {"size": len(data), "crc32c": crc32c(data)}

    edit_record(cache, "clip.mp4", claim)
    tracemalloc.start()
    try:
        with pytest.raises(
            DamagedEntryError, match="too few for 30000 frames" if consistent else "the record says"
        ):
            open_cache(cache.path).read("clip.mp4")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


# The spec ------------------------------------------------------------------------------------


BROKEN_SPECS = {
    "huge grid": lambda s: s.update(grid=[10**6, 10**6]),
    "huge width": lambda s: s.update(dim=10**12),
    "huge prefix": lambda s: s.update(num_prefix=10**12),
    "grid of one": lambda s: s.update(grid=[4]),
    "no width": lambda s: s.update(dim=0),
    "unknown type": lambda s: s.update(stored_dtype="float64"),
    "array that climbs": lambda s: s.update(arrays=["patch", "../x"]),
    "array twice spelt": lambda s: s.update(arrays=["patch", "grid02"]),
    "no sampling": lambda s: s.pop("sampling") and None,
    "fps of zero": lambda s: s["sampling"].update(fps=0.0),
    "format of zero": lambda s: s.update(format=0),
    "format in words": lambda s: s.update(format="1"),
    "another fingerprint": lambda s: s.update(fingerprint="0" * 16),
    "a field changed": lambda s: s.update(reader="decord"),
}


@pytest.mark.parametrize("change", BROKEN_SPECS.values(), ids=list(BROKEN_SPECS))
def test_a_spec_that_cannot_be_is_refused(tmp_path, change):
    cache = one_entry(tmp_path)
    edit_spec(cache, change)
    with pytest.raises(CacheFormatError, match=re.escape(str(cache.path / "zarr.json"))):
        open_cache(cache.path)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "[" * 900 + "]" * 900])
def test_unknown_fields_may_hold_anything_and_are_checked(tmp_path, value):
    cache = one_entry(tmp_path)
    path = cache.path / "zarr.json"
    path.write_text(path.read_text().replace('"backbone":', f'"added":{value},"backbone":'))
    with pytest.raises(CacheFormatError, match=re.escape(str(path))):
        open_cache(cache.path)
