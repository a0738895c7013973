"""What the commands do and say about a cache that is damaged, partial, or that is no cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import extraction as ex
import pytest
from caches import make_cache
from entries import flip, shard
from test_mirror import remote
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract import request
from vis4mer.extract.stages.progress import ExtractSummary, HeldVideos
from vis4mer.render.extract import print_extraction
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.errors import CacheFormatError
from vis4mer.store.pooling import pool_cache
from vis4mer.store.records import record_path
from vis4mer.store.repair import repair_cache
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path, num_videos=4, frames=3)


@pytest.fixture
def torn(cache: Cache) -> Cache:
    """v1 says no id any more; v2 does, and its checksum is wrong."""
    record_path(cache.path, cache.record("v1").key).write_bytes(b"torn")
    path = record_path(cache.path, cache.record("v2").key)
    path.write_bytes(path.read_bytes().replace(b'"num_frames":3', b'"num_frames":4'))
    return open_cache(cache.path)


# Records that cannot be read -------------------------------------------------------------------


def test_what_lists_goes_on_without_them(torn: Cache) -> None:
    told = json.loads(run("info", torn.path, "--json"))
    assert (told["num_videos"], len(told["unreadable"]), told["digest"]) == (2, 2, None)
    assert "2 records, counted nowhere here" in run("info", torn.path)
    listed = json.loads(run("ls", torn.path, "--json"))
    assert [entry["id"] for entry in listed["entries"]] == ["v0", "v3"]
    assert len(listed["unreadable"]) == 2
    assert f"cache repair {torn.path}" in run("ls", torn.path)


def test_a_push_sends_the_others_and_says_so(torn: Cache, tmp_path: Path) -> None:
    told = json.loads(run("push", torn.path, tmp_path / "there", "--json", code=3))
    assert told["copied"] == ["v0", "v3"]
    assert len(told["failures"]) == 2
    assert open_cache(tmp_path / "there").ids() == ["v0", "v3"]


def test_what_speaks_of_all_of_it_refuses(torn: Cache) -> None:
    for command in (["digest", torn.path], ["diff", torn.path, torn.path]):
        told = run(*command, code=1)
        assert "2 records cannot be read, so" in told
        assert f"cache repair {torn.path}" in told
    with pytest.raises(CacheFormatError, match="1 record cannot be read, so it is not known"):
        torn.ids()


def train(cache: Cache, run: Path) -> tuple[int, str]:
    command = ["--task", "toy/label", "--decoder", "mean", "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(
        app, ["train-decoder", "--cache", str(cache.path), "--run", str(run), *command]
    )
    return result.exit_code, " ".join(result.output.split())


def test_training_refuses_what_its_task_names_and_no_other(torn: Cache, tmp_path: Path) -> None:
    code, told = train(torn, tmp_path / "run")
    assert code == 1
    assert (
        "2 records cannot be read, so the train videos of toy/label would not be all that there"
    ) in told
    assert f"cache repair {torn.path}" in told
    table = torn.task("toy/label")
    torn.save_task(replace(table, rows=tuple(r for r in table.rows if r.id in ("v0", "v3"))))
    assert train(torn, tmp_path / "run")[0] == 0


def test_labels_and_extraction_go_on_without_them(tmp_path: Path, monkeypatch) -> None:
    backbone = ex.grey_backbone()
    monkeypatch.setattr(request, "_load", lambda *_, **__: backbone)
    monkeypatch.setattr(request, "get_reader", lambda _: ex.FakeReader())
    cache = ex.grey_cache(tmp_path / "c.zarr", backbone)
    for name in ("a", "b"):
        ex.write_video(tmp_path / "videos", name, 3)
    command = ["extract", str(tmp_path / "videos"), "--cache", str(cache.path)]
    command += ["--weights", "random:0", "--json"]
    assert CliRunner().invoke(app, command).exit_code == 0
    record_path(cache.path, open_cache(cache.path).record("a.mp4").key).write_bytes(b"torn")
    ex.write_video(tmp_path / "videos", "c", 3)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 3, result.output
    told = json.loads(result.stdout)
    assert (told["extracted"], told["already_there"]) == (1, 1)
    assert [failure["id"] for failure in told["failures"]] == ["a.mp4"]
    (tmp_path / "labels.csv").write_text("path,label,split\nb.mp4,x,train\nc.mp4,y,train\n")
    result = CliRunner().invoke(
        app, ["label", str(cache.path), "--dataset", str(tmp_path / "labels.csv")]
    )
    assert result.exit_code == 0, result.output


def test_at_an_address_they_are_mended_by_a_push(torn: Cache, tmp_path: Path, monkeypatch) -> None:
    far, _ = remote(torn, tmp_path)
    monkeypatch.setattr("vis4mer.store.cache.open_cache", lambda _: far)
    for command, code in (("ls", 0), ("digest", 1), ("verify", 1)):
        told = run(command, "s3://bucket/x", code=code)
        assert "to mend" in told
        assert "push a sound copy there again" in told
        assert "cache repair" not in told
    monkeypatch.undo()
    sound = make_cache(tmp_path / "sound", num_videos=4, frames=3)
    run("push", sound.path, torn.path)
    assert verify_cache(open_cache(torn.path)).ok


def test_a_mirror_with_one_of_its_own_still_gives_the_others(cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(cache.path, tmp_path / "mirror")
    mirror = open_cache(tmp_path / "mirror")
    record_path(mirror.path, mirror.record("v3").key).write_bytes(b"torn")
    lost = cache.record("v1")
    record_path(cache.path, lost.key).write_bytes(b"torn")
    flip(shard(cache, "v1"), 3)
    told = run("repair", cache.path, "--from", mirror.path)
    assert "copied: v1" in told
    assert verify_cache(open_cache(cache.path), "full").ok


def test_the_status_says_what_it_counts(torn: Cache) -> None:
    assert "4 videos done (by their records, unread)" in run("status", torn.path)


# Names that are no names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["push", "HERE", "s3:/bucket/x"], "s3:/bucket/x: no address, expected s3://bucket/x"),
        (["push", "HERE", "S3:/bucket/x"], "s3:/bucket/x: no address, expected s3://bucket/x"),
        (["push", "HERE", "s3:bucket/x"], "s3:bucket/x: no address, expected s3://bucket/x"),
        (["push", "HERE", "s3:"], "s3: no address, expected s3://"),
        (["push", "HERE", ""], "an empty name"),
        (["push", "HERE", " "], "an empty name"),
        (["push", "HERE", "file:/x"], "file:/x: no address, expected file:///x"),
        (["pull", "https:/host/x", "new"], "https:/host/x: no address, expected https://host/x"),
        (["pull", "", "new"], "an empty name"),
        (["pull", "HERE", ""], "an empty name"),
        (["pull", "HERE", "s3://"], "s3://: a pull ends in a directory here, got an address"),
        (["pull", "HERE", "s3:/b"], "a pull ends in a directory here, got an address"),
        (["pull", "HERE", "gs://b/x"], "gs://b/x: a pull ends in a directory here"),
        (["merge", "file:///x", "HERE"], "a merge fills a directory here, got an address"),
        (["merge", "s3:b", "HERE"], "s3://b: a merge fills a directory here, got an address"),
        (["merge", "", "HERE"], "an empty name"),
        (["export", "HERE", "--format", "npy", "--to", "s3://b/x"], "s3://b/x: an export ends in"),
        (["export", "HERE", "--format", "npy", "--to", "s3:b"], "s3://b: an export ends in a dir"),
        (["export", "HERE", "--format", "npy", "--to", ""], "an empty name"),
        (["import", "a.npy", "--cache", "s3:/b"], "s3://b: an import fills a directory here"),
        (["import", "a.npy", "--cache", ""], "an empty name"),
        (["info", "s3:/bucket/x"], "s3:/bucket/x: no address, expected s3://bucket/x"),
        (["info", ""], "an empty name"),
    ],
)
def test_a_torn_address_or_an_empty_name_makes_nothing(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, said
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    told = run(*[str(cache.path) if a == "HERE" else a for a in arguments], code=2)
    assert said in told
    assert not list((tmp_path / "empty").iterdir())


def test_a_secret_in_a_torn_address_is_not_shown(cache: Cache) -> None:
    assert "hidden" not in run("push", cache.path, "https:/me:hidden@host/x", code=2)


# Caches of which one holds more ----------------------------------------------------------------


def test_videos_of_which_one_holds_more_are_one_line(cache: Cache, tmp_path: Path) -> None:
    pull_cache(str(cache.path), tmp_path / "part", Selection(arrays=("prefix",)))
    told = run("diff", cache.path, tmp_path / "part", code=1)
    assert "4 videos with the same values where both hold them; A holds patch besides: v0" in told
    assert "0 videos with the same values in both, 4 as far as both hold them, 0 with" in told
    assert "differs" not in told


# Pooled copies that a repair lets go -------------------------------------------------------------


def test_a_repair_says_how_lost_copies_come_back(cache: Cache) -> None:
    pool_cache(cache, (1,))
    opened = open_cache(cache.path)
    flip(shard(opened, "v0", "grid1"), 3)
    flip(shard(opened, "v1"), 3)
    assert "pooled copies of 2 videos would be gone" in run(
        "repair", cache.path, "--dry-run", code=3
    )
    told = run("repair", cache.path, code=3)
    assert (
        f"pooled copies of 2 videos are gone: `vis4mer cache pool {cache.path} --grid 1` makes "
        "them again once the videos are back"
    ) in told


def test_copies_of_an_entry_whose_record_is_lost_are_those_of_all(cache: Cache) -> None:
    pool_cache(cache, (1,))
    opened = open_cache(cache.path)
    flip(shard(opened, "v1"), 3)
    record_path(cache.path, opened.record("v1").key).write_bytes(b"torn")
    (cache.path / "catalog.json").unlink()
    report = repair_cache(open_cache(cache.path))
    assert report.lost_copies == ("grid1",)


# The last lines of an extraction ---------------------------------------------------------------


def summary(**changes: Any) -> ExtractSummary:
    stages = dict.fromkeys(("reading", "backbone", "writing"), 0.0)
    fields: dict[str, Any] = {
        "num_videos": 3,
        "extracted": 0,
        "already_there": 0,
        "changed": (),
        "failures": (),
        "known_failures": (),
        "damaged": (),
        "left": 0,
        "frames": 0,
        "seconds": 1.0,
        "busy_seconds": stages,
        "threads": dict.fromkeys(stages, 1),
        "interrupted": False,
    }
    return ExtractSummary(**{**fields, **changes})


def test_what_is_not_done_is_said_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    held = HeldVideos(host="node7", pid=1, ids=("a", "b", "c"), silent_seconds=0.0)
    print_extraction(summary(held=(held,)), cache="x.zarr", as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "3 in other workers' hands" in told
    assert "`vis4mer cache status x.zarr` shows them" in told
    print_extraction(summary(left=3), cache="x.zarr", as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "3 left to do" in told
    assert "another worker let go of just then (`vis4mer cache status x.zarr`)" in told
