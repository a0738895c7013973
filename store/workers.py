"""Who works on a cache, and whether they still do, judged without any common clock.

Each worker keeps one small file, `claims/workers/TOKEN.json`, and adds one to the counter in it
every half minute. Whoever looks at it sees the counter stand still for so and so long of the own
clock; times of day are there for people and never compared, for clocks may differ by hours. Of a
process on the same machine it is known at once that it is gone. Knows nothing of claims or videos.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import fields as f
from .errors import CacheFormatError
from .files import link_above, linked, read_json_bytes, seal, unseal, write_atomic

CLAIMS = "claims"
BEAT_SECONDS = 30.0
LAPSE_SECONDS = 600.0  # without a sign, in which a stopped file server may come back
_MAX_LOOK_SECONDS = 2 * BEAT_SECONDS
_MAX_LOOKS = 32  # with each sign: thousands of workers must not be busy with one another
_MAX_BYTES = 1 << 16
_MAX_PID = (1 << 31) - 1
_REFUSED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)  # tomorrow as well
_TOKEN = re.compile(r"[0-9a-f]{16}")
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process that fills a cache.

    machine: what tells one run of one operating system, and the processes it shows, from all
    others; empty where that cannot be said. process_start: in the system's ticks, which tells a
    process from a later one of the same pid. started: UTC by its own clock, for people. beat: how
    often it gave a sign.
    """

    token: str
    host: str
    pid: int
    machine: str
    process_start: int
    started: str
    beat: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> Worker:
        worker = cls(
            token=f.text(data, "token", name=name),
            host=f.text(data, "host", name=name),
            pid=f.integer(data, "pid", name=name, minimum=1),
            machine=f.text(data, "machine", name=name),
            process_start=f.integer(data, "process_start", name=name),
            started=f.text(data, "started", name=name),
            beat=f.integer(data, "beat", name=name),
        )
        if worker.pid > _MAX_PID:
            raise CacheFormatError(f"{name}: pid {worker.pid}, expected at most {_MAX_PID}")
        return worker

    @classmethod
    def here(cls, token: str) -> Worker:
        """This process."""
        start = _process_start(os.getpid())
        return cls(
            token=token,
            host=platform.node(),
            pid=os.getpid(),
            machine="" if start is None else _machine(),
            process_start=start or 0,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def is_gone(self) -> bool:
        """Is it certain that the process has ended? Only ever of one on this machine."""
        if not self.machine or (self.machine, self.host) != (_machine(), platform.node()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        start = _process_start(self.pid)
        return start is not None and start != self.process_start


def check_token(token: str, *, name: str) -> str:
    """A worker's token as found in a file; CacheFormatError for what must not become a path."""
    if not _TOKEN.fullmatch(token):
        raise CacheFormatError(f"{name}: {token!r:.80} is no worker's token")
    return token


def worker_path(root: Path, token: str) -> Path:
    return root / CLAIMS / "workers" / f"{token}.json"


def read_worker(root: Path, token: str) -> Worker | None:
    """A worker's file; None when there is none. CacheFormatError when it says nothing."""
    path = worker_path(root, token)
    if (link := link_above(path, root)) is not None:
        raise CacheFormatError(f"{path}: {linked(link)}")
    try:
        data = read_json_bytes(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    worker = Worker.from_json(unseal(data, name=str(path)), name=str(path))
    if worker.token != token:
        raise CacheFormatError(f"{path}: is of worker {worker.token!r:.80}, expected {token!r}")
    return worker


def list_workers(root: Path) -> list[str]:
    """The tokens of all workers that have a file."""
    names = (path.stem for path in (root / CLAIMS / "workers").glob("*.json"))
    return sorted(name for name in names if _TOKEN.fullmatch(name))


def _trace(path: Path) -> object:
    """What changes with each sign of a worker whose file is not for this user to read."""
    try:
        stat = path.lstat()
    except OSError as error:
        return error.errno
    return stat.st_ino, stat.st_mtime_ns


def _machine() -> str:
    """The boot of the operating system and the table of processes; empty when not to be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """When a process began, in ticks; 0 for one that is dead and not yet buried; None when the
    system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return 0 if fields[0] in "ZX" else int(fields[19])


# Giving a sign, and looking out for others' -----------------------------------------------------


class Heartbeat:
    """This worker's file, kept alive by a thread from `start` to `stop`.

    A file server that does not answer for a while ends nothing: the next beat tries again.
    """

    def __init__(
        self, root: Path, worker: Worker, *, seconds: float, on_beat: Callable[[], None]
    ) -> None:
        self._path = worker_path(root, worker.token)
        self._worker = worker
        self._seconds = seconds
        self._on_beat = on_beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Make the file. StorageError when that is refused."""
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Remove the file: the worker has ended well."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
            with contextlib.suppress(OSError):  # what stays is taken for a lapsed worker's
                self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            with contextlib.suppress(OSError):
                self._write()
                self._on_beat()

    def _write(self) -> None:
        write_atomic(self._path, seal(self._worker.to_json()))
        self._worker = replace(self._worker, beat=self._worker.beat + 1)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What is known of a worker at a look. worker: None when its file is missing or damaged.

    silent_seconds: for how long of this process's clock it has given no sign. gone: its process
    has ended, for certain.
    """

    token: str
    worker: Worker | None
    silent_seconds: float
    gone: bool

    @property
    def lapsed(self) -> bool:
        """May others take what it holds?"""
        return self.gone or self.silent_seconds >= LAPSE_SECONDS

    @property
    def name(self) -> str:
        """As people are told who it is."""
        if self.worker is None:
            return f"worker {self.token}"
        return f"{self.worker.host} pid {self.worker.pid}"


class Lookout:
    """Remembers what each worker's file said, and for how long it has been saying so.

    Of the time between two looks a minute counts at most: after a long pause (of the file server,
    of this process) the others get their chance to give a sign. Look every half minute.
    """

    def __init__(self, root: Path, *, clock: Clock = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[object, float, float]] = {}  # what, when looked at, silent for

    def now(self) -> float:
        """Seconds of the clock that silence is measured by."""
        return self._clock()

    def look(self, token: str) -> Sign:
        """Read a worker's file, now."""
        worker, said = self._read(token)
        with self._lock:
            now = self._clock()
            before, looked, silent = self._seen.get(token, (None, now, 0.0))
            silent = silent + min(now - looked, _MAX_LOOK_SECONDS) if said == before else 0.0
            self._seen[token] = said, now, silent
        gone = worker is not None and worker.is_gone
        return Sign(token=token, worker=worker, silent_seconds=silent, gone=gone)

    def look_at_all(self) -> None:
        """Look at workers that were looked at before: at all that were silent then and have not
        lapsed, and at 32 of the others at most, those whose turn it is."""
        with self._lock:
            seen = sorted(
                (looked, token, silent) for token, (_, looked, silent) in self._seen.items()
            )
        silent = [token for _, token, silent in seen if 0 < silent < LAPSE_SECONDS]
        heard = [token for _, token, silent in seen if not silent]
        for token in silent + heard[:_MAX_LOOKS]:
            self.look(token)

    def _read(self, token: str) -> tuple[Worker | None, object]:
        """A worker's file as a record, and as something that differs when it has changed."""
        try:
            worker = read_worker(self._root, token)
        except CacheFormatError as error:
            return None, str(error)
        except OSError as error:
            if error.errno not in _REFUSED:  # the file server's trouble is no sign of anything
                return None, object()
            return None, _trace(worker_path(self._root, token))
        return worker, "no file" if worker is None else worker.beat
