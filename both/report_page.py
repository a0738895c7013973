"""The HTML page of a report with frames of its videos: where figures and pixels meet.

What is shown is chosen by the report; a video is found by its id below a folder that the caller
names, and is never opened by a path that a run or a cache holds. A video that is not there or
cannot be read is shown without frames, and that is said.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..store.errors import Vis4merError
from ..store.tasks import without_extent
from ..store.wording import some_of

if TYPE_CHECKING:
    from ..decode.report.examples import Still, VideoStretch
    from ..decode.report.table import Report
    from ..extract.annotations.index import VideoIndex
    from ..extract.readers.base import Reader

NUM_STILLS = 8
STILL_BOX = (256, 96)  # a still is at most so wide and so high, in pixels
JPEG_QUALITY = 80
MAX_STILL_BYTES = 4_000_000
"""All stills of a page together; written as text they take a third more."""

END_ROUNDING_SECONDS = 2.0  # a window may end so long after the file and still be of it
MAX_NAMED = 5  # ids in one line of notes

OnVideo = Callable[[int, int], None]  # videos looked for, videos in all


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """The page, and what could not be shown on it, a line each."""

    html: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Stills:
    """Frames by the stretch of video that they show; stretches without frames are left out."""

    by_stretch: Mapping[VideoStretch, tuple[Still, ...]]
    notes: tuple[str, ...]


def report_page(
    report: Report, *, videos: str | Path | None = None, on_video: OnVideo | None = None
) -> ReportPage:
    """The page of a report; with frames of the chosen videos where `videos` is a folder of files.

    Raises UsageError when there is no such folder.
    """
    from ..decode.report.examples import read_examples
    from ..decode.report.html import render_page, report_runs
    from ..extract.annotations.index import VideoIndex

    index = None if videos is None else VideoIndex(videos)
    examples = {run.path: read_examples(run) for run in report_runs(report)}
    stretches = [each.stretch for found in examples.values() for each in found.examples]
    stills = Stills(by_stretch={}, notes=())
    if index is not None:
        stills = read_stills(stretches, index, on_video=on_video)
    html = render_page(report, examples, stills=stills.by_stretch, notes=stills.notes)
    return ReportPage(html=html, notes=stills.notes)


def read_stills(
    stretches: Sequence[VideoStretch],
    index: VideoIndex,
    *,
    max_bytes: int = MAX_STILL_BYTES,
    on_video: OnVideo | None = None,
) -> Stills:
    """`NUM_STILLS` frames at even times of each stretch, as small JPEGs.

    A stretch that is asked for twice is read once and counts twice, as a page carries it. When
    `max_bytes` are reached, what comes after is left without frames.
    """
    from ..extract.readers import get_reader

    reader = get_reader("pyav")
    found: dict[VideoStretch, tuple[Still, ...]] = {}
    absent: list[str] = []
    broken: list[str] = []
    short: list[str] = []
    left_out: list[str] = []
    num_bytes = 0
    uses = Counter(stretches)
    for done, (stretch, times) in enumerate(uses.items()):
        if on_video is not None:
            on_video(done, len(uses))
        path = find_video(index, stretch.id)
        if path is None:
            absent.append(stretch.id)
        elif num_bytes >= max_bytes:
            left_out.append(stretch.id)
        else:
            try:
                stills, end = _stills(path, stretch, reader)
            except (Vis4merError, OSError) as error:
                broken.append(f"{stretch.id} ({getattr(error, 'reason', error)})")
                continue
            found[stretch] = stills
            if end + END_ROUNDING_SECONDS < stretch.end_seconds:
                short.append(stretch.id)
            num_bytes += times * sum(len(still.jpeg) for still in stills)
    notes = [
        _named("No file was found for:", absent),
        _named("No frame could be read of:", broken),
        _named("The file ends before the last window, perhaps it is another one:", short),
        _named(f"To keep the page below {max_bytes / 1e6:g} MB, no frames are shown of:", left_out),
    ]
    return Stills(by_stretch=found, notes=tuple(note for note in notes if note))


def find_video(index: VideoIndex, entry_id: str) -> Path | None:
    """The file of an entry, whose id may end in the part that it is of: `ID@2500-9000`."""
    return index.find(entry_id) or index.find(without_extent(entry_id))


def _stills(path: Path, stretch: VideoStretch, reader: Reader) -> tuple[tuple[Still, ...], float]:
    """Frames at the middles of equal parts of a stretch, and when the file ends; all in
    presentation times."""
    from ..decode.report.examples import Still
    from ..extract.sampling import Slots

    with reader.open(path, moments=Slots(count=1)) as stream:
        first = stream.info.first_pts_seconds
        file_end = first + stream.info.duration_seconds
    start = max(0.0, stretch.start_seconds - first)  # Slots count from the first frame
    end = max(start + 1e-3, stretch.end_seconds - first)
    moments = Slots(count=NUM_STILLS, start_seconds=start, end_seconds=end)
    stills: list[Still] = []
    with reader.open(path, moments=moments) as stream:
        for batch in stream:
            for frame, seconds in zip(batch.frames, batch.pts_seconds, strict=True):
                jpeg, width, height = _jpeg(frame)
                stills.append(Still(seconds=float(seconds), jpeg=jpeg, width=width, height=height))
    return tuple(stills), file_end


def _jpeg(frame: NDArray[np.uint8]) -> tuple[bytes, int, int]:
    """A frame, uint8 (H, W, 3), within `STILL_BOX`: the file, its width and its height."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail(STILL_BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue(), image.width, image.height


def _named(what: str, ids: Sequence[str]) -> str:
    """One line that names the first few; empty for none."""
    return f"{what} {some_of(ids, most=MAX_NAMED)}." if ids else ""
