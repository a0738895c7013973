"""Somewhere objects lie under slash-separated keys: a directory, an object store, a server, a hub.

    place = open_place("s3://bucket/caches/lvu")
    place.size("records/3f/v0-….json")
    with path.open("wb") as file:
        place.fetch("packs/….pack", file, start=0, length=1 << 20)

Everything that comes from a place is untrusted: this module bounds what is read by what was asked
for, and knows nothing of what the bytes mean. Libraries are imported when a place needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ..errors import UsageError, Vis4merError
from ..files import MAX_JSON_BYTES
from ..wording import visible
from .urls import scheme_of, shown_url

MAX_WHOLE_BYTES = MAX_JSON_BYTES  # of an object that is read into memory at an unknown size
_PART = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_KEY_CHARACTERS = 900  # S3 takes 1,024 bytes, of which the place's own folder is a part
_OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")
_SCHEMES = "a path, file://, s3://, gs://, az://, http(s)://, ssh:// or hf://datasets/ORG/NAME"


class RemoteError(Vis4merError, OSError):
    """A place refuses or fails, after what may pass has been tried again."""


class TornObjectError(RemoteError):
    """An object has fewer bytes than were asked for: it is not what its record says."""


class MissingObjectError(Vis4merError, FileNotFoundError):
    """The place has no object of this key."""


@dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """An object as a listing has it. size: in bytes. changed_ns: the time of its file, where the
    place is a directory."""

    key: str
    size: int
    changed_ns: int | None = None


class Place(Protocol):
    """Objects by key. Any number of threads may ask.

    url: as people may see it: no user, password, query or token.
    can_list: whether `list` works. commits: whether writes are counted, so that few large
    `put_many` are better than many small ones.
    Every method raises UsageError for a key that `check_key` refuses, RemoteError where the place
    refuses or fails. An object is there whole or not at all.
    """

    url: str
    can_list: bool = True
    commits: bool = False

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when it is not there."""
        ...

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Bytes [start, start + length), or from `start` to the end.

        Exactly `length` bytes, else RemoteError; without one, at most MAX_WHOLE_BYTES, else
        RemoteError before they are read. MissingObjectError when the object is not there.
        """
        ...

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        """`read` into an open file, a few megabytes at a time, whatever the size.

        Never writes more than `length`. Errors of `target` are raised as they are, and what was
        written before any error stays in it.
        """
        ...

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        """Store bytes or a file under a key, replacing what is there.

        only_new: leave what is there and return False; of any number of writers of different bytes
        one gets True. For small objects: a file is read whole.
        """
        ...

    def put_many(self, items: Iterable[tuple[str, bytes | Path]]) -> None:
        """`put` each in order, together where the place counts its writes (a hub's commits)."""
        for key, source in items:
            self.put(key, source)

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        """All objects below a folder (`records`, `records/3f`; "" for all), in any order.

        Names that `check_key` refuses are left out: no object of ours has one. UsageError where a
        place cannot be listed (web servers).
        """
        ...


def check_key(key: str) -> None:
    """UsageError unless a key is safe as a path and as a URL, whatever the place.

    Parts of letters, digits, `.`, `_` and `-`, none of them empty, `.` or `..`.
    """
    parts = key.split("/")
    sound = all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    if not sound or len(key) > _MAX_KEY_CHARACTERS:
        raise UsageError(
            f"object {visible(key[:200])!r}: expected a key of at most {_MAX_KEY_CHARACTERS} "
            "characters, whose parts between slashes are letters, digits, '.', '_' and '-' and "
            "none of which is empty, '.' or '..'"
        )


def is_key(key: str) -> bool:
    """Would `check_key` take it?"""
    try:
        check_key(key)
    except UsageError:
        return False
    return True


def check_prefix(prefix: str) -> str:
    """The folder of a listing, without a slash at its end; "" for all. UsageError as a key."""
    folder = prefix.removesuffix("/")
    if folder:
        check_key(folder)
    return folder


def check_range(start: int, length: int | None) -> None:
    """UsageError unless a range begins and counts from 0 on."""
    if start < 0 or (length is not None and length < 0):
        raise UsageError(f"bytes {start} and {length} on: expected a start and a length from 0 on")


def open_place(url: str, *, writable: bool = False) -> Place:
    """The place of an address or path; nothing is sent yet.

    Credentials come from the environment and the files that the libraries of each place read
    (AWS_*, GOOGLE_*, AZURE_*, HF_TOKEN, ~/.ssh), never from the address. writable: refuse at once
    what cannot be written to. Raises UsageError for an address that is none, or for a library that
    is not installed, with the command that installs it.
    """
    scheme = scheme_of(url)
    if scheme in ("", "file"):
        from .local import open_local

        return open_local(url, writable=writable)
    if scheme in _OBJECT_STORES:
        from .objects import open_objects

        return open_objects(url, writable=writable)
    if scheme in ("ssh", "sftp"):
        from .sftp import open_sftp

        return open_sftp(url)
    if scheme == "hf":
        from .hub import open_hub

        return open_hub(url, writable=writable)
    raise UsageError(f"address {shown_url(url)}: unknown scheme {scheme!r}, expected {_SCHEMES}")


def whole_of(source: bytes | Path) -> bytes:
    """All of what `put` is given."""
    return source if isinstance(source, bytes) else source.read_bytes()


def missing(url: str, key: str) -> MissingObjectError:
    """The error for an object that is not there."""
    return MissingObjectError(f"{url}/{key}: not there")


def require_span(url: str, key: str, *, size: int, start: int, length: int | None) -> int:
    """How many bytes a read of an object of `size` gives; RemoteError when they are not there."""
    wanted = size - start if length is None else length
    if wanted < 0 or start + wanted > size:
        raise TornObjectError(
            f"{url}/{key}: {size} bytes, but {wanted if wanted > 0 else 0} were asked for from "
            f"byte {start} on; it is torn, or is not what its record says"
        )
    return wanted


def require_bounded(url: str, key: str, wanted: int) -> None:
    """RemoteError for an object that is too large to be read at an unknown size."""
    if wanted > MAX_WHOLE_BYTES:
        raise RemoteError(
            f"{url}/{key}: {wanted} bytes, expected at most {MAX_WHOLE_BYTES} of such an object"
        )
