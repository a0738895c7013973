"""Preprocessing against timm's own Pillow transform, on sizes that videos come in."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from vis4mer.extract.backbones.preprocess import normalise, preprocess_from_timm, resize_frames
from vis4mer.extract.backbones.torchvision_shim import prepare_torchvision
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Preprocess

prepare_torchvision()
import timm.data  # noqa: E402 — timm needs the line above

SIZES = [(360, 640), (540, 960), (640, 360), (241, 317), (224, 224), (100, 1001), (48, 64)]


class ConfiguredModel:
    """What timm's configuration functions look at: a model is its `pretrained_cfg`."""

    def __init__(self, **config: object) -> None:
        self.pretrained_cfg = config


CLIP = ConfiguredModel(
    input_size=(3, 224, 224),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
AUGREG = ConfiguredModel(
    input_size=(3, 224, 224),
    crop_pct=0.9,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
DINOV2 = ConfiguredModel(
    input_size=(3, 518, 518),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
RESNET = ConfiguredModel(
    input_size=(3, 160, 160),
    crop_pct=0.95,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SQUASH = ConfiguredModel(
    input_size=(3, 256, 256),
    crop_pct=1.0,
    crop_mode="squash",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
SQUASH_AND_CROP = ConfiguredModel(
    input_size=(3, 192, 192),
    crop_pct=0.9,
    crop_mode="squash",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
TALL = ConfiguredModel(
    input_size=(3, 256, 192),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
MODELS = {
    "clip": CLIP,
    "augreg": AUGREG,
    "dinov2": DINOV2,
    "resnet": RESNET,
    "squash": SQUASH,
    "squash-crop": SQUASH_AND_CROP,
    "tall": TALL,
}


@functools.cache
def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth shapes, hard edges and noise, so that every part of a resize shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 90 * np.sin(x / 17)[..., None] * np.cos(y / 23)[..., None] * np.ones(3)
    waves[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 40)
    return np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def timm_transform(model: ConfiguredModel, frame: np.ndarray) -> torch.Tensor:
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    image = Image.fromarray(frame)
    if config["crop_mode"] == "squash":
        # Pillow 13 may resize columns before rows; the order is rows first, so this takes the
        # first of timm's two passes apart and leaves the second to timm.
        width = transform.transforms[0].size[1]
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return transform(image)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", MODELS)
def test_within_two_levels_of_timms_own_transform(name: str, size: tuple[int, int]) -> None:
    model = MODELS[name]
    preprocess = preprocess_from_timm(model)
    frames = np.stack([picture(*size), picture(*size)[::-1]])
    ours = normalise(resize_frames(frames, preprocess), preprocess)
    theirs = torch.stack([timm_transform(model, frame) for frame in frames])
    assert ours.shape == theirs.shape
    levels = (ours - theirs).abs() * torch.tensor(preprocess.std).view(3, 1, 1) * 255
    assert levels.max() <= 2.01
    assert levels.mean() <= 0.1


def test_fields_are_those_of_the_data_configuration() -> None:
    assert preprocess_from_timm(DINOV2) == Preprocess(
        size=(518, 518),
        resize="short-side",
        crop_pct=1.0,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert preprocess_from_timm(CLIP).mean == (0.48145466, 0.4578275, 0.40821073)
    assert preprocess_from_timm(SQUASH).resize == "squash"
    assert preprocess_from_timm(CLIP, size=(64, 64)).size == (64, 64)


def test_a_configuration_that_pads_is_refused_by_name() -> None:
    model = ConfiguredModel(input_size=(3, 224, 224), crop_mode="border", crop_pct=1.0)
    with pytest.raises(UsageError, match="crop mode 'border'"):
        preprocess_from_timm(model)


def test_resized_frames_are_uint8_in_channels_last_memory() -> None:
    resized = resize_frames(picture(90, 160)[None], preprocess_from_timm(AUGREG))
    assert resized.shape == (1, 3, 224, 224)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous(memory_format=torch.channels_last)


def test_a_frame_that_already_fits_is_untouched() -> None:
    frames = picture(224, 224)[None]
    resized = resize_frames(frames, preprocess_from_timm(CLIP))
    assert np.array_equal(resized.permute(0, 2, 3, 1).numpy(), frames)


def test_normalise_is_its_formula_and_takes_a_dtype() -> None:
    preprocess = preprocess_from_timm(CLIP)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean = torch.tensor(CLIP.pretrained_cfg["mean"], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(CLIP.pretrained_cfg["std"], dtype=torch.float64).view(3, 1, 1)
    expected = (pixels.double() / 255 - mean) / std
    assert torch.allclose(normalise(pixels, preprocess).double(), expected, atol=1e-5)
    half = normalise(pixels, preprocess, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), expected, atol=0.02)
