"""Labels that speak of more than a video holds are said: by the audit, and by extraction."""

from __future__ import annotations

import json
from pathlib import Path

import media
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract.annotations.audit import FoundFile, audit_annotations
from vis4mer.extract.annotations.base import Annotations
from vis4mer.extract.annotations.ends import labels_beyond, parts_beyond
from vis4mer.store.cache import open_cache
from vis4mer.store.tasks import Split, TaskRow, TaskTable

BACKBONE = ("--backbone", "vit_tiny_patch16_224@64", "--weights", "random:0")
LATE = "path,label,split,start_seconds,end_seconds\n"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def table(*rows: TaskRow, task: str = "label", classes: tuple[str, ...] = ("x", "y")) -> TaskTable:
    return TaskTable(dataset="d", task=task, kind="classification", classes=classes, rows=rows)


def row(id: str, start: float | None = None, end: float | None = None, split: Split = "train"):
    return TaskRow(id=id, split=split, label=0, start_seconds=start, end_seconds=end)


def test_what_lies_beyond_a_file_of_six_seconds() -> None:
    rows = (
        row("v", None, 60.0),
        row("v", 2.0, 6.9),  # whole seconds are rounded up
        row("v", 6.0, 8.0),
        row("v", 6.0),
        row("v"),
        row("other", None, 60.0),  # whose file nobody opened
    )
    found = labels_beyond([table(*rows), table(rows[0], task="again")], {"v": 6.0})
    assert [(each.start_seconds, each.end_seconds, each.unusable) for each in found] == [
        (0.0, 60.0, False),
        (6.0, 8.0, True),
        (6.0, None, True),
    ]
    assert found[0].describe() == "v: label ends at 60 s, the file at 6.0 s"
    assert found[1].describe() == "v: label starts at 6 s, the file ends at 6.0 s: unusable"
    assert parts_beyond([("v@0-7000", None, 7.0, 6.0)]) == ()


def test_the_audit_lists_labels_and_counts_what_is_left() -> None:
    rows = (row("a", None, 60.0), row("b", 9.0), row("c", 9.0), row("c", None, 3.0), row("e"))
    read = Annotations(dataset="d", tables=(table(*rows),), durations={})
    files = {id_: FoundFile(path=Path(id_), duration_seconds=6.0) for id_ in "abce"}
    found = audit_annotations(read, files)
    assert [(each.id, each.unusable) for each in found.beyond] == [
        ("a", False),
        ("b", True),
        ("c", True),
    ]
    assert [(lost.id, lost.cause) for lost in found.lost] == [("b", "label")]
    assert "label starts at 9 s" in found.lost[0].problem
    assert found.usable == 3


def test_a_whole_video_that_is_cut_off_is_told_once() -> None:
    """By its annotated length, which is the end of its label too."""
    read = Annotations(dataset="d", tables=(table(row("a", None, 60.0)),), durations={"a": 60.0})
    found = audit_annotations(read, {"a": FoundFile(path=Path("a"), duration_seconds=6.0)})
    assert (found.beyond, len(found.lengths.too_short)) == ((), 1)


def write_own(folder: Path, rows: str) -> Path:
    media.write_clip(folder / "a.mp4", num_frames=60)  # 6 s
    media.write_clip(folder / "b.mp4", num_frames=60)
    path = folder / "own.csv"
    path.write_text(LATE + rows)
    return path


def test_check_and_extract_say_so_of_real_files(tmp_path: Path) -> None:
    path = write_own(tmp_path, "a.mp4,1.5,train,,60\nb.mp4,2,test,1,5\nb.mp4,1,test,90,\n")
    checked = run("datasets", "check", path)
    assert checked.exit_code == 0, checked.output
    assert "2 labels beyond the end of the file:" in checked.stdout
    assert "  a.mp4: label ends at 60 s, the file at 6.0 s" in checked.stdout
    assert "a regression, values 1 to 2" in checked.stdout
    told = json.loads(run("datasets", "check", path, "--json").stdout)
    assert [label["unusable"] for label in told["beyond"]] == [False, True]
    done = run("extract", path, "--cache", tmp_path / "c.zarr", *BACKBONE)
    assert done.exit_code == 0, done.output
    assert (
        "2 labels beyond the end of the video: a.mp4: label ends at 60 s, the file at 6.0 s, "
        "b.mp4: label starts at 90 s"
    ) in done.stdout
    assert "labels: own/label a regression, values 1 to 2" in done.stderr
    label = run("label", tmp_path / "c.zarr", "--dataset", path)
    assert "3 rows, a regression, values 1 to 2" in label.stdout


def test_segments_are_compared_by_what_was_asked_of_each(tmp_path: Path) -> None:
    path = write_own(tmp_path, "a.mp4,x,train,,60\nb.mp4,y,test,1,5\n")
    segments = ("--segments", 2, "--json")
    done = run("extract", path, "--cache", tmp_path / "c.zarr", *BACKBONE, *segments)
    assert done.exit_code == 0, done.output
    (beyond,) = json.loads(done.stdout)["beyond"]
    assert (beyond["id"], beyond["end_seconds"]) == ("a.mp4@0-60000", 60)
    assert beyond["file_seconds"] == pytest.approx(6)
    assert len(open_cache(tmp_path / "c.zarr").ids()) == 2


# What the audit shows -----------------------------------------------------------------------------


def test_many_classes_are_a_summary_and_few_are_named(tmp_path: Path) -> None:
    names = [f"class {i:03}" for i in range(40)]
    many = "".join(
        f"{i}.mp4,{name},{'train' if i < 30 else 'test'}\n" for i, name in enumerate(names)
    )
    (tmp_path / "many.csv").write_text("path,label,split\n" + many)
    shown = run("datasets", "check", tmp_path / "many.csv", "--quick").stdout
    assert (
        "label: 40 classes, 1 to 1 rows each; 10 without training rows: class 030, class 031, class"
    ) in shown
    assert "and 7 more" in shown
    assert max(map(len, shown.splitlines())) <= 120
    (tmp_path / "few.csv").write_text(
        "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,test\n"
    )
    shown = run("datasets", "check", tmp_path / "few.csv", "--quick").stdout
    assert "label: rows in train/test: x 1/1, y 1/0; 1 without test rows: y" in shown


def test_a_csv_of_one_task_is_spoken_of_as_one(tmp_path: Path) -> None:
    """Nothing of other tasks or of addresses; --quick says that nothing was opened."""
    path = write_own(tmp_path, "a.mp4,x,train,,\na.mp4,x,test,,\nb.mp4,y,test,,\nc.mp4,y,test,,\n")
    shown = run("datasets", "check", path, "--quick").stdout
    assert "different tasks" not in shown
    assert "address" not in shown
    assert "2 present, 1 missing; no file was opened" in shown
    assert "undecodable" not in shown


def test_a_file_that_cannot_be_decoded_is_not_present(tmp_path: Path) -> None:
    path = write_own(tmp_path, "a.mp4,x,train,,\nb.mp4,y,train,,\n")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    told = json.loads(run("datasets", "check", path, "--json").stdout)
    (split,) = told["tasks"][0]["splits"]
    assert (split["present"], split["missing"], split["undecodable"]) == (1, 0, 1)


# What is refused is refused before anything is made ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-size", "0"), "batch size is 0, expected at least 1"),
        (("--workers", "-1"), "workers is -1, expected at least 1"),
        (("--ids", "nobody"), "'nobody'"),
        (("--task", "other"), "--task other"),
        (("--device", "gpu"), "device 'gpu': expected auto, cpu, cuda, cuda:N or mps"),
        (("--split", "tset"), "'tset' is not one of 'train', 'val', 'test'"),
    ],
)
def test_a_refused_command_leaves_no_cache(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    path = write_own(tmp_path, "a.mp4,x,train,,\nb.mp4,y,train,,\n")
    done = run("extract", path, "--cache", tmp_path / "c.zarr", *BACKBONE, *options)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Value error" not in done.stderr
    assert not (tmp_path / "c.zarr").exists()


def test_a_place_without_directories_is_one_line(tmp_path: Path) -> None:
    path = write_own(tmp_path, "a.mp4,x,train,,\nb.mp4,y,train,,\n")
    done = run("extract", path, "--cache", "/proc/x.zarr", *BACKBONE)
    assert done.exit_code == 1
    assert "cannot write /proc/x.zarr: no directory can be made there" in done.stderr


def test_segments_have_no_window_to_be_shorter_than(tmp_path: Path) -> None:
    video = {"duration": 5, "class": "A", "start": 1, "end": 4, "recipe_type": 0}
    subsets = {"AAAAAAAAAAA": "training", "BBBBBBBBBBB": "testing"}
    database = {name: {**video, "subset": subset} for name, subset in subsets.items()}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    (tmp_path / "videos").mkdir()
    media.write_clip(tmp_path / "videos" / "AAAAAAAAAAA.mp4", num_frames=50)
    where = ("--annotations", tmp_path, "--videos", tmp_path / "videos")
    shown = run("datasets", "check", "coin", *where).stdout
    assert "< 60 s" not in shown
    assert "task: 180 classes, 0 to 2 rows each; 179 without training rows: 1, 2, 3 and" in shown
    assert "lists what cannot be used, with addresses" in shown
    assert "< 9 s" in run("datasets", "check", "coin", *where, "--window", 9).stdout
