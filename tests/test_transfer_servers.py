"""Pushing and pulling over servers on this machine: sound ones, and ones that break off."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import real_servers
import servers
from caches import make_cache, make_spec, write_tokens
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import Vis4merError
from vis4mer.store.pooling import pool_cache
from vis4mer.store.remote import retry
from vis4mer.store.remote.place import RemoteError
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache

pytestmark = pytest.mark.timeout(120)
KINDS = ("s3", "swift", "google", "azure", "sftp", "openssh", "hub")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Six videos, one of them of several megabytes, with pooled copies."""
    made = make_cache(tmp_path, num_videos=6, frames=[5, 300, 1, 7, 8, 3], grid=(8, 8), dim=64)
    pool_cache(made, (2,))
    return open_cache(made.path)


def skip_without(kind: str) -> None:
    if (reason := real_servers.why_not(kind)) is not None:
        pytest.skip(reason)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """kind → the address of an empty folder on a server of this kind."""
    with ExitStack() as stack:

        def make(kind: str) -> str:
            skip_without(kind)
            if kind == "sftp":
                (tmp_path / "there").mkdir()
                monkeypatch.setenv("HOME", str(tmp_path / "home"))
                server = servers.sftp_server(tmp_path / "there", tmp_path / "home")
                return f"{stack.enter_context(server).address}/team/c.zarr"
            if kind == "hub":
                from test_places import use_hub

                use_hub(stack.enter_context(servers.hub_server()), monkeypatch)
                return "hf://datasets/team/tokens/c.zarr"
            (tmp_path / "server").mkdir()
            if kind == "openssh":
                host = stack.enter_context(real_servers.openssh_server(tmp_path / "server"))
                monkeypatch.setenv("HOME", str(host.home))
                return f"{host.address}{tmp_path}/c.zarr"
            bucket = stack.enter_context(real_servers.bucket_of(kind, tmp_path / "server"))
            for name, value in bucket.environment.items():
                monkeypatch.setenv(name, value)
            return f"{bucket.url}/c.zarr"

        yield make


def wrong_values(path: Path, truth: Cache) -> list[str]:
    """Arrays of the cache at `path`, whatever it holds by now, that differ from the truth."""
    if not (path / "zarr.json").exists():
        return []
    found = open_cache(path)
    return [
        f"{i} {array}"
        for i in found.ids()
        for array in found.record(i).token_arrays
        if not np.array_equal(found.read(i, array), truth.read(i, array))
    ]


def same(path: Path, truth: Cache) -> bool:
    found = open_cache(path)
    return (
        verify_cache(found, "full").ok
        and digest_cache(found) == digest_cache(truth)
        and not wrong_values(path, truth)
    )


@pytest.mark.parametrize("pack_bytes", [None, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_in_parts(cache: Cache, tmp_path: Path, address, kind: str, pack_bytes):
    url = address(kind)
    first = push_cache(cache.path, url, Selection(ids=("v0", "v1")), pack_bytes=pack_bytes)
    assert first.copied == ("v0", "v1")
    rest = push_cache(cache.path, url, pack_bytes=pack_bytes)
    assert (rest.copied, rest.present) == (("v2", "v3", "v4", "v5"), 2)
    again = push_cache(cache.path, url, pack_bytes=pack_bytes)
    assert (again.copied, again.present, again.num_bytes) == ((), 6, 0)
    back = tmp_path / "back"
    part = pull_cache(url, back, Selection(ids=("v1", "v2"), arrays=("grid2", "prefix")))
    assert part.copied == ("v1", "v2")
    assert not wrong_values(back, cache)
    assert set(open_cache(back).record("v1").token_arrays) == {"grid2", "prefix"}
    whole = pull_cache(url, back)
    assert whole.exit_code == 0
    assert same(back, cache)
    assert pull_cache(url, back).num_bytes == 0


@pytest.mark.parametrize("pack_bytes", [None, 100_000])
@pytest.mark.parametrize("kind", ["web", "nginx"])
def test_a_pull_from_a_web_server(cache: Cache, tmp_path: Path, kind: str, pack_bytes):
    skip_without(kind)
    shelf = tmp_path / "www/shelf"
    push_cache(cache.path, str(shelf), pack_bytes=pack_bytes)
    files = {f"shelf/{p.relative_to(shelf)}": p for p in shelf.rglob("*") if p.is_file()}
    with ExitStack() as stack:
        if kind == "nginx":
            url = stack.enter_context(servers.nginx_server(tmp_path / "www", tmp_path / "nginx"))
        else:
            objects = {key: path.read_bytes() for key, path in files.items()}
            url = stack.enter_context(servers.web_server(objects)).url
        pull_cache(f"{url}/shelf", tmp_path / "back", Selection(ids=("v1",), arrays=("grid2",)))
        assert pull_cache(f"{url}/shelf", tmp_path / "back").exit_code == 0
    assert same(tmp_path / "back", cache)


@pytest.mark.parametrize("seed", range(4))
def test_a_web_server_that_stumbles(cache: Cache, tmp_path: Path, seed: int) -> None:
    """Every third answer or so is none: what may pass is tried again."""
    skip_without("web")
    push_cache(cache.path, str(tmp_path / "there"), pack_bytes=None if seed % 2 else 100_000)
    chance = random.Random(seed)
    stumbles = ("unavailable", "too_many", "reset", "cut", "cut_late", "other_range", "longer")
    with served(tmp_path / "there") as site:
        site.faults = [chance.choice((*stumbles, *[""] * 14)) for _ in range(150)]
        for _ in range(20):
            with suppress(Vis4merError):
                if pull_cache(f"{site.url}/shelf", tmp_path / "back", jobs=2).exit_code == 0:
                    break
            assert not wrong_values(tmp_path / "back", cache)
    assert same(tmp_path / "back", cache)


@contextmanager
def served(folder: Path) -> Iterator[servers.Site]:
    files = {f"shelf/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}
    with servers.web_server({key: path.read_bytes() for key, path in files.items()}) as site:
        yield site


def test_a_web_server_that_is_gone_is_one_line(cache: Cache, tmp_path: Path) -> None:
    skip_without("web")
    push_cache(cache.path, str(tmp_path / "there"))
    with served(tmp_path / "there") as site:
        site.faults = [""] * 12 + ["unavailable"] * 400
        with pytest.raises(
            RemoteError, match=r"shelf/.*: the server answered 503.*tried 5"
        ) as error:
            pull_cache(f"{site.url}/shelf", tmp_path / "back", jobs=2)
        assert "\n" not in str(error.value)
        assert not wrong_values(tmp_path / "back", cache)
        site.faults.clear()
        assert pull_cache(f"{site.url}/shelf", tmp_path / "back").exit_code == 0
    assert same(tmp_path / "back", cache)


class Cutter:
    """Passes connections on to a server, and breaks each off after a number of bytes from the
    client. limits: of the next connections; None for none. down: no connection is passed on."""

    def __init__(self, host: str, port: int) -> None:
        self.limits: list[int | None] = []
        self.down = False
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # one of both is closed
            while True:
                self._take(self._listener.accept()[0])

    def _take(self, client: socket.socket) -> None:
        if self.down:
            client.close()
            return
        limit = self.limits.pop(0) if self.limits else None
        server = socket.create_connection(self._server)
        for about in ((client, server, limit), (server, client, None)):
            threading.Thread(target=self._pass, args=about, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if limit is not None and passed > limit:
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("pack_bytes", [None, 10**9])
def test_connections_to_an_object_store_break(
    cache: Cache, tmp_path: Path, address, monkeypatch: pytest.MonkeyPatch, pack_bytes
) -> None:
    """Reset within requests, then no server for a while; the same push goes on."""
    url = address("s3")
    real = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    cutter = Cutter(real.hostname or "", real.port or 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cutter.port}")
    chance = random.Random(0)
    cutter.limits = [chance.choice((None, 100, 5_000, 300_000)) for _ in range(30)]

    def falls(_progress) -> None:
        cutter.down = True

    try:
        with pytest.raises(RemoteError, match="tried 5 times") as error:
            push_cache(cache.path, url, pack_bytes=pack_bytes, jobs=2, progress=falls)
        assert "\n" not in str(error.value)
        assert "key-of-the-tests" not in str(error.value)
        cutter.down, cutter.limits = False, []
        pull_cache(url, tmp_path / "half")
        assert not wrong_values(tmp_path / "half", cache)
        assert push_cache(cache.path, url, pack_bytes=pack_bytes).exit_code == 0
        cutter.limits = [chance.choice((None, 3_000)) for _ in range(10)]
        assert pull_cache(url, tmp_path / "back").exit_code == 0
        assert same(tmp_path / "back", cache)
    finally:
        cutter.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the server's
def test_an_ssh_connection_breaks(cache: Cache, tmp_path: Path, monkeypatch) -> None:
    """Fewer times than a request is tried, in all: no request can meet too many."""
    skip_without("sftp")
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with servers.sftp_server(tmp_path / "there", tmp_path / "home") as host:
        breaks = [host.drop_next.set, host.break_connections] * 2

        def falls(_progress: object) -> None:
            if left:
                left.pop()()

        url = f"{host.address}/c.zarr"
        left = list(breaks)
        assert push_cache(cache.path, url, jobs=2, progress=falls).exit_code == 0
        assert not left
        left = list(breaks)
        assert pull_cache(url, tmp_path / "back", jobs=2, progress=falls).exit_code == 0
        assert not left
        assert len(host.connections) > 4
    assert same(tmp_path / "back", cache)


def test_two_push_to_one_bucket(cache: Cache, tmp_path: Path, address) -> None:
    """Each its half, at once; then what both say is there is all there."""
    url = address("s3")
    halves = [Selection(ids=("v0", "v1", "v2"), arrays=("grid2",)), Selection(ids=("v3", "v4"))]
    pushes = [threading.Thread(target=push_cache, args=(cache.path, url, half)) for half in halves]
    for push in pushes:
        push.start()
    for push in pushes:
        push.join()
    assert push_cache(cache.path, url, Selection(ids=("v5",))).exit_code == 0
    pull_cache(url, tmp_path / "back")
    back = open_cache(tmp_path / "back")
    assert back.ids() == ["v0", "v1", "v2", "v3", "v4", "v5"]
    assert back.spec == cache.spec  # whose pooled copies came later
    assert not wrong_values(tmp_path / "back", cache)


def test_objects_sent_in_parts(tmp_path: Path, address) -> None:
    """A shard above the size of a part."""
    spec = make_spec(grid=(14, 14), dim=256)
    big = create_cache(tmp_path / "big.zarr", spec)
    values = np.random.default_rng(0).standard_normal((110, 196, 256)).astype(np.float16)
    write_tokens(big, "long", values)
    url = address("s3")
    assert push_cache(big.path, url).num_bytes > 11_000_000
    pull_cache(url, tmp_path / "back")
    assert np.array_equal(open_cache(tmp_path / "back").read("long"), values)


def test_killed_at_random_moments() -> None:
    """A short form of `benchmarks/transfer_kills.py`."""
    skip_without("s3")
    command = [sys.executable, BENCHMARKS / "transfer_kills.py", "--kills", "2", "--works"]
    done = subprocess.run(
        [*command, "push,pull"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
