"""One run trained by several processes: what one process would have learned from whole batches."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rank_runs
import torch
from caches import make_cache
from rank_runs import rank_config
from safetensors.torch import load_file
from torch import nn
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import Sample, WindowPlan
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.mixers.base import ChannelDropout, RowDropout
from vis4mer.decode.pretraining.train import pretrain
from vis4mer.decode.rows import Rows, Share, drawing_for, drawn_by_row
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.ranks import Place
from vis4mer.store.errors import UsageError
from vis4mer.store.windows import Window

FRAMES = [6, 3, 9, 4, 2, 8, 5, 7, 3, 4, 6, 9, 2]
SPLITS = ["train"] * 9 + ["val"] * 2 + ["test"] * 2

# Rows and shares -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 4, 7, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_nearly_equal_and_have_everything_once(number, count):
    shares = [Share(index=i, count=count).of(number) for i in range(count)]
    assert [k for share in shares for k in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_numbers_of_a_row_do_not_depend_on_who_has_it():
    def draw(num_rows):
        return torch.rand(num_rows, 3)

    torch.manual_seed(0)
    whole = [drawn_by_row(draw, 5), drawn_by_row(draw, 5)]
    for first, stop in pairwise([0, 2, 3, 5]):
        torch.manual_seed(0)
        rows = Rows(first=first, count=stop - first, total=5, own=stop - first, frames=1)
        with drawing_for(rows):
            for expected in whole:
                assert torch.equal(drawn_by_row(draw, stop - first), expected[first:stop])
    torch.manual_seed(0)
    assert torch.equal(drawn_by_row(draw, 5), whole[0])


def test_rows_that_are_not_there_are_refused():
    with (
        drawing_for(Rows(first=0, count=2, total=4, own=2, frames=1)),
        pytest.raises(ValueError, match="3 rows, but 2"),
    ):
        drawn_by_row(torch.zeros, 3)


def test_dropout_by_row_is_that_of_torch():
    x = torch.randn(6, 40)
    torch.manual_seed(1)
    expected = nn.Dropout(0.3)(x)
    torch.manual_seed(1)
    assert torch.equal(RowDropout(0.3)(x), expected)
    assert torch.equal(RowDropout(0.3).eval()(x), x)


def test_channel_dropout_keeps_as_many_as_it_is_told():
    torch.manual_seed(0)
    kept = ChannelDropout(0.25)(torch.ones(4, 2, 5000)).ne(0).float()
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert abs(float(kept.mean()) - 0.75) < 0.02


# Batches -------------------------------------------------------------------------------------


def parts_of(cache, *, count, **fields):
    """By process the batches of its loader; and those of one that has all of them."""
    samples = [
        Sample(id=f"v{i}", extent=Window(start=0, stop=n), label=i)
        for i, n in enumerate(FRAMES[:9])
    ]
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)

    def batches(share):
        loader = TrainLoader(
            cache,
            samples,
            plan,
            kind="regression",
            batch_size=4,
            windows_per_video=1,
            seed=3,
            workers=1,
            device=torch.device("cpu"),
            dtype=torch.float32,
            share=share,
            **fields,
        )
        found = list(loader.epoch(1))
        assert len(found) == loader.num_steps(1)
        return found

    whole = batches(Share())
    return whole, [batches(Share(index=i, count=count)) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("lanes", [False, True])
def test_the_parts_of_a_batch_are_the_batch(tmp_path, count, lanes):
    cache = make_cache(tmp_path, num_videos=13, frames=FRAMES, splits=SPLITS)
    whole, parts = parts_of(cache, count=count, lanes=lanes)
    for step, expected in enumerate(whole):
        assert expected.part is None
        mine = [batches[step] for batches in parts]
        own = [batch for batch in mine if batch.part.own]
        assert torch.equal(torch.cat([batch.labels for batch in own]), expected.labels)
        for name in ("patch", "mask", "pts_seconds"):  # padded to as many frames as the whole batch
            joined = torch.cat([getattr(batch.tokens, name) for batch in own])
            assert torch.equal(joined, getattr(expected.tokens, name))
        assert [batch.part.first for batch in own] == list(
            np.cumsum([0, *(batch.part.own for batch in own)])[:-1]
        )
        assert {batch.part.total for batch in mine} == {len(expected.labels)}
        assert sum(batch.part.weight for batch in mine) == pytest.approx(1)
        assert all(len(batch.labels) == 1 for batch in mine if not batch.part.own)


def test_a_lane_stays_with_its_process(tmp_path):
    """What is remembered of a row is where the row goes on."""
    cache = make_cache(tmp_path, num_videos=13, frames=FRAMES, splits=SPLITS)
    _, parts = parts_of(cache, count=2, lanes=True)
    for batches in parts:
        before = []
        for batch in batches:
            labels = batch.labels.tolist()
            if batch.carried is not None and batch.part.own:
                rows = batch.carried.rows
                rows = range(len(labels)) if rows is None else rows.tolist()
                starts = batch.carried.starts
                starts = [False] * len(labels) if starts is None else starts.tolist()
                for label, row, begins in zip(labels, rows, starts, strict=True):
                    assert begins or before[row] == label
            before = labels


# Processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which two processes, and one, have trained the same; and what they said."""
    folder = tmp_path_factory.mktemp("ranks")
    cache = make_cache(
        folder, num_videos=13, frames=FRAMES, splits=SPLITS, signal=0.5, num_classes=2
    )
    config = rank_config("vis4mer")
    with pytest.raises(rank_runs.StoppedError):
        train_decoder(
            cache, config, folder / "begun-by-one", progress=rank_runs.stop_after_one_epoch
        )
    here = str(Path(__file__).with_name("rank_runs.py"))
    with rank_runs.begun(*[[here, str(folder)]] * 2) as processes:
        for name in rank_runs.DECODERS:
            train_decoder(cache, rank_config(name), folder / "one" / name)
        pretrain(cache, rank_runs.pretrain_config(), folder / "one" / "encoder")
        said = rank_runs.said_by(processes)
    train_decoder(cache, config, folder / "begun-by-two")
    return folder, said


def same_losses(one: Path, other: Path) -> None:
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, other)]
    for a, b in zip(*(map(json.loads, text) for text in lines), strict=True):
        assert (a["epoch"], a["steps"], a["val_score"]) == (b["epoch"], b["steps"], b["val_score"])
        for name in ("lr", "train_loss", "val_loss"):
            assert (a[name] is None) == (b[name] is None)
            assert a[name] is None or math.isclose(a[name], b[name], rel_tol=1e-5), name


def same_weights(one: Path, other: Path) -> None:
    """And the same state of the optimizer, and of whatever else is saved."""
    first, second = (load_file(run / "last.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        a, b = first[name].double(), second[name].double()
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), name


def same_outputs(one: Path, other: Path) -> None:
    """What was said of each test video."""
    judged = [open_run(run).results().by_weights["last"].test for run in (one, other)]
    outputs = [[video.output for video in test.predictions] for test in judged]
    assert np.allclose(*outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", rank_runs.DECODERS)
def test_two_processes_learn_what_one_does(trained, name):
    folder, _ = trained
    one, two = folder / "one" / name, folder / "two" / name
    same_losses(one, two)
    same_outputs(one, two)
    if name != "lanes":
        # Attention does not depend on the bias of its keys, and AdamW makes steps of what rounding
        # leaves of that gradient: there the weights are free.
        same_weights(one, two)


def test_two_processes_gather_the_negatives_of_pretraining(trained):
    folder, _ = trained
    same_losses(folder / "one" / "encoder", folder / "two" / "encoder")
    same_weights(folder / "one" / "encoder", folder / "two" / "encoder")


def test_every_process_has_the_result(trained):
    _, ((_, first, _), (_, second, _)) = trained
    assert first == second
    told = [line.split()[0] for line in first.splitlines()]
    assert told[:3] == list(rank_runs.DECODERS)
    assert told[4:] == ["stopped"]  # after the loss of an encoder


@pytest.mark.parametrize("run", ["begun-by-one", "begun-by-two"])
def test_a_run_goes_on_with_another_number_of_processes(trained, run):
    folder, _ = trained
    one = folder / "one" / "vis4mer"
    same_losses(one, folder / run)
    same_outputs(one, folder / run)
    same_weights(one, folder / run)


def test_nobody_waits_for_a_process_that_is_gone(trained):
    folder, ((code, _, said), (killed, _, _)) = trained
    assert killed == -9
    assert code == 1
    assert said.startswith("LostRankError: a process of this training has ended")
    assert "the same command goes on" in said
    assert not (folder / "died" / "results.json").exists()


def test_an_error_of_one_process_ends_all_and_is_told_once(tmp_path):
    cache = make_cache(tmp_path, num_videos=8)
    command = ["-m", "vis4mer", "train-decoder", "--task", "toy/label", "--device", "cpu"]
    command += ["--run", str(tmp_path / "run"), "--cache"]
    nowhere = str(tmp_path / "nowhere.zarr")
    with rank_runs.begun([*command, str(cache.path)], [*command, nowhere]) as processes:
        (code, out, said), (other_code, other_out, other_said) = rank_runs.said_by(processes)
    assert code == other_code == 2
    assert said.startswith("error: process 1: ")
    assert "nowhere.zarr" in said
    assert len(said.splitlines()) == 1
    assert out == other_out == other_said == ""
    assert not (tmp_path / "run" / "config.json").exists()


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shareable"),
    [
        ("vis4mer", {}, True),
        ("gru", {}, True),
        ("gru", {"depth": 2}, False),
        ("gru", {"depth": 2, "dropout": 0.0}, True),
        ("stam", {"heads": 2}, False),
        ("stam", {"heads": 2, "dropout": 0.0}, True),
    ],
)
def test_dropout_inside_of_torch_is_refused(tmp_path, name, options, shareable):
    plan = WindowPlan.of(make_cache(tmp_path).spec, tokens="4x2x2+cls", window_seconds=4)
    decoder = build_decoder(name, shape=plan.shape, num_outputs=2, options=options)
    if shareable:
        decoder.require_shareable()
        return
    with pytest.raises(UsageError, match=r"several processes.*decoder\.dropout=0"):
        decoder.require_shareable()


def test_place_is_what_a_launcher_says():
    assert Place.of({}) is None
    assert Place.of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of(said) == Place(index=5, count=8, local_index=1, local_count=4)
    with pytest.raises(UsageError, match="torchrun"):
        Place.of({"RANK": "a", "WORLD_SIZE": "8"})
