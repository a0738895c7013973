"""Whether a run may train in a directory: a new one, or its own, and never another's.

Compares what a run directory says of itself with what is asked; knows no model and no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...store.errors import FieldDifference, UsageError
from ...store.files import is_temporary
from ...store.spec import require_same
from ..config import config_differences
from ..runs.run import Run, RunAbout, open_run, write_about


def require_own_directory(folder: Path) -> None:
    """Nothing is written, not even a lock, into a directory that holds something else."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return
    names = (p.name for p in folder.iterdir())
    strange = sorted(n for n in names if n != "run.lock" and not is_temporary(n))
    if strange:
        raise UsageError(
            f"--run {folder} exists and is no run directory (it holds {strange[0]}); "
            "choose a new or empty directory"
        )


def begin_run(folder: Path, about: RunAbout) -> Run:
    """The run directory to train in; UsageError, with what to do, when it cannot be this one."""
    if not (folder / "config.json").exists():
        return write_about(folder, about)
    stored = open_run(folder)
    _require_same_run(stored.about, about, folder)
    if stored.results() is None and not stored.last.exists():
        _require_no_epoch(stored)
    return stored


def _require_no_epoch(stored: Run) -> None:
    """Without its checkpoint a run begins again: only one that has nothing to lose."""
    # A kill before the first checkpoint can leave the line of the first epoch.
    if stored.best.exists() or len(stored.epochs()) > 1:
        raise UsageError(
            f"--run {stored.path} has lost its {stored.last.name}, without which it cannot go on "
            "and would begin again; put that file back or choose another --run"
        )


def _require_same_run(stored: RunAbout, wanted: RunAbout, folder: Path) -> None:
    """A run goes on only as what it was."""
    require_no_difference(config_differences(stored.train, wanted.train), folder, kind="run")
    require_same(wanted.spec, stored.spec, name="the cache")
    if stored.data_sha256 != wanted.data_sha256:
        raise UsageError(
            f"--run {folder}: the videos or labels of {stored.train.task} changed since it was "
            f"begun ({_counts(stored)}; now {_counts(wanted)}); choose another --run"
        )


def require_no_difference(
    differences: Sequence[FieldDifference], folder: Path, *, kind: str
) -> None:
    """UsageError where a directory holds a run, of this kind in words, of another config."""
    if differences:
        listed = "; ".join(f"{d.field}: run {d.stored}, asked {d.wanted}" for d in differences)
        raise UsageError(
            f"--run {folder} holds a {kind} of another config ({listed}); choose another --run, or "
            "the run's own config"
        )


def _counts(about: RunAbout) -> str:
    return ", ".join(f"{count} {split}" for split, count in about.num_videos.items())
