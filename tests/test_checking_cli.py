"""The commands that check, mend, compare and merge, from outside: exit codes and what is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import media
import pytest
from caches import make_cache
from entries import flip, shard
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import open_cache


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A cache and a copy of it."""
    cache = make_cache(tmp_path, num_videos=3)
    shutil.copytree(cache.path, tmp_path / "copy.zarr")
    return cache.path, tmp_path / "copy.zarr"


def test_the_same_digest_for_the_same_values(pair):
    first, second = (json.loads(run("digest", path, "--json")) for path in pair)
    assert first == second
    shown = run("digest", pair[0])
    assert first["root"] in shown
    assert "task toy/label" in shown
    assert first["root"][:16] in run("info", pair[0])


def test_damage_is_found_mended_and_gone(pair):
    cache, copy = pair
    flip(shard(open_cache(cache), "v1"), 5)
    assert "cache repair" in run("verify", cache, "--full", code=1)
    planned = run("repair", cache, "--dry-run", code=3)
    assert "dropped: v1" in planned
    assert "nothing was changed" in planned
    assert "copied: v1" in run("repair", cache, "--from", copy)
    assert "nothing to mend" in run("repair", cache)
    assert "equal" in run("diff", cache, copy)
    flip(shard(open_cache(cache), "v2"), 5)
    dropped = json.loads(run("repair", cache, "--json", code=3))
    assert [(step["id"], step["deed"]) for step in dropped["steps"]] == [("v2", "dropped")]
    assert "only in B: 1 video: v2" in run("diff", cache, copy, code=1)
    assert "1 video added" in run("merge", cache, copy)
    assert json.loads(run("diff", cache, copy, "--json"))["equal"]


def test_options_of_a_check_that_is_not_asked_for_are_refused(pair):
    for options in (
        ("--tolerance", 0.1),
        ("--device", "cuda"),
        ("--seed", 3),
        ("--backbone", "x"),
        ("--weights", "x"),
    ):
        assert f"{options[0]}: only for --reencode" in run("verify", pair[0], *options, code=2)


def test_a_damaged_cache_is_not_extracted_again_to_compare(pair):
    shard(open_cache(pair[0]), "v1").unlink()
    options = ("verify", pair[0], "--reencode", 2, "--videos", pair[0].parent)
    assert "no video was extracted again" in run(*options, code=1)
    assert json.loads(run(*options, "--json", code=1))["reencode"] is None


def test_conflicts_are_shown_and_decided(pair, tmp_path):
    other = make_cache(tmp_path / "other", num_videos=4, seed=1)
    shown = run("merge", pair[0], other.path, code=3)
    assert "conflict: v0" in shown
    assert "--prefer" in shown
    assert "3 replaced" in run("merge", pair[0], other.path, "--prefer", "source")
    assert "4 videos with the same values" in run("diff", pair[0], other.path)
    assert "would be added" in run("merge", tmp_path / "n.zarr", pair[0], "--dry-run")
    assert not (tmp_path / "n.zarr").exists()


def test_videos_are_extracted_again_to_check_and_to_mend(tmp_path):
    videos, cache = tmp_path / "videos", tmp_path / "c.zarr"
    videos.mkdir()
    for name in "ab":
        media.write_clip(videos / f"{name}.mp4", num_frames=4, rate=1, gop=4)
    extract = ["extract", str(videos), "--cache", str(cache), "--device", "cpu"]
    extract += ["--backbone", "vit_tiny_patch16_224@32", "--weights", "random:0"]
    assert CliRunner().invoke(app, extract).exit_code == 0
    again = ("--videos", videos, "--device", "cpu")
    shown = run("verify", cache, "--reencode", 5, *again)
    assert "2 hold the same values" in shown
    assert "8 of 8 frames equal" in shown
    run("verify", cache, "--reencode", 5, code=2)
    run("verify", cache, "--videos", videos, code=2)
    flip(shard(open_cache(cache), "a.mp4"), 5)
    run("repair", cache, "--videos", tmp_path / "nowhere", code=2)
    assert "1 video extracted again" in run("repair", cache, *again)
    assert "no problems" in run("verify", cache, "--full")
    # Values that are sound and yet not those of the videos.
    opened = open_cache(cache)
    record = opened.record("b.mp4")
    patch, prefix = opened.read("b.mp4"), opened.read("b.mp4", "prefix")
    with opened.write_entry("b.mp4", source=record.source, overwrite=True) as entry:
        entry.append({"patch": patch * 2, "prefix": prefix}, record.pts_seconds)
        entry.commit(duration_seconds=record.duration_seconds)
    assert "differs: b.mp4" in run("verify", cache, "--full", "--reencode", 5, *again, code=1)
