"""The control of shuffled frames: order is gone, and nothing else is."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from torch import nn
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.ablate.plan import plan_sweep
from vis4mer.decode.ablate.sweep import Axis, Sweep
from vis4mer.decode.config import TrainConfig, load_config
from vis4mer.decode.data.clips import Clip, collate, shuffled_order
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import Stretch, WindowPlan, split_samples
from vis4mer.decode.device import Compute
from vis4mer.decode.judging.evaluate import evaluate_run
from vis4mer.decode.judging.judge import Candidate, judge, judge_all
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.judging.stream import StreamPredictor
from vis4mer.decode.runs.run import open_run, write_about
from vis4mer.decode.train import train_decoder, train_decoders
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.files import seal
from vis4mer.store.windows import Window

CPU = torch.device("cpu")


def frames_of(tokens):
    """The frames of one window as a multiset."""
    return Counter(frame.numpy().tobytes() for frame in tokens)


def run_config(name, **fields):
    options = {"decoder.depth": 1, "decoder.state_size": 4} if name == "vis4mer" else {}
    flags = {"task": "toy/label", "epochs": 2, "window_seconds": 6, "decoder.name": name}
    return load_config(flags={**flags, **options, "optimizer.lr": 0.01, **fields})


# The order --------------------------------------------------------------------------------------


def test_the_order_is_the_one_of_its_hashes():
    def rank(frame):
        return hashlib.blake2b(f"v0\0{3}\0{frame}".encode(), person=b"shuffle").hexdigest()

    assert shuffled_order("v0\0003", 9).tolist() == sorted(range(9), key=rank)
    assert shuffled_order("one frame", 1).tolist() == [0]
    assert shuffled_order("\udcff of a name that is no text", 5).sort().values.tolist() == [
        *range(5)
    ]


def test_every_frame_comes_to_every_place_about_as_often():
    orders = torch.stack([shuffled_order(f"v{i}", 5) for i in range(1000)])
    for place in range(5):
        counts = orders[:, place].bincount(minlength=5)
        assert 150 < int(counts.min()) <= int(counts.max()) < 250  # 200 ± 4 deviations of 12.6


# Batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded_frames", [None, 9])
def test_tokens_are_shuffled_frame_by_frame_and_times_and_padding_are_not(padded_frames):
    lengths = (4, 7)
    clips = [
        Clip(
            patch=torch.arange(1.0, 1 + 2 * n).reshape(n, 2, 1, 1) + 100 * i,
            prefix=torch.arange(1.0, 1 + 2 * n, 2).reshape(n, 1, 1) + 100 * i,
            pts_seconds=torch.arange(n, dtype=torch.float64) + 10,
        )
        for i, n in enumerate(lengths)
    ]
    plain = collate(clips, torch.float32, padded_frames=padded_frames)
    mixed = collate(
        clips, torch.float32, padded_frames=padded_frames, shuffled_by=["a\0000", "b\0000"]
    )
    assert torch.equal(mixed.pts_seconds, plain.pts_seconds)
    assert torch.equal(mixed.mask, plain.mask)
    assert mixed.lengths == plain.lengths
    for i, (n, key) in enumerate(zip(lengths, ("a\0000", "b\0000"), strict=True)):
        order = shuffled_order(key, n)
        assert order.tolist() != list(range(n))
        assert torch.equal(mixed.patch[i, :n], plain.patch[i, order])
        assert torch.equal(mixed.patch[i, :n, 0, 0], mixed.prefix[i, :n, 0])  # of one frame
        assert frames_of(mixed.patch[i]) == frames_of(plain.patch[i])
        assert not mixed.patch[i, n:].any()
        assert not mixed.prefix[i, n:].any()


def make_loader(cache, *, shuffle_frames=True):
    plan = WindowPlan.of(cache.spec, tokens="2x2+cls", window_seconds=4)
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    return TrainLoader(
        cache,
        samples,
        plan,
        kind="classification",
        batch_size=3,
        windows_per_video=2,
        seed=0,
        workers=2,
        device=CPU,
        dtype=torch.float32,
        shuffle_frames=shuffle_frames,
    )


def test_training_shuffles_what_it_would_have_drawn_anew_in_every_epoch(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=[4, 3, 4, 2, 4, 4, 1, 4])  # whole videos
    loader = make_loader(cache)
    plain = make_loader(cache, shuffle_frames=False)
    orders = []
    for epoch in range(3):
        batches, expected = list(loader.epoch(epoch)), list(plain.epoch(epoch))
        for batch, original in zip(batches, expected, strict=True):
            assert torch.equal(batch.labels, original.labels)
            assert torch.equal(batch.tokens.pts_seconds, original.tokens.pts_seconds)
            for found, wanted in zip(batch.tokens.patch, original.tokens.patch, strict=True):
                assert frames_of(found) == frames_of(wanted)
        orders.append({w.numpy().tobytes() for b in batches for w in b.tokens.patch})
    assert orders[0] != orders[1] != orders[2]  # the sets of windows, so not their order
    again = [b.tokens.patch for b in make_loader(cache).epoch(1)]
    assert all(map(torch.equal, again, [b.tokens.patch for b in loader.epoch(1)]))


def test_a_pass_of_shuffled_and_plain_runs_makes_each_what_it_is_alone(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    shuffled = [False, True]
    configs = [
        run_config("vis4mer", shuffle_frames=mixed, blocks=1, epochs=1) for mixed in shuffled
    ]
    folders = [tmp_path / f"shuffled-{mixed}" for mixed in shuffled]
    train_decoders(cache, list(zip(configs, folders, strict=True)))
    for config, folder in zip(configs, folders, strict=True):
        train_decoder(cache, config, tmp_path / "alone" / folder.name)
        for file in ("last.safetensors", "config.json", "timelines.safetensors"):
            alone = tmp_path / "alone" / folder.name / file
            assert (folder / file).read_bytes() == alone.read_bytes()


# Judging ----------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Keeps the windows that it is given, and says how many of them are real."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def forward(self, batch):
        self.windows += list(batch.patch.clone())
        return batch.mask.sum(dim=1, keepdim=True).float()


def test_one_reading_serves_shuffled_and_plain_and_each_order_is_its_windows_own(tmp_path):
    cache = make_cache(tmp_path, num_videos=3, frames=[9, 4, 7])
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)
    stretches = [
        Stretch(id=f"v{i}", extent=Window(start=0, stop=n)) for i, n in enumerate([9, 4, 7])
    ]
    plain, mixed, other = Recorder(), Recorder(), Recorder()
    candidates = [
        Candidate(models=[plain], stretches=stretches, batch_size=2),
        Candidate(models=[mixed], stretches=stretches, batch_size=2, shuffle_frames=True),
        Candidate(models=[other], stretches=stretches[::-1], batch_size=5, shuffle_frames=True),
    ]
    verdicts = judge_all(
        candidates, cache, plan, Compute.of(device="cpu"), stride_seconds=1, workers=2
    )
    assert sum(verdict.bytes_read for (verdict,) in verdicts) == (9 + 4 + 7) * 4 * 16 * 2
    assert len(plain.windows) == len(mixed.windows) == 6 + 1 + 4
    assert list(map(frames_of, mixed.windows)) == list(map(frames_of, plain.windows))
    assert all(map(torch.equal, mixed.windows, other.windows))  # whatever shares its batch
    moved = [w for w, p in zip(mixed.windows, plain.windows, strict=True) if not torch.equal(w, p)]
    assert len(moved) > 6  # a chance of 1 in 24 each to stay as it was


class FirstKind(nn.Module):
    """Knows the question and its answer: class 0 where token dimension 0 has its first 1 before
    dimension 1 has its."""

    def forward(self, batch):
        seen = batch.patch[:, :, 0, 0] > 0.5  # B T 2
        first = seen.float().argmax(dim=1)  # B 2
        return -first.float()


def test_an_oracle_of_order_falls_to_chance(tmp_path):
    """200 windows of ten frames with one of either kind; right on 100 ± 7 by luck."""
    cache = create_cache(tmp_path / "c.zarr", make_spec(grid=(1, 1), dim=2, num_prefix=0))
    patch, places = np.zeros((200, 10, 1, 2), dtype=np.float32), np.random.default_rng(0)
    for i in range(200):
        early, late = sorted(places.choice(10, size=2, replace=False))
        patch[i, early, 0, i % 2] = patch[i, late, 0, 1 - i % 2] = 1
    write_tokens(cache, "v", patch.reshape(2000, 1, 2))
    stretches = [Stretch(id="v", extent=Window(start=10 * i, stop=10 * i + 10)) for i in range(200)]
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=10)

    def correct(*, shuffle_frames):
        said = judge(
            FirstKind(),
            cache,
            stretches,
            plan,
            Compute.of(device="cpu"),
            stride_seconds=10,
            batch_size=16,
            workers=2,
            shuffle_frames=shuffle_frames,
        )
        return sum(said.outputs(i).argmax() == i % 2 for i in range(200))

    assert correct(shuffle_frames=False) == 200
    assert 72 <= correct(shuffle_frames=True) <= 128  # 4 deviations


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One cache with runs of an order-blind decoder and one that knows order, both ways."""
    folder = tmp_path_factory.mktemp("shuffled")
    cache = make_cache(folder, num_videos=12, frames=8, signal=1.0)
    runs = {}
    for name in ("mean", "vis4mer"):
        for shuffled in (False, True):
            path = folder / f"{name}-{shuffled}"
            result = train_decoder(cache, run_config(name, shuffle_frames=shuffled), path)
            runs[name, shuffled] = open_run(path), result
    return cache, runs


def outputs(result):
    return np.array([prediction.output for prediction in result.test.predictions])


def test_what_is_blind_to_order_learns_the_same_and_what_knows_it_does_not(trained):
    _, runs = trained
    mean, mean_mixed = (outputs(runs["mean", shuffled][1]) for shuffled in (False, True))
    np.testing.assert_allclose(mean_mixed, mean, atol=2e-6)
    s4, s4_mixed = (outputs(runs["vis4mer", shuffled][1]) for shuffled in (False, True))
    assert np.abs(s4_mixed - s4).max() > 1e-4


def test_judging_and_predicting_a_run_shuffle_as_its_training_did(trained):
    cache, runs = trained
    run, result = runs["vis4mer", True]
    assert evaluate_run(run, cache).predictions == result.test.predictions
    judged = {prediction.id: prediction.output for prediction in result.test.predictions}
    for prediction in predict_entries(run, cache, sorted(judged)):
        np.testing.assert_allclose(prediction.output, judged[prediction.id], atol=1e-6)


def test_the_same_weights_say_something_else_of_windows_in_order(trained, tmp_path):
    cache, runs = trained
    run, result = runs["vis4mer", True]
    about = replace(run.about, train=replace(run.about.train, shuffle_frames=False))
    for file in ("best.safetensors", "last.safetensors"):
        (tmp_path / file).write_bytes((run.path / file).read_bytes())
    in_order = evaluate_run(write_about(tmp_path, about), cache)
    found = np.array([prediction.output for prediction in in_order.predictions])
    assert np.abs(found - outputs(result)).max() > 1e-6


def test_a_stream_has_no_later_frames_to_shuffle_with(trained):
    _, runs = trained
    with pytest.raises(UsageError, match=r"shuffled frames .* cannot be streamed") as refused:
        StreamPredictor(runs["vis4mer", True][0])
    assert "\n" not in str(refused.value)
    StreamPredictor(runs["vis4mer", False][0])


def test_the_notes_and_the_record_of_a_run_say_it(trained):
    _, runs = trained
    run, result = runs["mean", True]
    assert run.about.train.shuffle_frames
    assert any("shuffle_frames is True (clean: False)" in note for note in result.notes)
    assert not any("shuffle_frames" in note for note in runs["mean", False][1].notes)


def test_a_run_from_before_the_control_is_one_in_order(trained, tmp_path):
    run, _ = trained[1]["mean", False]
    config = json.loads((run.path / "config.json").read_bytes())
    content = {name: value for name, value in config.items() if name not in ("sha256", "seal")}
    del content["train"]["shuffle_frames"]
    (tmp_path / "config.json").write_bytes(seal(content))
    assert open_run(tmp_path).about.train == run.about.train


# Asking for it ----------------------------------------------------------------------------------


def test_it_is_a_setting_like_any_other(tmp_path):
    assert not TrainConfig(task="a/b").shuffle_frames
    assert load_config(sets=["task=a/b", "shuffle_frames=true"]).shuffle_frames
    with pytest.raises(UsageError, match="shuffle_frames is 'perhaps', expected true or false"):
        load_config(sets=["task=a/b", "shuffle_frames=perhaps"])
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    base = {"task": "toy/label", "window_seconds": 4.0, "device": "cpu"}
    sweep = Sweep(base=base, axes=(Axis.parse("shuffle_frames=false,true"),))
    points = sweep.points(["tokens"])
    assert [point.config.shuffle_frames for point in points] == [False, True]
    plan = plan_sweep(points, {"tokens": cache}, tmp_path / "sweep")
    [one] = plan.passes  # the reads are the same
    assert len(one.runs) == 2


def test_the_flag_of_train_decoder(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    run = tmp_path / "run"
    arguments = ["train-decoder", "--cache", str(cache.path), "--task", "toy/label"]
    arguments += ["--epochs", "1", "--decoder", "mean", "--window", "4", "--run", str(run)]
    done = CliRunner().invoke(app, [*arguments, "--shuffle-frames"])
    assert done.exit_code == 0, done.output
    assert open_run(run).about.train.shuffle_frames
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "shuffle_frames: run True, asked False" in refused.output
