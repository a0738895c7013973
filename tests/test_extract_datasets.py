"""`extract` and `label` on datasets known by name, through the command line, with real clips."""

from __future__ import annotations

import json
from pathlib import Path

import media
import numpy as np
import pytest
from lvu_files import SMALL, write_lvu
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import open_cache
from vis4mer.store.views import pool_grid

BACKBONE = ("--backbone", "vit_tiny_patch16_224@64", "--weights", "random:0")
PRESENT = ("-e6lEsIUf3U", "__abc_defgh", "zzzzzzzzzzz")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with annotations, three clips and a settings file."""
    monkeypatch.chdir(tmp_path)
    for name in ("ANNOTATIONS", "VIDEOS"):
        monkeypatch.delenv(f"VIS4MER_LVU_{name}", raising=False)
    durations = {"-e6lEsIUf3U": "2", "__abc_defgh": "3.5", "zzzzzzzzzzz": "60"}
    write_lvu(tmp_path / "lvu_1.0", SMALL, durations)
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    names = ("-e6lEsIUf3U.mp4", "sub/A title [__abc_defgh].mkv", "zzzzzzzzzzz.f137.mp4")
    for name in names:
        media.write_clip(tmp_path / "videos" / name, num_frames=40)  # 4 s
    settings = '[lvu]\nannotations = "lvu_1.0"\nvideos = "videos"\n'
    (tmp_path / "vis4mer.toml").write_text(settings)
    return tmp_path


def test_a_bare_preset_is_extracted_once_a_video_with_all_its_tables(project: Path) -> None:
    result = run("extract", "--dataset", "lvu", *BACKBONE, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["extracted"], summary["missing"]) == (3, ["01ClRWyf9I4", "KAeAqaA0Llg"])
    assert "2 of 5 videos without a file below" in result.stderr
    cache = open_cache(project / "lvu.zarr")
    assert sorted(cache.ids()) == sorted(PRESENT)
    assert cache.tasks() == sorted(f"lvu/{task}" for task in SMALL)
    assert cache.task("lvu/relationship").rows[0].end_seconds == 2
    again = run("extract", "--dataset", "lvu", *BACKBONE, "--ids=-e6lEsIUf3U,__abc_defgh")
    assert "0 videos extracted, 2 were there already" in again.output
    assert len(cache.task("lvu/relationship").rows) == 4


def test_the_official_protocol_spreads_the_annotated_seconds_over_the_file(project: Path) -> None:
    options = ("--protocol", "official", "--task", "relationship", "--cache", "official.zarr")
    result = run("extract", "--dataset", "lvu", *BACKBONE, *options)
    assert result.exit_code == 0, result.output
    cache = open_cache(project / "official.zarr")
    assert cache.ids() == ["-e6lEsIUf3U@0-2000", "__abc_defgh@0-3500"]
    assert (cache.spec.sampling.kind, cache.spec.preprocess.resize) == ("spread", "squash")
    # floor(2 · 1 fps) frames over 4 s, and floor(3.5): seconds 0, 2 and 0, 4/3, 8/3 (at 10 fps)
    assert cache.record("-e6lEsIUf3U@0-2000").pts_seconds == pytest.approx((0, 2))
    assert cache.record("__abc_defgh@0-3500").pts_seconds == pytest.approx((0, 1.3, 2.6))
    rows = cache.task("lvu/relationship").rows
    assert {row.id for row in rows} >= set(cache.ids())
    assert all(row.end_seconds is None for row in rows)
    label = run("label", "official.zarr", "--dataset", "lvu", "--task", "director")
    assert label.exit_code == 2  # none of director's videos was extracted
    assert "lvu names no video of official.zarr" in label.stderr


def test_without_the_full_grid_the_copies_stay(project: Path) -> None:
    part = ("--task", "relationship", "--ids", "__abc_defgh")
    whole = run("extract", "--dataset", "lvu", *BACKBONE, *part)
    few = ("--grids", "2", "--no-full-grid", "--cache", "few.zarr")
    result = run("extract", "--dataset", "lvu", *BACKBONE, *part, *few)
    assert whole.exit_code == result.exit_code == 0, result.output
    cache, full = open_cache(project / "few.zarr"), open_cache(project / "lvu.zarr")
    assert cache.spec.arrays == ("prefix", "grid2")
    patch = full.read("__abc_defgh", "patch").astype(np.float32)
    pooled = pool_grid(patch, (4, 4), (2, 2))
    assert np.allclose(cache.read("__abc_defgh", "grid2"), pooled, atol=4e-3, rtol=2e-3)
    assert np.array_equal(cache.read("__abc_defgh", "prefix"), full.read("__abc_defgh", "prefix"))


def test_segments_of_a_crop_have_an_entry_of_their_own(project: Path) -> None:
    crop = {"start": 1, "end": 3, "duration": 4, "class": "MakeTea", "recipe_type": 7}
    database = {"zzzzzzzzzzz": crop | {"subset": "training"}, "gone": crop | {"subset": "testing"}}
    (project / "COIN.json").write_text(json.dumps({"database": database}))
    paths = ("--annotations", "COIN.json", "--videos", "videos")
    result = run("extract", "--dataset", "coin", *paths, *BACKBONE, "--segments", "4")
    assert result.exit_code == 0, result.output
    cache = open_cache(project / "coin.zarr")
    assert cache.ids() == ["zzzzzzzzzzz@1000-3000"]
    # the middles of four parts of [1, 3), shown by pictures of a tenth of a second
    assert cache.record(cache.ids()[0]).pts_seconds == pytest.approx((1.2, 1.7, 2.2, 2.7))
    bare = run("extract", "--dataset", "coin", *paths, "--weights", "random:0", "--fps", "1")
    assert bare.exit_code == 2  # its own backbone sees clips
    assert "add --segments N" in bare.stderr


def test_labels_can_be_refreshed(project: Path) -> None:
    part = ("--task", "scene,relationship")
    scene = {"scene": {"train": ["0 office __abc_defgh tt2"]}}
    write_lvu(project / "lvu_1.0", scene)
    run("extract", "--dataset", "lvu", *BACKBONE, *part)
    scene["scene"]["train"] = ["1 airport __abc_defgh tt2"]
    write_lvu(project / "lvu_1.0", scene)
    result = run("label", "lvu.zarr", "--dataset", "lvu", *part)
    assert result.exit_code == 0, result.output
    assert "labels of lvu/scene in the cache: 1 video changed" in result.output
    assert "labels of lvu/relationship did not change" in result.output
    assert open_cache(project / "lvu.zarr").task("lvu/scene").rows[0].label == 1
    told = json.loads(run("label", "lvu.zarr", "--dataset", "lvu", *part, "--json").stdout)
    assert [table["changed"] for table in told["tables"]] == [[], []]


def test_a_list_of_ids_may_stand_in_a_file(project: Path) -> None:
    (project / "mine.txt").write_text("__abc_defgh\r\n-e6lEsIUf3U\r\n")
    result = run("extract", "--dataset", "lvu", *BACKBONE, "--ids", "@mine.txt", "--limit", "0")
    assert result.exit_code == 0, result.output
    assert "2 left to do" in result.output


def test_a_cache_needs_a_name_unless_the_dataset_has_one(project: Path) -> None:
    result = run("extract", project / "videos", *BACKBONE)
    assert result.exit_code == 2
    assert "--cache is missing" in result.stderr
