"""What the writer wrote, read by others: zarr-python and TensorStore know nothing of this project.
And what others wrote, read here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import zarr
from entries import edit_record, make_spec, make_tokens, one_entry, shard, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import DamagedEntryError
from vis4mer.store.layout import crc32c

LENGTHS = (1, 255, 256, 257, 600)
DTYPES = ("float16", "bfloat16", "int8")


def expected_stored(tokens: np.ndarray, dtype: str) -> np.ndarray:
    """What must lie on disk for float16 and bfloat16, by NumPy's and torch's own rounding."""
    if dtype == "float16":
        return tokens.astype(np.float16)
    return torch.from_numpy(tokens).to(torch.bfloat16).view(torch.uint16).numpy()


def pooled(patch: np.ndarray, side: int, grid=(4, 4)) -> np.ndarray:
    """Average pooling by torch: (T, h·w, D) to (T, side², D)."""
    cells = torch.from_numpy(patch).unflatten(1, grid).permute(0, 3, 1, 2)  # T D h w
    small = torch.nn.functional.adaptive_avg_pool2d(cells, side)
    return small.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def read_by_zarr(path) -> np.ndarray:
    return zarr.open_array(path, mode="r")[...]


def read_by_tensorstore(path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    kvstore = {"driver": "file", "path": str(path)}
    store = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    return store.read().result()


@pytest.mark.parametrize("outside", [read_by_zarr, read_by_tensorstore])
@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_others_read_every_array(tmp_path, outside, num_frames, dtype):
    cache = one_entry(
        tmp_path,
        num_frames=num_frames,
        stored_dtype=dtype,
        arrays=("patch", "prefix", "grid2", "grid3"),
    )
    record = cache.record("clip.mp4")
    folder = cache.path / record.folder
    tokens = make_tokens(num_frames, spec=cache.spec)
    tokens |= {f"grid{side}": pooled(tokens["patch"], side) for side in (2, 3)}
    for array, values in tokens.items():
        found = outside(folder / array)
        if dtype == "int8":
            scale, channel = (
                outside(folder / f"{array}_scale"),
                outside(folder / f"{array}_channel"),
            )
            decoded = found.astype("f4") * scale[..., None] * channel[0]
            step = scale[..., None] * channel[0]
            assert (np.abs(decoded - values) <= 0.5001 * step).all()
            np.testing.assert_allclose(cache.read("clip.mp4", array), decoded, rtol=1e-6)
        elif array.startswith("grid"):  # sums in another order: one unit in the last place
            wanted = expected_stored(values, dtype)
            assert found.dtype == wanted.dtype
            ours = cache.read("clip.mp4", array).astype("f4")
            assert np.abs(ours - values).max() <= np.abs(values).max() * 2.0**-8
        else:
            np.testing.assert_array_equal(found, expected_stored(values, dtype))
        if dtype == "float16":
            np.testing.assert_array_equal(cache.read("clip.mp4", array), found)
        if dtype == "bfloat16":
            as_floats = torch.from_numpy(found).view(torch.bfloat16).float().numpy()
            np.testing.assert_array_equal(cache.read("clip.mp4", array), as_floats)


def test_zarr_walks_the_whole_tree(tmp_path):
    """Groups at every level, or a plain reader does not see what is below."""
    cache = one_entry(tmp_path, entry_id="../x")
    write(create_cache(cache.path, cache.spec), "b", make_tokens(3, spec=cache.spec))
    root = zarr.open_group(cache.path, mode="r")
    entries = [entry for _, fan in root["videos"].groups() for _, entry in fan.groups()]
    assert sorted(entry.attrs["vis4mer"]["id"] for entry in entries) == ["../x", "b"]
    about = next(e.attrs["vis4mer"] for e in entries if e.attrs["vis4mer"]["id"] == "b")
    assert about["pts_seconds"] == [0, 1, 2]
    assert about["sampling"] == {"kind": "fps", "fps": 1.0}
    assert root.attrs["vis4mer"]["fingerprint"] == cache.spec.fingerprint


def test_all_zero_frames_are_there(tmp_path):
    """Writers that leave out empty chunks make zeros and missing data look alike."""
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    zeros = {name: v * 0 for name, v in make_tokens(300, spec=cache.spec).items()}
    record = write(cache, "black", zeros)
    assert not cache.read("black").any()
    paths = [shard(cache, "black", number=n) for n in (0, 1)]
    assert [p.stat().st_size for p in paths] == [256 * (256 + 4 + 16) + 4, 44 * 260 + 256 * 16 + 4]
    assert not read_by_zarr(cache.path / record.folder / "patch").any()


def test_crc32c_is_the_castagnoli_one():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


def test_the_record_holds_the_files_sizes_and_checksums(tmp_path):
    cache = one_entry(tmp_path, num_frames=300, arrays=("patch", "prefix", "grid2"))
    record = cache.record("clip.mp4")
    folder = cache.path / record.folder
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(files) == set(record.objects)
    for path, stored in record.objects.items():
        data = files[path].read_bytes()
        assert (len(data), crc32c(data)) == (stored.size, stored.crc32c)


# What others wrote ---------------------------------------------------------------------------


def rewrite(cache, array, *, shards=None, chunks=None, **options):
    """Replace an array of an entry by zarr-python's, and the record by what then is true."""
    entry_id = "clip.mp4"
    folder = cache.path / cache.record(entry_id).folder
    values = read_by_zarr(folder / array)
    for path in sorted((folder / array).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    zarr.create_array(
        folder / array,
        data=values,
        chunks=chunks or (1, *values.shape[1:]),
        shards=shards,
        config={"write_empty_chunks": True},
        overwrite=True,
        **options,
    )
    files = [p for p in (folder / array).rglob("*") if p.is_file()]

    def update(content):
        objects = content["objects"]
        for path in [p for p in objects if p.startswith(f"{array}/")]:
            del objects[path]
        for path in files:
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            objects[name] = {"size": len(data), "crc32c": crc32c(data)}
        content["arrays"][array]["frames_per_shard"] = (shards or chunks)[0]

    edit_record(cache, entry_id, update)
    return open_cache(cache.path), values


OTHER_CODECS = {
    "zstd in shards": {"shards": (256, 16, 8), "compressors": "auto"},
    "gzip in shards": {
        "shards": (256, 16, 8),
        "compressors": {"name": "gzip", "configuration": {"level": 1}},
    },
    "no shards": {"chunks": (100, 16, 8), "compressors": None},
    "compressed, no shards": {"chunks": (7, 16, 8), "compressors": "auto"},
    "no inner checksum": {"shards": (256, 16, 8), "compressors": None},
}


@pytest.mark.parametrize("options", OTHER_CODECS.values(), ids=list(OTHER_CODECS))
def test_arrays_of_other_writers_are_read(tmp_path, options):
    cache, values = rewrite(one_entry(tmp_path, num_frames=300), "patch", **options)
    np.testing.assert_array_equal(cache.read("clip.mp4"), values)
    np.testing.assert_array_equal(cache.read("clip.mp4", frames=slice(5, 290, 7)), values[5:290:7])
    order = [299, 0, 17, 17, 256, 255]
    np.testing.assert_array_equal(cache.read("clip.mp4", frames=order), values[order])
    out = np.empty((3, 16, 8), dtype=np.float16)
    assert cache.read("clip.mp4", frames=range(254, 257), out=out) is out
    np.testing.assert_array_equal(out, values[254:257])


@pytest.mark.parametrize("options", OTHER_CODECS.values(), ids=list(OTHER_CODECS))
def test_damage_in_arrays_of_other_writers_raises(tmp_path, options):
    cache, _ = rewrite(one_entry(tmp_path, num_frames=300), "patch", **options)
    path = shard(cache, "clip.mp4")
    data = bytearray(path.read_bytes())
    for offset in (10, len(data) // 2, len(data) - 3):
        torn = bytearray(data)
        torn[offset] ^= 16
        path.write_bytes(torn)
        with pytest.raises(DamagedEntryError, match=r"patch/c/0/0/0.*clip\.mp4"):
            cache.read("clip.mp4", frames=[0])
    path.unlink()
    with pytest.raises(DamagedEntryError, match=r"patch/c/0/0/0.*clip\.mp4"):
        cache.read("clip.mp4", verify=False)


def test_another_type_in_the_array_than_in_the_record_raises(tmp_path):
    """uint16 of the same bytes would be read as other numbers."""
    cache = one_entry(tmp_path)
    path = cache.path / cache.record("clip.mp4").folder / "patch" / "zarr.json"
    content = json.loads(path.read_bytes()) | {"data_type": "uint16", "fill_value": 0}
    data = json.dumps(content).encode()
    path.write_bytes(data)

    def update(record):
        record["objects"]["patch/zarr.json"] = {"size": len(data), "crc32c": crc32c(data)}

    edit_record(cache, "clip.mp4", update)
    with pytest.raises(DamagedEntryError, match="is uint16"):
        open_cache(cache.path).read("clip.mp4")
