"""Lanes in training and judging, against windows that are run one after another by hand."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from killing import in_child
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.ablate.memory import memory_request
from vis4mer.decode.ablate.plan import plan_sweep
from vis4mer.decode.ablate.sweep import Point
from vis4mer.decode.config import load_config
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.data.lanes import lane_steps
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import WindowPlan, split_samples
from vis4mer.decode.device import Compute
from vis4mer.decode.judging.evaluate import evaluate_run
from vis4mer.decode.judging.judge import Candidate, judge_all
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.judging.stream import StreamPredictor
from vis4mer.decode.runs.checkpoints import read_checkpoint
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.runs.runlog import OF_THE_CLOCK
from vis4mer.decode.train import train_decoder, train_decoders
from vis4mer.decode.training.job import prepare_job
from vis4mer.decode.training.learner import Learner, training_loss
from vis4mer.decode.training.optim import build_optimizer
from vis4mer.render.ablate import print_plan
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import CacheFormatError, UsageError
from vis4mer.store.files import seal, unseal
from vis4mer.store.spec import Sampling
from vis4mer.store.tasks import TaskRow, TaskTable

CPU = Compute.of(device="cpu", precision="float32")
WINDOW = 6  # frames, no multiple of the chunk
SMALL = {"width": 8, "heads": 2, "chunk_frames": 4, "depth": 1, "dropout": 0}
LENGTHS = [6, 13, 25, 1, 12, 18, 7, 30]  # of the training videos; 1 to 5 windows
SPLITS = ["train"] * len(LENGTHS) + ["val", "val", "test", "test"]


def config(**flags):
    """A tiny run of lanes; dotted names with two underscores for the dot."""
    defaults = {
        "task": "toy/label",
        "lanes": True,
        "epochs": 3,
        "window_seconds": WINDOW,
        "validation_stride_seconds": WINDOW,
        "final_stride_seconds": WINDOW,
        "batch_size": 3,
        "device": "cpu",
        "optimizer.lr": 0.01,
    }
    flags = {k.replace("__", "."): v for k, v in flags.items()}
    if flags.setdefault("decoder.name", "memory") == "memory":
        defaults |= {f"decoder.{name}": value for name, value in SMALL.items()}
    return load_config(flags=defaults | flags)


def videos(tmp_path, **options):
    """Videos of unequal lengths in all splits."""
    frames = [*LENGTHS, 13, 30, 25, 6]
    return make_cache(tmp_path, num_videos=len(frames), frames=frames, splits=SPLITS, **options)


def trained(tmp_path, name="run", **flags):
    cache = videos(tmp_path)
    train_decoder(cache, config(**flags), tmp_path / name)
    return cache, open_run(tmp_path / name)


def loader_of(cache, *, kind, batch_size=3, dtype=torch.float32):
    plan = WindowPlan.of(cache.spec, tokens="2x2", window_seconds=WINDOW)
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    loader = TrainLoader(
        cache,
        samples,
        plan,
        kind=kind,
        batch_size=batch_size,
        windows_per_video=1,
        seed=0,
        workers=2,
        device=torch.device("cpu"),
        dtype=dtype,
        lanes=True,
    )
    return loader, samples, plan


def tokens_of(cache, entry_id):
    """(T, h, w, D), read plainly."""
    patch = cache.read(entry_id, "patch").astype(np.float64)
    return patch.reshape(len(patch), *cache.spec.grid, -1)


def one_window(patch, dtype=torch.float32):
    """A batch of one window of these frames."""
    num_frames = len(patch)
    return TokenBatch(
        patch=torch.from_numpy(patch)[None].to(dtype),
        prefix=None,
        mask=torch.ones(1, num_frames, dtype=torch.bool),
        pts_seconds=torch.arange(num_frames, dtype=torch.float64)[None],
    )


def walked(model, patch, *, start=0):
    """By hand: logits of whole windows one after another from a frame on, memory carried."""
    state, outputs = model.start_memory(), {}
    with torch.no_grad():
        for at in range(start, max(start + 1, len(patch) - WINDOW + 1), WINDOW):
            one, state = model.forward_from(one_window(patch[at : at + WINDOW]), state)
            outputs[at] = one[0].double().softmax(dim=0).numpy()
    return outputs


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_an_epoch_is_every_window_once_and_rows_go_on(tmp_path, batch_size):
    """The label says which video a row is of, its times which frames."""
    cache = make_cache(
        tmp_path,
        num_videos=len(LENGTHS),
        frames=LENGTHS,
        splits=["train"] * len(LENGTHS),
        labels=range(len(LENGTHS)),
        kind="regression",
    )
    loader, samples, plan = loader_of(cache, kind="regression", batch_size=batch_size)
    met, before = {i: [] for i in range(len(LENGTHS))}, []
    batches = list(loader.epoch(2))
    assert loader.num_steps(2) == len(batches)
    for batch in batches:
        after = []
        for i, length in enumerate(batch.tokens.lengths):
            video, times = int(batch.labels[i]), batch.tokens.pts_seconds[i, :length].tolist()
            np.testing.assert_allclose(
                batch.tokens.patch[i, :length].double(),
                tokens_of(cache, f"v{video}")[[int(t) for t in times]],
                atol=1e-6,
            )
            carried = batch.carried
            if carried is None or (carried.starts is not None and bool(carried.starts[i])):
                assert times[0] == 0
            else:
                place = i if carried.rows is None else int(carried.rows[i])
                assert before[place] == (video, times[0] - 1)
            met[video] += times
            after.append((video, times[-1]))
        before = after
    assert met == {i: list(range(n)) for i, n in enumerate(LENGTHS)}
    assert loader.bytes_read == sum(LENGTHS) * 4 * 16 * 2  # every frame once, float16
    steps = lane_steps(samples, length=plan.length, lanes=batch_size, seed=0, epoch=2)
    assert [len(b.labels) for b in batches] == [sum(x is not None for x in s) for s in steps]


# Learning ---------------------------------------------------------------------------------------


def test_learning_is_each_video_by_itself_window_after_window(tmp_path):
    """By hand: a state for every video, windows of one row, the mean of their losses."""
    cache = videos(tmp_path)
    loader, samples, plan = loader_of(cache, kind="classification", dtype=torch.float64)
    chosen = config(optimizer__schedule="constant")
    learner, slow = (
        Learner(
            chosen,
            shape=plan.shape,
            kind="classification",
            num_outputs=2,
            steps_per_epoch=1,
            compute=CPU,
        )
        for _ in range(2)
    )
    learner.model.double()
    model = slow.model.double()
    optimizer = build_optimizer(model, chosen.optimizer)
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            learner.step(batch)
        found = learner.end_steps()
        losses = []
        states = {}
        for step in lane_steps(samples, length=WINDOW, lanes=3, seed=0, epoch=epoch):
            of_step = []
            for one in filter(None, step):
                sample = samples[one.stretch]
                if one.starts:
                    states[sample.id] = model.start_memory()
                patch = tokens_of(cache, sample.id)[one.window.start : one.window.stop]
                window = one_window(patch, torch.float64)
                outputs, states[sample.id] = model.forward_from(window, states[sample.id])
                label = torch.tensor([int(sample.label)])
                of_step.append(training_loss(outputs, label, "classification"))
            optimizer.zero_grad()
            torch.stack(of_step).mean().backward()
            optimizer.step()
            losses += [loss.item() for loss in of_step]
        assert len(losses) == sum(-(-n // WINDOW) for n in LENGTHS)
        assert found == pytest.approx(np.mean(losses), abs=1e-5)
    for (name, one), other in zip(
        learner.model.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def log(run, but):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in but} for line in lines]


def assert_same_run(one, other, but=()):
    first, second = (read_checkpoint(run / "last.safetensors").tensors for run in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    but = (*OF_THE_CLOCK, *but)
    assert log(one, but) == log(other, but)
    results = [open_run(run).results() for run in (one, other)]
    assert results[0].test.predictions == results[1].test.predictions


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """In the middle of an epoch, where memory is lost, and between epochs, where there is none."""
    cache, killed = videos(tmp_path), tmp_path / "killed"
    chosen = config(decoder__dropout=0.2)
    for moment in ("train 1 3", "train 2 2", "train 3 5", "evaluate 3 1"):

        def training(moment=moment):
            def tell(report):
                if f"{report.phase} {report.epoch} {report.done}" == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            train_decoder(cache, chosen, killed, progress=tell)

        assert in_child(training) == -signal.SIGKILL
    train_decoder(cache, chosen, killed)
    train_decoder(cache, chosen, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", killed)


def test_runs_of_one_pass_become_what_they_are_alone(tmp_path):
    """They read each for itself; the other one's lanes are of no matter."""
    cache = videos(tmp_path)
    jobs = [(config(seed=seed, batch_size=2 + seed), tmp_path / f"s{seed}") for seed in range(2)]
    for outcome in train_decoders(cache, jobs):
        alone = tmp_path / f"alone{outcome.seed}"
        train_decoder(cache, jobs[outcome.seed][0], alone)
        assert_same_run(outcome.run, alone, but=("bytes_read",))  # timelines are judged together


def test_the_rate_falls_to_zero_over_epochs_of_unequal_length(tmp_path):
    cache = videos(tmp_path)
    loader, _, _ = loader_of(cache, kind="classification")
    steps = [loader.num_steps(epoch) for epoch in range(4)]
    assert len(set(steps)) > 1
    train_decoder(cache, config(epochs=4), tmp_path / "run")
    epochs = open_run(tmp_path / "run").epochs()
    assert [epoch.steps for epoch in epochs] == list(np.cumsum(steps))
    total = sum(steps)
    for epoch in epochs:  # the last step of an epoch, ½ (1 + cos πx)
        expected = 0.01 * 0.5 * (1 + np.cos(np.pi * (epoch.steps - 1) / total))
        assert epoch.lr == pytest.approx(expected, abs=1e-9)


def test_what_was_seen_a_window_ago_can_only_be_known_with_lanes(tmp_path):
    """The label stands in a video's first window; what is judged is its second."""
    random, rows = np.random.default_rng(0), []
    cache = create_cache(tmp_path / "c.zarr", make_spec(num_prefix=0))
    for i in range(40):
        patch = 0.1 * random.standard_normal((8, 4, 16))
        patch[:4, :, 0] += 2 * (i % 2) - 1
        write_tokens(cache, f"v{i}", patch.astype(np.float16))
        rows.append(TaskRow(id=f"v{i}", split="train" if i < 24 else "test", label=i % 2))
    cache.save_task(
        TaskTable(
            dataset="toy", task="label", kind="classification", classes=("a", "b"), rows=tuple(rows)
        )
    )
    flags = {"epochs": 6, "batch_size": 8, "window_seconds": 4, "optimizer__lr": 0.02}
    flags |= {"validation_stride_seconds": 4, "final_stride_seconds": 4}
    right = {}
    for lanes in (True, False):
        run = tmp_path / f"lanes-{lanes}"
        train_decoder(cache, config(lanes=lanes, **flags), run)
        said = predict_entries(open_run(run), cache, [f"v{i}" for i in range(24, 40)])
        second = [one.windows[1].output for one in said]
        right[lanes] = np.mean([np.argmax(p) == i % 2 for i, p in enumerate(second)])
    assert right[True] == 1.0
    assert right[False] <= 0.8


# Judging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [6, 3, 1])
def test_windows_are_judged_after_those_that_end_where_they_begin(tmp_path, stride):
    cache, run = trained(tmp_path, final_stride_seconds=stride, epochs=1)
    model = run.load_decoder()
    for said in predict_entries(run, cache, device="cpu"):
        patch = tokens_of(cache, said.id)
        expected = {}
        for start in range(0, WINDOW, stride):
            if start == 0 or start + WINDOW <= len(patch):
                expected |= walked(model, patch, start=start)
        assert [window.start_seconds for window in said.windows] == sorted(expected)
        for window in said.windows:
            np.testing.assert_allclose(
                window.output, expected[int(window.start_seconds)], atol=1e-6
            )
    # the best epoch is found, and the result written, by the same windows
    test = evaluate_run(run, cache, split="test", device="cpu")
    assert test.predictions == run.results().test.predictions
    by_id = {said.id: said.output for said in predict_entries(run, cache, device="cpu")}
    for video in test.predictions:
        np.testing.assert_allclose(video.output, by_id[video.id], atol=1e-6)
    val = evaluate_run(run, cache, split="val", stride_seconds=WINDOW, device="cpu")
    [epoch] = run.epochs()
    assert epoch.val_score == val.accuracy
    assert epoch.val_loss == pytest.approx(val.loss)


def test_nobody_else_changes_what_is_said_of_a_video(tmp_path):
    cache, run = trained(tmp_path, epochs=1)
    together = predict_entries(run, cache, batch_size=7)
    for said in together:
        assert predict_entries(run, cache, [said.id]) == [said]


def test_a_run_without_lanes_begins_every_window_anew(tmp_path):
    cache, run = trained(tmp_path, lanes=False, epochs=1)
    model = run.load_decoder()
    for said in predict_entries(run, cache, device="cpu"):
        patch = tokens_of(cache, said.id)
        for window in said.windows:
            at = int(window.start_seconds)
            with torch.no_grad():
                alone = model(one_window(patch[at : at + WINDOW]))[0].softmax(dim=0)
            np.testing.assert_allclose(window.output, alone, atol=1e-5)


# Streams ----------------------------------------------------------------------------------------


def held(thing):
    """How many numbers a stream's state holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel()
    parts = thing if isinstance(thing, tuple) else vars(thing).values()
    return sum(map(held, (part for part in parts if part is not None)))


@pytest.mark.parametrize("lanes", [True, False])
def test_a_stream_says_at_each_windows_end_what_predict_does(tmp_path, lanes):
    cache, run = trained(tmp_path, lanes=lanes, epochs=2, decoder__depth=2)
    predictor, sizes = StreamPredictor(run, device="cpu"), []
    for said in predict_entries(run, cache, ["v7", "v2", "v0"]):  # 5, 4 and 1 windows
        predictor.reset(entry_id=said.id)
        patch, ends = cache.read(said.id, "patch"), []
        for k, frame in enumerate(patch):
            event = predictor.push(frame, None, pts_seconds=float(k))
            if event.complete:
                ends.append(event.output)
                sizes.append((event.frame // WINDOW, held(predictor._state)))
        np.testing.assert_allclose(ends, [w.output for w in said.windows], atol=1e-4)
        if len(ends) == 5:
            alone = StreamPredictor(run, device="cpu")
            for k, frame in enumerate(patch[-WINDOW:]):
                last = alone.push(frame, None, pts_seconds=float(k))
            assert np.allclose(last.output, ends[-1], atol=1e-4) == (not lanes)
    settled = {size for number, size in sizes if number >= 2}
    assert len(settled) == 1  # of the third window, the fourth, the fifth


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"windows_per_video": 2}, "windows_per_video is 2, expected 1 with lanes"),
        ({"padding": "zeros"}, "padding is 'zeros', expected masked with lanes"),
        ({"blocks": 3}, "blocks is 3, expected none or 1 with lanes"),
    ],
)
def test_configs_that_do_not_go_with_lanes(flags, message):
    with pytest.raises(UsageError, match=message):
        config(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"decoder__name": "mean"}, "'mean' remembers nothing .* use --decoder memory"),
        ({"decoder__name": "vis4mer"}, "'vis4mer' remembers nothing"),
        (
            {"final_stride_seconds": 4},
            r"final_stride_seconds is 4 \(4 frames\).*such as --set final_stride_seconds=6$",
        ),
        ({"validation_stride_seconds": 60}, "validation_stride_seconds is 60.*of 6 frames"),
    ],
)
def test_runs_that_cannot_have_lanes(tmp_path, flags, message):
    cache = videos(tmp_path)
    with pytest.raises(UsageError, match=message):
        train_decoder(cache, config(**flags), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_segments_of_a_whole_video_are_one_window(tmp_path):
    sampling = Sampling(kind="segments", segments=WINDOW)
    spec = dataclasses.replace(make_spec(num_prefix=0), sampling=sampling)
    cache = create_cache(tmp_path / "c.zarr", spec)
    write_tokens(cache, "v0", np.zeros((6, 4, 16), np.float16), pts_seconds=np.arange(6.0))
    rows = (TaskRow(id="v0", split="train", label=0),)
    cache.save_task(
        TaskTable(dataset="toy", task="label", kind="classification", classes=("a",), rows=rows)
    )
    with pytest.raises(UsageError, match="in this cache of segments a video is one window"):
        prepare_job(cache, config())


def test_a_run_is_judged_at_strides_that_go_into_the_window(tmp_path):
    cache, run = trained(tmp_path, epochs=1)
    for ask in (predict_entries, evaluate_run):
        with pytest.raises(UsageError, match=r"^stride_seconds is 4 .*such as --stride 6$"):
            ask(run, cache, stride_seconds=4)


def test_the_command_line_trains_and_judges_lanes(tmp_path):
    cache = videos(tmp_path)
    ask = ["train-decoder", "--cache", cache.path, "--task", "toy/label", "--lanes", "--window", 6]
    ask += ["--epochs", 1, "--device", "cpu", "--run", tmp_path / "run"]
    refused = CliRunner().invoke(app, [str(a) for a in [*ask, "--decoder", "mean"]])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "'mean' remembers nothing" in refused.stderr
    small = [f"--set=decoder.{name}={value}" for name, value in SMALL.items()]
    done = CliRunner().invoke(app, [str(a) for a in [*ask, "--decoder", "memory", *small]])
    assert done.exit_code == 0, done.output
    asked = open_run(tmp_path / "run").about.train
    assert asked.lanes
    assert (asked.validation_stride_seconds, asked.final_stride_seconds) == (6, 1)
    judge = ["evaluate", "--run", tmp_path / "run", "--cache", cache.path, "--stride", 4]
    refused = CliRunner().invoke(app, [str(a) for a in judge])
    assert refused.exit_code == 2
    assert "such as --stride 6" in refused.stderr


def test_the_validation_stride_is_the_window_where_nobody_says_it():
    flags = {"task": "toy/label", "lanes": True, "window_seconds": 30}
    assert load_config(flags=flags).validation_stride_seconds == 30
    said = load_config(flags=flags, sets=["validation_stride_seconds=15"])
    assert said.validation_stride_seconds == 15
    assert load_config(base=said, flags={"epochs": 3}).validation_stride_seconds == 15
    assert load_config(flags={**flags, "lanes": None}).validation_stride_seconds == 60


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_lanes_and_random_windows_are_not_of_one_pass(tmp_path, order):
    """Said before blocks are dealt, of which random windows would have many here."""
    cache = videos(tmp_path)
    jobs = [(config(lanes=lanes), tmp_path / str(lanes)) for lanes in order]
    with pytest.raises(UsageError, match=rf"^lanes is {order[0]} in .* and {order[1]} in"):
        train_decoders(cache, jobs, share_bytes=1)
    assert not any(folder.exists() for _, folder in jobs)


def test_shuffled_frames_with_lanes_say_what_they_are_no_control_of(tmp_path):
    cache = videos(tmp_path)
    for lanes, shuffled in ((True, True), (True, False), (False, True)):
        notes = prepare_job(cache, config(lanes=lanes, shuffle_frames=shuffled)).notes
        said = [note for note in notes if "the windows themselves still come in order" in note]
        assert len(said) == (lanes and shuffled)


def test_what_carries_no_memory_is_not_left_out_of_a_judgement(tmp_path):
    cache, run = trained(tmp_path, epochs=1)
    samples = split_samples(cache, cache.task("toy/label"), "test").samples
    candidate = Candidate(
        models=[run.load_decoder().eval(), torch.nn.Identity()],
        stretches=samples,
        batch_size=1,
        carries_memory=True,
    )
    with pytest.raises(TypeError, match="Identity carries no memory"):
        judge_all([candidate], cache, run.about.plan, CPU, stride_seconds=WINDOW, workers=1)


def test_a_sweep_says_what_runs_of_lanes_have_in_common(tmp_path, capsys):
    cache = videos(tmp_path)
    common = {"config": config(), "cache": "c"}
    points = [Point(name=n, settings={}, **common) for n in ("one", "two")]
    for lanes, words in ((True, " judged together, about"), (False, " share their reads, about")):
        asked = [dataclasses.replace(point, config=config(lanes=lanes)) for point in points]
        plan = plan_sweep(asked, {"c": cache}, tmp_path / "sweep")
        print_plan(plan, devices=["cpu"], as_json=False)
        assert f"2 runs of 2x2{words}" in capsys.readouterr().out


def test_lanes_and_shuffled_frames_are_axes_of_a_sweep(tmp_path):
    cache = videos(tmp_path)
    ask = ["ablate", "--cache", cache.path, "--task", "toy/label", "--run", tmp_path / "sweep"]
    ask += ["--axis", "lanes=false,true", "--axis", "shuffle_frames=false,true", "--device", "cpu"]
    ask += ["--set", "decoder.name=memory", "--set", "window_seconds=6", "--dry-run", "--json"]
    planned = CliRunner().invoke(app, [str(a) for a in ask])
    assert planned.exit_code == 0, planned.output
    found = json.loads(planned.stdout)
    settings = [(run["lanes"], run["shuffle_frames"]) for run in found["runs"]]
    no, yes = "false", "true"
    assert settings == [(no, no), (no, yes), (yes, no), (yes, yes)]
    assert [len(each["runs"]) for each in found["passes"]] == [2, 2]
    assert not found["refused"]


def test_the_memory_of_lanes_is_asked_for_by_another_key(tmp_path):
    cache = videos(tmp_path)
    asked = {
        lanes: memory_request(prepare_job(cache, config(lanes=lanes)).about, device="cpu")
        for lanes in (True, False)
    }
    assert asked[True] == {**asked[False], "lanes": True}
    assert set(asked[False]) == {"decoder", "shape", "batch_size", "device", "precision"}


def test_a_run_that_claims_lanes_for_a_decoder_without_memory_is_no_run(tmp_path):
    cache = videos(tmp_path)
    train_decoder(cache, config(lanes=False, decoder__name="mean", epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    data = unseal(path.read_bytes(), name="config.json")
    data["train"]["lanes"] = True
    path.write_bytes(seal(data))
    run = open_run(tmp_path / "run")
    for ask in (run.load_decoder, lambda: StreamPredictor(run), lambda: evaluate_run(run, cache)):
        with pytest.raises(CacheFormatError, match=r"config\.json: .*remembers nothing"):
            ask()
