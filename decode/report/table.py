"""The report as records: for every dataset a table of our rows over its tasks, and beside them the
floors, paired tests between our rows, and what was published.

Published figures are of their own type and are never put into a row of ours. Knows no text layout;
`sheet` says these records as cells, `html` as a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ...store.errors import Vis4merError
from ...store.tasks import TaskKind
from ...store.wording import some_of
from ..judging.statistics import PairedTest, paired_test
from .collect import LeftOut, find_runs
from .published import LVU_TASKS, PublishedGroup, published_groups
from .rows import Cell, Row, group_runs

MAX_ROWS_ALL_PAIRS = 5  # with more rows, each is compared with the first one alone


@dataclass(frozen=True, kw_only=True)
class Column:
    """One task. heading: as the papers call it; lower_is_better: a squared error."""

    task: str
    heading: str
    kind: TaskKind

    @property
    def name(self) -> str:
        """The task without its dataset."""
        return self.task.partition("/")[2]

    @property
    def lower_is_better(self) -> bool:
        return self.kind == "regression"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two of our rows on one task, by what each video counts in the mean over seeds."""

    task: str
    first: str
    second: str
    test: PairedTest

    def to_json(self) -> dict[str, Any]:
        about = {"task": self.task, "first": self.first, "second": self.second}
        return {**about, **self.test.to_json()}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One dataset. rows: ours, with a cell for some of the columns' tasks.

    columns: for LVU all nine tasks in the papers' order, elsewhere the tasks that were run.
    """

    dataset: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    published: tuple[PublishedGroup, ...]

    def cells(self, task: str) -> list[Cell]:
        """Those of all rows that have one."""
        return [row.cells[task] for row in self.rows if task in row.cells]

    def floor(self, task: str) -> float | None:
        """Of the cell that judged most videos; None where nothing was run."""
        cells = self.cells(task)
        return max(cells, key=lambda cell: cell.total).floor if cells else None

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "tasks": [column.task for column in self.columns],
            "floors": {column.task: self.floor(column.task) for column in self.columns},
            "ours": [row.to_json() for row in self.rows],
            "comparisons": [each.to_json() for each in self.comparisons],
            "published": [
                {
                    "group": group.title,
                    "name": row.name,
                    "source": row.source,
                    "figures": dict(row.figures),
                    "remark": row.remark,
                }
                for group in self.published
                for row in group.rows
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report says. left_out: run directories that gave no figure."""

    tables: tuple[Table, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        left_out = [{"path": str(each.path), "reason": each.reason} for each in self.left_out]
        return {"tables": [table.to_json() for table in self.tables], "left_out": left_out}


def build_report(paths: Sequence[Path]) -> Report:
    """The report of all runs at or below `paths`; Vis4merError when none of them is finished."""
    found = find_runs(paths)
    if not found.runs:
        where = some_of([str(path) for path in paths], most=3)
        why = "; ".join(f"{each.path}: {each.reason}" for each in found.left_out[:3])
        raise Vis4merError(
            f"no finished run in {where}" + (f" ({why})" if why else "") + "; "
            "`vis4mer train-decoder` makes one, and goes on with one that it began"
        )
    rows, twice = group_runs(found.runs)
    datasets = dict.fromkeys(_dataset(task) for row in rows for task in row.cells)
    tables = tuple(_table(dataset, rows) for dataset in sorted(datasets))
    return Report(tables=tables, left_out=(*found.left_out, *twice))


def _table(dataset: str, rows: Sequence[Row]) -> Table:
    own = tuple(row for row in rows if any(_dataset(task) == dataset for task in row.cells))
    kinds = {
        task: cell.kind
        for row in own
        for task, cell in row.cells.items()
        if _dataset(task) == dataset
    }
    columns = tuple(_columns(dataset, kinds))
    return Table(
        dataset=dataset,
        columns=columns,
        rows=own,
        comparisons=tuple(_comparisons([column.task for column in columns], own)),
        published=published_groups(dataset),
    )


def _columns(dataset: str, kinds: dict[str, TaskKind]) -> Iterator[Column]:
    """LVU's nine in their order; then, or elsewhere, the tasks that were run, by name."""
    known = LVU_TASKS if dataset == "lvu" else {}
    for name, heading in known.items():
        usual: TaskKind = "regression" if name in ("like_ratio", "view_count") else "classification"
        task = f"{dataset}/{name}"
        yield Column(task=task, heading=heading, kind=kinds.get(task, usual))
    for task in sorted(kinds):
        name = task.partition("/")[2]
        if name not in known:
            yield Column(task=task, heading=name, kind=kinds[task])


def _comparisons(tasks: Iterable[str], rows: Sequence[Row]) -> Iterator[Comparison]:
    pairs = list(combinations(rows, 2))
    if len(rows) > MAX_ROWS_ALL_PAIRS:
        pairs = [(row, rows[0]) for row in rows[1:]]
    for task in tasks:
        for first, second in pairs:
            if task in first.cells and task in second.cells:
                test = paired_test(first.cells[task].per_video, second.cells[task].per_video)
                if test is not None:
                    yield Comparison(task=task, first=first.label, second=second.label, test=test)


def _dataset(task: str) -> str:
    return task.partition("/")[0]
