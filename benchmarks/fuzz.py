"""What can a cache or a run from somebody else make the reader do? Random malice, structure-aware.

    python benchmarks/fuzz.py [--seconds 600 | --examples 1000] [--target records,packs] [--seed 0]

Each example takes a sound cache or run, changes one file as somebody who knows the format would
(fields replaced, removed, renamed, nested, in JSON that is sealed anew so that no checksum guards
it; shard indices and packs with right checksums; headers of safetensors), or as a bad disk would,
or puts a link there, and then reads everything. Nothing may come of it but right values and errors
of one printable line. What is watched meanwhile:

- any other exception, and any error longer than a person reads;
- memory beyond the files' size times a small constant (tracemalloc, which is slow, in half of the
  examples; the address space of the process is limited in all);
- files opened outside the cache, links followed, anything written, a process, a socket, a name
  that is unpickled (`sys.addaudithook`);
- time: an alarm ends what hangs.

Examples are drawn and made small by hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from vis4mer.console import human_bytes
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.catalog import parse_catalog
from vis4mer.store.claims import claim_path
from vis4mer.store.digest import digest_cache
from vis4mer.store.errors import Vis4merError
from vis4mer.store.failures import FailureRecord
from vis4mer.store.files import canonical_json, seal, write_atomic
from vis4mer.store.layout import CRC_BYTES, INDEX_ENTRY_BYTES, crc32c
from vis4mer.store.packing import pack_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import NOT_IDENTITY, CacheSpec, Preprocess, Sampling
from vis4mer.store.status import StatusWatch
from vis4mer.store.summary import summarise
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import Worker, worker_path

LONGEST_MESSAGE = 1500
LONGEST_SECONDS = 90
MEMORY_FACTOR, MEMORY_CONSTANT = 40, 8 << 20  # times the files; and what any reading takes
SPARE_BYTES = 2 << 30  # of address space, beyond what the libraries took
LENGTHS = (3, 5, 4)  # frames of each video; the last one lies in a pack
Files = dict[str, bytes | Path | None]  # relative path → bytes, what a link leads to, or no file


class FoundError(Exception):
    """Something that may not be, in words."""


# Watching ------------------------------------------------------------------------------------


class Watch:
    """Audits what this process opens; on only while something is read. One for each process."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.writable = False
        self.seen: list[str] = []
        libraries = {sys.prefix, sys.base_prefix, Path(__file__).parent.parent, "/proc", "/sys"}
        # Of the system: what libraries look up about machine, time zone and devices.
        self._known = (*map(os.path.realpath, libraries), "/dev", "/etc", "/usr")
        sys.addaudithook(self._heard)

    @contextlib.contextmanager
    def over(self, root: Path, *, writable: Path | None = None) -> Iterator[None]:
        """FoundError when what is done within leaves `root`; writing is for `writable` alone."""
        self.seen, self.root, self._target = [], root, writable
        try:
            yield
        finally:
            self.root = None
        if self.seen:
            raise FoundError(self.seen[0])

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            self._opened(os.fsdecode(arguments[0]), arguments[2])
        elif event.startswith(("pickle.find_class", "subprocess", "socket.connect", "os.system")):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
            self._wrote(event, str(arguments[0]))

    def _opened(self, path: str, flags: int) -> None:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._wrote("open", path)
        whole = os.path.abspath(path)  # noqa: PTH100 - quick, and follows no link
        if flags & os.O_NOFOLLOW:
            real = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))  # noqa: PTH118, PTH119, PTH120
        else:
            real = os.path.realpath(whole)
        inside = [self.root, self._target] if self._target else [self.root]
        if not any(self._within(real, str(room)) for room in (*inside, *self._known)):
            self.seen.append(f"opened {path}, which is {real}")

    def _wrote(self, event: str, path: str) -> None:
        if self._target is None or not self._within(path, str(self._target)):
            self.seen.append(f"{event} writes {path}")

    @staticmethod
    def _within(path: str, room: str) -> bool:
        return path == room or path.startswith(f"{room}/")


@functools.cache
def watch() -> Watch:
    """The process's own: a hook stays for ever."""
    return Watch()


@contextlib.contextmanager
def timely() -> Iterator[None]:
    """FoundError for what hangs."""

    def rang(*_: object) -> None:
        raise FoundError(f"hangs: {traceback.format_stack()[-3:]}")

    before = signal.signal(signal.SIGALRM, rang)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def frugal(num_bytes: int) -> Iterator[None]:
    """FoundError for more memory than files of `num_bytes` may cost."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > MEMORY_FACTOR * num_bytes + MEMORY_CONSTANT:
        raise FoundError(f"{peak} bytes of memory for files of {num_bytes} bytes")


ANSWERS: Counter[str] = Counter()  # how often reading gave a value, and how often it refused


def judged(work: Callable[[], Any]) -> tuple[bool, Any]:
    """(True, value), or (False, message) of an error that a person can read. FoundError else."""
    try:
        value = work()
    except Vis4merError as error:
        require_readable(str(error))
        ANSWERS["refused"] += 1
        return False, str(error)
    except FoundError:
        raise
    except (Exception, MemoryError) as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
        raise FoundError(f"{type(error).__name__} at {at}: {error!s:.300}") from error
    ANSWERS["answered"] += 1
    return True, value


def require_readable(message: str) -> None:
    """FoundError unless a message is one line that people can read."""
    if not message.isprintable() or not message:
        raise FoundError(f"a message that is no printable line: {message[:300]!r}")
    if len(message) > LONGEST_MESSAGE:
        raise FoundError(f"a message of {len(message)} characters: {message[:300]}")


# Malice --------------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 256, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 10**400,
    10**4200, 10**9, 10**6, 0.5, -0.0, 1e308, 5e-324, -1e308,
)  # fmt: skip
TEXTS = (
    "", "x", "../../secret", "/etc/passwd", "\x1b[2J\x07\n\r", "\u202eabc", "a\0b", "é", "9" * 5000,
    "\U000e0001" * 90, "patch", "prefix", "grid1", "grid9", "v0", "v1", "float16", "int8", "d/one",
    "bfloat16", "segments", "regression", "vis4mer", "mean", "lst", "os:system", "[bold]x[/]",
    "0" * 64, "0" * 12, "0" * 32 + ".pack", "x" * 2000, "\U0001f3ac", "best", "last", "NaN",
)  # fmt: skip
RAW = (
    b"NaN", b"Infinity", b"1e999", b"-", b"\xff", b"\\ud800", b"{", b"}", b'"', b"[" * 100_000,
    b'{"a":' * 100_000, b"9" * 4000, b"9" * 5000, b'"id":"v1",', b"\x00", b"null", b"\xef\xbb\xbf",
)  # fmt: skip


def strange(chance: random.Random) -> Any:
    """A value that is not meant to stand anywhere."""
    kind = chance.randrange(8)
    if kind < 3:
        return chance.choice(NUMBERS)
    if kind < 6:
        return chance.choice(TEXTS)
    plain = (None, True, False, [], {}, [[]], {"a": {}}, [None], [0] * 3, [1e9] * 3, ["x"])
    return nested(chance.choice((2, 50, 900))) if kind == 6 else chance.choice(plain)


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def altered(value: Any, chance: random.Random) -> Any:
    """A copy of JSON with one change somewhere, more likely near the top."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        return _altered_object(value, chance)
    if isinstance(value, list) and value and chance.random() < 0.8:
        return _altered_list(value, chance)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and abs(value) < 1e300 and chance.random() < 0.6:
        steps = (value + 1, value - 1, value * 2, -value, value * 1000, float(value), value + 0.5)
        return chance.choice(steps)
    return strange(chance)


def _altered_object(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    key = chance.choice(sorted(value))
    kind = chance.randrange(10)
    if kind == 0:
        return {k: v for k, v in value.items() if k != key}
    if kind == 1:
        return value | {chance.choice(TEXTS): value[key]}
    if kind == 2:
        return {chance.choice(TEXTS) if k == key else k: v for k, v in value.items()}
    if kind == 3:
        return value | {key: value[chance.choice(sorted(value))]}
    return value | {key: altered(value[key], chance)}


def _altered_list(value: list[Any], chance: random.Random) -> list[Any]:
    where = chance.randrange(len(value))
    kind = chance.randrange(6)
    if kind == 0:
        return value[:where] + value[where + 1 :]
    if kind == 1:
        return value + [value[where]] * chance.choice((1, 2, 5000))
    if kind == 2:
        return [strange(chance), *value]
    return [*value[:where], altered(value[where], chance), *value[where + 1 :]]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes with one change that knows nothing of what they mean."""
    where = chance.randrange(len(data) + 1)
    end = min(len(data), where + chance.choice((0, 1, 8, 64)))
    kind = chance.randrange(4)
    if kind == 0:
        return data[:where]
    if kind == 1:
        return data[:where] + chance.choice(RAW) + data[end:]
    if kind == 2:
        return data[:where] + bytes(end - where) + data[end:]
    return data[:where] + bytes([chance.randrange(256)]) + data[where + 1 :]


def sealed(content: Any) -> bytes:
    """As `seal`, of whatever has a spelling in JSON."""
    if isinstance(content, dict):
        content.pop("checksum", None)
        with contextlib.suppress(ValueError):
            return seal(content)
    return json.dumps(content).encode()


def altered_times(value: Any, chance: random.Random) -> Any:
    """`altered` once, or a few times over."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = altered(value, chance)
    return value


def sealed_anew(data: bytes, chance: random.Random) -> bytes:
    """Sealed JSON with changes and a right checksum."""
    return sealed(altered_times(json.loads(data), chance))


# Subjects ------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A sound cache or run, the bytes of its files, and what its frames are.

    secret: the same files outside, for links to lead to: who follows one reads right values.
    """

    root: Path
    secret: Path
    read: Callable[[Subject, Path, random.Random], None]
    files: dict[str, bytes] = field(default_factory=dict)
    frames: dict[str, set[bytes]] = field(default_factory=dict)
    truth: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(self.root, self.secret)
        self.files = {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }
        self._times = {path: (self.root / path).stat() for path in self.files}

    @contextlib.contextmanager
    def changed(self, files: Files) -> Iterator[None]:
        """The files are so within, and as they were afterwards."""
        for path, content in files.items():
            target = self.root / path
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
                if path in self._times:  # so that a catalog is believed
                    times = self._times[path]
                    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            elif content is not None:
                target.symlink_to(content)
        try:
            yield
        finally:
            for path in files:
                self._restore(path)

    def _restore(self, path: str) -> None:
        target = self.root / path
        target.unlink(missing_ok=True)
        for each, data in self.files.items():
            if each == path or each.startswith(f"{path}/"):
                file = self.root / each
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                times = self._times[each]
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def below(self, *rooms: str) -> list[str]:
        """Paths of files in these folders, or of these names."""
        return [path for path in self.files if path.startswith(rooms)]


def make_cache(folder: Path, *, stored_dtype: Any = "float16") -> Subject:
    """Two loose entries and one in a pack, two task tables, a failure, a claim, a catalog."""
    spec = CacheSpec(
        backbone="random", weights="random:0", weights_sha256="0" * 64,
        preprocess=Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        sampling=Sampling(fps=1.0), reader="pyav", grid=(2, 2), num_prefix=1, dim=8,
        stored_dtype=stored_dtype, arrays=("patch", "prefix", "grid1"),
    )  # fmt: skip
    cache = create_cache(folder / "c.zarr", spec)
    numbers = np.random.default_rng(0)
    for i, frames in enumerate(LENGTHS):
        source = SourceRecord(name=f"v{i}.mp4", size=1, mtime_ns=1, sha256="0" * 64)
        with cache.write_entry(f"v{i}", source=source) as entry:
            tokens = {
                "patch": numbers.standard_normal((frames, 4, 8)).astype("f4"),
                "prefix": numbers.standard_normal((frames, 1, 8)).astype("f4"),
            }
            entry.append(tokens, pts_seconds=np.arange(frames) / 3)
            entry.commit(duration_seconds=frames / 3, provenance={"host": "here"})
    for task in ("one", "two"):
        rows = tuple(
            TaskRow(id=f"v{i}", split="test" if i else "train", label=i % 2, end_seconds=1.0)
            for i in range(len(LENGTHS))
        )
        cache.save_task(
            TaskTable(dataset="d", task=task, kind="classification", classes=("a", task), rows=rows)
        )
    cache.record_failure(
        FailureRecord(
            id="bad.mp4", stage="open", reason="no video", source_name="bad.mp4", source_size=1,
            source_mtime_ns=1, time="2026-01-01T00:00:00+00:00",
        )
    )  # fmt: skip
    worker = Worker.here("0123456789abcdef")
    write_atomic(worker_path(cache.path, worker.token), seal(worker.to_json()))
    claim = seal({"id": "v0", "worker": worker.token})
    write_atomic(claim_path(cache.path, "v0"), claim)
    pack_cache(cache, ids=[f"v{len(LENGTHS) - 1}"], free_at_once=True)
    time.sleep(0.02)  # a catalog counts for what is older
    cache.write_catalog()
    subject = Subject(cache.path, folder / "secret", read=read_cache)
    for entry_id in cache.ids():
        for array in spec.arrays:
            tokens = cache.read(entry_id, array)
            subject.truth[f"{entry_id} {array}"] = tokens.tobytes()
            subject.frames.setdefault(array, set()).update(row.tobytes() for row in tokens)
    return subject


def make_run(folder: Path) -> Subject:
    """A decoder trained for an epoch on such a cache."""
    from vis4mer.decode.config import load_config
    from vis4mer.decode.decoders import describe_decoders
    from vis4mer.decode.train import train_decoder

    describe_decoders()  # imports them all, so that no reading does

    cache = open_cache(make_cache(folder / "for_run").root)
    rows = tuple(
        TaskRow(id=f"v{i}", split=split, label=i % 2)
        for i, split in enumerate(("train", "val", "test"))
    )
    cache.save_task(
        TaskTable(dataset="d", task="one", kind="classification", classes=("a", "b"), rows=rows)
    )
    flags = {"task": "d/one", "tokens": "2x2x2", "window_seconds": 2.0, "epochs": 1}
    config = load_config(flags={**flags, "device": "cpu", "decoder.name": "gru"})
    train_decoder(cache, config, folder / "run")
    return Subject(folder / "run", folder / "secret_run", read=read_run)


# Reading -------------------------------------------------------------------------------------


def read_cache(subject: Subject, root: Path, chance: random.Random) -> None:
    """What anybody reads from a cache: all tokens, some of the rest; and sometimes a pull of it."""
    opened, cache = judged(lambda: open_cache(root))
    if opened:
        for number in range(len(LENGTHS)):
            read_entry(subject, cache, f"v{number}", chance)
        for look in chance.sample(LOOKS, 3):
            look(cache)
    if chance.randrange(40) == 23:  # hypothesis likes small numbers
        pull(subject, root)


def read_entry(subject: Subject, cache: Cache, entry_id: str, chance: random.Random) -> None:
    """Every array of an entry: frames that were stored, as many as it says, or an error."""
    found, record = judged(lambda: cache.record(entry_id))
    if not found:
        return
    for array in record.token_arrays:
        frames = chance.choice((None, [record.num_frames - 1, 0]))
        read, tokens = judged(functools.partial(cache.read, entry_id, array, frames))
        if not read:
            continue
        wanted = record.num_frames if frames is None else 2
        if len(tokens) != wanted:
            raise FoundError(f"{len(tokens)} frames of {array} of {entry_id}, not {wanted}")
        stored = {row.tobytes() for row in tokens} <= subject.frames.get(array, set())
        if cache.spec.stored_dtype == "float16" and not stored:
            raise FoundError(f"wrong values in {array} of {entry_id}")


def look_at_tasks(cache: Cache) -> None:
    """Task tables, as they are shown and trained on."""
    for reference in judged(cache.tasks)[1]:
        found, table = judged(functools.partial(cache.task, reference))
        if found:
            judged(table.describe_labels)
            judged(table.leaking)
            judged(lambda table=table: table.as_sampled(Sampling(kind="spread")))  # type: ignore[misc]
            judged(lambda table=table: json.dumps(table.to_json()))  # type: ignore[misc]


def look_at_catalog(cache: Cache) -> None:
    """The catalog as it is read far away, where nothing says that a row is old."""
    path = cache.path / "catalog.json"
    if path.is_file() and not path.is_symlink():
        judged(lambda: parse_catalog(path.read_bytes(), name="catalog.json"))


def verify(cache: Cache) -> None:
    """Every problem is a line too."""
    found, report = judged(lambda: verify_cache(cache, "full"))
    for problem in report.problems if found else ():
        require_readable(problem.reason)


LOOKS: tuple[Callable[[Cache], object], ...] = (
    look_at_tasks,
    look_at_catalog,
    verify,
    lambda cache: judged(cache.ids),
    lambda cache: judged(cache.failures),
    lambda cache: judged(lambda: summarise(cache).lines(human_bytes=human_bytes)),
    lambda cache: judged(lambda: json.dumps(summarise(cache).to_json())),
    lambda cache: judged(lambda: digest_cache(cache)),
    lambda cache: judged(lambda: StatusWatch(cache).look().to_json()),
    lambda cache: judged(lambda: [json.dumps(cache.record(i).to_json()) for i in cache.ids()]),
)


def pull(subject: Subject, root: Path) -> None:
    """Bring the cache elsewhere; what is there then is read as well."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        target = Path(folder) / "pulled"
        with watch().over(root, writable=Path(folder)):
            judged(lambda: pull_cache(str(root), target, jobs=1))
        if not (target / "zarr.json").exists():
            return
        opened, pulled = judged(lambda: open_cache(target))
        for number in range(len(LENGTHS)) if opened else ():
            read_entry(subject, pulled, f"v{number}", random.Random(0))


def read_run(_: Subject, root: Path, __: random.Random) -> None:
    """Everything that a report, an evaluation or a prediction reads from a run directory."""
    from vis4mer.decode.report.collect import find_runs
    from vis4mer.decode.runs.run import open_run
    from vis4mer.decode.runs.timelines import read_timelines

    opened, run = judged(lambda: open_run(root))
    if opened:
        judged(lambda: json.dumps(run.about.to_json()))
        judged(run.epochs)
        judged(lambda: run.results() and run.results().to_json())
        judged(lambda: read_timelines(run.timelines))
        judged(lambda: run.load_decoder())
        judged(lambda: run.load_decoder("last"))
    found, runs = judged(lambda: find_runs([root]))
    if found:
        for left_out in runs.left_out:
            require_readable(left_out.reason)


# Targets -------------------------------------------------------------------------------------


def change_json(*rooms: str) -> Callable[[Subject, random.Random], Files]:
    """Changes to sealed JSON: as a forger's, or as a bad disk's."""

    def change(subject: Subject, chance: random.Random) -> Files:
        path = chance.choice(subject.below(*rooms))
        forged = chance.random() < 0.85
        return {path: (sealed_anew if forged else damaged)(subject.files[path], chance)}

    return change


def change_spec(subject: Subject, chance: random.Random) -> Files:
    """`zarr.json` of the cache; a forger makes the fingerprint right too."""
    data = subject.files["zarr.json"]
    kind = chance.random()
    if kind < 0.1:
        return {"zarr.json": damaged(data, chance)}
    root = json.loads(data)
    if kind < 0.2:
        return {"zarr.json": json.dumps(altered_times(root, chance)).encode()}
    about = altered_times(root["attributes"]["vis4mer"], chance)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        about["fingerprint"] = fingerprint(about)
    root["attributes"]["vis4mer"] = json.loads(sealed(about))
    return {"zarr.json": json.dumps(root).encode()}


def fingerprint(about: dict[str, Any]) -> str:
    """Of the fields of a spec, as `CacheSpec.fingerprint` says it."""
    import hashlib

    left_out = (*NOT_IDENTITY, "fingerprint", "checksum")
    identity = {key: value for key, value in about.items() if key not in left_out}
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]


def change_index(subject: Subject, chance: random.Random) -> Files:
    """The index of a shard, with right checksums of index, object and record."""
    record_path, record = chance.choice(_records(subject, packed=False))
    array = chance.choice(sorted(record["arrays"]))
    name = f"{array}/c/0" + "/0" * (len(record["arrays"][array]["shape"]) - 1)
    path = f"videos/{record_path.split('/')[1]}/{Path(record_path).stem}.{record['attempt']}/{name}"
    data = _with_index(subject.files[path], record["arrays"][array]["frames_per_shard"], chance)
    record["objects"][name] = {"size": len(data), "crc32c": crc32c(data)}
    if chance.random() < 0.2:
        record = altered(record, chance)
    return {path: data, record_path: sealed(record)}


def _with_index(shard: bytes, capacity: int, chance: random.Random) -> bytes:
    size = capacity * INDEX_ENTRY_BYTES + CRC_BYTES
    frames, index = shard[:-size], bytearray(shard[-size:-CRC_BYTES])
    for _ in range(chance.choice((1, 2, 4))):
        where = 8 * chance.randrange(len(index) // 8)
        old = struct.unpack_from("<Q", index, where)[0]
        other = struct.unpack_from("<Q", index, 8 * chance.randrange(len(index) // 8))[0]
        values = (0, 1, old + 1, old - 1, other, len(shard), len(frames), 2**64 - 1, 2**63, 10**10)
        struct.pack_into("<Q", index, where, chance.choice(values) % 2**64)
    kind = chance.random()
    if kind < 0.1:
        frames = damaged(frames, chance)
    checksum = crc32c(bytes(index)) if kind < 0.9 else chance.randrange(2**32)
    return frames + bytes(index) + struct.pack("<I", checksum)


def change_packs(subject: Subject, chance: random.Random) -> Files:
    """Bytes of a pack, or where a record says that its objects lie in it."""
    (record_path, record), *_ = _records(subject, packed=True)
    (pack,) = subject.below("packs/")
    kind = chance.randrange(4)
    if kind == 0:
        return {pack: damaged(subject.files[pack], chance)}
    if kind == 1:
        record["pack"] = altered_times(record["pack"], chance)
    else:
        name = chance.choice(sorted(record["objects"]))
        other = chance.choice(sorted(record["objects"]))
        offsets = record["pack"]["offsets"]
        end = len(subject.files[pack])
        offsets[name] = chance.choice((0, 1, end, end - 1, offsets[other], 2**53, 2**63 - 1))
        if kind == 3:
            record["objects"][name] = altered(record["objects"][name], chance)
    return {record_path: sealed(record)}


def _records(subject: Subject, *, packed: bool) -> list[tuple[str, dict[str, Any]]]:
    found = [(path, json.loads(subject.files[path])) for path in subject.below("records/")]
    return [(path, record) for path, record in found if ("pack" in record) == packed]


def change_catalog(subject: Subject, chance: random.Random) -> Files:
    """Rows that are believed, for their files are as old and as large as they say."""
    content = json.loads(subject.files["catalog.json"])
    kind = chance.randrange(4)
    if kind == 0:
        return {"catalog.json": damaged(subject.files["catalog.json"], chance)}
    if kind == 1:
        return {"catalog.json": sealed(altered_times(content, chance))}
    row = chance.choice(content["entries"])
    if kind == 2:
        row[4] = sealed_anew(row[4].encode(), chance).decode()
    else:
        row[chance.randrange(5)] = strange(chance)
    return {"catalog.json": sealed(content)}


def change_weights(subject: Subject, chance: random.Random) -> Files:
    """The header of a safetensors file, or its bytes."""
    path = chance.choice([path for path in subject.files if path.endswith(".safetensors")])
    data = subject.files[path]
    if chance.random() < 0.2:
        return {path: damaged(data, chance)}
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    about = header["__metadata__"]
    if "vis4mer" in about and chance.random() < 0.4:
        about["vis4mer"] = sealed_anew(about["vis4mer"].encode(), chance).decode()
    else:
        header = altered_times(header, chance)
    text = json.dumps(header).encode()
    claimed = chance.choice((len(text),) * 8 + (0, len(data), 10**10, 2**64 - 1))
    return {path: struct.pack("<Q", claimed) + text + body}


def change_run(subject: Subject, chance: random.Random) -> Files:
    """Config, results, epochs or weights of a run."""
    kind = chance.randrange(4)
    if kind == 0:
        return change_weights(subject, chance)
    if kind == 1:
        lines = subject.files["metrics.jsonl"].splitlines()
        lines.append(json.dumps(altered_times(json.loads(lines[-1]), chance)).encode())
        return {"metrics.jsonl": b"\n".join(lines) + b"\n"}
    path = "config.json" if kind == 2 else "results.json"
    content = json.loads(subject.files[path])
    part = chance.choice([None, *sorted(content)])
    if part is None or not isinstance(content[part], dict):
        return {path: sealed(altered_times(content, chance))}
    return {path: sealed(content | {part: altered_times(content[part], chance)})}


TARGETS: dict[str, Callable[[Subject, random.Random], Files]] = {
    "records": change_json("records/"),
    "spec": change_spec,
    "index": change_index,
    "packs": change_packs,
    "catalog": change_catalog,
    "tasks": change_json("tasks/", "failures/", "claims/"),
    "runs": change_run,
}


def linked(subject: Subject, chance: random.Random) -> Files:
    """A file or a folder is a link to the same outside."""
    path = chance.choice(sorted(subject.files))
    parts = path.split("/")
    part = "/".join(parts[: chance.randint(1, len(parts))])
    return {part: subject.secret / part}


def try_one(subject: Subject, target: str, chance: random.Random) -> None:
    """One example. FoundError when something comes of it that may not be."""
    is_link = chance.randrange(25) == 13
    files = linked(subject, chance) if is_link else TARGETS[target](subject, chance)
    with subject.changed(files):
        present = [path for path in subject.root.rglob("*") if path.is_file()]
        num_bytes = sum(path.stat().st_size for path in present)
        measured = frugal(num_bytes) if chance.random() < 0.5 else contextlib.nullcontext()
        with timely(), measured, watch().over(subject.root):
            subject.read(subject, subject.root, chance)


# Running -------------------------------------------------------------------------------------


class Fuzzer:
    """Subjects made once in `folder`; `run` tries examples of a target."""

    def __init__(self, folder: Path, targets: tuple[str, ...]) -> None:
        self._caches = []
        if set(targets) != {"runs"}:
            for dtype in ("float16", "int8"):
                (folder / dtype).mkdir()
                self._caches.append(make_cache(folder / dtype, stored_dtype=dtype))
        self._run = make_run(folder) if "runs" in targets else None
        self.counts: Counter[str] = Counter()
        for subject in (*self._caches, *filter(None, [self._run])):
            refused = ANSWERS["refused"]
            for number in range(4):  # imports what it needs
                subject.read(subject, subject.root, random.Random(number))
            if ANSWERS["refused"] > refused:
                raise FoundError(f"{subject.root} is refused as it is")
        watch()

    def run(self, target: str, *, examples: int, number: int) -> str | None:
        """Examples from one seed; what was found, made small; None for nothing."""

        @seed(number)
        @settings(
            max_examples=examples, deadline=None, database=None, print_blob=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.randoms(use_true_random=False))
        def attempt(chance: random.Random) -> None:
            self.counts[target] += 1
            subject = self._run if target == "runs" else chance.choice(self._caches)
            assert subject is not None
            try_one(subject, target, chance)

        try:
            attempt()
        except FoundError as found:
            return f"{target} (seed {number}): {found}"
        except Flaky as found:  # not each time
            return f"{target} (seed {number}), at times: {found!s:.2000}"
        return None


def limit_memory() -> None:
    """No more address space than the libraries took, and a little."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))


def main() -> None:
    """Run and print; exit 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--examples", type=int, default=0, help="of each target; 0: no end")
    parser.add_argument("--target", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    targets = tuple(arguments.target.split(","))
    if not arguments.examples and math.isinf(arguments.seconds):
        arguments.examples = 500
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(os.path.realpath(folder)), targets)
        limit_memory()
        started = time.monotonic()
        rounds = itertools.count(arguments.seed)
        for number, target in ((number, target) for number in rounds for target in targets):
            over = arguments.examples and number > arguments.seed
            if over or time.monotonic() - started > arguments.seconds:
                break
            bad = fuzzer.run(target, examples=arguments.examples or 50, number=number)
            if bad is not None and found.setdefault(bad.split(": ", 1)[1][:80], bad) is bad:
                print(bad, flush=True)
        seconds = time.monotonic() - started
    for target in targets:
        print(f"{target:<8} {fuzzer.counts[target]:>7} examples")
    total = fuzzer.counts.total()
    rate = total / seconds
    print(f"of what was asked, {ANSWERS['answered']} answered and {ANSWERS['refused']} refused")
    print(f"{total} examples in {seconds:.0f} s, {rate:.1f} a second; {len(found)} found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
