"""Reading: whole entries, slices, strides and indices, views, buffers; from many threads."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import zarr
from entries import make_spec, make_tokens, one_entry, tree, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, EntryNotFoundError, UsageError
from vis4mer.store.views import TokenView

SELECTIONS = {
    "all": None,
    "slice": slice(3, 290),
    "open slice": slice(280, None),
    "backwards": slice(None, None, -7),
    "stride": slice(0, None, 4),
    "across the shards": range(250, 262),
    "range": range(299, 0, -50),
    "any order, twice": [299, 0, 256, 255, 255, 1],
    "array": np.array([5, 4], dtype=np.uint8),
    "one": [299],
    "none": [],
    "empty slice": slice(40, 40),
    "beyond": slice(290, 400),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return {
        dtype: one_entry(tmp_path_factory.mktemp(dtype), num_frames=300, stored_dtype=dtype)
        for dtype in ("float16", "bfloat16", "int8")
    }


@pytest.mark.parametrize("frames", SELECTIONS.values(), ids=list(SELECTIONS))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_every_selection_is_numpys(caches, dtype, frames):
    cache = caches[dtype]
    whole = cache.read("clip.mp4")
    wanted = whole[frames] if isinstance(frames, slice) else whole[...]
    if frames is not None and not isinstance(frames, slice):
        wanted = whole[np.asarray(frames, dtype=int)]
    for verify in (True, False):
        found = cache.read("clip.mp4", frames=frames, verify=verify)
        assert found.dtype == (np.float16 if dtype == "float16" else np.float32)
        np.testing.assert_array_equal(found, wanted)
        out = np.full(wanted.shape, 7, dtype=found.dtype)
        assert cache.read("clip.mp4", frames=frames, out=out, verify=verify) is out
        np.testing.assert_array_equal(out, wanted)


def test_the_fast_path_equals_zarr(caches):
    cache = caches["float16"]
    array = zarr.open_array(cache.path / cache.record("clip.mp4").folder / "prefix", mode="r")
    for frames in (slice(None), slice(3, 290, 7), [299, 0, 256, 255]):
        found = cache.read("clip.mp4", "prefix", frames)
        np.testing.assert_array_equal(found, array.oindex[frames])


def test_short_reads_are_continued(caches, monkeypatch):
    """preadv may give less than was asked, on network file systems for example."""
    cache = caches["float16"]
    whole = cache.read("clip.mp4")
    preadv = os.preadv
    calls = []

    def some(fd, parts, offset):
        calls.append(offset)
        return preadv(fd, [parts[0][:77]], offset)

    monkeypatch.setattr(os, "preadv", some)
    np.testing.assert_array_equal(cache.read("clip.mp4", frames=slice(0, 300, 50)), whole[::50])
    assert len(calls) > 6 * 256 / 77


def test_buffers_of_other_types_and_strides(caches):
    for dtype in ("float16", "bfloat16"):
        whole = caches[dtype].read("clip.mp4", frames=range(5))
        out = np.zeros((5, 16, 8), dtype=np.float32)
        caches[dtype].read("clip.mp4", frames=range(5), out=out)
        np.testing.assert_array_equal(out, whole.astype("f4"))
        strided = np.zeros((5, 16, 16), dtype=whole.dtype)
        caches[dtype].read("clip.mp4", frames=range(5), out=strided[..., ::2])
        np.testing.assert_array_equal(strided[..., ::2], whole)
        assert not strided[..., 1::2].any()
    with pytest.raises(UsageError, match=r"\(4, 16, 8\).*\(5, 16, 8\)"):
        caches["float16"].read("clip.mp4", frames=range(5), out=np.zeros((4, 16, 8), np.float16))


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([-1], "asked for -1"),
        ([0, 300], "frames 0 to 299; asked for 0 to 300"),
        (range(290, 301), "asked for 290 to 300"),
        ([[0, 1]], "one-dimensional"),
        ([0.5], "whole numbers"),
        (np.ones(300, dtype=bool), "whole numbers"),
    ],
)
def test_frames_that_are_not_there_are_refused(caches, frames, said):
    with pytest.raises(UsageError, match=said):
        caches["float16"].read("clip.mp4", frames=frames)


def test_unknown_entries_and_arrays_are_named(caches):
    with pytest.raises(EntryNotFoundError, match=r"no entry for video 'other\.mp4'"):
        caches["float16"].read("other.mp4")
    assert "other.mp4" not in caches["float16"]
    for array in ("grid2", "patch_scale", "../patch"):
        with pytest.raises(UsageError, match=r"no array .* only patch, prefix"):
            caches["int8"].read("clip.mp4", array)


def test_many_threads_read_the_same(caches):
    cache = open_cache(caches["float16"].path)
    whole = cache.read("clip.mp4")

    def read(start):
        return np.array_equal(cache.read("clip.mp4", frames=slice(start, None, 9)), whole[start::9])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


def test_views(tmp_path):
    for dtype in ("float16", "int8"):
        cache = one_entry(tmp_path / dtype, stored_dtype=dtype, arrays=("patch", "prefix", "grid2"))
        patch, prefix = cache.read("clip.mp4"), cache.read("clip.mp4", "prefix")
        full = cache.read_view("clip.mp4", TokenView.parse("4x4+cls"), slice(2, 8))
        np.testing.assert_array_equal(full.patch, patch[2:8].reshape(6, 4, 4, 8))
        np.testing.assert_array_equal(full.prefix, prefix[2:8, :1])
        per_frame = {"float16": 18 * 8 * 2, "int8": 18 * 8 + 18 * 4}[dtype]
        assert full.num_bytes == 6 * per_frame
        only_cls = cache.read_view("clip.mp4", TokenView.parse("cls"))
        assert only_cls.patch is None
        np.testing.assert_array_equal(only_cls.prefix, prefix[:, :1])

        stored = cache.read_view("clip.mp4", TokenView.parse("2x2"))
        np.testing.assert_array_equal(
            stored.patch, cache.read("clip.mp4", "grid2").reshape(-1, 2, 2, 8)
        )
        assert stored.prefix is None
        assert stored.num_bytes == 10 * {"float16": 4 * 8 * 2, "int8": 4 * 8 + 4 * 4}[dtype]

        cells = torch.from_numpy(patch.astype("f4")).reshape(-1, 4, 4, 8).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.adaptive_avg_pool2d(cells, (3, 1)).permute(0, 2, 3, 1)
        made = cache.read_view("clip.mp4", TokenView.parse("3x1"))
        assert made.patch.dtype == patch.dtype
        np.testing.assert_allclose(made.patch, wanted.numpy(), rtol=2e-3, atol=1e-3)
        whole = cache.read_view("clip.mp4", TokenView.parse("3x1"), pool=False)
        np.testing.assert_array_equal(whole.patch, patch.reshape(-1, 4, 4, 8))


def test_a_view_the_cache_cannot_give_is_refused(tmp_path):
    cache = one_entry(tmp_path, num_prefix=0, arrays=("patch",))
    for view, said in (("cls", "no CLS token"), ("5x4", "cannot give it")):
        with pytest.raises(UsageError, match=said):
            cache.read_view("clip.mp4", TokenView.parse(view))


def test_reading_writes_nothing(tmp_path):
    cache = one_entry(tmp_path)
    (cache.path / "catalog.json").unlink()
    before = tree(cache.path)
    opened = open_cache(cache.path)
    assert opened.ids() == ["clip.mp4"]
    opened.read("clip.mp4")
    opened.tasks(), opened.failures(), len(opened)
    assert tree(cache.path) == before


def test_a_read_only_directory_opens(tmp_path):
    cache = one_entry(tmp_path)
    folders = [cache.path, *(path for path in cache.path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        np.testing.assert_array_equal(
            open_cache(cache.path).read("clip.mp4"), cache.read("clip.mp4")
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_cache_travels_to_worker_processes(caches):
    copy = pickle.loads(pickle.dumps(caches["float16"]))
    np.testing.assert_array_equal(copy.read("clip.mp4"), caches["float16"].read("clip.mp4"))


def test_what_is_no_cache_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such directory"):
        open_cache(tmp_path / "none.zarr")
    with pytest.raises(CacheFormatError, match="no feature cache"):
        open_cache(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(CacheFormatError, match=r"Zarr group but no vis4mer"):
        open_cache(tmp_path / "other.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="exists and is no feature cache"):
        create_cache(tmp_path / "file", make_spec())
    with pytest.raises(UsageError, match="exists and is no feature cache"):
        create_cache(tmp_path, make_spec())


def test_entries_written_since_are_seen(tmp_path):
    cache = one_entry(tmp_path)
    assert cache.ids() == ["clip.mp4"]
    write(create_cache(cache.path, cache.spec), "new", make_tokens(2, spec=cache.spec))
    assert "new" in cache
    assert cache.read("new").shape == (2, 16, 8)
    cache.refresh()
    assert cache.ids() == ["clip.mp4", "new"]
