"""Places on a host with OpenSSH's own sshd: its limits and refusals, connections that break or fall
silent, and what ~/.ssh/config may say."""

from __future__ import annotations

import getpass
import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import real_servers
import servers
from caches import make_cache
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.remote import retry, ssh
from vis4mer.store.remote.mirror import READERS, open_remote
from vis4mer.store.remote.place import RemoteError, open_place
from vis4mer.store.remote.shelf import Shelf
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache

pytest.importorskip("paramiko")
pytestmark = pytest.mark.timeout(120)
DATA = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@contextmanager
def sshd(work: Path, monkeypatch: pytest.MonkeyPatch, **options) -> Iterator[real_servers.OpenSsh]:
    if (reason := real_servers.why_not("openssh")) is not None:
        pytest.skip(reason)
    work.mkdir()
    with real_servers.openssh_server(work, **options) as host:
        monkeypatch.setenv("HOME", str(host.home))
        yield host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[real_servers.OpenSsh]:
    with sshd(tmp_path / "sshd", monkeypatch) as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Six videos, one of them of several megabytes."""
    return make_cache(tmp_path, num_videos=6, frames=[5, 300, 1, 7, 8, 3], grid=(8, 8), dim=64)


def test_sixteen_threads_read_from_two_connections(
    host: real_servers.OpenSsh, cache: Cache, tmp_path: Path
) -> None:
    push_cache(cache.path, f"{host.address}{tmp_path}/there/c.zarr")
    there = open_remote(f"{host.address}{tmp_path}/there/c.zarr", shelf=Shelf(tmp_path / "shelf"))
    ids = cache.ids() * 8
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda name: there.read(name, "patch"), ids))
    assert all(np.array_equal(found[i], cache.read(name)) for i, name in enumerate(ids))
    assert 1 <= len(host.connections()) <= 6  # two of this place and one of the push, by process


@pytest.mark.parametrize("max_sessions", [1, 3])
def test_a_host_that_allows_few_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache, max_sessions: int
) -> None:
    with sshd(tmp_path / "sshd", monkeypatch, max_sessions=max_sessions) as host:
        url = f"{host.address}{tmp_path}/there/c.zarr"
        assert push_cache(cache.path, url, jobs=6).exit_code == 0
        assert pull_cache(url, tmp_path / "back", jobs=6).exit_code == 0
    assert digest_cache(open_cache(tmp_path / "back")) == digest_cache(cache)


def test_connections_that_are_killed(
    host: real_servers.OpenSsh, cache: Cache, tmp_path: Path
) -> None:
    """At each of three videos, every process that serves a connection: less often than a request
    is tried."""
    url = f"{host.address}{tmp_path}/there/c.zarr"
    killed: list[int] = []

    def kill(_progress: object) -> None:
        if left:
            left.pop()
            killed.append(host.signal(signal.SIGKILL))

    for work in (
        lambda: push_cache(cache.path, url, jobs=4, progress=kill),
        lambda: pull_cache(url, tmp_path / "back", jobs=4, progress=kill),
    ):
        left = [0] * 3
        assert work().exit_code == 0
        assert not left
    assert sum(killed) >= 4
    assert digest_cache(open_cache(tmp_path / "back")) == digest_cache(cache)
    assert not list((tmp_path / "there").rglob(".*.tmp"))


def use_proxy(host: real_servers.OpenSsh, folder: Path) -> None:
    (folder / "proxy.py").write_text(PROXY)
    with (host.home / ".ssh/config").open("a") as file:
        file.write(f"  ProxyCommand {sys.executable} {folder}/proxy.py 127.0.0.1 %p\n")


def test_a_connection_whose_threads_are_gone_is_let_go_of(
    host: real_servers.OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of a ProxyCommand with it."""
    use_proxy(host, tmp_path)
    made: list[ssh.Connection] = []

    def connect(to: ssh.Host) -> ssh.Connection:
        made.append(ssh.connect(to))
        return made[-1]

    monkeypatch.setattr("vis4mer.store.remote.sftp.connect", connect)
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(place.put, "a", DATA).result()
    host.signal(signal.SIGKILL)
    transport = made[0].client.get_transport()
    assert transport is not None
    transport.join(30)
    assert place.read("a") == DATA
    first, second = (connection.proxy for connection in made)
    assert first is not None
    assert first.returncode is not None
    assert second is not None
    assert second.returncode is None
    place.close()  # type: ignore[attr-defined]
    assert second.returncode is not None


class Begun(io.BytesIO):
    """Bytes that are read from once all who write are about to."""

    def __init__(self, data: bytes, barrier: threading.Barrier) -> None:
        super().__init__(data)
        self._barrier: threading.Barrier | None = barrier

    def read(self, *args: int) -> bytes:
        if self._barrier is not None:
            self._barrier.wait(20)
            self._barrier = None
        return super().read(*args)


@pytest.mark.parametrize(
    ("num_bytes", "proxied"), [(1 << 10, False), (5 << 20, False), (5 << 20, True)]
)
def test_a_server_that_falls_silent(
    host: real_servers.OpenSsh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_bytes: int,
    proxied: bool,
) -> None:
    """Its processes are stopped, not ended: nothing says so but the time. The larger files fill
    what the system keeps for a reader that takes nothing, and all wait until they may write."""
    if proxied:
        use_proxy(host, tmp_path)
    monkeypatch.setattr(ssh, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 5.0)
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    names = range(ssh.MAX_CHANNELS)
    stopped: list[int] = []
    barrier = threading.Barrier(
        len(names), action=lambda: stopped.append(host.signal(signal.SIGSTOP))
    )
    files = [Begun(bytes(num_bytes), barrier) for _ in names]

    class File(type(tmp_path)):  # type: ignore[misc]
        def open(self, *_: object, **__: object) -> Begun:
            return files.pop()

    with ThreadPoolExecutor(len(names)) as pool:
        assert all(pool.map(lambda i: place.put(f"{i}", File(tmp_path)), names))
    assert len(stopped) == 1
    for i in names:
        assert (tmp_path / f"there/{i}").stat().st_size == num_bytes
    host.signal(signal.SIGCONT)


def test_a_thread_that_comes_to_a_silent_connection_opens_another(
    host: real_servers.OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 0.5)
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    place.put("a", DATA)
    host.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as another:
        assert another.submit(place.read, "a").result(20) == DATA
    host.signal(signal.SIGCONT)


def test_many_threads_wait_for_a_silent_host_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one after the other: each of eight would try five times."""
    (tmp_path / "home/.ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tries: list[int] = []
    begun = threading.Barrier(8)

    def connect(_host: ssh.Host) -> ssh.Connection:
        tries.append(1)
        threading.Event().wait(0.1)
        raise TimeoutError

    monkeypatch.setattr("vis4mer.store.remote.sftp.connect", connect)
    place = open_place("ssh://silent/x")

    def ask(_: int) -> str:
        begun.wait(10)
        with pytest.raises(RemoteError, match="no answer in time") as refusal:
            place.size("a")
        return str(refusal.value)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(8)))) == 8
    assert len(tries) <= 24  # of forty


def test_a_host_without_sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = pytest.raises(RemoteError, match=r"^ssh://.*offers no SFTP; .*Subsystem sftp")
    options = {"subsystem": "other /bin/true"}
    with sshd(tmp_path / "sshd", monkeypatch, **options) as host, refused as refusal:
        open_place(f"{host.address}{tmp_path}").size("a")
    assert "tried" not in str(refusal.value)


def test_a_shell_that_prints_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = pytest.raises(RemoteError, match=r"^ssh://.*is no SFTP; a forced command")
    options = {"more": "ForceCommand echo Welcome to the host"}
    with sshd(tmp_path / "sshd", monkeypatch, **options) as host, refused:
        open_place(f"{host.address}{tmp_path}").size("a")


def test_a_read_only_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    shutil.copytree(cache.path, tmp_path / "there")
    with sshd(tmp_path / "sshd", monkeypatch, subsystem="sftp internal-sftp -R") as host:
        url = f"{host.address}{tmp_path}/there"
        assert pull_cache(url, tmp_path / "back").exit_code == 0
        with pytest.raises(RemoteError, match="permission denied") as refusal:
            push_cache(cache.path, f"{url}/new")
    assert "tried" not in str(refusal.value)


def test_a_full_disk_is_said_in_the_servers_words(
    host: real_servers.OpenSsh, tmp_path: Path
) -> None:
    """/dev/full takes no byte, and the protocol has no code for that."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)

    def refuse(_place: object, sftp: Callable[..., object], *_: object) -> None:
        sftp.putfo(io.BytesIO(DATA), str(full))  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(place), "_put", refuse)
        with pytest.raises(RemoteError, match=r"0 != 1024.*quota full\? \(tried 5 times\)"):
            place.put("a", DATA)
    assert place.put("a", DATA)


def test_a_source_that_is_gone_is_no_matter_of_the_host(
    host: real_servers.OpenSsh, tmp_path: Path
) -> None:
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    with pytest.raises(FileNotFoundError) as failure:
        place.put("a", tmp_path / "gone")
    assert failure.value.filename == str(tmp_path / "gone")


def test_a_folder_that_goes_away_is_made_again(host: real_servers.OpenSsh, tmp_path: Path) -> None:
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    place.put("a/b/c", DATA)
    shutil.rmtree(tmp_path / "there")
    place.put("a/b/c", DATA)
    assert (tmp_path / "there/a/b/c").read_bytes() == DATA


# ~/.ssh/config -------------------------------------------------------------------------------

PROXY = """\
import os, socket, sys, threading

server = socket.create_connection((sys.argv[1], int(sys.argv[2])))


def forward():
    while data := os.read(0, 65536):
        server.sendall(data)


threading.Thread(target=forward, daemon=True).start()
while data := server.recv(65536):
    os.write(1, data)
"""


@pytest.mark.parametrize("form", ["names", "includes", "proxy", "address first"])
def test_the_configuration_says_how(host: real_servers.OpenSsh, tmp_path: Path, form: str) -> None:
    folder, user = host.home / ".ssh", getpass.getuser()
    key = folder / "elsewhere"
    (folder / "key").rename(key)
    known = (folder / "known_hosts").read_text().split(" ", 1)[1]
    keys = f"  IdentityFile {folder}/not_there\n  IdentityFile {key}\n"
    lines = f"Host cluster\n  HostName 127.0.0.1\n  Port {host.port}\n  User {user}\n{keys}"
    address = "ssh://cluster"
    if form == "includes":
        (folder / "more").mkdir()
        (folder / "more/one.conf").write_text(lines)
        lines = "Include more/*.conf\nHost other\n  Port 1\n"
    elif form == "proxy":
        (folder / "known_hosts").write_text(f"[nowhere.invalid]:{host.port} {known}")
        (tmp_path / "proxy.py").write_text(PROXY)
        command = f"{sys.executable} {tmp_path}/proxy.py 127.0.0.1 %p"
        lines = f"Host *\n  ProxyCommand {command}\n  User {user}\n{keys}"
        address = f"ssh://nowhere.invalid:{host.port}"
    elif form == "address first":
        lines = f"Host cluster\n  HostName 127.0.0.1\n  Port 1\n  User nobody\n{keys}"
        address = f"ssh://{user}@cluster:{host.port}"
    (folder / "config").write_text(lines)
    place = open_place(f"{address}{tmp_path}/there", writable=True)
    place.put("a", DATA * 4000)
    assert place.read("a") == DATA * 4000
    place.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("Host *\n  Port many\n", "~/.ssh/config: not understood"),
        ("Host *\n  ProxyJump gate\n", "ProxyJump, which is not understood"),
        ("Host a\n  Include b\n", "an Include below a Host or Match is not understood"),
        ("Include config\n", "files that include each other"),
        ("Include /\n", "~/.ssh/config: not understood"),
        ("Include ~no-such-user-here/x\n", "~/.ssh/config: not understood"),
    ],
)
def test_a_configuration_that_is_not_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, words: str
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(lines)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=words) as refusal:
        open_place("ssh://host/x").size("a")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", [b"other ssh-ed25519 AAAAx", b"# caf\xe9"])
def test_known_hosts_that_are_not_understood(host: real_servers.OpenSsh, line: bytes) -> None:
    with (host.home / ".ssh/known_hosts").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UsageError, match="known_hosts: not understood") as refusal:
        open_place(f"{host.address}/x").size("a")
    assert "\n" not in str(refusal.value)


def test_a_name_there_that_is_no_utf_8(host: real_servers.OpenSsh, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "there") + b"/caf\xe9")).touch()
    place = open_place(f"{host.address}{tmp_path}/there", writable=True)
    with pytest.raises(RemoteError, match="a name there is not UTF-8"):
        list(place.list(""))
    assert place.put("a", DATA)
    assert place.read("a") == DATA


def test_a_name_that_no_host_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError, match=r"no host can have the name 'a\.\.b'"):
        open_place("ssh://a..b/x").size("a")


def test_a_proxy_that_gives_no_connection(
    host: real_servers.OpenSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "TRIES", 2)
    (host.home / ".ssh/config").write_text("Host *\n  ProxyCommand false\n")
    with pytest.raises(RemoteError, match=r"speaks SSH|failed") as refusal:
        open_place("ssh://host/x").size("a")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", ["no-such-program-here %h", "'", '""'])
def test_a_proxy_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(f"Host *\n  ProxyCommand {command}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="its ProxyCommand cannot be started"):
        open_place("ssh://host/x").size("a")


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a;touch", "$(touch)", "a`b`", "a b"])
def test_a_name_that_a_shell_would_read_is_refused(name: str) -> None:
    for url in (f"ssh://{name}/x", f"ssh://{name}@host/x"):
        with pytest.raises(UsageError, match="address"):
            open_place(url)


def test_folders_below_the_home_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with servers.sftp_server(tmp_path / "there", tmp_path / "home") as paramikos:
        for url, kept in (("/~/x", "x/a"), ("/~", "b"), ("/~/", "c"), ("/y", "y/d")):
            key = kept.rpartition("/")[2]
            open_place(f"{paramikos.address}{url}", writable=True).put(key, DATA)
            assert (tmp_path / "there" / kept).read_bytes() == DATA
