"""Backbones that somebody else brings: their own weights, their own faults, their caches."""

from __future__ import annotations

from pathlib import Path

import media
import pytest
from test_cli import refused, run
from vis4mer.extract.request import ExtractRequest, extract_videos, plan_videos
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import FingerprintError, Vis4merError

PLUGIN = """
import torch
from vis4mer.extract.backbones.loading import PluginBackbone
from vis4mer.store.spec import Preprocess

class Mean(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, pixels):  # B 3 H W
        return pixels.mean((2, 3))[:, None] * self.weight  # B 1 3

def build(weights, image_size):
    if weights not in ("hub", "large"):
        raise KeyError(weights)
    preprocess = Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    weight = 1.0 if weights == "hub" else 2.0
    return PluginBackbone(
        module=Mean(weight), preprocess=preprocess, grid=(1, 1), num_prefix=0, dim=3
    )
"""


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips, and a plug-in that knows no weights but its own."""
    (tmp_path / "own_weights.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "videos").mkdir()
    for name in "ab":
        media.write_clip(tmp_path / "videos" / f"{name}.mp4", num_frames=3, rate=1)
    return tmp_path / "videos"


@pytest.mark.parametrize("weights", ["hub", "large"])
def test_a_plug_in_that_knows_only_its_own_weights_goes_on(videos: Path, weights: str) -> None:
    def asked(**options: object) -> ExtractRequest:
        return ExtractRequest(
            inputs=[str(videos)],
            cache=videos.parent / "c.zarr",
            backbone="own_weights:build",
            weights=weights,
            device="cpu",
            **options,  # type: ignore[arg-type]
        )

    assert plan_videos(asked()).frames == 6
    assert extract_videos(asked(limit=1)).extracted == 1
    plan = plan_videos(asked(), probe=True)
    assert (plan.to_extract, plan.already_there) == (("b.mp4",), 1)
    assert plan.probe is not None
    assert extract_videos(asked()).extracted == 1
    with pytest.raises(FingerprintError, match=r"sampling\.fps"):
        extract_videos(asked(fps=2.0))
    cache = open_cache(videos.parent / "c.zarr")
    assert cache.ids() == ["a.mp4", "b.mp4"]
    assert not {"timm", "torchvision"} & set(cache.record("a.mp4").provenance)


def test_a_dry_run_gives_a_plug_in_the_weights_it_will_have(videos: Path) -> None:
    where = ("--cache", videos.parent / "c.zarr", "--backbone", "own_weights:build")
    command = ("extract", videos, *where, "--dry-run", "--no-probe", "--json", "--weights")
    assert run(*command, "large").exit_code == 0
    refused(run(*command, "none"), 1, "plug-in own_weights:build failed (KeyError: 'none')")


def test_what_a_plug_in_raises_is_its_own_fault(videos: Path) -> None:
    with pytest.raises(Vis4merError, match=r"own_weights:build failed \(KeyError: 'random:7'\)"):
        extract_videos(
            ExtractRequest(
                inputs=[str(videos)],
                cache=videos.parent / "c.zarr",
                backbone="own_weights:build",
                weights="random:7",
                device="cpu",
            )
        )
    assert not (videos.parent / "c.zarr").exists()
