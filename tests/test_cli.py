"""The command line as its users meet it: output, exit codes, one line for what went wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import media
import numpy as np
import pytest
from caches import make_cache, make_spec, write_tokens
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import create_cache

BACKBONE = ("--backbone", "vit_tiny_patch16_224@32", "--weights", "random:0")
COMMANDS = (
    ("extract",),
    ("slurm",),
    ("label",),
    ("pretrain",),
    ("train-decoder",),
    ("import-weights",),
    ("evaluate",),
    ("predict",),
    ("decoders",),
    ("bench",),
    ("demo",),
    ("doctor",),
    ("cache", "info"),
    ("cache", "ls"),
    ("cache", "verify"),
    ("cache", "digest"),
    ("cache", "repair"),
    ("cache", "diff"),
    ("cache", "merge"),
    ("cache", "gc"),
    ("cache", "rm"),
    ("cache", "pool"),
    ("cache", "pack"),
    ("cache", "unpack"),
    ("cache", "import"),
    ("cache", "export"),
)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, exit_code: int, *words: str) -> None:
    """One line on standard error that holds `words`, and no traceback."""
    assert result.exit_code == exit_code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        media.write_clip(folder / name, num_frames=30)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"vis4mer {' '.join(command)}" in re.sub(r"\s+", " ", result.output)


def test_every_command_is_in_the_readme():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for command in COMMANDS:
        assert f"`{command[-1]}`" in readme or f"`vis4mer {' '.join(command)}`" in readme


def test_no_command_prints_help_once_and_fails():
    code = "import sys; from vis4mer.cli import main; sys.argv = ['vis4mer']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train-decoder" in done.stdout
    assert done.stdout.count("Usage:") == 1


def test_no_help_loses_what_stands_in_brackets():
    text = " ".join(run("ablate", "--help").output.split())
    assert "a table named base of settings" in text
    assert "[]" not in text


def test_help_needs_neither_torch_nor_the_store():
    code = (
        "import sys; from vis4mer.cli import main\n"
        "sys.argv = ['vis4mer', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_extract_info_ls_verify_rm(clips, tmp_path):
    cache = tmp_path / "c.zarr"
    result = run("extract", clips, "--cache", cache, *BACKBONE, "--grids", "1")
    assert result.exit_code == 0, result.output
    assert "2 videos extracted" in result.stdout
    assert "bottleneck" in result.stdout

    again = run("extract", clips, "--cache", cache, *BACKBONE, "--grids", "1", "--json")
    assert json.loads(again.stdout)["already_there"] == 2

    info = json.loads(run("cache", "info", cache, "--json").stdout)
    assert (info["num_videos"], info["num_frames"]) == (2, 6)
    assert info["frame_bytes"] == {"patch": 4 * 192 * 2, "prefix": 192 * 2, "grid1": 192 * 2}
    assert "RANDOM" in run("cache", "info", cache).stdout

    listed = json.loads(run("cache", "ls", cache, "--json").stdout)
    assert [entry["id"] for entry in listed["entries"]] == ["a.mp4", "b.mp4"]
    assert "a.mp4" in run("cache", "ls", cache).stdout

    assert run("cache", "verify", cache, "--full").exit_code == 0
    shard = next(cache.glob("videos/*/b-mp4-*/patch/c/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = run("cache", "verify", cache)
    assert damaged.exit_code == 1
    assert "b.mp4" in damaged.stdout

    assert run("cache", "rm", cache, "b.mp4").exit_code == 0
    freed = run("cache", "gc", cache, "--grace-hours", "0", "--json")
    assert json.loads(freed.stdout)["num_files"] > 0
    assert run("cache", "verify", cache, "--full").exit_code == 0
    refused(run("cache", "rm", cache, "b.mp4"), 1, "b.mp4", "cache ls")


def test_dry_run_writes_nothing(clips, tmp_path):
    cache = tmp_path / "c.zarr"
    result = run("extract", clips, "--cache", cache, *BACKBONE, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert (sorted(plan["to_extract"]), plan["frames"]) == (["a.mp4", "b.mp4"], 6)
    assert plan["profiles"][0]["bytes_per_frame"] == 5 * 192 * 2
    assert plan["hours"] > 0
    assert not cache.exists()


def test_a_bad_video_is_recorded_and_the_run_goes_on(clips, tmp_path):
    (clips / "empty.mp4").touch()
    cache = tmp_path / "c.zarr"
    result = run("extract", clips, "--cache", cache, *BACKBONE)
    assert result.exit_code == 3
    assert "failed: empty.mp4" in result.stdout
    failures = json.loads(run("cache", "ls", cache, "--failures", "--json").stdout)["failures"]
    assert [(f["id"], f["stage"]) for f in failures] == [("empty.mp4", "open")]


def test_another_fingerprint_is_refused_field_by_field(clips, tmp_path):
    cache = tmp_path / "c.zarr"
    run("extract", clips, "--cache", cache, *BACKBONE, "--limit", "1")
    result = run("extract", clips, "--cache", cache, *BACKBONE, "--fps", "2")
    refused(result, 1, "sampling.fps", "1.0", "2.0", "--cache")


def test_a_newer_format_is_refused_by_name(tmp_path):
    cache = tmp_path / "c.zarr"
    create_cache(cache, make_spec())
    about = json.loads((cache / "zarr.json").read_text())
    about["attributes"]["vis4mer"]["format"] = 2
    (cache / "zarr.json").write_text(json.dumps(about))
    refused(run("cache", "info", cache), 1, "format 2", "upgrade")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("path,label\na.mp4,x\n", ("split", "missing", "line 1")),
        ("path,label,split\na.mp4,x,holdout\n", ("holdout", "train", "line 2")),
    ],
)
def test_a_bad_label_file_is_one_line(clips, tmp_path, table, words):
    labels = clips / "labels.csv"
    labels.write_text(table)
    refused(run("extract", labels, "--cache", tmp_path / "c.zarr", *BACKBONE), 2, *words)


def test_wrong_requests_are_one_line(clips, tmp_path):
    cache = tmp_path / "c.zarr"
    refused(run("extract", "--cache", cache), 2, "no videos named")
    refused(run("extract", tmp_path / "no.mp4", "--cache", cache, *BACKBONE), 2, "no.mp4")
    unknown = run(
        "extract", clips, "--cache", cache, "--backbone", "vit_tinny", "--weights", "random:0"
    )
    refused(unknown, 2, "vit_tinny", "did you mean")
    refused(run("cache", "info", tmp_path / "none.zarr"), 2, "none.zarr")
    refused(run("cache", "inform", cache), 2, "inform")
    refused(run("extract", clips, "--cache", cache, *BACKBONE, "--grids", "x"), 2, "--grids")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"no weights")
    wrong = run("extract", clips, "--cache", cache, BACKBONE[0], BACKBONE[1], "--weights", weights)
    assert wrong.exit_code in (1, 2)
    assert "w.safetensors" in wrong.stderr
    assert not cache.exists()


def test_label_then_train_resume_evaluate(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6, signal=2.0)
    labels = tmp_path / "mine.csv"
    rows = [f"v{i},{'ab'[i % 2]},{('train', 'val', 'test')[i // 2 % 3]}" for i in range(16)]
    labels.write_text("id,label,split\n" + "\n".join([*rows, "gone,a,test"]) + "\n")
    labelled = run("label", cache.path, "--dataset", labels)
    assert labelled.exit_code == 0, labelled.output
    assert "17 rows, 2 classes" in labelled.stdout
    assert "gone" in labelled.stdout

    command = ["train-decoder", "--cache", cache.path, "--task", "mine/label"]
    command += ["--run", tmp_path / "run", "--decoder", "mean", "--epochs", "2", "--window", "6"]
    trained = run(*command, "--json")
    assert trained.exit_code == 0, trained.output
    result = json.loads(trained.stdout)
    selected = result["by_weights"][result["selected"]]
    assert selected["test"]["coverage"]["missing"] == ["gone"]
    again = run(*command, "--json")  # the same command goes on, or finds the run finished
    assert json.loads(again.stdout) == result
    refused(run(*command, "--epochs", "3"), 2, "epochs: run 2, asked 3")
    resumed = run("train-decoder", "--cache", cache.path, "--run", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output

    judged = run("evaluate", "--run", tmp_path / "run", "--cache", cache.path, "--json")
    assert json.loads(judged.stdout)["correct"] == selected["test"]["correct"]
    shown = run("evaluate", "--run", tmp_path / "run", "--cache", cache.path)
    assert "most frequent class" in shown.stdout
    strict = run("evaluate", "--run", tmp_path / "run", "--cache", cache.path, "--strict")
    refused(strict, 1, "gone", "--strict")


def test_labels_that_match_nothing_are_refused_and_not_saved(tmp_path):
    cache = make_cache(tmp_path)
    labels = tmp_path / "mine.csv"
    labels.write_text("id,label,split\nvideos/v0,a,train\nvideos/v1,b,test\n")
    refused(run("label", cache.path, "--dataset", labels), 2, "videos/v0", "'v0'", "--videos")
    assert cache.tasks() == ["toy/label"]


def test_another_backbone_is_refused_before_its_weights_are_fetched(clips, tmp_path):
    cache = tmp_path / "c.zarr"
    run("extract", clips, "--cache", cache, *BACKBONE, "--limit", "1")
    result = run("extract", clips, "--cache", cache, "--backbone", "vit_small_patch16_224")
    refused(result, 1, "vit_tiny_patch16_224", "vit_small_patch16_224")


def test_resume_needs_a_run_and_training_a_task(tmp_path):
    cache = make_cache(tmp_path)
    command = ("train-decoder", "--cache", cache.path, "--run", tmp_path / "r")
    refused(run(*command, "--resume"), 2, "--resume")
    refused(run(*command), 2, "--task", "toy/label")
    assert not (tmp_path / "r").exists()


def test_runs_that_cannot_be_used_are_one_line(tmp_path):
    cache = make_cache(tmp_path)
    (tmp_path / "empty").mkdir()
    refused(run("evaluate", "--run", tmp_path / "empty", "--cache", cache.path), 1, "config.json")
    refused(run("predict", "x.mp4", "--run", tmp_path / "none"), 2, "no such directory")
    task = run("train-decoder", "--cache", cache.path, "--task", "a/b", "--run", tmp_path / "r")
    refused(task, 2, "a/b", "toy/label")
    option = run(
        *("train-decoder", "--cache", cache.path, "--task", "toy/label", "--run", tmp_path / "r"),
        *("--set", "optimizer.speed=1"),
    )
    refused(option, 2, "optimizer.speed")


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=4)
    command = ["train-decoder", "--cache", cache.path, "--task", "toy/label", "--decoder", "mean"]
    run(*command, "--run", tmp_path / "run", "--epochs", "1", "--window", "4")
    for checkpoint in (tmp_path / "run").glob("*.safetensors"):
        checkpoint.unlink()
    result = run("evaluate", "--run", tmp_path / "run", "--cache", cache.path)
    refused(result, 1, "safetensors", "--resume")


def test_memory_that_torch_does_not_get_is_one_line_and_no_bug(tmp_path, monkeypatch):
    from vis4mer.decode.training import job

    def too_large(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\n 824 GB")

    monkeypatch.setattr(job, "build_decoder", too_large)
    cache = make_cache(tmp_path)
    result = run("train-decoder", "--cache", cache.path, "--task", "toy/label", "--run", tmp_path)
    refused(result, 1, "can't allocate memory", "824 GB")
    assert "this is a bug" not in result.output


def test_a_full_disk_is_one_line_and_loses_nothing(clips, tmp_path, monkeypatch):
    import errno

    from vis4mer.store import writer

    cache = tmp_path / "c.zarr"
    assert run("extract", clips, "--cache", cache, *BACKBONE, "--limit", "1").exit_code == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.ShardWriter, "append", full)
    refused(run("extract", clips, "--cache", cache, *BACKBONE), 1, "disk is full", "c.zarr")
    monkeypatch.undo()
    assert run("cache", "verify", cache, "--full").exit_code == 0
    assert (
        json.loads(run("extract", clips, "--cache", cache, *BACKBONE, "--json").stdout)["extracted"]
        == 1
    )


def test_debug_shows_the_traceback(tmp_path):
    result = run("cache", "info", tmp_path / "none.zarr", "--debug")
    assert result.exception is not None
    assert "none.zarr" in str(result.exception)


def test_markup_and_control_characters_in_ids_are_shown_not_obeyed(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    write_tokens(cache, "[red]x[/red]\x1b[2J.mp4", np.zeros((1, 4, 16), "float16"))
    listed = run("cache", "ls", cache.path).stdout
    assert "[red]x[/red]\\x1b[2J.mp4" in listed
    assert "\x1b" not in listed


def test_a_long_duration_is_not_rounded(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    write_tokens(cache, "long.mp4", np.zeros((1234, 4, 16), "float16"))
    assert "1234.00" in run("cache", "ls", cache.path).stdout


def test_decoders_lists_every_decoder_with_its_options():
    listed = json.loads(run("decoders", "--json").stdout)["decoders"]
    by_name = {about["name"]: about for about in listed}
    assert {"vis4mer", "mean"} <= by_name.keys()
    assert "variant" in [option["name"] for option in by_name["vis4mer"]["options"]]
    assert "variant" in run("decoders", "--tokens", "8x2x2", "--dim", "32").stdout


def test_spec_fields_that_are_not_identity_do_not_refuse(tmp_path):
    create_cache(tmp_path / "c.zarr", make_spec())
    again = create_cache(tmp_path / "c.zarr", replace(make_spec(), weights="file"))
    assert again.spec.fingerprint == make_spec().fingerprint
