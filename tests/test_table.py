"""One CSV of labels, as people write them, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from vis4mer.extract.annotations.table import read_table
from vis4mer.store.errors import UsageError

GOOD = "path,label,split\na.mp4,left,train\nb.mp4,right,test\n"


def write(tmp_path: Path, text: str, name: str = "My Data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_paths_text_labels_and_splits(tmp_path: Path) -> None:
    labelled = read_table(write(tmp_path, GOOD))
    table = labelled.table
    assert (table.reference, table.kind) == ("my-data/label", "classification")
    assert table.classes == ("left", "right")
    assert [(row.id, row.label, row.split) for row in table.rows] == [
        ("a.mp4", 0, "train"),
        ("b.mp4", 1, "test"),
    ]
    assert [video.path for video in labelled.videos] == [tmp_path / "a.mp4", tmp_path / "b.mp4"]


def test_byte_order_mark_crlf_case_spaces_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = (
        '\ufeffPath, Label ,SPLIT,comment\r\n"a, b.mp4", left ,Training,x\r\n'
        "\r\nb.mp4,right,VALID,\r\nc.mp4,left,testing,\r\n"
    )
    rows = read_table(write(tmp_path, text)).table.rows
    assert [(row.id, row.split) for row in rows] == [
        ("a, b.mp4", "train"),
        ("b.mp4", "val"),
        ("c.mp4", "test"),
    ]


def test_whole_numbers_are_classes_in_their_own_order(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,10,train\nb.mp4,9,train\nc.mp4,-1,test\n"
    table = read_table(write(tmp_path, text)).table
    assert table.classes == ("-1", "9", "10")
    assert [row.label for row in table.rows] == [2, 1, 0]


def test_one_decimal_number_makes_a_regression(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,10,train\nb.mp4,-0.5,train\nc.mp4,1e2,test\n"
    table = read_table(write(tmp_path, text)).table
    assert (table.kind, table.classes, table.num_outputs) == ("regression", (), 1)
    assert [row.label for row in table.rows] == [10, -0.5, 100]


@pytest.mark.parametrize("label", ["1_1", "nan", "inf", "-Infinity", "١", "-+1", "1e999", "0x10"])
def test_what_only_python_takes_for_a_number_makes_no_regression(
    tmp_path: Path, label: str
) -> None:
    text = f"path,label,split\na.mp4,2.5,train\nb.mp4,{label},train\nc.mp4,3,test\n"
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=r"line 3: label .*, and 2 of 3 labels are; write text"):
        read_table(path)
    table = read_table(path, kind="classification").table
    assert set(table.classes) == {"2.5", label, "3"}
    with pytest.raises(UsageError, match=r"line 3: label .* expected a number"):
        read_table(tmp_path / "My Data.csv", kind="regression")


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        ("1.0 nan 2.0", 3),
        ("1.0 2.5 x", 4),
        ("1 nan 2", 3),  # whole numbers are classes; nan is no name for one of them
        ("1e999 1e999 1e999", 2),
    ],
)
def test_one_bad_number_does_not_make_classes_of_a_regression(
    tmp_path: Path, labels: str, wrong: int
) -> None:
    rows = "".join(f"{i}.mp4,{label},train\n" for i, label in enumerate(labels.split()))
    with pytest.raises(UsageError, match=rf"line {wrong}: label .* is no finite number"):
        read_table(write(tmp_path, f"path,label,split\n{rows}"))


def test_whole_numbers_and_text_are_classes(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,1,train\nb.mp4,other,train\nc.mp4,nan,test\n"
    with pytest.raises(UsageError, match="line 4: label 'nan'"):
        read_table(write(tmp_path, text))
    table = read_table(write(tmp_path, text.replace("nan", "2"))).table
    assert (table.classes, table.describe_labels()) == (("1", "2", "other"), "3 classes")


def test_the_labels_are_said_in_words(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,split\na.mp4,1.5,train\nb.mp4,-2,train\n")
    assert read_table(path).table.describe_labels() == "a regression, values -2 to 1.5"


def test_the_kind_can_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,split\na.mp4,10,train\nb.mp4,9,train\n")
    assert [row.label for row in read_table(path, kind="regression").table.rows] == [10, 9]
    path = write(tmp_path, "path,label,split\na.mp4,0.5,train\nb.mp4,1.5,train\n")
    assert read_table(path, kind="classification").table.classes == ("0.5", "1.5")
    path = write(tmp_path, GOOD)
    with pytest.raises(UsageError, match="line 2: label 'left', expected a number"):
        read_table(path, kind="regression")


def test_extents_and_groups(tmp_path: Path) -> None:
    text = (
        "path,label,split,start_seconds,end_seconds,group\n"
        "a.mp4,x,train,1.5,3,film 1\na.mp4,y,train,3,,film 1\nb.mp4,x,test,,,\n"
    )
    labelled = read_table(write(tmp_path, text))
    assert [(r.start_seconds, r.end_seconds, r.group) for r in labelled.table.rows] == [
        (1.5, 3.0, "film 1"),
        (3.0, None, "film 1"),
        (None, None, None),
    ]
    assert [video.id for video in labelled.videos] == ["a.mp4", "b.mp4"]  # each video once


def test_ids_are_found_below_a_folder_by_their_stem(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for name in ("P03/cam01/x.avi", "P03/y.mp4", "-z.webm", "y.txt"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"")
    text = "id,label,split\nx,a,train\nP03/y,b,train\n-z.webm,a,test\nmissing,b,test\n"
    found = read_table(write(tmp_path, text), videos=videos).videos
    assert [video.id for video in found] == ["x", "P03/y", "-z.webm", "missing"]
    assert [video.path.relative_to(videos).as_posix() for video in found] == [
        "P03/cam01/x.avi",
        "P03/y.mp4",
        "-z.webm",
        "missing",
    ]


def test_an_id_that_could_be_two_videos_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(b"")
    path = write(tmp_path, "id,label,split\nx,a,train\n")
    with pytest.raises(UsageError, match="line 2: id 'x' could be"):
        read_table(path)
    assert read_table(write(tmp_path, "id,label,split\none/x,a,train\n")).videos[0].id == "one/x"


def test_absolute_paths_below_the_folder_get_short_ids(tmp_path: Path) -> None:
    text = f"path,label,split\n{tmp_path}/clips/a.mp4,x,train\n/elsewhere/b.mp4,y,train\n"
    found = read_table(write(tmp_path, text)).videos
    assert [video.id for video in found] == ["clips/a.mp4", "/elsewhere/b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: column 'path' is missing \(found nothing\)"),
        ("path,split\na,train\n", r"line 1: column 'label' is missing \(found path,split\)"),
        ("path,label\na,b\n", "line 1: column 'split' is missing"),
        ("path;label;split\na;b;train\n", "line 1: column 'path' is missing.*comma-separated"),
        ("path,label,label,split\n", "line 1: column 'label' stands there twice"),
        ("path,label,split\n", "no rows below the header"),
        ("path,label,split\na,b\n", "line 2: 2 values, expected 3"),
        ("path,label,split\na,b,train\nc,,train\n", "line 3: column 'label' is empty"),
        ("path,label,split\n,b,train\n", "line 2: column 'path' is empty"),
        ("path,label,split\na,b,dev\n", "line 2: unknown split 'dev'.*train, training, val, valid"),
        ("path,label,split\na,b,train\na,c,train\n", "line 3: video 'a'.*already stands in line 2"),
        ("path,label,split,start_seconds\na,b,train,x\n", "line 2: start_seconds 'x'"),
        ("path,label,split,end_seconds\na,b,train,-1\n", "line 2: end_seconds '-1'"),
        (
            "path,label,split,start_seconds,end_seconds\na,b,train,5,4\n",
            "line 2: .*extent 5.0 to 4.0",
        ),
        ('path,label,split\n"a,b,train\n', "not a CSV"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="UTF-8"):
        read_table(tmp_path / "binary.csv")


@pytest.mark.parametrize(("first", "second"), [("01", "1"), ("1", "+1"), ("0", "-0")])
def test_one_number_in_two_spellings_is_refused(tmp_path: Path, first: str, second: str) -> None:
    path = write(tmp_path, f"path,label,split\na.mp4,{first},train\nb.mp4,{second},test\n")
    with pytest.raises(UsageError, match=r"line 3: labels .* are one number written in two ways"):
        read_table(path)
    text = f"path,label,split\na.mp4,{first},train\nb.mp4,{second},test\nc.mp4,x,test\n"
    assert len(read_table(write(tmp_path, text)).table.classes) == 3  # names, not numbers


@pytest.mark.parametrize("column", ["path", "id"])
@pytest.mark.parametrize("name", ["a\x07.mp4", "a\x9b.mp4", '"a\nb.mp4"'])
def test_control_characters_name_no_video(tmp_path: Path, column: str, name: str) -> None:
    path = write(tmp_path, f"{column},label,split\nb.mp4,x,test\n{name},x,train\n")
    with pytest.raises(UsageError, match=rf"line [34]: {column} .* holds a control character"):
        read_table(path)


def test_a_name_longer_than_a_system_takes_is_a_video_that_is_not_there(tmp_path: Path) -> None:
    name = "a" * 300 + ".mp4"
    labelled = read_table(write(tmp_path, f"id,label,split\n{name},x,train\n"))
    assert [video.path for video in labelled.videos] == [tmp_path / name]
