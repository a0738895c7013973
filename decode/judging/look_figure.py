"""A contact sheet of where a decoder looked in a window: its frames in the order of time, as PNG.

Patches that were kept are clear, dropped ones dark and blue; weights lie over the frames as
colours. Frames are enlarged or shrunk by whole numbers of pixels, so that patches end in the figure
where they end in the frame. Cell i of n over m pixels is drawn from i·m/n to (i + 1)·m/n: where a
view pools patches into cells that overlap, every pixel shows the cell whose middle is nearest.

Pixels come from outside: knows neither videos nor backbones.

Letters: T frames of the window, F frames shown, h × w grid, H × W pixels.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...store.files import write_atomic
from ...store.wording import visible
from .look import WindowLook
from .predict import top_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png",)

MAX_FRAMES = 24
"""So many frames of a window are shown; of more, evenly chosen ones."""

SMALL_SIDE, LARGE_SIDE = 160, 288  # frames are enlarged to the first, shrunk to the second
SHEET_WIDTH = 1520  # frames side by side stay within it
HEADER_WIDTH = 760  # the least that the words above the frames are given
MARGIN, GAP, LABEL_HEIGHT, LINE_HEIGHT = 20, 10, 24, 22  # pixels, as all lengths here
PAPER = 255
DROPPED_BRIGHTNESS, DROPPED_TINT = 0.25, (34, 38, 54)  # blue, so that it is no black picture
COLOURS = "inferno"
LEAST_RANGE = 0.05  # of the mean weight, to both sides: what is all but even looks so
SCALE_SIZE = (12, 160)  # height, width of the strip that explains the colours
LETTER_HEIGHT, LETTER_WIDTH, BOLD_WIDTH = 14, 7.6, 9.5  # widths are means
SMALL_SHARE = 0.1  # of which a decimal is told
_DPI = 100
_TOP_CLASSES = 3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SheetLayout:
    """Where the frames are on a sheet. corners: (top, left) of each; tile: (height, width)."""

    height: int
    width: int
    corners: tuple[tuple[int, int], ...]
    tile: tuple[int, int]

    @property
    def scale_middle(self) -> int:
        """Of the header's last line, which explains the colours where there are any."""
        return self.corners[0][0] - GAP - LINE_HEIGHT // 2


def shown_places(num_frames: int) -> list[int]:
    """Which of a window's frames are shown: all, or `MAX_FRAMES` at even distances."""
    count = min(num_frames, MAX_FRAMES)
    return [i * num_frames // count for i in range(count)]


def draw_look(look: WindowLook, pictures: Pixels, path: Path) -> None:
    """Write the sheet.

    pictures: the frames at `shown_places`, as the backbone saw them: uint8 (F, H, W, 3).
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = shown_places(len(look.frames))
    if len(pictures) != len(places):
        raise ValueError(f"{len(pictures)} pictures for {len(places)} frames")
    tiles = _tiles(look, fitted(pictures), places)  # F H W 3
    layout = plan_sheet(len(tiles), (tiles.shape[1], tiles.shape[2]), num_lines=0)
    title, lines = _header(look, layout.width - 2 * MARGIN)
    num_lines = len(title) + len(lines) + (look.measure == "weights")
    layout = plan_sheet(len(tiles), layout.tile, num_lines=num_lines)
    figure = Figure(figsize=(layout.width / _DPI, layout.height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(_sheet(look, tiles, layout), origin="upper")
    _write_words(figure, look, title, lines, layout)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of a name in letters that the font has not: boxes stand there
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    write_atomic(path, buffer.getvalue())


# Pixels -----------------------------------------------------------------------------------------


def plan_sheet(num_frames: int, tile: tuple[int, int], *, num_lines: int) -> SheetLayout:
    """Frames in rows of equal length below a header of some lines."""
    height, width = tile
    most = max(1, (SHEET_WIDTH + GAP) // (width + GAP))
    num_rows = -(-num_frames // most)
    num_columns = -(-num_frames // num_rows)
    top = MARGIN + num_lines * LINE_HEIGHT + GAP
    across, down = width + GAP, height + LABEL_HEIGHT + GAP
    return SheetLayout(
        height=top + num_rows * down + MARGIN - GAP,
        width=2 * MARGIN + max(HEADER_WIDTH, num_columns * across - GAP),
        corners=tuple(
            (top + i // num_columns * down, MARGIN + i % num_columns * across)
            for i in range(num_frames)
        ),
        tile=tile,
    )


def fitted(pictures: Pixels) -> Pixels:
    """(F, H, W, 3) enlarged or shrunk by a whole number to a size that a person can see."""
    from PIL import Image

    side = max(pictures.shape[1:3])
    if side <= LARGE_SIDE:
        times = -(-SMALL_SIDE // side)
        return pictures.repeat(times, axis=1).repeat(times, axis=2)
    part = -(-side // LARGE_SIDE)
    return np.stack([np.asarray(Image.fromarray(each).reduce(part)) for each in pictures])


def over_pixels(patches: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Cells (F, h, w) as pixels (F, H, W)."""
    rows, columns = (
        np.arange(pixels) * cells // pixels
        for pixels, cells in zip(size, patches.shape[1:], strict=True)
    )
    return patches[:, rows][:, :, columns]


def _tiles(look: WindowLook, pictures: Pixels, places: Sequence[int]) -> Pixels:
    """Pictures (F, H, W, 3) with what was kept, or the weights, shown in them."""
    size = (pictures.shape[1], pictures.shape[2])
    grey = pictures.mean(axis=3, keepdims=True)  # F H W 1
    if look.measure == "kept":
        kept = over_pixels(look.patches[places], size)[..., None] > 0  # F H W 1
        shown = np.where(kept, pictures, DROPPED_BRIGHTNESS * grey + DROPPED_TINT)  # F H W 3
    else:
        low, high = _weight_range(look)
        part = (look.patches[places] - low) / ((high - low) or 1)  # F h w
        shown = (grey + _coloured(over_pixels(part, size))) / 2  # F H W 3
    return np.rint(shown).astype(np.uint8)


def _weight_range(look: WindowLook) -> tuple[float, float]:
    """The weights that have the ends of the colours: the least and the most of all patches, or
    less and more where they are all but alike."""
    mean = float(look.patches.mean())
    least, most = float(look.patches.min()), float(look.patches.max())
    return min(least, (1 - LEAST_RANGE) * mean), max(most, (1 + LEAST_RANGE) * mean)


def _coloured(share: NDArray[np.floating]) -> NDArray[np.float64]:
    """Numbers from 0 to 1, of any shape, as colours from 0 to 255: (…, 3)."""
    from matplotlib import colormaps

    return 255.0 * np.asarray(colormaps[COLOURS](share))[..., :3]


def _sheet(look: WindowLook, tiles: Pixels, layout: SheetLayout) -> Pixels:
    """Everything but the words: (H, W, 3)."""
    sheet = np.full((layout.height, layout.width, 3), PAPER, dtype=np.uint8)
    for tile, (top, left) in zip(tiles, layout.corners, strict=True):
        sheet[top : top + layout.tile[0], left : left + layout.tile[1]] = tile
    if look.measure == "weights":
        height, width = SCALE_SIZE
        top, left = layout.scale_middle - height // 2, MARGIN
        strip = _coloured(np.arange(width) / (width - 1))  # W 3
        sheet[top : top + height, left : left + width] = np.rint(strip / 2 + PAPER / 4)
    return sheet


# Words ------------------------------------------------------------------------------------------


def _header(look: WindowLook, width: int) -> tuple[list[str], list[str]]:
    """The lines of the title, and those below it."""
    title = f"{_short(look.prediction.id, most=200)}, {look.describe()}"
    said = [
        f"predicted of this window: {_predicted(look)}",
        f"{_explained(look)}. {_counted_frames(look)}.",
    ]
    letters = int(width / LETTER_WIDTH)
    lines = [line for text in said for line in textwrap.wrap(text, letters)]
    return textwrap.wrap(title, int(width / BOLD_WIDTH)), lines


def _predicted(look: WindowLook) -> str:
    prediction, output = look.prediction, look.window.output
    if not prediction.classes:
        return f"{output[0]:.4f}"
    best = top_classes(output, prediction.classes, count=_TOP_CLASSES)
    return ", ".join(f"{_short(each.name, most=60)} {each.probability:.1%}" for each in best)


def _short(name: str, *, most: int) -> str:
    """Somebody's text in letters that can be seen, and not too many of them."""
    shown = visible(name)
    return shown if len(shown) <= most else f"{shown[:most]}…"


def _explained(look: WindowLook) -> str:
    """What the pictures mean, with the figures of the whole window."""
    patches = look.patches
    if look.measure == "kept":
        return (
            f"{look.decoder} keeps {patches.sum():,.0f} of the {patches.size:,} patches "
            f"({patches.mean():.1%}): they are clear, dropped ones dark and blue; below each "
            "frame, its time and how much of it is kept"
        )
    return (
        f"{look.decoder} gives the patches {patches.sum():.1%} of all weight; below each frame, "
        "its time and its part of all weight"
    )


def _counted_frames(look: WindowLook) -> str:
    num_frames = len(look.frames)
    num_shown = len(shown_places(num_frames))
    if num_shown == num_frames:
        return f"All {num_frames} frames are shown" if num_frames > 1 else "It is a single frame"
    return f"{num_shown} of {num_frames} frames are shown, at even distances"


def _write_words(
    figure: Figure,
    look: WindowLook,
    title: Sequence[str],
    lines: Sequence[str],
    layout: SheetLayout,
) -> None:
    """The header, and below each frame its time and share."""

    def write(text: str, *, top: float, left: float, weight: str = "normal") -> None:
        figure.text(
            left / layout.width,
            1 - top / layout.height,
            text,
            va="center",
            fontsize=LETTER_HEIGHT * 72 / _DPI,
            fontweight=weight,
            parse_math=False,
        )

    for i, line in enumerate([*title, *lines]):
        middle = MARGIN + (i + 0.5) * LINE_HEIGHT
        write(line, top=middle, left=MARGIN, weight="bold" if i < len(title) else "normal")
    if look.measure == "weights":
        mean = float(look.patches.mean()) or 1
        low, high = _weight_range(look)
        text = f"from {low / mean:.2f} to {high / mean:.2f} times the weight of the mean patch"
        write(text, top=layout.scale_middle, left=MARGIN + SCALE_SIZE[1] + GAP)
    places = shown_places(len(look.frames))
    for place, (top, left) in zip(places, layout.corners, strict=True):
        frame = look.patches[place]  # h w
        share = float(frame.mean() if look.measure == "kept" else frame.sum())
        digits = 1 if 0 < share < SMALL_SHARE else 0
        text = f"{look.seconds[place]:.1f} s   {share:.{digits}%}"
        write(text, top=top + layout.tile[0] + LABEL_HEIGHT / 2, left=left)
