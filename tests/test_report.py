"""Which runs a report averages, and what it makes of them, with figures worked out by hand."""

import json
import math
from dataclasses import replace

import pytest
from judged_runs import write_run
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.decoders import decoder_options
from vis4mer.decode.report.collect import find_runs
from vis4mer.decode.report.published import LVU_TASKS, published_groups
from vis4mer.decode.report.rows import group_runs
from vis4mer.decode.report.table import build_report
from vis4mer.decode.training.departures import Departure, departures
from vis4mer.store.errors import UsageError, Vis4merError

# Finding runs -----------------------------------------------------------------------------------


def test_runs_are_found_below_a_folder_and_each_once(tmp_path):
    write_run(tmp_path / "runs" / "b" / "seed1", right="10", seed=1)
    write_run(tmp_path / "runs" / "b" / "seed0", right="11")
    (tmp_path / "runs" / "notes").mkdir()
    found = find_runs([tmp_path / "runs" / "b" / "seed1", tmp_path / "runs"])
    assert [run.path.name for run in found.runs] == ["seed1", "seed0"]
    assert not found.left_out


def test_what_gives_no_figure_is_left_out_with_the_reason(tmp_path):
    write_run(tmp_path / "good", right="10")
    write_run(tmp_path / "begun", right="10", finished=False)
    write_run(tmp_path / "released", right="10", finished=False, imported=True)
    write_run(tmp_path / "damaged", right="10")
    results = tmp_path / "damaged" / "results.json"
    results.write_text(results.read_text().replace('"epoch": 1', '"epoch": 7'))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    write_run(tmp_path / "mixed", right="10")
    (tmp_path / "mixed" / "results.json").write_bytes(
        (write_run(tmp_path / "scene", right="1", task="lvu/scene") / "results.json").read_bytes()
    )
    found = find_runs([tmp_path])
    assert {run.path.name for run in found.runs} == {"good", "scene"}
    reasons = {each.path.name: each.reason for each in found.left_out}
    assert reasons.keys() == {"begun", "released", "damaged", "other", "mixed"}
    assert reasons["released"] == (
        "imported weights, which no training judged; "
        "`vis4mer evaluate --run RUN --cache CACHE` shows their figures"
    )
    assert reasons["begun"] == "not finished: 0 of 2 epochs"
    assert "checksum" in reasons["damaged"]
    assert "not the run file of a vis4mer run" in reasons["other"]
    assert reasons["mixed"] == "its results are not those of its config"


def test_links_are_not_followed(tmp_path):
    write_run(tmp_path / "elsewhere" / "run", right="10")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    assert not find_runs([tmp_path / "runs"]).runs


def test_a_path_that_is_no_folder_and_a_folder_without_runs(tmp_path):
    with pytest.raises(UsageError, match=r"no such directory; expected runs of `vis4mer train"):
        find_runs([tmp_path / "gone"])
    write_run(tmp_path / "begun", right="10", finished=False)
    with pytest.raises(Vis4merError, match=r"no finished run in .*: not finished: 0 of 2 epochs"):
        build_report([tmp_path])


# Rows and cells ---------------------------------------------------------------------------------


def rows_of(folder):
    rows, left_out = group_runs(find_runs([folder]).runs)
    assert not left_out
    return rows


def test_seeds_are_averaged(tmp_path):
    # 3, 2 and 1 of 4 right: 0.75, 0.5, 0.25.
    for seed, right in enumerate(["1110", "1100", "1000"]):
        write_run(tmp_path / f"s{seed}", right=right, last="1111", seed=seed, best_test=0.5 + seed)
    (row,) = rows_of(tmp_path)
    (cell,) = row.cells.values()
    assert cell.figure.mean == pytest.approx(0.5)
    assert cell.figure.std == pytest.approx(0.25)
    assert (cell.correct, cell.total, cell.seeds, cell.floor) == ((3, 2, 1), 4, (0, 1, 2), 0.5)
    assert cell.best == cell.figure
    assert (cell.last.mean, cell.last.std) == (1.0, 0.0)
    assert cell.best_test.mean == pytest.approx(1.5)
    shares = {key[0]: value for key, value in cell.per_video.items()}
    assert shares == pytest.approx({"v0": 1.0, "v1": 2 / 3, "v2": 1 / 3, "v3": 0.0})
    assert cell.interval is None  # of four videos
    assert row.label == "mean 4x2x2"
    assert row.protocol == "clean with window_seconds=4.0, epochs=2"


def test_squared_errors_are_averaged(tmp_path):
    write_run(tmp_path / "s0", errors=[1, 0, -2], task="lvu/view_count")  # 5/3
    write_run(tmp_path / "s1", errors=[0, 0, 1], task="lvu/view_count", seed=1)  # 1/3
    (row,) = rows_of(tmp_path)
    cell = row.cells["lvu/view_count"]
    assert cell.figure.mean == pytest.approx(1.0)
    assert cell.figure.std == pytest.approx(math.sqrt(2 * (2 / 3) ** 2))
    assert cell.floor == pytest.approx((0 + 1 + 4) / 3)
    assert cell.correct == ()
    assert cell.best_test is None


def test_unseen_groups_have_their_own_figure(tmp_path):
    write_run(tmp_path / "s0", right="11010", seen="11000")
    write_run(tmp_path / "s1", right="11110", seen="11000", seed=1)
    (row,) = rows_of(tmp_path)
    unseen = row.cells["lvu/relationship"].unseen
    assert (unseen.num_videos, unseen.correct) == (3, (1, 2))
    assert unseen.figure.mean == pytest.approx(0.5)
    assert unseen.floor == pytest.approx(2 / 3)  # v2, v4 of class 0 and v3 of class 1


def test_where_every_test_group_was_trained_on_there_is_nothing_unseen(tmp_path):
    write_run(tmp_path / "s0", right="10", seen="11")
    unseen = rows_of(tmp_path)[0].cells["lvu/relationship"].unseen
    assert (unseen.num_videos, unseen.figure, unseen.floor) == (0, None, None)


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        ({"optimizer__lr": 0.1}, ["mean 4x2x2", "mean 4x2x2, lr=0.1"]),
        ({"tokens": "4xcls"}, ["mean 4x2x2", "mean 4xcls"]),
        ({"dim": 8}, ["mean 4x2x2 #1", "mean 4x2x2 #2"]),  # another cache
        ({"data": "relabelled"}, ["mean 4x2x2 #1", "mean 4x2x2 #2"]),
        ({"missing": ["gone"]}, ["mean 4x2x2 #1", "mean 4x2x2 #2"]),
        ({"classes": ["calm", "mad"]}, ["mean 4x2x2 #1", "mean 4x2x2 #2"]),
        ({"seen": "1"}, ["mean 4x2x2 #1", "mean 4x2x2 #2"]),
        (
            {"decoder__name": "vis4mer", "decoder__depth": 2},
            ["mean 4x2x2", "vis4mer 4x2x2"],
        ),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path, other, labels):
    write_run(tmp_path / "a", right="10")
    write_run(tmp_path / "b", right="11", seed=1, **other)
    rows = rows_of(tmp_path)
    assert [row.label for row in rows] == labels
    assert all(len(row.cells["lvu/relationship"].runs) == 1 for row in rows)


def test_where_and_how_fast_a_run_was_computed_makes_no_row(tmp_path):
    write_run(tmp_path / "a", right="10")
    write_run(tmp_path / "b", right="11", seed=1, workers=9, blocks=3, test_each_epoch=True)
    (row,) = rows_of(tmp_path)
    assert row.cells["lvu/relationship"].seeds == (0, 1)


def test_options_are_compared_among_decoders_of_one_name(tmp_path):
    s4 = {"decoder__name": "vis4mer", "right": "10"}
    write_run(tmp_path / "a", right="10")
    write_run(tmp_path / "b", **s4, decoder__variant="official", epochs=7)
    write_run(tmp_path / "c", **s4, decoder__variant="paper", epochs=7)
    assert [row.label for row in rows_of(tmp_path)] == [
        "mean 4x2x2, epochs=2",
        "vis4mer 4x2x2, variant=official, epochs=7",
        "vis4mer 4x2x2, epochs=7",
    ]


OFFICIAL = {"protocol": "official", "decoder__name": "vis4mer", "window_seconds": 60}


def test_a_protocol_says_where_it_was_left(tmp_path):
    write_run(tmp_path / "a", **OFFICIAL, right="10", tokens="60x2x2+cls", epochs=3)
    (row,) = rows_of(tmp_path)
    assert row.label == "vis4mer 60x2x2+cls"
    assert row.protocol == "official with tokens=60x2x2+cls, epochs=3"


def test_what_a_protocol_sets_is_not_told_beside_its_name(tmp_path):
    """Variant, schedule and padding are official's own; only the depth tells two rows apart."""
    own = {"right": "10", "epochs": 3, "decoder__name": "vis4mer"}
    write_run(tmp_path / "a", **own, window_seconds=60)
    official = {**own, **OFFICIAL, "tokens": "4x2x2+cls"}
    write_run(tmp_path / "b", **official)
    write_run(tmp_path / "c", **official, decoder__depth=2)
    write_run(tmp_path / "d", **official, decoder__variant="paper", decoder__mixer="s4d-lin")
    assert [row.label for row in rows_of(tmp_path)] == [
        "vis4mer 4x2x2, clean",
        "vis4mer 4x2x2+cls, official",
        "vis4mer 4x2x2+cls, official, depth=2",
        "vis4mer 4x2x2+cls, official, variant=paper, mixer=s4d-lin",
    ]


def test_an_option_that_follows_from_another_is_not_told():
    """The official variant unties P and Q by itself; the paper's, asked to, does it by request."""
    about = {"protocol": "clean", "decoder.name": "vis4mer", "tokens": "4x2x2"}
    options = decoder_options("vis4mer", {"variant": "official"}).to_json()
    resolved = {f"decoder.{name}": value for name, value in options.items()}
    assert resolved["decoder.tied"] is False
    assert departures({**about, **resolved}) == {
        "decoder.variant": Departure(found="official", usual="paper")
    }
    assert departures({**about, **resolved, "decoder.variant": "paper"}) == {
        "decoder.tied": Departure(found=False, usual=True)
    }


def test_another_decoder_than_the_protocols_is_told(tmp_path):
    write_run(tmp_path / "a", **{**OFFICIAL, "decoder__name": "mean"}, right="1", epochs=100)
    assert rows_of(tmp_path)[0].protocol == "official with decoder=mean, tokens=4x2x2"


def test_a_decoder_that_is_not_known_here_has_a_label(tmp_path):
    for x in (1, 2):
        later = {"decoder__name": "later", "decoder__x": x, "decoder__y": 3}
        write_run(tmp_path / f"r{x}", right="1", **later)
    assert [row.label for row in rows_of(tmp_path)] == ["later 4x2x2, x=1", "later 4x2x2, x=2"]


def test_precision_tells_rows_apart_and_leaves_no_protocol(tmp_path):
    for precision in ("float32", "bfloat16"):
        write_run(tmp_path / precision, right="1", precision=precision)
    low, high = rows_of(tmp_path)
    assert (low.label, high.label) == (
        "mean 4x2x2, precision=bfloat16",
        "mean 4x2x2, precision=float32",
    )
    assert "precision" not in low.protocol


def test_a_long_value_is_cut_in_a_label(tmp_path):
    write_run(tmp_path / "a", right="1")
    write_run(tmp_path / "b", right="1", init="0123456789" * 6 + "abcd")
    assert rows_of(tmp_path)[1].label == "mean 4x2x2, init=0123456789…"


def test_the_same_seed_twice_counts_once(tmp_path):
    write_run(tmp_path / "a", right="10")
    write_run(tmp_path / "copy", right="10")
    rows, left_out = group_runs(find_runs([tmp_path]).runs)
    assert rows[0].cells["lvu/relationship"].seeds == (0,)
    assert [each.path.name for each in left_out] == ["copy"]
    assert "same settings, seed and videos as" in left_out[0].reason


def test_the_most_complete_coverage_makes_the_first_row(tmp_path):
    write_run(tmp_path / "a", right="10", missing=["x", "y"])
    for seed in (0, 1):
        write_run(tmp_path / f"b{seed}", right="1011", seed=seed)
    write_run(tmp_path / "c", right="1", task="lvu/scene")
    first, second = rows_of(tmp_path)
    assert {task: len(cell.runs) for task, cell in first.cells.items()} == {
        "lvu/relationship": 2,
        "lvu/scene": 1,
    }
    assert second.cells["lvu/relationship"].coverage.missing == ("x", "y")


def test_two_rows_of_one_video_are_two_judgements(tmp_path):
    folder = write_run(tmp_path / "a", right="10")
    (run,) = find_runs([folder]).runs
    first = run.test.predictions[0]
    twice = replace(run.test, predictions=(first, first))
    (row,), _ = group_runs([replace(run, test=twice)])
    assert len(row.cells["lvu/relationship"].per_video) == 2


# Tables -----------------------------------------------------------------------------------------


def test_lvu_has_nine_columns_whatever_was_run(tmp_path):
    write_run(tmp_path / "a", right="10")
    write_run(tmp_path / "b", right="10", task="lvu/mood")
    write_run(tmp_path / "c", right="10", task="own/label")
    lvu, own = build_report([tmp_path]).tables
    assert [column.heading for column in lvu.columns] == [*LVU_TASKS.values(), "mood"]
    assert [column.lower_is_better for column in lvu.columns] == [False] * 7 + [True] * 2 + [False]
    assert [column.task for column in own.columns] == ["own/label"]
    assert (own.published, bool(lvu.published)) == ((), True)
    assert (lvu.floor("lvu/relationship"), lvu.floor("lvu/genre")) == (0.5, None)


def test_rows_are_tested_on_the_videos_that_both_judged(tmp_path):
    write_run(tmp_path / "a", right="11110")
    write_run(tmp_path / "b", right="0001", optimizer__lr=0.1)  # v4 is not there
    (table,) = build_report([tmp_path]).tables
    (comparison,) = table.comparisons
    test = comparison.test
    assert (comparison.first, comparison.second) == (
        "mean 4x2x2",
        "mean 4x2x2, lr=0.1",
    )
    assert (test.num_videos, test.num_differ, test.difference) == (4, 3, 0.75)
    assert test.p_value == pytest.approx(2 / 8)


def test_many_rows_are_compared_with_the_first_alone(tmp_path):
    for i in range(6):
        write_run(tmp_path / f"r{i}", right="10", optimizer__lr=0.1 + i)
    (table,) = build_report([tmp_path]).tables
    assert len(table.comparisons) == 5
    assert {each.second for each in table.comparisons} == {table.rows[0].label}


def test_published_figures_are_as_printed():
    rows = {row.name: row for group in published_groups("lvu") for row in group.rows}
    assert [rows["ViS4mer"].figure(task) for task in LVU_TASKS] == (
        ["57.14", "40.79", "67.44", "62.61", "54.71", "48.80", "44.75", ".26", "3.63"]
    )
    assert rows["MA-LMM"].figure("like_ratio") is None
    assert rows["MA-LMM"].remark.startswith("clips of 100 s")
    for dataset, best in {"breakfast": "97.9", "coin": "93.5"}.items():
        (group,) = published_groups(dataset)
        figures = [row.figure("anything") for row in group.rows]
        assert figures == sorted(figures, key=float)
        assert figures[-1] == best
    assert published_groups("own") == ()


# The command ------------------------------------------------------------------------------------


def run_cli(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_command_prints_and_writes(tmp_path):
    write_run(tmp_path / "runs" / "a", right="110", missing=["gone"])
    write_run(tmp_path / "runs" / "begun", right="110", finished=False)
    done = run_cli("report", tmp_path / "runs", "--out", tmp_path / "out", "--no-html")
    assert done.exit_code == 0, done.output
    assert "66.67 (2)" in done.output
    assert "2. lvu/relationship: 3/4 test videos, missing: gone." in done.output
    assert "ViS4mer, published" in done.output
    assert "begun: not finished: 0 of 2 epochs" in done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.md", "report.tex", "report.csv", "figures.csv"}


def test_the_command_as_json(tmp_path):
    write_run(tmp_path / "a", right="110", task="own/label")
    (table,) = json.loads(run_cli("report", tmp_path, "--json").stdout)["tables"]
    (cell,) = table["ours"][0]["cells"]
    assert (cell["correct"], cell["total"]) == ([2], 3)
    assert cell["figure"] == {"mean": pytest.approx(2 / 3), "std": None, "values": [2 / 3]}


def test_frames_need_a_page(tmp_path):
    done = run_cli("report", tmp_path, "--videos", tmp_path)
    assert done.exit_code == 2
    assert "frames are shown on the HTML page; add --out DIR" in done.output
