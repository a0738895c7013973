"""The round trip of docs/sharing.md: extracted and pushed here, a part pulled and trained away, the
run brought back and used beside the videos."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import media
import numpy as np
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import open_cache

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sharing.md"


def run(*arguments: object):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def said(*arguments: object):
    return json.loads(run(*arguments, "--json").stdout)


@pytest.mark.timeout(120)
def test_the_round_trip(tmp_path: Path) -> None:
    home, shelf, away = tmp_path / "home", tmp_path / "shelf", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    rows = ["path,label,split"]
    for i in range(6):
        clip = media.write_clip(home / f"clip{i}.mp4", num_frames=24, rate=4, gop=6 + i)
        split = "train" if i < 4 else "val" if i < 5 else "test"
        rows.append(f"{clip.path.name},{'even' if i % 2 else 'odd'},{split}")
    (home / "mine.csv").write_text("\n".join(rows) + "\n")
    run(
        *("extract", home / "mine.csv", "--cache", home / "c.zarr"),
        *("--backbone", "vit_tiny_patch16_224@64", "--weights", "random:3", "--grids", "2"),
    )
    run("cache", "push", home / "c.zarr", shelf, "--pack")
    pulled = said("cache", "pull", shelf, away / "c.zarr", "--views", "grid2")
    assert len(pulled["copied"]) == 6
    part, whole = open_cache(away / "c.zarr"), open_cache(home / "c.zarr")
    assert part.spec.arrays == ("grid2",)
    assert sum(part.record(i).num_bytes for i in part.ids()) < 0.5 * sum(
        whole.record(i).num_bytes for i in whole.ids()
    )
    ours, theirs = (said("cache", "digest", f / "c.zarr")["arrays"] for f in (home, away))
    assert theirs == {"grid2": ours["grid2"]}
    run(
        *("train-decoder", "--cache", away / "c.zarr", "--task", "mine/label"),
        *("--run", away / "run", "--window", 4, "--epochs", 1, "--tokens", "4x2x2"),
        *("--set", "final_stride_seconds=4"),
    )
    shutil.move(away / "run", home / "run")
    shutil.rmtree(away)
    judged = said("evaluate", "--run", home / "run", "--cache", home / "c.zarr")
    expected = {p[0]: p[2] for p in judged["predictions"]}
    predicted = said("predict", home / "clip5.mp4", "--run", home / "run")
    (entry,) = predicted["predictions"]
    np.testing.assert_allclose(entry["output"], expected["clip5.mp4"], atol=1e-3)


def test_the_page_says_commands_that_are_there() -> None:
    """Each line of its examples is taken by the command line, as far as its options go."""
    text = PAGE.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("   #")[0] for block in blocks for line in block.splitlines()]
    commands = [line.split() for line in lines if line.startswith("vis4mer ")]
    assert len(commands) > 8
    for _, *words in commands:
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        names = [word for word in words[:2] if re.fullmatch(r"[a-z-]+", word)]
        names = names[:2] if names[0] == "cache" else names[:1]
        known = run(*names, "--help").stdout
        assert not {option for option in options if option not in known}, words
