"""The benchmark of an epoch, at a size that says nothing about speed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = "--videos 5 --val 1 --frames 8 --grid 2 --dim 16 --batch 2 --epochs 1"
THREADS = "--workers 2 --threads 1"


@pytest.mark.parametrize("preload", ["off", "ram"])
def test_a_small_epoch_has_a_row_for_every_type_and_view(tmp_path, monkeypatch, capsys, preload):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("epoch")
    asked = ["epoch.py", "--folder", str(tmp_path), *SMALL.split(), *THREADS.split()]
    asked += ["--preload", preload, "--json"]
    monkeypatch.setattr(sys, "argv", asked)
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert [(row["stored"], row["tokens"]) for row in rows] == [
        *(("float16", 32), ("float16", 8)),
        *(("int8", 32), ("int8", 8)),
    ]
    for row in rows:
        assert 0 <= row["waiting_share"] <= 1
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        size = {"float16": 2 * 16, "int8": 16 + 4}[row["stored"]]  # of a token, with its scale
        read = 0 if preload == "ram" else 5 * row["tokens"] * size / 1e6
        assert row["megabytes_per_epoch"] == pytest.approx(read)
    assert set(found["ratios"]) == {"float16", "int8"}
