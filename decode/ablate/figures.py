"""Scores of a sweep against what was swept: mean ± standard deviation over seeds, and the floor.

    against tokens, window length, or any other axis of numbers    a line for each other setting
    against memory                                                 points, where it was measured
    settings                                                       one bar each, for axes of words

Each as PNG and SVG, for every task. Accuracies are percent. Settings are joined by a line only
where each has a place of its own on the axis that was swept.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...store.files import write_atomic
from .point_names import Spot, write_names
from .rows import Setting, axes_of
from .table import cell, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MAX_BARS = 40
_TICK_SHARE = 0.08  # of the axis, between two ticks at least
_MARKERS = "osD^vP*Xhd<>"
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_TOKENS, _WINDOW, _TASK = "tokens", "window_seconds", "task"


@dataclass(frozen=True, kw_only=True)
class Against:
    """What lies on the x axis. name: of the file. own: axes of the sweep that it stands for, and
    that therefore tell no lines apart. swept: whether it was chosen, and not measured; then a line
    joins the settings. named: whether a point is named by what it has of `own`."""

    name: str
    heading: str
    of: Callable[[Setting], float | None]
    own: tuple[str, ...]
    log: bool = False
    swept: bool = True
    named: bool = False


@dataclass(frozen=True, kw_only=True, order=True)
class Dot:
    """One setting: mean and standard deviation over its seeds, NaN for one; name: what it has of
    the axes that its line does not tell."""

    x: float
    mean: float
    std: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Settings that share all but the x axis, ascending by it. joined: whether it is a line, or
    only points of one colour."""

    name: str
    dots: tuple[Dot, ...]
    joined: bool = True


def draw_figures(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write every figure that a sweep gives; nothing where there is nothing to compare."""
    written: list[Path] = []
    tasks: defaultdict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        tasks[setting.first.task].append(setting)
    for task, own in tasks.items():
        prefix = f"{task.replace('/', '-')}-" if len(tasks) > 1 else ""
        for against in figure_axes(own):
            lines = lines_of(own, against)
            name = f"{prefix}{_metric(own)[1]}-{against.name}"
            written += _write(_line_figure(own, lines, against), folder, name)
        if _has_words(own) and len(own) > 1:
            name = f"{prefix}{_metric(own)[1]}-settings"
            written += _write(_bar_figure(own[:MAX_BARS], len(own)), folder, name)
    return written


def figure_axes(settings: Sequence[Setting]) -> list[Against]:
    """What differs in numbers between some settings of one task."""
    unit, size = _memory_unit(settings)
    found = [
        Against(
            name="tokens",
            heading="tokens in a window",
            of=lambda setting: float(setting.first.num_tokens),
            own=(_TOKENS, _WINDOW),
            log=True,
            named=True,
        ),
        Against(
            name="memory",
            heading=f"peak memory of a training step, {unit}",
            of=lambda s: None if s.memory_bytes is None else s.memory_bytes / size,
            own=(_TOKENS, _WINDOW),
            log=True,
            swept=False,
            named=True,
        ),
    ]
    for name in axes_of(settings):
        if name not in (_TOKENS, _TASK) and all(
            _number(setting, name) is not None for setting in settings
        ):
            heading = "window, s" if name == _WINDOW else name
            found.append(_against(name, heading))
    return [each for each in found if len({each.of(s) for s in settings} - {None}) > 1]


def _memory_unit(settings: Sequence[Setting]) -> tuple[str, float]:
    """The largest unit in which the largest of the settings is at least 1, and its bytes."""
    most = max((s.memory_bytes or 0 for s in settings), default=0)
    return next(((u, size) for u, size in _UNITS if most >= size), _UNITS[-1])


def _against(name: str, heading: str) -> Against:
    short = "window" if name == _WINDOW else name
    own = (_TOKENS, _WINDOW) if name == _WINDOW else (name,)
    return Against(name=short, heading=heading, of=lambda s: _number(s, name), own=own)


def lines_of(settings: Sequence[Setting], against: Against) -> list[Line]:
    """The settings as lines, in the order of their first ones."""
    factor = _metric(settings)[0]
    others = [name for name in axes_of(settings) if name not in (*against.own, _TASK)]
    dots: defaultdict[str, list[Dot]] = defaultdict(list)
    for setting in settings:
        x = against.of(setting)
        if x is None:
            continue
        figure = setting.figure
        dot = Dot(
            x=x,
            mean=factor * figure.mean,
            std=factor * _spread(setting),
            name=_view_name(setting) if against.named else "",
        )
        dots[label(setting, others)].append(dot)
    return [
        Line(
            name=name,
            dots=tuple(sorted(own)),
            joined=against.swept and len({dot.x for dot in own}) == len(own),
        )
        for name, own in dots.items()
    ]


def _spread(setting: Setting) -> float:
    """The standard deviation over seeds, of which one has none: NaN, which is drawn as nothing."""
    std = setting.figure.std
    return math.nan if std is None else std


def _view_name(setting: Setting) -> str:
    """`60x7x7, 20 s`: what was swept of the view and the window."""
    view, window = setting.value(_TOKENS), setting.value(_WINDOW)
    said = [cell(view)] if view is not None else []
    return ", ".join(said + ([f"{cell(window)} s"] if window is not None else []))


def _metric(settings: Sequence[Setting]) -> tuple[float, str, str]:
    """(factor, short name, heading) of a task's score."""
    first = settings[0].first
    split = first.split or "test"
    if first.kind == "classification":
        return 100.0, "accuracy", f"{split} accuracy, %"
    return 1.0, "mse", f"{split} mean squared error"


def _number(setting: Setting, name: str) -> float | None:
    value = setting.value(name)
    return None if value is None or isinstance(value, (bool, str)) else float(value)


def _has_words(settings: Sequence[Setting]) -> bool:
    """Whether anything but tokens was swept that is no number."""
    return any(
        isinstance(setting.value(name), (bool, str))
        for name in axes_of(settings)
        for setting in settings
        if name not in (_TOKENS, _TASK)
    )


# Drawing ----------------------------------------------------------------------------------------


def _line_figure(settings: Sequence[Setting], lines: Sequence[Line], against: Against) -> Figure:
    figure, axes = _figure((7, 4.5))
    for i, line in enumerate(lines):
        axes.errorbar(
            [dot.x for dot in line.dots],
            [dot.mean for dot in line.dots],
            yerr=_bars([dot.std for dot in line.dots]),
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle="-" if line.joined else "none",
            capsize=3,
            label=_plain(line.name) or None,
        )
    axes.axhline(_floor(settings), color="0.5", linestyle="--", label="floor")
    _set_scale(axes, sorted({dot.x for line in lines for dot in line.dots}), log=against.log)
    axes.set(xlabel=_plain(against.heading), ylabel=_metric(settings)[2], title=_title(settings))
    axes.grid(visible=True, color="0.9")
    _set_legend(figure)
    dots = [dot for line in lines for dot in line.dots if dot.name]
    write_names(figure, axes, [_spot(dot) for dot in dots])
    return figure


def _spot(dot: Dot) -> Spot:
    reach = 0.0 if math.isnan(dot.std) else dot.std
    return Spot(x=dot.x, y=dot.mean, reach=reach, name=_plain(dot.name))


def _bars(stds: Sequence[float]) -> Sequence[float] | None:
    """Error bars, where any of several settings has one."""
    return None if all(math.isnan(std) for std in stds) else stds


def _set_legend(figure: Figure) -> None:
    """Below the axes, where nothing is drawn."""
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def _set_scale(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    """A tick at each value, but for those too near to one that has its own."""
    log = log and values[0] > 0
    if log:
        axes.set_xscale("log")
    ticks = ticks_of(values, log=log)
    axes.set_xticks(ticks, [f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in ticks])
    axes.set_xticks([], minor=True)


def ticks_of(values: Sequence[float], *, log: bool) -> list[float]:
    """Those of some ascending values that are far enough apart on the axis to be written."""
    places = [math.log(value) if log else value for value in values]
    ticks, last = [values[0]], places[0]
    for value, place in zip(values, places, strict=True):
        if place - last >= _TICK_SHARE * (places[-1] - places[0]) > 0:
            ticks.append(value)
            last = place
    return ticks


def _bar_figure(settings: Sequence[Setting], total: int) -> Figure:
    figure, axes = _figure((8, 1.6 + 0.32 * len(settings)))
    names = [name for name in axes_of(settings) if name != _TASK]
    factor, _, heading = _metric(settings)
    places = range(len(settings))
    axes.barh(
        places,
        [factor * setting.figure.mean for setting in settings],
        xerr=_bars([factor * _spread(setting) for setting in settings]),
        color="C0",
        capsize=3,
    )
    axes.set_yticks(places, [_plain(label(setting, names)) for setting in settings])
    axes.invert_yaxis()
    axes.axvline(_floor(settings), color="0.5", linestyle="--", label="floor")
    left_out = "" if total == len(settings) else f", the first {len(settings)} of {total}"
    axes.set(xlabel=heading, title=_title(settings) + left_out)
    _set_legend(figure)
    return figure


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    # Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.margins(x=0.1)  # room for what stands beside the outermost
    return figure, axes


def _floor(settings: Sequence[Setting]) -> float:
    return _metric(settings)[0] * settings[0].floor


def _title(settings: Sequence[Setting]) -> str:
    counts = {len(setting.rows) for setting in settings}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
    spread = ", mean ± standard deviation" if max(counts) > 1 else ""
    return f"{settings[0].first.task}, {seeds} seed{'s' * (max(counts) > 1)}{spread}"


def _plain(text: str) -> str:
    """Text that is no mathematics to matplotlib."""
    return text.replace("$", r"\$")


def _write(figure: Figure, folder: Path, name: str) -> Iterator[Path]:
    for kind in FORMATS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        path = folder / f"{name}.{kind}"
        write_atomic(path, buffer.getvalue())
        yield path
