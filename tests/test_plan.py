"""What a dry run says: the same decisions as the run itself, and nothing written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import extraction as ex
import media
import pytest
from caches import make_spec
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract.backbones.loading import cache_spec
from vis4mer.extract.planning.dry_run import Amount, ExtractPlan, plan_extraction
from vis4mer.extract.planning.plan import SourceError, largest_first, look_at
from vis4mer.extract.planning.share import Share
from vis4mer.extract.request import ExtractRequest, extract_videos, plan_videos
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.render.plan import print_plan
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.spec import CacheSpec, Sampling, StoredDtype

TINY = {"backbone": "vit_tiny_patch16_224@32", "weights": "random:1", "device": "cpu"}


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
    chosen = found.profiles[0]
    # 4 patch tokens, 1 prefix token and 1 pooled token of 3 values in 2 bytes
    assert (chosen.chosen, chosen.bytes_per_frame) == (True, 6 * 3 * 2)
    assert found.present == Amount(videos=3, seconds=30.0, frames=30)
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
    monkeypatch.setattr(
        "vis4mer.extract.planning.plan.hash_file", lambda file: hashed.append(file.name)
    )
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


# What it takes -----------------------------------------------------------------------------------


def bytes_and_files(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("full_grid", [True, False])
def test_as_many_bytes_and_files_as_the_run_writes(
    tmp_path: Path, dtype: StoredDtype, full_grid: bool
) -> None:
    """Two real clips and a table: files to the number, bytes but for the length of some texts."""
    (tmp_path / "v").mkdir()
    for name, frames in (("a", 4), ("b", 30)):
        media.write_clip(tmp_path / "v" / f"{name}.mp4", num_frames=frames, rate=2)
    rows = "path,label,split\na.mp4,x,train\nb.mp4,y,test\n"
    (tmp_path / "own.csv").write_text(rows)
    options = {
        "dataset": tmp_path / "own.csv",
        "videos": tmp_path / "v",
        "cache": tmp_path / "c.zarr",
        "backbone": TINY["backbone"],
        "stored_dtype": dtype,
        "grids": (1,),
        "full_grid": full_grid,
    }
    found = plan_videos(ExtractRequest(**options))
    assert (found.present, found.num_opened) == (Amount(videos=2, seconds=17.0, frames=17), 2)
    extract_videos(ExtractRequest(**options, weights="random:1", device="cpu"))
    num_bytes, num_files = bytes_and_files(tmp_path / "c.zarr")
    assert found.num_objects == num_files
    assert found.num_bytes == pytest.approx(num_bytes, rel=0.08)


def test_the_other_ways_of_storing() -> None:
    """float16 and int8, each with and without the full grid, the one that is asked for first."""
    spec = make_spec(grid=(14, 14), dim=1024)  # 2 bytes · 1024 · (196 + 1, or 49 + 1) tokens
    ways = {
        (way.stored_dtype, way.arrays): way.bytes_per_frame
        for way in plan_of([], spec=replace(spec, stored_dtype="int8")).profiles
    }
    assert list(ways.items()) == [
        (("int8", ("patch", "prefix")), 197 * (1024 + 4)),
        (("float16", ("patch", "prefix")), 197 * 2048),
        (("float16", ("prefix", "grid7")), 50 * 2048),
        (("int8", ("prefix", "grid7")), 50 * (1024 + 4)),
    ]
    # A grid of 7 has no smaller copy that stands for it.
    small = plan_of([], spec=make_spec(grid=(7, 7), stored_dtype="bfloat16")).profiles
    assert [(p.stored_dtype, p.chosen) for p in small] == [
        ("bfloat16", True),
        ("float16", False),
        ("int8", False),
    ]


def plan_of(sources: list[VideoSource], *, spec: CacheSpec, **options: object) -> ExtractPlan:
    return plan_extraction(
        sources,
        spec=spec,
        cache=None,
        cache_path=Path("nowhere"),
        reader=options.pop("reader", ex.FakeReader()),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def test_annotated_videos_are_believed_and_some_are_opened(tmp_path: Path) -> None:
    """Files last 100 s, 90 s by the annotation: what a few that are opened say holds for all."""
    for number in range(70):
        ex.write_video(tmp_path, f"v{number:02}", 100)
    sources = ex.videos(tmp_path)
    durations = {video.id: 90.0 for video in sources} | {"gone": 50.0}
    reader = ex.FakeReader()
    found = plan_of(
        sources,
        spec=make_spec(),
        reader=reader,
        durations=durations,
        missing=["gone", "lost"],
    )
    assert found.num_opened == len(reader.streams) == 24  # every third
    assert found.added_seconds == 10.0
    assert found.present == Amount(videos=70, seconds=7000.0, frames=7000)
    assert found.absent == Amount(videos=1, seconds=60.0, frames=60)  # nobody knows of the other
    assert found.missing == ("gone", "lost")


def test_a_few_broken_downloads_do_not_shorten_the_rest(tmp_path: Path) -> None:
    for number in range(9):
        ex.write_video(tmp_path, f"v{number}", 3 if number < 3 else 100)
    sources = ex.videos(tmp_path)
    durations = {video.id: 90.0 for video in sources} | {"gone": 50.0}
    found = plan_of(sources, spec=make_spec(), durations=durations, missing=["gone"])
    assert (found.added_seconds, found.absent.seconds) == (10.0, 60.0)


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [
        (Sampling(kind="spread", fps=1.0), 90 + 50),
        (Sampling(kind="spread", fps=0.5), 45 + 25),
        (Sampling(kind="segments", segments=16), 16 + 16),
    ],
)
def test_sampling_that_goes_by_the_annotation_opens_nothing(
    tmp_path: Path, sampling: Sampling, frames: int
) -> None:
    path = ex.write_video(tmp_path, "v", 100)
    source = VideoSource(id="v@0-90500", path=path, name="v", end_seconds=90.5)
    found = plan_of(
        [source],
        spec=replace(make_spec(), sampling=sampling),
        durations={"v@0-90500": 90.5, "gone@0-50000": 50.0},
        missing=["gone@0-50000"],
    )
    assert (found.num_opened, found.added_seconds) == (0, None)
    assert found.present.frames + found.absent.frames == frames


def test_a_known_dataset_is_planned_before_any_video_is_there(tmp_path: Path) -> None:
    task = tmp_path / "lvu_1.0" / "scene"
    task.mkdir(parents=True)
    for split, line in (
        ("train", "0 airport a tt1"),
        ("val", "1 bar b tt2"),
        ("test", "0 x c tt3"),
    ):
        (task / f"{split}.csv").write_text(f"class_id class_name youtube_id imdb_id\n{line}\n")
    (tmp_path / "lvu_1.0" / "lvu_durations.csv").write_text("videoid,duration\na,100\nb,80\nc,60\n")
    found = plan_videos(
        ExtractRequest(
            dataset="lvu",
            annotations=tmp_path / "lvu_1.0",
            cache=tmp_path / "c.zarr",
            backbone=TINY["backbone"],
        )
    )
    assert (found.to_extract, found.missing) == ((), ("a", "b", "c"))
    assert found.absent == Amount(videos=3, seconds=240.0, frames=240)
    assert found.profiles[0].missing.num_objects > 3 * 6  # group, record, two arrays of two files
    assert not (tmp_path / "c.zarr").exists()
    where = ("--annotations", str(tmp_path), "--cache", str(tmp_path / "c.zarr"))
    flags = ("--dataset", "lvu", "--backbone", TINY["backbone"], "--dry-run", "--no-probe")
    shown = CliRunner().invoke(app, ["extract", *where, *flags])
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["missing,", "as", "annotated", "3", "0.07", "240"] in lines
    assert "0 videos to extract" in shown.stdout
    assert "of extraction" not in shown.stdout


# The whole request -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one video of two in a cache."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "videos").mkdir()
    for name in ("a", "b"):
        media.write_clip(folder / "videos" / f"{name}.mp4", num_frames=3, rate=1)
    cache = folder / "c.zarr"
    asked = ExtractRequest(
        inputs=[str(folder / "videos")], cache=cache, grids=(1,), limit=1, **TINY
    )
    extract_videos(asked)
    return folder / "videos", cache


def test_a_plan_for_a_cache_there_is_counts_what_is_left(extracted: tuple[Path, Path]) -> None:
    videos, cache = extracted
    asked = ExtractRequest(inputs=[str(videos)], cache=cache, backbone=TINY["backbone"], grids=(1,))
    found = plan_videos(asked)
    assert (found.to_extract, found.already_there, found.frames) == (("b.mp4",), 1, 3)


def test_a_plan_is_of_the_share(extracted: tuple[Path, Path]) -> None:
    folder, _ = extracted
    ids = sorted(path.name for path in folder.iterdir())
    asked = ExtractRequest(inputs=[str(folder)], cache=folder.with_name("new.zarr"), **TINY)
    plans = {
        (number, helps): plan_videos(
            replace(asked, share=Share(number=number, count=2, helps=helps)), probe=False
        ).to_extract
        for number in (1, 2)
        for helps in (True, False)
    }
    assert sorted(plans[1, False] + plans[2, False]) == ids
    assert plans[1, True] == plans[1, False] + plans[2, False]
    assert plans[2, True] == plans[2, False] + plans[1, False]


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
        ({"full_grid": False}, UsageError, "use the same --grids"),
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
            call(ExtractRequest(inputs=[str(videos)], **{**weights, **options}))
        refusals.append(told(refusal.value))
    assert refusals[0] == refusals[1]


def test_large_files_are_read_first(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 30), ("c", 20), ("d", 30)):
        (tmp_path / f"{name}.mp4").write_bytes(b"x" * size)
    (tmp_path / "e.mp4").symlink_to(tmp_path / "nowhere")
    assert [video.path.stem for video in largest_first(ex.videos(tmp_path))] == list("bdcae")


def test_a_disk_that_holds_only_what_is_there_does_not_hold_it_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The missing videos will come: the line below the table says what the table says."""
    found = plan_of([], spec=make_spec(), missing=["gone"], durations={"gone": 500.0})
    asked = found.profiles[0]
    assert asked.to_extract.num_bytes < asked.missing.num_bytes
    said = {}
    for free in (asked.to_extract.num_bytes, asked.all.num_bytes):
        print_plan(replace(found, free_bytes=free), as_json=False)
        said[free] = "does not fit on the disk" in capsys.readouterr().out
    assert list(said.values()) == [True, False]


def test_a_name_that_the_system_does_not_take_is_the_files_failure() -> None:
    with pytest.raises(SourceError, match="cannot be looked at: embedded null"):
        look_at(Path("a\0.mp4"))
