"""A directory on another machine over SSH (SFTP), through paramiko.

    ssh://user@host:port/absolute/path    ssh://host/~/relative/to/home

Files by key, with whatever may pass tried again. How a host is reached is for `ssh`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import posixpath
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from ..errors import UsageError
from ..files import is_temporary
from ..wording import first_line, visible
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
from .retry import PassingError, created, tried_again
from .ssh import Connection, Host, NoSftpError, connect, is_unknown, open_channel
from .urls import refuse_secrets, shown_url

if TYPE_CHECKING:
    from paramiko import SFTPClient

T = TypeVar("T")
Names = list[str]  # of files there; the class has a `list` of its own
_BLOCK_BYTES = 4 << 20
_MAX_WORDS = 100  # of a server's own
_FINAL_FAILURES = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOSPC: "the disk there is full",
    errno.EROFS: "the file system there is read-only",
}


def open_sftp(url: str) -> SftpPlace:
    """The place of an `ssh://` address; UsageError when it is none or paramiko is missing."""
    refuse_secrets(url, user_allowed=True)
    parts = urlsplit(url)
    if not parts.hostname or not parts.path.strip("/"):
        raise UsageError(f"address {shown_url(url)}: expected ssh://[USER@]HOST[:PORT]/PATH")
    if importlib.util.find_spec("paramiko") is None:
        raise UsageError(
            f"address {shown_url(url)}: needs the library paramiko; `pip install '.[ssh]'` in the "
            "checkout"
        )
    host = Host(name=parts.hostname, port=parts.port, user=parts.username)
    path = unquote(parts.path).rstrip("/")
    home = path == "/~" or path.startswith("/~/")
    return SftpPlace(shown_url(url), host=host, root=f".{path[2:]}" if home else path)


class SftpPlace(Place):
    """Keys are paths below `root` on the host. One channel a thread, several on a connection."""

    def __init__(self, url: str, *, host: Host, root: str) -> None:
        self.url = url
        self._host, self._root = host, root
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._failed: tuple[float, Exception] | None = None  # the last try to reach it, and when
        self._mine = threading.local()  # this thread's channel, and the connection that it is on
        self._made: set[str] = set()  # folders known to be there

    def close(self) -> None:
        """End the connections; the next request opens another."""
        with self._lock:
            ended, self._connections = self._connections, []
        for connection in ended:
            connection.close()

    def size(self, key: str) -> int | None:
        check_key(key)
        return self._asked(key, lambda sftp: self._size(sftp, key))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = BytesIO()
        wanted = self._span(key, start, length)
        if length is None:
            require_bounded(self.url, key, wanted)
        self._copy(key, data, start, wanted)
        return data.getvalue()

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        self._copy(key, target, start, self._span(key, start, length))

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        """Written beside its name, then renamed; the size is compared before."""
        check_key(key)
        left: Names = []  # what tries that broke off may have left
        if not only_new:
            with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                return self._asked(key, lambda sftp: self._put(sftp, key, file, left))
        data = whole_of(source)
        return created(
            self,
            key,
            data,
            lambda: self._once(key, lambda sftp: self._create(sftp, key, data, left)),
        )

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        yield from self._walk(check_prefix(prefix))

    def _walk(self, folder: str) -> Iterator[PlacedObject]:
        path = self._path(folder) if folder else self._root
        for found in self._asked(folder, lambda sftp: _entries(sftp, path)):
            key = f"{folder}/{found.filename}" if folder else found.filename
            if is_temporary(found.filename) or not is_key(key):
                continue
            if S_ISLNK(found.st_mode or 0):
                raise RemoteError(f"{self.url}/{key}: a link, which is not followed; remove it")
            if S_ISDIR(found.st_mode or 0):
                yield from self._walk(key)
            elif S_ISREG(found.st_mode or 0):
                changed_ns = int(found.st_mtime or 0) * 10**9
                yield PlacedObject(key=key, size=found.st_size, changed_ns=changed_ns)

    def _size(self, sftp: SFTPClient, key: str) -> int | None:
        try:
            found = sftp.lstat(self._path(key))
        except FileNotFoundError:
            return None
        mode, size = found.st_mode or 0, found.st_size or 0
        if S_ISDIR(mode):
            return None
        if not S_ISREG(mode):
            raise RemoteError(f"{self.url}/{key}: not a plain file")
        return size

    def _span(self, key: str, start: int, length: int | None) -> int:
        check_range(start, length)
        size = self.size(key)
        if size is None:
            raise missing(self.url, key)
        return require_span(self.url, key, size=size, start=start, length=length)

    def _copy(self, key: str, target: BinaryIO, start: int, wanted: int) -> None:
        """Block by block; after a failure on from the block that failed."""
        for first in range(start, start + wanted, _BLOCK_BYTES):
            num_bytes = min(_BLOCK_BYTES, start + wanted - first)
            target.write(self._block(key, first, num_bytes))

    def _block(self, key: str, start: int, num_bytes: int) -> bytes:
        def read(sftp: SFTPClient) -> bytes:
            with sftp.open(self._path(key), "rb") as file:
                return b"".join(file.readv([(start, num_bytes)]))

        block = self._asked(key, read)
        require_span(self.url, key, size=start + len(block), start=start, length=num_bytes)
        return block

    def _put(self, sftp: SFTPClient, key: str, source: BinaryIO, left: Names) -> bool:
        with self._written_beside(sftp, key, source, left) as beside:
            sftp.posix_rename(beside, self._path(key))
        return True

    def _create(self, sftp: SFTPClient, key: str, data: bytes, left: Names) -> bool:
        if self._size(sftp, key) is not None:
            return False
        with self._written_beside(sftp, key, BytesIO(data), left) as beside:
            try:
                sftp.rename(beside, self._path(key))  # refuses to replace
            except OSError:
                if self._size(sftp, key) is None:
                    raise
                return False
        return True

    @contextlib.contextmanager
    def _written_beside(
        self, sftp: SFTPClient, key: str, source: BinaryIO, left: Names
    ) -> Iterator[str]:
        """A file of these bytes beside the one meant, which is gone at the end if still there.

        Each try has a name of its own: the server may still be writing what an earlier one sent.
        left: names of earlier tries, which are removed too.
        """
        path = self._path(key)
        self._make_folder(sftp, posixpath.dirname(path))
        folder, name = posixpath.split(path)
        beside = f"{folder}/.{name[:80]}.{secrets.token_hex(6)}.tmp"
        left.append(beside)
        source.seek(0)
        try:
            sftp.putfo(source, beside, confirm=True)
            yield beside
        except FileNotFoundError:
            self._made.clear()
            raise PassingError(f"{self.url}/{key}: its folder went away meanwhile") from None
        finally:
            for each in left:
                with contextlib.suppress(OSError, EOFError):
                    sftp.remove(each)

    def _make_folder(self, sftp: SFTPClient, path: str) -> None:
        if path in self._made or path in ("", "/"):
            return
        if not _is_folder(sftp, path):
            self._make_folder(sftp, posixpath.dirname(path))
            try:
                sftp.mkdir(path)
            except OSError:
                if not _is_folder(sftp, path):  # else somebody was quicker
                    raise
        self._made.add(path)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _asked(self, key: str, call: Callable[[SFTPClient], T]) -> T:
        return tried_again(lambda: self._once(key, call))

    def _once(self, key: str, call: Callable[[SFTPClient], T]) -> T:
        try:
            return call(self._channel())
        except (RemoteError, UsageError):
            raise
        except Exception as error:
            raise self._translated(key, error) from None

    def _channel(self) -> SFTPClient:
        """This thread's channel, opened when it has none on a connection that is still used.

        Where the host was tried in vain while this thread waited for its turn, that was its try:
        else as many threads as there are would wait for a silent host, one after the other.
        """
        mine: tuple[Connection, SFTPClient] | None = getattr(self._mine, "channel", None)
        if mine is not None and mine[0] in self._connections:
            return mine[1]
        asked = time.monotonic()
        with self._lock:
            if self._failed is not None and self._failed[0] > asked:
                raise self._failed[1]
            try:
                self._mine.channel = opened = self._new_channel()
            except Exception as error:
                self._failed = time.monotonic(), error
                raise
        return opened[1]

    def _new_channel(self) -> tuple[Connection, SFTPClient]:
        """A channel on a connection that has room, or on a new one. The lock is held."""
        import paramiko

        for connection in [each for each in self._connections if each.is_over]:
            self._connections.remove(connection)  # of threads that are no more
            connection.close()
        for connection in self._connections:
            if not connection.is_full:
                try:
                    return connection, open_channel(connection)
                except paramiko.ChannelException:  # this host allows fewer
                    connection.max_channels = len(connection.channels)
                except (paramiko.SSHException, EOFError, OSError):  # it breaks, or is silent
                    connection.max_channels = 0
        connection = connect(self._host)
        try:
            opened = connection, open_channel(connection)
        except BaseException:
            connection.close()
            raise
        self._connections.append(connection)
        return opened

    def _is_open(self) -> bool:
        mine: tuple[Connection, SFTPClient] | None = getattr(self._mine, "channel", None)
        channel = None if mine is None else mine[1].get_channel()
        return channel is not None and not channel.closed

    def _leave(self, *, connection_too: bool) -> None:
        """Give up this thread's channel; its connection when asked to, or when that has ended.

        Never another: a thread that learns late of a broken connection would end the one that
        the others have opened since.
        """
        mine: tuple[Connection, SFTPClient] | None = getattr(self._mine, "channel", None)
        self._mine.channel = None
        if mine is None:
            return
        connection, sftp = mine
        connection.channels.discard(sftp)
        if connection.is_alive and not connection_too:
            with contextlib.suppress(OSError, EOFError):
                sftp.close()
            return
        with self._lock:
            if connection in self._connections:
                self._connections.remove(connection)
        connection.close()  # not the channel before it: a silent host takes no farewell

    def _translated(self, key: str, error: Exception) -> Exception:
        import paramiko

        name = f"{self.url}/{key}"
        if isinstance(error, FileNotFoundError):
            return missing(self.url, key)
        if isinstance(error, OSError) and error.errno in _FINAL_FAILURES:
            return RemoteError(f"{name}: {_FINAL_FAILURES[error.errno]}")
        if type(error) is OSError and error.errno is None and self._is_open():
            # What the protocol has no code for.
            words = visible(first_line(error)[:_MAX_WORDS])
            return PassingError(
                f"{name}: the server failed, saying {words!r}; is its disk or a quota full?"
            )
        if isinstance(error, paramiko.SSHException) or is_unknown(error):
            final = _refusal(error, self._host)
            if final is not None:
                return RemoteError(f"{name}: {final}")
        if isinstance(error, NoSftpError):
            return RemoteError(f"{name}: {error}")
        if isinstance(error, paramiko.SFTPError):
            return RemoteError(f"{name}: the server's answer is no SFTP")
        if isinstance(error, UnicodeDecodeError):  # the library's, which takes names for UTF-8
            return RemoteError(f"{name}: a name there is not UTF-8; rename or remove that file")
        if isinstance(error, UnicodeError):  # as part of a name on the network
            return RemoteError(f"{name}: no host can have the name {self._host.name!r:.80}")
        if isinstance(error, (paramiko.SSHException, EOFError, OSError)):
            self._leave(connection_too=isinstance(error, TimeoutError))
            return PassingError(f"{name}: {_words(error)}")
        return error


def _refusal(error: Exception, host: Host) -> str | None:
    """Why the host will not be used however often it is tried; None where it may be."""
    import paramiko

    if isinstance(error, paramiko.BadHostKeyException):
        return (
            "the host shows another key than the one in known_hosts; ask its administrator before "
            "you trust it"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return (
            f"the host takes none of your keys; try `{host.typed}`, and add the key to the agent "
            "or to ~/.ssh/config"
        )
    if is_unknown(error):
        return (
            f"the host is not in known_hosts; run `{host.typed}` once and compare the key that it "
            "shows"
        )
    return None


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host, or no network"
    if isinstance(error, ConnectionError) or "Unable to connect" in str(error):
        return "the host takes no connection"
    if "banner" in str(error):  # the first line of the protocol
        return "nothing there speaks SSH in time"
    return f"the connection or the server failed ({type(error).__name__})"


def _is_folder(sftp: SFTPClient, path: str) -> bool:
    try:
        return S_ISDIR(sftp.stat(path).st_mode or 0)
    except FileNotFoundError:
        return False


def _entries(sftp: SFTPClient, path: str) -> list[Any]:
    try:
        return list(sftp.listdir_attr(path))
    except FileNotFoundError:
        return []
