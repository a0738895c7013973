"""A trained decoder on a stream: frame by frame, in memory that does not grow.

Reads tokens, never video files: whoever has the backbone brings the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...store import quantise
from ...store.decoded import ViewTokens
from ...store.errors import UsageError
from ...store.spec import CacheSpec
from ...store.views import TokenView, pool_grid
from ...store.windows import Window
from ..config import Precision
from ..data.batch import TokenBatch
from ..data.clips import collate, on_device
from ..data.stored_clips import host_clip
from ..decoders import Decoder
from ..device import Compute
from ..runs.run import Run, Which
from .metrics import Outputs, window_outputs


@dataclass(frozen=True, kw_only=True)
class StreamPrediction:
    """What is predicted after a frame.

    frame: its index since the stream began. window_frames: frames of the running window so far,
    this one included. complete: the window is full and the next frame begins another.
    output: of the running window so far, as in WindowPrediction; None while there are too few
    tokens for this decoder to say anything.
    """

    frame: int
    pts_seconds: float
    window_frames: int
    complete: bool
    output: Outputs | None


class StreamPredictor:
    """Feed frames one at a time; memory does not grow with the stream.

    The running prediction starts again every window; a run trained with lanes goes on remembering
    the windows before it, back to the stream's first. At each reset it equals, to rounding, what
    `predict_entries` says of that window. Before, it is of the frames so far and of no others, also
    where the run was trained with `padding=zeros`: a video's last, incomplete window says here what
    its own frames say, and not what they say among zeros. precision: default that of the run's
    training on a GPU, float32 on a CPU. Raises UsageError, naming the decoder, when it is not
    causal, and for a run of shuffled frames.

        stream = StreamPredictor(run)
        for patch, prefix, pts_seconds in frames_from_the_backbone:
            print(stream.push(patch, prefix, pts_seconds=pts_seconds))
    """

    def __init__(
        self,
        run: Run,
        *,
        which: Which = "selected",
        device: str = "auto",
        precision: Precision | None = None,
    ) -> None:
        if run.about.train.shuffle_frames:
            raise UsageError(
                f"{run.path} was trained on shuffled frames (shuffle_frames) and cannot be "
                "streamed: its next frame may be any of the window, also a later one; decode whole "
                "windows instead"
            )
        self.about = run.about
        self._compute = Compute.for_run(run.about.train, device=device, precision=precision)
        self._decoder: Decoder = run.load_decoder(which).to(self._compute.device)
        self._plan = run.about.plan
        self._kept = frozenset(self._plan.frames(Window(start=0, stop=self._plan.length)))
        self.reset()

    def reset(self, *, entry_id: str = "") -> None:
        """Forget all frames: the next one begins another stream.

        entry_id: of the video, for views that select patches at random: it says which ones.
        """
        self._entry_id = entry_id
        self._frame = 0
        self._output: Outputs | None = None
        self._state: Any = self._decoder.start_stream(1, self._compute.device)

    def push(
        self,
        patch: NDArray[np.floating] | None,
        prefix: NDArray[np.floating] | None,
        *,
        pts_seconds: float,
    ) -> StreamPrediction:
        """The prediction after one more frame, with the backbone's tokens for it.

        patch: (h·w, D) of the full grid. prefix: (p, D). Either may be None when the run's view
        does not use it.
        """
        place = self._frame % self._plan.length
        if place == 0:
            self._output = None
            self._state = self._next_window()
        if place in self._kept:
            self._step(patch, prefix, pts_seconds)
        self._frame += 1
        return StreamPrediction(
            frame=self._frame - 1,
            pts_seconds=pts_seconds,
            window_frames=place + 1,
            complete=place + 1 == self._plan.length,
            output=self._output,
        )

    def _next_window(self) -> Any:
        """The state before a window's first frame."""
        if not self.about.train.lanes:
            return self._decoder.start_stream(1, self._compute.device)
        with torch.inference_mode(), self._compute.autocast():
            return self._decoder.next_window(self._state)

    def _step(
        self,
        patch: NDArray[np.floating] | None,
        prefix: NDArray[np.floating] | None,
        pts_seconds: float,
    ) -> None:
        tokens = tokens_as_stored(
            self.about.spec,
            self._plan.view,
            None if patch is None else patch[None],
            None if prefix is None else prefix[None],
        )
        with torch.inference_mode(), self._compute.autocast():
            outputs, self._state = self._decoder.stream_step(
                self._batch(tokens, pts_seconds), self._state
            )
        row = outputs.double().cpu().numpy()  # 1 n_out
        output = window_outputs(row, self.about.kind)[0]
        self._output = tuple(map(float, output)) if np.isfinite(output).all() else None

    def _batch(self, tokens: ViewTokens, pts_seconds: float) -> TokenBatch:
        host = host_clip(tokens, np.array([pts_seconds]))
        clip = on_device(
            host.clip,
            self._plan,
            self._compute.device,
            key=self._entry_id,
            frames=[self._frame],
        )
        return collate([clip], self._compute.dtype)


def tokens_as_stored(
    spec: CacheSpec,
    view: TokenView,
    patch: NDArray[np.floating] | None,
    prefix: NDArray[np.floating] | None,
) -> ViewTokens:
    """What a cache of `spec` would give back for a view of these tokens.

    patch: (T, h·w, D) of the full grid. prefix: (T, p, D). Rounded to the stored type, so that a
    stream and a cache agree; not for int8, whose scales depend on the whole video.
    """
    view.require(spec)
    chosen_patch = chosen_prefix = None
    if view.cls:
        if prefix is None:
            raise ValueError(f"token view {view} needs the prefix tokens")
        chosen_prefix = _rounded(prefix[:, :1], spec)  # T 1 D
    if view.grid is not None:
        if patch is None:
            raise ValueError(f"token view {view} needs the patch tokens")
        grid = spec.array_grid(view.stored_array(spec, spec.arrays)) or spec.grid
        pooled = patch if grid == spec.grid else pool_grid(patch, spec.grid, grid)  # T h·w D
        chosen_patch = _rounded(pooled, spec).reshape(len(patch), *grid, spec.dim)  # T h w D
    return ViewTokens(patch=chosen_patch, prefix=chosen_prefix, num_bytes=0)


def _rounded(tokens: NDArray[np.floating], spec: CacheSpec) -> NDArray[np.float32]:
    if spec.stored_dtype == "float16":
        tokens = quantise.encode_float16(tokens)
    elif spec.stored_dtype == "bfloat16":
        tokens = quantise.decode_bfloat16(quantise.encode_bfloat16(tokens.astype(np.float32)))
    return tokens.astype(np.float32)
