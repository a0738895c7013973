"""`cache import`: what people already have becomes a cache, exactly, or is refused in one line."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_cli import refused, run
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.convert import import_run
from vis4mer.store.convert.importing import import_tokens
from vis4mer.store.errors import FingerprintError, UsageError, Vis4merError
from vis4mer.store.summary import summarise

SHAPE = (3, 5, 8)  # T S D: a CLS token and 2 × 2 patches


def values(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: str = "f8") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def folder_of(root: Path, **arrays: np.ndarray) -> Path:
    root.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    return root


def held(cache: Cache, entry_id: str) -> np.ndarray:
    """(T, S, D) as it was given: prefix tokens before patches."""
    prefix, patch = cache.read(entry_id, "prefix"), cache.read(entry_id, "patch")
    return np.concatenate([prefix, patch], axis=1)


# Formats --------------------------------------------------------------------------------------


def write_npy(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asfortranarray(array) if name == "b" else array)


def write_npz(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(folder / "plain.npz", **{name: arrays[name] for name in ("a", "b")})
    np.savez_compressed(folder / "c.npz", anything=arrays["c"])


def write_torch(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    torch.save({name: torch.tensor(arrays[name]) for name in ("a", "b")}, folder / "two.pt")
    old_form = {"_use_new_zipfile_serialization": False}
    torch.save(torch.tensor(arrays["c"]), folder / "c.pth", **old_form)


def write_hdf5(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(folder / "some.h5", "w") as file:
        file.create_dataset("a", data=arrays["a"], chunks=(1, 5, 8), compression="gzip")
        file["b"] = arrays["b"]
    with h5py.File(folder / "another.hdf5", "w") as file:
        file["c"] = arrays["c"].astype(">f8")


def write_safetensors(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file({name: arrays[name] for name in ("a", "b")}, folder / "two.safetensors")
    save_file({"tokens": arrays["c"]}, folder / "c.safetensors")


@pytest.mark.parametrize(
    "write", [write_npy, write_npz, write_torch, write_hdf5, write_safetensors]
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_every_format_gives_its_values_and_ids(tmp_path, write, dtype):
    arrays = {name: values(seed, dtype=dtype) for seed, name in enumerate("abc")}
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", arrays)
    summary = import_tokens([tmp_path / "in"], cache=tmp_path / "c.zarr")
    cache = open_cache(tmp_path / "c.zarr")
    assert sorted(summary.imported) == cache.ids() == ["a", "b", "c"]
    assert (summary.exit_code, summary.frames) == (0, 9)
    for name, array in arrays.items():
        np.testing.assert_array_equal(held(cache, name), array.astype("f2"))
        assert cache.record(name).pts_seconds == (0.0, 1.0, 2.0)


def test_bfloat16_stays_what_it_is(tmp_path):
    tokens = torch.tensor(values()).bfloat16() * 1e20  # beyond float16
    torch.save(tokens, tmp_path / "a.pt")
    import_tokens([tmp_path / "a.pt"], cache=tmp_path / "c.zarr", stored_dtype="bfloat16")
    found = held(open_cache(tmp_path / "c.zarr"), "a")
    np.testing.assert_array_equal(found, tokens.float().numpy())


def test_nested_groups_and_folders_give_ids_with_slashes(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    np.save(tmp_path / "in" / "deep" / "x.y.npy", values())
    with h5py.File(tmp_path / "in" / "all.h5", "w") as file:
        file["kitchen/P03"] = values()
    import_tokens([tmp_path / "in"], cache=tmp_path / "c.zarr")
    assert open_cache(tmp_path / "c.zarr").ids() == ["deep/x.y", "kitchen/P03"]


def test_names_by_file_or_array(tmp_path):
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", features=values())
    import_tokens([tmp_path], cache=tmp_path / "c.zarr")
    assert open_cache(tmp_path / "c.zarr").ids() == ["one", "two"]
    with pytest.raises(UsageError, match=r"one\.npz:features.*two\.npz:features.*--name-by"):
        import_tokens([tmp_path], cache=tmp_path / "d.zarr", name_by="array")
    np.savez(tmp_path / "one.npz", a=values(), b=values())
    summary = import_tokens([tmp_path], cache=tmp_path / "e.zarr", name_by="file")
    assert "2 arrays (a, b)" in summary.failures[0].reason


# Layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "asked", "prefix", "grid", "arrays"),
    [
        ((3, 197, 4), {}, 1, (14, 14), ("patch", "prefix")),
        ((3, 196, 4), {}, 0, (14, 14), ("patch",)),
        ((3, 4), {}, 0, (1, 1), ("patch",)),
        ((3, 4), {"prefix": 1}, 1, (1, 1), ("prefix",)),
        ((3, 2, 7, 4), {}, 0, (2, 7), ("patch",)),
        ((3, 201, 4), {"prefix": 5}, 5, (14, 14), ("patch", "prefix")),
        ((3, 201, 4), {"grid": (14, 14)}, 5, (14, 14), ("patch", "prefix")),
        ((3, 14, 4), {"grid": (2, 6)}, 2, (2, 6), ("patch", "prefix")),
        ((3, 7, 4), {"prefix": 1, "grid": (2, 3)}, 1, (2, 3), ("patch", "prefix")),
    ],
)
def test_what_the_axes_mean(tmp_path, shape, asked, prefix, grid, arrays):
    tokens = values(shape=shape)
    np.save(tmp_path / "a.npy", tokens)
    import_tokens([tmp_path / "a.npy"], cache=tmp_path / "c.zarr", **asked)
    cache = open_cache(tmp_path / "c.zarr")
    spec = cache.spec
    assert (spec.num_prefix, spec.grid, spec.arrays) == (prefix, grid, arrays)
    flat = tokens.reshape(3, -1, 4).astype("f2")
    if "patch" in arrays:
        np.testing.assert_array_equal(cache.read("a", "patch"), flat[:, prefix:])
    if "prefix" in arrays:
        np.testing.assert_array_equal(cache.read("a", "prefix"), flat[:, :prefix])


@pytest.mark.parametrize(
    ("shape", "asked", "words"),
    [
        ((8,), {}, r"shape \(8,\), expected \(frames, width\)"),
        ((0, 5, 8), {}, "nothing of it empty"),
        ((2, 2, 2, 2, 2), {}, "expected"),
        ((3, 201, 4), {}, "neither 201 nor 200 .* give --prefix N or --grid HxW"),
        ((3, 5, 4), {"prefix": 2}, "3 patches after 2 prefix tokens are no square; give --grid"),
        ((3, 197, 4), {"grid": (3, 3)}, "there would be 188 prefix tokens"),
        ((3, 5, 4), {"grid": (3, 3)}, "5 tokens a frame, expected a grid of 3x3"),
        ((3, 5, 4), {"prefix": 9}, "5 tokens a frame, expected 9 prefix"),
        ((3, 64, 7, 7), {}, "looks like .frames, channels, height, width."),
        ((3, 7, 7, 4), {"prefix": 1}, "has no 1 prefix tokens"),
        ((3, 7, 7, 4), {"grid": (14, 14)}, r"expected \(frames, 14, 14, channels\)"),
    ],
)
def test_nonsense_is_one_line_with_file_and_shape(tmp_path, shape, asked, words):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(Vis4merError, match=words) as caught:
        import_tokens([tmp_path / "a.npy"], cache=tmp_path / "c.zarr", **asked)
    assert str(tmp_path / "a.npy") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c.zarr").exists()


def test_the_released_layout(tmp_path):
    tokens = values(shape=(2, 197, 16))
    folder_of(tmp_path / "in", **{"-e6lEsIUf3U": tokens, "__x": tokens, "short": tokens[:, 1:]})
    torch.save(tokens[0], tmp_path / "in" / "other.pt")
    result = run(
        "cache", "import", tmp_path / "in", "--cache", tmp_path / "c.zarr", "--layout", "vis4mer"
    )
    assert result.exit_code == 3, result.output
    assert "failed: short: " in result.stdout
    assert "shape (2, 196, 16): 196 tokens a frame, expected 1 prefix + a grid of 14x14" in (
        result.stdout
    )
    cache = open_cache(tmp_path / "c.zarr")
    assert cache.ids() == ["-e6lEsIUf3U", "__x"]
    np.testing.assert_array_equal(held(cache, "__x"), tokens.astype("f2"))
    with pytest.raises(UsageError, match="leave --prefix and --grid out"):
        import_tokens([tmp_path], cache=tmp_path / "c.zarr", layout="vis4mer", prefix=0)


# Values ---------------------------------------------------------------------------------------


def test_bad_values_fail_their_video_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(import_run, "_BLOCK_BYTES", 1)  # a frame at a time
    nan, large = values(), values()
    nan[1, 0, 0], large[2, 0, 0] = np.nan, 70000
    whole = values().astype("i8")
    folder_of(tmp_path / "in", good=values(), large=large, nan=nan, whole=whole)
    (tmp_path / "in" / "torn.npy").write_bytes((tmp_path / "in" / "good.npy").read_bytes()[:-9])
    summary = import_tokens([tmp_path / "in"], cache=tmp_path / "c.zarr")
    assert (summary.imported, summary.exit_code) == (("good",), 3)
    reasons = {failure.id: failure.reason for failure in summary.failures}
    assert "frame 1 holds a value that is not a finite number" in reasons["nan"]
    assert "70000, which float16 cannot hold" in reasons["large"]
    assert "values of type int64" in reasons["whole"]
    assert "cannot be read as npy" in reasons["torn"]
    cache = open_cache(tmp_path / "c.zarr")
    assert cache.ids() == ["good"]
    assert {failure.id for failure in cache.failures()} == set(reasons)
    assert not [path for path in (tmp_path / "c.zarr" / "videos").glob("*/large-*")]


@pytest.mark.parametrize("block_bytes", [1, 64 << 20])
def test_int8_does_not_depend_on_how_the_file_was_cut(tmp_path, monkeypatch, block_bytes):
    """The channel scale comes from the first 16 frames, whatever is read at a time."""
    monkeypatch.setattr(import_run, "_BLOCK_BYTES", block_bytes)
    tokens = values(shape=(40, 4, 8)) * np.arange(1, 41)[:, None, None]
    np.save(tmp_path / "a.npy", tokens)
    import_tokens([tmp_path / "a.npy"], cache=tmp_path / "c.zarr", stored_dtype="int8")
    channel = np.sqrt(np.square(tokens[:16]).mean(axis=(0, 1)))  # D
    step = np.abs(tokens / channel).max(axis=-1, keepdims=True) / 127 * channel  # T S D
    found = open_cache(tmp_path / "c.zarr").read("a")
    assert (np.abs(found - tokens) <= step * 0.5001).all()


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trap = np.array([Trap()], dtype=object)
    np.save(tmp_path / "a.npy", trap)
    np.savez(tmp_path / "b.npz", trap=trap)
    torch.save({"c": Trap()}, tmp_path / "c.pt")
    torch.save([torch.zeros(2)], tmp_path / "d.pt")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["text"] = ["a", "b"]
    folder_of(tmp_path, good=values())
    summary = import_tokens([tmp_path], cache=tmp_path / "c.zarr")
    assert summary.imported == ("good",)
    reasons = {failure.id: failure.reason for failure in summary.failures}
    for name in ("a", "b", "c"):
        assert "never unpickled" in reasons[name], reasons[name]
    assert "holds a list, expected a tensor or a dictionary" in reasons["d"]
    assert "values of type object" in reasons["text"]
    assert not (tmp_path / "sprung").exists()


def test_hdf5_opens_no_other_file_and_believes_no_hole(tmp_path):
    """HDF5 reads what was never written as zeros, and follows links: neither here."""
    with h5py.File(tmp_path / "outside.hdf5", "w") as file:
        file["secret"] = values()
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
        file["good"] = values()
        file["linked"] = h5py.ExternalLink(str(tmp_path / "outside.hdf5"), "secret")
        file.create_dataset("never", SHAPE, "f4")
        holes = file.create_dataset("holes", SHAPE, "f4", chunks=(1, 5, 8))
        holes[0] = 1
        raw = tmp_path / "raw"
        raw.write_bytes(values().tobytes())
        file.create_dataset("raw", SHAPE, "f8", external=[(str(raw), 0, 8 * 120)])
        place = h5py.VirtualLayout(SHAPE, "f8")
        place[:] = h5py.VirtualSource(str(tmp_path / "outside.hdf5"), "secret", SHAPE)
        file.create_virtual_dataset("virtual", place)
    summary = import_tokens([tmp_path / "in"], cache=tmp_path / "c.zarr")
    assert summary.imported == ("good",)
    reasons = {failure.id: failure.reason for failure in summary.failures}
    assert set(reasons) == {"never", "holes", "raw", "virtual"}
    assert all("never written" in reasons[name] for name in ("never", "holes"))
    assert all("other files" in reasons[name] for name in ("raw", "virtual"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":{"dtype":"F32","shape":[9,9,9],"data_offsets":[0,16]}}', "does not fit its shape"),
        (b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[64,80]}}', "beyond the end"),
        (b'{"a":{"dtype":"F32","shape":[2,-2],"data_offsets":[0,16]}}', "expected integers from 0"),
        (b"[]", "expected a JSON object"),
    ],
)
def test_safetensors_that_claim_more_than_they_hold(tmp_path, header, words):
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(Vis4merError, match=words):
        import_tokens([tmp_path / "a.safetensors"], cache=tmp_path / "c.zarr")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(1000, 4, 8), tmp_path / "a.pt")
    with pytest.raises(Vis4merError, match="claims more values than the file holds"):
        import_tokens([tmp_path / "a.pt"], cache=tmp_path / "c.zarr")


# Runs -----------------------------------------------------------------------------------------


def test_the_same_command_goes_on(tmp_path):
    source = folder_of(tmp_path / "in", a=values(1), b=values(2), c=values(3))
    first = import_tokens([source], cache=tmp_path / "c.zarr", limit=1)
    assert (first.imported, first.left) == (("a",), 2)
    os.utime(source / "a.npy", (1, 1))  # another time, the same bytes
    second = import_tokens([source], cache=tmp_path / "c.zarr")
    assert (second.imported, second.already_there) == (("b", "c"), 1)
    np.save(source / "b.npy", values(4))
    third = import_tokens([source], cache=tmp_path / "c.zarr")
    assert (third.imported, third.changed, third.exit_code) == ((), ("b",), 0)
    import_tokens([source], cache=tmp_path / "c.zarr", overwrite=True)
    np.testing.assert_array_equal(
        held(open_cache(tmp_path / "c.zarr"), "b"), values(4).astype("f2")
    )


def test_a_failure_goes_when_the_file_is_mended(tmp_path):
    source = folder_of(tmp_path / "in", a=values(), b=np.zeros(3))
    assert import_tokens([source], cache=tmp_path / "c.zarr").exit_code == 3
    np.save(source / "b.npy", values())
    assert import_tokens([source], cache=tmp_path / "c.zarr").exit_code == 0
    assert not open_cache(tmp_path / "c.zarr").failures()


def test_another_width_fails_alone_and_other_settings_are_refused(tmp_path):
    source = folder_of(tmp_path / "in", a=values(), b=values(shape=(3, 5, 16)))
    summary = import_tokens([source], cache=tmp_path / "c.zarr")
    assert "the cache holds 5 tokens a frame (1 prefix + 2x2, width 8)" in (
        summary.failures[0].reason
    )
    with pytest.raises(FingerprintError, match=r"sampling\.fps"):
        import_tokens([source], cache=tmp_path / "c.zarr", fps=2)
    with pytest.raises(FingerprintError, match="stored_dtype"):
        import_tokens([source], cache=tmp_path / "c.zarr", stored_dtype="int8")
    with pytest.raises(FingerprintError, match="num_prefix"):
        import_tokens([source], cache=tmp_path / "c.zarr", prefix=2)


def test_a_stop_leaves_whole_entries_only(tmp_path):
    source = folder_of(tmp_path / "in", a=values(1), b=values(2))
    stop = threading.Event()

    def stop_at_b(_done: int, _total: int, name: str) -> None:
        if name == "b":
            stop.set()

    summary = import_tokens([source], cache=tmp_path / "c.zarr", stop=stop, progress=stop_at_b)
    assert (summary.imported, summary.left, summary.interrupted) == (("a",), 1, True)
    assert summary.exit_code == 1
    assert open_cache(tmp_path / "c.zarr").ids() == ["a"]


def test_what_is_not_known_is_recorded_as_unknown(tmp_path):
    source = folder_of(tmp_path / "in", a=values())
    import_tokens([source], cache=tmp_path / "c.zarr", backbone="vit_large", fps=2)
    cache = open_cache(tmp_path / "c.zarr")
    spec = cache.spec
    assert (spec.backbone, spec.weights, spec.weights_sha256) == ("vit_large", "unknown", "unknown")
    assert (spec.preprocess, spec.reader, spec.layer) == (None, "import", "unknown")
    record = cache.record("a")
    assert record.provenance["imported from"] == "npy, float64"
    assert record.pts_seconds == (0.0, 0.5, 1.0)
    assert record.source.size == (source / "a.npy").stat().st_size
    lines = dict(summarise(cache).lines(human_bytes=str))
    assert lines["backbone"] == "vit_large, weights unknown"
    assert lines["timestamps"] == "assumed, frame / 2"


def test_the_command_line_in_one_line(tmp_path):
    cache = ("--cache", tmp_path / "c.zarr")
    refused(run("cache", "import", tmp_path / "none", *cache), 2, "does not exist")
    (tmp_path / "in").mkdir()
    refused(run("cache", "import", tmp_path / "in", *cache), 2, "holds no tokens", ".npz")
    refused(run("cache", "import", tmp_path / "in", "--grid", "14", *cache), 2, "HxW")
    (tmp_path / "in" / "a.txt").write_text("")
    refused(run("cache", "import", tmp_path / "in" / "a.txt", *cache), 2, "a file that ends in")
    folder_of(tmp_path / "in", a=np.zeros(3))
    refused(run("cache", "import", tmp_path / "in", *cache), 1, "nothing can be imported", "(3,)")
    folder_of(tmp_path / "in", a=values())
    done = run("cache", "import", tmp_path / "in", *cache, "--json")
    assert '"imported": [\n    "a"\n  ]' in done.stdout
