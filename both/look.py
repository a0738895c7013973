"""A prediction with a figure of where the decoder looked: where what it kept meets pixels.

The frames of the figure are read anew from the file, by the reader and at the moments at which
their tokens were made, and prepared as the backbone saw them. What a run directory may bring about
is said in `predict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..store.errors import UsageError, Vis4merError
from .predict import OnPhase, VideoPredictions, predict_videos

if TYPE_CHECKING:
    from ..decode.judging.look import WindowLook
    from ..decode.judging.predict import EntryPrediction
    from ..decode.runs.run import Run
    from ..extract.sources import VideoSource
    from ..store.cache import Cache


@dataclass(frozen=True, kw_only=True)
class DrawnLook:
    """A figure that was written, and what it shows."""

    path: Path
    look: WindowLook


def predict_and_draw(
    videos: Sequence[str | Path],
    run: Run | str | Path,
    figure: str | Path,
    *,
    at_seconds: float | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    stride_seconds: float | None = None,
    on_phase: OnPhase | None = None,
) -> tuple[VideoPredictions, DrawnLook | None]:
    """Predict one video, and draw into the PNG file `figure` where the decoder looked in a window;
    a video that cannot be read is among the failures and gives no figure.

    at_seconds: a time in that window, after the first frame; default the first window. Otherwise as
    `predict_videos`. Raises UsageError, before anything is read, for a decoder that cannot say
    where it looked, for more than one video and for a file that cannot be written; and for a time
    in no window.

        predict_and_draw(["new.mp4"], "runs/selective", "looked.png", at_seconds=75)
    """
    from ..decode.figure_path import check_figure_path
    from ..decode.judging.look import look_at_window, require_look
    from ..decode.judging.look_figure import FORMATS, draw_look
    from ..decode.runs.run import open_run

    path = Path(figure)
    opened = open_run(run) if isinstance(run, (str, Path)) else run
    require_look(opened.about)
    check_figure_path(path, formats=FORMATS)
    source = _only(videos)
    drawn: list[DrawnLook] = []

    def on_predicted(cache: Cache, predictions: Sequence[EntryPrediction]) -> None:
        look = look_at_window(
            opened,
            cache,
            predictions[0],
            at_seconds=at_seconds,
            stride_seconds=stride_seconds,
            device=device,
        )
        draw_look(look, read_pictures(source, cache, look), path)
        drawn.append(DrawnLook(path=path, look=look))

    found = predict_videos(
        videos,
        opened,
        backbone=backbone,
        weights=weights,
        device=device,
        stride_seconds=stride_seconds,
        on_phase=on_phase,
        on_predicted=on_predicted,
    )
    return found, drawn[0] if drawn else None


def read_pictures(source: VideoSource, cache: Cache, look: WindowLook) -> NDArray[np.uint8]:
    """The frames of a window that a figure shows, as the backbone saw them: uint8 (F, H, W, 3).

    Of a backbone that sees clips, each is the first picture of its clip. Raises VideoError for a
    file that cannot be read any more, Vis4merError for one whose frames are no longer those that
    the tokens were made from.
    """
    from ..decode.judging.look_figure import shown_places
    from ..extract.backbones.preprocess import resize_frames
    from ..extract.readers import get_reader
    from ..extract.sampling import moments_of

    spec = cache.spec
    if spec.preprocess is None:
        raise ValueError("it is not known how these tokens were made from video")
    frames = [look.frames[place] for place in shown_places(len(look.frames))]
    wanted = {frame * spec.sampling.clip_frames: frame for frame in frames}
    times = cache.record(source.id).pts_seconds
    moments = moments_of(
        spec.sampling, start_seconds=source.start_seconds, end_seconds=source.end_seconds
    )
    pictures: list[NDArray[np.uint8]] = []
    with get_reader(spec.reader).open(source.path, moments=moments) as stream:
        for batch in stream:
            for i in range(batch.num_frames):
                frame = wanted.get(batch.index + i)
                if frame is not None and batch.pts_seconds[i] == times[frame]:
                    pixels = resize_frames(batch.frames[i : i + 1], spec.preprocess)  # 1 3 H W
                    pictures.append(pixels[0].permute(1, 2, 0).numpy())  # H W 3
            if batch.index + batch.num_frames > max(wanted):
                break
    if len(pictures) < len(wanted):
        raise Vis4merError(f"{source.path}: the file changed while it was being read; try again")
    return np.stack(pictures)


def _only(videos: Sequence[str | Path]) -> VideoSource:
    from ..extract.sources import resolve_sources

    sources = resolve_sources([str(video) for video in videos])
    if len(sources) != 1:
        raise UsageError(
            f"a figure shows one video, got {len(sources)}: name it, such as {sources[0].path}"
        )
    return sources[0]
