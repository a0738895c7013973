"""Scores of a sweep against what was swept: mean ± standard deviation over seeds, and the floor.

    against tokens, window length, or any other axis of numbers    a line for each other setting
    against memory                                                 the same, where it was measured
    settings                                                       one bar each, for axes of words

Each as PNG and SVG, for every task. Accuracies are percent.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ...store.files import write_atomic
from .rows import Setting, axes_of
from .table import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MAX_BARS = 40
MAX_TICKS = 10
_MARKERS = "osD^vP*Xhd<>"
_TOKENS, _WINDOW, _TASK = "tokens", "window_seconds", "task"


@dataclass(frozen=True, kw_only=True)
class Against:
    """What lies on the x axis. name: of the file. own: axes of the sweep that it stands for, and
    that therefore tell no lines apart."""

    name: str
    heading: str
    of: Callable[[Setting], float | None]
    own: tuple[str, ...]
    log: bool = False


@dataclass(frozen=True, kw_only=True, order=True)
class Dot:
    """One setting: mean and standard deviation over its seeds, 0 for one; name: what it has of
    the axes that its line does not tell."""

    x: float
    mean: float
    std: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Settings that share all but the x axis, ascending by it."""

    name: str
    dots: tuple[Dot, ...]


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
    found = [
        Against(
            name="tokens",
            heading="tokens in a window",
            of=lambda setting: float(setting.first.num_tokens),
            own=(_TOKENS, _WINDOW),
            log=True,
        ),
        Against(
            name="memory",
            heading="peak memory of a training step, GB",
            of=lambda s: None if s.memory_bytes is None else s.memory_bytes / 1e9,
            own=(_TOKENS, _WINDOW),
            log=True,
        ),
    ]
    for name in axes_of(settings):
        if name not in (_TOKENS, _TASK) and all(
            _number(setting, name) is not None for setting in settings
        ):
            heading = "window, s" if name == _WINDOW else name
            found.append(_against(name, heading))
    return [each for each in found if len({each.of(s) for s in settings} - {None}) > 1]


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
            std=factor * (figure.std or 0.0),
            name=label(setting, against.own),
        )
        dots[label(setting, others)].append(dot)
    return [Line(name=name, dots=tuple(sorted(own))) for name, own in dots.items()]


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
        stds = [dot.std for dot in line.dots]
        axes.errorbar(
            [dot.x for dot in line.dots],
            [dot.mean for dot in line.dots],
            yerr=stds if any(stds) else None,
            marker=_MARKERS[i % len(_MARKERS)],
            capsize=3,
            label=_plain(line.name) or None,
        )
        for dot in line.dots if against.name == "memory" else ():
            axes.annotate(
                _plain(dot.name),
                (dot.x, dot.mean),
                textcoords="offset points",
                xytext=(0, 6),
                ha="center",
                fontsize="x-small",
            )
    axes.axhline(_floor(settings), color="0.5", linestyle="--", label="floor")
    _set_scale(axes, sorted({dot.x for line in lines for dot in line.dots}), log=against.log)
    axes.set(xlabel=_plain(against.heading), ylabel=_metric(settings)[2], title=_title(settings))
    axes.grid(visible=True, color="0.9")
    axes.legend(fontsize="small")
    return figure


def _set_scale(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    """A tick at each value where they are few and apart."""
    if log and values[0] > 0:
        axes.set_xscale("log")
        apart = all(b >= 1.15 * a for a, b in pairwise(values))
    else:
        apart = all(b - a >= 0.06 * (values[-1] - values[0]) for a, b in pairwise(values))
    if apart and len(values) <= MAX_TICKS:
        axes.set_xticks(values, [f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in values])
        axes.set_xticks([], minor=True)


def _bar_figure(settings: Sequence[Setting], total: int) -> Figure:
    figure, axes = _figure((8, 1.6 + 0.32 * len(settings)))
    names = [name for name in axes_of(settings) if name != _TASK]
    factor, _, heading = _metric(settings)
    places = range(len(settings))
    axes.barh(
        places,
        [factor * setting.figure.mean for setting in settings],
        xerr=[factor * (setting.figure.std or 0.0) for setting in settings],
        color="C0",
        capsize=3,
    )
    axes.set_yticks(places, [_plain(label(setting, names)) for setting in settings])
    axes.invert_yaxis()
    axes.axvline(_floor(settings), color="0.5", linestyle="--", label="floor")
    left_out = "" if total == len(settings) else f", the first {len(settings)} of {total}"
    axes.set(xlabel=heading, title=_title(settings) + left_out)
    axes.legend(fontsize="small")
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
