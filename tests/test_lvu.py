"""LVU's annotation files: what they say, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from lvu_files import SMALL, TASKS, write_lvu
from vis4mer.extract.annotations.base import Annotations
from vis4mer.extract.annotations.lvu import read_lvu
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow


def only(task: str, *train: str, val: tuple[str, ...] = (), test: tuple[str, ...] = ()):
    return {task: {"train": list(train), "val": list(val), "test": list(test)}}


def rows(read: Annotations, task: str) -> dict[str, TaskRow]:
    return {row.id: row for row in read.with_tasks([task]).tables[0].rows}


def test_all_that_the_files_say(tmp_path: Path) -> None:
    read = read_lvu(write_lvu(tmp_path))
    kinds = [(table.reference, table.kind, table.num_outputs) for table in read.tables]
    assert kinds == [
        ("lvu/relationship", "classification", 4),
        ("lvu/director", "classification", 10),
        ("lvu/writer", "classification", 10),
        ("lvu/like_ratio", "regression", 1),
        ("lvu/view_count", "regression", 1),
    ]
    found = rows(read, "relationship")
    assert found["__abc_defgh"] == TaskRow(
        id="__abc_defgh", split="train", label=2, end_seconds=30.5, group="tt2"
    )
    assert [row.split for row in found.values()] == ["train", "train", "val", "test"]
    relationship, director, writer = read.tables[:3]
    assert relationship.classes == ("wife husband", "1", "old friend", "boy friend")
    assert director.classes == ("0", "nm1", "2", "3", "4", "5", "6", "7", "8", "nm9")
    assert writer.classes[0] == r"\N"
    assert read.ids == (
        "-e6lEsIUf3U", "__abc_defgh", "01ClRWyf9I4", "KAeAqaA0Llg", "zzzzzzzzzzz",
    )  # fmt: skip
    assert set(read.durations) == set(read.ids)
    assert read.durations["01ClRWyf9I4"] == 258


def test_each_task_has_its_published_number_of_outputs(tmp_path: Path) -> None:
    lines = {task: "1 x 01ClRWyf9I4 tt3" for task in TASKS}
    lines |= {"like_ratio": "3 1 01ClRWyf9I4 tt3", "view_count": "7 01ClRWyf9I4 tt3"}
    read = read_lvu(write_lvu(tmp_path, {task: {"train": [lines[task]]} for task in TASKS}))
    assert [table.num_outputs for table in read.tables] == [4, 5, 6, 10, 4, 10, 9, 1, 1]
    assert [table.task for table in read.tables] == list(TASKS)


def test_regression_labels_are_the_benchmarks(tmp_path: Path) -> None:
    read = read_lvu(write_lvu(tmp_path))
    likes, views = rows(read, "like_ratio"), rows(read, "view_count")
    # 10 · 3/4 - 9.138220535629456 and 0 - 9.138220535629456
    assert likes["01ClRWyf9I4"].label == pytest.approx(-1.638220535629456, abs=1e-12)
    assert likes["zzzzzzzzzzz"].label == pytest.approx(-9.138220535629456, abs=1e-12)
    # ln 100000 = 11.512925464970229, ln 1 = 0
    assert views["01ClRWyf9I4"].label == pytest.approx(-0.251328891861161, abs=1e-12)
    assert views["-e6lEsIUf3U"].label == pytest.approx(-11.76425435683139, abs=1e-12)


def test_the_folder_above_is_fine_and_so_are_windows_line_ends_and_a_byte_order_mark(
    tmp_path: Path,
) -> None:
    plain = read_lvu(write_lvu(tmp_path / "plain"))
    write_lvu(tmp_path / "windows" / "lvu_1.0", line_end="\r\n", mark="\ufeff")
    windows = read_lvu(tmp_path / "windows")
    assert (windows.tables, windows.durations) == (plain.tables, plain.durations)


def test_tasks_and_splits_that_are_not_there_are_left_out_and_said(tmp_path: Path) -> None:
    read = read_lvu(write_lvu(tmp_path, {"scene": {"train": ["0 office abc tt1"]}}, {"abc": "70"}))
    assert [table.task for table in read.tables] == ["scene"]
    assert sum("there is no folder" in note for note in read.notes) == 8
    assert sum("of scene is left out: there is no file" in note for note in read.notes) == 2
    with pytest.raises(UsageError, match=r"holds no LVU annotations; expected the folder lvu_1\.0"):
        read_lvu(tmp_path / "nowhere")


def test_without_durations_videos_are_whole(tmp_path: Path) -> None:
    write_lvu(tmp_path, only("scene", "0 office abc tt1"), {})
    read = read_lvu(tmp_path)
    assert rows(read, "scene")["abc"].end_seconds is None
    assert not read.durations
    assert any("videos are taken whole, their outros too" in note for note in read.notes)


@pytest.mark.parametrize("seconds", ["0", "-3", "0.0"])
def test_a_video_of_no_duration_is_kept_whole(tmp_path: Path, seconds: str) -> None:
    tasks = only("scene", "0 office abc tt1", "0 office other tt1")
    read = read_lvu(write_lvu(tmp_path, tasks, {"abc": seconds, "other": "61"}))
    assert rows(read, "scene")["abc"].end_seconds is None
    assert rows(read, "scene")["other"].end_seconds == 61
    assert read.durations == {"other": 61}
    assert any("1 video of a duration of 0 or less" in note for note in read.notes)
    assert any("1 video of scene without a duration, taken whole: abc" in n for n in read.notes)


def test_a_repeated_row_counts_once_and_is_said(tmp_path: Path) -> None:
    line = "0 office abc tt1"
    read = read_lvu(write_lvu(tmp_path, only("scene", line, "1 airport b tt1", line)))
    assert [row.id for row in read.tables[0].rows] == ["abc", "b"]
    note = "1 row of scene dropped as repeated: abc of train (line 4)"
    assert note in read.notes


def test_two_labels_of_one_video_are_refused_with_both_lines(tmp_path: Path) -> None:
    write_lvu(tmp_path, only("scene", "0 office abc tt1", "1 airport abc tt1"))
    with pytest.raises(UsageError, match=r"train\.csv, line 3: video 'abc'.*line 2 with"):
        read_lvu(tmp_path)


def test_a_video_in_two_splits_stays_in_both_and_is_said(tmp_path: Path) -> None:
    tasks = only("scene", "0 office abc tt1", test=("0 office abc tt1",))
    read = read_lvu(write_lvu(tmp_path, tasks))
    assert [row.split for row in read.tables[0].rows] == ["train", "test"]
    assert any("1 video of scene in more than one split" in note for note in read.notes)


def test_rows_whose_label_is_not_defined_are_left_out_and_said(tmp_path: Path) -> None:
    tasks = only("view_count", "0 abc tt1", "5 b tt1")
    tasks |= only("like_ratio", "0 0 abc tt1", "1 0 b tt1")
    read = read_lvu(write_lvu(tmp_path, tasks))
    assert [list(rows(read, task)) for task in ("view_count", "like_ratio")] == [["b"], ["b"]]
    for task in tasks:
        assert any(f"1 row of {task} without views or likes left out" in n for n in read.notes)


def test_a_class_of_two_names_keeps_the_first(tmp_path: Path) -> None:
    read = read_lvu(write_lvu(tmp_path, only("scene", "0 office abc tt1", "0 bureau b tt1")))
    assert read.tables[0].classes[0] == "office"
    assert any("called 'office', and 'bureau' in" in note for note in read.notes)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("scene", "6 moon abc tt1", "line 2: class '6', expected a number from 0 to 5"),
        ("scene", "-1 moon abc tt1", "line 2: class '-1', expected a number from 0 to 5"),
        ("scene", "x moon abc tt1", "line 2: class 'x'"),
        ("scene", "１ moon abc tt1", "line 2: class '１'"),
        ("scene", "abc tt1", "line 2: 'abc tt1', expected class_id class_name youtube_id imdb_id"),
        ("like_ratio", "3 abc tt1", "line 2: '3 abc tt1', expected like_count dislike_count"),
        ("like_ratio", "3 -1 abc tt1", "line 2: count '-1', expected a number from 0"),
        ("view_count", "many abc tt1", "line 2: count 'many'"),
        ("view_count", "1e300 abc tt1", "line 2: count '1e300'"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, task: str, line: str, message: str) -> None:
    write_lvu(tmp_path, only(task, line))
    with pytest.raises(UsageError, match=message) as caught:
        read_lvu(tmp_path)
    assert str(tmp_path / task / "train.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    write_lvu(tmp_path, SMALL)
    path = tmp_path / "director" / "train.csv"
    path.write_text("path,label,split\n")
    with pytest.raises(UsageError, match="line 1: found 'path,label,split', expected the header"):
        read_lvu(tmp_path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="cannot be read"):
        read_lvu(tmp_path)
    durations = tmp_path / "lvu_durations.csv"
    for text, message in (
        ("videoid,duration\nabc,5\nabc,6\n", "line 3: video 'abc' lasts 6 s here and 5 s above"),
        ("videoid,duration\nabc,long\n", "line 2: duration 'long', expected seconds"),
        ("id,seconds\nabc,5\n", "column 'videoid' is missing or doubled"),
    ):
        durations.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_lvu(tmp_path)
