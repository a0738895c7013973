"""Servers on this machine's loopback that tests talk to: a web server that also misbehaves, an S3
store, an SFTP server, something like a hub. Each is a context manager that yields what it serves.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Fault = Literal[
    "unavailable",  # 503
    "too_many",  # 429
    "forbidden",  # 403, with a secret in the body
    "reset",  # the connection ends before an answer
    "cut",  # the connection ends within the body
    "cut_late",  # the same, after most of it
    "silent",  # nothing comes for STALL_SECONDS
    "other_range",  # Content-Range of other bytes than were asked for
    "whole",  # 200 and everything where a range was asked for
    "longer",  # a Content-Length beyond the bytes, then the end
    "huge",  # a Content-Length of a terabyte
    "more",  # a Content-Length of half of the bytes, which come in chunks
    "sizeless",  # no Content-Length, as of an answer that is made up while it is sent
]
STALL_SECONDS = 5.0


@dataclass
class Site:
    """What a web server has. faults: one is used up by each request, in turn; "" for none."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault | Literal[""]] = field(default_factory=list)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def next_fault(self) -> str:
        with contextlib.suppress(IndexError):
            return self.faults.pop(0)
        return ""


@contextlib.contextmanager
def web_server(objects: dict[str, bytes] | None = None) -> Iterator[Site]:
    """HTTP with ranges, from memory: path without its first slash → bytes."""
    site = Site(objects=dict(objects or {}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, site)

        do_HEAD = do_GET  # noqa: N815 - the names are http.server's

        def log_message(self, *_: object) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield site


@contextlib.contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients go away
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    asked_range = handler.headers.get("Range")
    path = handler.path.partition("?")[0].lstrip("/")
    site.asked.append((handler.command, path, asked_range))
    fault = site.next_fault()
    if fault == "reset":
        handler.close_connection = True
        handler.connection.close()
        return
    if fault == "silent":
        time.sleep(STALL_SECONDS)
    refusals = {"unavailable": 503, "too_many": 429, "forbidden": 403}
    if fault in refusals or path not in site.objects:
        body = b"<Error><Message>no</Message><AWSAccessKeyId>AKIASECRETID</AWSAccessKeyId></Error>"
        _respond(handler, refusals.get(fault, 404), body)
        return
    _send(handler, site.objects[path], asked_range, fault)


def _send(
    handler: BaseHTTPRequestHandler, data: bytes, asked_range: str | None, fault: str
) -> None:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range or "")
    if match is None or fault == "whole":
        _respond(handler, 200, data, fault=fault)
        return
    start = int(match[1])
    stop = min(int(match[2]) + 1 if match[2] else len(data), len(data))
    if start >= len(data):
        _respond(handler, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return
    shift = 1 if fault == "other_range" else 0
    span = f"bytes {start + shift}-{stop - 1 + shift}/{len(data)}"
    _respond(handler, 206, data[start:stop], {"Content-Range": span}, fault=fault)


def _respond(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    fault: str = "",
) -> None:
    stated = {"longer": len(body) + 7, "huge": 1 << 40, "more": len(body) // 2}.get(
        fault, len(body)
    )
    if fault in ("more", "sizeless"):
        headers = {**(headers or {}), "Transfer-Encoding": "chunked"}
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    if fault != "sizeless":
        handler.send_header("Content-Length", str(stated))
    handler.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
    handler.end_headers()
    cut = {"cut": len(body) // 2, "cut_late": len(body) * 9 // 10}.get(fault, len(body))
    if handler.command != "HEAD":
        handler.wfile.write(body[:cut])
    if cut < len(body) or stated > len(body):
        handler.close_connection = True


@contextlib.contextmanager
def nginx_server(folder: Path, work: Path) -> Iterator[str]:
    """nginx with the files of a folder; yields its address. work: an empty folder of its own."""
    work.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {work}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user} daemon off; pid {work}/pid; error_log {work}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    command = ["nginx", "-e", f"{work}/error.log", "-c", f"{work}/nginx.conf"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not answer")


# S3 ------------------------------------------------------------------------------------------

S3_SECRET = "quite-secret-key-of-the-tests"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket. environment: what a client needs to reach it."""

    url: str
    environment: dict[str, str]


@contextlib.contextmanager
def s3_server(bucket: str = "shelf") -> Iterator[Bucket]:
    """moto's server, which keeps objects in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        make = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
        urllib.request.urlopen(make).close()
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_REGION": "us-east-1",
        }
        yield Bucket(url=f"s3://{bucket}", environment=environment)
    finally:
        urllib.request.urlopen(
            urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        ).close()
        server.stop()


# SSH -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SshHost:
    """An SFTP server of a folder. home: to be HOME of a client that knows it and has its key."""

    address: str
    home: Path
    folder: Path
    drop_next: threading.Event  # set: the next request ends its channel without an answer
    connections: list[Any]  # of paramiko.Transport: every one so far

    def break_connections(self) -> None:
        for connection in list(self.connections):
            connection.close()


@contextlib.contextmanager
def sftp_server(folder: Path, home: Path, *, max_channels: int = 10) -> Iterator[SshHost]:
    """paramiko's server; `folder` is its whole file system. Renames refuse to replace.

    max_channels: on one connection; OpenSSH's default.
    """
    import paramiko

    host_key, user_key = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    drop_next = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    _write_ssh_home(home, port, host_key, user_key)
    files = _sftp_interface(folder, drop_next)
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                transport = paramiko.Transport(connection)
                transport.add_server_key(host_key)
                transport.set_subsystem_handler("sftp", paramiko.SFTPServer, files)
                transports.append(transport)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=_ssh_interface(user_key, max_channels))

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"ssh://tester@127.0.0.1:{port}"
    try:
        yield SshHost(
            address=address,
            home=home,
            folder=folder,
            drop_next=drop_next,
            connections=transports,
        )
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for transport in transports:
            transport.close()
        thread.join(5)


def _write_ssh_home(home: Path, port: int, host_key: Any, user_key: Any) -> None:
    folder = home / ".ssh"
    folder.mkdir(parents=True)
    user_key.write_private_key_file(str(folder / "key"))
    (folder / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {folder / 'key'}\n")
    known = f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n"
    (folder / "known_hosts").write_text(known)


def _ssh_interface(user_key: Any, max_channels: int) -> Any:
    import paramiko

    class Interface(paramiko.ServerInterface):
        """Of one connection. Counts the channels asked for, ended ones too."""

        num_channels = 0

        def get_allowed_auths(self, _username: str) -> str:
            return "publickey"

        def check_auth_publickey(self, username: str, key: Any) -> int:
            known = username == "tester" and key == user_key
            return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

        def check_channel_request(self, _kind: str, _chanid: int) -> int:
            if self.num_channels == max_channels:
                return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
            self.num_channels += 1
            return paramiko.OPEN_SUCCEEDED

    return Interface()


def _sftp_interface(folder: Path, drop_next: threading.Event) -> Any:
    import paramiko

    def status(call: Any) -> Any:
        try:
            return call() or paramiko.SFTP_OK
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    class Files(paramiko.SFTPServerInterface):
        def _at(self, path: str) -> Path:
            if drop_next.is_set():
                drop_next.clear()
                raise EOFError
            return folder / path.lstrip("/")

        def stat(self, path: str) -> Any:
            at = self._at(path)
            return status(lambda: paramiko.SFTPAttributes.from_stat(at.stat()))

        def lstat(self, path: str) -> Any:
            at = self._at(path)
            return status(lambda: paramiko.SFTPAttributes.from_stat(at.lstat()))

        def list_folder(self, path: str) -> Any:
            at = self._at(path)

            def entries() -> list[Any]:
                found = sorted(at.iterdir())
                return [paramiko.SFTPAttributes.from_stat(p.lstat(), p.name) for p in found]

            try:
                return entries()
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        def open(self, path: str, flags: int, _attr: Any) -> Any:
            at = self._at(path)

            def handle() -> Any:
                file = os.fdopen(os.open(at, flags, 0o666), "rb" if flags == os.O_RDONLY else "wb")
                found = paramiko.SFTPHandle(flags)
                found.readfile = found.writefile = file
                return found

            return status(handle)

        def remove(self, path: str) -> Any:
            return status(self._at(path).unlink)

        def rename(self, old: str, new: str) -> Any:
            source, target = self._at(old), self._at(new)

            def link() -> None:
                os.link(source, target)
                source.unlink()

            return status(link)

        def posix_rename(self, old: str, new: str) -> Any:
            source, target = self._at(old), self._at(new)

            def replace() -> None:
                source.replace(target)

            return status(replace)

        def mkdir(self, path: str, _attr: Any) -> Any:
            return status(self._at(path).mkdir)

    return Files


# A hub ---------------------------------------------------------------------------------------


@dataclass
class FakeHub:
    """As much of a hub as one dataset repository needs. commits: the paths of each, in order."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def head(self) -> str:
        return f"{len(self.commits):040x}"


@contextlib.contextmanager
def hub_server(repository: str = "team/tokens") -> Iterator[FakeHub]:
    """The requests that the hub's client makes, answered from memory. Not a hub: its limits, its
    storage and its checks are not here."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.authorizations.add(self.headers.get("Authorization", ""))
            _answer_hub(self, hub, repository)

        do_POST = do_HEAD = do_GET  # noqa: N815 - the names are http.server's

        def log_message(self, *_: object) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub


def _answer_hub(handler: BaseHTTPRequestHandler, hub: FakeHub, repository: str) -> None:
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    path = urllib.parse.unquote(handler.path.partition("?")[0])
    resolve = f"/datasets/{repository}/resolve/main/"
    api = f"/api/datasets/{repository}/"
    if path == "/api/repos/create":
        hub.made.append(json.loads(body))
        _respond_json(handler, {"url": f"{hub.url}/datasets/{repository}"})
    elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
        found = hub.files[path.removeprefix(resolve)]
        _send(handler, found, handler.headers.get("Range"), "")
    elif not hub.made or not path.startswith(api):
        _respond(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
    else:
        _answer_repository(handler, hub, path.removeprefix(api), body)


def _answer_repository(
    handler: BaseHTTPRequestHandler, hub: FakeHub, request: str, body: bytes
) -> None:
    def described(path: str) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(hub.files[path]), "oid": "0" * 40}

    kind, _, rest = request.partition("/")
    if kind == "revision":
        _respond_json(handler, {"id": "team/tokens", "sha": hub.head})
    elif kind == "paths-info":
        content = handler.headers.get("Content-Type", "")
        asked = json.loads(body) if "json" in content else urllib.parse.parse_qs(body.decode())
        paths = asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]
        _respond_json(handler, [described(path) for path in paths if path in hub.files])
    elif kind == "tree":
        folder = rest.partition("/")[2]
        below = [p for p in sorted(hub.files) if not folder or p.startswith(f"{folder}/")]
        if folder and not below:
            _respond(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            _respond_json(handler, [described(path) for path in below])
    elif kind == "preupload":
        files = [{**each, "uploadMode": "regular"} for each in json.loads(body)["files"]]
        asked_for = [{"path": e["path"], "uploadMode": "regular"} for e in files]
        _respond_json(handler, {"files": [{**e, "shouldIgnore": False} for e in asked_for]})
    elif kind == "commit":
        _commit(handler, hub, [json.loads(line) for line in body.splitlines()])
    else:
        _respond(handler, 404, b"{}")


def _commit(handler: BaseHTTPRequestHandler, hub: FakeHub, lines: list[dict[str, Any]]) -> None:
    with hub.lock:
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, hub.head):
            _respond(handler, 412, b"{}")
            return
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "deletedFile":
                hub.files.pop(path)
            else:
                hub.files[path] = base64.b64decode(line["value"]["content"])
        hub.commits.append([line["value"]["path"] for line in lines[1:]])
        head = hub.head
    _respond_json(
        handler, {"commitUrl": f"{hub.url}/datasets/team/tokens/commit/{head}", "commitOid": head}
    )


def _respond_json(handler: BaseHTTPRequestHandler, value: object) -> None:
    _respond(handler, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


# Swift, an object store on disk that speaks S3 -------------------------------------------------

_SWIFT_SERVERS = ("account", "container", "object")
_SWIFT_PROXY = """
[pipeline:main]
pipeline = catch_errors cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
[filter:slo]
use = egg:swift#slo
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""


def swift_programs() -> Path | None:
    """The folder of Swift's programs (`pip install swift`), if there is one."""
    found = shutil.which("swift-proxy-server", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    return None if found is None else Path(found).parent


@contextlib.contextmanager
def swift_server(programs: Path, folder: Path, bucket: str = "shelf") -> Iterator[Bucket]:
    """Four processes of Swift with one device in an empty folder, which has extended attributes."""
    environment = {**os.environ, "SWIFT_CONF_DIR": str(folder)}
    ports = {name: _free_port() for name in (*_SWIFT_SERVERS, "proxy")}
    _write_swift(folder, ports)
    for name in _SWIFT_SERVERS:
        device = f"r1z1-127.0.0.1:{ports[name]}/d1"
        for step in (("create", "4", "1", "1"), ("add", device, "1"), ("rebalance",)):
            command = [programs / "swift-ring-builder", folder / f"{name}.builder", *step]
            subprocess.run(command, check=True, capture_output=True, env=environment)
    processes = [
        subprocess.Popen(
            [programs / f"swift-{name}-server", folder / f"{name}.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # it forks its workers
        )
        for name in ports
    ]
    try:
        for port, process in zip(ports.values(), processes, strict=True):
            _wait_for(port, process)
        client = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['proxy']}",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }
        _make_bucket(bucket, client)
        yield Bucket(url=f"s3://{bucket}", environment=client)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _write_swift(folder: Path, ports: dict[str, int]) -> None:
    (folder / "devices/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\n"
        "[storage-policy:0]\nname = only\ndefault = yes\n[swift-constraints]\n"
    )
    user = pwd.getpwuid(os.geteuid()).pw_name
    for name, port in ports.items():
        settings = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = {user}\nworkers = 0\n"
            f"swift_dir = {folder}\ndevices = {folder}/devices\nmount_check = false\n"
        )
        app = f"{name}-server"  # the name that the program looks for
        server = f"[pipeline:main]\npipeline = {app}\n[app:{app}]\nuse = egg:swift#{name}\n"
        text = settings + (_SWIFT_PROXY if name == "proxy" else server)
        (folder / f"{name}.conf").write_text(text)


def _make_bucket(bucket: str, environment: dict[str, str]) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    client.create_bucket(Bucket=bucket)
