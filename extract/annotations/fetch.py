"""Annotation files from the places where their authors published them; never a video.

What is asked for stands in one table, `PUBLISHED`. A file that is there already is kept. Names in
an archive are never used as paths: what is expected is looked for and written under our own names.
Knows nothing of what the files say.
"""

from __future__ import annotations

import http.client
import io
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from ...store.errors import UsageError, Vis4merError
from ...store.files import write_atomic
from ...store.tasks import SPLITS
from ...store.wording import counted, first_line
from .lvu import TASKS

TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 16
_MAX_MEMBERS = 10_000  # of an archive; more is no annotation set
_MEGABYTE = 1 << 20

# The decoder's authors published two things that the datasets' own pages lack: how long the LVU
# videos are, and the split of Breakfast. Their repository is named at one commit.
_VIS4MER = (
    "https://raw.githubusercontent.com/md-mohaiminul/ViS4mer/"
    "b381a63a78bfc0f51d0185ef675760453b837deb/data"
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One download. `files`: what it becomes, relative to the folder that is filled.

    members: for a .tar.gz, the end of each file's path in it, in the order of `files`; empty for a
    plain file. max_bytes: of the download, and of each file in it.
    """

    url: str
    files: tuple[str, ...]
    members: tuple[str, ...] = ()
    max_bytes: int = 64 * _MEGABYTE


_LVU_MEMBERS = tuple(f"{task}/{split}.csv" for task in TASKS for split in SPLITS)

PUBLISHED: Mapping[str, tuple[Published, ...]] = MappingProxyType(
    {
        "lvu": (
            Published(
                url="https://chaoyuan.org/lvu/lvu_1.0.tar.gz",
                files=tuple(f"lvu_1.0/{member}" for member in _LVU_MEMBERS),
                members=_LVU_MEMBERS,
            ),
            Published(
                url=f"{_VIS4MER}/lvu_1.0/lvu_durations.csv", files=("lvu_1.0/lvu_durations.csv",)
            ),
        ),
        "breakfast": (
            Published(url=f"{_VIS4MER}/Breakfast/train.csv", files=("train.csv",)),
            Published(url=f"{_VIS4MER}/Breakfast/test.csv", files=("test.csv",)),
        ),
        "coin": (
            Published(
                url="https://raw.githubusercontent.com/coin-dataset/annotations/master/COIN.json",
                files=("COIN.json",),
            ),
        ),
    }
)

# Where people get the videos themselves from.
VIDEOS_ARE_AT: Mapping[str, str] = MappingProxyType(
    {
        "lvu": "YouTube, by id (`vis4mer datasets check lvu --missing FILE.csv` lists addresses)",
        "breakfast": "https://serre-lab.clps.brown.edu/resource/breakfast-actions-dataset/",
        "coin": "YouTube, by id (`vis4mer datasets check coin --missing FILE.csv` lists addresses)",
    }
)


class FetchError(Vis4merError):
    """Something could not be downloaded. by_hand: a line for each such file or archive, which says
    why, from where it is to be had and where a person has to put it."""

    def __init__(self, message: str, by_hand: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.by_hand = tuple(by_hand)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What is now in `folder`: files written, and files that stood there already."""

    folder: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[tuple[Published, str]] = field(default_factory=list)


def fetch_annotations(
    dataset: str,
    folder: str | Path,
    *,
    overwrite: bool = False,
    published: Mapping[str, Sequence[Published]] = PUBLISHED,
    timeout_seconds: float = TIMEOUT_SECONDS,
    on_phase: Callable[[str], None] = lambda _: None,
) -> Fetched:
    """Download the annotation files of a dataset into `folder`; each is there whole or not at all.

    overwrite: download again what is there. published: the table of downloads.
    Raises UsageError for an unknown dataset, FetchError when a download failed or was not what it
    should be (the others are kept), StorageError when the folder cannot be written.
    """
    if dataset not in published:
        raise UsageError(f"dataset {dataset!r}: expected one of {', '.join(sorted(published))}")
    target = Path(folder)
    outcome = _Outcome()
    for download in published[dataset]:
        if not overwrite and all((target / name).is_file() for name in download.files):
            outcome.kept.extend(download.files)
            continue
        on_phase(f"fetching {download.url}")
        try:
            data = _download(download, timeout_seconds=timeout_seconds)
            contents = _unpack(data, download) if download.members else (data,)
        except FetchError as error:
            outcome.failed.append((download, str(error)))
            continue
        for name, content in zip(download.files, contents, strict=True):
            write_atomic(target / name, content)
        outcome.written.extend(download.files)
    if outcome.failed:
        raise _not_fetched(dataset, target, outcome.failed, of=len(published[dataset]))
    return Fetched(folder=target, written=tuple(outcome.written), kept=tuple(outcome.kept))


def _not_fetched(
    dataset: str, folder: Path, failed: Sequence[tuple[Published, str]], *, of: int
) -> FetchError:
    """What failed, and what a person has to put where."""
    number = f"{len(failed)} of {counted(of, 'download')}" if of > 1 else "the download"
    check = f"`vis4mer datasets check {dataset} --annotations {folder}`"
    return FetchError(
        f"{number} of {dataset} failed ({failed[0][1]}); get by hand what the lines above name, "
        f"then {check} reads it",
        [f"{download.url}: {reason}; {_put(download, folder)}" for download, reason in failed],
    )


def _put(download: Published, folder: Path) -> str:
    if not download.members:
        return f"save it as {folder / download.files[0]}"
    top = PurePosixPath(download.files[0]).parts[0]
    first = PurePosixPath(download.files[0]).relative_to(top)
    more = counted(len(download.files) - 1, "more file")
    return f"unpack it so that {folder / top} holds {first} and {more}"


def _download(download: Published, *, timeout_seconds: float) -> bytes:
    """The bytes behind a URL, no more than expected. FetchError says why not."""
    if not download.url.startswith(("https://", "http://")):
        raise FetchError("not a web address, expected https://")
    request = urllib.request.Request(download.url, headers={"User-Agent": "vis4mer"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
            if download.url.startswith("https:") and not response.url.startswith("https:"):
                raise FetchError(f"redirected to {response.url}, which is not encrypted")
            return _read_bounded(response, max_bytes=download.max_bytes)
    except urllib.error.HTTPError as error:
        raise FetchError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        reason = error.reason
        raise FetchError(getattr(reason, "strerror", None) or str(reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(first_line(error)) from error


def _read_bounded(response: http.client.HTTPResponse, *, max_bytes: int) -> bytes:
    blocks, count = [], 0
    while block := response.read(_BLOCK_BYTES):
        blocks.append(block)
        count += len(block)
        if count > max_bytes:
            raise FetchError(f"larger than {max_bytes} bytes, expected annotation files")
    stated = response.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) != count:
        raise FetchError(f"the connection ended after {count} of {stated} bytes")
    return b"".join(blocks)


def _unpack(data: bytes, download: Published) -> tuple[bytes, ...]:
    """The expected members of a .tar.gz, in order. Everything else in it is passed by."""
    found: dict[str, bytes] = {}
    plain = _gunzip(data, max_bytes=download.max_bytes)
    try:
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise FetchError(f"the archive holds more than {_MAX_MEMBERS} files")
                name = "/".join(PurePosixPath(member.name).parts[-2:])
                if not member.isreg() or name not in download.members:
                    continue
                if name in found:
                    raise FetchError(f"the archive holds {name} twice")
                if member.size > download.max_bytes:
                    raise FetchError(f"{name} in the archive has {member.size} bytes")
                file = archive.extractfile(member)
                found[name] = file.read() if file is not None else b""
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise FetchError(f"not a sound .tar.gz archive ({first_line(error)})") from error
    missing = [name for name in download.members if name not in found]
    if missing:
        raise FetchError(f"the archive lacks {missing[0]} ({len(missing)} files are missing)")
    return tuple(found[name] for name in download.members)


def _gunzip(data: bytes, *, max_bytes: int) -> bytes:
    """Decompressed bytes, never more than expected however small the file is."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with gzip's header and checksum
    try:
        plain = inflater.decompress(data, max_bytes)
    except zlib.error as error:
        raise FetchError(f"not a sound .tar.gz archive ({first_line(error)})") from error
    if not inflater.eof:
        too_large = len(plain) >= max_bytes
        raise FetchError(
            f"the archive unpacks to more than {max_bytes} bytes"
            if too_large
            else "the archive is cut off"
        )
    return plain
