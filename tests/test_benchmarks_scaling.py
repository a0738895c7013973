"""The benchmarks behind docs/scaling.md, at sizes that say nothing about speed."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_costs_are_sums_of_what_was_measured(load, tmp_path, capsys):
    costs = load("costs")
    asked = ["--backbone", "vit_tiny_patch16_224@64", "--entries", "1", "--repeats", "1"]
    asked += ["--seconds", "2", "--folder", str(tmp_path), "--gpu-tflops", "100", "--gpus", "1,4"]
    costs.main([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)
    # 17 tokens of 192 values: patch 16, CLS 1; a byte each and one scale a token in int8
    bytes_of = {each["profile"]: each["bytes a frame"] for each in found["entry of a minute"]}
    assert bytes_of["float16"] == 17 * 192 * 2
    assert bytes_of["int8"] == 17 * (192 + 4)
    loose, packed = (found["requests a video"][f"push, {way}"] for way in ("loose", "packed"))
    assert (packed["PUT"], loose["PUT"] >= 6) == (1, True)  # a record; five objects beside it
    assert found["requests a video"]["read, packed"]["GET"] == 1
    one, four = (
        next(e for e in found["extraction"] if e["dataset"] == "LVU" and e["GPUs"] == n)
        for n in (1, 4)
    )
    frames = 370 * 3600
    assert one["GPU-hours"] == pytest.approx(frames * found["costs"]["gflops"] / 100e3 / 3600)
    assert one["core-hours"] > 370 * found["costs"]["read_seconds"]
    assert one["hours"] == pytest.approx(4 * four["hours"])
    stored = {e["profile"]: e for e in found["storage"] if e["dataset"] == "LVU"}["float16"]
    assert stored["TB"] == pytest.approx(frames * 17 * 192 * 2 / 1e12)
    assert stored["objects, loose"] == 9_996 * 6
    assert not list(tmp_path.iterdir())


def test_operations_of_a_vit_are_those_of_its_products(load):
    """A layer has products of 12 × width² values, of which 8 × width² in its MLP, and attention."""
    tokens, width, layers = 17, 192, 12
    products = 2 * tokens * 12 * width**2
    attention = 2 * 2 * tokens**2 * width
    patches = 2 * 16 * (3 * 16 * 16) * width
    expected = layers * (products + attention) + patches
    counted = load("costs").count_gflops("vit_tiny_patch16_224@64") * 1e9
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.fixture
def steps(load):
    """Operations of a made-up file server."""
    fields = load("claims_real").StepCosts.__dataclass_fields__
    return load("claims_real").StepCosts(**dict.fromkeys(fields, 1.0))


def setting(simulation, **options):
    given = {"workers": 20, "sizes": (40, 160, 200), "policy": "own", "deaths_per_hour": 0.0}
    return simulation.Setting(**{**given, **options})


@pytest.mark.parametrize("policy", ["own", "share", "alone"])
def test_every_video_is_done_once_also_when_workers_die(load, steps, policy):
    simulation = load("claims_simulation")
    quiet = simulation.Swarm(setting(simulation, policy=policy), steps).run()
    assert (quiet.done, quiet.won, quiet.lost_in_hand) == (400, 400, 0)
    deadly = setting(simulation, policy=policy, deaths_per_hour=6.0)
    found = simulation.Swarm(deadly, steps).run()
    assert found.deaths > 0
    assert found.won == found.done + found.lost_in_hand  # what a death cost, and nothing else
    assert found.done >= 380  # what the last to die held may wait for the next run


def test_alone_nobody_meets_anybody(load, steps):
    simulation = load("claims_simulation")
    alone, share, own = (
        simulation.Swarm(setting(simulation, policy=policy), steps).run()
        for policy in ("alone", "share", "own")
    )
    assert alone.lost == 0 < share.lost < own.lost
    work = 400 * 30.0
    assert all(each.seconds > work / 20 for each in (alone, share, own))


def test_a_busy_file_server_makes_everybody_wait(load, steps):
    simulation = load("claims_simulation")
    slow = replace(setting(simulation), server_rate=5.0)
    found = simulation.Swarm(slow, steps).run()
    assert found.done == 400
    assert found.seconds >= sum(found.operations.values()) / 5.0 * 0.95
    assert found.seconds > 2 * simulation.Swarm(setting(simulation), steps).run().seconds


def test_the_simulation_agrees_with_workers_of_the_real_code(load, tmp_path):
    real, simulation = load("claims_real"), load("claims_simulation")
    costs = real.measure_steps(tmp_path / "costs")
    assert costs.lost < costs.won < costs.entry
    for line in simulation.compare(tmp_path / "swarm", costs, workers=6, videos=40):
        found, ours = line["real"], line["simulated"]
        assert (found["won"], found["in_vain"], found["left"], ours["won"]) == (40, 0, 0, 40)
        assert ours["lost"] == pytest.approx(found["lost"], rel=0.5, abs=20)
        total, expected = (sum(each["steps"].values()) for each in (found, ours))
        assert expected == pytest.approx(total, rel=0.35)
