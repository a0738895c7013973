"""The written forms of a report: what stands in them, and that text from runs stays text."""

import csv
import io
import re

import pytest
from judged_runs import write_run
from vis4mer.decode.judging.statistics import SeedStatistics
from vis4mer.decode.report.formats import (
    figures_csv,
    latex,
    markdown,
    table_csv,
    visible,
    write_files,
)
from vis4mer.decode.report.html import render_page
from vis4mer.decode.report.sheet import (
    counts_text,
    details_sheet,
    figure_text,
    left_out_lines,
    p_text,
    range_text,
    results_sheet,
    sheets,
    short_text,
)
from vis4mer.decode.report.table import build_report

HOSTILE = r"a|b_c%d&e$f#g{h}\N~^<i>[j]*`k" + "\n\x1b[31m\u202e"


@pytest.fixture
def report(tmp_path):
    """Two rows of which one has two seeds, a regression, and an unfinished run."""
    for seed, right in enumerate(["110", "100"]):
        write_run(tmp_path / f"a{seed}", right=right, seed=seed, seen="100", missing=["gone"])
    write_run(tmp_path / "b", right="111", optimizer__lr=0.1, missing=["gone"])
    write_run(tmp_path / "c", errors=[1, 2], task="lvu/view_count")
    write_run(tmp_path / "d", right="1", finished=False)
    return build_report([tmp_path])


def texts(row):
    return [cell.text for cell in row.cells]


def test_the_table_in_the_form_of_the_papers(report):
    sheet = results_sheet(report.tables[0])
    assert sheet.headings[1:] == (
        *("Rel", "Spk", "Scn", "Dir", "Gen", "Wri", "Yr", "Like ↓", "View ↓"),
    )
    ours, published, encoders = sheet.sections
    first, second, floor = ours.rows
    dashes = ["–"] * 7
    assert texts(first) == ["mean 4x2x2", "50.00 ± 23.57", *dashes, "2.500"]
    assert re.fullmatch("1–2 seeds, cache [0-9a-f]{8}, 5/6 videos", first.under[0])
    assert first.under[1] == "1–2/3"
    assert first.under[-1] == "N=2"
    assert texts(second) == ["mean 4x2x2, lr=0.1", "100.00", *dashes, "–"]
    assert texts(floor) == ["floor", "66.67", *dashes, "0.500"]
    protocols = [sheet.notes[row.cells[0].marks[0] - 1] for row in (first, second)]
    assert protocols == [
        "Protocol clean with window_seconds=4.0, epochs=2.",
        "Protocol clean with lr=0.1, window_seconds=4.0, epochs=2.",
    ]
    notes = [sheet.notes[mark - 1] for mark in first.cells[1].marks]
    assert notes == ["lvu/relationship: 3/4 test videos, missing: gone."]
    fewer = [sheet.notes[mark - 1] for mark in first.cells[9].marks]
    assert fewer == ["lvu/view_count: 1 of 2 seeds."]
    assert all(" ↓" not in cell for row in published.rows for cell in texts(row))
    assert all(texts(row)[0].endswith(", published") for row in published.rows + encoders.rows)
    assert any("single runs" in remark for remark in sheet.remarks)


def test_a_cache_of_another_protocol_is_said_beside_the_row(tmp_path):
    """The cache of these runs has its frames at their true times."""
    write_run(tmp_path / "a", right="10", protocol="official")
    write_run(tmp_path / "b", right="10")
    report = build_report([tmp_path])
    sheet = results_sheet(report.tables[0])
    first, second, _ = sheet.sections[0].rows
    said = [sheet.notes[row.cells[0].marks[0] - 1] for row in (first, second)]
    assert said[0].startswith("Protocol official with decoder=mean, ")
    assert "; the cache was not extracted under protocol official: frames are at" in said[0]
    assert "extracted" not in said[1]
    lines = list(csv.DictReader(io.StringIO(figures_csv(report))))
    found = [line["extraction"] for line in lines if line["source"] == "ours"]
    assert found[0].startswith("the cache was not extracted under protocol official: ")
    assert found[1] == ""
    assert [row.to_json()["extraction"] for row in report.tables[0].rows] == [found[0], None]


def test_the_page_and_the_tables_have_the_same_best_test_epoch(tmp_path):
    """It is of all seeds or of none: one that did not look for it leaves no mean of the others."""
    write_run(tmp_path / "a", right="10", seed=0, best_test=0.75)
    write_run(tmp_path / "b", right="10", seed=1)
    report = build_report([tmp_path])
    assert report.tables[0].rows[0].cells["lvu/relationship"].best_test is None
    assert "best test epoch" not in render_page(report, {})


def test_what_stands_behind_a_figure(report):
    sheet = details_sheet(report.tables[0])
    assert [section.title for section in sheet.sections] == ["lvu/relationship", "lvu/view_count"]
    first = dict(zip(sheet.headings, texts(sheet.sections[0].rows[0]), strict=True))
    assert first == {
        "row": "mean 4x2x2",
        "seeds": "0, 1",
        "figure": "50.00 ± 23.57",
        "95 % interval": "–",
        "right": "2, 1 of 3",
        "floor": "66.67",
        "unseen in training": "2/3: 25.00 ± 35.36 (1, 0 of 2), –, floor 50.00",
        "best-val": "50.00 ± 23.57",
        "last": "50.00 ± 23.57",
        "coverage": "3/4",
    }


def test_the_best_test_epoch_stands_under_its_own_name_alone(tmp_path):
    write_run(tmp_path / "a", right="10", best_test=0.75)
    sheet = details_sheet(build_report([tmp_path]).tables[0])
    assert sheet.headings[-1] == "best test epoch, chosen on the test split"
    (row,) = sheet.sections[0].rows
    assert texts(row)[-1] == "75.00"
    assert texts(row).count("75.00") == 1


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (figure_text(0.57142, "classification"), "57.14"),
        (figure_text(-0.0278, "classification"), "−2.78"),
        (figure_text(3.6304, "regression"), "3.630"),
        (counts_text([24], 42), "24/42"),
        (counts_text([24, 22], 42), "24, 22 of 42"),
        (counts_text([], 42), "N=42"),
        (range_text([24, 22, 25], 42), "22–25/42"),
        (range_text([24, 24], 42), "24/42"),
        (short_text(SeedStatistics.of([0.55, 0.60]), "classification"), "57.5±3.5"),
        (short_text(SeedStatistics.of([0.571]), "classification"), "57.1"),
        (short_text(SeedStatistics.of([0.26, 0.30]), "regression"), "0.28±0.03"),
        (short_text(SeedStatistics.of([17.0, 18.0]), "regression"), "17.5±0.7"),
        (short_text(None, "regression"), "–"),
        (p_text(0.04149), "0.041"),
        (p_text(1.0), "1"),
        (p_text(5e-5), "< 0.0001"),
    ],
)
def test_numbers_as_people_write_them(said, text):
    assert said == text


# Markdown, LaTeX, CSV ---------------------------------------------------------------------------


def test_markdown_tables_have_as_many_cells_in_every_line(report):
    written = markdown(report)
    assert "| Rel | Spk | Scn | Dir | Gen | Wri | Yr | Like ↓ | View ↓ |" in written
    assert "50.00 ± 23.57<sup>2</sup><br>1–2/3 |" in written
    assert "| mean 4x2x2<sup>1</sup><br>1–2 seeds" in written
    assert "2. lvu/relationship: 3/4 test videos, missing: gone." in written
    for block in written.split("\n\n"):
        if block.startswith("|"):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(cells) == 1, block
    assert left_out_lines(report)[0].partition(": ")[0] == "left out"
    assert "not finished" in written


def test_latex_is_balanced_and_has_as_many_cells_in_every_line(report):
    written = latex(report)
    assert r"50.00 $\pm$ 23.57\textsuperscript{2} & -- &" in written
    assert written.count(r"\begin{table*}") == written.count(r"\end{table*}") == 3
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", written, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        cells = {line.count(" & ") for line in lines if "multicolumn" not in line}
        assert len(cells) == 1
    assert written.isascii()


def hostile_report(tmp_path):
    write_run(tmp_path / "a", right="10", missing=[HOSTILE], task="own/label")
    return build_report([tmp_path])


def test_hostile_ids_stay_text_in_markdown(tmp_path):
    written = markdown(hostile_report(tmp_path))
    said = r"a\|b\_c%d&amp;e\$f\#g\{h\}\\N\~\^&lt;i&gt;\[j\]\*\`k\\x0a\\x1b\[31m\\u202e."
    assert f"missing: {said}\n" in written


def test_hostile_ids_stay_text_in_latex(tmp_path):
    written = latex(hostile_report(tmp_path))
    line = next(line for line in written.splitlines() if "missing: a" in line)
    said = line.partition("missing: ")[2]
    assert said == (
        r"a\textbar{}b\_c\%d\&e\$f\#g\{h\}\textbackslash{}N\textasciitilde{}\textasciicircum{}"
        r"\textless{}i\textgreater{}{[}j{]}{*}`k\textbackslash{}x0a\textbackslash{}x1b{[}31m"
        r"\textbackslash{}u202e."
    )


def test_files_are_written_whatever_an_id_holds(tmp_path):
    paths = write_files(hostile_report(tmp_path), tmp_path / "out" / "deep", page="<p>é</p>")
    assert [path.name for path in paths] == [
        *("report.md", "report.tex", "report.csv", "figures.csv", "report.html"),
    ]
    assert paths[-1].read_text(encoding="utf-8") == "<p>é</p>"


def rows_of(written):
    return list(csv.DictReader(io.StringIO(written)))


def test_the_table_as_csv(report):
    rows = rows_of(table_csv(report))
    assert rows[0]["Rel"] == "50.00 ± 23.57"
    assert (rows[1]["row"], rows[1]["Rel"]) == ("mean 4x2x2 (videos)", "1–2/3")
    vis4mer = next(row for row in rows if row["row"] == "ViS4mer, published")
    assert (vis4mer["section"], vis4mer["Yr"]) == ("published, test split", "44.75")


def test_several_datasets_share_the_columns_of_a_csv(tmp_path):
    write_run(tmp_path / "a", right="10", task="own/label")
    write_run(tmp_path / "b", right="1", task="coin/recipe")
    rows = rows_of(table_csv(build_report([tmp_path])))
    ours = [row for row in rows if row["section"].startswith("ours") and row["row"] == "mean 4x2x2"]
    assert [(row["coin/recipe"], row["own/label"]) for row in ours] == [
        ("100.00", ""),
        ("", "50.00"),
    ]


def test_figures_as_csv_are_unrounded_and_say_their_source(report):
    rows = rows_of(figures_csv(report))
    first = rows[0]
    assert (first["source"], first["task"], first["metric"]) == ("ours", "relationship", "accuracy")
    assert float(first["mean"]) == pytest.approx(0.5)
    assert [float(x) for x in first["by_seed"].split(";")] == pytest.approx([2 / 3, 1 / 3])
    assert (first["correct"], first["videos"], first["missing"]) == ("2;1", "3", "gone")
    published = [row for row in rows if row["row"] == "ViS4mer"]
    assert len(published) == 9
    assert all(row["source"].startswith("published: Islam and Bertasius") for row in published)
    assert float(published[-1]["mean"]) == 3.63


def test_a_spreadsheet_computes_nothing(tmp_path):
    write_run(tmp_path / "a", right="10", missing=["=1+1", "x"], task="own/label")
    (row,) = [row for row in rows_of(figures_csv(build_report([tmp_path])))]
    assert row["missing"] == "'=1+1;x"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-uT8kU8M6gA", "'-uT8kU8M6gA"),
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        (' "@SUM(A1)', "' \"@SUM(A1)"),
        ("＝1+1", "'＝1+1"),
        ("\t=1+1", r"\x09=1+1"),
        ("x;=1+1", "x;'=1+1"),  # where a comma is the decimal sign, cells end at semicolons
        ("-0.25;1e-3;+2", "-0.25;1e-3;+2"),
        ("a=b", "a=b"),
    ],
)
def test_a_cell_is_no_formula(tmp_path, text, written):
    write_run(tmp_path / "a", right="10", missing=[text], task="own/label")
    assert rows_of(figures_csv(build_report([tmp_path])))[0]["missing"] == written


def test_a_decoders_name_is_no_formula(tmp_path):
    write_run(tmp_path / "a", right="10", decoder__name="=1+1", task="own/label")
    rows = rows_of(table_csv(build_report([tmp_path])))
    assert rows[0]["row"] == "'=1+1 4x2x2"


def test_control_characters_are_spelled_out():
    assert visible("a\tb\r\n\x00\u2066\ud800c") == r"a\x09b\x0d\x0a\x00\u2066\ud800c"


def test_every_sheet_has_a_text_for_every_column(report):
    for sheet in sheets(report):
        assert len(sheet.numeric) == len(sheet.headings)
        for section in sheet.sections:
            for row in section.rows:
                assert len(row.cells) == len(sheet.headings)
                assert len(row.under) in (0, len(sheet.headings))
                assert all(m <= len(sheet.notes) for cell in row.cells for m in cell.marks)
