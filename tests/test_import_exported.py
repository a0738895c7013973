"""`cache import` of what `cache export` wrote: the time axis and the layout come back unasked."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from entries import make_spec, make_tokens
from test_cli import refused, run
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.convert.exporting import export_tokens
from vis4mer.store.convert.importing import import_tokens
from vis4mer.store.errors import CacheFormatError, UsageError
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import Sampling
from vis4mer.store.summary import summarise

PTS = (0.1, 0.62, 1.11)  # of a video of a variable rate, sampled at 2 fps
SOURCE = SourceRecord(name="v.mp4", size=1, mtime_ns=1, sha256="0" * 64)


def exported(root: Path, file_format: str, *, tokens: str | None = None, **spec) -> Cache:
    """A cache of one video whose frames have times of their own, and its export in `out`."""
    cache = create_cache(root / "c.zarr", make_spec(**{"sampling": Sampling(fps=2.0), **spec}))
    with cache.write_entry("v.mp4", source=SOURCE) as writer:
        writer.append(make_tokens(3, spec=cache.spec), PTS)
        writer.commit(duration_seconds=1.7)
    cache = open_cache(cache.path)
    export_tokens(cache, root / "out", file_format=file_format, tokens=tokens)
    return cache


@pytest.mark.parametrize("file_format", ["npy", "h5", "safetensors"])
def test_the_time_axis_and_the_layout_come_back(tmp_path, file_format):
    before = exported(tmp_path, file_format)  # with 2 prefix tokens, which nobody would guess
    done = import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr")
    after = open_cache(tmp_path / "d.zarr")
    assert after.spec.sampling == Sampling(fps=2.0)
    for name in ("grid", "num_prefix", "dim", "backbone"):
        assert getattr(after.spec, name) == getattr(before.spec, name), name
    assert (after.spec.weights, after.spec.preprocess) == ("unknown", None)
    np.testing.assert_array_equal(after.read("v.mp4", "prefix"), before.read("v.mp4", "prefix"))
    record = after.record("v.mp4")
    if file_format == "npy":  # a bare array has no place for times
        assert (record.pts_seconds, record.duration_seconds) == ((0.0, 0.5, 1.0), 1.5)
    else:
        assert (record.pts_seconds, record.duration_seconds) == (PTS, 1.7)
    assert done.assumed_times == (file_format == "npy")
    assert "of an export of a cache: 2 fps, 2 prefix + 4x4, backbone" in done.notes[0]


def test_a_layout_that_is_asked_for_in_part_is_the_export_s(tmp_path):
    exported(tmp_path, "npy", grid=(2, 3))  # no square: only the export knows
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr", prefix=2)
    assert open_cache(tmp_path / "d.zarr").spec.grid == (2, 3)


def test_a_view_and_segments_come_back(tmp_path):
    exported(tmp_path, "npy", tokens="2x2+cls", sampling=Sampling(kind="segments", segments=3))
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr")
    spec = open_cache(tmp_path / "d.zarr").spec
    assert (spec.num_prefix, spec.grid) == (1, (2, 2))
    assert spec.sampling == Sampling(kind="segments", segments=3)


def test_what_is_asked_for_wins_and_is_said(tmp_path):
    exported(tmp_path, "safetensors")
    done = import_tokens(
        [tmp_path / "out"], cache=tmp_path / "d.zarr", fps=4, backbone="mine", prefix=2
    )
    cache = open_cache(tmp_path / "d.zarr")
    assert (cache.spec.sampling.fps, cache.spec.backbone) == (4.0, "mine")
    assert cache.record("v.mp4").pts_seconds == (0.0, 0.25, 0.5)
    assert done.notes[1].startswith("--fps 4 and --backbone mine, as asked: the export says 2 fps")


def test_an_export_is_not_believed_beyond_its_checksum(tmp_path):
    exported(tmp_path, "npy")
    marker = tmp_path / "out" / "export.json"
    marker.write_text(marker.read_text().replace('"fps":2.0', '"fps":9.0'))
    with pytest.raises(CacheFormatError, match=r"export\.json: checksum"):
        import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr")
    marker.write_text("{}")  # somebody's own file of that name
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr", prefix=2)
    assert open_cache(tmp_path / "d.zarr").spec.sampling.fps == 1.0


@pytest.mark.parametrize("times", [[0.0, np.nan, 1.0], [2.0, 1.0, 3.0], [0.0, 1.0]])
def test_times_that_are_none_are_not_believed(tmp_path, times):
    exported(tmp_path, "h5")
    with h5py.File(tmp_path / "out" / "tokens.h5", "r+") as file:
        file["v.mp4"].attrs["pts_seconds"] = np.asarray(times)
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr")
    assert open_cache(tmp_path / "d.zarr").record("v.mp4").pts_seconds == (0.0, 0.5, 1.0)


def test_an_evil_attribute_is_one_line(tmp_path):
    exported(tmp_path, "h5")
    with h5py.File(tmp_path / "out" / "tokens.h5", "r+") as file:
        about = json.loads(file.attrs["vis4mer"])
        about["cache"]["num_prefix"] = -1
        file.attrs["vis4mer"] = json.dumps(about)
    with pytest.raises(CacheFormatError, match="num_prefix"):
        import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr")


def test_files_of_an_export_and_others_go_apart(tmp_path):
    exported(tmp_path, "npy")
    np.save(tmp_path / "other.npy", np.zeros((3, 18, 8), np.float16))
    with pytest.raises(UsageError, match=r"is of no export.*; import them apart"):
        import_tokens([tmp_path / "out", tmp_path / "other.npy"], cache=tmp_path / "d.zarr")


def test_the_command_line_says_what_was_taken_over(tmp_path):
    exported(tmp_path, "h5")
    result = run("cache", "import", tmp_path / "out", "--cache", tmp_path / "d.zarr")
    assert "note: these files are of an export of a cache: 2 fps" in result.stdout
    assert "times as exported, and how the tokens were made" in result.stdout
    assert "1 video imported" in result.stdout


def test_no_file_fits_is_said_of_all(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 5, 8), np.float16))
    to = ("--cache", tmp_path / "d.zarr", "--layout", "vis4mer")
    result = run("cache", "import", tmp_path, *to)
    refused(result, 1, "none of 2 files and arrays fits; the first, ", "a.npy: shape (3, 5, 8)")
    assert not (tmp_path / "d.zarr").exists()


def test_what_made_a_cache_is_not_unlike_for_its_time_alone(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    for name, host in (("a", "one"), ("b", "one"), ("c", "two")):
        with cache.write_entry(name, source=SOURCE) as writer:
            writer.append(make_tokens(1, spec=cache.spec), [0.0])
            writer.commit(
                duration_seconds=1.0, provenance={"time": f"2026-01-01T00:00:0{name}", "host": host}
            )
    lines = dict(summarise(open_cache(cache.path)).lines(human_bytes=str))
    assert lines["time"] == "2026-01-01T00:00:0a to 2026-01-01T00:00:0c"
    assert lines["host"] == "one (2 videos), two (1 video) — not all alike"
