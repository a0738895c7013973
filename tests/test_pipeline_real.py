"""Stage 1 on real files and a real backbone: tokens against plain PyAV, Pillow and timm."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import media
import numpy as np
import pytest
import torch
from PIL import Image
from vis4mer.extract.backbones.loading import cache_spec, load_backbone
from vis4mer.extract.backbones.torchvision_shim import prepare_torchvision
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sources import resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import create_cache
from vis4mer.store.spec import Sampling
from vis4mer.store.verify import verify_cache

prepare_torchvision()
import timm  # noqa: E402 — timm needs the line above
import timm.data  # noqa: E402

FPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("plain", "upright"):
        media.write_clip(folder / f"{name}.mp4", num_frames=45, rate=10)
    media.write_clip(folder / "turned.mp4", num_frames=30, rate=10, degrees_clockwise=90)
    media.rotate(folder / "turned.mp4", 90)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "words.mp4").write_text("not a video")
    (folder / "dir.mp4").mkdir()
    media.write_audio_only(folder / "sound.mp4")
    return folder


def tokens_of(path: Path) -> np.ndarray:
    """(T, 17, 192): every step apart and one frame at a time, with the libraries' own means."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    config = timm.data.resolve_model_data_config(model)
    config["input_size"] = (3, 64, 64)
    transform = timm.data.create_transform(**config, is_training=False)
    shown = media.decode_everything(path)
    tokens = []
    for k in range(100):
        time = shown[0][0] + Fraction(k, FPS)
        if time > shown[-1][0]:
            break
        frame = [picture for begin, picture in shown if begin <= time][-1]
        if path.stem == "turned":
            frame = np.rot90(frame, -1)
        with torch.inference_mode():
            pixels = transform(Image.fromarray(np.ascontiguousarray(frame)))
            tokens.append(model.forward_features(pixels[None])[0].numpy())
    return np.stack(tokens)


def test_a_folder_becomes_a_cache(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone("vit_tiny_patch16_224@64", weights="random:0", device="cpu")
    cache = create_cache(tmp_path / "c.zarr", cache_spec(backbone, sampling=Sampling(fps=FPS)))
    reader = get_reader("pyav")
    summary = fill_cache(resolve_sources([str(folder)]), cache, backbone, reader)
    assert cache.ids() == ["plain.mp4", "turned.mp4", "upright.mp4"]
    for video_id in cache.ids():
        expected = tokens_of(folder / video_id)
        found = np.concatenate([cache.read(video_id, a) for a in ("prefix", "patch")], axis=1)
        assert found.shape == expected.shape
        # Pixels may differ by 2/255 from Pillow's; neighbouring frames differ by far more.
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 0.02 < np.linalg.norm(np.diff(expected, axis=0)) / np.linalg.norm(expected)
    assert {failure.id: failure.stage for failure in summary.failures} == {
        "dir.mp4": "open",
        "empty.mp4": "open",
        "sound.mp4": "open",
        "words.mp4": "open",
    }
    assert all(failure.reason and "\n" not in failure.reason for failure in summary.failures)
    assert summary.exit_code == 3
    assert not verify_cache(cache, mode="full").problems
    again = fill_cache(resolve_sources([str(folder)]), cache, backbone, reader)
    assert (again.already_there, again.extracted) == (3, 0)
    assert len(again.known_failures) + len(again.failures) == 4
