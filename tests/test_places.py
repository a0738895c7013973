"""One suite for every kind of place, against servers on this machine."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import real_servers
import servers
from vis4mer.store.errors import UsageError
from vis4mer.store.remote import place as places
from vis4mer.store.remote import retry
from vis4mer.store.remote.place import (
    MissingObjectError,
    Place,
    RemoteError,
    TornObjectError,
    check_key,
    open_place,
)

BUCKETS = ("s3", "swift", "google", "azure")
KINDS = ("local", *BUCKETS, "sftp", "openssh", "hub")
DATA = bytes(range(256)) * 4
Put = Callable[[str, bytes], Any]


@pytest.fixture(scope="module")
def bucket_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], servers.Bucket]]:
    """kind → a bucket, of a server that is started when it is asked for first."""
    with ExitStack() as stack:

        @cache
        def start(kind: str) -> servers.Bucket:
            return stack.enter_context(real_servers.bucket_of(kind, tmp_path_factory.mktemp(kind)))

        yield start


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_servers.OpenSsh]:
    with real_servers.openssh_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def skip_without(kind: str) -> None:
    if (reason := real_servers.why_not(kind)) is not None:
        pytest.skip(reason)


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[Place, Put]]]:
    """kind → an empty place of it, and what puts an object there."""
    with ExitStack() as stack:

        def make(kind: str) -> tuple[Place, Put]:
            skip_without(kind)
            if kind == "web":
                site = stack.enter_context(servers.web_server())
                put = lambda key, data: site.objects.__setitem__(f"shelf/{key}", data)  # noqa: E731
                return open_place(f"{site.url}/shelf"), put
            if kind == "nginx":
                return behind_nginx(stack, tmp_path)
            if kind == "fake_gcs":
                return at_fake_gcs(stack, monkeypatch)
            place = open_place(address(kind), writable=True)
            return place, place.put

        def address(kind: str) -> str:
            if kind == "local":
                return str(tmp_path / "shelf")
            if kind == "sftp":
                (tmp_path / "there").mkdir()
                paramikos = servers.sftp_server(tmp_path / "there", tmp_path / "home")
                monkeypatch.setenv("HOME", str(tmp_path / "home"))
                return f"{stack.enter_context(paramikos).address}/data/shelf"
            if kind == "hub":
                use_hub(stack.enter_context(servers.hub_server()), monkeypatch)
                return "hf://datasets/team/tokens/shelf"
            if kind == "openssh":
                host = request.getfixturevalue("sshd")
                monkeypatch.setenv("HOME", str(host.home))
                return f"{host.address}{tmp_path}/shelf"
            bucket = request.getfixturevalue("bucket_of")(kind)
            for name, value in bucket.environment.items():
                monkeypatch.setenv(name, value)
            return f"{bucket.url}/{tmp_path.name}/shelf"

        yield make


def behind_nginx(stack: ExitStack, tmp_path: Path) -> tuple[Place, Put]:
    (tmp_path / "www/shelf").mkdir(parents=True)
    url = stack.enter_context(servers.nginx_server(tmp_path / "www", tmp_path / "nginx"))
    put = open_place(str(tmp_path / "www/shelf"), writable=True).put
    return open_place(f"{url}/shelf"), put


def at_fake_gcs(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, Put]:
    server = stack.enter_context(real_servers.fake_gcs_server())
    for name, value in server.bucket.environment.items():
        monkeypatch.setenv(name, value)
    place = open_place(f"{server.bucket.url}/shelf")
    return place, lambda key, data: server.put(f"shelf/{key}", data)


def use_hub(hub: servers.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretOfTheTests")


writable = pytest.mark.parametrize("kind", KINDS)
readable = pytest.mark.parametrize("kind", [*KINDS, "web", "nginx", "fake_gcs"])
listed = pytest.mark.parametrize("kind", [*KINDS, "fake_gcs"])


@readable
def test_what_was_put_is_read_whole_and_in_ranges(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    put("records/3f/v0.json", DATA)
    assert place.size("records/3f/v0.json") == len(DATA)
    assert place.read("records/3f/v0.json") == DATA
    for start, length in ((0, 5), (17, 200), (1000, 24), (1023, 1), (40, 0)):
        expected = DATA[start : start + length]
        assert place.read("records/3f/v0.json", start=start, length=length) == expected
        file = io.BytesIO(b"before")
        file.seek(0, io.SEEK_END)
        place.fetch("records/3f/v0.json", file, start=start, length=length)
        assert file.getvalue() == b"before" + expected
    assert place.read("records/3f/v0.json", start=1000) == DATA[1000:]


@readable
def test_an_empty_object_is_an_object(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    put("empty", b"")
    file = io.BytesIO()
    place.fetch("empty", file)
    assert (place.size("empty"), place.read("empty"), file.getvalue()) == (0, b"", b"")


@readable
def test_what_is_not_there(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    put("a/b", b"x")
    assert place.size("a/c") is None
    if kind != "nginx":  # which forbids to look at a folder
        assert place.size("a") is None  # a folder is no object
    for ask in (
        lambda: place.read("a/c"),
        lambda: place.read("a/c", start=1, length=2),
        lambda: place.fetch("a/c", io.BytesIO()),
    ):
        with pytest.raises(MissingObjectError, match="/a/c: not there"):
            ask()


@readable
def test_bytes_beyond_the_end_are_an_error_and_never_fewer(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    put("torn", DATA)
    for start, length in ((0, 1025), (1000, 25), (1024, 1), (5000, 1)):
        with pytest.raises(TornObjectError):
            place.read("torn", start=start, length=length)
        file = io.BytesIO()
        with pytest.raises(TornObjectError):
            place.fetch("torn", file, start=start, length=length)
        assert len(file.getvalue()) <= length
    for start, length in ((-1, 2), (0, -1)):
        with pytest.raises(UsageError):
            place.read("torn", start=start, length=length)


@readable
def test_a_whole_read_is_bounded(opened: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, put = opened(kind)
    put("large", DATA)
    monkeypatch.setattr(places, "MAX_WHOLE_BYTES", 1000)
    with pytest.raises(RemoteError, match="1024 bytes, expected at most 1000"):
        place.read("large")
    assert place.read("large", length=1024) == DATA


HOSTILE = (
    "", "/a", "a/", "a//b", "..", "../a", "a/../../b", "./a", "a/.", "a\\b", "a\0", "a b", "a%2e",
    "a?b", "a#b", "ü", "a\n", "~/a:b", "a" * 129, "/".join(["a" * 100] * 10), "\udc80",
)  # fmt: skip


@readable
def test_hostile_keys_are_refused_before_anything_is_asked(opened: Any, kind: str) -> None:
    place, _ = opened(kind)
    for key in HOSTILE:
        for ask in (
            lambda key=key: place.size(key),
            lambda key=key: place.read(key),
            lambda key=key: place.fetch(key, io.BytesIO()),
            lambda key=key: place.put(key, b"x"),
        ):
            with pytest.raises(UsageError):
                ask()
        if key not in ("", "a/"):  # a listing's folder may have these
            with pytest.raises(UsageError):
                list(place.list(key))


def test_the_keys_of_a_cache_are_taken() -> None:
    for key in (
        "zarr.json",
        "README.md",
        "records/3f/some-film-0123456789abcdef.json",
        "entries/3f/some-film-0123456789abcdef/0123456789ab/patch/c/0/0/0",
        "packs/0123456789abcdef0123456789abcdef.pack",
        "tasks/lvu/relationship.json",
    ):
        check_key(key)


@writable
def test_put_replaces_and_takes_files(opened: Any, kind: str, tmp_path: Path) -> None:
    place, put = opened(kind)
    (tmp_path / "file").write_bytes(DATA)
    assert put("a/b", b"old") is True
    assert place.put("a/b", tmp_path / "file") is True
    assert place.read("a/b") == DATA


@writable
def test_only_new_never_replaces(opened: Any, kind: str, tmp_path: Path) -> None:
    place, _ = opened(kind)
    (tmp_path / "file").write_bytes(b"of a file")
    assert place.put("a/b", b"first", only_new=True) is True
    assert place.put("a/b", b"second", only_new=True) is False
    assert place.put("a/b", tmp_path / "file", only_new=True) is False
    assert place.put("a/c", tmp_path / "file", only_new=True) is True
    assert (place.read("a/b"), place.read("a/c")) == (b"first", b"of a file")


@writable
def test_of_many_writers_one_creates(opened: Any, kind: str) -> None:
    if kind == "swift":
        pytest.skip("Swift looks and stores in two steps: several of many writers create")
    place, _ = opened(kind)
    place.put("other", b"")  # the repository of a hub is there
    start = threading.Barrier(6)

    def create(i: int) -> bool:
        start.wait(10)
        return place.put("claim", b"%d" % i, only_new=True)

    with ThreadPoolExecutor(6) as pool:
        created = list(pool.map(create, range(6)))
    assert sum(created) == 1
    assert place.read("claim") == b"%d" % created.index(True)


@pytest.mark.parametrize("kind", ["sftp", "hub"])
def test_an_answer_that_was_lost_is_no_other_writer(
    opened: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is made, the answer never comes, and the next try finds the object."""
    place, _ = opened(kind)
    create, lost = place._create, [True]

    def losing(*arguments: Any) -> bool:
        made = create(*arguments)
        if made and lost:
            lost.clear()
            raise retry.PassingError("no answer")
        return made

    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(place, "_create", losing)
    assert place.put("mine", b"token 1", only_new=True) is True
    assert not lost
    assert place.put("mine", b"token 2", only_new=True) is False
    assert place.read("mine") == b"token 1"


def test_a_listing_without_modes_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol lets a server leave them out; what is no plain file is none of ours."""
    pytest.importorskip("paramiko")
    from paramiko import SFTPAttributes

    place = open_place("ssh://host/x", writable=True)
    found = SFTPAttributes()
    found.filename = "a"
    listing = SimpleNamespace(listdir_attr=lambda _: [found])
    monkeypatch.setattr(place, "_channel", lambda: listing)
    assert list(place.list("")) == []


@listed
def test_listing_a_folder(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    assert list(place.list("")) == []
    for i, key in enumerate(("records/3f/a", "records/40/b", "records-old/c", "zarr.json")):
        put(key, b"x" * i)
    found = sorted((found.key, found.size) for found in place.list("records"))
    assert found == [("records/3f/a", 0), ("records/40/b", 1)]
    assert list(place.list("records/")) == list(place.list("records"))
    assert [found.key for found in place.list("records/40")] == ["records/40/b"]
    assert len(list(place.list(""))) == 4
    assert list(place.list("rec")) == []
    assert list(place.list("none/at/all")) == []


@writable
def test_put_many_in_order(opened: Any, kind: str, tmp_path: Path) -> None:
    place, _ = opened(kind)
    (tmp_path / "file").write_bytes(DATA)
    place.put_many([("a", b"1"), ("b", tmp_path / "file"), ("c/d", b"3")])
    assert [place.read(key) for key in ("a", "b", "c/d")] == [b"1", DATA, b"3"]


class Counting(io.BytesIO):
    """A file that knows the largest write."""

    largest = 0

    def write(self, data: Any) -> int:
        self.largest = max(self.largest, len(data))
        return super().write(data)


@readable
def test_a_large_object_passes_in_small_blocks(opened: Any, kind: str, tmp_path: Path) -> None:
    place, put = opened(kind)
    large = (b"%07d\n" * 8) % tuple(range(8)) * (20 << 14)  # 20 MiB
    (tmp_path / "large").write_bytes(large)
    if kind in ("web", "nginx", "fake_gcs"):
        put("large", large)
    else:
        place.put("large", tmp_path / "large")
    assert place.size("large") == len(large)
    file = Counting()
    place.fetch("large", file)
    assert file.getvalue() == large
    assert file.largest <= 8 << 20
    part = Counting()
    place.fetch("large", part, start=9 << 20, length=10 << 20)
    assert part.getvalue() == large[9 << 20 : 19 << 20]


@readable
def test_an_error_of_the_target_is_its_own(opened: Any, kind: str) -> None:
    place, put = opened(kind)
    put("a", DATA)

    class Full(io.BytesIO):
        tries = 0

        def write(self, _: Any) -> int:
            self.tries += 1
            raise OSError(28, "No space left on device")

    full = Full()
    with pytest.raises(OSError, match="No space left"):
        place.fetch("a", full)
    assert full.tries == 1


# Directories ---------------------------------------------------------------------------------


def test_links_in_a_directory_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "shelf"
    (root / "a").mkdir(parents=True)
    (root / "a/file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    place = open_place(str(root), writable=True)
    for key in ("a/file", "folder/secret"):
        for ask in (place.size, place.read):
            with pytest.raises(RemoteError, match="a link, which is not followed"):
                ask(key)
    for folder in ("a", ""):
        with pytest.raises(RemoteError, match="a link"):
            list(place.list(folder))
    with pytest.raises(RemoteError, match="a link"):
        place.put("folder/new", b"x")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    place.put("a/file", b"mine")  # takes the place of the link
    assert (outside / "secret").read_bytes() == b"secret"
    assert place.read("a/file") == b"mine"


def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    place = open_place(str(tmp_path / "shelf"), writable=True)
    for only_new in (False, True):
        with pytest.raises(FileNotFoundError):
            place.put("a/b", tmp_path / "missing", only_new=only_new)
    assert [path for path in (tmp_path / "shelf").rglob("*") if path.is_file()] == []


def test_files_being_written_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".b.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / "not a key").write_bytes(b"")
    place = open_place(f"file://{tmp_path}", writable=True)
    place.put("b", b"x")
    assert [found.key for found in place.list("")] == ["b"]


def test_a_directory_to_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a directory"):
        open_place(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    for writable_ in (False, True):
        with pytest.raises(UsageError, match="expected a directory"):
            open_place(str(tmp_path / "file"), writable=writable_)


# A hub ---------------------------------------------------------------------------------------


def test_many_writes_are_few_commits_of_a_private_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vis4mer.store.remote import hub as module

    monkeypatch.setattr(module, "_COMMIT_FILES", 4)
    with servers.hub_server() as hub:
        use_hub(hub, monkeypatch)
        place = open_place("hf://datasets/team/tokens@main/caches", writable=True)
        assert place.commits
        place.put_many((f"records/{i}", b"x" * i) for i in range(10))
        sizes = [len(paths) for paths in hub.commits]
        assert sizes == [4, 4, 2]
        assert [path for paths in hub.commits for path in paths] == [
            f"caches/records/{i}" for i in range(10)
        ]
        assert [made.get("visibility", made) for made in hub.made] == ["private"]
        assert hub.authorizations == {"Bearer hf_secretOfTheTests"}


@pytest.mark.parametrize(
    "url",
    ["hf://team/tokens", "hf://datasets/team", "hf://models/a/b", "hf://datasets/a/b/../c"],
)
def test_other_addresses_of_a_hub_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_place(url)


# SSH -----------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.SshHost]:
    skip_without("sftp")
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with servers.sftp_server(tmp_path / "there", tmp_path / "home") as found:
        yield found


def test_an_unknown_host_is_refused(host: servers.SshHost) -> None:
    (host.home / ".ssh/known_hosts").write_text("")
    with pytest.raises(RemoteError, match=r"not in known_hosts; run `ssh -p \d+ tester@127"):
        open_place(f"{host.address}/x").size("a")


def test_a_host_with_another_key_is_refused(host: servers.SshHost) -> None:
    import paramiko

    known = host.home / ".ssh/known_hosts"
    name, kind, _ = known.read_text().split()
    known.write_text(f"{name} {kind} {paramiko.ECDSAKey.generate().get_base64()}\n")
    with pytest.raises(RemoteError, match="another key"):
        open_place(f"{host.address}/x").size("a")


def test_a_host_that_takes_no_key(host: servers.SshHost) -> None:
    import paramiko

    (host.home / ".ssh/key").unlink()
    paramiko.ECDSAKey.generate().write_private_key_file(str(host.home / ".ssh/key"))
    with pytest.raises(RemoteError, match=r"none of your keys; try `ssh -p \d+ tester@127"):
        open_place(f"{host.address}/x").size("a")


def test_a_broken_connection_is_made_anew(host: servers.SshHost) -> None:
    place = open_place(f"{host.address}/x", writable=True)
    place.put("a", DATA)
    host.drop_next.set()
    assert place.read("a") == DATA
    assert not host.drop_next.is_set()
    assert [path.name for path in (host.folder / "x").iterdir()] == ["a"]


def test_who_learns_late_of_a_broken_connection_ends_no_other(
    host: servers.SshHost, tmp_path: Path
) -> None:
    asked, answered = threading.Event(), threading.Event()

    class SlowBytes(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            asked.set()
            answered.wait()
            return super().read(*args)

    class SlowFile(type(tmp_path)):
        def open(self, *_: Any, **__: Any) -> Any:
            return SlowBytes(DATA)

    place = open_place(f"{host.address}/x", writable=True)
    with ThreadPoolExecutor(1) as late:
        put = late.submit(place.put, "late", SlowFile(tmp_path))
        asked.wait()
        host.break_connections()
        place.put("early", DATA)
        answered.set()
        assert put.result()
    assert place.read("early") == place.read("late") == DATA
    assert len(host.connections) == 2


@pytest.mark.parametrize(("max_channels", "num_connections"), [(10, 3), (2, 9)])
def test_more_threads_than_a_connection_has_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_channels: int, num_connections: int
) -> None:
    skip_without("sftp")
    (tmp_path / "there/x").mkdir(parents=True)
    (tmp_path / "there/x/a").write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = tmp_path / "there", tmp_path / "home"
    with servers.sftp_server(*folders, max_channels=max_channels) as host, ExitStack() as stack:
        place = open_place(f"{host.address}/x")
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(18)]
        found = [thread.submit(place.read, "a").result() for thread in threads]
        assert found == [DATA] * 18
        assert len(host.connections) == num_connections


def test_a_password_in_an_address_is_refused() -> None:
    for url in ("ssh://me:secret@host/x", "ssh://host", "ssh://host/x?y=secret"):
        with pytest.raises(UsageError) as refusal:
            open_place(url)
        assert "secret" not in str(refusal.value)
