"""Several tasks and seeds under one folder: where they are, what they add up to, what is shown."""

import json
import math
from dataclasses import replace

import pytest
from caches import make_cache
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.config import TrainConfig, load_config
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoders
from vis4mer.decode.training.many import over_seeds, parse_seeds, plan_training
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow, TaskTable


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


def test_a_number_of_seeds_is_not_taken_for_a_seed():
    """2024 would be 2,024 runs, and eleven digits more than memory holds."""
    for text in ("1001", "2024", "99999999999"):
        with pytest.raises(UsageError, match=f"expected 1 to 1000; one seed is --seed {text}"):
            parse_seeds(text)
    assert len(parse_seeds("1000")) == 1000
    assert parse_seeds("2024,7") == (2024, 7)


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,", "1.5", "1,1", "²", "9" * 5000])
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
            "epochs": 1,
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
        assert row.figure.mean == pytest.approx(mean)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / 2)
        assert row.figure.std == pytest.approx(std)
        assert row.seeds == (0, 1, 2)
        if row.correct is not None:
            assert [k / n for k, n in zip(row.correct, row.totals, strict=True)] == scores
    assert over_seeds(outcomes[:1])[0].figure.std is None


def test_the_command_trains_several_shows_them_and_goes_on(tmp_path):
    cache = cache_of_two(tmp_path)
    folder = tmp_path / "runs"
    both = ("--task", "toy/label,toy/value", "--seeds", "0,2", *SETTINGS)
    result = command(cache, folder, *both)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:4] == ["task", "split", "weights", "accuracy"]
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


def test_the_table_says_what_was_judged_and_what_was_unseen(tmp_path):
    """Four test videos of which one is gone and one is of a group that was trained on."""
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    cache = make_cache(tmp_path, num_videos=9, frames=4, splits=splits)
    rows = cache.task("toy/label").rows
    rows = [replace(row, group="g" if row.id in ("v0", "v6") else None) for row in rows]
    rows.append(TaskRow(id="gone", split="test", label=0))
    cache.save_task(replace(cache.task("toy/label"), rows=tuple(rows)))
    result = command(cache, tmp_path / "runs", "--task", "toy/label", "--seeds", 2, *SETTINGS)
    assert result.exit_code == 0, result.output
    heading, first, *_ = result.stdout.splitlines()
    assert first[heading.index("videos") :].startswith("3/4 ")
    assert first[heading.index("unseen") :].startswith("2/3: ")
    assert first[heading.index("weights") :].startswith("best-val ")
    outcomes = train_decoders(cache, plan_training(tmp_path / "runs", loaded, resume=True).jobs)
    (row, _) = over_seeds(outcomes)
    assert (row.totals, row.listed, row.num_unseen) == ((3, 3), 4, 2)
    right = [
        sum(p.predicted_class == p.label for p in o.result.test.predictions if p.id != "v6")
        for o in outcomes
    ]
    assert row.unseen.values == tuple(k / 2 for k in right)


def loaded(run):
    return open_run(run).about.train


def test_each_epoch_is_said_in_the_words_of_its_task(tmp_path):
    cache = cache_of_two(tmp_path)
    for task, said in (("toy/label", "val accuracy"), ("toy/value", "val MSE")):
        result = command(cache, tmp_path / task, "--task", task, *SETTINGS)
        assert f"  {said} " in result.stderr, result.output
        assert "score" not in result.output


def test_memory_that_runs_share_is_asked_for_by_name(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6, dim=1024)
    two = ("--task", "toy/label", "--seeds", "2", *SETTINGS)
    small = command(cache, tmp_path / "small", *two, "--share-memory", "0.001")
    assert small.exit_code == 0, small.output
    (first, _) = sorted((tmp_path / "small").glob("*/seed*"))
    # 8 videos of at most 6 frames of 4 tokens of width 1024 in float16, held three times
    assert open_run(first).about.train.blocks == -(-3 * 8 * 6 * 4 * 1024 * 2 // 10**6)
    fits = command(cache, tmp_path / "fits", *two)
    assert open_run(tmp_path / "fits" / "toy-label" / "seed0").about.train.blocks == 1
    assert fits.exit_code == 0
    more = (*two[:3], "0,1,2,3", *SETTINGS, "--share-memory", "0.001")
    refused = command(cache, tmp_path / "fits", *more)
    assert refused.exit_code == 2
    assert "these 2 runs need 2 to share their reads in 0.001 GB" in refused.stderr
    assert "--share-memory 0.1" in refused.stderr


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


def test_runs_that_were_planned_and_never_begun_are_not_forgotten(tmp_path):
    begun = tmp_path / "a-b" / "seed0"
    for name in ("seed0", "seed1", "seed2"):
        (tmp_path / "a-b" / name).mkdir(parents=True)
        (tmp_path / "a-b" / name / "run.lock").touch()
    (begun / "config.json").touch()
    config = TrainConfig(task="a/b")
    with pytest.raises(UsageError, match=r"2 runs planned and never begun \(first a-b/seed1\)"):
        plan_training(tmp_path, lambda _: config, resume=True)
    for name in ("seed1", "seed2"):
        (tmp_path / "a-b" / name / "run.lock").unlink()
    assert plan_training(tmp_path, lambda _: config, resume=True).jobs == ((config, begun),)
