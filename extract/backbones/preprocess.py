"""Frames as a video holds them → the pixels a backbone was trained on.

Resizing works on uint8 in channels-last memory: it stays within 2/255 of the Pillow transform that
timm itself applies, at a sixth of its time, and never holds a second full-resolution copy. It runs
where the frames are read, so that full-resolution frames die at once; normalising runs on the
backbone's device. Knows neither videos nor backbones beyond their data configuration.

Rows are resized before columns and rounded in between, always, as Pillow did until version 12.
Pillow 13 takes the columns first where the height shrinks much more than the width (a portrait
frame squashed to a square), which moves pixels at hard edges by up to 7 of 255; the numbers in a
cache do not follow it.

Letters: T frames, B frames of several videos, H × W as decoded, h × w as the backbone takes them.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...store.errors import UsageError
from ...store.spec import Interpolation, Preprocess, Resize
from .torchvision_shim import prepare_torchvision

_RESIZE_OF_CROP_MODE: dict[str, Resize] = {"center": "short-side", "squash": "squash"}


def preprocess_from_timm(model: Any, *, size: tuple[int, int] | None = None) -> Preprocess:
    """The preprocessing that a timm model's own data configuration asks for.

    size: (h, w) in pixels where the model was built for another size than it was trained at.
    UsageError for the few configurations that pad instead of cropping.
    """
    prepare_torchvision()
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    crop_mode, interpolation = config["crop_mode"], config["interpolation"]
    if crop_mode not in _RESIZE_OF_CROP_MODE or interpolation not in get_args(Interpolation):
        raise UsageError(
            f"this backbone's images are prepared with crop mode {crop_mode!r} and "
            f"interpolation {interpolation!r}; supported are crop modes "
            f"{', '.join(_RESIZE_OF_CROP_MODE)} and interpolations "
            f"{', '.join(get_args(Interpolation))}: choose another backbone"
        )
    _, height, width = config["input_size"]
    red, green, blue = config["mean"]
    red_std, green_std, blue_std = config["std"]
    return Preprocess(
        size=size or (height, width),
        resize=_RESIZE_OF_CROP_MODE[crop_mode],
        crop_pct=config["crop_pct"],
        interpolation=interpolation,
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
    )


def resize_frames(frames: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """Resize and crop decoded frames: uint8 (T, H, W, 3) to uint8 (T, 3, h, w), channels-last."""
    height, width = resized_size((frames.shape[1], frames.shape[2]), preprocess)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # T 3 H W, a view: channels-last
    if pixels.shape[2:] != (height, width):
        pixels = torch.nn.functional.interpolate(
            pixels, size=(height, width), mode=preprocess.interpolation, antialias=True
        )  # T 3 H' W'
    crop_height, crop_width = preprocess.size
    top, left = _offset(height, crop_height), _offset(width, crop_width)
    # numpy makes the copy: torch would start a pool of threads for it on every reading thread.
    resized = pixels.permute(0, 2, 3, 1).numpy()  # T H' W' 3
    cropped = resized[:, top : top + crop_height, left : left + crop_width]
    return torch.from_numpy(np.ascontiguousarray(cropped)).permute(0, 3, 1, 2)  # T 3 h w


def resized_size(frame: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) of a frame of (height, width) after resizing, before the crop.

    The crop is taken from an image of floor(size / crop_pct). `squash` makes both sides so;
    `short-side` keeps the shape and makes the side so that would otherwise be too short.
    """
    target = tuple(math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    if preprocess.resize == "squash":
        return target[0], target[1]
    if target[0] != target[1]:
        ratio = min(frame[0] / target[0], frame[1] / target[1])
        return round(frame[0] / ratio), round(frame[1] / ratio)
    short = min(frame)
    return int(target[0] * frame[0] / short), int(target[1] * frame[1] / short)


def _offset(resized: int, crop: int) -> int:
    return round((resized - crop) / 2)


def normalise(
    pixels: Tensor,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 (B, 3, h, w) to (value / 255 - mean) / std in `dtype` on `device`."""
    values = pixels.to(device, non_blocking=True).to(torch.float32)  # B 3 h w
    shift = torch.tensor(preprocess.mean, device=device).mul(255).view(3, 1, 1)
    scale = torch.tensor(preprocess.std, device=device).mul(255).view(3, 1, 1)
    return values.sub_(shift).div_(scale).to(dtype)  # B 3 h w
