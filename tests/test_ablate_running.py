"""Sweeps that are trained: resumed, shared, on several devices, with failing runs, and shown."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from caches import make_cache
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.commands.ablate import _sigterm_interrupts
from vis4mer.decode.ablate import devices as on_devices
from vis4mer.decode.ablate.figures import draw_figures, figure_axes, lines_of
from vis4mer.decode.ablate.plan import DataChangedError, plan_sweep
from vis4mer.decode.ablate.rows import SweepRow, over_seeds
from vis4mer.decode.ablate.running import run_sweep
from vis4mer.decode.ablate.sweep import Axis, Sweep
from vis4mer.decode.ablate.table import settings_csv
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.learner import Learner
from vis4mer.store.cache import open_cache
from vis4mer.store.tasks import TaskRow

BASE = {"task": "toy/label", "epochs": 2, "window_seconds": 4.0, "device": "cpu"}


def start(cache, folder, *axes, base=None, devices=("cpu",), measure=lambda _: 1000, **more):
    """Plan and run one; the plan and the result."""
    known = {k: more.pop(k) for k in ("runs", "seeds") if k in more}
    parsed = tuple(Axis.parse(text) for text in axes)
    sweep = Sweep(base={"decoder.name": "mean", **BASE, **(base or {})}, axes=parsed, **known)
    points, caches = sweep.points(["tokens"]), {"tokens": cache}
    plan = plan_sweep(points, caches, folder)
    return plan, run_sweep(plan, points, caches, folder, devices=devices, measure=measure, **more)


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


# Training ---------------------------------------------------------------------------------------


def test_every_point_is_an_ordinary_run_and_a_row(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6, signal=1.0)
    folder = tmp_path / "sweep"
    plan, result = start(cache, folder, "tokens=4x2x2,4xcls", seeds=(0, 1))
    assert len(plan.passes) == 2
    assert not result.failed
    alone = train_decoder(cache, plan.runs[0].config, tmp_path / "alone")
    name = "tokens-4x2x2_seed-0"
    for file in ("last.safetensors", "config.json"):
        assert (folder / name / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    first = lines(folder)[0]
    assert first == result.rows[0].to_json()
    assert first["run"] == name
    assert first["settings"] == {"tokens": "4x2x2"}
    assert (first["split"], first["total"], first["correct"]) == ("test", 4, alone.test.correct)
    assert first["score"] == alone.test.accuracy
    assert (first["num_tokens"], first["num_parameters"]) == (16, 34)
    assert first["memory_bytes"] == 1000
    assert [s.first.settings["tokens"] for s in result.settings] == ["4x2x2", "4xcls"]


def test_a_pass_reads_once_for_all_its_runs_and_the_plan_knows_how_much(tmp_path):
    """Videos as long as a window: of 16, all runs train on the same 8, and judge the same 4 + 4."""
    cache = make_cache(tmp_path, num_videos=16, frames=4)
    frames = 2 * (8 + 4) * 4 + (4 + 4) * 4  # two epochs with validation, then both splits
    for seeds in ((0,), (0, 1, 2, 3, 4)):
        plan, result = start(
            cache,
            tmp_path / str(len(seeds)),
            "decoder.name=mean,cls-mean",
            seeds=seeds,
            base={"tokens": "4x2x2+cls"},
        )
        [one] = plan.passes
        assert len(one.runs) == 2 * len(seeds)
        assert sum(row.bytes_read for row in result.rows) == frames * 5 * 16 * 2
        assert one.bytes_to_read() == frames * 5 * 16 * 2


def test_finished_runs_are_kept_and_torn_rows_written_anew(tmp_path, monkeypatch):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    folder = tmp_path / "sweep"
    start(cache, folder, "tokens=4x2x2,4xcls")
    rows = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(rows[: len(rows) // 2])
    monkeypatch.setattr(Learner, "step", lambda *_: pytest.fail("nothing is left to learn"))
    plan, result = start(cache, folder, "tokens=4x2x2,4xcls", measure=None)
    assert not plan.passes
    assert all(run.finished for run in plan.runs)
    assert (folder / "results.jsonl").read_bytes() == rows
    assert len(result.rows) == 2


KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_ablate_running import start
from vis4mer.store.cache import open_cache

def on_text(progress):
    if progress.text.startswith("pass 2/2 of 2 runs, epoch 2/2 training"):
        os.kill(os.getpid(), signal.SIGKILL)

start(open_cache(sys.argv[2]), Path(sys.argv[3]), "tokens=4x2x2,4xcls", seeds=(0, 1),
      on_text=on_text)
"""


def test_a_sweep_killed_with_kill_9_goes_on_and_ends_the_same(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, os.path.dirname(__file__), cache.path, killed]  # noqa: PTH120
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [row["run"] for row in lines(killed)] == ["tokens-4x2x2_seed-0", "tokens-4x2x2_seed-1"]
    for folder in (whole, killed):
        plan, result = start(cache, folder, "tokens=4x2x2,4xcls", seeds=(0, 1))
        assert len(result.rows) == 4
    assert [(len(p.runs), p.runs[0].epochs) for p in plan.passes] == [(2, 1)]
    for row in lines(whole):
        name = row["run"]
        both = [(folder / name / "last.safetensors").read_bytes() for folder in (whole, killed)]
        assert both[0] == both[1]
    assert [row["score"] for row in lines(whole)] == [row["score"] for row in lines(killed)]


def test_what_was_learned_from_other_labels_is_not_mixed_in(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    start(cache, tmp_path / "sweep", "tokens=4x2x2,4xcls")
    table = cache.task("toy/label")
    rows = (*table.rows[1:], TaskRow(id="v0", split="train", label=1))
    cache.save_task(replace(table, rows=rows))
    with pytest.raises(DataChangedError, match="labels of toy/label changed"):
        start(open_cache(cache.path), tmp_path / "sweep", "tokens=4x2x2,4xcls")


def test_a_run_that_breaks_its_pass_fails_alone(tmp_path, monkeypatch):
    step = Learner.step

    def breaking(learner, batch):
        if learner._config.seed == 1:
            raise RuntimeError("can't allocate memory:\n you tried to allocate 41 GB")
        step(learner, batch)

    monkeypatch.setattr(Learner, "step", breaking)
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    folder = tmp_path / "sweep"
    runs = ({"decoder.depth": 1}, *({"seed": seed} for seed in (0, 1, 2)))
    plan, result = start(cache, folder, runs=runs)
    assert list(plan.refused) == ["depth-1"]  # `mean` has no depth
    assert [row.seed for row in result.rows] == [0, 2]
    assert list(result.failed) == ["depth-1", "seed-1"]
    assert result.failed["seed-1"] == (
        "RuntimeError: can't allocate memory: you tried to allocate 41 GB"
    )
    assert [row["run"] for row in lines(folder)] == ["seed-0", "seed-2"]


# Several devices --------------------------------------------------------------------------------


def test_devices_side_by_side_and_processes_that_die(tmp_path, monkeypatch):
    """The first pass dies while its runs are together; the second, a run by itself, always."""

    class Doomed(on_devices._Worker):
        def give(self, task):
            assert task.to_json("cpu")["processes"] == 2
            if len(task.jobs) > 1 or task.place[0] == 2:
                self._process.kill()
                self._process.wait()
            super().give(task)

    monkeypatch.setattr(on_devices, "_Worker", Doomed)
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    folder, told = tmp_path / "sweep", []
    runs = (*({"tokens": "4x2x2", "seed": s} for s in (0, 1)), {"tokens": "4xcls"})
    plan, result = start(
        cache, folder, runs=runs, devices=("cpu", "cpu"), on_row=lambda row: told.append(row.run)
    )
    assert [len(p.runs) for p in plan.passes] == [2, 1]
    assert [row.run for row in result.rows] == ["tokens-4x2x2_seed-0", "tokens-4x2x2_seed-1"]
    assert sorted(told) == [row.run for row in result.rows]
    assert result.failed == {
        "tokens-4xcls": "its process was killed, as a system does when memory ends"
    }
    train_decoder(cache, plan.runs[0].config, tmp_path / "alone")
    both = [f / "last.safetensors" for f in (tmp_path / "alone", folder / "tokens-4x2x2_seed-0")]
    assert both[0].read_bytes() == both[1].read_bytes()


def test_a_device_process_ends_with_its_parent():
    command = [sys.executable, "-P", "-m", "vis4mer.decode.ablate.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.close()  # as when the parent is killed
        assert process.wait(timeout=120) == 0


def test_sigterm_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), _sigterm_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# What is shown ----------------------------------------------------------------------------------


def row(score, *, seed=0, kind="classification", memory=None, num_tokens=60, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return SweepRow(
        run="run",
        settings=named,
        task="lvu/scene",
        seed=seed,
        kind=kind,
        split="test",
        score=score,
        correct=None,
        total=10,
        floor=0.25,
        epoch=1,
        decoder="vis4mer",
        tokens="60xcls",
        num_tokens=num_tokens,
        window_seconds=60.0,
        num_parameters=5,
        seconds=2.0,
        bytes_read=10,
        memory_bytes=memory,
    )


def test_settings_are_means_over_seeds_and_nothing_else():
    rows = [
        row(0.5, seed=1, tokens="a"),
        row(0.7, seed=0, tokens="a"),
        row(0.9, tokens="b"),
        row(None, tokens="c"),
    ]
    first, second = over_seeds(rows)
    assert [r.seed for r in first.rows] == [0, 1]
    assert first.figure.mean == pytest.approx(0.6)
    assert first.figure.std == pytest.approx(0.1 * 2**0.5)  # of a sample
    assert (second.figure.mean, second.figure.std) == (0.9, None)


def test_figures_are_of_what_was_swept(tmp_path):
    settings = over_seeds(
        [
            row(
                0.1 * i + 0.01 * seed,
                seed=seed,
                memory=10**9 * i,
                num_tokens=60 * i,
                tokens=f"60x{i}x1",
                decoder__depth=depth,
            )
            for i in (3, 1, 2)
            for depth in (1, 2)
            for seed in (0, 2)
        ]
    )
    tokens, memory, depth = figure_axes(settings)
    assert [a.name for a in (tokens, memory, depth)] == ["tokens", "memory", "decoder.depth"]
    one, two = lines_of(settings, tokens)
    assert [line.name for line in (one, two)] == ["depth 1", "depth 2"]
    assert [dot.x for dot in one.dots] == [60, 120, 180]
    assert [dot.mean for dot in one.dots] == pytest.approx([11, 21, 31])
    assert [dot.std for dot in one.dots] == pytest.approx([2**0.5] * 3)
    assert [dot.x for dot in lines_of(settings, memory)[0].dots] == [1, 2, 3]
    assert [line.name for line in lines_of(settings, depth)] == [
        "tokens 60x3x1",
        "tokens 60x1x1",
        "tokens 60x2x1",
    ]
    written = draw_figures(settings, tmp_path)
    assert sorted(path.name for path in written) == sorted(
        f"accuracy-{name}.{kind}"
        for name in ("tokens", "memory", "decoder.depth")
        for kind in ("png", "svg")
    )
    for path in written:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") if path.suffix == ".png" else b"</svg>" in data


def test_words_are_bars_and_regressions_errors(tmp_path):
    settings = over_seeds(
        [row(i / 2, kind="regression", decoder__name=n) for i, n in enumerate(("a$b$", "c"))]
    )
    assert [p.name for p in draw_figures(settings, tmp_path)] == [
        "mse-settings.png",
        "mse-settings.svg",
    ]
    assert draw_figures(settings[:1], tmp_path / "one") == []


def test_the_table_is_for_programs():
    settings = over_seeds([row(0.5, seed=s, tokens="=1+1", decoder__pooling=True) for s in (0, 1)])
    heading, line = settings_csv(settings).splitlines()
    cells = dict(zip(heading.split(","), line.split(","), strict=True))
    assert (cells["tokens"], cells["decoder.pooling"]) == ("'=1+1", "true")
    assert (cells["mean"], cells["std"], cells["seeds"]) == ("0.5", "0.0", "0;1")
    assert (cells["floor"], cells["memory_bytes"], cells["num_tokens"]) == ("0.25", "", "60")


# The command ------------------------------------------------------------------------------------


def command(cache, folder, *arguments):
    given = ["ablate", "--cache", cache.path, "--run", folder, "--no-memory", *arguments]
    return CliRunner().invoke(app, [str(a) for a in given])


SMALL = ("--epochs", 1, "--device", "cpu", "--set", "window_seconds=4")


def test_the_command_shows_a_table_and_writes_everything(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    folder = tmp_path / "sweep"
    asked = ("--task", "toy/label", "--axis", "decoder.name=mean,cls-mean,nope", "--seeds", 2)
    asked = (*asked, "--set", "tokens=4x2x2+cls", *SMALL)
    planned = command(cache, folder, *asked, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "pass 1: 4 runs of 4x2x2+cls share their reads, about" in planned.stdout
    assert "cannot be run: decoder-nope_seed-0: unknown decoder 'nope'" in planned.stdout
    assert not folder.exists()
    result = command(cache, folder, *asked)
    assert result.exit_code == 3, result.output
    cells = [line.split() for line in result.stdout.splitlines()]
    assert cells[0][:3] == ["decoder", "split", "score"]
    assert [line[0] for line in cells[1:3]] == ["mean", "cls-mean"]
    assert "error: decoder-nope_seed-1: unknown decoder 'nope'" in result.stderr
    for file in ("table.csv", "figures/accuracy-settings.svg", "report/report.html"):
        assert (folder / file).is_file(), file
    again = command(cache, folder, *asked, "--json")
    assert again.exit_code == 3
    data = json.loads(again.stdout)
    assert [setting["seeds"] for setting in data["settings"]] == [[0, 1], [0, 1]]
    assert sorted(data["failed"]) == ["decoder-nope_seed-0", "decoder-nope_seed-1"]
    other = command(cache, folder, *asked[:-2], "--set", "window_seconds=3")
    assert other.exit_code == 2
    assert "holds another sweep" in other.stderr


def test_a_preset_that_the_cache_cannot_serve_is_one_line(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    asked = ("--task", "toy/label", "--preset", "paper-tokens")
    refused = command(cache, tmp_path / "sweep", *asked, "--device", "cpu")
    assert refused.exit_code == 2
    assert (
        "preset paper-tokens, tokens-60x5x5: token view 60x5x5: the cache holds" in refused.stderr
    )
    own = (*asked, "--axis", "tokens=4xcls,4x1x1,4x2x2", "--set", "decoder.name=mean", *SMALL)
    assert command(cache, tmp_path / "sweep", *own).exit_code == 0
    assert len(lines(tmp_path / "sweep")) == 3


def test_what_the_command_refuses(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    folder = tmp_path / "sweep"
    for arguments, words in (
        (("--task", "toy/label"), "nothing is swept"),
        (("--axis", "epochs=1,2"), "task is not set"),
        (("--preset", "paper-mixers", "--config", "x.toml"), "give one of them"),
        (("--config", "x.toml"), "cannot be read"),
        (("--cache", cache.path, "--axis", "epochs=1,2"), "is called tokens too"),
        (("--task", "toy/gone", "--axis", "epochs=1,2"), "no task 'toy/gone'"),
    ):
        refused = command(cache, folder, *arguments, "--device", "cpu")
        assert refused.exit_code == 2, (arguments, refused.output)
        assert words in refused.stderr, (arguments, refused.stderr)
    assert not folder.exists()


def test_a_sweep_is_not_begun_by_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    refused = command(cache, tmp_path / "sweep", "--task", "toy/label", "--axis", "epochs=1,2")
    assert refused.exit_code == 2
    assert "begun 2 times by torchrun; start it once" in refused.stderr


def test_several_tasks_and_caches_are_axes(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    cache.save_task(replace(cache.task("toy/label"), task="again"))
    other = tmp_path / "other.zarr"
    make_cache(tmp_path / "second", num_videos=8, frames=6, dim=8).path.rename(other)
    asked = ("--cache", other, "--task", "toy/label", "--preset", "paper-encoders")
    asked = (*asked, "--set", "decoder.name=mean", "--set", "epochs=1", "--device", "cpu")
    result = command(cache, tmp_path / "encoders", *asked)
    assert result.exit_code == 0, result.output
    assert [r["settings"] for r in lines(tmp_path / "encoders")] == [
        {"cache": "tokens"},
        {"cache": "other"},
    ]
    both = ("--task", "toy/label,toy/again", "--axis", "tokens=4xcls,4x2x2", *SMALL)
    result = command(cache, tmp_path / "tasks", *both, "--set", "decoder.name=mean")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "tasks" / "figures").iterdir()}
    assert {f"toy-{task}-accuracy-tokens.png" for task in ("label", "again")} <= names
