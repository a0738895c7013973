"""Which file an id means, by what downloads are called."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from vis4mer.extract.annotations.index import NameIndex, VideoIndex, breakfast_id
from vis4mer.store.errors import UsageError

ID = "-e6lEs_Uf3U"


def touch(folder: Path, *names: str, size: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}.mp4",
        f"{ID}.MKV",
        f"a/b c/{ID}.webm",
        f"{ID}.f137.mp4",
        f"{ID}.fhls-1080.mp4",
        f"{ID}.mp4.webm",
        f"{ID}.f137.mp4.mkv",
        f"Some title, part [2] [{ID}].mp4",
        f"x/Title.with.dots [{ID}].f22.mp4",
        f"[{ID}].mp4",
    ],
)
def test_a_download_is_found_by_its_id(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "other.mp4", f"{ID}.txt", f"{ID}.mp4.part")
    index = VideoIndex(tmp_path)
    assert index.num_files == 2
    assert index.find(ID) == tmp_path / name


def test_names_that_are_another_id_are_not_taken(tmp_path: Path) -> None:
    others = [ID.swapcase(), f"x{ID}", f"{ID}x", f"x-{ID}", f"[{ID}", f"[{ID}] again", f"{ID}.temp"]
    touch(tmp_path, *(f"{name}.mp4" for name in others), f".{ID}.mp4", f".hidden/{ID}.mp4")
    (tmp_path / f"{ID}.mp4").mkdir()  # a folder is no video
    assert VideoIndex(tmp_path).find(ID) is None


def test_the_id_alone_comes_before_a_name_that_holds_it(tmp_path: Path) -> None:
    touch(tmp_path, f"A [{ID}].mp4", f"{ID}.f137.mp4", size=9)
    touch(tmp_path, f"z/{ID}.mp4")
    assert VideoIndex(tmp_path).candidates(ID) == (tmp_path / "z" / f"{ID}.mp4",)


def test_of_several_the_largest_is_taken_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    touch(tmp_path, f"a/{ID}.mp4", f"b/{ID}.mp4", size=5)
    assert VideoIndex(tmp_path).find(ID) == tmp_path / "a" / f"{ID}.mp4"
    touch(tmp_path, f"c/{ID}.webm", size=6)
    assert VideoIndex(tmp_path).find(ID) == tmp_path / "c" / f"{ID}.webm"


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, f"real/{ID}.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "ring").symlink_to(tmp_path / "real")
    (tmp_path / "videos" / "broken.mp4").symlink_to(tmp_path / "nothing")
    index = VideoIndex(tmp_path / "videos")
    assert index.candidates(ID) == (tmp_path / "videos" / "more" / f"{ID}.mp4",)
    assert index.find("broken") is None
    with pytest.raises(UsageError, match="is not there"):
        VideoIndex(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("path", "video_id"),
    [
        ("P03/cam01/P03_cereals.avi", "P03-cam01-P03_cereals"),
        ("Breakfast/videos/P03/webcam02/P03_tea.mp4", "P03-webcam02-P03_tea"),
        ("P47/stereo/P47_tea_ch0.avi", "P47-stereo-P47_tea_ch0"),
        ("P47/stereo01/P47_tea_ch0.avi", "P47-stereo-P47_tea_ch0"),
        ("flat/P03_cam01_P03_cereals.avi", "P03-cam01-P03_cereals"),
        ("P03-cam01-P03_cereals.avi", "P03-cam01-P03_cereals"),
        ("cam01/P03_cereals.avi", None),
        ("P03/cam01/P04_cereals.avi", None),
        ("x.mp4", None),
    ],
)
def test_breakfasts_folders_say_its_ids(path: str, video_id: str | None) -> None:
    assert breakfast_id(PurePosixPath(path)) == video_id
    if video_id is not None:
        assert NameIndex([path]).candidates(video_id) == (path,)
