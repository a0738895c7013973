"""The report as text in cells: what every written form of it says.

Figures of a classification are percent of test videos with two decimals, as papers print them;
squared errors have three. A sheet is a table with sections and numbered notes; knows no markup,
which is the matter of `formats`, and escapes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ...store.tasks import TaskKind
from ..judging.statistics import Interval, SeedStatistics
from .published import PublishedGroup
from .rows import Cell, Row, Unseen
from .table import Column, Comparison, Report, Table

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Text:
    """What stands in a cell; marks: numbers of the sheet's notes.

    short: the same where a line is short, such as `57.1±2.4`; "" where it is no shorter.
    """

    text: str
    marks: tuple[int, ...] = ()
    short: str = ""

    @property
    def parts(self) -> tuple[str, str]:
        """A figure's mean, and `± 2.38` or nothing."""
        mean, sign, std = self.text.partition(" ± ")
        return mean, sign.lstrip() + std


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """cells: one a column, the first names the row. under: a second line for each, or none."""

    cells: tuple[Text, ...]
    under: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows that belong together; title: "" for none. published: others' figures."""

    title: str
    rows: tuple[SheetRow, ...]
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table. numeric: which columns are set to the right. notes: what the marks refer to, the
    first is number 1. remarks: how to read the table as a whole."""

    title: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class _Notes:
    """Numbers notes as they come; the same text has one number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, *texts: str) -> tuple[int, ...]:
        given = [text for text in texts if text]
        self.texts += [text for text in given if text not in self.texts]
        return tuple(self.texts.index(text) + 1 for text in given)


def figure_text(value: float, kind: TaskKind) -> str:
    """`57.14` for an accuracy of 0.5714, `0.263` for a squared error."""
    text = f"{100 * value:.2f}" if kind == "classification" else f"{value:.3f}"
    return text.replace("-", "−")


def mean_text(figure: SeedStatistics | None, kind: TaskKind) -> str:
    """`57.14 ± 2.38`; the mean alone for a single seed, a dash for none."""
    if figure is None:
        return NONE
    mean = figure_text(figure.mean, kind)
    return mean if figure.std is None else f"{mean} ± {figure_text(figure.std, kind)}"


def short_text(figure: SeedStatistics | None, kind: TaskKind) -> str:
    """`57.1±2.4`, `0.26±0.03`: as `mean_text`, for a terminal."""
    if figure is None:
        return NONE
    percent = kind == "classification"
    factor, decimals = (100, 1) if percent else (1, 2 if abs(figure.mean) < 10 else 1)
    figures = (figure.mean,) if figure.std is None else (figure.mean, figure.std)
    return "±".join(f"{factor * value:.{decimals}f}" for value in figures)


def interval_text(interval: Interval | None, kind: TaskKind) -> str:
    """`42.86 to 71.43`."""
    if interval is None:
        return NONE
    return f"{figure_text(interval.low, kind)} to {figure_text(interval.high, kind)}"


def counts_text(correct: Sequence[int], total: int) -> str:
    """`24/42` for one seed, `24, 22, 25 of 42` for several, `N=42` where nothing is counted."""
    if len(correct) <= 1:
        return range_text(correct, total)
    return f"{', '.join(map(str, correct))} of {total}"


def range_text(correct: Sequence[int], total: int) -> str:
    """As `counts_text`, but short: `22–25/42`; `N=42` where nothing is counted."""
    if not correct:
        return f"N={total}"
    low, high = min(correct), max(correct)
    return f"{low}/{total}" if low == high else f"{low}–{high}/{total}"


def p_text(p_value: float) -> str:
    """`0.13`, `0.0041`, `< 0.0001`."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def sheets(report: Report) -> Iterator[Sheet]:
    """Every dataset's table, then its details and its paired tests where there are any."""
    for table in report.tables:
        yield results_sheet(table)
        yield details_sheet(table)
        if table.comparisons:
            yield comparisons_sheet(table)


def left_out_lines(report: Report) -> list[str]:
    """One line for each run directory that gave no figure."""
    return [f"left out: {each.path}: {each.reason}" for each in report.left_out]


# The table in the form of the papers ------------------------------------------------------------


def results_sheet(table: Table) -> Sheet:
    """Our rows and the floor, then the published rows under their own titles."""
    notes = _Notes()
    columns = table.columns
    headings = [c.heading + (" ↓" if c.lower_is_better else "") for c in columns]
    ours = Section(title="ours, test split", rows=tuple(_our_rows(table, notes)))
    published = tuple(
        Section(
            title=group.title, rows=tuple(_published_rows(group, columns, notes)), published=True
        )
        for group in table.published
    )
    return Sheet(
        title=f"{table.dataset}: test split",
        headings=("", *headings),
        numeric=(False, *(True for _ in columns)),
        sections=(ours, *published),
        notes=tuple(notes.texts),
        remarks=tuple(_reading(table)),
    )


def _reading(table: Table) -> Iterator[str]:
    kinds = {column.kind for column in table.columns}
    if "classification" in kinds:
        yield (
            "Accuracy in percent of test videos; below it the videos that were called right, of "
            "those judged, the lowest and the highest count over seeds."
        )
    if "regression" in kinds:
        yield "↓: mean squared error, lower is better; below it the number of videos judged."
    yield "±: sample standard deviation over seeds. The weights are those that the config selects."
    if table.published:
        yield (
            "Published rows are others' figures as printed, mostly of single runs, on the videos "
            "that were there then."
        )


def _our_rows(table: Table, notes: _Notes) -> Iterator[SheetRow]:
    for row in table.rows:
        cells = [row.cells.get(column.task) for column in table.columns]
        num_seeds = sorted({len(cell.runs) for cell in cells if cell is not None})
        label = Text(text=row.label, marks=notes.mark(_protocol(row)))
        texts, under = [], []
        for cell in cells:
            texts.append(Text(text=NONE) if cell is None else _figure(cell, num_seeds[-1], notes))
            under.append("" if cell is None else range_text(cell.correct, cell.total))
        about = _about(row, [cell for cell in cells if cell is not None])
        yield SheetRow(cells=(label, *texts), under=(about, *under))
    floors = [_floor(table.floor(column.task), column.kind) for column in table.columns]
    yield SheetRow(cells=(Text(text="floor", marks=notes.mark(_FLOOR)), *floors))


def _protocol(row: Row) -> str:
    """What the row was trained under, and where its cache was made otherwise."""
    return f"Protocol {row.protocol}{'; ' * bool(row.extraction)}{row.extraction or ''}."


_FLOOR = "The most frequent class among the judged videos, or predicting zero."


def _floor(value: float | None, kind: TaskKind) -> Text:
    return _mean(None if value is None else SeedStatistics.of([value]), kind)


def _about(row: Row, cells: Sequence[Cell]) -> str:
    """Seeds and cache, such as `3 seeds, cache 0f3a9c21`, and what of the test split is judged
    where that is not all."""
    num_seeds = [len(cell.runs) for cell in cells]
    fewest, most = min(num_seeds), max(num_seeds)
    seeds = str(most) if fewest == most else f"{fewest}–{most}"
    about = f"{seeds} seed{'s' * (most > 1)}, cache {row.fingerprint[:8]}"
    if all(cell.coverage.complete for cell in cells):
        return about
    present = sum(cell.coverage.present for cell in cells)
    return f"{about}, {present}/{sum(cell.coverage.total for cell in cells)} videos"


def _figure(cell: Cell, num_seeds: int, notes: _Notes) -> Text:
    marks = []
    if not cell.coverage.complete:
        marks.append(f"{cell.task}: {cell.coverage.describe('test')}.")
    if len(cell.runs) != num_seeds:
        marks.append(f"{cell.task}: {len(cell.runs)} of {num_seeds} seeds.")
    return _mean(cell.figure, cell.kind, marks=notes.mark(*marks))


def _mean(figure: SeedStatistics | None, kind: TaskKind, *, marks: tuple[int, ...] = ()) -> Text:
    return Text(text=mean_text(figure, kind), marks=marks, short=short_text(figure, kind))


def _published_rows(
    group: PublishedGroup, columns: Sequence[Column], notes: _Notes
) -> Iterator[SheetRow]:
    for row in group.rows:
        figures = [row.figure(column.name) or NONE for column in columns]
        source = f"{row.source}{': ' if row.remark else ''}{row.remark}."
        name = Text(text=f"{row.name}, published", marks=notes.mark(source))
        yield SheetRow(cells=(name, *(Text(text=figure) for figure in figures)))


# What stands behind each figure -----------------------------------------------------------------

_DETAILS = (
    "row",
    "seeds",
    "figure",
    "95 % interval",
    "right",
    "floor",
    "best-val",
    "last",
    "coverage",
    "unseen in training",
)
_BEST_TEST = "best test epoch, chosen on the test split"


def details_sheet(table: Table) -> Sheet:
    """One line for each of our figures, task by task, with all that a reader needs to weigh it."""
    best_test = any(c.best_test for column in table.columns for c in table.cells(column.task))
    headings = (*_DETAILS, *((_BEST_TEST,) if best_test else ()))
    sections = [
        _section(column.task, [_details(row, cell)[: len(headings)] for row, cell in found])
        for column in table.columns
        if (found := [(r, r.cells[column.task]) for r in table.rows if column.task in r.cells])
    ]
    return Sheet(
        title=f"{table.dataset}: behind each figure",
        headings=headings,
        numeric=tuple(False for _ in headings),
        sections=tuple(sections),
        remarks=(
            "95 % interval: percentile bootstrap over videos, 10,000 resamples; it knows nothing "
            "of the seeds' spread.",
            "Unseen in training: the videos whose group (LVU: the movie) has no training video, "
            "with their own floor.",
            "Best-val, last: the weights of the best validation epoch, and of the last epoch.",
        ),
    )


def _details(row: Row, cell: Cell) -> tuple[Text, ...]:
    kind = cell.kind
    return (
        Text(text=row.label),
        Text(text=", ".join(map(str, cell.seeds))),
        _mean(cell.figure, kind),
        Text(text=interval_text(cell.interval, kind)),
        Text(text=counts_text(cell.correct, cell.total)),
        Text(text=figure_text(cell.floor, kind)),
        _mean(cell.best, kind),
        _mean(cell.last, kind),
        Text(text=f"{cell.coverage.present}/{cell.coverage.total}"),
        Text(text="all" if cell.unseen is None else unseen_text(cell.unseen, cell.total, kind)),
        _mean(cell.best_test, kind),
    )


def _section(title: str, rows: Iterable[tuple[Text, ...]]) -> Section:
    return Section(title=title, rows=tuple(SheetRow(cells=cells) for cells in rows))


def unseen_text(unseen: Unseen, total: int, kind: TaskKind) -> str:
    """`30/42: 53.33 ± 1.10 (16, 15 of 30), 36.67 to 70.00, floor 50.00`."""
    share = f"{unseen.num_videos}/{total}"
    if unseen.figure is None or unseen.floor is None:
        return f"{share}: nothing to judge"
    counts = f" ({counts_text(unseen.correct, unseen.num_videos)})" if unseen.correct else ""
    return (
        f"{share}: {mean_text(unseen.figure, kind)}{counts}, "
        f"{interval_text(unseen.interval, kind)}, floor {figure_text(unseen.floor, kind)}"
    )


# Paired tests -----------------------------------------------------------------------------------

_COMPARED = ("first", "second", "difference", "95 % interval", "p", "differ", "test")


def comparisons_sheet(table: Table) -> Sheet:
    """One line for each pair of our rows that was tested, task by task."""
    sections = [
        _section(column.task, [_comparison(each, column.kind) for each in found])
        for column in table.columns
        if (found := [each for each in table.comparisons if each.task == column.task])
    ]
    return Sheet(
        title=f"{table.dataset}: our rows on the same videos",
        headings=_COMPARED,
        numeric=tuple(False for _ in _COMPARED),
        sections=tuple(sections),
        remarks=(
            "Difference: first minus second, in points of accuracy or in squared error, over the "
            "videos that both judged, each with its mean over seeds.",
            "p: two-sided, of one test; not corrected for the number of tests. Differ: videos "
            "that count differently for the two, of those that both judged.",
        ),
    )


def _comparison(each: Comparison, kind: TaskKind) -> tuple[Text, ...]:
    test = each.test
    sign = "+" if test.difference > 0 else ""
    texts = (
        each.first,
        each.second,
        sign + figure_text(test.difference, kind),
        interval_text(test.interval, kind),
        p_text(test.p_value),
        f"{test.num_differ}/{test.num_videos}",
        test.method,
    )
    return tuple(Text(text=text) for text in texts)
