"""A directory as a place: also one on a shared disk, and what every other place is compared to.

Links are refused, in the key's folders too: a directory from somebody else must not lead anywhere.
(Only whoever may write to the directory could put one there between the look and the use.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ..errors import UsageError
from ..files import create_exclusive, is_temporary, replacing
from .place import (
    Place,
    PlacedObject,
    RemoteError,
    check_key,
    check_prefix,
    check_range,
    is_key,
    missing,
    require_bounded,
    require_span,
    whole_of,
)
from .urls import refuse_secrets, require_named, scheme_of, shown_url

_BLOCK_BYTES = 1 << 20


def open_local(url: str, *, writable: bool) -> LocalPlace:
    """The place of a path or `file://` address; UsageError when there is nothing to read."""
    root = path_of(url)
    if not writable and not root.is_dir():
        raise UsageError(f"{root}: expected a directory; there is none")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: expected a directory, which is made when it is not there")
    return LocalPlace(root)


def path_of(url: str) -> Path:
    """The directory of a path or `file://` address. UsageError for one of another machine, and for
    an empty or torn one."""
    if not scheme_of(url):
        require_named(url)
        return Path(url)
    refuse_secrets(url)
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"address {shown_url(url)}: expected file:///PATH of this machine")
    return Path(unquote(parts.path))


class LocalPlace(Place):
    """Keys are paths below `root`, which is made by the first `put`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = shown_url(str(root))

    def size(self, key: str) -> int | None:
        found = self._stat(key)
        if found is None or S_ISDIR(found.st_mode):
            return None
        if not S_ISREG(found.st_mode):
            raise RemoteError(f"{self.url}/{key}: not a plain file")
        return found.st_size

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        with self._open(key) as file:
            wanted = self._seek(file, key, start, length)
            if length is None:
                require_bounded(self.url, key, wanted)
            return b"".join(self._blocks(file, key, wanted))

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        with self._open(key) as file:
            for block in self._blocks(file, key, self._seek(file, key, start, length)):
                target.write(block)

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        path = self._path(key)
        if only_new:
            return create_exclusive(path, whole_of(source))
        with replacing(path) as file:
            _copy(source, file)
        return True

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        folder = check_prefix(prefix)
        found = self._stat(folder) if folder else None
        if not folder or (found is not None and S_ISDIR(found.st_mode)):
            yield from self._walk(folder)

    def _walk(self, folder: str) -> Iterator[PlacedObject]:
        """Folders that go away meanwhile are empty. RemoteError at a link."""
        try:
            found = list(os.scandir(self.root / folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(folder, error) from error
        for entry in found:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if is_temporary(entry.name) or not is_key(key):
                continue
            if entry.is_symlink():
                raise self._linked(key)
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
            elif (size := self.size(key)) is not None:
                with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                    changed_ns = entry.stat(follow_symlinks=False).st_mtime_ns
                    yield PlacedObject(key=key, size=size, changed_ns=changed_ns)

    def _path(self, key: str) -> Path:
        """The file of a key; RemoteError when a link stands among its folders."""
        check_key(key)
        path = self.root
        for part in key.split("/")[:-1]:
            path /= part
            if path.is_symlink():
                raise self._linked(str(path.relative_to(self.root)))
        return self.root / key

    def _stat(self, key: str) -> os.stat_result | None:
        path = self._path(key)
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(key, error) from error
        if S_ISLNK(found.st_mode):
            raise self._linked(key)
        return found

    def _open(self, key: str) -> BinaryIO:
        if self.size(key) is None:
            raise missing(self.url, key)
        path = self._path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise missing(self.url, key) from error
        except OSError as error:
            raise self._failed(key, error) from error
        return os.fdopen(fd, "rb", buffering=0)

    def _seek(self, file: BinaryIO, key: str, start: int, length: int | None) -> int:
        check_range(start, length)
        size = os.fstat(file.fileno()).st_size
        wanted = require_span(self.url, key, size=size, start=start, length=length)
        file.seek(start)
        return wanted

    def _blocks(self, file: BinaryIO, key: str, wanted: int) -> Iterator[bytes]:
        while wanted:
            try:
                block = file.read(min(wanted, _BLOCK_BYTES))
            except OSError as error:
                raise self._failed(key, error) from error
            if not block:
                raise RemoteError(f"{self.url}/{key}: the file became shorter while it was read")
            yield block
            wanted -= len(block)

    def _linked(self, key: str) -> RemoteError:
        return RemoteError(f"{self.url}/{key}: a link, which is not followed; remove it")

    def _failed(self, key: str, error: OSError) -> RemoteError:
        return RemoteError(f"{self.url}/{key}: cannot be read ({error.strerror})")


def _copy(source: bytes | Path, target: BinaryIO) -> None:
    if isinstance(source, bytes):
        target.write(source)
        return
    with source.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            target.write(block)
