"""What people are told: notes, refusals and closing lines that name the cause and the next command.

Each line here stood once in words that a newcomer could not act on.
"""

import errno
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import vis4mer
from caches import make_cache, make_spec
from test_mirror import remote
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.ablate.sweep import read_sweep
from vis4mer.decode.config import TrainConfig, load_config
from vis4mer.decode.training.departures import departure_note
from vis4mer.decode.training.job import prepare_job
from vis4mer.extract.annotations.labelling import label_cache
from vis4mer.render.bench import _as_fast, _as_much
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.files import StorageError, storage_errors
from vis4mer.store.keys import entry_key
from vis4mer.store.records import record_path
from vis4mer.store.repair import repair_cache
from vis4mer.store.spec import require_same
from vis4mer.store.views import TokenView
from vis4mer.store.wording import human_bytes


def run(*arguments):
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    return found.exit_code, found.output


def notes(cache, **settings):
    flags = {"task": "toy/label", "decoder.name": "mean", "device": "cpu", **settings}
    return prepare_job(cache, load_config(flags=flags)).notes


# Windows longer than the videos ------------------------------------------------------------------


def test_a_view_that_spreads_its_frames_beyond_short_videos_is_a_note(tmp_path):
    """6 frames over a 60 s window are one every 10 s: of 6 s of video, the first alone."""
    cache = make_cache(tmp_path, frames=[6, 5, 4, 6, 6, 5, 6, 6])
    (told,) = (n for n in notes(cache, tokens="6x2x2") if "longer" in n)
    assert told == (
        "no video is longer than 6 s, and a window is 60 s: 6x2x2 takes at most 1 frame of a "
        "video; with --window 6 it would take 6"
    )
    assert not any("longer" in n for n in notes(cache, tokens="6x2x2", window_seconds=6.0))
    assert not any("longer" in n for n in notes(cache))  # every frame that there is
    (told,) = (n for n in notes(cache, tokens="30x2x2") if "longer" in n)
    assert "at most 3 frames of a video; with --window 30 it would take 6" in told


def test_one_video_as_long_as_a_window_needs_no_note(tmp_path):
    cache = make_cache(tmp_path, frames=[60, *[6] * 7])
    assert not any("longer" in n for n in notes(cache, tokens="6x2x2"))


# Words of decoders -------------------------------------------------------------------------------


def test_a_digest_in_a_note_is_short():
    note = departure_note(TrainConfig(task="a/b", init="955b" + "0" * 60).to_json())
    assert note == "not all of protocol clean: init is 955b00000000… (clean: None)"


def test_the_given_view_is_named():
    for text in ("0x2x2", "6x0x2", "6x2x0", "0xcls"):
        with pytest.raises(UsageError, match=f"token view {text}: frames, height and width"):
            TokenView.parse(text)


@pytest.mark.parametrize(
    ("ratio", "speed", "memory"),
    [
        (0.0336, "29.8 × as fast", "29.8 × less"),
        (2.6316, "2.63 × slower", "2.63 × as much"),
        (1.0, "1 × as fast", "1 × as much"),
        (None, "–", "–"),
    ],
)
def test_costs_are_compared_in_words(ratio, speed, memory):
    assert (_as_fast(ratio), _as_much(ratio)) == (speed, memory)


def test_bad_seeds_are_told_before_the_folder(tmp_path):
    cache = make_cache(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    given = ("--cache", cache.path, "--run", tmp_path / "run", "--task", "toy/label")
    code, told = run("train-decoder", *given, "--seeds", "x")
    assert (code, "--seeds x: expected a number" in told) == (2, True)


def test_the_sweep_of_the_readme_is_one(tmp_path):
    readme = Path(vis4mer.__file__).with_name("README.md")
    if not readme.exists():
        pytest.skip("installed without its README")
    (tmp_path / "sweep.toml").write_text(
        re.search("```toml\n(.*?)```", readme.read_text(), re.S)[1]
    )
    points = read_sweep(tmp_path / "sweep.toml").points(["lvu"])
    assert len(points) == (2 * 2 + 1) * 3


# Words of the store ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_what_may_not_be_written_is_said_to_be_read_only(number):
    with pytest.raises(StorageError) as refused, storage_errors(Path("ro.zarr/pool.lock")):
        raise OSError(number, "no")
    assert str(refused.value) == (
        "cannot write ro.zarr/pool.lock: it is read-only for you (permission denied); ask its "
        "owner, or write elsewhere"
    )


def test_caches_that_do_not_fit_are_both_named_and_digests_short():
    one = make_spec()
    other = replace(one, weights_sha256="1" * 64)
    with pytest.raises(FingerprintError) as refused:
        require_same(one, other, name="a.zarr", other="s3://b/a.zarr")
    told = str(refused.value)
    assert told.startswith("a.zarr was made with other settings than s3://b/a.zarr (weights_sha256")
    assert f"here {'0' * 16}…, there {'1' * 16}…" in told
    assert "--cache" not in told
    with pytest.raises(FingerprintError, match="use the cache's own settings or choose another"):
        require_same(one, other, name="a.zarr")


def test_sizes_are_those_of_small_things_too():
    assert [human_bytes(n) for n in (999, 67_108_900, 2.5e9)] == ["999 B", "67.1 MB", "2.5 GB"]


# The commands ------------------------------------------------------------------------------------


def test_what_writes_refuses_an_address_before_anything_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos.csv").write_text("path,label,split\na.mp4,x,train\n")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    code, told = run("extract", "videos.csv", "--cache", "s3://bucket/x.zarr")
    assert code == 2
    assert "an extraction fills a directory here, got an address" in told
    assert "labels:" not in told
    for name, words in (("", "an empty name"), ("s3:b", "s3://b: an extraction fills a directory")):
        code, told = run("extract", "videos.csv", "--cache", name)
        assert (code, words in told) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "videos.csv"]


def test_labels_at_an_address_are_refused_also_where_nothing_would_change(tmp_path, monkeypatch):
    cache = make_cache(tmp_path, num_videos=2)
    far, place = remote(cache, tmp_path)
    monkeypatch.setattr("vis4mer.extract.annotations.labelling.open_cache", lambda _: far)
    with pytest.raises(UsageError, match=f"{place.url} is remote and read-only: pull it first"):
        label_cache(place.url, tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["gc", "rm", "repair", "pool", "pack", "unpack", "status"])
def test_the_help_of_what_needs_a_directory_promises_no_address(name):
    code, told = run("cache", name, "--help")
    assert code == 0
    assert "no URL" in " ".join(told.split())
    assert "also its URL" not in " ".join(told.split())


def test_verify_and_status_name_the_cache(tmp_path):
    cache = make_cache(tmp_path, num_videos=2)
    record_path(cache.path, entry_key("v0")).write_text("{}")
    code, told = run("cache", "verify", cache.path)
    assert code == 1
    assert f"`vis4mer cache repair {cache.path}`" in told
    assert "`vis4mer cache verify`" not in told  # which this is


def test_one_video_has_its_space(tmp_path):
    cache = make_cache(tmp_path, num_videos=3)
    assert "frees its space" in run("cache", "rm", cache.path, "v0")[1]
    assert "frees their space" in run("cache", "rm", cache.path, "v1", "v2")[1]


def test_a_mirror_without_the_lost_videos_is_told(tmp_path):
    cache = make_cache(tmp_path / "a", num_videos=3)
    shutil.copytree(cache.path, tmp_path / "mirror.zarr")
    mirror = open_cache(tmp_path / "mirror.zarr")
    mirror.remove("v0")
    mirror.write_catalog()
    (cache.path / cache.record("v0").folder / "patch" / "zarr.json").unlink()
    for path in (cache.path / cache.record("v0").folder).rglob("c/**/*"):
        if path.is_file():
            path.write_bytes(b"torn")
    report = repair_cache(open_cache(cache.path), mirrors=[open_cache(mirror.path)], dry_run=True)
    assert report.unfit == (str(mirror.path),)
    _, told = run("cache", "repair", cache.path, "--from", mirror.path)
    assert f"{mirror.path} holds none of the videos that are lost here" in told


def test_ctrl_c_speaks_of_the_command_at_hand(monkeypatch, tmp_path):
    cache = make_cache(tmp_path)

    def interrupt(*_args, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("vis4mer.store.transfer.push.push_cache", interrupt)
    code, told = run("cache", "push", cache.path, tmp_path / "place")
    assert code == 130
    assert "the same command goes on" in told
    assert "training" not in told
