"""What a trained decoder makes of videos without labels: whole entries of a cache.

Reads tokens, never video files: whoever has the backbone brings the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.records import EntryRecord
from ...store.spec import require_same
from ...store.tasks import TaskKind
from ...store.windows import Window
from ...store.wording import some_of
from ..config import Precision
from ..data.plan import Stretch, WindowPlan, window_seconds
from ..decoders import Decoder
from ..device import Compute
from ..runs.run import Run, RunAbout, Which
from .evaluate import Pace
from .judge import Judged, OnVideo, judge
from .metrics import Outputs, video_output, window_outputs


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """One class with its probability."""

    name: str
    probability: float


def top_classes(
    output: Outputs, classes: Sequence[str], *, count: int = 5
) -> list[ClassProbability]:
    """The most probable classes, best first, the lower index first among equals."""
    order = np.argsort(-np.asarray(output), kind="stable")[:count]
    return [ClassProbability(name=classes[i], probability=output[i]) for i in order]


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """One window, [start, end) in seconds after the entry's first frame.

    output: class probabilities, or (value,).
    """

    start_seconds: float
    end_seconds: float
    output: Outputs


@dataclass(frozen=True, kw_only=True)
class EntryPrediction:
    """One video: `output` is the mean over its windows of probabilities, or (mean value,)."""

    id: str
    kind: TaskKind
    classes: tuple[str, ...]
    output: Outputs
    windows: tuple[WindowPrediction, ...]

    def top(self, *, count: int = 5) -> list[ClassProbability]:
        """The most probable classes; empty for regression."""
        return top_classes(self.output, self.classes, count=count) if self.classes else []

    @property
    def value(self) -> float:
        """The predicted value of a regression."""
        return self.output[0]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict_entries(
    run: Run,
    cache: Cache,
    ids: Sequence[str] | None = None,
    *,
    which: Which = "selected",
    stride_seconds: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    batch_size: int | None = None,
    workers: int = 4,
    on_video: OnVideo | None = None,
) -> list[EntryPrediction]:
    """Predict whole entries of a cache, default all of them, in the order asked for.

    stride_seconds: between windows, default the run's own final stride. precision: default that of
    the run's training on a GPU, float32 on a CPU. Raises FingerprintError when the cache was made
    with other settings than the run's, EntryNotFoundError for an id that it does not hold,
    UsageError, naming them, for videos too short for the decoder.
    """
    about = run.about
    compute = Compute.for_run(about.train, device=device, precision=precision)
    pace = Pace.of(
        about.train, stride_seconds=stride_seconds, batch_size=batch_size, workers=workers
    )
    require_same(cache.spec, about.spec, name=cache.name)
    stretches = [
        Stretch(id=i, extent=Window(start=0, stop=cache.record(i).num_frames))
        for i in (cache.ids() if ids is None else ids)
    ]
    decoder = run.load_decoder(which)
    _require_long_enough(stretches, decoder, about.plan)
    judged = judge(
        decoder.to(compute.device),
        cache,
        stretches,
        about.plan,
        compute,
        stride_seconds=pace.stride_seconds,
        batch_size=pace.batch_size,
        workers=pace.workers,
        shuffle_frames=about.train.shuffle_frames,
        carries_memory=about.train.lanes,
        on_video=on_video,
    )
    return [
        _prediction(about, cache.record(stretch.id), judged, i)
        for i, stretch in enumerate(stretches)
    ]


def _require_long_enough(stretches: Sequence[Stretch], decoder: Decoder, plan: WindowPlan) -> None:
    needed = plan.shortest_extent(decoder.min_frames)
    short = [s.id for s in stretches if s.extent.num_frames < needed]
    if short:
        raise UsageError(
            f"too short for decoder {decoder.name!r}, which needs {needed} frames of a video: "
            f"{some_of(short, most=10)}; leave them out"
        )


def _prediction(
    about: RunAbout, record: EntryRecord, judged: Judged, stretch: int
) -> EntryPrediction:
    outputs = window_outputs(judged.outputs(stretch), about.kind)  # W n_out
    windows = []
    for judged_window, row in zip(judged.windows[stretch], outputs, strict=True):
        start, end = window_seconds(record, judged_window.window, about.plan.sampling)
        output = tuple(map(float, row))
        windows.append(WindowPrediction(start_seconds=start, end_seconds=end, output=output))
    return EntryPrediction(
        id=record.id,
        kind=about.kind,
        classes=about.classes,
        output=video_output(outputs),
        windows=tuple(windows),
    )
