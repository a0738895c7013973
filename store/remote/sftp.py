"""A directory on another machine over SSH (SFTP), through paramiko.

    ssh://user@host:port/absolute/path    ssh://host/~/relative/to/home

Names, users, ports and keys are looked up in ~/.ssh/config; keys come from there and from the
agent, and a host whose key is not in known_hosts is refused. Passwords are never asked for.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import posixpath
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from ..errors import UsageError
from ..files import is_temporary
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
from .urls import refuse_secrets, shown_url

if TYPE_CHECKING:
    from paramiko import SFTPClient, SSHClient

T = TypeVar("T")
TIMEOUT_SECONDS = 60.0  # without an answer
_CONNECT_SECONDS = 15.0
_MAX_CHANNELS = 8  # on one connection: OpenSSH refuses more than 10
_BLOCK_BYTES = 4 << 20
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_UNKNOWN = "not found in known_hosts"  # in the library's message
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
    path = unquote(parts.path)
    root = path.removeprefix("/~/") if path.startswith("/~/") else path
    return SftpPlace(
        shown_url(url), host=parts.hostname, port=parts.port, user=parts.username, root=root
    )


@dataclass(eq=False)
class _Connection:
    """One connection and the channels on it that threads still hold."""

    client: SSHClient
    channels: WeakSet[SFTPClient] = field(default_factory=WeakSet)
    max_channels: int = _MAX_CHANNELS

    @property
    def is_full(self) -> bool:
        return len(self.channels) >= self.max_channels

    @property
    def is_alive(self) -> bool:
        transport = self.client.get_transport()
        return transport is not None and transport.is_active()


class SftpPlace(Place):
    """Keys are paths below `root` on the host. One channel a thread, several on a connection."""

    def __init__(
        self, url: str, *, host: str, port: int | None, user: str | None, root: str
    ) -> None:
        self.url = url
        self._host, self._port, self._user, self._root = host, port, user, root.rstrip("/")
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._mine = threading.local()  # this thread's channel, and the connection that it is on
        self._made: set[str] = set()  # folders known to be there

    def close(self) -> None:
        """End the connections; the next request opens another."""
        with self._lock:
            ended, self._connections = self._connections, []
        for connection in ended:
            connection.client.close()

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
        if not only_new:
            return self._asked(key, lambda sftp: self._put(sftp, key, source))
        data = whole_of(source)
        return created(
            self, key, data, lambda: self._once(key, lambda sftp: self._create(sftp, key, data))
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

    def _put(self, sftp: SFTPClient, key: str, source: bytes | Path) -> bool:
        with self._written_beside(sftp, key, source) as beside:
            sftp.posix_rename(beside, self._path(key))
        return True

    def _create(self, sftp: SFTPClient, key: str, data: bytes) -> bool:
        if self._size(sftp, key) is not None:
            return False
        with self._written_beside(sftp, key, data) as beside:
            try:
                sftp.rename(beside, self._path(key))  # refuses to replace
            except OSError:
                if self._size(sftp, key) is None:
                    raise
                return False
        return True

    @contextlib.contextmanager
    def _written_beside(self, sftp: SFTPClient, key: str, source: bytes | Path) -> Iterator[str]:
        """A file of these bytes beside the one meant, which is gone at the end if still there."""
        path = self._path(key)
        self._make_folder(sftp, posixpath.dirname(path))
        folder, name = posixpath.split(path)
        beside = f"{folder}/.{name[:80]}.{secrets.token_hex(6)}.tmp"
        try:
            with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                sftp.putfo(file, beside, confirm=True)
            yield beside
        finally:
            with contextlib.suppress(OSError, EOFError):
                sftp.remove(beside)

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
        """This thread's channel, opened when it has none on a connection that is still used."""
        mine: tuple[_Connection, SFTPClient] | None = getattr(self._mine, "channel", None)
        with self._lock:
            if mine is not None and mine[0] in self._connections:
                return mine[1]
            self._mine.channel = opened = self._new_channel()
        return opened[1]

    def _new_channel(self) -> tuple[_Connection, SFTPClient]:
        """A channel on a connection that has room, or on a new one. The lock is held."""
        import paramiko

        for connection in self._connections:
            if not connection.is_full and connection.is_alive:
                try:
                    return connection, _open_channel(connection)
                except paramiko.ChannelException:  # this host allows fewer
                    connection.max_channels = len(connection.channels)
        connection = _Connection(_connect(self._host, self._port, self._user))
        try:
            opened = connection, _open_channel(connection)
        except Exception:
            connection.client.close()
            raise
        self._connections.append(connection)
        return opened

    def _leave(self, *, connection_too: bool) -> None:
        """Give up this thread's channel; its connection when asked to, or when that has ended.

        Never another: a thread that learns late of a broken connection would end the one that
        the others have opened since.
        """
        mine: tuple[_Connection, SFTPClient] | None = getattr(self._mine, "channel", None)
        self._mine.channel = None
        if mine is None:
            return
        connection, sftp = mine
        with contextlib.suppress(OSError, EOFError):
            sftp.close()
        with self._lock:
            connection.channels.discard(sftp)
            if connection.is_alive and not connection_too:
                return
            if connection in self._connections:
                self._connections.remove(connection)
        connection.client.close()

    def _translated(self, key: str, error: Exception) -> Exception:
        import paramiko

        name = f"{self.url}/{key}"
        if isinstance(error, FileNotFoundError):
            return missing(self.url, key)
        if isinstance(error, OSError) and error.errno in _FINAL_FAILURES:
            return RemoteError(f"{name}: {_FINAL_FAILURES[error.errno]}")
        if isinstance(error, paramiko.BadHostKeyException):
            return RemoteError(
                f"{name}: the host shows another key than the one in known_hosts; ask its "
                "administrator before you trust it"
            )
        if isinstance(error, paramiko.AuthenticationException):
            return RemoteError(
                f"{name}: the host takes none of your keys; try `ssh {self._host}`, and add the "
                "key to the agent or to ~/.ssh/config"
            )
        if _UNKNOWN in str(error):
            return RemoteError(
                f"{name}: the host is not in known_hosts; run `ssh {self._host}` once and compare "
                "the key that it shows"
            )
        if isinstance(error, (paramiko.SSHException, EOFError, socket.error)):
            self._leave(connection_too=isinstance(error, TimeoutError))
            return PassingError(f"{name}: {_words(error)}")
        return error


def _open_channel(connection: _Connection) -> SFTPClient:
    sftp = connection.client.open_sftp()
    channel = sftp.get_channel()
    if channel is not None:
        channel.settimeout(TIMEOUT_SECONDS)
    connection.channels.add(sftp)
    return sftp


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host, or no network"
    if isinstance(error, ConnectionError) or "Unable to connect" in str(error):
        return "the host takes no connection"
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


def _connect(host: str, port: int | None, user: str | None) -> SSHClient:
    import paramiko

    known = paramiko.SSHConfig()
    with contextlib.suppress(FileNotFoundError):
        known = paramiko.SSHConfig.from_path(str(Path("~/.ssh/config").expanduser()))
    found = known.lookup(host)
    if found.get("proxyjump", "none") != "none":
        raise UsageError(
            f"host {host}: ~/.ssh/config reaches it by ProxyJump, which is not understood; "
            "write it as ProxyCommand ssh -W %h:%p JUMPHOST"
        )
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    files = found.get("userknownhostsfile", "").split() or ["~/.ssh/known_hosts"]
    for file in (*(Path(name).expanduser() for name in files), _SYSTEM_KNOWN_HOSTS):
        if file.is_file():
            client.load_system_host_keys(str(file))
    proxy = found.get("proxycommand", "none")
    try:
        client.connect(
            found.get("hostname", host),
            port=port or int(found.get("port", 22)),
            username=user or found.get("user"),
            key_filename=[str(Path(name).expanduser()) for name in found.get("identityfile", [])],
            timeout=_CONNECT_SECONDS,
            banner_timeout=_CONNECT_SECONDS,
            auth_timeout=_CONNECT_SECONDS,
            channel_timeout=_CONNECT_SECONDS,
            sock=None if proxy == "none" else paramiko.ProxyCommand(proxy),
        )
        _send_at_once(client)
    except paramiko.SSHException as error:
        known = not isinstance(error, paramiko.BadHostKeyException) and _UNKNOWN not in str(error)
        refused = known and _is_refused(client)
        client.close()
        if refused:
            raise paramiko.AuthenticationException(str(error)) from None
        raise
    return client


def _is_refused(client: SSHClient) -> bool:
    """Did the host answer and take no key? The library then raises whatever its last try did."""
    transport = client.get_transport()
    return transport is not None and transport.is_active() and not transport.is_authenticated()


def _send_at_once(client: SSHClient) -> None:
    """Small requests wait for no answer to earlier ones: 40 ms each otherwise."""
    transport = client.get_transport()
    if transport is not None and isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
