"""Several tasks and seeds under one folder: where they are, what they add up to, what is shown."""

import json
import math

import pytest
from caches import make_cache
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.config import TrainConfig, load_config
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoders
from vis4mer.decode.training.many import over_seeds, parse_seeds, plan_training
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskTable


def cache_of_two(folder):
    """toy/label, and toy/value: a regression without a test split."""
    cache = make_cache(folder, num_videos=16, frames=6)
    rows = tuple(row for row in cache.task("toy/label").rows if row.split != "test")
    cache.save_task(TaskTable(dataset="toy", task="value", kind="regression", rows=rows))
    return cache


SETTINGS = ("--window", 4, "--epochs", 2, "--decoder", "mean", "--device", "cpu", "--lr", 0.2)


def command(cache, folder, *arguments):
    given = ["train-decoder", "--cache", cache.path, "--run", folder, *arguments]
    return CliRunner().invoke(app, [str(a) for a in given])


@pytest.mark.parametrize(
    ("text", "expected"), [("3", (0, 1, 2)), ("1", (0,)), ("0,3,7", (0, 3, 7)), ("5, 2", (5, 2))]
)
def test_seeds_are_a_number_or_a_list(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,", "1.5", "1,1", "²"])
def test_other_seeds_are_refused(text):
    with pytest.raises(UsageError, match=r"--seeds .*: "):
        parse_seeds(text)


def test_one_task_and_no_seeds_is_a_run_by_itself(tmp_path):
    config = TrainConfig(task="a/b", seed=3)
    plan = plan_training(tmp_path, lambda _: config, tasks=["a/b"])
    assert (plan.jobs, plan.several) == (((config, tmp_path),), False)
    plan = plan_training(tmp_path, lambda _: config, tasks=["a/b", "a/c"])
    assert [(c.task, c.seed, p) for c, p in plan.jobs] == [
        ("a/b", 3, tmp_path / "a-b" / "seed3"),
        ("a/c", 3, tmp_path / "a-c" / "seed3"),
    ]
    plan = plan_training(tmp_path, lambda _: config, seeds="2")  # the task is the config's own
    assert [p for _, p in plan.jobs] == [tmp_path / "a-b" / "seed0", tmp_path / "a-b" / "seed1"]


def test_figures_over_seeds(tmp_path):
    cache = cache_of_two(tmp_path)
    config = load_config(
        flags={
            "task": "toy/label",
            "window_seconds": 4,
            "epochs": 3,
            "decoder.name": "mean",
            "optimizer.lr": 0.2,
            "device": "cpu",
        }
    )
    plan = plan_training(
        tmp_path / "runs", lambda _: config, tasks=["toy/label", "toy/value"], seeds="3"
    )
    outcomes = train_decoders(cache, plan.jobs)
    rows = over_seeds(outcomes)
    assert [(r.task, r.split, r.weights) for r in rows] == [
        ("toy/label", "test", "best"),
        ("toy/label", "test", "last"),
        ("toy/value", "val", "best"),
        ("toy/value", "val", "last"),
    ]
    for row in rows:
        judged = [
            getattr(o.result.by_weights[row.weights], row.split)
            for o in outcomes
            if o.task == row.task
        ]
        scores = [j.accuracy if j.kind == "classification" else j.mse for j in judged]
        mean = sum(scores) / 3
        assert row.mean == pytest.approx(mean)
        assert row.std == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / 2))
        assert row.seeds == (0, 1, 2)
        if row.correct is not None:
            assert [k / n for k, n in zip(row.correct, row.totals, strict=True)] == scores
    assert over_seeds(outcomes[:1])[0].std is None


def test_the_command_trains_several_shows_them_and_goes_on(tmp_path):
    cache = cache_of_two(tmp_path)
    folder = tmp_path / "runs"
    both = ("--task", "toy/label,toy/value", "--seeds", "0,2", *SETTINGS)
    result = command(cache, folder, *both)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:4] == ["task", "split", "weights", "score"]
    assert [line[0] for line in lines[1:5]] == ["toy/label"] * 2 + ["toy/value"] * 2
    assert "±" in result.stdout
    assert [p.name for p in sorted(folder.glob("*/*"))] == ["seed0", "seed2"] * 2
    (folder / "toy-value" / "seed2" / "results.json").unlink()
    again = command(cache, folder, "--resume", "--json")
    assert again.exit_code == 0, again.output
    data = json.loads(again.stdout)
    assert [(r["task"], r["seed"]) for r in data["runs"]] == [
        ("toy/label", 0),
        ("toy/label", 2),
        ("toy/value", 0),
        ("toy/value", 2),
    ]
    assert {row["weights"] for row in data["tasks"]} == {"best", "last"}
    assert open_run(folder / "toy-value" / "seed2").results() is not None


def test_what_cannot_be_asked_for_is_one_line(tmp_path):
    cache = cache_of_two(tmp_path)
    one = tmp_path / "one"
    assert command(cache, one, "--task", "toy/label", *SETTINGS).exit_code == 0
    for arguments, words in (
        (("--task", "toy/label", "--seeds", "2"), "is a run by itself"),
        (("--task", "toy/label", "--seeds", "2", "--seed", "1"), "give one of them"),
        (("--task", "toy/label,", "--seeds", "2"), "is a run by itself"),
    ):
        refused = command(cache, one, *arguments, *SETTINGS)
        assert refused.exit_code == 2
        assert words in refused.stderr
    for arguments, words in (
        (("--resume",), "holds no run; leave --resume out"),
        (("--task", "toy/label,toy/gone"), "no task 'toy/gone'; it has toy/label, toy/value"),
        (("--task", "toy/label,"), "task"),
        (("--task", "toy/label,toy/label"), "two runs of a pass cannot share a directory"),
        (("--task", "toy/label", "--seeds", "2", "--set", "blocks=0"), "blocks is 0"),
    ):
        refused = command(cache, tmp_path / "new", *arguments, *SETTINGS)
        assert refused.exit_code == 2, (arguments, refused.output)
        assert words in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("wild", "exit_code"), [((1,), 3), ((0, 1), 1)])
def test_a_run_that_fails_is_said_by_exit_code_and_line(tmp_path, monkeypatch, wild, exit_code):
    from vis4mer.decode.training.learner import DivergedError, Learner

    step = Learner.step

    def diverging(learner, batch):
        if learner._config.seed in wild:
            raise DivergedError("training diverged at step 1")
        step(learner, batch)

    monkeypatch.setattr(Learner, "step", diverging)
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    result = command(cache, tmp_path / "runs", "--task", "toy/label", "--seeds", "2", *SETTINGS)
    assert result.exit_code == exit_code, result.output
    assert f"toy/label, seed {wild[0]}: training diverged at step 1" in result.stderr
    assert ("1 run," in result.stdout) == (exit_code == 3)
