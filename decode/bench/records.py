"""What a bench found: a row for each decoder and token view, beside what a paper measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ...store.errors import UsageError
from ...store.views import TokenView
from ..config import Precision
from ..report.published import PublishedCost, published_cost
from .subjects import BenchSubject

Status = Literal["measured", "skipped", "out of memory", "failed"]


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What is to be measured.

    dim: width of the tokens.   batch_size: windows in a step.   repeats: timed turns of each
    decoder and work, after `warm_up` others.   max_bytes: memory that a decoder may take; None for
    what is free.   device, precision: as for `Compute.of`.
    """

    subjects: tuple[BenchSubject, ...]
    views: tuple[TokenView, ...]
    dim: int = 1024
    batch_size: int = 1
    repeats: int = 5
    warm_up: int = 1
    device: str = "auto"
    precision: Precision = "auto"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        least = {"dim": 1, "batch_size": 1, "repeats": 1, "warm_up": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is {getattr(self, name)}, expected at least {minimum}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UsageError(f"--max-memory is {self.max_bytes} bytes, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kind of work. seconds: the median over turns of one call; cpu_seconds: the same of all
    threads together. peak_bytes: above what the process held before; reserved_bytes: by a GPU's
    allocator."""

    seconds: float
    cpu_seconds: float
    samples_per_second: float
    peak_bytes: int
    reserved_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One decoder at one token view.

    status, reason: why something is not measured; a forward pass may be there nonetheless.
    """

    subject: BenchSubject
    view: TokenView
    num_tokens: int
    status: Status
    reason: str = ""
    num_parameters: int | None = None
    forward: Cost | None = None
    train: Cost | None = None

    @property
    def paper(self) -> PublishedCost | None:
        """What the paper has for this decoder at so many tokens, whatever our options are."""
        return published_cost(self.subject.name, self.num_tokens)

    def to_json(self) -> dict[str, Any]:
        """Flat but for the costs; the paper's figures with the ratio of ours to them."""
        paper = self.paper
        return {
            "decoder": self.subject.label,
            "name": self.subject.name,
            "options": self.subject.options,
            "tokens": str(self.view),
            "num_tokens": self.num_tokens,
            "num_parameters": self.num_parameters,
            "status": self.status,
            "reason": self.reason,
            "forward": None if self.forward is None else asdict(self.forward),
            "train": None if self.train is None else asdict(self.train),
            "paper": None if paper is None else asdict(paper),
            "over_paper": self.over_paper(),
        }

    def over_paper(self) -> dict[str, float] | None:
        """Ours divided by the paper's: our training step, on another machine than theirs."""
        if self.paper is None or self.train is None:
            return None
        return {
            "samples_per_second": self.train.samples_per_second / self.paper.samples_per_second,
            "memory": self.train.peak_bytes / (1e9 * self.paper.gigabytes),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`row` beside the first decoder at the same tokens: how many times it is as fast, and how many
    times as much memory `row` takes. paper_*: the same from the paper's figures."""

    row: BenchRow
    against: BenchRow
    forward_speed: float
    train_speed: float
    forward_memory: float | None
    train_memory: float | None
    paper_speed: float | None
    paper_memory: float | None

    def to_json(self) -> dict[str, Any]:
        ratios = (
            "forward_speed",
            "train_speed",
            "forward_memory",
            "train_memory",
            "paper_speed",
            "paper_memory",
        )
        return {
            "decoder": self.row.subject.label,
            "against": self.against.subject.label,
            "tokens": str(self.row.view),
            **{name: getattr(self, name) for name in ratios},
        }


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """All rows, by view and in it by decoder. precision, device: those that were used. machine: as
    the measuring processes say; empty if none could begin."""

    request: BenchRequest
    device: str
    precision: Precision
    machine: Mapping[str, Any]
    rows: tuple[BenchRow, ...]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every measured row beside the first decoder at the same tokens."""
        return tuple(self._compare())

    def _compare(self) -> Iterator[Comparison]:
        first = self.request.subjects[0]
        heads = {row.view: row for row in self.rows if row.subject == first}
        for row in self.rows:
            head = heads[row.view]
            if row is not head and (found := _comparison(row, head)) is not None:
                yield found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        request = self.request
        return {
            "machine": dict(self.machine),
            "device": self.device,
            "precision": self.precision,
            "dim": request.dim,
            "batch_size": request.batch_size,
            "repeats": request.repeats,
            "warm_up": request.warm_up,
            "max_bytes": request.max_bytes,
            "rows": [row.to_json() for row in self.rows],
            "comparisons": [each.to_json() for each in self.comparisons],
        }


def _comparison(row: BenchRow, head: BenchRow) -> Comparison | None:
    if row.forward is None or row.train is None or head.forward is None or head.train is None:
        return None
    both = row.paper, head.paper
    speed = memory = None
    if both[0] is not None and both[1] is not None and both[0] != both[1]:
        speed = both[1].samples_per_second / both[0].samples_per_second
        memory = both[0].gigabytes / both[1].gigabytes
    return Comparison(
        row=row,
        against=head,
        forward_speed=row.forward.seconds / head.forward.seconds,
        train_speed=row.train.seconds / head.train.seconds,
        forward_memory=_ratio(row.forward.peak_bytes, head.forward.peak_bytes),
        train_memory=_ratio(row.train.peak_bytes, head.train.peak_bytes),
        paper_speed=speed,
        paper_memory=memory,
    )


def _ratio(over: float, under: float) -> float | None:
    return over / under if under else None
