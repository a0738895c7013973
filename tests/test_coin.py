"""COIN.json: crops, subsets, class names, and a hostile file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vis4mer.extract.annotations.coin import read_coin
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow


def video(**fields: Any) -> dict[str, Any]:
    plain = {
        "duration": 60,
        "class": "MakeTea",
        "video_url": "https://www.youtube.com/embed/x",
        "start": 2.5,
        "end": 40,
        "subset": "training",
        "recipe_type": 7,
        "annotation": [{"id": "1", "segment": [3, 9], "label": "boil water"}],
    }
    return plain | fields


def write(folder: Path, **videos: object) -> Path:
    path = folder / "COIN.json"
    path.write_text(json.dumps({"database": videos}))
    return path


def test_labels_crops_and_subsets(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        **{"-a": video(), "b": video(subset="testing", recipe_type=179, **{"class": "Z"})},
        c=video(subset="validation"),
    )
    read = read_coin(path)
    assert read_coin(tmp_path) == read
    (table,) = read.tables
    assert (table.reference, table.num_outputs) == ("coin/task", 180)
    assert (table.classes[0], table.classes[7], table.classes[179]) == ("0", "MakeTea", "Z")
    assert table.rows == (
        TaskRow(id="-a", split="train", label=7, start_seconds=2.5, end_seconds=40),
        TaskRow(id="b", split="test", label=179, start_seconds=2.5, end_seconds=40),
        TaskRow(id="c", split="test", label=7, start_seconds=2.5, end_seconds=40),
    )
    assert read.durations == {"-a": 60, "b": 60, "c": 60}
    assert read.notes == ()


def test_what_is_odd_is_kept_and_said(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        AfiVmAjfTNs=video(),
        backwards=video(start=9, end=9, duration=0),
        renamed=video(**{"class": "BrewTea"}),
    )
    read = read_coin(path)
    assert read.tables[0].rows[1] == TaskRow(id="backwards", split="train", label=7)
    assert "backwards" not in read.durations
    assert read.notes == (
        "1 video without a crop that ends after it starts, taken whole: backwards",
        "1 video of a class that others give another name: renamed",
        "1 video known to be unusable: AfiVmAjfTNs",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe_type": 180}, "video 'x': recipe_type 180, expected a number from 0 to 179"),
        ({"recipe_type": -1}, "video 'x': field 'recipe_type' is -1"),
        ({"recipe_type": True}, "field 'recipe_type' is True, expected an integer"),
        ({"subset": "dev"}, "field 'subset' is 'dev', expected one of training, testing"),
        ({"end": "40"}, "field 'end' is '40', expected a finite number"),
        ({"end": 1e300}, "video 'x': extent 2.5 to 1e.300 seconds"),
    ],
)
def test_a_video_that_is_wrong_is_named(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, x=video(**fields))
    with pytest.raises(UsageError, match=message) as caught:
        read_coin(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"database": []}',
        '{"database": {}}',
        '{"database": {"x": 5}}',
        '{"database": {"x": {"duration": NaN}}}',
        '{"database": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_is_something_else_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "COIN.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"COIN\.json") as caught:
        read_coin(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"COIN\.json is not there; expected COIN's annotations"):
        read_coin(tmp_path)


@pytest.mark.parametrize("where", ["video", "field"])
def test_what_stands_twice_is_refused(tmp_path: Path, where: str) -> None:
    """JSON itself would take the last one without a word."""
    one = json.dumps(video())
    other = json.dumps(video(recipe_type=8))
    twice = f'"x": {one}, "x": {other}'
    if where == "field":
        twice = f'"x": {one[:-1]}, "recipe_type": 8}}'
    (tmp_path / "COIN.json").write_text(f'{{"database": {{{twice}}}}}')
    key = "x" if where == "video" else "recipe_type"
    with pytest.raises(UsageError, match=rf"COIN\.json: an object has the key '{key}' twice"):
        read_coin(tmp_path)


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    read = read_coin(write(tmp_path, a=video(), b=video(recipe_type=9)))
    (table,) = read.tables
    assert (table.classes[7], table.classes[9]) == ("MakeTea", "MakeTea (9)")
    assert len(set(table.classes)) == 180
    assert read.notes == (
        "classes 7 and 9 are both called 'MakeTea'; those after the first are told apart by their "
        "number",
    )


def test_a_crop_beyond_the_end_is_said(tmp_path: Path) -> None:
    read = read_coin(write(tmp_path, long=video(duration=39.5), whole=video(duration=40)))
    assert read.tables[0].rows[0].end_seconds == 40
    assert read.notes == ("1 video of a crop that ends after the video, cut at its end: long",)


def test_a_wrong_crop_names_its_video_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_coin(write(tmp_path, x=video(end=1e300)))
    assert str(caught.value).count("'x'") == 1
