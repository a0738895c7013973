"""The benchmark of a training step, at a size that says nothing about speed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = "--frames 3 --grid 4 --dim 16 --steps 1 --threads 1 --precision float32"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("train_step")


def test_a_small_run_has_a_row_for_each_size(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main([*SMALL.split(), "--batches", "2", "--longer", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["batch"], row["tokens"]) for row in rows] == [(2, 48), (1, 96)]
    assert all(row["cpu_seconds"] > 0 for row in rows)
    assert rows[0]["cpu_us_a_token_ratio"] == 1


def test_costs_are_a_token_and_against_the_first_row_of_a_precision(benchmark: ModuleType) -> None:
    def row(precision: str, batch: int, tokens: int, cpu: float, peak: float) -> object:
        return benchmark.Row(
            precision=precision,
            batch=batch,
            tokens=tokens,
            seconds=1.0,
            cpu_seconds=cpu,
            peak_megabytes=peak,
            megabytes_before=100.0,
        )

    rows = [
        row("bfloat16", 1, 1000, 2.0, 101.0),
        row("bfloat16", 8, 1000, 8.0, 108.0),
        row("float32", 1, 2000, 2.0, 100.0),
    ]
    costs = benchmark.per_token(rows)
    assert costs[0]["cpu_us_a_token"] == pytest.approx(2000)
    assert costs[0]["bytes_a_token"] == pytest.approx(2**20 / 1000)
    assert costs[1]["cpu_us_a_token_ratio"] == pytest.approx(0.5)
    assert costs[1]["bytes_a_token_ratio"] == pytest.approx(1.0)
    assert (costs[2]["cpu_us_a_token_ratio"], costs[2]["bytes_a_token_ratio"]) == (1, None)
