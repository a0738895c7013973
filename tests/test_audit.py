"""The audit of a dataset: figures by hand, real and broken files, the command."""

from __future__ import annotations

import csv
import json
import threading
from concurrent.futures import Future
from pathlib import Path

import extraction as ex
import media
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.extract.annotations.audit import FoundFile, audit_annotations
from vis4mer.extract.annotations.base import Annotations
from vis4mer.extract.annotations.check import check_dataset, open_files, write_missing
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sampling import Every, Spread
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow, TaskTable


def row(id: str, split: str, label: float, group: str | None = None, **extent: float) -> TaskRow:
    return TaskRow(id=id, split=split, label=label, group=group, **extent)  # type: ignore[arg-type]


PLACE = TaskTable(
    dataset="d",
    task="place",
    kind="classification",
    classes=("bar", "car", "sea"),
    rows=(
        row("a", "train", 0, "m1", end_seconds=100.0),
        row("b", "train", 0, "m2", end_seconds=30.0),
        row("c", "train", 2, "m3"),
        row("a", "test", 0, "m1", end_seconds=100.0),  # in two splits, and its movie too
        row("d", "test", 1, "m2"),  # another clip of a movie that was trained on
        row("e", "test", 1, "m9", start_seconds=50.0, end_seconds=105.0),
    ),
)
LIKES = TaskTable(
    dataset="d",
    task="likes",
    kind="regression",
    rows=(row("d", "train", 0.5), row("f", "test", 1.0), row("e", "test", -2.0)),
)
OWN = Annotations(
    dataset="d",
    tables=(PLACE, LIKES),
    durations={"a": 100.0, "b": 30.0, "c": 59.0, "d": 200.0, "e": 110.0, "f": 80.0},
    notes=("something to know",),
)


def test_figures_of_the_annotations_alone() -> None:
    found = audit_annotations(OWN, None)
    place, likes = found.tasks
    assert (found.videos, found.seconds, found.looked) == (6, 579.0, False)
    assert [(s.split, s.videos, s.present, s.class_counts) for s in place.splits] == [
        ("train", 3, None, (2, 0, 1)),
        ("test", 3, None, (1, 2, 0)),
    ]
    # b lasts 30 s and c 59 s; e is spoken of from 50 to 105 s
    assert [s.short for s in place.splits] == [2, 1]
    assert place.floor == pytest.approx(2 / 3)
    assert (place.untrained, place.untested) == (("car",), ("sea",))
    assert (place.in_two_splits, place.leaking) == (("a",), ("a", "d"))
    assert likes.floor == pytest.approx((1 + 4) / 2)
    assert (likes.leaking, likes.untrained) == ((), ())
    assert found.split_changes == ("d",)  # a is in two splits of one task
    assert found.notes == ("something to know",)


def test_figures_of_the_files() -> None:
    somewhere = Path("v.mp4")
    files = {
        "a": FoundFile(path=somewhere, duration_seconds=131.0),  # an outro of 31 s
        "b": FoundFile(path=somewhere, duration_seconds=28.5),  # equal, as whole seconds go
        "c": FoundFile(path=somewhere, duration_seconds=300.0),  # another video
        "d": FoundFile(path=None),
        "e": FoundFile(path=somewhere, duration_seconds=52.0),  # cut off
        "f": FoundFile(path=somewhere, failure="no video"),
    }
    found = audit_annotations(OWN, files)
    place, likes = found.tasks
    counts = [(s.present, s.missing, s.undecodable, s.short) for s in place.splits]
    assert counts == [(3, 0, 0, 1), (2, 1, 0, 1)]
    assert [(s.present, s.undecodable) for s in likes.splits] == [(0, 0), (1, 1)]
    assert (found.usable, found.opened) == (4, 5)
    lengths = found.lengths
    assert (lengths.compared, lengths.same, lengths.with_outro) == (4, 1, 1)
    assert [(each.id, each.difference) for each in lengths.too_short] == [("e", -58.0)]
    assert [(each.id, each.difference) for each in lengths.too_long] == [("c", 241.0)]
    assert lengths.mean_difference == pytest.approx((31 - 1.5 + 241 - 58) / 4)
    assert [(lost.id, lost.tasks, lost.splits, lost.problem) for lost in found.lost] == [
        ("d", ("place", "likes"), ("test", "train"), "missing"),
        ("f", ("likes",), ("test",), "no video"),
    ]


@pytest.fixture
def lvu(tmp_path: Path) -> Path:
    """A dataset of LVU's form, with one whole, one truncated and one missing video."""
    scene = tmp_path / "lvu_1.0" / "scene"
    scene.mkdir(parents=True)
    rows = {"train": ["0 bar -whole tt1", "1 car torn tt2"], "val": ["0 bar gone tt3"]}
    rows["test"] = ["1 car =gone2 tt1"]
    for split, lines in rows.items():
        text = "class_id class_name youtube_id imdb_id\n" + "\n".join(lines) + "\n"
        (scene / f"{split}.csv").write_text(text)
    (tmp_path / "lvu_1.0" / "lvu_durations.csv").write_text(
        "videoid,duration\n-whole,3\ntorn,3\ngone,100\n=gone2,100\n"
    )
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    media.write_clip(tmp_path / "videos" / "deep" / "-whole.mkv", num_frames=30, rate=10)
    whole = media.write_clip(tmp_path / "videos" / "torn.mp4", num_frames=30, rate=10).path
    whole.write_bytes(whole.read_bytes()[:200])
    return tmp_path


def test_real_files_are_opened(lvu: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = check_dataset(
        "lvu",
        annotations=lvu / "lvu_1.0",
        videos=lvu / "videos",
        reader=get_reader("pyav"),
        on_file=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    assert (found.usable, found.opened, found.lengths.same) == (1, 2, 1)
    assert [lost.id for lost in found.lost] == ["torn", "gone", "=gone2"]
    assert found.lost[0].problem != "missing"
    write_missing(lvu / "out" / "missing.csv", found)
    with (lvu / "out" / "missing.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[1] == {
        "id": "gone",
        "tasks": "scene",
        "splits": "val",
        "url": "",  # four letters are no id of YouTube's
        "problem": "missing",
    }


def test_the_list_of_missing_videos_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    """Ids stand as they are, for programs; addresses are made of YouTube's ids alone."""
    ids = ("-e6lEsIUf3U", "=cmd|' /C x", "elevenchar&", "short")
    rows = tuple(row(video_id, "test", 1.0) for video_id in ids)
    table = TaskTable(dataset="lvu", task="likes", kind="regression", rows=rows)
    files = {
        video_id: FoundFile(path=Path("x"), failure="@SUM(1;=2)\x1b[2J") for video_id in ids[1:]
    }
    files[ids[0]] = FoundFile(path=None)
    read = Annotations(dataset="lvu", tables=(table,), durations={})
    write_missing(tmp_path / "missing.csv", audit_annotations(read, files))
    with (tmp_path / "missing.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [line["id"] for line in found] == list(ids)
    watch = "https://www.youtube.com/watch?v="
    assert [line["url"] for line in found] == [f"{watch}-e6lEsIUf3U", "", "", ""]
    assert [line["problem"] for line in found] == ["missing", *["'@SUM(1;'=2)\\x1b[2J"] * 3]


def test_a_quick_look_opens_nothing(lvu: Path) -> None:
    found = check_dataset("lvu", annotations=lvu / "lvu_1.0", videos=lvu / "videos", reader=None)
    assert (found.usable, found.opened, found.lengths.compared) == (2, 0, 0)


class FirstFrames(ex.FakeReader):
    """Is asked for one moment at the beginning. may_go_on: to the second file, and further."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def open(self, path: Path, *, moments: object) -> ex.FakeStream:  # type: ignore[override]
        assert moments == Spread(fps=1, seconds=1)
        if self.streams:
            self.may_go_on.wait(30)
        return super().open(path, moments=Every(fps=1))


def test_a_fault_of_the_reader_is_that_file_s_finding(tmp_path: Path) -> None:
    paths = {
        "bad": ex.write_video(tmp_path, "bad", 3, open="no"),
        "crash": ex.write_video(tmp_path, "crash", 3, crash="RuntimeError"),
        "empty": ex.write_video(tmp_path, "empty", 0),
        "good": ex.write_video(tmp_path, "good", 3),
    }
    found = open_files(paths, FirstFrames(), workers=3)
    assert {id_: each.failure for id_, each in found.items()} == {
        "bad": "no",
        "crash": "RuntimeError: told to",
        "empty": "no frame could be read",
        "good": None,
    }


def test_an_interrupted_check_opens_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {f"v{i}": ex.write_video(tmp_path, f"v{i}", 3) for i in range(5)}
    reader = FirstFrames()
    reader.may_go_on.clear()
    cancel, cancelled = Future.cancel, []

    def cancel_and_count(future: Future[object]) -> bool:
        cancelled.append(future)
        if len(cancelled) == 3:  # of five: one is done, and one may have begun
            reader.may_go_on.set()
        return cancel(future)

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "cancel", cancel_and_count)
    with pytest.raises(KeyboardInterrupt):
        open_files(paths, reader, workers=1, on_file=interrupt)
    assert 1 <= len(reader.streams) <= 2


def test_a_csv_of_one_s_own(tmp_path: Path) -> None:
    media.write_clip(tmp_path / "a.mp4", num_frames=3, rate=1)
    (tmp_path / "own.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,test\n")
    found = check_dataset(tmp_path / "own.csv", reader=get_reader("pyav"), window_seconds=2)
    assert (found.usable, [lost.id for lost in found.lost]) == (1, ["b.mp4"])
    assert found.tasks[0].untrained == ("y",)
    assert [split.short for split in found.tasks[0].splits] == [0, 0]
    with pytest.raises(UsageError, match="--window 0: expected seconds above 0"):
        check_dataset(tmp_path / "own.csv", reader=None, window_seconds=0)
    with pytest.raises(UsageError, match="--annotations"):
        check_dataset(tmp_path / "own.csv", annotations=tmp_path, reader=None)


# The command -------------------------------------------------------------------------------------


def run(*arguments: object):
    return CliRunner().invoke(app, ["datasets", *map(str, arguments)])


def test_the_command_says_what_is_there(lvu: Path) -> None:
    where = ("--annotations", lvu / "lvu_1.0", "--videos", lvu / "videos")
    done = run("check", "lvu", *where, "--missing", lvu / "m.csv")
    assert done.exit_code == 0, done.output
    assert "1 usable, 2 missing, 1 undecodable (2 opened)" in done.stdout
    assert "1/1" in done.stdout  # its movie is in train
    assert (lvu / "m.csv").read_text().count("\n") == 4
    told = json.loads(run("check", "lvu", *where, "--json").stdout)
    assert told["tasks"][0]["leaking"] == ["=gone2"]
    assert [lost["id"] for lost in told["lost"]] == ["torn", "gone", "=gone2"]


def test_nothing_usable_is_a_failure(lvu: Path) -> None:
    empty = lvu / "empty"
    empty.mkdir()
    assert run("check", "lvu", "--annotations", lvu, "--videos", empty).exit_code == 1
    assert run("check", "lvu", "--annotations", lvu).exit_code == 0  # nobody looked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lvu", "--annotations", "lvu_1.0", "--videos", "no"), "'no' is not there"),
        (("lvu", "--annotations", "lvu_1.0", "--missing", "m.csv"), "give --videos"),
        (("lvu",), "--annotations is missing for lvu"),
        (("ucf",), "'ucf': expected lvu, breakfast, coin, or a CSV"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    lvu: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(lvu)
    refused = run("check", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (lvu / "m.csv").exists()


@pytest.mark.parametrize("command", [(), ("check",), ("fetch",)])
def test_each_command_has_an_example(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert f"Example: vis4mer {' '.join(('datasets', *command))}" in " ".join(shown.stdout.split())


def test_what_is_known_by_name(lvu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lvu)
    (lvu / "vis4mer.toml").write_text('[lvu]\nannotations = "lvu_1.0"\n[coin]\nannotations = "x"\n')
    told = {each["name"]: each for each in json.loads(run("--json").stdout)["datasets"]}
    assert (told["lvu"]["num_videos"], told["lvu"]["tasks"]) == (4, ["scene"])
    assert told["lvu"]["annotations"] == "lvu_1.0"
    assert "x" in told["coin"]["problem"]
    assert told["breakfast"]["annotations"] is None
    shown = run().stdout
    assert "VIS4MER_LVU_VIDEOS" in shown
    assert "4 videos, 4 rows, 1 task: scene" in shown


def test_a_name_longer_than_a_system_takes_has_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"path,label,split\n{'a' * 300}.mp4,x,train\n")
    assert len(check_dataset(path, reader=None).lost) == 1
