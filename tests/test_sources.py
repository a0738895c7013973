"""From files, folders, globs and lists to videos with ids."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vis4mer.extract.readers.container import KNOWN_CONTAINERS
from vis4mer.extract.sources import EXTENSIONS, resolve_sources
from vis4mer.store.errors import UsageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def ids(*arguments: str | Path) -> list[str]:
    return [video.id for video in resolve_sources([str(argument) for argument in arguments])]


def test_a_folder_gives_posix_paths_below_it_with_extension(tmp_path: Path) -> None:
    touch(tmp_path / "b.mp4", tmp_path / "a" / "x.MKV", tmp_path / "a" / "deep" / "y.webm")
    touch(tmp_path / "notes.txt", tmp_path / ".hidden.mp4", tmp_path / ".trash" / "z.mp4")
    touch(tmp_path / "noextension")
    assert ids(tmp_path) == ["a/deep/y.webm", "a/x.MKV", "b.mp4"]
    video = resolve_sources([str(tmp_path)])[1]
    assert video.path == tmp_path / "a" / "x.MKV"
    assert video.name == str(tmp_path / "a" / "x.MKV")


def test_hostile_names_are_ids_like_any_other(tmp_path: Path) -> None:
    names = ["__init.mp4", "-dash.mp4", "über 日本.mp4", "A.mp4", "a.mp4"]
    touch(*(tmp_path / name for name in names))
    assert ids(tmp_path) == sorted(names)


def test_bytes_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).write_bytes(b"")
    (video,) = resolve_sources([str(tmp_path)])
    assert video.id == r"caf\xe9.mp4"
    assert video.path.is_file()
    video.name.encode()


def test_a_single_file_is_its_name_whatever_its_extension(tmp_path: Path) -> None:
    touch(tmp_path / "clips" / "movie.bin")
    assert ids(tmp_path / "clips" / "movie.bin") == ["movie.bin"]


def test_files_of_one_name_get_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "cam" / "x.mp4", tmp_path / "p2" / "cam" / "x.mp4", tmp_path / "y.mp4")
    found = ids(
        tmp_path / "p1" / "cam" / "x.mp4", tmp_path / "y.mp4", tmp_path / "p2" / "cam" / "x.mp4"
    )
    assert found == ["p1/cam/x.mp4", "y.mp4", "p2/cam/x.mp4"]


def test_two_folders_with_one_id_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "x.mp4", tmp_path / "two" / "x.mp4")
    with pytest.raises(UsageError, match=r"both be called 'x\.mp4'"):
        ids(tmp_path / "one", tmp_path / "two")


def test_a_file_met_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4")
    assert ids(tmp_path, tmp_path / "x.mp4", tmp_path / "*.mp4") == ["x.mp4"]


def test_a_file_met_twice_is_called_what_the_first_folder_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "sub" / "b.mp4", tmp_path / "c.mp4")
    (tmp_path / "linked").symlink_to(tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    whole = ["a.mp4", "sub/b.mp4"]
    assert ids("videos", "videos/sub/b.mp4") == whole
    assert ids("videos/sub/b.mp4", "videos") == whole
    assert ids("videos", "videos/sub", tmp_path / "videos") == whole
    assert ids("videos/sub/../a.mp4", "linked/sub/b.mp4", "videos") == whole
    assert ids("c.mp4", "./c.mp4", tmp_path / "c.mp4", "*.mp4") == ["c.mp4"]


def test_folders_are_searched_for_what_readers_accept(tmp_path: Path) -> None:
    assert ",".join(EXTENSIONS) == ",".join(KNOWN_CONTAINERS)
    raw = [".m1v", ".m2v", ".mxf", ".rm", ".rmvb", ".y4m"]
    touch(tmp_path / "x.mp4", *(tmp_path / f"other{extension}" for extension in raw))
    assert ids(tmp_path) == ["x.mp4"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.mp4", tmp_path / "b" / "2.mp4", tmp_path / "b" / "3.txt")
    assert ids(tmp_path / "**" / "*.mp4") == ["1.mp4", "2.mp4"]
    assert ids(tmp_path / "[ab]") == ["1.mp4", "2.mp4"]
    touch(tmp_path / "clip[1].mp4")  # a path that exists is no pattern
    assert ids(tmp_path / "clip[1].mp4") == ["clip[1].mp4"]
    with pytest.raises(UsageError, match="matches nothing"):
        ids(tmp_path / "*.avi")


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "-b.mp4", tmp_path / "more" / "c.mp4")
    (tmp_path / "list.txt").write_bytes("\ufeffa.mp4\r\n\r\n-b.mp4\r\nmore\r\n".encode())
    monkeypatch.chdir(tmp_path)
    assert ids("@list.txt") == ["c.mp4", "a.mp4", "-b.mp4"]
    with pytest.raises(UsageError, match=r"list 'none\.txt'"):
        ids("@none.txt")


def test_a_folder_named_like_a_video_is_listed_and_not_searched(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4" / "inside.mp4", tmp_path / "x.mp4")
    assert ids(tmp_path) == ["clip.mp4", "x.mp4"]


def test_links_between_folders_may_form_a_ring(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "x.mp4", tmp_path / "elsewhere.mp4")
    (tmp_path / "a" / "ring").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    assert ids(tmp_path / "a") == ["link.mp4", "x.mp4"]


def test_what_is_not_there_or_holds_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'none\.mp4' does not exist"):
        ids("none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no video"):
        ids(tmp_path / "empty")
