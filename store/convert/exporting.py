"""Write a cache's tokens as plain files that other tools read: `vis4mer cache export`.

    export_tokens(open_cache("lvu.zarr"), "features", file_format="npy", tokens="14x14+cls")

One array of (T, S, D) a video, prefix tokens first, then the patches row by row, and `index.csv`,
which says whose each is. Files are whole or absent; a folder that was begun is gone on with.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import quantise
from ..cache import Cache
from ..errors import CacheFormatError, DamagedEntryError, UsageError, Vis4merError, exit_code_of
from ..files import (
    JSON,
    held_alone,
    is_temporary,
    make_directory,
    read_sealed,
    remove_unfinished,
    seal,
    storage_errors,
    write_atomic,
)
from ..records import EntryRecord
from ..remote.urls import refuse_address
from ..spec import CacheSpec
from ..tasks import Split
from ..views import TokenView
from ..wording import first_line
from .arrays import OnProgress, RefusedArrayError, block_bounds
from .names import FileNames, IndexRow
from .targets import FileFolder, Hdf5Target, Target

ExportFormat = Literal["npy", "h5", "safetensors"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("npy", "h5", "safetensors")
MARKER = "export.json"
LOCK = "export.lock"
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ExportFailure:
    """A video that could not be written, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What a run of `export_tokens` did. missing: ids that the task names and the cache lacks.

    dtype: of the values written, which is not `stored_dtype` where the format lacks that.
    """

    folder: Path
    file_format: ExportFormat
    exported: tuple[str, ...]
    already_there: int
    failures: tuple[ExportFailure, ...]
    missing: tuple[str, ...]
    left: int
    num_bytes: int
    seconds: float
    interrupted: bool
    stored_dtype: str
    dtype: str

    @property
    def exit_code(self) -> int:
        """0 when all that was asked for is there, 3 when some is not, 1 when nothing is or the run
        was stopped."""
        done = bool(self.exported or self.already_there)
        return exit_code_of(failed=self.failures, done=done, interrupted=self.interrupted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "exit_code": self.exit_code}


def export_tokens(
    cache: Cache,
    folder: str | Path,
    *,
    file_format: ExportFormat,
    tokens: str | None = None,
    task: str | None = None,
    split: Split | None = None,
    ids: Sequence[str] | None = None,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
) -> ExportSummary:
    """Write videos to `folder`, which is made, or goes on with an earlier export of the same kind.

    tokens: a view without a number of frames, such as 14x14+cls; default every prefix token and the
    largest patch grid. task, split, ids: a part of the videos. float16 stays float16, bfloat16 does
    in safetensors and is float32 elsewhere, int8 becomes float32.

    Raises UsageError for a request that cannot be met, a folder of other files among them, and
    EntryNotFoundError for an id that is not there; StorageError when the folder refuses.
    """
    if file_format not in EXPORT_FORMATS:
        raise UsageError(f"format {file_format!r}: expected one of {', '.join(EXPORT_FORMATS)}")
    refuse_address(str(folder), what="an export ends in")
    selection = Selection.of(cache.spec, tokens)
    wanted, missing = _choose(cache, task=task, split=split, ids=ids)
    root = Path(folder)
    about = _about(cache.spec, file_format, tokens)
    dtype = _written_dtype(cache.spec, file_format)
    started = time.monotonic()
    with _prepared(root, about), _open_target(root, file_format, dtype, about) as target:
        run = _Export(cache, target, selection, dtype)
        for number, entry_id in enumerate(wanted):
            if stop is not None and stop.is_set():
                break
            if progress is not None:
                progress(number, len(wanted), entry_id)
            run.take(entry_id)
    left = len(wanted) - len(run.exported) - run.already_there - len(run.failures)
    return ExportSummary(
        folder=root,
        file_format=file_format,
        exported=tuple(run.exported),
        already_there=run.already_there,
        failures=tuple(run.failures),
        missing=tuple(missing),
        left=left,
        num_bytes=run.num_bytes,
        seconds=time.monotonic() - started,
        interrupted=left > 0,
        stored_dtype=cache.spec.stored_dtype,
        dtype=dtype,
    )


class _Export:
    """One run: video after video into a target."""

    def __init__(self, cache: Cache, target: Target, selection: Selection, dtype: str) -> None:
        self._cache = cache
        self._target = target
        self._selection = selection
        self._dtype = dtype
        self._done = target.finished()
        self._names = FileNames(target.name_of(row.file) for row in self._done.values())
        self.exported: list[str] = []
        self.failures: list[ExportFailure] = []
        self.already_there = 0
        self.num_bytes = 0

    def take(self, entry_id: str) -> None:
        """Write a video, unless this very commit of it is there."""
        try:
            record = self._cache.record(entry_id)
            earlier = self._done.get(entry_id)
            if earlier is not None and earlier.attempt == record.attempt:
                self.already_there += 1
                return
            self._write(record, earlier)
        except (DamagedEntryError, CacheFormatError, RefusedArrayError) as error:
            self.failures.append(ExportFailure(id=entry_id, reason=first_line(error)))

    def _write(self, record: EntryRecord, earlier: IndexRow | None) -> None:
        if earlier is not None:
            name = self._target.name_of(earlier.file)
        else:
            name = self._names.choose(record.id)
        shape = self._selection.shape(self._cache.spec, record)
        blocks = _blocks(self._cache, record, self._selection, self._dtype)
        self._target.write(name, shape, blocks, record)
        self.exported.append(record.id)
        self.num_bytes += math.prod(shape) * (2 if self._dtype.endswith("16") else 4)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tokens of a frame: a view, or `view` None for all prefix tokens and the patches."""

    view: TokenView | None
    prefix: int
    grid: tuple[int, int] | None

    @classmethod
    def of(cls, spec: CacheSpec, tokens: str | None) -> Selection:
        if tokens is not None:
            view = TokenView.parse(tokens)
            if view.frames is not None:
                raise UsageError(
                    f"token view {view}: all frames of a video are exported; leave the "
                    f"{view.frames}x out"
                )
            view.require(spec)
            if view.selection is not None:
                raise UsageError(
                    f"token view {view}: whole grids are exported; leave @{view.selection} out"
                )
            return cls(view=view, prefix=int(view.cls), grid=view.grid)
        grids = [grid for array in spec.arrays if (grid := spec.array_grid(array)) is not None]
        return cls(
            view=None,
            prefix=spec.num_prefix if "prefix" in spec.arrays else 0,
            grid=max(grids, key=lambda grid: grid[0] * grid[1], default=None),
        )

    def shape(self, spec: CacheSpec, record: EntryRecord) -> tuple[int, int, int]:
        """(T, S, D) of a video."""
        patches = self.grid[0] * self.grid[1] if self.grid else 0
        return (record.num_frames, self.prefix + patches, spec.dim)

    def read(self, cache: Cache, entry_id: str, frames: range) -> NDArray[Any]:
        """Tokens of some frames: (t, S, D), prefix tokens first."""
        parts: list[NDArray[Any]] = []
        if self.prefix:
            parts.append(cache.read(entry_id, "prefix", frames)[:, : self.prefix])  # t p D
        if self.grid is not None:
            patches = cache.read_view(entry_id, TokenView(grid=self.grid), frames).patch
            if patches is not None:
                parts.append(patches.reshape(len(frames), -1, patches.shape[-1]))  # t h·w D
        return np.concatenate(parts, axis=1)


def _blocks(
    cache: Cache, record: EntryRecord, selection: Selection, dtype: str
) -> Iterator[NDArray[Any]]:
    """A video's tokens in the type that is written: (t, S, D) after (t, S, D)."""
    _, tokens, dim = selection.shape(cache.spec, record)
    frames = max(1, _BLOCK_BYTES // (4 * tokens * dim))
    for start, stop in block_bounds(record.num_frames, frames=frames):
        values = selection.read(cache, record.id, range(start, stop))
        yield quantise.encode_bfloat16(values) if dtype == "bfloat16" else values


def _choose(
    cache: Cache, *, task: str | None, split: Split | None, ids: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Ids to export, sorted, and those that the task names and the cache lacks."""
    if split is not None and task is None:
        raise UsageError(f"--split {split} is a part of a task; give --task DATASET/TASK too")
    chosen = set(cache.ids())
    missing: set[str] = set()
    if task is not None:
        table = cache.task(task)
        named = {row.id for row in (table.rows if split is None else table.split(split))}
        missing = named - chosen
        chosen &= named
    if ids is not None:
        for entry_id in ids:
            cache.record(entry_id)  # an id that is asked for by name must be there
        chosen &= set(ids)
        missing &= set(ids)
    if not chosen:
        raise UsageError(f"{cache.name} holds no video that was asked for; see `vis4mer cache ls`")
    return sorted(chosen), sorted(missing)


def _written_dtype(spec: CacheSpec, file_format: ExportFormat) -> str:
    if spec.stored_dtype == "bfloat16" and file_format == "safetensors":
        return "bfloat16"
    return "float16" if spec.stored_dtype == "float16" else "float32"


def _open_target(root: Path, file_format: ExportFormat, dtype: str, about: JSON) -> Target:
    if file_format == "h5":
        return Hdf5Target(root, dtype, about)
    return FileFolder(root, file_format, dtype)


def _about(spec: CacheSpec, file_format: ExportFormat, tokens: str | None) -> JSON:
    """What an export is: two of the same kind may share a folder."""
    return {
        "format": 1,
        "file_format": file_format,
        "tokens": tokens or "all",
        "fingerprint": spec.fingerprint,
        "cache": spec.to_json(),
    }


@contextlib.contextmanager
def _prepared(root: Path, about: JSON) -> Iterator[None]:
    """The folder, new or of an earlier export of the same kind, which no other process writes to.

    Nothing, not even a lock, is written into a folder of other things.
    """
    with storage_errors(root):
        if root.exists() and not root.is_dir():
            raise UsageError(f"--to {root} is a file, expected a folder")
        make_directory(root)
    _require_same_kind(root, about)
    busy = f"--to {root}: another export is writing there; wait for it, or choose another folder"
    with held_alone(root / LOCK, otherwise=busy):
        if not _require_same_kind(root, about):  # again: another may have come before the lock
            write_atomic(root / MARKER, seal(about))
        remove_unfinished(root)
        yield


def _require_same_kind(root: Path, about: JSON) -> bool:
    """Is it an earlier export? UsageError for one of another kind, and for other files."""
    try:
        found = read_sealed(root / MARKER)
    except FileNotFoundError:
        if any(not is_temporary(path.name) and path.name != LOCK for path in root.iterdir()):
            raise UsageError(
                f"--to {root} is not empty and no earlier export; choose another folder"
            ) from None
        return False
    except Vis4merError as error:
        raise UsageError(f"--to {root}: {first_line(error)}; choose another folder") from error
    different = [
        f"{key} {found.get(key)!r:.40} there, {about[key]!r} asked"
        for key in ("format", "file_format", "tokens", "fingerprint")
        if found.get(key) != about[key]
    ]
    if different:
        raise UsageError(
            f"--to {root} is an export of another kind ({'; '.join(different)}); choose another "
            "folder"
        )
    return True
