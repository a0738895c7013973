"""The cost of decoders against the number of tokens, as a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...store.files import write_atomic
from ..report.published import PUBLISHED_COSTS
from .records import BenchResult, BenchRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_MARKERS = "osD^vP*Xhd<>"
_LINE_LETTERS = 150


def draw_costs(result: BenchResult, path: Path) -> None:
    """Write PNG or SVG: samples per second and peak memory against tokens, on logarithmic axes.

    Training steps are solid lines, forward passes dashed, the paper's figures grey; what could not
    be measured is named above them.
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 6), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    handles = []
    for i, subject in enumerate(result.request.subjects):
        rows = sorted((r for r in result.rows if r.subject == subject), key=lambda r: r.num_tokens)
        color, marker = f"C{i}", _MARKERS[i % len(_MARKERS)]
        for axes, figure_of in ((speed, _speeds), (memory, _memories)):
            for work, line in (("train", "-"), ("forward", "--")):
                _plot(axes, rows, figure_of(work), line=line, color=color, marker=marker)
        label = f"{subject.label}, training step, ours".replace("$", r"\$")
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="forward pass, ours"))
    _draw_paper(speed, memory, {subject.name for subject in result.request.subjects})
    handles += speed.get_legend_handles_labels()[0]
    for axes, name in ((speed, "samples / s"), (memory, "peak memory, GB")):
        axes.set(xscale="log", yscale="log", xlabel="tokens in a window", ylabel=name)
        axes.grid(visible=True, color="0.9")
    figure.legend(handles=handles, fontsize="small", loc="outside lower center", ncols=3)
    said = [describe_conditions(result)]
    if lost := _not_measured(result.rows):
        said += textwrap.wrap(f"not measured: {lost}", _LINE_LETTERS)
    figure.suptitle("\n".join(said).replace("$", r"\$"), fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:])
    write_atomic(path, buffer.getvalue())


def describe_conditions(result: BenchResult) -> str:
    """Width, batch, precision, device: what figures of a bench depend on, in one line."""
    request, machine = result.request, result.machine
    parts = [
        f"tokens {request.dim} wide",
        f"batch {request.batch_size}",
        result.precision,
        f"{result.device} ({machine.get('device', 'nothing measured')})",
    ]
    if result.device == "cpu" and "threads" in machine:
        parts.append(f"{machine['threads']} threads")
    if "torch" in machine:
        parts.append(f"torch {machine['torch']}")
    return ", ".join(parts)


def _speeds(work: str) -> Callable[[BenchRow], float | None]:
    def of(row: BenchRow) -> float | None:
        cost = row.train if work == "train" else row.forward
        return None if cost is None else cost.samples_per_second

    return of


def _memories(work: str) -> Callable[[BenchRow], float | None]:
    def of(row: BenchRow) -> float | None:
        cost = row.train if work == "train" else row.forward
        return None if cost is None or not cost.peak_bytes else cost.peak_bytes / 1e9

    return of


def _plot(
    axes: Axes,
    rows: Sequence[BenchRow],
    figure_of: Callable[[BenchRow], float | None],
    *,
    line: str,
    color: str,
    marker: str,
) -> None:
    points = [(row.num_tokens, y) for row in rows if (y := figure_of(row)) is not None]
    tokens, figures = [x for x, _ in points], [y for _, y in points]
    alpha = 1.0 if line == "-" else 0.6
    axes.plot(tokens, figures, linestyle=line, color=color, marker=marker, alpha=alpha)


def _draw_paper(speed: Axes, memory: Axes, names: set[str]) -> None:
    for name, line in (("vis4mer", "-"), ("lst", ":")):
        costs = [cost for cost in PUBLISHED_COSTS if cost.decoder == name]
        if name not in names or not costs:
            continue
        tokens = [cost.num_tokens for cost in costs]
        for axes, figures in (
            (speed, [cost.samples_per_second for cost in costs]),
            (memory, [cost.gigabytes for cost in costs]),
        ):
            label = f"{name}, paper (their GPU)"
            axes.plot(tokens, figures, color="0.6", linestyle=line, label=label)


def _not_measured(rows: Sequence[BenchRow]) -> str:
    return ", ".join(
        f"{row.subject.label} at {row.view} ({row.status})"
        for row in rows
        if row.status != "measured"
    )
