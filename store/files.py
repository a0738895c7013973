"""Files that are either whole or absent, and JSON that carries a checksum of itself.

Everything a cache says about itself goes through here: written beside its final name, flushed to
the disk, then renamed (or linked, where it must not replace anything). In a directory that a group
shares, what is made here belongs to the group. Knows nothing of what the JSON means.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISGID, S_ISREG, S_IWGRP
from typing import Any, BinaryIO

from .errors import SEE_VERIFY, CacheFormatError, Vis4merError

JSON = dict[str, Any]
MAX_JSON_BYTES = 64 << 20  # a record of a ten-hour video at 1 fps is 0.5 MB
_BESIDE = re.compile(r"\..{1,80}\.[0-9a-f]{12}\.tmp", re.DOTALL)
_NOT_ALLOWED = "it is read-only for you (permission denied); ask its owner, or write elsewhere"
_STORE_FAILURES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "no file may grow that large there (file system or `ulimit -f`)",
    errno.EROFS: "the file system is read-only there; write to a copy or another directory",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.ENOTDIR: "a part of this path is a file; choose another directory",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter directory",
    errno.ELOOP: "a link stands there, which is not followed; remove it",
}
_GROUP_FILE, _GROUP_DIRECTORY = 0o060, S_ISGID | 0o070
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


def make_directory(path: Path, *, durable: bool = True) -> None:
    """Make a directory and its parents, each name durable; no matter if it is there already.

    durable: False where somebody else makes the names durable later.
    """
    if path.is_dir():
        return
    make_directory(path.parent, durable=durable)
    try:
        path.mkdir()
    except FileExistsError as error:
        if not path.is_dir():
            raise StorageError(
                f"cannot write {path}: a file stands there, where a directory is to be made"
            ) from error
    except FileNotFoundError as error:  # its parent is there: no directories live in /proc
        raise StorageError(
            f"cannot write {path}: no directory can be made there; choose another directory"
        ) from error
    else:
        _share(path, path.parent)
    if durable:
        fsync_directory(path.parent)


def new_file(path: Path) -> BinaryIO:
    """A file that was not there, to write. FileExistsError when it was."""
    file = path.open("xb")
    _share(file.fileno(), path.parent)
    return file


def _share(made: Path | int, folder: Path) -> None:
    """Let the group use what this user made in a directory that it shares (group-writable and
    setgid), whatever the umask: others must be able to lock it, to link to it (Linux lets only who
    may write a file do so), and to replace what lies in it. made: a path, or an open file."""
    shared = folder.stat().st_mode
    stat = os.stat(made)  # noqa: PTH116 - maybe a descriptor
    if shared & S_ISGID and shared & S_IWGRP and stat.st_uid == os.geteuid():
        wanted = stat.st_mode | (_GROUP_DIRECTORY if S_ISDIR(stat.st_mode) else _GROUP_FILE)
        if wanted != stat.st_mode:
            os.chmod(made, wanted & 0o7777)  # noqa: PTH101 - maybe a descriptor


def is_shared_as(path: Path, folder: Path) -> bool:
    """May the group of a directory that it shares use this file, as one that is made there?"""
    shared, file = folder.stat(), path.lstat()
    if not (shared.st_mode & S_ISGID and shared.st_mode & S_IWGRP):
        return True
    return file.st_gid == shared.st_gid and file.st_mode & _GROUP_FILE == _GROUP_FILE


def look_anew(folder: Path) -> None:
    """Ask a network's file server what a directory holds now.

    A client remembers for up to a minute that a name was missing; opening the directory makes it
    ask again. No matter if there is none.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


@contextlib.contextmanager
def held_alone(lock: Path, *, otherwise: str, shared: bool = False) -> Iterator[None]:
    """One process at a time holds this file, which is made and stays; the hold dies with its
    process. Vis4merError with the words `otherwise` while another holds it.

    shared: others that hold it shared may do so at the same time, and nobody else. Some file
    systems have no locks: there nothing is held. A link is never followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with storage_errors(lock):
        fd = os.open(lock, flags, 0o666)
    try:
        with storage_errors(lock):
            _share(fd, lock.parent)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
        with new_file(beside) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


@contextlib.contextmanager
def replacing(
    path: Path, *, durable: bool = True, look: Callable[[], None] = lambda: None
) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when the block ends without an error.

    A link under that name is replaced and never followed. durable: False where somebody else makes
    the name durable later; the bytes are in any case. look: called when nothing but the rename is
    left to do; if it raises, what stands under the name stays.
    """
    with storage_errors(path):
        make_directory(path.parent, durable=durable)
        beside = _beside(path)
        try:
            with new_file(beside) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            look()
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if durable:
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
            f"{name}: checksum does not match its content, the file is damaged or was edited; "
            f"{SEE_VERIFY}"
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


def read_json_bytes(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, follow_links: bool = False
) -> bytes:
    """The bytes of a JSON file; CacheFormatError for one larger than any we write, for what is no
    plain file, and for a link, which may lead anywhere.

    follow_links: of a file that somebody named here, and that did not come with a cache or a run.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe would wait for ever
    try:
        fd = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CacheFormatError(f"{path}: {_STORE_FAILURES[errno.ELOOP]}") from error
        if error.errno == errno.ENXIO:  # a socket
            raise CacheFormatError(f"{path}: expected a plain file of JSON") from error
        raise
    try:
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode):
            raise CacheFormatError(f"{path}: expected a plain file of JSON")
        if stat.st_size > max_bytes:
            raise CacheFormatError(
                f"{path}: {stat.st_size} bytes of JSON, expected at most {max_bytes}"
            )
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(stat.st_size)
    finally:
        os.close(fd)


def link_above(path: Path, root: Path) -> Path | None:
    """A link among the folders of a file below `root`; None when there is none. `root` may be one.

    Within a cache none is followed: it may be somebody else's, and lead anywhere.
    """
    for folder in path.relative_to(root).parents[:-1]:
        if (root / folder).is_symlink():
            return root / folder
    return None


def linked(link: Path) -> str:
    """What an error says of a link."""
    return f"a link stands at {link}, which is not followed; put there what it leads to"


def read_sealed_in(root: Path, path: Path) -> JSON:
    """`read_sealed` of a file below `root`; CacheFormatError also for a link among its folders."""
    if (link := link_above(path, root)) is not None:
        raise CacheFormatError(f"{path}: {linked(link)}")
    return read_sealed(path)


def read_sealed(path: Path) -> JSON:
    """`unseal` for a file."""
    return unseal(read_json_bytes(path), name=str(path))
