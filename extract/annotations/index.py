"""Which file is the video that an annotation calls by an id.

One walk over a folder; then an id is looked up by what people's downloads are called:

    ID.mp4, any/folder/ID.mkv, ID.f137.mp4, ID.mp4.webm, Some title [ID].webm
    P03/cam01/P03_cereals.avi and P03_cam01_P03_cereals.avi for P03-cam01-P03_cereals

A name that is the id itself comes before one that merely holds it. Names are compared as they are,
case and all: two YouTube ids may differ by case alone. Nothing is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ...store.errors import UsageError
from ..sources import VIDEO_EXTENSIONS, walk_videos

_IN_BRACKETS = re.compile(r".*\[([^\[\]]+)\]", re.DOTALL)
_STREAM = re.compile(r"\.f[0-9A-Za-z_-]+$")  # of one format, before a downloader joins them
_PERSON = re.compile(r"P[0-9]{2}")
_FLAT_BREAKFAST = re.compile(
    r"(?P<person>P[0-9]{2})[_-](?P<camera>cam[0-9]{2}|webcam[0-9]{2}|stereo[0-9]{0,2})[_-]"
    r"(?P<stem>P[0-9]{2}_.+)"
)


class NameIndex:
    """Names of videos, as POSIX paths, by the ids that may mean them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.num_names = 0
        self._exact: dict[str, list[str]] = {}
        self._derived: dict[str, list[str]] = {}
        for name in names:
            self._add(name)

    def _add(self, name: str) -> None:
        self.num_names += 1
        path = PurePosixPath(name)
        exact = {name, path.name}
        if path.suffix.lower() in VIDEO_EXTENSIONS:
            exact |= {str(path.with_suffix("")), path.stem}
        for video_id in exact:
            self._exact.setdefault(video_id, []).append(name)
        for video_id in set(_derived_ids(path)) - exact:
            self._derived.setdefault(video_id, []).append(name)

    def candidates(self, video_id: str) -> tuple[str, ...]:
        """All names that an id may mean, in order; those that are the id alone if any is."""
        found = self._exact.get(video_id) or self._derived.get(video_id)
        return tuple(found or ())


class VideoIndex:
    """The videos below a folder, by the ids that may mean them. Raises UsageError for no folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(
                f"video folder {str(folder)!r} is not there; give the folder with the videos"
            )
        paths = sorted(path for path in walk_videos(self.folder) if path.is_file())
        self._names = NameIndex(path.relative_to(self.folder).as_posix() for path in paths)

    @property
    def num_files(self) -> int:
        return self._names.num_names

    def candidates(self, video_id: str) -> tuple[Path, ...]:
        """All files that an id may mean, sorted by path; those called by the id alone if any is."""
        return tuple(self.folder / name for name in self._names.candidates(video_id))

    def find(self, video_id: str) -> Path | None:
        """The file of an id: of several candidates the largest, of equal ones the first by path."""
        found = self.candidates(video_id)
        if len(found) < 2:
            return found[0] if found else None
        return max(found, key=lambda path: path.stat().st_size)


def breakfast_id(relative: PurePosixPath) -> str | None:
    """`P03-cam01-P03_cereals` for `…/P03/cam01/P03_cereals.avi` or a flat `P03_cam01_P03_…`.

    Cameras called stereo01 are stereo. None for any other path.
    """
    person, camera, stem = ("", "", *relative.parts[-3:])[-3:]
    stem = PurePosixPath(stem).stem
    if not (_PERSON.fullmatch(person) and stem.startswith(f"{person}_")):
        match = _FLAT_BREAKFAST.fullmatch(PurePosixPath(relative.name).stem)
        if match is None:
            return None
        person, camera, stem = match["person"], match["camera"], match["stem"]
    return f"{person}-{'stereo' if camera.startswith('stereo') else camera}-{stem}"


def _derived_ids(relative: PurePosixPath) -> Iterator[str]:
    """Ids that a file's name holds among other things."""
    stem = relative.stem
    while PurePosixPath(stem).suffix.lower() in VIDEO_EXTENSIONS:
        stem = PurePosixPath(stem).stem  # ID.mp4.webm: joined streams under the name asked for
        yield stem
    stem = _STREAM.sub("", stem)
    yield stem
    if match := _IN_BRACKETS.fullmatch(stem):
        yield match[1]
    if called := breakfast_id(relative):
        yield called
