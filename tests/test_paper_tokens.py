"""The benchmark of a token ablation, at a size that says nothing about speed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
VIEWS = ["60xcls", "60x5x5", "60x7x7", "60x14x14"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("paper_tokens")


def test_a_small_run_counts_what_is_read_and_keeps_what_extracting_took(
    tmp_path, capsys, benchmark
):
    size = ["--videos", "10", "--seconds", "2", "--size", "64"]
    asked = [str(tmp_path), *size, "--backbone", "vit_tiny_patch16_224", "--repeats", "1"]
    benchmark.main([*asked, "--epochs", "1", "--set", "decoder.name=mean", "--json"])
    found = json.loads(capsys.readouterr().out)
    frames, token = 10 * 2, 192 * 2  # bytes
    full = frames * 196 * token
    read = [(each["view"], each["arrays"], each["num_bytes"]) for each in found["reading"]]
    assert read == [
        ("60xcls", "prefix", frames * token),
        *((view, "patch", full) for view in VIEWS[1:]),
    ]
    pooled = [(each["arrays"], each["num_bytes"]) for each in found["reading_pooled"]]
    assert pooled[1:3] == [("grid5", full * 25 // 196), ("grid7", full * 49 // 196)]
    assert [len(runs) for runs in found["passes"]] == [1, 3]
    # Six of ten videos are trained on, and the two of validation and of the test are judged: the
    # former twice. Three runs share what they train on, and judge each by itself.
    runs = found["runs"]
    assert [run["bytes_read"] for run in runs[1:]] == [(6 + 2 + 2 + 2) * full // 10] * 3
    assert [run["sweep_bytes"] for run in runs[1:]] == [(6 // 3 + 2 + 2 + 2) * full // 10] * 3
    assert [run["num_tokens"] for run in runs] == [60, 1500, 2940, 11760]
    ratio = found["sweep"]["cpu"] / max(run["alone"]["cpu"] for run in runs)
    assert found["ratios"]["sweep / most expensive run"]["cpu"] == pytest.approx(ratio)
    kept = json.loads((tmp_path / "extraction.json").read_text())["cost"]
    assert kept == found["extraction"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "extraction.json",
        "tokens.zarr",
        "videos",
    ]
    with pytest.raises(SystemExit, match="choose another folder"):
        benchmark.main([*asked, "--videos", "9"])


def test_the_table_shows_ratios_beside_their_goals(capsys, benchmark):
    cost = {"wall": 2.0, "cpu": 3.0}
    reading = {"view": "60x5x5", "arrays": "patch", "num_bytes": 5e6}
    run = {"view": "60x5x5", "num_tokens": 1500, "epochs": 2, "alone": cost, "reading": cost}
    found = {
        **{"videos": 3, "seconds": 60, "backbone": "vit", "extraction": cost, "pooling": cost},
        "reading": [{**reading, "from_store": cost, "batches": cost}],
        **{"reading_pooled": [], "reading_together": cost, "passes": [["a"]], "sweep": cost},
        "runs": [{**run, "bytes_read": 8e6, "sweep_bytes": 4e6, "sweep_seconds": 1.5}],
        "memory": None,
        "ratios": {"sweep / most expensive run": {"wall": 1.25, "cpu": 1.5}},
    }
    benchmark.print_table(found)
    lines = capsys.readouterr().out.splitlines()
    assert "| 60x5x5 | patch | 5 | 2.0 s (3.0 CPU) | 2.0 s (3.0 CPU) |" in lines
    assert "| sweep / most expensive run | 1.25 | 1.5 | 1.8 |" in lines
    assert lines[-1].startswith("| sweep / ")
