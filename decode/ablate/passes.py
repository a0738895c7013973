"""One pass of a sweep, on one device, and what is told of it.

A pass that fails as a whole, because one of its runs takes more memory than there is, is tried run
by run, so that the others go on from wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ..config import TrainConfig
from ..train import train_decoders
from ..training.progress import OnProgress, TrainProgress

Job = tuple[TrainConfig, Path]


@dataclass(frozen=True, kw_only=True)
class PassDone:
    """Some runs of a pass have come to their end. failed: by run directory, why; the others have
    their results."""

    runs: tuple[Path, ...]
    failed: Mapping[Path, str]


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """What a device does, in words: for whoever shows it. lasting: worth a line that stays."""

    device: str
    text: str
    lasting: bool = False


OnDone = Callable[[PassDone], None]
OnText = Callable[[SweepProgress], None]


def train_pass(
    cache: Cache, jobs: Sequence[Job], *, progress: OnProgress, processes: int = 1
) -> Iterator[PassDone]:
    """Train some runs together, or, where that fails as a whole, each alone. processes: as in
    `train_decoders`."""
    try:
        outcomes = train_decoders(cache, jobs, progress=progress, processes=processes)
    except (Vis4merError, RuntimeError, MemoryError, OSError) as error:
        reason = reason_of(error)
    else:
        failed = {o.run: reason_of(o.error) for o in outcomes if o.error is not None}
        yield PassDone(runs=tuple(run for _, run in jobs), failed=failed)
        return
    # Out of the handler, whose error holds on to the decoders of the pass.
    if len(jobs) == 1:
        yield PassDone(runs=(jobs[0][1],), failed={jobs[0][1]: reason})
        return
    for job in jobs:
        yield from train_pass(cache, [job], progress=progress, processes=processes)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    said = " ".join(str(error).split()) or "it says nothing"
    return said if isinstance(error, Vis4merError) else f"{type(error).__name__}: {said[:300]}"


class Teller:
    """Progress of one pass in words, as it comes from `train_decoders`."""

    def __init__(self, on_text: OnText, *, device: str, place: tuple[int, int]) -> None:
        self._on_text = on_text
        self._device = device
        self._where = f"pass {place[0]}/{place[1]}"
        self._noted: set[str] = set()

    def __call__(self, progress: TrainProgress) -> None:
        if progress.note is not None and progress.note not in self._noted:
            self._noted.add(progress.note)
            self._say(progress.note, lasting=True)
        if progress.total and progress.finished is None:
            words = {"train": "training", "validate": "validating", "evaluate": "judging"}
            runs = f"{progress.runs} runs" if progress.runs > 1 else "1 run"
            self._say(
                f"{self._where} of {runs}, epoch {progress.epoch}/{progress.epochs} "
                f"{words[progress.phase]} {progress.done}/{progress.total}"
            )

    def _say(self, text: str, *, lasting: bool = False) -> None:
        self._on_text(SweepProgress(device=self._device, text=text, lasting=lasting))
