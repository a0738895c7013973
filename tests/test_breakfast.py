"""Breakfast's activities, from the CSV files and from the folders of videos."""

from __future__ import annotations

from pathlib import Path

import pytest
from vis4mer.extract.annotations.breakfast import read_breakfast
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow

HEADER = "file_name,duration,action,class_id"


def write(folder: Path, train: list[str], test: list[str] | None = None, end: str = "\n") -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in (("train", train), ("test", test)):
        if lines is not None:
            (folder / f"{name}.csv").write_bytes(end.join([HEADER, *lines, ""]).encode())
    return folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_the_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        ["P03-cam01-P03_cereals,56,cereals,0", "P04-stereo-P04_salat_ch0,285.5,salat,9"],
        ["P47-webcam01-P47_tea,33,tea,2"],
        end="\r\n",
    )
    read = read_breakfast(tmp_path)
    (table,) = read.tables
    assert (table.reference, table.num_outputs) == ("breakfast/activity", 10)
    assert (table.classes[0], table.classes[9]) == ("cereals", "salat")
    assert table.rows == (
        TaskRow(id="P03-cam01-P03_cereals", split="train", label=0, group="P03"),
        TaskRow(id="P04-stereo-P04_salat_ch0", split="train", label=9, group="P04"),
        TaskRow(id="P47-webcam01-P47_tea", split="test", label=2, group="P47"),
    )
    assert read.durations["P04-stereo-P04_salat_ch0"] == 285.5
    assert read.notes == ()


def test_the_folders_alone(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "videos/P03/cam01/P03_cereals.avi",
        "videos/P46/stereo/P46_tea_ch0.avi",
        "videos/P46/stereo/P46_tea_ch1.avi",  # the other eye
        "videos/P47/webcam02/P47_milk.avi",
        "videos/P54/cam02/P54_friedegg.mp4",
        "videos/P55/cam01/P55_milk.avi",  # nobody of that number
        "videos/P03/cam01/P03_dancing.avi",
        "videos/P03/cam01/P03_cereals.txt",
    )
    read = read_breakfast(tmp_path)
    assert [(row.id, row.split, row.label, row.group) for row in read.tables[0].rows] == [
        ("P03-cam01-P03_cereals", "train", 0, "P03"),
        ("P46-stereo-P46_tea_ch0", "train", 2, "P46"),
        ("P47-webcam02-P47_milk", "test", 8, "P47"),
        ("P54-cam02-P54_friedegg", "test", 4, "P54"),
    ]
    assert any("2 videos of no known person or activity left out" in n for n in read.notes)
    with pytest.raises(UsageError, match=r"expected train\.csv and test\.csv .* or videos such as"):
        read_breakfast(tmp_path / "nowhere")


def test_the_files_come_before_the_folders(tmp_path: Path) -> None:
    touch(tmp_path, "P03/cam01/P03_cereals.avi")
    write(tmp_path, ["P04-cam01-P04_milk,5,milk,8"])
    read = read_breakfast(tmp_path)
    assert read.ids == ("P04-cam01-P04_milk",)
    assert any("split test is left out" in note for note in read.notes)


def test_known_unusable_videos_are_kept_and_said(tmp_path: Path) -> None:
    write(tmp_path, ["P28-cam01-P28_cereals,26,cereals,0", "P28-cam01-P28_tea,26,tea,2"], [
        "P47-cam01-P47_tea,0,tea,2"])  # fmt: skip
    read = read_breakfast(tmp_path)
    assert len(read.ids) == 3
    assert "1 video known to be unusable: P28-cam01-P28_cereals" in read.notes
    assert "1 video of a duration of 0 or less: P47-cam01-P47_tea" in read.notes
    assert "P47-cam01-P47_tea" not in read.durations


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("P03-cam01-P03_tea,33,tea,10", "line 2: class '10', expected a number from 0 to 9"),
        ("P03-cam01-P03_tea,33,tea,3", "line 2: class 3 with action 'tea', expected pancake"),
        ("P03-cam01-P03_tea,soon,tea,2", "line 2: duration 'soon', expected seconds"),
        ("P03-cam01-P03_tea,33,tea", "line 2: 3 values, expected 4"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, [line])
    with pytest.raises(UsageError, match=message):
        read_breakfast(tmp_path)
