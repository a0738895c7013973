"""A decoder with a memory, window after window of one video at a time.

    stride = window       0 ─────── 60 ─────── 120 ─────── 180       one walk
    stride = window / 2   0 ─────── 60 ─────── 120 ─────── 180       two walks, which
                               30 ─────── 90 ─────── 150             know nothing of each other

A window goes on from the one that ended where it begins. Where there is none, at a video's start or
at the start of a later walk, it remembers nothing: what it then says is what it says of a video
that begins there. Knows no cache and no label.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...store.errors import UsageError
from ...store.windows import Window, window_length
from ..data.batch import TokenBatch
from ..data.plan import WindowPlan
from ..decoders import Decoder


class Walk:
    """One decoder on windows that come stretch by stretch, each in the order of their starts.

    Holds as many memories as the stride goes into the window: 60 of windows of 60 s at a stride of
    1 s. Of the default `memory` decoder on 60x14x14 tokens one is 2 MB in float32, so that these
    are 120 MB on the device for each model that is judged, and 32 MB on 60x7x7.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._stretch = -1
        self._by_end: dict[int, Any] = {}  # what was remembered after the windows that end there

    def outputs(self, batch: TokenBatch, *, stretch: int, window: Window) -> Tensor:
        """Of a batch of this one window: (1, n_out)."""
        if stretch != self._stretch:
            self._stretch, self._by_end = stretch, {}
        before = self._by_end.pop(window.start, None)
        state = self._decoder.start_memory() if before is None else before
        outputs, self._by_end[window.stop] = self._decoder.forward_from(batch, state)
        return outputs


def require_walks(plan: WindowPlan, *, stride_seconds: float, name: str = "stride_seconds") -> None:
    """UsageError for a stride at which no window begins where another ends.

    name: of a config's field, or `stride_seconds` for what `--stride` says.
    """
    stride = window_length(stride_seconds, fps=plan.fps)
    if plan.length % stride:
        option = "--stride " if name == "stride_seconds" else f"--set {name}="
        raise UsageError(
            f"{name} is {stride_seconds:g} ({stride} frames), but with lanes a window of "
            f"{plan.length} frames goes on from the one that ends where it begins: expected a "
            f"stride that goes into it, such as {option}{plan.length / plan.fps:g}"
        )
