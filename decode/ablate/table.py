"""The settings of a sweep as a table: cells for people, and a CSV for programs."""

from __future__ import annotations

from collections.abc import Sequence

from ..report.formats import csv_lines
from .rows import Setting, axes_of, metric_name
from .sweep import leaf


def headings(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The axes by their last words, with the whole name where two have the same."""
    axes = axes_of(settings)
    leaves = [leaf(name) for name in axes]
    return tuple(
        short if leaves.count(short) == 1 else name
        for name, short in zip(axes, leaves, strict=True)
    )


def label(setting: Setting, axes: Sequence[str]) -> str:
    """`tokens 60x7x7, depth 1`: what a setting has on some axes, "" where that is nothing."""
    said = [(name, setting.value(name)) for name in axes]
    return ", ".join(f"{leaf(name)} {cell(value)}" for name, value in said if value is not None)


def cell(value: object) -> str:
    """A value of an axis in a table; "" for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_csv(settings: Sequence[Setting]) -> str:
    """A line for each setting, unrounded; accuracies are shares from 0 to 1, seeds and their
    scores separated by semicolons."""
    axes = axes_of(settings)
    names = ("task", "split", "metric", "mean", "std", "seeds", "by_seed", "floor", "videos")
    costs = ("num_tokens", "num_parameters", "memory_bytes", "seconds", "bytes_read")
    lines: list[Sequence[str]] = [(*axes, *names, *costs)]
    for setting in settings:
        first, figure = setting.first, setting.figure
        values: Sequence[object] = (
            first.task,
            first.split,
            metric_name(first.kind),
            figure.mean,
            "" if figure.std is None else figure.std,
            ";".join(str(row.seed) for row in setting.rows),
            ";".join(map(str, figure.values)),
            setting.floor,
            first.total,
            first.num_tokens,
            first.num_parameters,
            "" if setting.memory_bytes is None else setting.memory_bytes,
            setting.seconds,
            setting.bytes_read,
        )
        lines.append([*(cell(setting.value(name)) for name in axes), *map(str, values)])
    return csv_lines(lines)
