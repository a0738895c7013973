"""The benchmark of training on a GPU, on the CPU at a size that says nothing about speed."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vis4mer.decode.bench.subjects import parse_subjects
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.device import Compute

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = "--frames 4 --grids 1,2 --dim 16 --batch 2 --videos 3 --steps 1 --rounds 1 --device cpu"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_train")


def test_a_small_run_has_a_row_for_everything_and_names_what_needs_a_gpu(capsys, benchmark):
    decoders = "vis4mer:variant=official:depth=1,lst:attention=materialised:heads=2"
    benchmark.main([*SMALL.split(), "--decoders", decoders, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["about"]["device"] == "cpu"
    rows = found["rows"]
    asked = [
        (decoder, tokens, mode)
        for tokens in (4, 16)
        for decoder in decoders.split(",")
        for mode in ("step", "graph")
    ]
    assert [(row["decoder"], row["num_tokens"], row["mode"]) for row in rows] == asked
    for row in rows:
        if row["mode"] == "graph":
            assert "needs a GPU" in row["reason"]
            assert row["seconds"] is None
        else:
            assert row["clips_per_second"] == pytest.approx(2 / row["seconds"])
            assert row["bytes"] >= 0
            assert not row["reason"]
    assert set(found["goals"].values()) == {"not measured"}


def test_the_default_rows_are_those_of_the_papers_table(benchmark):
    subjects = {subject.label for subject in parse_subjects(benchmark.SUBJECTS)}
    assert benchmark.OFFICIAL in subjects
    assert {"lst:attention=fused", "lst:attention=materialised"} < subjects
    assert benchmark.published_cost("lst", 11_760).gigabytes == 41.38


def row(benchmark, **figures):
    about = {"decoder": benchmark.OFFICIAL, "num_tokens": 11_760, "mode": "step"}
    return benchmark.Row(**about, **figures)


def test_goals_count_at_their_size_on_a_gpu_alone(capsys, benchmark):
    full = argparse.Namespace(batch=16, dim=1024)
    measured = row(benchmark, seconds=0.04, clips_per_second=400.0, bytes=4_500_000_000)
    assert list(benchmark.goals([measured], full, on_gpu=True).values()) == ["400", "4.5 GB"]
    for rows, arguments, on_gpu in (
        ([measured], full, False),
        ([measured], argparse.Namespace(batch=8, dim=1024), True),
        ([replace(measured, num_tokens=60)], full, True),
        ([row(benchmark, reason="out of memory")], full, True),
    ):
        reached = benchmark.goals(rows, arguments, on_gpu=on_gpu)
        assert set(reached.values()) == {"not measured"}
    benchmark.print_rows([measured, row(benchmark, reason="out of memory")])
    lines = capsys.readouterr().out.splitlines()
    assert "400.0" in lines[1]
    assert lines[2].endswith("out of memory")


def prepared(benchmark):
    """A learner and the tokens that it learns from; the same each time."""
    compute = Compute.of(device="cpu", precision="float32")
    shape = TokenShape(frames=4, grid=(2, 2), num_prefix=0, dim=16)
    (subject,) = parse_subjects("vis4mer:variant=official:depth=1:dropout=0")
    torch.manual_seed(0)
    resident = benchmark.Resident(shape, num_videos=3, batch_size=2, device=compute.device)
    learner = benchmark.make_learner(subject, shape, batch_size=2, compute=compute)
    return learner, resident, compute


def test_the_step_of_a_graph_is_a_training_step(benchmark, monkeypatch):
    """What a graph would replay, run as it is: the weights become those of `train-decoder`."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, _: module)
    graphed, resident, compute = prepared(benchmark)
    step = benchmark.graph_step(graphed, resident, compute)  # has drawn one batch, as a sample
    step()
    learner, resident, _ = prepared(benchmark)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    resident.rows()
    learner.step(resident.batch())
    for name, parameter in learner.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        found = graphed.model.get_parameter(name)
        torch.testing.assert_close(found, parameter, rtol=1e-5, atol=1e-7, msg=name)


def test_what_does_not_fit_is_skipped_and_memory_that_ends_is_a_row(benchmark, monkeypatch):
    _, resident, compute = prepared(benchmark)
    (subject,) = parse_subjects("lst:attention=materialised:heads=2")
    arguments = argparse.Namespace(batch=2, steps=1, rounds=1)
    monkeypatch.setattr(benchmark, "free_on", lambda _: 1)
    found = benchmark.measure(subject, resident, arguments, compute, mode="step")
    assert found.reason.startswith("skipped: needs")

    def ends(*_, **__):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(benchmark, "make_learner", ends)
    found = benchmark.measure(subject, resident, arguments, compute, mode="step")
    assert (found.reason, found.seconds) == ("out of memory", None)
