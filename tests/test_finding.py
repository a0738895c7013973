"""From what a person asks for to videos, files and tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from lvu_files import DURATIONS, SMALL, write_lvu
from vis4mer.extract.annotations.finding import Request, find_request, read_annotations
from vis4mer.extract.request import ExtractRequest, extract_videos, plan_videos
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Sampling

SPREAD = Sampling(kind="spread")
FILES = {
    "-e6lEsIUf3U": "-e6lEsIUf3U.mp4",
    "01ClRWyf9I4": "more/Title [01ClRWyf9I4].webm",
    "zzzzzzzzzzz": "zzzzzzzzzzz.f137.mkv",
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ANNOTATIONS", "VIDEOS"):
        monkeypatch.delenv(f"VIS4MER_LVU_{name}", raising=False)


def touch(folder: Path, *names: str, size: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


def ask(tmp_path: Path, **options: object) -> Request:
    write_lvu(tmp_path / "lvu_1.0")
    touch(tmp_path / "videos", *FILES.values())
    given = {
        "dataset": "lvu",
        "annotations": tmp_path / "lvu_1.0",
        "videos": tmp_path / "videos",
    }
    return find_request(**(given | options))  # type: ignore[arg-type]


def test_six_tasks_may_name_a_video_and_it_is_asked_for_once(tmp_path: Path) -> None:
    found = ask(tmp_path)
    assert {video.id: video.path for video in found.videos} == {
        video_id: tmp_path / "videos" / name for video_id, name in FILES.items()
    }
    assert len(found.videos) == len(FILES)
    assert all(video.end_seconds is None for video in found.videos)
    assert [table.task for table in found.tables] == list(SMALL)
    assert found.missing == ("__abc_defgh", "KAeAqaA0Llg")
    assert found.durations == {
        video_id: float(seconds)
        for video_id, seconds in DURATIONS.items()
        if video_id != "not_of_lvu_"
    }
    assert found.notes[-1] == (
        f"2 of 5 videos without a file below {tmp_path / 'videos'} (`vis4mer datasets check lvu "
        "--missing FILE.csv` lists them)"
    )


def test_where_sampling_needs_an_extent_it_is_part_of_the_id(tmp_path: Path) -> None:
    found = ask(tmp_path, sampling=SPREAD)
    by_id = {video.id: (video.start_seconds, video.end_seconds) for video in found.videos}
    assert by_id == {
        "-e6lEsIUf3U@0-124000": (None, 124),
        "01ClRWyf9I4@0-258000": (None, 258),
        "zzzzzzzzzzz@0-60000": (None, 60),
    }
    assert found.missing == ("__abc_defgh@0-30500", "KAeAqaA0Llg@0-123000")
    assert found.durations["__abc_defgh@0-30500"] == 30.5
    rows = {row.id for table in found.tables for row in table.rows}
    assert rows == {*by_id, *found.missing}


def test_a_part_of_the_videos_leaves_the_tables_whole(tmp_path: Path) -> None:
    whole = ask(tmp_path, tasks=["lvu/relationship", "director"])
    assert [table.task for table in whole.tables] == ["relationship", "director"]
    test = ask(tmp_path, tasks=["relationship"], split="test", require_files=False)
    assert (test.videos, test.missing) == ((), ("KAeAqaA0Llg",))
    assert test.tables == whole.tables[:1]
    one = ask(tmp_path, ids=["-e6lEsIUf3U"])
    assert [video.id for video in one.videos] == ["-e6lEsIUf3U"]
    assert one.missing == ()
    assert len(one.tables) == len(SMALL)


def test_several_files_of_one_id_are_said(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "copy/-e6lEsIUf3U.mkv", size=3)
    found = ask(tmp_path)
    assert found.videos[0].path == tmp_path / "videos" / "copy" / "-e6lEsIUf3U.mkv"
    assert "1 id with several files, of which the largest is taken: -e6lEsIUf3U" in found.notes


def test_what_cannot_be_found_is_one_line(tmp_path: Path) -> None:
    for options, message in (
        ({"tasks": ["nope"]}, "--task nope: lvu has no such task, expected one of: relationship"),
        ({"ids": ["nope"]}, "--ids: 'nope' is no video of lvu"),
        ({"tasks": ["writer"], "split": "val"}, "lvu/writer names no video of split val"),
        ({"videos": tmp_path / "none"}, "none' is not there"),
        ({"inputs": ["a.mp4"]}, "--dataset lvu already names the videos; leave out 'a.mp4'"),
        ({"dataset": "imagenet"}, "expected lvu, breakfast, coin, or a CSV file"),
        ({"dataset": "x.csv"}, "--annotations .* goes with --dataset lvu"),
    ):
        with pytest.raises(UsageError, match=message):
            ask(tmp_path, **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"none of 5 videos of lvu has a file below .*empty"):
        ask(tmp_path, videos=tmp_path / "empty")
    planned = ask(tmp_path, videos=tmp_path / "empty", require_files=False)
    assert len(planned.missing) == 5


def test_options_of_a_dataset_need_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    for options, message in (
        ({"tasks": ["x", "y"]}, "--task x,y goes with --dataset, which is missing"),
        ({"split": "test"}, "--split test goes with"),
        ({"annotations": tmp_path}, "--annotations .* goes with"),
        ({"videos": tmp_path}, "--videos .* goes with"),
    ):
        with pytest.raises(UsageError, match=message):
            find_request(["a.mp4"], **options)
    assert [video.id for video in find_request(["a.mp4"], ids=["a.mp4"]).videos] == ["a.mp4"]
    with pytest.raises(UsageError, match=r"--ids: 'b' is not among 1 video found"):
        find_request(["a.mp4"], ids=["b"])


def test_a_csvs_videos_are_asked_for_whether_they_are_there_or_not(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "id,label,split,start_seconds,end_seconds\na,x,train,0,5\na,y,train,5,9.5\nb,x,test,,\n"
    )
    touch(tmp_path, "deep/a.mp4")
    found = find_request([str(path)])
    assert [(video.id, video.path) for video in found.videos] == [
        ("a", tmp_path / "deep" / "a.mp4"),
        ("b", tmp_path / "b"),
    ]
    assert (found.missing, found.notes) == ((), ())
    parts = find_request(dataset=path, sampling=Sampling(kind="segments", segments=4))
    assert [(v.id, v.start_seconds, v.end_seconds) for v in parts.videos] == [
        ("a@0-5000", 0, 5),
        ("a@5000-9500", 5, 9.5),
        ("b", None, None),
    ]
    assert [row.id for row in parts.tables[0].rows] == [video.id for video in parts.videos]
    assert read_annotations(path).ids == ("a", "b")


def test_paths_may_stand_in_the_environment_and_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lvu(tmp_path / "lvu_1.0")
    touch(tmp_path / "videos", *FILES.values())
    with pytest.raises(UsageError) as caught:
        find_request(dataset="lvu")
    for word in ("--annotations DIR", "VIS4MER_LVU_ANNOTATIONS", "[lvu] in vis4mer.toml"):
        assert word in str(caught.value)
    settings = tmp_path / "vis4mer.toml"
    settings.write_text('[lvu]\nannotations = "lvu_1.0"\nvideos = "videos"\n')
    assert len(find_request(dataset="lvu").videos) == len(FILES)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("VIS4MER_LVU_VIDEOS", str(tmp_path / "empty"))  # comes before the file
    with pytest.raises(UsageError, match="none of 5 videos"):
        find_request(dataset="lvu")
    given = find_request(dataset="lvu", videos=tmp_path / "videos")  # comes before both
    assert len(given.videos) == len(FILES)


@pytest.mark.parametrize(
    "text",
    ['[lvu]\nvideo = "x"', "[lvu]\nvideos = 5", 'lvu = "x"', "[lvu", '[lvu]\nvideos = ""'],
)
def test_a_settings_file_that_is_wrong_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "vis4mer.toml").write_text(text)
    with pytest.raises(UsageError, match=r"vis4mer\.toml") as caught:
        find_request(dataset="lvu", annotations=tmp_path)
    assert "\n" not in str(caught.value)


def test_breakfasts_folders_are_its_annotations(tmp_path: Path) -> None:
    touch(tmp_path, "P03/cam01/P03_cereals.avi", "P47/stereo/P47_tea_ch0.avi")
    found = find_request(dataset="breakfast", videos=tmp_path)
    assert [(video.id, video.path.name) for video in found.videos] == [
        ("P03-cam01-P03_cereals", "P03_cereals.avi"),
        ("P47-stereo-P47_tea_ch0", "P47_tea_ch0.avi"),
    ]
    assert found.missing == ()


def test_a_crop_that_a_protocol_does_not_know_is_refused_at_once(tmp_path: Path) -> None:
    """Before a cache is made, and whether the file is there or not."""
    (tmp_path / "COIN.json").write_text(
        '{"database": {"x": {"class": "A", "recipe_type": 1, "subset": "training", "start": 2.5, '
        '"end": 9}}}'
    )
    asked = ExtractRequest(
        dataset="coin",
        annotations=tmp_path,
        videos=tmp_path,
        cache=tmp_path / "c.zarr",
        protocol="official",
        fps=1.0,
        backbone="vit_tiny_patch16_224@32",
    )
    for call in (extract_videos, plan_videos):
        with pytest.raises(UsageError, match=r"video 'x': .* no start at 2\.5 seconds"):
            call(asked)
    assert not (tmp_path / "c.zarr").exists()
