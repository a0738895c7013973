"""What a dry run says: the same decisions as the run itself, and nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import extraction as ex
import pytest
from vis4mer.extract.backbones import cache_spec
from vis4mer.extract.pipeline import fill_cache
from vis4mer.extract.plan import ExtractPlan, bytes_per_frame, largest_first, plan_extraction
from vis4mer.store.cache import Cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, frames in (("a", 3), ("b", 20), ("c", 7)):
        ex.write_video(tmp_path / "videos", name, frames)
    return tmp_path / "videos"


def plan(folder: Path, path: Path, cache: Cache | None, **options: object) -> ExtractPlan:
    spec = cache_spec(ex.grey_backbone(), grids=(1,))
    return plan_extraction(
        ex.videos(folder),
        spec=spec,
        cache=cache,
        cache_path=path,
        reader=ex.FakeReader(),
        **options,  # type: ignore[arg-type]
    )


def test_before_there_is_a_cache(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "c.zarr"
    ex.write_video(folder, "bad", 9, open="no")
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    found = plan(folder, path, None)
    assert found.to_extract == ("a.mp4", "b.mp4", "c.mp4")
    assert found.unreadable == {"bad.mp4": "no", "gone.mp4": "there is no such file"}
    assert found.frames == 30
    # 4 patch tokens, 1 prefix token and 1 pooled token of 3 values in 2 bytes
    assert found.num_bytes == 30 * 6 * 3 * 2
    assert found.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert not (tmp_path / "not").exists()


def test_after_a_part_was_done(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    ex.write_video(folder, "bad", 9, decode="no")
    cache = ex.grey_cache(path, grids=(1,))
    fill_cache(ex.videos(folder)[:3], cache, ex.grey_backbone(), ex.FakeReader())
    ex.write_video(folder, "b", 21)
    os.utime(folder / "a.mp4", ns=(1, 1))
    found = plan(folder, path, cache)
    assert found.to_extract == ("c.mp4",)
    assert (found.already_there, found.changed, found.frames) == (1, ("b.mp4",), 7)
    assert [failure.id for failure in found.known_failures] == ["bad.mp4"]
    again = plan(folder, path, cache, overwrite=True, retry_failed=True)
    assert again.to_extract == ("a.mp4", "b.mp4", "bad.mp4", "c.mp4")
    assert again.frames == 3 + 21 + 9 + 7
    limited = plan(folder, path, cache, overwrite=True, limit=1)
    assert (limited.to_extract, limited.left) == (("a.mp4",), 3)


def test_large_files_are_read_first(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 30), ("c", 20), ("d", 30)):
        (tmp_path / f"{name}.mp4").write_bytes(b"x" * size)
    (tmp_path / "e.mp4").symlink_to(tmp_path / "nowhere")
    assert [video.path.stem for video in largest_first(ex.videos(tmp_path))] == list("bdcae")


def test_bytes_per_frame_of_the_stored_types() -> None:
    sizes = {
        dtype: bytes_per_frame(cache_spec(ex.grey_backbone(), stored_dtype=dtype))
        for dtype in ("float16", "bfloat16", "int8")
    }
    assert sizes == {"float16": 30, "bfloat16": 30, "int8": 15}
