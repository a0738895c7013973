"""Charts for the HTML page, as SVG text: small pure functions from numbers to one `<svg>` each.

Colours are classes of the page's stylesheet, so that a chart follows light, dark and print. A chart
never speaks by colour alone: lines differ in dashes, marks in shape, bands in order and hatching. A
point that is not finite is a gap in its line. Knows no runs, tasks or videos.

    line_chart([Line(name="seed 0", points=((1, 0.7), (2, 0.5)), style="val")],
               x_label="epoch", y_label="loss", describe="Loss over two epochs.")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from markupsafe import Markup, escape

T = TypeVar("T")
Point = tuple[float, float]
LineStyle = Literal["train", "val", "value"]
BandStyle = Literal["label", "called", "other1", "other2", "other3", "rest"]
Attributes = Mapping[str, str | float]

WIDTH, HEIGHT = 340, 220  # of a small chart, about the CSS pixels that a phone gives it
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 38  # margins around the plotted area
STRETCH = (1000, 100)  # inner size of a chart that the page stretches to its own width
MAX_POINTS = 400
"""More points on a line than pixels say nothing; a longer line is thinned evenly."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line; `name` is shown when a pointer rests on it. marked: a point to ring."""

    name: str
    points: tuple[Point, ...]
    style: LineStyle
    marked: Point | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band of a stack: its share, 0–1, at each moment."""

    name: str
    style: BandStyle
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Half-open seconds that a stretched chart shows from edge to edge."""

    start: float
    end: float

    def x(self, seconds: float) -> float:
        """Where a moment stands across, 0 to the inner width, held at the edges."""
        length = max(self.end - self.start, 1e-9)
        return STRETCH[0] * min(1.0, max(0.0, (seconds - self.start) / length))

    def ticks(self) -> list[tuple[float, str]]:
        """(percent from the left, text) of round moments."""
        length = max(self.end - self.start, 1e-9)
        inside = [t for t in nice_ticks(self.start, self.end, count=6) if t <= self.end]
        return [(100 * (t - self.start) / length, clock(t)) for t in inside if t >= self.start]


def clock(seconds: float) -> str:
    """A moment as players show it: `1:05`, or with a decimal below ten seconds of a short clip.

    >>> clock(65.0), clock(3725.4), clock(2.5)
    ('1:05', '1:02:05', '0:02.5')
    """
    tenths = round(10 * max(0.0, seconds))
    whole, tenth = divmod(tenths, 10)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return text + (f".{tenth}" if tenth and whole < 10 else "")


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` or below to `high` or above.

    >>> nice_ticks(0.13, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not math.isfinite(high - low):
        return [0.0, 1.0]
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) / 2 or 0.5  # one value only: some room around it
        low, high = low - room, high + room
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    describe: str,
    y_limits: tuple[float, float] | None = None,
) -> Markup:
    """Lines over whole numbers (epochs). y_limits: the least that the axis shows."""
    thinned = [(line, thin(line.points)) for line in lines]
    finite = [p for _, points in thinned for p in points if _is_finite(p)]
    axes = _Axes.around(finite, y_limits=y_limits, whole_x=True)
    parts = [axes.draw(x_label, y_label)]
    for line, points in thinned:
        title = _element("title", {}, escape(line.name))
        if len(points) == 1 and _is_finite(points[0]):
            parts.append(_dot(axes.place(points[0]), f"dot {line.style}", title))
        else:
            path = axes.path(points)
            parts.append(_element("path", {"class": f"line {line.style}", "d": path}, title))
    for line in lines:
        if line.marked is not None and _is_finite(line.marked):
            title = _element("title", {}, escape(f"{line.name}: best epoch {line.marked[0]:g}"))
            parts.append(_dot(axes.place(line.marked), "ring", title, radius=4))
    return _svg(parts, describe)


def scatter_chart(
    points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str, describe: str
) -> Markup:
    """(x, y, name) as dots on equal axes, with the diagonal where both are equal."""
    shown = thin([p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])], limit=2000)
    values = [v for x, y, _ in shown for v in (x, y)]
    both = (min(values, default=0.0), max(values, default=1.0))
    axes = _Axes.around([(both[0], both[0]), (both[1], both[1])], y_limits=None, whole_x=False)
    low, high = axes.x_ticks[0], axes.x_ticks[-1]
    diagonal = {"class": "rule", "d": axes.path([(low, low), (high, high)])}
    parts = [axes.draw(x_label, y_label), _element("path", diagonal)]
    for x, y, name in shown:
        title = _element("title", {}, escape(f"{name}: true {x:.3g}, predicted {y:.3g}"))
        parts.append(_dot(axes.place((x, y)), "dot value", title))
    return _svg(parts, describe)


def share_chart(
    moments: Sequence[float], bands: Sequence[Band], *, span: Span, describe: str
) -> Markup:
    """Stacked bands from 0 at the bottom to 1, without any text: the page stretches it.

    moments: seconds, ascending, one a share. Before the first and after the last moment the shares
    are held, and veiled.
    """
    kept = thin(range(len(moments)))
    times = [moments[i] for i in kept]
    below = [0.0] * len(kept)
    parts = []
    for band in bands:
        above = [b + _share(band.shares[i]) for b, i in zip(below, kept, strict=True)]
        attributes = {"class": f"band {band.style}", "d": _ribbon(times, below, above, span)}
        parts.append(_element("path", attributes, _element("title", {}, escape(band.name))))
        below = above
    half = STRETCH[1] / 2
    parts.append(_element("path", {"class": "half", "d": f"M0 {half:g}H{STRETCH[0]}"}))
    return _stretched([*parts, _veils(times, span)], describe)


def value_chart(
    moments: Sequence[float],
    values: Sequence[float],
    *,
    label: float,
    mean: float,
    span: Span,
    describe: str,
) -> tuple[Markup, list[tuple[float, str]]]:
    """A predicted value over time with the label and the mean as level lines, to be stretched.

    Returns the chart and its ticks as (percent from the bottom, text).
    """
    kept = thin(range(len(moments)))
    times = [moments[i] for i in kept]
    finite = [v for v in (*values, label, mean) if math.isfinite(v)]
    least, most = min(finite, default=0.0), max(finite, default=1.0)
    room = (most - least) / 25  # no line lies on an edge
    ticks = nice_ticks(least - room, most + room, count=4)
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return STRETCH[1] * (high - value) / (high - low)

    held = _held(times, [values[i] for i in kept], span)
    path = _path((span.x(t), y(v)) for t, v in held)
    levels = [("rule label", label, "label"), ("rule", mean, "mean prediction")]
    parts = [_element("path", {"class": "line value", "d": path})]
    for style, value, name in levels:
        if math.isfinite(value):
            title = _element("title", {}, escape(f"{name}: {value:.3g}"))
            level = {"class": style, "d": f"M0 {y(value):.2f}H{STRETCH[0]}"}
            parts.append(_element("path", level, title))
    chart = _stretched([*parts, _veils(times, span)], describe)
    return chart, [(100 * (t - low) / (high - low), f"{t:g}") for t in ticks]


def thin(items: Sequence[T], *, limit: int = MAX_POINTS) -> list[T]:
    """At most `limit` of the items, evenly chosen, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Round ticks, the first and last of which are the plotted area's edges."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_limits: tuple[float, float]

    @classmethod
    def around(
        cls, points: Sequence[Point], *, y_limits: tuple[float, float] | None, whole_x: bool
    ) -> _Axes:
        xs, ys = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 1.0]
        if y_limits is not None:
            ys = [*ys, *y_limits]
        x_ticks = nice_ticks(min(xs), max(xs))
        limits = (x_ticks[0], x_ticks[-1])
        if whole_x:  # epochs begin at the first one, not at a round number below it
            limits = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
            inside = [t for t in x_ticks if t == int(t) and min(xs) <= t <= max(xs)]
            x_ticks = inside or [min(xs)]
        return cls(x_ticks=x_ticks, y_ticks=nice_ticks(min(ys), max(ys)), x_limits=limits)

    def place(self, point: Point) -> Point:
        left, right = self.x_limits
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - left) / (right - left),
            TOP + (HEIGHT - TOP - BOTTOM) * (high - point[1]) / (high - low),
        )

    def path(self, points: Sequence[Point]) -> str:
        return _path(self.place(p) if _is_finite(p) else p for p in points)

    def draw(self, x_label: str, y_label: str) -> Markup:
        """Grid, tick texts and axis names."""
        bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
        parts = []
        for tick in self.y_ticks:
            y = self.place((self.x_limits[0], tick))[1]
            grid = {"class": "grid", "d": f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"}
            parts += [_element("path", grid), _text(LEFT - 6, y + 4, f"{tick:g}", anchor="end")]
        for tick in self.x_ticks:
            x = self.place((tick, self.y_ticks[0]))[0]
            parts.append(_text(x, bottom + 15, f"{tick:g}", anchor="middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, anchor="middle"))
        turned = {"class": "name", "transform": f"translate(11 {middle:g}) rotate(-90)"}
        parts.append(_element("text", {**turned, "text-anchor": "middle"}, escape(y_label)))
        return Markup("").join(parts)


def _ribbon(
    times: Sequence[float], below: Sequence[float], above: Sequence[float], span: Span
) -> str:
    """The closed outline of a band, held to both edges."""
    height = STRETCH[1]
    upper = [(span.x(t), height * (1 - v)) for t, v in _held(times, above, span)]
    lower = [(span.x(t), height * (1 - v)) for t, v in _held(times, below, span)]
    return _path([*upper, *reversed(lower)]) + "Z"


def _held(times: Sequence[float], values: Sequence[float], span: Span) -> list[Point]:
    """The points, and the outermost values once more at the edges."""
    if not times:
        return []
    inner = list(zip(times, values, strict=True))
    return [(span.start, values[0]), *inner, (span.end, values[-1])]


def _veils(times: Sequence[float], span: Span) -> Markup:
    """What pales the parts of a chart where values are only held."""
    if not times:
        return Markup("")
    first, last, (width, height) = span.x(times[0]), span.x(times[-1]), STRETCH
    parts = []
    for x, wide in ((0.0, first), (last, width - last)):
        if wide > 0 and len(times) > 1:
            place: Attributes = {"x": round(x, 2), "y": 0, "width": round(wide, 2)}
            parts.append(_element("rect", {"class": "veil", **place, "height": height}))
    return Markup("").join(parts)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _is_finite(point: Sequence[float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _path(points: Iterable[Point]) -> str:
    """M and L commands; a point that is not finite lifts the pen."""
    commands, pen = [], "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            commands.append(f"{pen}{x:.2f} {y:.2f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(commands)


def _dot(place: Point, style: str, title: Markup, *, radius: float = 2.5) -> Markup:
    x, y = (round(value, 2) for value in place)
    return _element("circle", {"class": style, "cx": x, "cy": y, "r": radius}, title)


def _text(x: float, y: float, text: str, *, anchor: str) -> Markup:
    place: Attributes = {"x": round(x, 1), "y": round(y, 1), "text-anchor": anchor}
    return _element("text", place, escape(text))


def _svg(parts: Iterable[Markup], describe: str) -> Markup:
    box: Attributes = {"class": "chart", "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return _element("svg", {**box, "role": "img", "aria-label": describe}, Markup("").join(parts))


def _stretched(parts: Iterable[Markup], describe: str) -> Markup:
    box: Attributes = {"class": "stretch", "viewBox": f"0 0 {STRETCH[0]} {STRETCH[1]}"}
    free: Attributes = {"preserveAspectRatio": "none", "role": "img", "aria-label": describe}
    return _element("svg", {**box, **free}, Markup("").join(parts))


def _element(name: str, attributes: Attributes, content: Markup | None = None) -> Markup:
    """One element; attribute values are escaped, content is markup already."""
    said = "".join(f' {key}="{escape(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{said}>{content or ''}</{name}>")
