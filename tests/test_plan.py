"""What a dry run says: the same decisions as the run itself, and nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import extraction as ex
import media
import pytest
from vis4mer.extract.backbones import cache_spec
from vis4mer.extract.pipeline import fill_cache
from vis4mer.extract.plan import ExtractPlan, bytes_per_frame, largest_first, plan_extraction
from vis4mer.extract.request import extract_videos, plan_videos
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.errors import FingerprintError, UsageError


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


def test_videos_still_to_be_extracted_are_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.zarr"
    cache = ex.grey_cache(path, grids=(1,))
    fill_cache(ex.videos(folder)[:2], cache, ex.grey_backbone(), ex.FakeReader())
    os.utime(folder / "a.mp4", ns=(1, 1))  # may be another file of this size
    ex.write_video(folder, "b", 1234)  # is another file: its size says so
    hashed: list[str] = []
    monkeypatch.setattr("vis4mer.extract.plan.hash_file", lambda file: hashed.append(file.name))
    found = plan(folder, path, cache)
    assert (found.to_extract, found.changed) == (("c.mp4",), ("a.mp4", "b.mp4"))
    assert hashed == ["a.mp4"]


@pytest.mark.parametrize("limit", range(7))
@pytest.mark.parametrize("workers", [1, 4])
def test_a_limit_means_the_same_before_and_in_the_run(
    folder: Path, tmp_path: Path, limit: int, workers: int
) -> None:
    """It counts videos attempted: those extracted and those that fail, in the order given."""
    path = tmp_path / "c.zarr"
    cache = ex.grey_cache(path, grids=(1,))
    ex.write_video(folder, "aa-known", 9, decode="no")
    fill_cache(ex.videos(folder)[:2], cache, ex.grey_backbone(), ex.FakeReader())
    ex.write_video(folder, "aaa", 9, open="no")
    (folder / "bb.mp4").symlink_to(folder / "nowhere")
    # a (there), aa-known (failed before), aaa (refused), b, bb (missing), c
    found = plan(folder, path, cache, limit=limit)
    options = {"limit": limit, "workers": workers}
    done = fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader(), **options)
    attempted = ["aaa.mp4", "b.mp4", "bb.mp4", "c.mp4"][:limit]
    assert sorted([*found.to_extract, *found.unreadable]) == attempted
    assert set(cache.ids()) - {"a.mp4"} == set(found.to_extract)
    assert {failure.id for failure in done.failures} == set(found.unreadable)
    assert (done.already_there, len(done.known_failures), done.left) == (
        found.already_there,
        len(found.known_failures),
        found.left,
    )


def test_a_cache_that_holds_only_failures_is_one(folder: Path, tmp_path: Path) -> None:
    ex.write_video(folder, "bad", 9, decode="no")
    cache = ex.grey_cache(tmp_path / "c.zarr", grids=(1,))
    fill_cache(ex.videos(folder)[2:3], cache, ex.grey_backbone(), ex.FakeReader())
    found = plan(folder, cache.path, cache)
    assert ([failure.id for failure in found.known_failures], len(cache)) == (["bad.mp4"], 0)


def test_a_damaged_record_is_told_and_does_not_end_the_plan(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    cache = ex.grey_cache(path, grids=(1,))
    fill_cache(ex.videos(folder), cache, ex.grey_backbone(), ex.FakeReader())
    (record,) = path.glob("records/*/b-mp4-*.json")
    record.write_text(record.read_text()[:-20])
    found = plan(folder, path, open_cache(path))
    assert (found.already_there, list(found.unreadable)) == (2, ["b.mp4"])


# The whole request -------------------------------------------------------------------------------

TINY = {"backbone": "vit_tiny_patch16_224@32", "weights": "random:1", "device": "cpu"}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one video of two in a cache."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "videos").mkdir()
    for name in ("a", "b"):
        media.write_clip(folder / "videos" / f"{name}.mp4", num_frames=3, rate=1)
    cache = folder / "c.zarr"
    extract_videos([str(folder / "videos")], cache=cache, grids=(1,), limit=1, **TINY)
    return folder / "videos", cache


def test_a_plan_for_a_cache_there_is_counts_what_is_left(extracted: tuple[Path, Path]) -> None:
    videos, cache = extracted
    found = plan_videos([str(videos)], cache=cache, backbone=TINY["backbone"], grids=(1,))
    assert (found.to_extract, found.already_there, found.frames) == (("b.mp4",), 1, 3)


def told(refusal: Exception) -> object:
    """What an error says, but for the weights, which a plan does not load."""
    if isinstance(refusal, FingerprintError):
        return [d for d in refusal.differences if d.field != "weights_sha256"]
    return str(refusal)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"fps": 2.0}, FingerprintError, "sampling.fps: cache 1.0, asked 2.0"),
        ({"backbone": "vit_tiny_patch16_224@48"}, FingerprintError, "preprocess.size"),
        ({"stored_dtype": "int8"}, FingerprintError, "stored_dtype: cache float16, asked int8"),
        ({"reader": "decord"}, FingerprintError, "reader: cache pyav, asked decord"),
        ({"grids": ()}, UsageError, "use the same --grids"),
        ({"cache": "videos"}, UsageError, "is no feature cache"),
    ],
)
def test_a_plan_is_refused_where_the_run_would_be(
    extracted: tuple[Path, Path], change: dict[str, object], error: type[Exception], said: str
) -> None:
    videos, cache = extracted
    if change.get("reader") == "decord":
        pytest.importorskip("decord")
    options = {"cache": cache, "backbone": TINY["backbone"], "grids": (1,), **change}
    if "cache" in change:
        options["cache"] = videos
    refusals = []
    for call, weights in ((plan_videos, {}), (extract_videos, TINY)):
        with pytest.raises(error, match=said) as refusal:
            call([str(videos)], **{**weights, **options})
        refusals.append(told(refusal.value))
    assert refusals[0] == refusals[1]


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
