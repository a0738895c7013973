"""Protocols as settings, padding with zeros, and what a run says of the data it was given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from vis4mer.decode.config import OptimizerConfig, TrainConfig, load_config
from vis4mer.decode.data.hold_out import hold_out
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import WindowPlan, split_samples
from vis4mer.decode.decoders import decoder_options
from vis4mer.decode.judging.evaluate import evaluate_run
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.judging.stream import StreamPredictor
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.departures import OF_A_RUN, departure_note, departures
from vis4mer.decode.training.protocols import PROTOCOLS, extraction_note
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.fields import flatten
from vis4mer.store.spec import Preprocess, Sampling
from vis4mer.store.tasks import TaskRow, TaskTable, video_of


def toy(**flags):
    defaults = {"task": "toy/label", "epochs": 1, "window_seconds": 4, "batch_size": 4}
    defaults |= {"decoder.name": "mean", "device": "cpu"}
    return load_config(flags=defaults | {k.replace("__", "."): v for k, v in flags.items()})


def table_of(rows, *, classes=("class0", "class1"), kind="classification"):
    return TaskTable(dataset="toy", task="label", kind=kind, classes=classes, rows=tuple(rows))


# Bundles ----------------------------------------------------------------------------------------


def test_official_is_what_the_released_code_does():
    config = load_config(flags={"task": "lvu/genre", "protocol": "official"})
    assert (config.protocol, config.tokens, config.padding) == ("official", "60x14x14+cls", "zeros")
    assert (config.window_seconds, config.final_stride_seconds) == (60, 1)
    assert config.decoder.name == "vis4mer"
    assert config.decoder.options == {
        "variant": "official",
        "mixer": "s4",
        "depth": 3,
        "pooling": True,
        "scaling": True,
        "dropout": 0.2,
        "state_size": 64,
        "dt_min": 1e-3,
        "dt_max": 1e-1,
        "tied": False,
    }
    assert config.optimizer == OptimizerConfig(
        lr=1e-3,
        weight_decay=0.01,
        dynamics_lr=1e-3,
        schedule="plateau",
        warmup_epochs=0,
        plateau_patience=10,
        plateau_factor=0.2,
        grad_clip=None,
    )
    assert config.validation_stride_seconds == 60
    assert (config.batch_size, config.epochs, config.select) == (16, 100, "best-val")


def test_official_says_all_that_a_config_decides():
    """A default that moves must not move `official`: every setting is there, or is of a run."""
    said = flatten(PROTOCOLS["official"]).keys()
    config = load_config(flags={"task": "a/b"})
    options = decoder_options("vis4mer", {"variant": "official"}).to_json()
    everything = flatten(config.to_json()).keys() | {f"decoder.{name}" for name in options}
    # Of the data, of the machine, of how it is computed and of where it begins.
    unsaid = {"protocol", "hold_out", "precision", "init", "decoder.convolution"}
    assert everything - said - OF_A_RUN == unsaid
    assert said <= everything


def test_options_of_a_protocols_mixer_go_with_it():
    config = load_config(
        flags={"task": "a/b", "protocol": "official", "decoder.mixer": "attention"}
    )
    assert config.decoder.options == {
        "variant": "official",
        "mixer": "attention",
        "depth": 3,
        "pooling": True,
        "scaling": True,
        "dropout": 0.2,
    }
    (name,) = (n for n in departures(resolved(config)) if n.startswith("decoder."))
    assert name == "decoder.mixer"


def resolved(config):
    """A config by dotted names, with the decoder's options written out."""
    options = decoder_options(config.decoder.name, config.decoder.options).to_json()
    return flatten(config.to_json()) | {f"decoder.{name}": v for name, v in options.items()}


def test_clean_is_the_default():
    assert load_config(flags={"task": "a/b", "protocol": "clean"}) == TrainConfig(task="a/b")
    assert load_config(flags={"task": "a/b"}) == TrainConfig(task="a/b")


def test_a_file_then_flags_then_sets_override_a_protocol(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'task = "a/b"\nprotocol = "official"\nepochs = 7\nbatch_size = 2\n'
        "[optimizer]\nlr = 0.5\n[decoder]\ndepth = 2\n"
    )
    config = load_config(file=file, flags={"epochs": 8}, sets=["epochs=9", "optimizer.lr=0.25"])
    assert (config.epochs, config.batch_size, config.padding) == (9, 2, "zeros")
    assert (config.optimizer.lr, config.optimizer.schedule) == (0.25, "plateau")
    assert (config.decoder.options["variant"], config.decoder.options["depth"]) == ("official", 2)
    by_set = load_config(flags={"task": "a/b"}, sets=["protocol=official", "padding=masked"])
    assert (by_set.protocol, by_set.tokens, by_set.padding) == (
        "official",
        "60x14x14+cls",
        "masked",
    )
    again = load_config(base=config)  # a run that goes on is what it was
    assert again == config


def test_options_of_a_protocols_decoder_say_nothing_of_another_one():
    config = load_config(flags={"task": "a/b", "protocol": "official", "decoder.name": "mean"})
    assert (config.decoder.name, config.decoder.options) == ("mean", {})
    assert config.padding == "zeros"
    same = load_config(flags={"task": "a/b", "protocol": "official", "decoder.name": "vis4mer"})
    assert same.decoder.options["variant"] == "official"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["protocol=offical"], "protocol is 'offical', expected one of clean, official"),
        (["padding=mask"], "padding is 'mask', expected one of masked, zeros"),
        (["hold_out=1"], "hold_out is 1.0, expected at least 0 and less than 1"),
        (["blocks=0"], "blocks is 0, expected 1 to 1000000"),
        (["protocol=official", "decoder=3"], "decoder is '3', expected a table"),
    ],
)
def test_what_no_protocol_knows_is_refused(sets, message):
    with pytest.raises(UsageError, match=message):
        load_config(flags={"task": "a/b"}, sets=sets)


def test_every_setting_of_a_protocol_exists_and_a_cache_of_another_is_said():
    for name in PROTOCOLS:
        load_config(flags={"task": "a/b", "protocol": name})
    plain = make_spec()
    official = replace(
        plain,
        sampling=Sampling(kind="spread"),
        preprocess=Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1), resize="squash"),
    )
    assert extraction_note("clean", plain) is None
    assert extraction_note("official", official) is None
    said = extraction_note("official", plain)
    assert all(word in said for word in ("true times", "short-side", "mean subtracted"))
    assert "spread over the file" in extraction_note("clean", official)
    clips = Sampling(kind="segments", segments=8, clip_frames=4)  # which have no protocol
    assert extraction_note("official", replace(official, sampling=clips)) is None
    assert extraction_note("clean", replace(plain, sampling=clips)) is None
    assert "squashed" in extraction_note("clean", replace(official, sampling=clips))
    assert "is not known" in extraction_note("clean", replace(plain, preprocess=None))


def test_settings_that_leave_their_protocol_are_said(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    official = {"task": "toy/label", "protocol": "official", "epochs": 1, "device": "cpu"}
    settings = {"decoder.depth": 2, "decoder.state_size": 4, "tokens": "60x2x2+cls"}
    result = train_decoder(cache, load_config(flags=official | settings), tmp_path / "run")
    assert result.notes[-1] == (
        "not all of protocol official: decoder.depth is 2 (official: 3), decoder.state_size is 4 "
        "(official: 64), tokens is 60x2x2+cls (official: 60x14x14+cls), epochs is 1 (official: 100)"
    )
    other = load_config(flags=official | {"decoder.name": "mean"}, sets=["padding=masked"])
    said = departure_note(other.to_json())
    assert "decoder.name is mean (official: vis4mer)" in said
    assert "padding is masked" in said
    assert "decoder.depth" not in said
    # A protocol that was only named, in Python, is no protocol.
    assert "schedule is cosine" in departure_note(
        TrainConfig(task="a/b", protocol="official").to_json()
    )
    assert departure_note(TrainConfig(task="a/b", seed=3, blocks=2).to_json()) is None
    assert departure_note(toy(epochs=100, batch_size=16).to_json()) == (
        "not all of protocol clean: window_seconds is 4.0 (clean: 60.0)"
    )


# Padding ----------------------------------------------------------------------------------------


def test_zeros_count_as_frames_in_training_judging_predicting_and_streaming(tmp_path):
    """Two frames in a window of four: the mean over a window is half the mean over the frames."""
    lengths = [2, 4, 4, 4, 2, 4, 2, 4]
    splits = ["train"] * 4 + ["val", "val", "test", "test"]
    cache = make_cache(tmp_path, num_videos=8, frames=lengths, splits=splits)
    train_decoder(cache, toy(padding="zeros"), tmp_path / "run")
    run = open_run(tmp_path / "run")
    head = run.load_decoder().head

    def expected(name, frames):
        patch = torch.from_numpy(cache.read(name, "patch").astype(np.float32))[:frames]
        return head(patch.sum(dim=(0, 1)) / (4 * 4)).softmax(dim=0).detach().numpy()

    judged = {p.id: p.output for p in evaluate_run(run, cache).predictions}
    predicted = {p.id: p.output for p in predict_entries(run, cache, ["v6", "v7"])}
    for name, frames in (("v6", 2), ("v7", 4)):
        np.testing.assert_allclose(judged[name], expected(name, frames), atol=1e-5)
        np.testing.assert_allclose(predicted[name], expected(name, frames), atol=1e-5)
    stream = StreamPredictor(run)
    patch = cache.read("v7", "patch").astype(np.float32)
    said = [stream.push(frame, None, pts_seconds=0.0) for frame in patch]
    assert said[-1].complete
    np.testing.assert_allclose(said[-1].output, expected("v7", 4), atol=1e-5)
    only = torch.from_numpy(patch[:2]).mean(dim=(0, 1))  # an incomplete window: no zeros
    np.testing.assert_allclose(said[1].output, head(only).softmax(dim=0).detach(), atol=1e-5)


@pytest.mark.parametrize("tokens", ["4x2x2", "2x2x2+cls"])
def test_a_padded_batch_is_full_windows_of_real_frames(tmp_path, tokens):
    cache = make_cache(tmp_path, num_videos=3, frames=[1, 3, 9], splits=["train"] * 3)
    for padding in ("masked", "zeros"):
        plan = WindowPlan.of(cache.spec, tokens=tokens, window_seconds=4, padding=padding)
        samples = split_samples(cache, cache.task("toy/label"), "train").samples
        loader = TrainLoader(
            cache,
            samples[:2],
            plan,
            kind="classification",
            batch_size=2,
            windows_per_video=1,
            seed=0,
            workers=1,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        (batch,) = loader.epoch(0)
        frames = plan.shape.frames
        kept = [len(range(0, n, 4 // frames)) for n in (1, 3)]
        if padding == "zeros":
            assert batch.tokens.lengths == (frames, frames)
            assert batch.tokens.mask.all()
            assert batch.tokens.patch.shape[1] == frames
        else:
            assert sorted(batch.tokens.lengths) == kept
        empty = (batch.tokens.patch == 0).flatten(2).all(dim=2).sum()
        assert empty == batch.tokens.patch.shape[1] * 2 - sum(kept)


def test_zeros_make_every_video_long_enough(tmp_path):
    lengths = [3, 4, 9, 9, 3, 4, 9, 3]
    splits = ["train"] * 4 + ["val", "val", "test", "test"]
    cache = make_cache(tmp_path, num_videos=8, frames=lengths, splits=splits, grid=(1, 2))
    deep = toy(
        decoder__name="vis4mer",
        decoder__variant="official",
        decoder__depth=3,
        decoder__state_size=4,
        padding="zeros",
    )
    result = train_decoder(cache, deep, tmp_path / "run")
    assert result.test.coverage.complete  # masked, v7 of three frames would be too short
    assert not any("the cache covers" in note for note in result.notes)
    assert len(predict_entries(open_run(tmp_path / "run"), cache)) == 8


# Hold-out, groups -------------------------------------------------------------------------------


def grouped_cache(folder, *, people=10, videos=3):
    """`people` groups of `videos` training videos each, two more groups to test on; no val."""
    total = (people + 2) * videos
    splits = ["train"] * (people * videos) + ["test"] * (2 * videos)
    cache = make_cache(folder, num_videos=total, frames=4, splits=splits)
    rows = [
        replace(row, group=f"P{int(row.id[1:]) // videos:02}")
        for row in cache.task("toy/label").rows
    ]
    cache.save_task(table_of(rows))
    return cache


def test_whole_groups_are_held_out_the_same_for_every_seed(tmp_path):
    cache = grouped_cache(tmp_path)
    results = [
        train_decoder(cache, toy(hold_out=0.2, seed=seed), tmp_path / f"s{seed}") for seed in (0, 1)
    ]
    held = [{p.id for p in result.val.predictions} for result in results]
    assert held[0] == held[1]
    assert len(held[0]) == 6
    group = {row.id: row.group for row in cache.task("toy/label").rows}
    assert len({group[name] for name in held[0]}) == 2
    run = open_run(tmp_path / "s0")
    assert run.about.num_videos == {"train": 24, "val": 6, "test": 6}
    assert run.about.train.hold_out == 0.2
    assert any("6 videos held out of training (0.2 of its groups)" in n for n in results[0].notes)
    assert results[0].selected == "best"
    assert evaluate_run(run, cache, split="val").predictions == results[0].val.predictions
    assert not any(p.seen_in_training for p in results[0].val.predictions)


def test_hold_out_is_refused_where_it_makes_no_sense(tmp_path):
    cache = make_cache(tmp_path / "val", num_videos=8, frames=4)
    with pytest.raises(UsageError, match=r"hold_out is 0.1, but task toy/label has a validation"):
        train_decoder(cache, toy(hold_out=0.1), tmp_path / "run")
    few = grouped_cache(tmp_path / "few", people=1)
    with pytest.raises(UsageError, match=r"hold_out is 0.5 of 1 training groups"):
        train_decoder(few, toy(hold_out=0.5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_leaks_is_said_and_judged_apart(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6, splits=["train"] * 4 + ["test"] * 4)
    groups = ["m0", "m1", None, "m2", "m0", None, "m2", "m9"]
    rows = [
        replace(row, group=group)
        for row, group in zip(cache.task("toy/label").rows, groups, strict=True)
    ]
    rows[7] = replace(rows[7], end_seconds=7.5)  # the video lasts six seconds
    rows[6] = replace(rows[6], end_seconds=6.5)  # within a frame of the end
    rows.append(TaskRow(id="v2", split="test", label=0))
    cache.save_task(table_of(rows))
    result = train_decoder(cache, toy(), tmp_path / "run")
    seen = {p.id: p.seen_in_training for p in result.test.predictions}
    assert seen == {"v4": True, "v5": False, "v6": True, "v7": False, "v2": True}
    assert result.notes[:2] == (
        "in more than one split: v2",
        "the labels speak of more than the video holds: v7",
    )


# Segments ---------------------------------------------------------------------------------------


def segment_cache(folder, *, segments=8, videos=8):
    spec = replace(
        make_spec(), sampling=Sampling(kind="segments", segments=segments, clip_frames=4)
    )
    cache = create_cache(folder / "segments.zarr", spec)
    random = np.random.default_rng(0)
    rows = []
    for i in range(videos):
        patch = random.standard_normal((segments, 4, 16)).astype(np.float16)
        times = (i + 1) * np.arange(segments) + 30.0  # video i: a segment lasts i + 1 seconds
        write_tokens(cache, f"v{i}", patch, pts_seconds=times)
        split = ("train", "train", "val", "test")[i % 4]
        rows.append(TaskRow(id=f"v{i}", split=split, label=i // 4, end_seconds=9.0))
    cache.save_task(table_of(rows))
    return cache


CROPS = (
    ("a", "train", 0.0, 4.0),
    ("a", "test", 4.0, 8.0),
    ("b", "train", 0.0, 4.0),
    ("b", "train", 4.0, 8.0),
    ("c", "train", None, None),
    ("d", "test", 1.0, 5.0),
)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(kind="spread"), Sampling(kind="segments", segments=8, clip_frames=4)],
    ids=lambda sampling: sampling.kind,
)
def test_crops_are_still_of_their_video_however_they_are_sampled(tmp_path, sampling):
    """Crops that are sampled on their own are entries of their own, and no videos of their own."""
    rows = [
        TaskRow(id=name, split=split, label=i % 2, start_seconds=start, end_seconds=end)
        for i, (name, split, start, end) in enumerate(CROPS)
    ]
    table = table_of(rows).as_sampled(sampling)
    cache = create_cache(tmp_path / "crops.zarr", replace(make_spec(), sampling=sampling))
    for name in {row.id for row in table.rows}:
        write_tokens(cache, name, np.ones((8, 4, 16), np.float16), pts_seconds=np.arange(8.0))
    cache.save_task(table)
    result = train_decoder(cache, toy(), tmp_path / "run")
    assert [p.seen_in_training for p in result.test.predictions] == [True, False]
    assert "in more than one split: a" in result.notes
    for share in (0.3, 0.6):  # one and two of the three videos that are trained on
        held = hold_out(table, share)
        sides = [
            {video_of(row.id, sampling) for row in held.split(split)} for split in ("train", "val")
        ]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {"a", "b", "c"}


def test_an_entry_of_segments_is_one_window_whatever_the_seconds(tmp_path):
    cache = segment_cache(tmp_path)
    for tokens, frames in ((None, list(range(8))), ("4x2x2", [0, 2, 4, 6])):
        plan = WindowPlan.of(cache.spec, tokens=tokens, window_seconds=3)
        (sample, *_) = split_samples(cache, cache.task("toy/label"), "train").samples
        assert (plan.length, plan.frames(sample.extent)) == (8, frames)
    result = train_decoder(cache, toy(final_stride_seconds=1), tmp_path / "run")
    assert [p.num_windows for p in result.test.predictions] == [1, 1]
    head = open_run(tmp_path / "run").load_decoder().head
    patch = torch.from_numpy(cache.read("v3", "patch").astype(np.float32))
    expected = head(patch.mean(dim=(0, 1))).softmax(dim=0).detach()
    np.testing.assert_allclose(result.test.predictions[0].output, expected, atol=1e-5)
    (window,) = predict_entries(open_run(tmp_path / "run"), cache, ["v3"])[0].windows
    assert (window.start_seconds, window.end_seconds) == (0, 32)  # eight segments of four seconds


def test_a_view_of_more_segments_than_there_are_is_one_line(tmp_path):
    cache = segment_cache(tmp_path)
    with pytest.raises(UsageError, match="60x2x2: an entry of this cache is 8 segments; use at"):
        train_decoder(cache, toy(tokens="60x2x2"), tmp_path / "run")


def test_horizons_of_segments_are_in_the_time_of_the_training_videos(tmp_path):
    cache = segment_cache(tmp_path)
    config = toy(decoder__name="vis4mer", decoder__depth=1, decoder__state_size=4)
    result = train_decoder(cache, config, tmp_path / "run")
    share = open_run(tmp_path / "run").load_decoder().horizons()[0]
    # Training videos 0, 1, 4, 5: segments of 1, 2, 5, 6 seconds, 3.5 in the median.
    assert result.horizon_seconds == (pytest.approx(share * 8 * 3.5),)


# The test split, epoch by epoch ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_best_test_epoch_stands_beside_the_result_and_changes_nothing(tmp_path, kind):
    cache = make_cache(tmp_path, num_videos=32, frames=6, signal=0.1)
    if kind == "regression":
        cache.save_task(table_of(cache.task("toy/label").rows, classes=(), kind=kind))
    settings = {"epochs": 6, "optimizer__lr": 0.2, "validation_stride_seconds": 1}
    watched = train_decoder(cache, toy(**settings, test_each_epoch=True), tmp_path / "watched")
    plain = train_decoder(cache, toy(**settings), tmp_path / "plain")
    epochs = open_run(tmp_path / "watched").epochs()
    best = max if kind == "classification" else min
    expected = best(e.test_score for e in epochs)
    assert watched.best_test_epoch.score == expected
    assert watched.best_test_epoch.epoch == next(
        e.epoch for e in epochs if e.test_score == expected
    )
    said = watched.best_test_epoch.describe(regression=kind == "regression")
    assert said.startswith("best test epoch, chosen on the test split: ")
    # At the stride of the final evaluation the last epoch says the same in both places.
    last = watched.by_weights["last"].test
    score = last.accuracy if kind == "classification" else last.mse
    assert epochs[-1].test_score == pytest.approx(score)
    assert plain.best_test_epoch is None
    assert plain.test.predictions == watched.test.predictions
    assert [e.test_score for e in open_run(tmp_path / "plain").epochs()] == [None] * 6
    assert open_run(tmp_path / "watched").results() == watched


def test_both_checkpoints_are_judged(tmp_path):
    cache = make_cache(tmp_path, num_videos=32, frames=6, signal=0.1)
    result = train_decoder(cache, toy(epochs=8, optimizer__lr=0.2), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert result.by_weights["best"].epoch < result.by_weights["last"].epoch == 8
    assert result.epoch == result.by_weights["best"].epoch
    for which, judged in result.by_weights.items():
        assert evaluate_run(run, cache, which=which).predictions == judged.test.predictions
    last = train_decoder(
        cache, toy(epochs=8, optimizer__lr=0.2, select="last"), tmp_path / "select-last"
    )
    assert (last.selected, last.epoch) == ("last", 8)
    assert last.by_weights["best"].test.predictions == result.test.predictions
