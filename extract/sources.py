"""From what a person names (files, folders, globs, lists) to videos with ids.

An id is what a video is called in the cache for ever: for a folder the POSIX path below it, with
extension; for a single file its name. Nothing is opened here, and what stands behind a path is
found out later: a video that cannot be read is a recorded failure, not an error here.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..store.errors import UsageError
from ..store.keys import check_id

# FFmpeg's names of the containers that readers accept → what their files are called
EXTENSIONS = {
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4 .m4v .mov .qt .3gp .3g2 .f4v",
    "matroska,webm": ".mkv .webm",
    "avi": ".avi .divx",
    "mpegts": ".ts .mts .m2ts",
    "mpeg": ".mpg .mpeg .mpe .vob",
    "flv": ".flv",
    "asf": ".asf .wmv",
    "ogg": ".ogv .ogm .ogg",
}
VIDEO_EXTENSIONS = frozenset(" ".join(EXTENSIONS.values()).split())


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """One video: `id` in the cache, `path` to read, `name` for people (as it was given).

    start_seconds, end_seconds: the part, half-open from the first frame, that sampling speaks of,
    where it depends on one (`Sampling.needs_extent`); None is the video's own beginning or end.
    """

    id: str
    path: Path
    name: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        check_id(self.id)


def resolve_sources(arguments: Sequence[str]) -> list[VideoSource]:
    """Videos named by arguments: files, folders, globs, and `@FILE` lists of these, one a line.

    Folders are searched for known video extensions; a file named by itself is always taken. A path
    that exists is taken as it is, even when it holds glob characters or begins with @. A file met
    twice counts once, under the id that the first folder gives it if one does. Files of one name
    from different places get ids with as many parent folders as tell them apart.

    Raises UsageError when an argument matches nothing or when ids collide.
    """
    found: list[VideoSource] = []
    singles: list[Path] = []
    for argument in _expand_lists(arguments):
        path = Path(argument)
        if path.is_dir():
            found += _in_folder(path)
        elif path.exists():
            singles.append(path)
        else:
            for match in _matches(argument):
                if match.is_dir():
                    found += _in_folder(match)
                else:
                    singles.append(match)
    found = _each_file_once(found)
    places = {_place(video.path) for video in found}
    alone: dict[Path, Path] = {}
    for path in singles:
        if _place(path) not in places:
            alone.setdefault(_place(path), path)
    return _unique_ids([*found, *_named_apart(list(alone.values()))])


def read_list(path: Path) -> list[str]:
    """The lines of an `@FILE` list, without blank ones; a byte-order mark and CRLF are fine."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"list {str(path)!r} cannot be read ({error}); expected a text file, one video a line"
        ) from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def _expand_lists(arguments: Iterable[str]) -> list[str]:
    """Replace each `@FILE` by its lines; those are relative to where the command runs."""
    expanded: list[str] = []
    for argument in arguments:
        if argument.startswith("@") and not Path(argument).exists():
            expanded += read_list(Path(argument[1:]))
        else:
            expanded.append(argument)
    return expanded


def _matches(pattern: str) -> list[Path]:
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207 — a pattern may be absolute
    if not matches:
        what = "matches nothing" if glob.has_magic(pattern) else "does not exist"
        raise UsageError(
            f"video {pattern!r} {what}; expected a video file, a folder, a glob or @FILE"
        )
    return matches


def _in_folder(folder: Path) -> list[VideoSource]:
    """Everything below a folder that is named like a video, sorted by id."""
    found = [video_source(p, p.relative_to(folder).as_posix()) for p in walk_videos(folder)]
    if not found:
        raise UsageError(
            f"folder {str(folder)!r} holds no video, expected files that end in .mp4, .mkv, .webm, "
            ".mov, .avi or the like"
        )
    return sorted(found, key=lambda video: video.id)


def walk_videos(folder: Path) -> Iterator[Path]:
    """Paths below a folder that are named like a video, in no particular order.

    A folder named like a video (`clip.mp4/`) is listed too, as the video that somebody meant: it
    becomes a recorded failure instead of vanishing. Links are followed, each folder is listed once;
    hidden files and folders are left out. Raises UsageError for a folder that cannot be listed.
    """
    visited: set[tuple[int, int]] = set()  # links between folders may form a ring
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        for name in (*folders, *files):
            if _is_video_name(name):
                yield Path(parent, name)
        folders[:] = [f for f in folders if not f.startswith(".") and not _is_video_name(f)]


def video_source(path: Path, video_id: str) -> VideoSource:
    """A source under an id. Bytes of a file name that are no UTF-8 are spelled as \\xNN."""
    return VideoSource(id=_printable(video_id), path=path, name=_printable(str(path)))


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _is_video_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in VIDEO_EXTENSIONS


def _refuse_folder(error: OSError) -> None:
    raise UsageError(f"folder {error.filename!r} cannot be listed: {error.strerror}") from error


def _named_apart(paths: Sequence[Path]) -> list[VideoSource]:
    """Ids of single files: the name, or the shortest tails of their paths that all differ."""
    absolute = {path: path.absolute() for path in paths}
    distinct = set(absolute.values())
    depth = {path: 1 for path in distinct}
    while True:
        ids = {path: "/".join(path.parts[-depth[path] :]) for path in distinct}
        counts = Counter(ids.values())
        shared = [p for p in distinct if counts[ids[p]] > 1 and depth[p] < len(p.parts) - 1]
        if not shared:
            break
        for path in shared:
            depth[path] += 1
    return [video_source(path, ids[absolute[path]]) for path in paths]


def _place(path: Path) -> Path:
    """Where a file's name stands, however one came there; a link to a file is a name of its own."""
    return path.parent.resolve() / path.name


def _each_file_once(videos: Iterable[VideoSource]) -> list[VideoSource]:
    by_place: dict[Path, VideoSource] = {}
    for video in videos:
        by_place.setdefault(_place(video.path), video)
    return list(by_place.values())


def _unique_ids(videos: Iterable[VideoSource]) -> list[VideoSource]:
    """The videos; UsageError when one id stands for two files."""
    by_id: dict[str, VideoSource] = {}
    for video in videos:
        other = by_id.setdefault(video.id, video)
        if other is not video:
            raise UsageError(
                f"videos {other.name!r} and {video.name!r} would both be called {video.id!r}; "
                "give their common parent folder instead"
            )
    return list(by_id.values())
