"""extract → train → evaluate → predict → predict --stream on generated clips, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import media
import numpy as np
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app

SECONDS = 12
WINDOW = 4


def run(*arguments: object):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Twelve clips in two classes, extracted, with a causal decoder of each variant trained."""
    folder = tmp_path_factory.mktemp("end-to-end")
    rows = ["path,label,split"]
    for i in range(12):
        clip = media.write_clip(
            folder / f"clip{i}.mp4", num_frames=SECONDS * 4 + i % 3, rate=4, gop=6 + i
        )
        rows.append(f"{clip.path.name},{'even' if i % 2 else 'odd'},{_split(i)}")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    run(
        *("extract", folder / "mine.csv", "--cache", folder / "c.zarr"),
        *("--backbone", "vit_tiny_patch16_224@64", "--weights", "random:3", "--grids", "2"),
    )
    for variant, tokens in (("paper", "4x4x4"), ("official", "4x4x4+cls")):
        run(
            *("train-decoder", "--cache", folder / "c.zarr", "--task", "mine/label"),
            *("--run", folder / variant, "--window", WINDOW, "--epochs", 2, "--tokens", tokens),
            *("--set", f"decoder.variant={variant}", "--set", "final_stride_seconds=4"),
        )
    return folder


def _split(i: int) -> str:
    return "train" if i < 8 else "val" if i < 10 else "test"


def test_evaluation_counts_videos(workspace):
    result = json.loads(
        run(
            "evaluate", "--run", workspace / "paper", "--cache", workspace / "c.zarr", "--json"
        ).stdout
    )
    assert result["total"] == 2
    assert result["num_windows"] == 2 * SECONDS // WINDOW
    assert result["coverage"] == {"total": 2, "missing": [], "empty": [], "short": []}


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_predict_agrees_with_the_cache_it_was_judged_on(workspace, variant):
    judged = json.loads(
        run(
            "evaluate", "--run", workspace / variant, "--cache", workspace / "c.zarr", "--json"
        ).stdout
    )
    expected = {p[0]: p[2] for p in judged["predictions"]}
    video = workspace / "clip11.mp4"
    predicted = json.loads(run("predict", video, "--run", workspace / variant, "--json").stdout)
    (entry,) = predicted["predictions"]
    assert entry["id"] == "clip11.mp4"
    np.testing.assert_allclose(entry["output"], expected["clip11.mp4"], atol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_stream_equals_predict_at_every_reset(workspace, variant):
    video = workspace / "clip10.mp4"
    whole = json.loads(run("predict", video, "--run", workspace / variant, "--json").stdout)
    windows = [w["output"] for w in whole["predictions"][0]["windows"]]
    lines = run("predict", video, "--run", workspace / variant, "--stream", "--json").stdout
    streamed = [json.loads(line) for line in lines.splitlines()]
    at_resets = [frame["output"] for frame in streamed if frame["complete"]]
    assert len(at_resets) == len(windows) == SECONDS // WINDOW
    np.testing.assert_allclose(at_resets, windows, atol=1e-4)


def test_a_video_that_cannot_be_read_leaves_the_others(workspace, tmp_path):
    (tmp_path / "bad.mp4").write_text("text")
    command = [
        "predict",
        workspace / "clip0.mp4",
        tmp_path / "bad.mp4",
        "--run",
        workspace / "paper",
    ]
    result = CliRunner().invoke(app, [str(a) for a in command])
    assert result.exit_code == 3
    assert "clip0.mp4" in result.stdout
    assert "bad.mp4" in result.stderr


def test_the_run_directory_says_everything(workspace):
    names = {path.name for path in (workspace / "paper").iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "curve.png"} <= names
    config = json.loads((workspace / "paper" / "config.json").read_text())
    assert config["spec"]["backbone"].startswith("vit_tiny_patch16_224")
    assert config["train"]["tokens"] == "4x4x4"
    assert config["classes"] == ["even", "odd"]
