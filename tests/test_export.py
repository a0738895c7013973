"""`cache export`: plain files that others read, and that come back as they went out."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from entries import attempts, flip, make_spec, make_tokens, shard, write
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import refused, run
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.convert import exporting
from vis4mer.store.convert.exporting import export_tokens
from vis4mer.store.convert.importing import import_tokens
from vis4mer.store.convert.names import FileNames, read_index
from vis4mer.store.errors import EntryNotFoundError, UsageError, Vis4merError
from vis4mer.store.files import held_alone
from vis4mer.store.tasks import TaskRow, TaskTable

# ids as people have them: plain, with a folder, a leading dash, another case, beyond ASCII, evil
IDS = (
    "clip.mp4",
    "a/b.mp4",
    "-e6lEsIUf3U",
    "__x",
    "Clip.mp4",
    "straße",
    "../up",
    ".hidden",
    "a,b\n",
    "c\rd",
)
FORMATS = ("npy", "h5", "safetensors")


def some_cache(root: Path, *, ids=IDS, frames: int = 3, **spec) -> Cache:
    cache = create_cache(root / "c.zarr", make_spec(**spec))
    for seed, entry_id in enumerate(ids):
        write(cache, entry_id, make_tokens(frames, spec=cache.spec, seed=seed))
    return open_cache(cache.path)


def whole(cache: Cache, entry_id: str) -> np.ndarray:
    """(T, S, D) as the cache reads it, prefix tokens first."""
    parts = [
        cache.read(entry_id, array) for array in ("prefix", "patch") if array in cache.spec.arrays
    ]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_round_trip_is_exact(tmp_path, file_format, stored, monkeypatch):
    """Every id and every value comes back; int8 within the error of a second quantisation."""
    monkeypatch.setattr(exporting, "_BLOCK_BYTES", 1)  # a frame at a time
    cache = some_cache(tmp_path, stored_dtype=stored)
    summary = export_tokens(cache, tmp_path / "out", file_format=file_format)
    assert (set(summary.exported), summary.exit_code) == (set(IDS), 0)
    inside = {path.parent for path in tmp_path.rglob("*") if "c.zarr" not in path.parts}
    assert inside == {tmp_path, tmp_path / "out"}  # nothing above, nothing below
    back_as = "bfloat16" if stored == "int8" else stored
    done = import_tokens(
        [tmp_path / "out"], cache=tmp_path / "d.zarr", prefix=2, stored_dtype=back_as
    )
    assert not done.failures
    back = open_cache(tmp_path / "d.zarr")
    assert back.ids() == sorted(IDS)
    for entry_id in IDS:
        before, after = whole(cache, entry_id), whole(back, entry_id)
        if stored == "int8":
            np.testing.assert_allclose(after, before, rtol=2**-8)
        else:
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "int8"])
def test_others_read_the_files(tmp_path, stored):
    cache = some_cache(tmp_path, ids=("clip",), stored_dtype=stored)
    for file_format in FORMATS:
        export_tokens(cache, tmp_path / file_format, file_format=file_format)
    expected = whole(cache, "clip")  # float16, or float32
    plain = np.load(tmp_path / "npy" / "clip.npy")
    np.testing.assert_array_equal(plain, expected)
    assert (plain.shape, plain.dtype) == ((3, 18, 8), expected.dtype)
    with h5py.File(tmp_path / "h5" / "tokens.h5") as file:
        np.testing.assert_array_equal(file["clip"][:], expected)
        assert file["clip"].attrs["id"] == "clip"
        assert file["clip"].attrs["pts_seconds"].tolist() == [0, 1, 2]
        about = json.loads(file.attrs["vis4mer"])
        assert about["fingerprint"] == cache.spec.fingerprint
    path = tmp_path / "safetensors" / "clip.safetensors"
    tensor = load_file(path)["tokens"]
    assert torch.equal(tensor.float(), torch.tensor(expected).float())
    of = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float32}
    assert tensor.dtype == of[stored]
    with safe_open(path, "pt") as file:
        assert file.metadata()["id"] == "clip"


def test_the_released_layout_goes_out_and_comes_in(tmp_path):
    """(T, 197, D), CLS first, whatever other prefix tokens the cache has."""
    cache = some_cache(tmp_path, ids=("x",), grid=(14, 14), num_prefix=2, dim=4)
    result = run(
        "cache", "export", cache.path, "--to", tmp_path / "out", "--format", "npy",
        "--tokens", "14x14+cls",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tokens = np.load(tmp_path / "out" / "x.npy")
    assert tokens.shape == (3, 197, 4)
    np.testing.assert_array_equal(tokens[:, 0], cache.read("x", "prefix")[:, 0])
    np.testing.assert_array_equal(tokens[:, 1:], cache.read("x", "patch"))
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr", layout="vis4mer")
    np.testing.assert_array_equal(whole(open_cache(tmp_path / "d.zarr"), "x"), tokens)


def test_a_pooled_view(tmp_path):
    """2 × 2 averages of a 4 × 4 grid, computed by hand."""
    cache = some_cache(tmp_path, ids=("x",))
    export_tokens(cache, tmp_path / "out", file_format="npy", tokens="2x2")
    patches = cache.read("x", "patch").astype("f4").reshape(3, 2, 2, 2, 2, 8)  # T h 2 w 2 D
    expected = patches.mean(axis=(2, 4)).reshape(3, 4, 8)
    found = np.load(tmp_path / "out" / "x.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="leave the 60x out"):
        export_tokens(cache, tmp_path / "o", file_format="npy", tokens="60x2x2")
    with pytest.raises(UsageError, match="cannot give it"):
        export_tokens(cache, tmp_path / "o", file_format="npy", tokens="7x7")
    assert not (tmp_path / "o").exists()


def test_a_cache_of_cls_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    import_tokens([tmp_path / "a.npy"], cache=tmp_path / "c.zarr", prefix=1)
    export_tokens(open_cache(tmp_path / "c.zarr"), tmp_path / "out", file_format="npy")
    assert np.load(tmp_path / "out" / "a.npy").shape == (3, 1, 4)


def test_hours_of_timestamps_fit_into_hdf5(tmp_path):
    """An attribute of HDF5's old form ends at 64 kB: 8,192 frames."""
    cache = some_cache(tmp_path, ids=("long",), frames=9000, grid=(1, 1), num_prefix=0, dim=1)
    export_tokens(cache, tmp_path / "out", file_format="h5")
    with h5py.File(tmp_path / "out" / "tokens.h5") as file:
        assert file["long"].attrs["pts_seconds"][-1] == 8999


# What is written where ------------------------------------------------------------------------


def test_names_are_plain_or_keys_and_never_meet():
    names = FileNames(["taken"])
    chosen = [names.choose(entry_id) for entry_id in (*IDS, "TAKEN", "x" * 300)]
    assert chosen[0] == "clip.mp4"
    assert chosen[3] == "__x"
    assert len({name.lower() for name in chosen}) == len(chosen)
    for name in chosen:
        assert name[0] not in ".-"
        assert set(name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def test_the_index_says_whose_a_file_is(tmp_path):
    cache = some_cache(tmp_path)
    export_tokens(cache, tmp_path / "out", file_format="npy")
    with (tmp_path / "out" / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == set(IDS)
    for row in rows:
        found = np.load(tmp_path / "out" / row["file"])
        np.testing.assert_array_equal(found, whole(cache, row["id"]))
        assert (int(row["frames"]), row["dtype"]) == (3, "float16")


def test_an_id_that_hdf5_cannot_hold_fails_alone(tmp_path):
    cache = some_cache(tmp_path, ids=("a", "b\0"))
    summary = export_tokens(cache, tmp_path / "h5", file_format="h5")
    assert (summary.exported, summary.exit_code) == (("a",), 3)
    assert "HDF5 cannot hold this id" in summary.failures[0].reason
    assert not export_tokens(cache, tmp_path / "npy", file_format="npy").failures
    import_tokens([tmp_path / "npy"], cache=tmp_path / "d.zarr", prefix=2)
    assert open_cache(tmp_path / "d.zarr").ids() == ["a", "b\0"]


def test_an_index_is_not_believed(tmp_path):
    """A name counts only where it is one that its id would be given."""
    export_tokens(some_cache(tmp_path, ids=("a",)), tmp_path / "out", file_format="npy")
    index = tmp_path / "out" / "index.csv"
    index.write_text(
        "file,id,frames,dtype,attempt\n"
        "../../etc/passwd,evil,3,float16,abcdef012345\n"
        "a.npy,somebody-else,3,float16,abcdef012345\n"
        "a.npy,,3,float16,abcdef012345\n"
        "a.npy,a,many,float16,abcdef012345\n"
        'a.npy,"a,3,flo'
    )
    assert read_index(index) == {}
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr", prefix=2)
    assert open_cache(tmp_path / "d.zarr").ids() == ["a"]


def test_a_part_of_the_videos(tmp_path):
    cache = some_cache(tmp_path, ids=("a", "b", "c", "-d"))
    rows = [TaskRow(id=name, split="train" if name < "c" else "test", label=0) for name in "abcx"]
    cache.save_task(TaskTable(dataset="t", task="l", kind="regression", rows=tuple(rows)))
    to = iter(str(tmp_path / f"out{i}") for i in range(9))

    def export(**asked):
        return export_tokens(cache, next(to), file_format="npy", **asked)

    assert export(task="t/l").exported == ("a", "b", "c")
    assert export(task="t/l").missing == ("x",)
    assert export(task="t/l", split="test").exported == ("c",)
    assert export(ids=("c", "-d")).exported == ("-d", "c")
    with pytest.raises(UsageError, match="give --task"):
        export(split="test")
    with pytest.raises(EntryNotFoundError, match="'nobody'"):
        export(ids=("nobody",))
    with pytest.raises(UsageError, match="no video that was asked for"):
        export(task="t/l", ids=("-d",))
    (tmp_path / "list").write_text("-d\nb\n")
    result = run(
        "cache", "export", cache.path, "--to", tmp_path / "o", "--format", "npy",
        "--ids", f"@{tmp_path / 'list'}", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["exported"] == ["-d", "b"]


def test_a_folder_of_other_things_is_refused(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    command = ("cache", "export", cache.path, "--format")
    refused(run(*command, "npy", "--to", tmp_path / "mine"), 2, "is not empty")
    refused(run(*command, "npy", "--to", tmp_path / "mine" / "thesis.tex"), 2, "is a file")
    assert run(*command, "npy", "--to", tmp_path / "out").exit_code == 0
    refused(run(*command, "h5", "--to", tmp_path / "out"), 2, "another kind", "'npy' there")
    refused(run(*command, "npy", "--to", tmp_path / "out", "--tokens", "2x2"), 2, "'all' there")
    other = create_cache(tmp_path / "other.zarr", make_spec(backbone="another"))
    write(other, "a", make_tokens(3, spec=other.spec))
    with pytest.raises(UsageError, match="fingerprint"):
        export_tokens(other, tmp_path / "out", file_format="npy")
    (tmp_path / "out" / "export.json").write_text("{}")
    refused(run(*command, "npy", "--to", tmp_path / "out"), 2, "choose another folder")


# Runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_command_goes_on(tmp_path, file_format):
    cache = some_cache(tmp_path, ids=("a", "b"))
    out = tmp_path / "out"
    stop = threading.Event()

    def stop_after_a(_done: int, _total: int, name: str) -> None:
        if name == "a":
            stop.set()

    first = export_tokens(cache, out, file_format=file_format, stop=stop, progress=stop_after_a)
    assert (first.exported, first.left, first.exit_code) == (("a",), 1, 1)
    second = export_tokens(cache, out, file_format=file_format)
    assert (second.exported, second.already_there) == (("b",), 1)
    writing = open_cache(cache.path)
    write(writing, "A", make_tokens(3, spec=cache.spec, seed=8))
    write(writing, "a", make_tokens(4, spec=cache.spec, seed=9), overwrite=True)
    third = export_tokens(open_cache(cache.path), out, file_format=file_format)
    assert (third.exported, third.already_there) == (("A", "a"), 1)
    import_tokens([out], cache=tmp_path / "d.zarr", prefix=2)
    back = open_cache(tmp_path / "d.zarr")
    for entry_id in ("A", "a", "b"):
        expected = whole(open_cache(cache.path), entry_id)
        np.testing.assert_array_equal(whole(back, entry_id), expected)


def test_a_damaged_video_fails_alone(tmp_path):
    cache = some_cache(tmp_path, ids=("a", "b"))
    flip(shard(cache, "a"), 5)
    for file_format in FORMATS:
        out = tmp_path / file_format
        summary = export_tokens(cache, out, file_format=file_format)
        assert (summary.exported, summary.exit_code) == (("b",), 3)
        assert summary.failures[0].id == "a"
        import_tokens([out], cache=tmp_path / f"{file_format}.zarr", prefix=2)
        assert open_cache(tmp_path / f"{file_format}.zarr").ids() == ["b"]
        assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("file_format", FORMATS)
def test_killed_at_any_moment_no_file_is_half(tmp_path, file_format):
    """A process that kills itself at the second video; the same command then does the rest."""
    cache = some_cache(tmp_path, ids=("a", "b", "c"))
    code = f"""
import os, signal
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.convert.exporting import export_tokens
read = Cache.read
def read_or_die(self, entry_id, *rest, **named):
    if entry_id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, entry_id, *rest, **named)
Cache.read = read_or_die
cache = open_cache({str(cache.path)!r})
export_tokens(cache, {str(tmp_path / "out")!r}, file_format={file_format!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert left <= {"export.json", "export.lock", "index.csv", "a.npy", "a.safetensors"}
    summary = export_tokens(cache, tmp_path / "out", file_format=file_format)
    assert summary.already_there == (0 if file_format == "h5" else 1)  # HDF5 is begun anew
    import_tokens([tmp_path / "out"], cache=tmp_path / "d.zarr", prefix=2)
    back = open_cache(tmp_path / "d.zarr")
    for entry_id in ("a", "b", "c"):
        np.testing.assert_array_equal(whole(back, entry_id), whole(cache, entry_id))


def test_exporting_writes_nothing_into_the_cache(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    before = {p: p.stat().st_mtime_ns for p in cache.path.rglob("*")}
    assert attempts(cache)
    export_tokens(cache, tmp_path / "out", file_format="npy")
    assert before == {p: p.stat().st_mtime_ns for p in cache.path.rglob("*")}


# Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_planted_link_leads_nothing_out_of_the_folder(tmp_path, file_format):
    """Under the names that files once had while they were written, and under their last ones."""
    cache = some_cache(tmp_path, ids=("v0",))
    out, victim = tmp_path / "out", tmp_path / "victim"
    export_tokens(cache, out, file_format=file_format)
    own = {"npy": "v0.npy", "h5": "tokens.h5", "safetensors": "v0.safetensors"}[file_format]
    victim.write_bytes((out / own).read_bytes())
    before = victim.read_bytes()
    write(cache, "v0", make_tokens(4, spec=cache.spec, seed=9), overwrite=True)
    for planted in (f".{own}.tmp", own):
        (out / planted).unlink(missing_ok=True)
        (out / planted).symlink_to(victim)
        if file_format == "h5":
            with pytest.raises(UsageError, match="is a link"):
                export_tokens(open_cache(cache.path), out, file_format=file_format)
            (out / planted).unlink()
        else:
            export_tokens(open_cache(cache.path), out, file_format=file_format)
        assert victim.read_bytes() == before
        write(cache, "v0", make_tokens(5, spec=cache.spec, seed=8), overwrite=True)
    if file_format == "h5":  # another name of the same file is written through as well
        (out / own).hardlink_to(victim)
        with pytest.raises(UsageError, match="is a link"):
            export_tokens(open_cache(cache.path), out, file_format=file_format)
        assert victim.read_bytes() == before


def test_what_a_killed_export_left_is_removed(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    out = tmp_path / "out"
    export_tokens(cache, out, file_format="npy")
    (out / ".a.npy.0123456789ab.tmp").write_bytes(b"half")
    (out / ".mine.tmp").write_bytes(b"not ours")
    export_tokens(cache, out, file_format="npy")
    assert sorted(p.name for p in out.iterdir() if p.name[0] == ".") == [".mine.tmp"]


# What stands ----------------------------------------------------------------------------------


def test_a_finished_file_is_never_removed(tmp_path):
    """Not one that another program has open, not a damaged one, not when a run that adds dies."""
    cache = some_cache(tmp_path, ids=("a", "b"))
    out = tmp_path / "out"
    export_tokens(cache, out, file_format="h5", ids=["a"])
    file = out / "tokens.h5"
    before = file.read_bytes()
    for damaged in (before[: len(before) // 2], b"", bytes(5000)):
        file.write_bytes(damaged)
        with pytest.raises(Vis4merError, match="cannot be opened") as caught:
            export_tokens(cache, out, file_format="h5")
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == damaged
    file.write_bytes(before)
    code = f"""
import os
from vis4mer.store.cache import open_cache
from vis4mer.store.convert import hdf5
from vis4mer.store.convert.exporting import export_tokens
write = hdf5.Hdf5Folder.write
def write_and_die(self, *rest):
    write(self, *rest)
    self._file.flush()
    os._exit(9)
hdf5.Hdf5Folder.write = write_and_die
export_tokens(open_cache({str(cache.path)!r}), {str(out)!r}, file_format="h5")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert file.read_bytes() == before
    assert (out / ".tokens.h5.tmp").exists()
    summary = export_tokens(cache, out, file_format="h5")
    assert (summary.exported, summary.already_there) == (("b",), 1)
    assert not (out / ".tokens.h5.tmp").exists()


def test_a_part_that_another_program_holds_stays(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    out = tmp_path / "out"
    export_tokens(cache, out, file_format="h5")
    (out / "tokens.h5").rename(out / ".tokens.h5.tmp")
    code = f"""
import h5py, sys
file = h5py.File({str(out / ".tokens.h5.tmp")!r}, "r+", libver="latest", locking=True)
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(Vis4merError, match="another program holds it"):
            export_tokens(cache, out, file_format="h5")
        other.stdin.close()
    assert export_tokens(cache, out, file_format="h5").already_there == 1


def test_what_is_no_tokens_is_no_finished_video(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    export_tokens(cache, tmp_path / "out", file_format="h5")
    with h5py.File(tmp_path / "out" / "tokens.h5", "r+") as file:
        file["number"] = 1.0
        for item in (file["number"], file.create_group("group")):
            item.attrs.update(id="q", attempt="z")
    assert export_tokens(cache, tmp_path / "out", file_format="h5").already_there == 1
    assert set(read_index(tmp_path / "out" / "index.csv")) == {"a"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_one_export_writes_to_a_folder(tmp_path, file_format):
    cache = some_cache(tmp_path, ids=("a",))
    out = tmp_path / "out"
    out.mkdir()
    with held_alone(out / "export.lock", otherwise=""):
        with pytest.raises(Vis4merError, match="another export is writing there"):
            export_tokens(cache, out, file_format=file_format)
        assert [path.name for path in out.iterdir()] == ["export.lock"]
    assert export_tokens(cache, out, file_format=file_format).exported == ("a",)


def test_a_lock_follows_no_link(tmp_path):
    cache = some_cache(tmp_path, ids=("a",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Vis4merError, match="a link stands there"):
        export_tokens(cache, tmp_path / "out", file_format="npy")
    assert not (tmp_path / "elsewhere").exists()
