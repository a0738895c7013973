"""Which videos the page shows window by window, by a rule that is the same for every run.

The most confident right answer, the most confident wrong one, and the video whose windows change
most; for a regression the smallest and the largest error instead of the first two. No video is
shown twice, and among equals the first id is taken. Knows no pixels: what a video looks like comes
as `Still` records from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store.errors import CacheFormatError, Vis4merError
from ...store.tasks import TaskKind
from ..runs.timelines import VideoTimeline, read_timelines
from .collect import RunFacts

TIMELINES_NAME = "timelines.safetensors"
RULE = {
    "classification": (
        "the right answer and the wrong answer with the highest probability, and the video whose "
        "probabilities change most from window to window"
    ),
    "regression": (
        "the smallest and the largest error, and the video whose predictions change most from "
        "window to window"
    ),
}
"""In words, what `choose_examples` does."""


@dataclass(frozen=True, kw_only=True, order=True)
class VideoStretch:
    """The part of a video that a timeline covers, in presentation times of its file."""

    id: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, kw_only=True)
class Still:
    """One frame of a video: `seconds` as in the timeline; `jpeg`: the picture, width × height."""

    seconds: float
    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One video and why it is shown."""

    reason: str
    timeline: VideoTimeline

    @property
    def stretch(self) -> VideoStretch:
        return VideoStretch(
            id=self.timeline.id,
            start_seconds=float(self.timeline.start_seconds.min()),
            end_seconds=float(self.timeline.end_seconds.max()),
        )


@dataclass(frozen=True, kw_only=True)
class RunExamples:
    """The chosen videos of one run. note: why there are none, in one line, or ""."""

    examples: tuple[Example, ...] = ()
    note: str = ""


def read_examples(run: RunFacts) -> RunExamples:
    """Choose from the windows that a run kept; what does not check is left out and said."""
    path = run.path / TIMELINES_NAME
    if not path.is_file():
        return RunExamples(note=f"The run kept no window outputs ({TIMELINES_NAME}).")
    try:
        timelines = read_timelines(path)
        _require_outputs(timelines, run)
    except Vis4merError as error:
        reason = str(error).replace(str(path), TIMELINES_NAME)
        return RunExamples(note=f"The window outputs cannot be used: {reason}")
    return RunExamples(examples=tuple(choose_examples(timelines, run.about.kind)))


def _require_outputs(timelines: Sequence[VideoTimeline], run: RunFacts) -> None:
    """CacheFormatError unless labels and outputs are those of the run's classes."""
    wanted, classes = run.about.num_outputs, len(run.about.classes)
    for timeline in timelines:
        outputs, label = timeline.outputs.shape[1], timeline.label
        fits = not classes or (label == int(label) and 0 <= label < classes)
        if outputs != wanted or not fits:
            raise CacheFormatError(
                f"{TIMELINES_NAME}: {outputs} outputs and label {label:g}, expected {wanted} "
                "outputs and a label among them"
            )


def mean_output(timeline: VideoTimeline) -> NDArray[np.float64]:
    """The video's own output: the mean over its windows, float64 (n_out,)."""
    return timeline.outputs.astype(np.float64).mean(axis=0)  # type: ignore[no-any-return]  # n_out


def choose_examples(timelines: Sequence[VideoTimeline], kind: TaskKind) -> list[Example]:
    """At most three videos, fewer where there is none of a kind."""
    ordered = sorted(timelines, key=lambda timeline: timeline.id)
    chosen: list[Example] = []
    for reason, rank in _rules(kind):
        shown = {example.timeline.id for example in chosen}
        ranked = [(rank(t), t) for t in ordered if t.id not in shown]
        values = [(value, t) for value, t in ranked if value is not None]
        if values:
            best = max(values, key=lambda pair: pair[0])[1]  # the first id among equals
            chosen.append(Example(reason=reason, timeline=best))
    return chosen


Rank = Callable[[VideoTimeline], float | None]  # the higher the better; None: not one of these


def _rules(kind: TaskKind) -> Iterator[tuple[str, Rank]]:
    if kind == "classification":
        yield "most confident right answer", lambda t: _confidence(t, right=True)
        yield "most confident wrong answer", lambda t: _confidence(t, right=False)
    else:
        yield "smallest error", lambda t: -abs(float(mean_output(t)[0]) - t.label)
        yield "largest error", lambda t: abs(float(mean_output(t)[0]) - t.label)
    yield "most change between windows", _change


def _confidence(timeline: VideoTimeline, *, right: bool) -> float | None:
    output = mean_output(timeline)
    called = int(np.argmax(output))
    return float(output[called]) if (called == timeline.label) is right else None


def _change(timeline: VideoTimeline) -> float | None:
    """Summed change between neighbouring windows; None for a video that does not change."""
    steps = np.abs(np.diff(timeline.outputs.astype(np.float64), axis=0))  # W-1 n_out
    total = float(steps.sum())
    return total if total > 0 else None
