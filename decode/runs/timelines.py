"""`timelines.safetensors`: what a trained decoder says of every window of every judged video.

Whoever draws a video's predictions over time reads them here. The file may come from a colleague:
its tensors are compared with what it says of itself before a value is used. Knows no decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...store import fields as f
from ...store.errors import CacheFormatError
from .checkpoints import Checkpoint, read_checkpoint, write_checkpoint

_SHAPES = {"start_seconds": 1, "end_seconds": 1, "outputs": 2}
_DTYPES = {
    "start_seconds": torch.float64,
    "end_seconds": torch.float64,
    "outputs": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class VideoTimeline:
    """The W >= 1 windows of one judged row, in time.

    label: class index, or the value. start_seconds, end_seconds: float64 (W,), presentation times
    in the video file, half-open. outputs: float32 (W, n_out) class probabilities, or (W, 1) values.
    """

    id: str
    label: float
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]
    outputs: NDArray[np.float32]

    def __post_init__(self) -> None:
        windows = len(self.outputs)
        if self.outputs.ndim != 2 or windows < 1:
            raise ValueError(
                f"outputs have shape {self.outputs.shape}, expected (W, n_out), W >= 1"
            )
        for name in ("start_seconds", "end_seconds"):
            if (shape := getattr(self, name).shape) != (windows,):
                raise ValueError(f"{name} have shape {shape}, expected ({windows},)")


def write_timelines(path: Path, timelines: Sequence[VideoTimeline]) -> None:
    """Replace `path`; all timelines have the same number of outputs. At least one is needed."""
    tensors = {
        name: torch.from_numpy(np.concatenate([getattr(line, name) for line in timelines])).to(
            dtype
        )
        for name, dtype in _DTYPES.items()  # ΣW, or ΣW n_out
    }
    about = {
        "ids": [line.id for line in timelines],
        "labels": [line.label for line in timelines],
        "num_windows": [len(line.outputs) for line in timelines],
    }
    write_checkpoint(path, Checkpoint(tensors=tensors, about=about))


def read_timelines(path: Path) -> tuple[VideoTimeline, ...]:
    """Read an untrusted file; Vis4merError where there is none, CacheFormatError when it is damaged
    or not what `write_timelines` makes."""
    checkpoint = read_checkpoint(path)
    name = str(path)
    ids = f.texts(checkpoint.about, "ids", name=name)
    labels = f.numbers(checkpoint.about, "labels", name=name)
    counts = f.integers(checkpoint.about, "num_windows", name=name)
    if not len(ids) == len(labels) == len(counts) or 0 in counts:
        raise CacheFormatError(
            f"{name}: {len(ids)} ids, {len(labels)} labels and {len(counts)} numbers of windows, "
            "expected one of each for every video, and windows in each"
        )
    parts = {
        field: torch.split(_checked(checkpoint, field, sum(counts), name=name), list(counts))
        for field in _SHAPES
    }
    return tuple(
        VideoTimeline(
            id=ids[i],
            label=labels[i],
            start_seconds=parts["start_seconds"][i].numpy(),
            end_seconds=parts["end_seconds"][i].numpy(),
            outputs=parts["outputs"][i].numpy(),
        )
        for i in range(len(ids))
    )


def _checked(checkpoint: Checkpoint, field: str, num_windows: int, *, name: str) -> Tensor:
    """A tensor of the type and length that the file promises, all of it finite."""
    tensor = checkpoint.tensors.get(field)
    if tensor is None:
        raise CacheFormatError(f"{name}: lacks the tensor {field!r}")
    shape = tuple(tensor.shape)
    if tensor.dtype != _DTYPES[field] or len(shape) != _SHAPES[field] or shape[0] != num_windows:
        raise CacheFormatError(
            f"{name}: {field} is {tensor.dtype} {shape}, expected {_DTYPES[field]} for "
            f"{num_windows} windows"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CacheFormatError(f"{name}: {field} holds values that are not finite")
    return tensor
