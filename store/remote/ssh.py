"""SSH connections and the SFTP channels on them, as ~/.ssh/config says, through paramiko.

    host = Host(name="cluster", port=None, user=None)
    channel = open_channel(connect(host))

Keys come from the configuration, the agent and ~/.ssh; a host whose key is not in known_hosts is
refused, and passwords are never asked for. Knows nothing of files, and tries nothing again.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ..errors import UsageError
from ..wording import first_line

if TYPE_CHECKING:
    from paramiko import SFTPClient, SSHClient

TIMEOUT_SECONDS = 60.0  # without an answer
CONNECT_SECONDS = 15.0  # for each step until a channel answers
_END_SECONDS = 0.5  # until the end of a connection has come
MAX_CHANNELS = 8  # on one connection: OpenSSH refuses more than 10
_SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
_UNKNOWN = "not found in known_hosts"  # in the library's message
_NAME = re.compile(r"[\w.:%+@][\w.:%+@-]*")  # nothing that a shell or an option parser reads
_INCLUDE = re.compile(r"(?i)\s*include(?:\s*=\s*|\s+)(.+)")
_MAX_INCLUDES = 16
# What a configuration, and a file that it includes, may bring about.
_UNCLEAR = (OSError, RuntimeError, ValueError, LookupError, ImportError)
_BLOCK = re.compile(r"(?i)\s*(?:host|match)(?:\s*=\s*|\s+)")


class NoSftpError(Exception):
    """A sound connection to a host that speaks no SFTP; says why."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Whom an address names. Port and user come from ~/.ssh/config where the address has none."""

    name: str
    port: int | None
    user: str | None

    def __post_init__(self) -> None:
        for each in (self.name, self.user or "a"):
            if not _NAME.fullmatch(each):  # a ProxyCommand may hand it to a shell
                raise UsageError(
                    "host or user of an ssh:// address: expected letters, digits and . _ - : % + @"
                )

    @property
    def typed(self) -> str:
        """The command that reaches it from a terminal."""
        port = "" if self.port is None else f"-p {self.port} "
        return f"ssh {port}{'' if self.user is None else f'{self.user}@'}{self.name}"


@dataclass(eq=False)
class Connection:
    """One connection and the channels on it that threads still hold."""

    client: SSHClient
    proxy: subprocess.Popen[bytes] | None = None
    channels: WeakSet[SFTPClient] = field(default_factory=WeakSet)
    max_channels: int = MAX_CHANNELS

    @property
    def is_full(self) -> bool:
        return len(self.channels) >= self.max_channels

    @property
    def is_alive(self) -> bool:
        transport = self.client.get_transport()
        return transport is not None and transport.is_active()

    @property
    def is_over(self) -> bool:
        """It has ended, or it is given up and nobody is on it any more."""
        return not self.is_alive or (self.max_channels == 0 and not self.channels)

    def close(self) -> None:
        self.client.close()
        if self.proxy is not None:
            _end(self.proxy)


def open_channel(connection: Connection) -> SFTPClient:
    """A new SFTP channel; whatever the host does, it is there or refused within a minute.

    Raises paramiko.ChannelException where the host allows no more of them on this connection,
    TimeoutError, NoSftpError; SSHException or EOFError where the connection ended.
    """
    import paramiko

    transport = connection.client.get_transport()
    if transport is None:
        raise EOFError
    channel = transport.open_session(timeout=CONNECT_SECONDS)
    channel.settimeout(TIMEOUT_SECONDS)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        channel.close()

    # The library waits for the answer without a limit.
    timer = threading.Timer(CONNECT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        channel.invoke_subsystem("sftp")
        opened = paramiko.SFTPClient(channel)
    except (paramiko.SSHException, paramiko.SFTPError, EOFError) as error:
        channel.close()
        if late.is_set():
            raise TimeoutError from None
        transport.join(_END_SECONDS)  # if the connection ended, that was it
        if transport.is_active():
            raise NoSftpError(_without_sftp(error)) from None
        raise
    finally:
        timer.cancel()
    connection.channels.add(opened)
    return opened


def _without_sftp(error: Exception) -> str:
    """Why a channel of a sound connection speaks no SFTP."""
    import paramiko

    if isinstance(error, paramiko.SSHException):
        return "the host offers no SFTP; its sshd_config needs `Subsystem sftp internal-sftp`"
    return (
        "what answers there is no SFTP; a forced command, or a shell that prints something when "
        "it starts"
    )


def connect(host: Host) -> Connection:
    """A connection that took one of the user's keys.

    Raises paramiko's BadHostKeyException, AuthenticationException and SSHException, OSError;
    UsageError for a ~/.ssh/config that is not understood.
    """
    import paramiko

    found = _settings(host)
    _keep_quiet()
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    known_hosts = found.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    for file in _paths([*known_hosts, _SYSTEM_KNOWN_HOSTS]):
        _trust(client, file)
    connection = Connection(client)
    command = found.get("proxycommand", "none")
    sock = None
    if command != "none":
        connection.proxy, sock = _proxy(command)
    try:
        client.connect(
            found.get("hostname", host.name),
            port=int(found.get("port", 22)),
            username=found.get("user"),
            key_filename=[str(path) for path in _paths(found.get("identityfile", []))],
            timeout=CONNECT_SECONDS,
            banner_timeout=CONNECT_SECONDS,
            auth_timeout=CONNECT_SECONDS,
            channel_timeout=CONNECT_SECONDS,
            sock=sock,
        )
        _set_up(client)
    except BaseException as error:
        refused = _is_refused(client, error)
        connection.close()
        if refused:
            raise paramiko.AuthenticationException(str(error)) from None
        raise
    return connection


def _trust(client: SSHClient, file: Path) -> None:
    """UsageError for a known_hosts that cannot be read: the library stops at a line that ssh would
    pass over."""
    from paramiko.hostkeys import InvalidHostKey

    try:
        client.load_system_host_keys(str(file))
    except (InvalidHostKey, OSError, UnicodeError) as error:
        why = f"no key in the line {error.line!r:.80}" if isinstance(error, InvalidHostKey) else ""
        raise UsageError(f"{file}: not understood: {why or first_line(error)}; mend it") from None


def _keep_quiet() -> None:
    """The library logs what it also raises; with no handler at all, that is printed."""
    logger = logging.getLogger("paramiko")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def is_unknown(error: Exception) -> bool:
    """Is this the library's refusal of a host that known_hosts does not have?"""
    return _UNKNOWN in str(error)


def _settings(host: Host) -> dict[str, Any]:
    """What ~/.ssh/config says of a host; what the address says comes before it, as with ssh."""
    import paramiko

    stated = "Host *\n"
    stated += f"  Port {host.port}\n" if host.port is not None else ""
    stated += f"  User {host.user}\n" if host.user is not None else ""
    file = Path("~/.ssh/config").expanduser()
    try:
        lines = _lines(file) if file.is_file() else []
        config = paramiko.SSHConfig.from_text(f"{stated}Host *\n" + "\n".join(lines))
        found: dict[str, Any] = dict(config.lookup(host.name))
        int(found.get("port", 22))
    except UsageError:
        raise
    except (*_UNCLEAR, paramiko.SSHException) as error:
        raise UsageError(f"~/.ssh/config: not understood: {first_line(error)}") from None
    if found.get("proxyjump", "none") != "none":
        raise UsageError(
            f"host {host.name}: ~/.ssh/config reaches it by ProxyJump, which is not understood; "
            "write it as ProxyCommand ssh -W %h:%p JUMPHOST"
        )
    return found


def _lines(file: Path, depth: int = 0) -> list[str]:
    """The lines of a configuration with those of the files that it includes, which the library
    passes over. UsageError for an Include within a block, or without end."""
    if depth > _MAX_INCLUDES:
        raise UsageError("~/.ssh/config: files that include each other")
    lines: list[str] = []
    in_block = False
    for line in file.read_text(errors="replace").splitlines():
        in_block = in_block or _BLOCK.match(line) is not None
        included = _INCLUDE.fullmatch(line)
        if included is None:
            lines.append(line)
            continue
        if in_block:
            raise UsageError(
                "~/.ssh/config: an Include below a Host or Match is not understood; put it first"
            )
        for name in included[1].replace('"', "").split():
            pattern = Path("~/.ssh").expanduser() / Path(name).expanduser()
            found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
            for path in sorted(each for each in found if each.is_file()):
                lines += [*_lines(path, depth + 1), "Host *"]
    return lines


def _paths(names: list[str]) -> list[Path]:
    """Files of a configuration that are there; as with ssh, the others count for nothing."""
    paths: list[Path] = []
    for name in names:
        with contextlib.suppress(RuntimeError):  # in the home of a user that there is not
            paths.append(Path(name).expanduser())
    return [path for path in paths if path.is_file()]


def _proxy(command: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A ProxyCommand with the socket of its input and output, which says when the command ends.

    Started without a shell, which would read what an address names.
    """
    plain, theirs = socket.socketpair()
    ours = _ProxySocket(fileno=plain.detach())
    with theirs:
        try:
            process = subprocess.Popen(
                shlex.split(command),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError, IndexError) as error:  # the last for an empty one
            ours.close()
            raise UsageError(
                f"~/.ssh/config: its ProxyCommand cannot be started: {first_line(error)}"
            ) from None
    return process, ours


class _ProxySocket(socket.socket):
    """The way to a proxy, which ends when nothing is taken for long, as TCP_USER_TIMEOUT ends
    others: the library tries for ever."""

    _waits_since: float | None = None

    def send(self, data: Any, flags: int = 0, /) -> int:
        try:
            sent = super().send(data, flags)
        except TimeoutError:
            now = time.monotonic()
            self._waits_since = self._waits_since or now
            if now - self._waits_since > TIMEOUT_SECONDS:
                self.shutdown(socket.SHUT_RDWR)  # who reads learns of it too
            raise
        self._waits_since = None
        return sent


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_refused(client: SSHClient, error: BaseException) -> bool:
    """Did the host answer and take no key? The library then raises whatever its last try did."""
    import paramiko

    if not isinstance(error, paramiko.SSHException) or is_unknown(error):
        return False
    transport = client.get_transport()
    return (
        not isinstance(error, paramiko.BadHostKeyException)
        and transport is not None
        and transport.is_active()
        and not transport.is_authenticated()
    )


def _set_up(client: SSHClient) -> None:
    """Small requests wait for no answer to earlier ones: 40 ms each otherwise. And what nobody
    takes for long is an error: the library waits for ever until it may write."""
    transport = client.get_transport()
    sock = None if transport is None else transport.sock
    if not isinstance(sock, socket.socket) or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # not on macOS
        milliseconds = round(TIMEOUT_SECONDS * 1000)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
