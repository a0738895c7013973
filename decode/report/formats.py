"""A report as Markdown, LaTeX and CSV.

Markdown and LaTeX are written from the same sheets. Ids, class names and options come from runs and
mean nothing to any of the formats: they are escaped, control characters shown as \\xNN.

    report = build_report([Path("runs")])
    Path("report.md").write_text(markdown(report))
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...store.files import write_atomic
from ...store.wording import inert_cell, visible
from .rows import Cell, Row
from .sheet import Section, Sheet, SheetRow, Text, left_out_lines, sheets
from .sheet import results_sheet as _results
from .table import Report, Table


def write_files(report: Report, folder: Path, *, page: str | None = None) -> list[Path]:
    """Write report.md, report.tex, report.csv and figures.csv into `folder`, made if need be.

    page: the HTML page, for report.html.
    """
    texts = {
        "report.md": markdown(report),
        "report.tex": latex(report),
        "report.csv": table_csv(report),
        "figures.csv": figures_csv(report),
    }
    if page is not None:
        texts["report.html"] = page
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


# Markdown ---------------------------------------------------------------------------------------

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#$^])")


def markdown(report: Report) -> str:
    """Tables with a second line in a cell after `<br>`, notes as numbers."""
    blocks = [block for sheet in sheets(report) for block in _markdown_sheet(sheet)]
    blocks += ["\n".join(f"- {_md(line)}" for line in left_out_lines(report))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_sheet(sheet: Sheet) -> Iterator[str]:
    yield f"## {_md(sheet.title)}"
    rules = ["---:" if numeric else "---" for numeric in sheet.numeric]
    lines = [_md_line(map(_md, sheet.headings)), _md_line(rules)]
    for section in sheet.sections:
        if section.title:
            lines.append(_md_line([f"**{_md(section.title)}**", *[""] * (len(rules) - 1)]))
        lines += [_md_line(_md_cells(row)) for row in section.rows]
    yield "\n".join(lines)
    yield "\n".join(f"{i}. {_md(note)}" for i, note in enumerate(sheet.notes, start=1))
    yield " ".join(map(_md, sheet.remarks))


def _md_cells(row: SheetRow) -> Iterator[str]:
    for i, cell in enumerate(row.cells):
        marks = f"<sup>{_numbers(cell)}</sup>" if cell.marks else ""
        under = f"<br>{_md(row.under[i])}" if row.under and row.under[i] else ""
        yield _md(cell.text) + marks + under


def _md_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    escaped = _MARKDOWN.sub(r"\\\1", visible(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# LaTeX ------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after the end of a line a bracket or a star would be an argument
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "…": r"\ldots{}",
}


def latex(report: Report) -> str:
    """One `table*` a sheet, for booktabs; notes below in small print."""
    blocks = [r"% \usepackage{booktabs} and \usepackage[T1]{fontenc} in the preamble"]
    blocks += ["\n".join(_latex_sheet(sheet)) for sheet in sheets(report)]
    blocks += [f"% {visible(line)}" for line in left_out_lines(report)]
    return "\n\n".join(blocks) + "\n"


def _latex_sheet(sheet: Sheet) -> Iterator[str]:
    width = len(sheet.headings)
    alignment = "".join("r" if numeric else "l" for numeric in sheet.numeric)
    yield r"\begin{table*}"
    yield r"\centering\scriptsize"
    yield rf"\caption{{{_tex(sheet.title)}}}"
    yield rf"\begin{{tabular}}{{{alignment}}}"
    yield r"\toprule"
    yield _tex_line(_tex(heading) for heading in sheet.headings)
    for section in sheet.sections:
        yield r"\midrule"
        yield from _latex_section(section, width)
    yield r"\bottomrule"
    yield r"\end{tabular}"
    for i, note in enumerate(sheet.notes, start=1):
        yield rf"\par\raggedright\textsuperscript{{{i}}} {_tex(note)}"
    yield from (rf"\par\raggedright {_tex(remark)}" for remark in sheet.remarks)
    yield r"\end{table*}"


def _latex_section(section: Section, width: int) -> Iterator[str]:
    if section.title:
        yield rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(section.title)}}}}} \\"
    for row in section.rows:
        yield _tex_line(_tex_cell(cell) for cell in row.cells)
        if row.under:
            about, *counts = map(_tex, row.under)
            yield _tex_line([rf"\quad {about}", *counts])


def _tex_cell(cell: Text) -> str:
    marks = rf"\textsuperscript{{{_numbers(cell)}}}" if cell.marks else ""
    return _tex(cell.text) + marks


def _tex_line(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in visible(text))


def _numbers(cell: Text) -> str:
    return ",".join(map(str, cell.marks))


# CSV --------------------------------------------------------------------------------------------


def table_csv(report: Report) -> str:
    """The tables in the papers' form: a line a row, a column a task; notes are not in it.

    Line `… (videos)` below each of our rows: how many were called right, of those judged.
    """
    columns = [(table.dataset, column) for table in report.tables for column in table.columns]
    headings = [
        f"{dataset}/{column.heading}" if len(report.tables) > 1 else column.heading
        for dataset, column in columns
    ]
    lines: list[Sequence[str]] = [("dataset", "section", "row", *headings)]
    for table in report.tables:
        places = [i for i, (dataset, _) in enumerate(columns) if dataset == table.dataset]
        for section, texts in _csv_rows(_results(table)):
            cells = [""] * len(columns)
            for place, text in zip(places, texts[1:], strict=True):
                cells[place] = text
            lines.append((table.dataset, section, texts[0], *cells))
    return csv_lines(lines)


def _csv_rows(sheet: Sheet) -> Iterator[tuple[str, list[str]]]:
    for section in sheet.sections:
        for row in section.rows:
            label = row.cells[0].text
            yield section.title, [label, *(cell.text for cell in row.cells[1:])]
            if row.under:
                yield section.title, [f"{label} (videos)", *row.under[1:]]


def figures_csv(report: Report) -> str:
    """One line for each figure, unrounded, for programs: ours and the published ones by `source`.

    Accuracies are shares from 0 to 1; a list in a cell is separated by semicolons. An apostrophe
    stands before a text that begins like a formula, as ids such as `-uT8kU8M6gA` do.
    """
    lines = [line for table in report.tables for line in _figures(table)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    return csv_lines([names, *([str(line.get(name, "")) for name in names] for line in lines)])


def _figures(table: Table) -> Iterator[dict[str, object]]:
    """Every figure by the names of its columns, task by task."""
    for column in table.columns:
        percent = column.kind == "classification"
        metric = "accuracy" if percent else "mse"
        about = {"dataset": table.dataset, "task": column.name, "metric": metric}
        for row in table.rows:
            if (cell := row.cells.get(column.task)) is not None:
                yield {**about, "source": "ours", "row": row.label, **_cell_values(cell, row)}
        for published in (row for group in table.published for row in group.rows):
            if (figure := published.figure(column.name)) is not None:
                yield {
                    **about,
                    "source": f"published: {published.source}",
                    "row": published.name,
                    "mean": float(figure) / 100 if percent else float(figure),
                    "remark": published.remark,
                }


def _cell_values(cell: Cell, row: Row) -> dict[str, object]:
    interval, unseen = cell.interval, cell.unseen
    return {
        "protocol": row.protocol,
        "cache": row.fingerprint,
        "extraction": row.extraction or "",
        "mean": cell.figure.mean,
        "std": "" if cell.figure.std is None else cell.figure.std,
        "low": "" if interval is None else interval.low,
        "high": "" if interval is None else interval.high,
        "seeds": _joined(cell.seeds),
        "by_seed": _joined(cell.figure.values),
        "correct": _joined(cell.correct),
        "videos": cell.total,
        "floor": cell.floor,
        "unseen_videos": cell.total if unseen is None else unseen.num_videos,
        "unseen_mean": "" if unseen is None or unseen.figure is None else unseen.figure.mean,
        "unseen_floor": "" if unseen is None or unseen.floor is None else unseen.floor,
        "best_val_mean": "" if cell.best is None else cell.best.mean,
        "last_mean": "" if cell.last is None else cell.last.mean,
        "best_test_epoch_mean": "" if cell.best_test is None else cell.best_test.mean,
        "listed_videos": cell.coverage.total,
        "missing": _joined(cell.coverage.missing),
    }


def _joined(values: Sequence[object]) -> str:
    return ";".join(map(str, values))


def csv_lines(lines: Sequence[Sequence[str]]) -> str:
    """CSV of cells as they are, but for texts that a spreadsheet would compute."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[inert_cell(text) for text in line] for line in lines])
    return buffer.getvalue()
