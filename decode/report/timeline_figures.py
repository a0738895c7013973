"""One video over time as the page shows it: pictures, class probabilities or values, a key.

The label's band stands at the bottom, so that its height is its probability; what the video was
called, where that is wrong, is hatched. Each window is drawn at its middle.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...store.tasks import TaskKind
from . import charts
from .examples import Example, Still, mean_output

TOP_CLASSES = 4  # shown apart, the label among them; the others are one band
_OTHERS: tuple[charts.BandStyle, ...] = ("other1", "other2", "other3")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A still as the page carries it."""

    source: str
    time: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of a timeline's legend: the swatch's style, the name, its mean over the windows."""

    style: str
    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class TimelineFigure:
    """One video over time. x_ticks: (percent from the left, text); y_ticks: from the bottom.

    covered_percent: how much of the width the pictures take, less than 100 where the file that was
    found ends before the last window.
    """

    id: str
    reason: str
    verdict: str
    num_windows: int
    pictures: tuple[Picture, ...]
    covered_percent: float
    chart: Markup
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    keys: tuple[Key, ...]


def timeline_figure(
    example: Example, kind: TaskKind, classes: Sequence[str], stills: Sequence[Still] = ()
) -> TimelineFigure:
    """The figure of one chosen video, with the stills that there are."""
    timeline, stretch = example.timeline, example.stretch
    span = charts.Span(start=stretch.start_seconds, end=stretch.end_seconds)
    moments = [
        float(start + end) / 2
        for start, end in zip(timeline.start_seconds, timeline.end_seconds, strict=True)
    ]
    verdict, chart, y_ticks, keys = (
        _shares(example, classes, moments, span)
        if kind == "classification"
        else _values(example, moments, span)
    )
    return TimelineFigure(
        id=timeline.id,
        reason=example.reason,
        verdict=verdict,
        num_windows=len(moments),
        pictures=tuple(_picture(still) for still in stills),
        covered_percent=_covered_percent(stills, span),
        chart=chart,
        x_ticks=span.ticks(),
        y_ticks=y_ticks,
        keys=keys,
    )


Drawn = tuple[str, Markup, list[tuple[float, str]], tuple[Key, ...]]


def _shares(
    example: Example, classes: Sequence[str], moments: Sequence[float], span: charts.Span
) -> Drawn:
    """Class probabilities as stacked bands: the label at the bottom, then the most probable."""
    timeline, label = example.timeline, int(example.timeline.label)
    mean = mean_output(timeline)
    order = sorted(range(len(classes)), key=lambda c: (-mean[c], c))
    shown = [label, *[c for c in order if c != label][: TOP_CLASSES - 1]]
    called = order[0]
    styles: dict[int, charts.BandStyle] = dict(zip(shown[1:], _OTHERS, strict=False))
    styles[label] = "label"
    if called != label:
        styles[called] = "called"
    bands = [
        charts.Band(name=classes[c], style=styles[c], shares=tuple(timeline.outputs[:, c]))
        for c in shown
    ]
    said = {called: ", as it was called", label: ", the label"}
    keys = [
        Key(style=styles[c], name=classes[c] + said.get(c, ""), value=f"{100 * mean[c]:.0f} %")
        for c in shown
    ]
    rest = [c for c in range(len(classes)) if c not in shown]
    if rest:
        shares = timeline.outputs[:, rest].sum(axis=1)
        name = f"{len(rest)} other classes" if len(rest) > 1 else classes[rest[0]]
        bands.append(charts.Band(name=name, style="rest", shares=tuple(shares)))
        keys.append(Key(style="rest", name=name, value=f"{100 * mean[rest].sum():.0f} %"))
    outcome = "right" if called == label else f"wrong, it is {classes[label]}"
    verdict = f"called {classes[called]} with {100 * mean[called]:.0f} %: {outcome}"
    describe = f"Class probabilities of video {timeline.id} over time; {verdict}."
    chart = charts.share_chart(moments, bands, span=span, describe=describe)
    return verdict, chart, [(0, "0"), (50, "50"), (100, "100 %")], tuple(keys)


def _values(example: Example, moments: Sequence[float], span: charts.Span) -> Drawn:
    """One predicted value over time, with the label and the mean as level lines."""
    timeline, mean = example.timeline, float(mean_output(example.timeline)[0])
    verdict = f"predicted {mean:.3g}, the label is {timeline.label:.3g}"
    chart, y_ticks = charts.value_chart(
        moments,
        [float(value) for value in timeline.outputs[:, 0]],
        label=timeline.label,
        mean=mean,
        span=span,
        describe=f"Predicted value of video {timeline.id} over time; {verdict}.",
    )
    keys = (
        Key(style="value", name="predicted by window", value=""),
        Key(style="mean", name="mean, the video's prediction", value=f"{mean:.3g}"),
        Key(style="true", name="label", value=f"{timeline.label:.3g}"),
    )
    return verdict, chart, y_ticks, keys


def _covered_percent(stills: Sequence[Still], span: charts.Span) -> float:
    """Stills stand at the middles of equal parts, so that half a part follows the last one."""
    if len(stills) < 2:
        return 100.0
    half = (stills[-1].seconds - stills[0].seconds) / (len(stills) - 1) / 2
    percent = 100 * span.x(stills[-1].seconds + half) / charts.STRETCH[0]
    return 100.0 if percent > 95 else percent  # a last frame that is shown for long is no gap


def _picture(still: Still) -> Picture:
    return Picture(
        source="data:image/jpeg;base64," + base64.b64encode(still.jpeg).decode("ascii"),
        time=charts.clock(still.seconds),
        width=still.width,
        height=still.height,
    )
