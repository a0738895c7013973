"""Where a decoder looked in a window: which patches it kept, or how much weight each patch had.

Only some decoders can say so: those that keep a part of the tokens, and those that weigh each of
them once on the way to the outputs. Reads tokens, never video files, and draws nothing.

Letters: T frames of a window, h × w grid of the token view, k patches of a frame that it selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.views import TokenView
from ...store.windows import Window, evaluation_windows, window_length
from ...store.wording import some_of
from ..data.batch import TokenBatch
from ..data.clips import collate, on_device, shuffled_order
from ..data.stored_clips import read_clip
from ..data.timelines import window_key
from ..decoders import DECODERS, Decoder, decoder_class
from ..device import Compute
from ..runs.run import Run, RunAbout
from .evaluate import Pace
from .predict import EntryPrediction, WindowPrediction

Measure = Literal["kept", "weights"]


@runtime_checkable
class KeepsPatches(Protocol):
    """A decoder that decodes a part of a window's tokens."""

    def kept_patches(self, batch: TokenBatch) -> Tensor:
        """bool (B, T, h, w)."""
        ...


@runtime_checkable
class WeighsPatches(Protocol):
    """A decoder whose outputs are made of one weighted sum over a window's tokens."""

    def patch_weights(self, batch: TokenBatch) -> Tensor:
        """float32 (B, T, h, w), not negative; over all tokens of a window they sum to 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class WindowLook:
    """Where a decoder looked in one window of an entry.

    decoder: its name. number: of the window, from 0, among the `num_windows` predicted.
    frames: of the entry, ascending, that the token view keeps; padding is none of them.
    seconds: when each of them is shown, after the entry's first frame: float64 (T,).
    patches: float32 (T, h, w) over the view's grid: 1 for kept and 0 for dropped ones, or shares of
        all weight. Patches that the view itself leaves out are dropped, or have no weight.
    """

    prediction: EntryPrediction
    number: int
    decoder: str
    measure: Measure
    frames: tuple[int, ...]
    seconds: NDArray[np.float64]
    patches: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.patches.ndim != 3 or not len(self.frames) == len(self.seconds) == len(self.patches):
            raise ValueError(
                f"{len(self.frames)} frames at {len(self.seconds)} times, but patches of shape "
                f"{self.patches.shape}, expected (T, h, w)"
            )

    @property
    def num_windows(self) -> int:
        return len(self.prediction.windows)

    @property
    def window(self) -> WindowPrediction:
        """What is predicted of this window."""
        return self.prediction.windows[self.number]

    def describe(self) -> str:
        """Which window it is: `0.0–60.0 s (window 1 of 3)`."""
        span = f"{self.window.start_seconds:.1f}–{self.window.end_seconds:.1f} s"
        return f"{span} (window {self.number + 1} of {self.num_windows})"


def require_look(about: RunAbout) -> None:
    """UsageError unless a run's decoder can say where it looked, on a view with patches."""
    name = about.train.decoder.name
    if not _looks(decoder_class(name)):
        able = [other for other in DECODERS if _looks(decoder_class(other))]
        raise UsageError(
            f"decoder {name!r} cannot say where it looked: every token takes part in what it makes "
            f"of the others; a figure can be drawn for {', '.join(able)}"
        )
    if about.plan.view.grid is None:
        raise UsageError(
            f"token view {about.plan.view} has no patches to draw over frames; train on a grid "
            "such as --tokens 60x7x7"
        )


def look_at_window(
    run: Run,
    cache: Cache,
    prediction: EntryPrediction,
    *,
    at_seconds: float | None = None,
    stride_seconds: float | None = None,
    device: str = "auto",
) -> WindowLook:
    """Where a run's decoder looked in one window of an entry that was predicted.

    at_seconds: a time in the window, after the entry's first frame; None is the first window, and
    of several the one whose middle is nearest is taken. stride_seconds: that of the prediction.
    Raises UsageError for a decoder that cannot say, and for a time in no window.
    """
    about, plan = run.about, run.about.plan
    require_look(about)
    number = find_window(prediction, at_seconds)
    record = cache.record(prediction.id)
    pace = Pace.of(about.train, stride_seconds=stride_seconds, batch_size=None, workers=1)
    stride = window_length(pace.stride_seconds, fps=plan.fps)
    extent = Window(start=0, stop=record.num_frames)
    window = evaluation_windows(extent, length=plan.length, stride=stride)[number]
    frames = plan.frames(window)
    compute = Compute.for_run(about.train, device=device)
    host = read_clip(cache, record.id, plan, frames)
    clip = on_device(host.clip, plan, compute.device, key=record.id, frames=frames)
    key = window_key(record.id, window) if about.train.shuffle_frames else None
    batch = collate(
        [clip],
        compute.dtype,
        padded_frames=plan.padded_frames,
        shuffled_by=None if key is None else [key],
    )
    decoder = run.load_decoder().to(compute.device)
    with torch.inference_mode(), compute.autocast():
        measure, found = _look(decoder, batch)  # 1 T h w, or 1 T k 1 of a view that selects
    given = found[0, : len(frames)].float().cpu()  # T h w
    if key is not None:  # as the decoder met them: back to the order of time
        given = given[shuffled_order(key, len(frames)).argsort()]  # T h w
    pts = np.asarray(record.pts_seconds, dtype=np.float64)  # of all frames of the entry
    return WindowLook(
        prediction=prediction,
        number=number,
        decoder=decoder.name,
        measure=measure,
        frames=tuple(frames),
        seconds=pts[frames] - pts[0],
        patches=_on_grid(given.numpy(), plan.view, record.id, frames),
    )


def find_window(prediction: EntryPrediction, at_seconds: float | None) -> int:
    """The number of the window at a time; see `look_at_window`."""
    if at_seconds is None:
        return 0
    spans = [(window.start_seconds, window.end_seconds) for window in prediction.windows]
    found = [i for i, (start, end) in enumerate(spans) if start <= at_seconds < end]
    if not found:
        raise UsageError(
            f"no window of {prediction.id} lies at {at_seconds:g} seconds, expected a time in one "
            f"of {some_of([f'[{start:g}, {end:g})' for start, end in spans])}; a smaller --stride "
            "gives more windows"
        )
    return min(found, key=lambda i: abs(sum(spans[i]) / 2 - at_seconds))


def _looks(decoder: type[Decoder]) -> bool:
    return issubclass(decoder, (KeepsPatches, WeighsPatches))


def _look(decoder: Decoder, batch: TokenBatch) -> tuple[Measure, Tensor]:
    """What the numbers are, and they: (B, T, h, w)."""
    if isinstance(decoder, KeepsPatches):
        return "kept", decoder.kept_patches(batch)
    if isinstance(decoder, WeighsPatches):
        return "weights", decoder.patch_weights(batch)
    raise TypeError(f"{decoder.name} neither keeps nor weighs patches")


def _on_grid(
    given: NDArray[np.float32], view: TokenView, entry_id: str, frames: Sequence[int]
) -> NDArray[np.float32]:
    """(T, h, w) over the grid of a view that selects k patches of each frame: (T, k, 1)."""
    places = view.places(entry_id, frames)  # T k
    if places is None or view.grid is None:
        return given
    whole = np.zeros((len(frames), view.grid[0] * view.grid[1]), dtype=np.float32)  # T h·w
    np.put_along_axis(whole, places, given[..., 0], axis=1)
    return whole.reshape(-1, *view.grid)
