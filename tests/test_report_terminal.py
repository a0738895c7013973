"""How a report's tables fold on a terminal: nothing is lost or too wide, and no cell is broken."""

import re

import pytest
from judged_runs import write_run
from rich.cells import cell_len
from typer.testing import CliRunner
from vis4mer import console
from vis4mer.cli import app
from vis4mer.decode.report.published import LVU_TASKS
from vis4mer.decode.report.sheet import Section, Sheet, SheetRow, Text
from vis4mer.render.fold import folded


def sheet_of(*rows, headings=("", "one", "two"), numeric=(False, True, True), title=""):
    section = Section(title=title, rows=rows)
    return Sheet(title="t", headings=headings, numeric=numeric, sections=(section,))


def row(*texts, under=(), short="", marks=()):
    name, *figures = texts
    cells = (Text(text=name, marks=marks), *(Text(text=f, short=short) for f in figures))
    return SheetRow(cells=cells, under=under)


def test_a_sheet_that_fits_is_one_table():
    sheet = sheet_of(row("name", "57.14 ± 2.38", "1", short="57.1±2.4", marks=(1, 12)))
    (only,) = folded(sheet, 40)
    assert only.headings == ("", "     one", "     two")
    assert only.rows == (("name¹,¹²", "57.1±2.4", "57.1±2.4"),)
    assert only.gap == 2


def test_names_go_on_in_rows_of_their_own():
    sheet = sheet_of(
        row("a decoder with a long name, published", "1", "2", under=("three seeds", "4/5", "6/7")),
        title="a title of very many words beside it",
    )
    (only,) = folded(sheet, 30)  # 22 characters are left for a name
    assert only.rows == (
        ("— a title of very many", "   ", "   "),
        ("  words beside it", "   ", "   "),
        ("a decoder with a long", "  1", "  2"),
        ("  name, published", "4/5", "6/7"),
        ("  three seeds", "   ", "   "),
    )


def test_columns_that_do_not_fit_stand_below_with_the_names_again():
    sheet = sheet_of(row("name", "1" * 20, "2" * 20))
    first, second = folded(sheet, 26)
    assert (first.headings, first.rows) == (("", " " * 17 + "one"), (("name", "1" * 20),))
    assert (second.headings, second.rows) == (("", " " * 17 + "two"), (("name", "2" * 20),))
    assert first.gap == 2


@pytest.fixture
def runs(tmp_path):
    """Nine tasks, two protocols, two seeds, a video missing, one row that says much."""
    for task in LVU_TASKS:
        kind = {"errors": [1, 4]} if task in ("like_ratio", "view_count") else {"right": "110"}
        for seed in (0, 1):
            own = {"task": f"lvu/{task}", "seed": seed, "decoder__name": "vis4mer", **kind}
            name = f"{task}{seed}"
            write_run(tmp_path / f"clean{name}", **own, missing=["gone"], optimizer__lr=0.25)
            write_run(tmp_path / f"official{name}", **own, protocol="official")
    return tmp_path


@pytest.mark.parametrize("width", [120, 80])
def test_on_a_terminal_no_line_is_wider_and_no_figure_broken(runs, monkeypatch, width):
    terminal = console.Console(
        width=width, force_terminal=True, no_color=True, soft_wrap=True, highlight=False
    )
    monkeypatch.setattr(console, "out", terminal)
    monkeypatch.setattr("vis4mer.render.report.out", terminal)
    done = CliRunner().invoke(app, ["report", str(runs)])
    assert done.exit_code == 0, done.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    table = plain.split("behind each figure")[0]
    figures, _, notes = table.partition("\n1. ")
    assert max(map(cell_len, figures.splitlines())) <= width
    assert ("continued" in figures) is (width == 80)
    assert "66.7±0.0" in figures
    assert "vis4mer 4x2x2, clean," in figures
    assert all(figures.count(heading) >= 1 for heading in LVU_TASKS.values())
    assert "Protocol clean with lr=0.25" in notes


def test_in_a_pipe_a_row_is_one_line(runs):
    lines = CliRunner().invoke(app, ["report", str(runs)]).output.splitlines()
    (line,) = [line for line in lines if line.startswith("vis4mer 4x2x2, clean, lr=0.25 (")]
    assert line.count("66.67 ± 0.00") == 7
    assert line.count("8.500 ± 0.000") == 2
