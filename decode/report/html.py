"""The report as one HTML page that needs nothing beside it: no script, no request, no file.

    page = render_page(report, {run.path: read_examples(run) for run in report_runs(report)})

Everything that comes from a run is text: the template escapes it, characters that command a
terminal or turn the writing direction are spelled out, and long lists are cut with a count. Stills
of videos are given from outside; nothing here opens a video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...store.tasks import TaskKind
from ...store.wording import visible
from . import figures
from .collect import RunFacts
from .examples import RULE, RunExamples, Still, VideoStretch
from .repeat import Setting, run_name, setting_of
from .rows import Cell, Row
from .sheet import Sheet, counts_text, figure_text, interval_text, mean_text, sheets, unseen_text
from .table import Report
from .timeline_figures import TimelineFigure, timeline_figure

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the page shows of one row on one task."""

    label: str
    facts: Facts
    lacking: tuple[figures.IdList, ...]
    notes: tuple[str, ...]
    curves: figures.CurveFigure | None
    confusion: figures.Confusion | None
    scatter: figures.ScatterFigure | None
    timelines: tuple[TimelineFigure, ...]
    timelines_about: str


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """All rows of one task."""

    name: str
    anchor: str
    about: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template prints, in its order."""

    title: str
    subtitle: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    tasks: tuple[TaskSection, ...]
    settings: tuple[Setting, ...]
    footer: str


def report_runs(report: Report) -> list[RunFacts]:
    """The runs whose windows the page shows: of every row and task the first seed's."""
    return [cell.runs[0] for cell in _cells(report)]


def render_page(
    report: Report,
    examples: Mapping[Path, RunExamples],
    *,
    stills: Mapping[VideoStretch, Sequence[Still]] | None = None,
    notes: Sequence[str] = (),
    made: date | None = None,
) -> str:
    """The whole page. examples: by run directory. notes: said below the summary, of stills say.
    made: the date on the page, default today."""
    page = _page(report, examples, stills or {}, notes, made or date.today())
    files = resources.files(__package__)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    template = environment.from_string(files.joinpath("page.html.jinja").read_text("utf-8"))
    style = Markup(files.joinpath("page.css").read_text("utf-8"))
    return visible(template.render(page=page, style=style), keep="\t\n")


def _page(
    report: Report,
    examples: Mapping[Path, RunExamples],
    stills: Mapping[VideoStretch, Sequence[Still]],
    notes: Sequence[str],
    made: date,
) -> Page:
    datasets = ", ".join(table.dataset for table in report.tables)
    num_runs = sum(len(cell.runs) for cell in _cells(report))
    tasks = tuple(_sections(report, examples, stills))
    runs = f"{num_runs} run{'s' * (num_runs > 1)}"
    of_tasks = f"{len(tasks)} task{'s' * (len(tasks) > 1)}"
    return Page(
        title=f"Results on {datasets}",
        subtitle=f"{runs} on {of_tasks}. {made.isoformat()}, vis4mer {__version__}.",
        sheets=tuple(sheets(report)),
        notes=tuple(notes),
        left_out=tuple(f"{run_name(each.path)}: {each.reason}" for each in report.left_out),
        tasks=tasks,
        settings=tuple(setting_of(row) for row in _rows(report)),
        footer="This page holds everything that it shows: it loads nothing and runs no script.",
    )


def _sections(
    report: Report,
    examples: Mapping[Path, RunExamples],
    stills: Mapping[VideoStretch, Sequence[Still]],
) -> Iterator[TaskSection]:
    for table in report.tables:
        for column in table.columns:
            task = column.task
            found = [(row, row.cells[task]) for row in table.rows if task in row.cells]
            if found:
                parts = [
                    _part(row, cell, examples.get(cell.runs[0].path, RunExamples()), stills)
                    for row, cell in found
                ]
                yield TaskSection(
                    name=task,
                    anchor="task-" + re.sub(r"[^a-z0-9]+", "-", task.lower()),
                    about=_about(found[0][1]),
                    parts=tuple(parts),
                )


def _about(cell: Cell) -> str:
    """What a task is, in a line."""
    classes = len(cell.runs[0].about.classes)
    if cell.kind == "regression":
        return "A regression, judged by the mean squared error: lower is better."
    return f"A choice of {classes} classes, judged by the share of test videos that are right."


def _part(
    row: Row,
    cell: Cell,
    found: RunExamples,
    stills: Mapping[VideoStretch, Sequence[Still]],
) -> Part:
    first, kind = cell.runs[0], cell.kind
    curves = [figures.SeedCurve(name=f"seed {r.seed}", epochs=r.epochs) for r in cell.runs]
    scatter = figures.scatter_figure(first.test, f"seed {first.seed}")
    drawn = [
        timeline_figure(e, kind, first.about.classes, stills.get(e.stretch, ()))
        for e in found.examples
    ]
    return Part(
        label=row.label,
        facts=tuple(_facts(row, cell)),
        lacking=figures.lacking(cell.coverage),
        notes=(*cell.notes, *([found.note] if found.note else [])),
        curves=figures.curve_figure(curves, kind),
        confusion=figures.confusion([run.test for run in cell.runs]),
        scatter=scatter if kind == "regression" else None,
        timelines=tuple(drawn),
        timelines_about=_timelines_about(first, kind, with_stills=any(d.pictures for d in drawn)),
    )


def _timelines_about(run: RunFacts, kind: TaskKind, *, with_stills: bool) -> str:
    """How the videos were chosen, and how to see them where there are none."""
    said = f"Of seed {run.seed}'s test videos: {RULE[kind]}."
    if not with_stills:
        said += " Their frames are shown here when the report is made with --videos DIR."
    return said


def _facts(row: Row, cell: Cell) -> Iterator[tuple[str, str]]:
    """The figures of one row on one task, a line each."""
    kind, total = cell.kind, cell.total
    unit, floor = _WORDS[kind]
    interval = interval_text(cell.interval, kind)
    yield unit, f"{mean_text(cell.figure, kind)}, 95 % interval {interval}"
    if cell.correct:
        yield "right, by seed", counts_text(cell.correct, total)
    yield floor, figure_text(cell.floor, kind)
    if cell.unseen is not None:
        yield "unseen in training", unseen_text(cell.unseen, total, kind)
    if cell.best is not None:
        yield "best-val epoch", mean_text(cell.best, kind)
    if cell.last is not None:
        yield "last epoch", mean_text(cell.last, kind)
    if cell.best_test is not None:
        yield "best test epoch, chosen on the test split", mean_text(cell.best_test, kind)
    yield "coverage", f"{cell.coverage.present}/{cell.coverage.total} test videos"
    yield "seeds", figures.ranges(cell.seeds)
    yield "protocol", row.protocol


# What a figure is, and what its floor is.
_WORDS: Mapping[TaskKind, tuple[str, str]] = {
    "classification": ("accuracy, %", "most frequent class, %"),
    "regression": ("mean squared error", "predicting zero"),
}


def _cells(report: Report) -> list[Cell]:
    """Each once, in the order of the page."""
    return [
        row.cells[column.task]
        for table in report.tables
        for column in table.columns
        for row in table.rows
        if column.task in row.cells
    ]


def _rows(report: Report) -> list[Row]:
    """Each once, though it may stand in the tables of two datasets."""
    rows: list[Row] = []
    for table in report.tables:
        rows += [row for row in table.rows if not any(row is other for other in rows)]
    return rows
