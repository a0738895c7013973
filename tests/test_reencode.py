"""The same videos again: are the values still the same, and can what was lost be made anew?"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import media
import numpy as np
import pytest
from entries import edit_spec, flip, shard
from vis4mer.both import compare, reencode
from vis4mer.both.compare import compare_entries
from vis4mer.both.reencode import (
    default_tolerance,
    extract_again,
    reencode_sample,
    require_again,
)
from vis4mer.extract.backbones.loading import cache_spec, load_backbone
from vis4mer.extract.readers import get_reader
from vis4mer.extract.request import ExtractRequest, extract_videos
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.repair import repair_cache
from vis4mer.store.spec import Sampling
from vis4mer.store.tasks import extent_id

BACKBONE, WEIGHTS = "vit_tiny_patch16_224@32", "random:3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of five frames in a folder of a folder, and their cache."""
    root = tmp_path_factory.mktemp("reencode")
    for i in range(3):
        path = root / "videos" / "all" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_clip(path, num_frames=5 + i, rate=1, gop=3 + i)
    extract(root / "videos", root / "c.zarr")
    return root


def extract(videos: Path, cache: Path) -> Cache:
    extract_videos(
        ExtractRequest(
            inputs=[str(videos)], cache=cache, backbone=BACKBONE, weights=WEIGHTS, device="cpu"
        )
    )
    return open_cache(cache)


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Cache:
    shutil.copytree(folder / "c.zarr", tmp_path / "c.zarr")
    return open_cache(tmp_path / "c.zarr")


def test_the_same_videos_give_the_same_values(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencode, "GROUP_VIDEOS", 2)
    report = reencode_sample(cache, 20, videos=[folder / "videos"], device="cpu")
    assert report.ok
    assert sorted(video.id for video in report.videos) == ["all/0.mp4", "all/1.mp4", "all/2.mp4"]
    assert all(video.worst == 0 and video.times_equal for video in report.videos)
    assert sum(video.equal_frames for video in report.videos) == 5 + 6 + 7
    assert (report.missing, report.failures) == ((), {})


def test_the_draw_is_the_seeds(folder: Path, cache: Cache) -> None:
    def drawn(seed: int) -> list[str]:
        report = reencode_sample(cache, 1, videos=[folder / "videos"], device="cpu", seed=seed)
        return [video.id for video in report.videos]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_videos_that_are_not_there_or_are_others_are_told(
    folder: Path, cache: Cache, tmp_path: Path
) -> None:
    """By name and SHA-256: a file of another content is not the video, a moved one is."""
    videos = tmp_path / "videos"
    (videos / "elsewhere").mkdir(parents=True)
    shutil.copy(folder / "videos" / "all" / "0.mp4", videos / "elsewhere" / "0.mp4")
    shutil.copy(folder / "videos" / "all" / "0.mp4", videos / "1.mp4")
    report = reencode_sample(cache, 3, videos=[videos], device="cpu")
    assert [video.id for video in report.videos] == ["all/0.mp4"]
    assert sorted(report.missing) == ["all/1.mp4", "all/2.mp4"]
    (videos / "elsewhere" / "0.mp4").unlink()
    with pytest.raises(UsageError, match=r"no video of .* SHA-256"):
        reencode_sample(cache, 3, videos=[videos], device="cpu")


def test_other_values_are_found(folder: Path, cache: Cache, tmp_path: Path) -> None:
    """As from a decoder that gives other pixels: the whole cache is a little off in one frame."""
    other = create_cache(tmp_path / "other.zarr", cache.spec)
    for entry_id in cache.ids():
        patch, prefix = cache.read(entry_id).copy(), cache.read(entry_id, "prefix")
        patch[3] *= np.float16(1.02)
        record = cache.record(entry_id)
        with other.write_entry(entry_id, source=record.source) as entry:
            entry.append({"patch": patch, "prefix": prefix}, record.pts_seconds)
            entry.commit(duration_seconds=record.duration_seconds)
    report = reencode_sample(other, 3, videos=[folder / "videos"], device="cpu")
    assert not report.ok
    assert [(v.worst_array, v.worst_frame) for v in report.differing] == [("patch", 3)] * 3
    assert all(v.worst == pytest.approx(0.02 / 1.02, rel=0.05) for v in report.differing)
    assert [v.equal_frames for v in report.videos] == [v.num_frames - 1 for v in report.videos]
    loose = reencode_sample(other, 3, videos=[folder / "videos"], device="cpu", tolerance=0.1)
    assert loose.ok


def test_what_is_no_number_is_not_the_same() -> None:
    """A frame of NaN is as far from any other as can be, whatever the tolerance."""
    stored = np.ones((3, 4, 2), dtype=np.float32)
    new = stored.copy()
    new[1, 2, 0] = np.nan
    new[2, 0, 0] = np.inf
    found = [compare._relative_distance(a, b) for a, b in ((stored, new), (new, stored))]
    for distances in (*found, compare._relative_distance(new, new)):
        assert distances[0] == 0
        assert (distances[1:] > 1e300).all()
        assert np.isfinite(distances).all()  # as JSON needs it


def test_other_moments_are_found(cache: Cache, tmp_path: Path) -> None:
    other = create_cache(tmp_path / "other.zarr", cache.spec)
    record = cache.record("all/0.mp4")
    for entry_id, frames, late in (("all/0.mp4", 5, 0.04), ("all/1.mp4", 4, 0.0)):
        tokens = {a: cache.read(entry_id, a, range(frames)) for a in ("patch", "prefix")}
        with other.write_entry(entry_id, source=cache.record(entry_id).source) as entry:
            entry.append(tokens, [late + i for i in range(frames)])
            entry.commit(duration_seconds=record.duration_seconds)
    found = {i: compare_entries(other, cache, i) for i in other.ids()}
    assert (found["all/0.mp4"].worst, found["all/0.mp4"].times_equal) == (0, False)
    assert (found["all/1.mp4"].worst, found["all/1.mp4"].new_frames) == (None, 6)
    assert not any(video.within(1.0) for video in found.values())


def test_a_cache_of_another_backbone_than_it_says_is_refused(folder: Path, cache: Cache) -> None:
    with pytest.raises(FingerprintError, match="weights_sha256"):
        reencode_sample(cache, 1, videos=[folder], weights="random:4", device="cpu")


def test_what_a_cache_names_is_not_opened_by_itself(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vis4mer.extract.backbones.again.load_backbone", lambda *_, **__: pytest.fail("loaded")
    )
    for change, words in (
        ({"backbone": "os:system"}, "add --backbone os:system"),
        ({"weights": "file"}, "add --weights FILE"),
        ({"weights": "unknown", "preprocess": None}, "imported"),
    ):
        changed = dataclasses.replace(cache.spec, **change)
        edit_spec(cache, lambda _, spec=changed: {**spec.to_json(), "checksum": ""})
        opened = open_cache(cache.path)
        for call in (
            lambda c=opened: reencode_sample(c, 1, videos=[folder / "videos"], device="cpu"),
            lambda c=opened: require_again(c, videos=[folder / "videos"]),
        ):
            with pytest.raises(UsageError, match=words):
                call()


def test_nobody_says_where_the_videos_are(folder: Path, cache: Cache) -> None:
    """The names in the records are never followed."""
    with pytest.raises(UsageError, match="--videos DIR"):
        require_again(cache, videos=[])
    with pytest.raises(UsageError, match="is not there"):
        require_again(cache, videos=[folder / "nowhere"])


def test_parts_of_videos_are_sampled_as_then(folder: Path, tmp_path: Path) -> None:
    """The extent stands in the id alone."""
    backbone = load_backbone(BACKBONE, weights=WEIGHTS, device="cpu")
    spec = cache_spec(backbone, sampling=Sampling(kind="segments", segments=2))
    cache = create_cache(tmp_path / "parts.zarr", spec)
    path = folder / "videos" / "all" / "2.mp4"
    parts = [(1.0, 4.0), (None, 3.5), (2.5, None)]
    fill_cache(
        [
            VideoSource(
                id=extent_id("2.mp4", a, b), path=path, name="x", start_seconds=a, end_seconds=b
            )
            for a, b in parts
        ],
        cache,
        backbone,
        get_reader("pyav"),
    )
    report = reencode_sample(open_cache(cache.path), 3, videos=[folder / "videos"], device="cpu")
    assert report.ok
    assert len(report.videos) == 3
    assert all(video.worst == 0 for video in report.videos)


def test_what_a_repair_lets_go_is_made_again(folder: Path, cache: Cache) -> None:
    expected = digest_cache(cache)
    flip(shard(cache, "all/1.mp4"), 5)
    flip(shard(cache, "all/2.mp4"), 5)
    report = repair_cache(cache)
    lost = {step.id: step.source for step in report.dropped if step.id}
    assert sorted(lost) == ["all/1.mp4", "all/2.mp4"]
    opened = open_cache(cache.path)
    done = extract_again(opened, lost, videos=[folder / "videos"], device="cpu")
    assert (done.summary.extracted, done.missing, done.undone) == (2, (), False)
    assert digest_cache(open_cache(cache.path)) == expected
    assert open_cache(cache.path).failures() == []


def test_what_has_no_file_is_told(folder: Path, cache: Cache) -> None:
    done = extract_again(cache, {"gone.mp4": None}, videos=[folder / "videos"], device="cpu")
    assert (done.missing, done.undone) == (("gone.mp4",), True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.005),
        ({"compute_dtype": "bfloat16"}, 0.03),
        ({"stored_dtype": "int8"}, 0.01),
    ],
)
def test_the_tolerance_follows_what_is_computed_and_stored(
    cache: Cache, change: dict[str, str], expected: float
) -> None:
    assert default_tolerance(dataclasses.replace(cache.spec, **change)) == expected
