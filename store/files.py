"""Files that are either whole or absent, and JSON that carries a checksum of itself.

Everything a cache says about itself goes through here: written beside its final name, flushed to
the disk, then renamed (or linked, where it must not replace anything). Knows nothing of what the
JSON means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from .errors import CacheFormatError, Vis4merError

JSON = dict[str, Any]
MAX_JSON_BYTES = 64 << 20  # a record of a ten-hour video at 1 fps is 0.5 MB
_BESIDE = re.compile(r"\..{1,80}\.[0-9a-f]{12}\.tmp", re.DOTALL)
_STORE_FAILURES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "no file may grow that large there (file system or `ulimit -f`)",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "permission denied; choose a directory that you may write to",
    errno.EPERM: "permission denied; choose a directory that you may write to",
    errno.ENOTDIR: "a part of this path is a file; choose another directory",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter directory",
    errno.ELOOP: "a link stands there, which is not followed; remove it",
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class StorageError(Vis4merError, OSError):
    """The place a cache or run is written to refuses: full, read-only, not permitted."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refusing file system into one clear line that names `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _STORE_FAILURES:
            raise
        raise StorageError(f"cannot write {path}: {_STORE_FAILURES[error.errno]}") from error


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable (NFS reports a full quota only here)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each name durable; no matter if it is there already."""
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError as error:  # its parent is there: no directories live in /proc
        raise StorageError(
            f"cannot write {path}: no directory can be made there; choose another directory"
        ) from error
    fsync_directory(path.parent)


@contextlib.contextmanager
def held_alone(lock: Path, *, otherwise: str) -> Iterator[None]:
    """One process at a time holds this file, which is made and stays; the hold dies with its
    process. Vis4merError with the words `otherwise` while another holds it.

    Some file systems have no locks: there nothing is held. A link is never followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with storage_errors(lock):
        fd = os.open(lock, flags, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Vis4merError(otherwise) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)


def is_temporary(name: str) -> bool:
    """Is this the name of a file that was being written, and maybe never finished?"""
    return name.startswith(".") and name.endswith(".tmp")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers of this module left in a folder that nobody else writes to now."""
    with storage_errors(folder):
        for path in list(folder.iterdir()):
            if _BESIDE.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody can have put a link under."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")


def _write_beside(path: Path, data: bytes) -> Path:
    beside = _beside(path)
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when the block ends without an error.

    A link under that name is replaced and never followed.
    """
    with storage_errors(path):
        make_directory(path.parent)
        beside = _beside(path)
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a part."""
    with replacing(path) as file:
        file.write(data)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create `path` whole; False when somebody else's file already stands there.

    A hard link is used because it refuses to replace, on NFS too.
    """
    with storage_errors(path):
        make_directory(path.parent)
        beside = _write_beside(path, data)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)
        fsync_directory(path.parent)
    return True


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: one value has one spelling."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def seal(content: Mapping[str, Any]) -> bytes:
    """Canonical JSON of `content` with a SHA-256 of everything else under "checksum"."""
    return canonical_json({**content, "checksum": _checksum(content)})


def _checksum(content: Mapping[str, Any]) -> str:
    body = {key: value for key, value in content.items() if key != "checksum"}
    return f"sha256:{hashlib.sha256(canonical_json(body)).hexdigest()}"


def unseal(data: bytes | str, *, name: str) -> JSON:
    """The content of sealed JSON; CacheFormatError when it is torn, altered or no object."""
    content = parse_json(data, name=name)
    if not _is_as_sealed(data, content):
        require_checksum(content, name=name)
    return content


def _is_as_sealed(data: bytes | str, content: JSON) -> bool:
    """Is this, byte for byte, what `seal` wrote? Tells without writing the content anew."""
    text = data if isinstance(data, str) else data.decode()
    checksum = content.get("checksum")
    # Half a character, escaped or not, is nothing that `seal` writes.
    whole = "\\u" not in text and (text.isascii() or text.isprintable())
    if not whole or not isinstance(checksum, str):
        return False
    before, found, after = text.partition(f'"checksum":"{checksum}",')
    return bool(found) and checksum == f"sha256:{_sha256(before.encode(), after.encode())}"


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def require_checksum(content: JSON, *, name: str) -> None:
    """CacheFormatError unless `content` carries its own checksum."""
    try:
        sound = content.get("checksum") == _checksum(content)
    except (ValueError, RecursionError):  # no number, no Unicode, or nested beyond all we write
        sound = False
    if not sound:
        raise CacheFormatError(
            f"{name}: checksum does not match its content; the file is damaged or was edited "
            "(`vis4mer cache verify` lists all such files)"
        )


def parse_json(data: bytes | str, *, name: str, unique: bool = False) -> JSON:
    """A JSON object from untrusted UTF-8; NaN and infinities are no JSON.

    unique: refuse an object that has a key twice, of which JSON itself would keep the last.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        pairs = _refuse_repeated if unique else None
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=pairs)
    except _RepeatedKeyError as error:
        raise CacheFormatError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{name}: not JSON ({type(error).__name__}); damaged?") from error
    if not isinstance(content, dict):
        raise CacheFormatError(f"{name}: expected a JSON object, got {type(content).__name__}")
    return content


class _RepeatedKeyError(ValueError):
    """An object names something twice."""


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> JSON:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = max(counts, key=counts.__getitem__)
        raise _RepeatedKeyError(
            f"an object has the key {twice[:80]!r} twice; keep the one that is right"
        )
    return found


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def read_json_bytes(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a JSON file, refused when it is larger than any we write, or no plain file."""
    stat = path.stat()
    if not S_ISREG(stat.st_mode):  # opening a pipe would wait for ever
        raise CacheFormatError(f"{path}: expected a plain file of JSON")
    if stat.st_size > max_bytes:
        raise CacheFormatError(
            f"{path}: {stat.st_size} bytes of JSON, expected at most {max_bytes}"
        )
    return path.read_bytes()


def read_sealed(path: Path) -> JSON:
    """`unseal` for a file."""
    return unseal(read_json_bytes(path), name=str(path))
