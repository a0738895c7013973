"""Fetching annotation files, from a server on this machine that also misbehaves."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from vis4mer.extract.annotations.fetch import (
    PUBLISHED,
    Fetched,
    FetchError,
    Published,
    fetch_annotations,
)
from vis4mer.store.errors import UsageError


class Site:
    """A web site: path → content. `short`: paths whose length is stated one too large.
    `moved`: path → where it is now. `asked`: what was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.short: set[str] = set()
        self.moved: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            if self.path in served.moved:
                self.send_response(302)
                self.send_header("Location", served.moved[self.path])
                self.end_headers()
                return
            if self.path not in served.pages:
                self.send_error(404)
                return
            page = served.pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(page) + (self.path in served.short)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def tar(members: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


ARCHIVE = Published(
    url="/a.tar.gz",
    files=("set/one/train.csv", "set/one/test.csv"),
    members=("one/train.csv", "one/test.csv"),
    max_bytes=20_000,
)
PLAIN = Published(url="/p.csv", files=("set/p.csv",), max_bytes=100)
BOTH = {"set/one/train.csv": b"a train", "set/one/test.csv": b"a test"}


def fetch(site: Site, folder: Path, *downloads: Published, overwrite: bool = False) -> Fetched:
    table = {
        "own": [
            Published(
                url=site.url + each.url,
                files=each.files,
                members=each.members,
                max_bytes=each.max_bytes,
            )
            for each in downloads
        ]
    }
    return fetch_annotations(
        "own", folder, published=table, overwrite=overwrite, timeout_seconds=99
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_archive_and_a_file(site: Site, tmp_path: Path) -> None:
    site.pages = {"/a.tar.gz": tar({**BOTH, "set/README": b"no"}), "/p.csv": b"plain"}
    found = fetch(site, tmp_path / "new", ARCHIVE, PLAIN)
    assert contents(tmp_path / "new") == {**BOTH, "set/p.csv": b"plain"}
    assert (set(found.written), found.kept) == ({*BOTH, "set/p.csv"}, ())


def test_what_is_there_is_kept_and_not_asked_for(site: Site, tmp_path: Path) -> None:
    site.pages = {"/p.csv": b"plain"}
    fetch(site, tmp_path, PLAIN)
    (tmp_path / "set" / "p.csv").write_bytes(b"mine")
    again = fetch(site, tmp_path, PLAIN)
    assert (again.written, again.kept, len(site.asked)) == ((), ("set/p.csv",), 1)
    assert fetch(site, tmp_path, PLAIN, overwrite=True).written == ("set/p.csv",)
    assert contents(tmp_path) == {"set/p.csv": b"plain"}


def test_a_dead_link_says_in_one_line_what_to_put_where(site: Site, tmp_path: Path) -> None:
    site.pages = {"/p.csv": b"plain"}
    with pytest.raises(FetchError) as refusal:
        fetch(site, tmp_path, ARCHIVE, PLAIN)
    (by_hand,) = refusal.value.by_hand
    assert by_hand == (
        f"{site.url}/a.tar.gz: the server answers 404 Not Found; unpack it so that "
        f"{tmp_path}/set holds one/train.csv and 1 more file"
    )
    said = str(refusal.value)
    assert said.startswith("1 of 2 downloads of own failed (the server answers 404 Not Found); ")
    assert f"`vis4mer datasets check own --annotations {tmp_path}`" in said
    assert "\n" not in said + by_hand
    assert contents(tmp_path) == {"set/p.csv": b"plain"}  # what could be had is there


def test_nobody_answers(site: Site, tmp_path: Path) -> None:
    closed = {"own": [Published(url="http://127.0.0.1:1/x.csv", files=("x.csv",))]}
    with pytest.raises(FetchError, match=r"the download of own failed \(.*refused\)") as refusal:
        fetch_annotations("own", tmp_path, published=closed)
    (by_hand,) = refusal.value.by_hand
    assert by_hand.startswith("http://127.0.0.1:1/x.csv: ")
    assert by_hand.endswith(f"; save it as {tmp_path / 'x.csv'}")
    assert not list(tmp_path.iterdir())
    assert not site.asked


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (b"<html>moved</html>", "not a sound .tar.gz"),
        (gzip.compress(b"no tar" * 300), "not a sound .tar.gz|lacks one/train.csv"),
        (tar(BOTH)[:-9], "cut off|not a sound"),
        (tar({"set/one/train.csv": b"a"}), "lacks one/test.csv"),
        (tar({**BOTH, "set/other/one/train.csv": b"b"}), "holds one/train.csv twice"),
        (tar({"set/one/train.csv": b"a"}, links={"set/one/test.csv": "/etc/passwd"}), "lacks"),
        (tar({**BOTH, "set/zeros": bytes(1 << 20)}), "unpacks to more than 20000 bytes"),
        (b"x" * 30_000, "larger than 20000 bytes"),
    ],
    ids=["a page", "no tar", "cut off", "lacks one", "twice", "a link", "zeros", "large"],
)
def test_an_archive_that_is_not_what_it_should_be(
    site: Site, tmp_path: Path, page: bytes, said: str
) -> None:
    site.pages = {"/a.tar.gz": page}
    with pytest.raises(FetchError, match=said):
        fetch(site, tmp_path / "to", ARCHIVE)
    assert not (tmp_path / "to").exists()


def test_names_in_an_archive_are_no_paths(site: Site, tmp_path: Path) -> None:
    """Members that climb out or start at the root land where the table says, or nowhere."""
    hostile = {"../../one/train.csv": b"a", "/one/test.csv": b"b", "../evil.csv": b"c"}
    site.pages = {"/a.tar.gz": tar(hostile)}
    fetch(site, tmp_path / "in" / "to", ARCHIVE)
    assert contents(tmp_path) == {
        "in/to/set/one/train.csv": b"a",
        "in/to/set/one/test.csv": b"b",
    }


def test_a_download_that_ends_early_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.pages, site.short = {"/p.csv": b"plain"}, {"/p.csv"}
    with pytest.raises(FetchError, match="ended after 5 of 6 bytes"):
        fetch(site, tmp_path, PLAIN)
    assert not contents(tmp_path)


def test_a_redirect_is_followed_on_the_web_only(site: Site, tmp_path: Path) -> None:
    site.pages, site.moved = {"/new": b"plain"}, {"/p.csv": "/new"}
    fetch(site, tmp_path, PLAIN)
    assert contents(tmp_path) == {"set/p.csv": b"plain"}
    site.moved = {"/p.csv": "file:///etc/passwd"}
    with pytest.raises(FetchError, match="of own failed"):
        fetch(site, tmp_path, PLAIN, overwrite=True)
    with pytest.raises(FetchError, match="not a web address"):
        fetch_annotations(
            "own", tmp_path / "b", published={"own": [Published(url="file:///x", files=("x",))]}
        )


def test_an_unknown_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'kinetics': expected one of breakfast, coin, lvu"):
        fetch_annotations("kinetics", tmp_path)


def test_the_table_names_encrypted_places_and_every_file_once() -> None:
    for downloads in PUBLISHED.values():
        files = [name for download in downloads for name in download.files]
        assert len(files) == len(set(files))
        for download in downloads:
            assert download.url.startswith("https://")
            assert not download.members or len(download.members) == len(download.files)
    assert len(PUBLISHED["lvu"][0].files) == 27  # nine tasks, three splits
