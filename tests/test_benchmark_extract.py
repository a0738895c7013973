"""The benchmark of the backbone on a GPU, on the CPU at a size that says nothing about speed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vis4mer.extract.backbones.loading import load_backbone, shape_of_backbone

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = "--device cpu --backbone vit_tiny_patch16_224@32 --frames 8 --batch-size 4 --size 32"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_extract")


def test_a_small_run_has_every_row_and_says_what_was_not_measured(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmark, "compile_backbone", lambda backbone, **_: (backbone, "no compiler")
    )
    benchmark.main([*SMALL.split(), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["way"], row["compiled"], row["reason"]) for row in found["rows"]] == [
        ("kernels", False, ""),
        ("stage", False, ""),
        ("kernels", True, "no compiler"),
        ("stage", True, "no compiler"),
    ]
    for row in found["rows"][:2]:
        assert row["tflops"] == pytest.approx(
            row["frames_per_second"] * found["gflops_per_frame"] / 1000
        )
        assert row["share"] == pytest.approx(row["tflops"] / found["matrix_tflops"])
    assert (found["frames"], found["goal"]) == (8, "not measured")
    benchmark.main(SMALL.split())
    assert "not measured" in capsys.readouterr().out


def test_operations_are_those_that_torch_counts(benchmark: ModuleType) -> None:
    backbone = load_backbone("vit_tiny_patch16_224@32", weights="random:0", device="cpu")
    for block in backbone.module.model.blocks:
        block.attn.fused_attn = False  # so that its two products are seen
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.module(torch.zeros(1, 3, 32, 32))
    assert benchmark.vit_flops(backbone.module) == counter.get_total_flops()


def test_operations_of_the_large_model(benchmark: ModuleType) -> None:
    """24 blocks of 12 D² multiply-adds a token and 2 N² D, N = 197, and the patches' embedding."""
    backbone = shape_of_backbone(benchmark.BACKBONE)
    blocks = 24 * (197 * 12 * 1024**2 + 2 * 197**2 * 1024)
    assert benchmark.vit_flops(backbone.module) == 2 * (blocks + 196 * 768 * 1024)


def test_the_goal_is_about_the_stage_on_a_gpu(benchmark: ModuleType) -> None:
    def goal(way: str, share: float | None, *, on_gpu: bool = True) -> str:
        return benchmark.goal_met([benchmark.Row(way, False, share=share)], on_gpu=on_gpu)

    assert goal("stage", 0.6) == "met"
    assert goal("stage", 0.5) == "missed"
    assert goal("kernels", 0.9) == goal("stage", None) == "not measured"
    assert goal("stage", 0.6, on_gpu=False) == "not measured"
