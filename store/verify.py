"""Checking a cache against its records.

quick: every object is there, is a plain file and has the recorded size. full: also every byte, by
crc32c of each object and SHA-256 of each array's values; anything missing or torn is reported with
its video, and reading goes on. What a cache says about itself (groups, records, task tables, the
catalog, failures) is read either way.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .backing import Backing
from .cache import Cache
from .catalog import CATALOG, MAX_CATALOG_BYTES, parse_catalog
from .errors import CacheFormatError
from .failures import FailureRecord
from .files import link_above, linked, parse_json, read_json_bytes, read_sealed_in
from .layout import MAX_SHARD_FRAMES
from .reader import read_frames
from .records import RECORDS, EntryRecord, record_path
from .remote.place import RemoteError

_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EIO)
VerifyMode = Literal["quick", "full"]
# Of a group's metadata; Zarr readers refuse a field that they do not know.
_GROUP_FIELDS = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as its record says. `id` is None for what belongs to no entry; `path`
    is the object of an entry, or the file relative to the cache, where it is one that is at fault.
    is_damage: False where the system refused to read it (permission, a file server that is away),
    which says nothing of the bytes.
    """

    id: str | None
    reason: str
    path: str | None = None
    is_damage: bool = True


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what was found. num_bytes: of the entries whose records can be read."""

    mode: VerifyMode
    num_entries: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_cache(
    cache: Cache, mode: VerifyMode = "quick", *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check every entry and task table. progress(done, total) is called after each entry.

    The records themselves are read, not the catalog, which only repeats them.
    """
    if cache.is_remote:
        from .remote.verifying import verify_remote

        return verify_remote(cache, mode, progress=progress)
    paths = record_files(cache)
    problems = [
        *_table_problems(cache),
        *_catalog_problems(cache.path),
        *_failure_problems(cache.path),
    ]
    num_entries = num_bytes = 0
    loose: set[str] = set()  # fans of entries that Zarr readers find
    for done, path in enumerate(paths, start=1):
        try:
            record = read_record(path, cache)
            if record.pack is None:
                loose.add(path.parent.name)
            num_entries += 1
            num_bytes += record.num_bytes
            problems += entry_problems(cache.backing, record, mode)
        except FileNotFoundError:  # removed a moment ago
            pass
        except (CacheFormatError, OSError) as error:
            problems.append(_at_fault(None, cache.path, path, str(error)))
        if progress is not None:
            progress(done, len(paths))
    problems += _group_problems(cache.path, sorted(loose))
    return VerifyReport(
        mode=mode, num_entries=num_entries, num_bytes=num_bytes, problems=tuple(problems)
    )


def record_files(cache: Cache) -> list[Path]:
    """The file of every record, sorted."""
    return sorted((cache.path / RECORDS).glob("*/*.json"))


def read_record(path: Path, cache: Cache) -> EntryRecord:
    """The record in a file; CacheFormatError when it does not check, or stands in a wrong place."""
    if path.is_symlink():  # which reading passes by
        raise CacheFormatError(f"{path}: is a link, expected a file")
    content = read_sealed_in(cache.path, path)
    record = EntryRecord.from_json(content, spec=cache.spec, name=str(path))
    if path != record_path(cache.path, record.key):
        raise CacheFormatError(
            f"{path}: is the record of video {record.id!r}, under another's name"
        )
    return record


def _group_problems(root: Path, fans: list[str]) -> Iterator[Problem]:
    """A plain Zarr reader finds no entry below a folder that is no group."""
    needed = {"videos", *(f"videos/{name}" for name in fans)} if fans else set()
    present = [*root.glob("videos/zarr.json"), *root.glob("videos/*/zarr.json")]
    there = {path.parent.relative_to(root).as_posix() for path in present}
    for folder in (".", *sorted(needed | there)):
        group = root / folder / "zarr.json"
        try:
            require_group(root, group)
        except FileNotFoundError:
            reason = f"{group}: missing, so that plain Zarr readers see no entry below it"
            yield _at_fault(None, root, group, reason)
        except (CacheFormatError, OSError) as error:
            yield _at_fault(None, root, group, str(error))


def require_group(root: Path, path: Path) -> None:
    """CacheFormatError unless a file is the metadata of a Zarr group, as its readers take it."""
    if (link := link_above(path, root)) is not None:
        raise CacheFormatError(f"{path}: {linked(link)}")
    content = parse_json(read_json_bytes(path), name=str(path))
    kind = (content.get("zarr_format"), content.get("node_type"))
    unknown = sorted(set(content) - _GROUP_FIELDS)
    if kind != (3, "group") or unknown or not isinstance(content.get("attributes"), dict):
        raise CacheFormatError(
            f"{path}: is no group that Zarr readers take (format and kind {kind!r:.80}, other "
            f"fields {unknown!r:.80}); expected a group of format 3"
        )


def _table_problems(cache: Cache) -> Iterator[Problem]:
    for reference in cache.tasks():
        try:
            cache.task(reference)
        except (CacheFormatError, OSError, ValueError) as error:
            yield Problem(id=None, reason=str(error), path=f"tasks/{reference}.json")


def _catalog_problems(root: Path) -> Iterator[Problem]:
    """A catalog that is not to be read slows reading here down, and stops it far away."""
    path = root / CATALOG
    try:
        parse_catalog(read_json_bytes(path, max_bytes=MAX_CATALOG_BYTES), name=str(path))
    except FileNotFoundError:
        pass
    except (CacheFormatError, OSError) as error:
        yield _at_fault(None, root, path, str(error))


def _failure_problems(root: Path) -> Iterator[Problem]:
    for path in sorted((root / "failures").glob("*/*.json")):
        try:
            FailureRecord.from_json(read_sealed_in(root, path), name=str(path))
        except FileNotFoundError:  # the video has just succeeded
            pass
        except (CacheFormatError, OSError) as error:
            yield _at_fault(None, root, path, str(error))


def _at_fault(entry_id: str | None, root: Path, path: Path, reason: str) -> Problem:
    return Problem(id=entry_id, reason=reason, path=path.relative_to(root).as_posix())


def entry_problems(backing: Backing, record: EntryRecord, mode: VerifyMode) -> Iterator[Problem]:
    """What of one entry is not as its record says."""
    sound = True
    for path, stored in record.objects.items():
        try:
            backing.require(record, path)
            if mode == "full":
                with backing.open(record, path) as opened:
                    opened.require_crc32c(stored.crc32c)
        except OSError as error:
            _refuse_remote(error)
            sound = False
            yield Problem(
                id=record.id, reason=str(error), path=path, is_damage=not is_refusal(error)
            )
    if mode == "full" and sound:
        yield from _value_problems(backing, record)


def _value_problems(backing: Backing, record: EntryRecord) -> Iterator[Problem]:
    """Read every array as a user would and compare the SHA-256 of its values."""
    for array, layout in record.arrays.items():
        digest = hashlib.sha256()
        try:
            for start in range(0, layout.shape[0], MAX_SHARD_FRAMES):
                frames = np.arange(start, min(start + MAX_SHARD_FRAMES, layout.shape[0]))
                digest.update(read_frames(backing, record, array, frames).data)
        except OSError as error:
            _refuse_remote(error)
            path, damage = f"{array}/zarr.json", not is_refusal(error)
            yield Problem(id=record.id, reason=str(error), path=path, is_damage=damage)
            continue
        if digest.hexdigest() != layout.sha256:
            reason = f"array {array} of video {record.id!r}: values are not those recorded"
            yield Problem(id=record.id, reason=reason, path=f"{array}/c")


def is_refusal(error: BaseException) -> bool:
    """Could something not be read for a reason that says nothing of the bytes? What is missing, and
    what the disk itself cannot give, is damage."""
    cause = error if getattr(error, "errno", None) is not None else error.__cause__
    return isinstance(cause, OSError) and cause.errno not in (None, *_LOST)


def _refuse_remote(error: OSError) -> None:
    """A place that fails says nothing of the entry."""
    if isinstance(error, RemoteError):
        raise error
