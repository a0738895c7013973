"""Names beside the points of a figure, where neither a point nor another name stands already.

Geometry on the drawn page, in typographic points; knows nothing of what the points are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT_POINTS = 7.0
_LETTER_WIDTH = 0.58 * FONT_POINTS  # of the default font, in the mean
_MARKER = 4.0  # half of one, with some air
_GAP = 6.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """[left, right) × [bottom, top) on the page."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point with its error bar, which reaches as far up as down, and what stands beside it."""

    x: float
    y: float
    reach: float = 0.0
    name: str

    @property
    def box(self) -> Box:
        half = max(_MARKER, self.reach)
        return Box(
            left=self.x - _MARKER, bottom=self.y - half, right=self.x + _MARKER, top=self.y + half
        )


def write_names(figure: Figure, axes: Axes, spots: Sequence[Spot]) -> None:
    """Write each name beside its point, whose numbers are the axes' data; equal names at one place
    once.

    To be called when everything else stands, for its layout is measured.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()
    spots = list(dict.fromkeys(spots))
    points = 72.0 / figure.dpi
    placed = [_on_page(axes, spot, points) for spot in spots]
    left, bottom, right, top = (float(edge) * points for edge in axes.bbox.extents)
    boxes = free_boxes(placed, within=Box(left=left, bottom=bottom, right=right, top=top))
    around = [withStroke(linewidth=2.0, foreground="white")]  # a line behind it does not cross it
    for spot, place, box in zip(spots, placed, boxes, strict=True):
        axes.annotate(
            spot.name,
            (spot.x, spot.y),
            textcoords="offset points",
            xytext=((box.left + box.right) / 2 - place.x, box.bottom - place.y),
            ha="center",
            fontsize=FONT_POINTS,
            path_effects=around,
        )


def _on_page(axes: Axes, spot: Spot, points: float) -> Spot:
    """points: in one pixel."""
    x, y = axes.transData.transform((spot.x, spot.y)) * points
    _, top = axes.transData.transform((spot.x, spot.y + spot.reach)) * points
    return Spot(x=float(x), y=float(y), reach=float(top - y), name=spot.name)


def free_boxes(spots: Sequence[Spot], *, within: Box) -> list[Box]:
    """Where the names of spots on the page go: above, below, or at a side, the first of these that
    is free and within the axes; above where none is."""
    taken = [spot.box for spot in spots]
    found: list[Box] = []
    for spot in spots:
        tries = _around(spot)
        free = (
            box
            for box in tries
            if within.holds(box) and not any(box.meets(other) for other in [*taken, *found])
        )
        found.append(next(free, tries[0]))
    return found


def _around(spot: Spot) -> tuple[Box, ...]:
    """Above, below, right and left of a point."""
    width = len(spot.name) * _LETTER_WIDTH
    above, below = spot.y + _GAP, spot.y - _GAP - FONT_POINTS
    centre, beside = spot.x - width / 2, spot.y - FONT_POINTS / 2
    right, left = spot.x + _GAP, spot.x - _GAP - width
    corners = ((centre, above), (centre, below), (right, beside), (left, beside))
    return tuple(
        Box(left=left, bottom=bottom, right=left + width, top=bottom + FONT_POINTS)
        for left, bottom in corners
    )
