"""The clips of the demo: small real videos whose label no single frame can tell.

Each clip is a minute of 64 × 64 video at one frame a second: a still background, and two events of
eight seconds, a disc (A) and stripes (B). Both events are in every clip; the label says which came
first. Clips are made in twins that differ by swapping A and B alone:

    seconds   0          14      22            41      49        60
    A first   ...........AAAAAAAA..............BBBBBBBB...........
    B first   ...........BBBBBBBB..............AAAAAAAA...........

Twins show the same frames in another order and stand in the same split, so whatever ignores order
(averaging a minute's tokens, say) gives both the same answer and is right on exactly one of them.
Only the codec, which compresses a frame given those before it, leaves a trace of order in a frame.

Knows how to draw, write and label clips; nothing of tokens or decoders.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..store.errors import UsageError
from ..store.files import write_atomic
from ..store.tasks import Split

FirstEvent = Literal["disc-first", "stripes-first"]

CLIP_SECONDS = 60
EVENT_SECONDS = 8
MIN_GAP_SECONDS = 4
PICTURE_SIZE = 64
NUM_TWINS: Mapping[Split, int] = {"train": 90, "val": 10, "test": 30}
LABELS_NAME = "demo.csv"


@dataclass(frozen=True, kw_only=True)
class DemoClip:
    """What one clip shows. Events occupy [start, start + EVENT_SECONDS) seconds.

    name: of the file. first_start, second_start: of the earlier and the later event.
    look: the seed of everything else that is seen; twins share it.
    """

    name: str
    split: Split
    label: FirstEvent
    first_start: int
    second_start: int
    look: int

    def __post_init__(self) -> None:
        gap = self.second_start - self.first_start - EVENT_SECONDS
        last = CLIP_SECONDS - EVENT_SECONDS
        if self.first_start < 0 or gap < MIN_GAP_SECONDS or self.second_start > last:
            raise ValueError(f"events at {self.first_start} and {self.second_start} do not fit")

    @property
    def starts(self) -> tuple[int, int]:
        """Start of the disc, start of the stripes."""
        if self.label == "disc-first":
            return self.first_start, self.second_start
        return self.second_start, self.first_start


def plan_clips(seed: int, *, num_twins: Mapping[Split, int] = NUM_TWINS) -> tuple[DemoClip, ...]:
    """All clips of a demo, sorted by name, two for every twin; the same for the same seed."""
    rng = np.random.default_rng([seed, 0])
    splits: list[Split] = [split for split, count in num_twins.items() for _ in range(count)]
    numbers = iter(rng.permutation(2 * len(splits)).tolist())  # so that no name tells a label
    clips = []
    for twin, split in enumerate(splits):
        first, second = _draw_starts(rng)
        labels: tuple[FirstEvent, FirstEvent] = ("disc-first", "stripes-first")
        clips += [
            DemoClip(
                name=f"clip-{next(numbers):03d}.mp4",
                split=split,
                label=label,
                first_start=first,
                second_start=second,
                look=twin,
            )
            for label in labels
        ]
    return tuple(sorted(clips, key=lambda clip: clip.name))


def _draw_starts(rng: np.random.Generator) -> tuple[int, int]:
    """Uniform over all pairs of starts that leave MIN_GAP_SECONDS between the events."""
    slack = CLIP_SECONDS - 2 * EVENT_SECONDS - MIN_GAP_SECONDS
    # A pair low ≤ high of slack + 1 places, with repetition, is two distinct draws from slack + 2
    # places with one subtracted from the larger.
    low, high = sorted(rng.choice(slack + 2, size=2, replace=False).tolist())
    return low, high - 1 + EVENT_SECONDS + MIN_GAP_SECONDS


def draw_frames(clip: DemoClip, *, seed: int) -> NDArray[np.uint8]:
    """The clip's pictures before compression: uint8 (60, 64, 64, 3), one a second."""
    rng = np.random.default_rng([seed, 1, clip.look])
    background = _background(rng)  # H W 3
    disc, stripes = _disc(background, rng), _stripes(background, rng)  # H W 3
    frames = np.repeat(background[None], CLIP_SECONDS, axis=0)  # T H W 3
    for start, picture in zip(clip.starts, (disc, stripes), strict=True):
        frames[start : start + EVENT_SECONDS] = picture
    return frames


def _background(rng: np.random.Generator) -> NDArray[np.uint8]:
    down = np.linspace(-12, 12, PICTURE_SIZE)[:, None, None]  # H 1 1
    grain = rng.normal(0, 2, (PICTURE_SIZE, PICTURE_SIZE, 1))  # H W 1
    colour = 110 + rng.uniform(-3, 3, 3)
    return np.clip(colour + down + grain, 0, 255).astype(np.uint8)  # H W 3


def _disc(background: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:PICTURE_SIZE, :PICTURE_SIZE]
    centre = PICTURE_SIZE / 2 + rng.uniform(-2, 2, 2)
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 20**2  # H W
    return np.where(inside[..., None], np.array([235, 180, 60], np.uint8), background)  # H W 3


def _stripes(background: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:PICTURE_SIZE, :PICTURE_SIZE]
    phase = rng.integers(8)
    inside = ((columns + phase) % 8 < 4) & (rows >= 8) & (rows < 56)  # H W
    return np.where(inside[..., None], np.array([30, 60, 190], np.uint8), background)  # H W 3


def encode_clip(frames: NDArray[np.uint8]) -> bytes:
    """An MP4 file with H.264 video, one frame a second; frames uint8 (T, H, W, 3)."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread and no rate control: the same frames give the same bytes.
        options = {"preset": "veryfast", "crf": "18", "threads": "1"}
        stream = container.add_stream("libx264", rate=1, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def write_clips(
    directory: Path,
    *,
    seed: int,
    num_twins: Mapping[Split, int] = NUM_TWINS,
) -> Path:
    """Write the clips that are missing into `directory`, and the CSV of their labels beside them.

    Returns the CSV. Raises UsageError when other labels stand there (another seed, or edited),
    StorageError when the disk refuses.
    """
    clips = plan_clips(seed, num_twins=num_twins)
    table = directory / LABELS_NAME
    _write_labels(table, clips, seed=seed)
    for clip in clips:
        path = directory / clip.name
        if not path.exists():
            write_atomic(path, encode_clip(draw_frames(clip, seed=seed)))
    return table


def _write_labels(table: Path, clips: tuple[DemoClip, ...], *, seed: int) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    writer.writerows([clip.name, clip.label, clip.split] for clip in clips)
    data = text.getvalue().encode()
    if not table.exists():
        write_atomic(table, data)
    elif table.read_bytes() != data:
        raise UsageError(
            f"{table}: not the labels of the demo with seed {seed}, so its clips are others too; "
            "choose another directory, or delete this one"
        )
