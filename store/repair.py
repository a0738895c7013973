"""Mending a cache: what is bad is taken from a sound copy, or let go; what is sound stays.

    repair_cache(open_cache("lvu.zarr"), mirrors=[open_cache("/mnt/copy/lvu.zarr")])

Every byte is read (`verify` in full). For each entry that is not as its record says, the first of
these that is possible:

    its metadata alone is bad    written anew, when it has the recorded checksum then
    its record alone is bad      put back from the catalog or from where it was moved to, when all
                                 its objects are sound
    a mirror has the same values copied from there, each byte checked on the way
    a pooled copy alone is bad   dropped, the other arrays stay
    none of these                the record goes and a failure says why, so that `extract` makes the
                                 entry again

A lost `zarr.json` is written anew where a mirror shows what it said (`lost_spec`).

Each step is one rename, so a process killed at any moment leaves a cache that is better than before
and the same command goes on. Others may extract meanwhile: what is to be touched is looked at again
first. Nothing is let go because it, or a mirror, cannot be read at the moment. Knows no videos: see
`reencode` for extracting again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cache import Cache
from .catalog import CATALOG
from .directory import spec_bytes
from .mending.entries import EntryMender
from .mending.files import FileMender
from .mending.lost_spec import what_is_lost
from .mending.steps import Mending, RepairStep
from .replacement import rearranging
from .spec import require_same, require_writable
from .verify import VerifyReport, verify_cache


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair found and did, or would do. num_entries: whose records could be read. unfit:
    mirrors that hold none of the entries that were let go."""

    num_entries: int
    steps: tuple[RepairStep, ...]
    dry_run: bool
    unfit: tuple[str, ...] = ()

    @property
    def dropped(self) -> tuple[RepairStep, ...]:
        """The entries that are to be extracted again."""
        return tuple(step for step in self.steps if step.deed == "dropped")

    @property
    def lost_copies(self) -> tuple[str, ...]:
        """The pooled copies that some entries have no more, and that `pool` makes."""
        return tuple(sorted({copy for step in self.steps for copy in step.copies}))

    @property
    def exit_code(self) -> int:
        """0 when the cache is whole now, 3 when something is lost or was left as it is."""
        return 3 if any(step.deed in ("dropped", "left") for step in self.steps) else 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def repair_cache(
    cache: Cache,
    *,
    mirrors: Sequence[Cache] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Find what is bad and mend it, as the module says. dry_run: only say what would be done.

    mirrors: caches of the same fingerprint that may hold sound copies; the first that has one is
    used. progress(done, total) is called after each entry that is checked.

    Raises FingerprintError for a mirror of other settings, CacheFormatError for a cache of a newer
    version, StorageError when it cannot be written, RemoteError or Vis4merError when a mirror
    cannot be read, Vis4merError while another process rearranges it.
    """
    require_writable(cache.spec, cache.spec, name=str(cache.path))
    for mirror in mirrors:
        require_same(mirror.spec, cache.spec, name=mirror.name, other=str(cache.path))
    with contextlib.nullcontext() if dry_run else rearranging(cache.path):
        cache.refresh()
        report = verify_cache(cache, "full", progress=progress)
        run = Mending(cache, mirrors, dry_run)
        lost = what_is_lost(cache)
        if lost is not None and run.write(Path("zarr.json"), spec_bytes(cache.spec)):
            run.say(None, "rebuilt", f"the cache's own group: {lost}")
            problems = tuple(p for p in report.problems if p.path != "zarr.json")
            report = replace(report, problems=problems)
        if not report.ok:
            mend_all(run, report)
    return RepairReport(
        num_entries=report.num_entries,
        steps=tuple(run.steps),
        dry_run=dry_run,
        unfit=tuple(mirror.name for mirror in mirrors if _holds_none(mirror, run.steps)),
    )


def _holds_none(mirror: Cache, steps: Sequence[RepairStep]) -> bool:
    """Whether a mirror has nothing of the entries that were let go, if there are any."""
    lost = {step.id for step in steps if step.deed == "dropped"}
    return bool(lost) and lost.isdisjoint(mirror.readable_ids()[0])


def mend_all(run: Mending, report: VerifyReport) -> None:
    """Mend what a full check has found; the catalog comes last."""
    files = FileMender(run)
    for problem in report.problems:
        if problem.id is None and problem.path != CATALOG:
            files.mend(Path(problem.path or "."), problem.reason)
    run.cache.refresh()
    entries = EntryMender(run)
    for entry_id in dict.fromkeys(p.id for p in report.problems if p.id is not None):
        entries.mend(entry_id)
    for problem in report.problems:
        if problem.path == CATALOG and problem.id is None:
            run.say(None, "rebuilt", f"the catalog, from the records: {problem.reason}")
    if not run.dry_run and any(step.deed != "left" for step in run.steps):
        run.cache.write_catalog()
