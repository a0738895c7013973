"""What decoders say of every window of some videos, each timeline read once for all of them.

Any number of runs, each with one decoder or more and videos of its own, look at the same reads.
What a decoder is given depends on its own videos alone: they are gone through in the order of their
ids, and its batches are its own, so that a run judged among others gets the very same outputs.

A decoder that carries a memory is shown one window at a time, as `walk` says.

The price is memory: beside the timelines being read, fewer than `batch_size` windows wait on the
device for each distinct set of videos and batch size. Seeds and decoders of one task share theirs;
nine tasks hold up to nine batches. Looking at a part of a batch to make room would change outputs
in their last bits. Knows no label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ...store.windows import Window
from ..data.batch import TokenBatch
from ..data.clips import collate
from ..data.plan import Stretch, WindowPlan
from ..data.preload import Held
from ..data.timelines import Timelines, WindowClip
from ..decoders import Decoder
from ..device import Compute
from .walk import Walk, require_walks

OnVideo = Callable[[int, int], None]  # videos judged, videos in all
_Place = tuple[str, int, int]  # a stretch as a sortable key: id, start, stop


@dataclass(frozen=True, kw_only=True)
class JudgedWindow:
    """What a decoder says of one window: outputs float64 (n_out,), before any softmax."""

    window: Window
    outputs: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """windows[i] are those of stretch i, in order; never empty. bytes_read: of tokens, the run's
    share where others looked at the same reads."""

    windows: tuple[tuple[JudgedWindow, ...], ...]
    bytes_read: int

    def outputs(self, stretch: int) -> NDArray[np.float64]:
        """Those of all windows of a stretch: (W, n_out)."""
        return np.stack([window.outputs for window in self.windows[stretch]])


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run to judge: its decoders, in evaluation mode, and the stretches they are judged on.

    shuffle_frames: of each window, in an order that its video and its place in it decide.
    carries_memory: from window to window, as `TrainConfig.lanes` says; all models are then decoders
    that can.
    """

    models: Sequence[nn.Module]
    stretches: Sequence[Stretch]
    batch_size: int
    shuffle_frames: bool = False
    carries_memory: bool = False


class NotFiniteError(Vis4merError, ArithmeticError):
    """A decoder's output is no finite number."""


Verdict = Judged | NotFiniteError


@dataclass(kw_only=True)
class _Audience:
    """Candidates that are given the same batches: the same stretches, batch size and order.

    stretches: by number, as all of them are judged.
    """

    stretches: frozenset[int]
    batch_size: int
    shuffle_frames: bool
    carries_memory: bool
    models: list[nn.Module] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)  # by model, where a memory is carried
    waiting: list[WindowClip] = field(default_factory=list)
    seen: list[tuple[int, Window]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)  # by model; stay on the device

    @property
    def key(self) -> tuple[frozenset[int], int, bool, bool]:
        """What its candidates have in common."""
        return self.stretches, self.batch_size, self.shuffle_frames, self.carries_memory

    def add(self, models: Sequence[nn.Module]) -> range:
        """Take a candidate in; where its models are."""
        first = len(self.models)
        self.models += models
        self.outputs += [[] for _ in models]
        if self.carries_memory:
            self.walks += map(_walk, models)
        return range(first, len(self.models))

    def look(self, plan: WindowPlan, compute: Compute) -> None:
        """All models on what waits."""
        if not self.waiting:
            return
        batch = collate(
            [w.clip for w in self.waiting],
            compute.dtype,
            padded_frames=plan.padded_frames,
            shuffled_by=[w.key for w in self.waiting] if self.shuffle_frames else None,
        )
        with compute.autocast():
            for outputs, said in zip(self.outputs, self._said(batch), strict=True):
                outputs.append(said)
        self.seen += [(w.stretch, w.window) for w in self.waiting]
        self.waiting = []

    def _said(self, batch: TokenBatch) -> Iterator[Tensor]:
        """Outputs (B, n_out) of each model."""
        if not self.carries_memory:
            yield from (model(batch) for model in self.models)
            return
        [one] = self.waiting
        for walk in self.walks:
            yield walk.outputs(batch, stretch=one.stretch, window=one.window)


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """Where a candidate sits, and which of the audience's models are its own."""

    audience: _Audience
    models: range


def _walk(model: nn.Module) -> Walk:
    if not isinstance(model, Decoder):
        raise TypeError(f"{type(model).__name__} carries no memory, expected a Decoder")
    return Walk(model)


def judge_all(
    candidates: Sequence[Candidate],
    cache: Cache,
    plan: WindowPlan,
    compute: Compute,
    *,
    stride_seconds: float,
    workers: int,
    on_video: OnVideo | None = None,
    held: Held | None = None,
) -> list[tuple[Verdict, ...]]:
    """By candidate, what each of its models says of all windows of its stretches.

    held: videos in memory, of which nothing is read.

    A model whose outputs are not finite has an error in its place, and the others go on. UsageError
    where a memory is to be carried at a stride at which it cannot be.
    """
    if any(candidate.carries_memory for candidate in candidates):
        require_walks(plan, stride_seconds=stride_seconds)
    places = sorted({_place(s) for c in candidates for s in c.stretches})
    number = {place: i for i, place in enumerate(places)}
    timelines = Timelines(
        cache,
        [Stretch(id=i, extent=Window(start=start, stop=stop)) for i, start, stop in places],
        plan,
        stride_seconds=stride_seconds,
        workers=workers,
        device=compute.device,
        held=held,
    )
    seats = _seated(candidates, number)
    _show(timelines, seats, plan, compute, on_video=on_video, total=len(places))
    shares = _shares(timelines.bytes_by_stretch, candidates, number)
    return [
        tuple(_verdict(seat.audience, i, candidate, number, share) for i in seat.models)
        for candidate, seat, share in zip(candidates, seats, shares, strict=True)
    ]


def judge(
    model: nn.Module,
    cache: Cache,
    stretches: Sequence[Stretch],
    plan: WindowPlan,
    compute: Compute,
    *,
    stride_seconds: float,
    batch_size: int,
    workers: int,
    shuffle_frames: bool = False,
    carries_memory: bool = False,
    on_video: OnVideo | None = None,
) -> Judged:
    """Run one decoder over all windows of some stretches. NotFiniteError when an output is not."""
    candidate = Candidate(
        models=[model],
        stretches=stretches,
        batch_size=batch_size,
        shuffle_frames=shuffle_frames,
        carries_memory=carries_memory,
    )
    [[verdict]] = judge_all(
        [candidate],
        cache,
        plan,
        compute,
        stride_seconds=stride_seconds,
        workers=workers,
        on_video=on_video,
    )
    if isinstance(verdict, NotFiniteError):
        raise verdict
    return verdict


def _seated(candidates: Sequence[Candidate], number: dict[_Place, int]) -> list[_Seat]:
    """Every candidate among those that are given the same batches."""
    audiences: dict[tuple[frozenset[int], int, bool, bool], _Audience] = {}
    seats = []
    for candidate in candidates:
        audience = _Audience(
            stretches=frozenset(number[_place(s)] for s in candidate.stretches),
            batch_size=1 if candidate.carries_memory else candidate.batch_size,
            shuffle_frames=candidate.shuffle_frames,
            carries_memory=candidate.carries_memory,
        )
        audience = audiences.setdefault(audience.key, audience)
        seats.append(_Seat(audience=audience, models=audience.add(candidate.models)))
    return seats


def _show(
    timelines: Timelines,
    seats: Sequence[_Seat],
    plan: WindowPlan,
    compute: Compute,
    *,
    on_video: OnVideo | None,
    total: int,
) -> None:
    """Every window to everybody who listens to its stretch, in full batches."""
    everybody = {id(seat.audience): seat.audience for seat in seats}.values()
    listening: defaultdict[int, list[_Audience]] = defaultdict(list)
    for audience in everybody:
        for stretch in audience.stretches:
            listening[stretch].append(audience)
    models = {id(model): model for audience in everybody for model in audience.models}.values()
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    tell = on_video or (lambda _done, _total: None)
    with torch.inference_mode():
        for clip in timelines:
            for audience in listening[clip.stretch]:
                audience.waiting.append(clip)
                if len(audience.waiting) == audience.batch_size:
                    audience.look(plan, compute)
            tell(clip.stretch, total)
        for audience in everybody:
            audience.look(plan, compute)
    for model, was_training in zip(models, were_training, strict=True):
        model.train(was_training)
    tell(total, total)


def _verdict(
    audience: _Audience,
    model: int,
    candidate: Candidate,
    number: dict[_Place, int],
    bytes_read: int,
) -> Verdict:
    """What a model has said, stretch by stretch as the candidate lists them."""
    judged: defaultdict[int, list[JudgedWindow]] = defaultdict(list)
    values = _on_host(audience.outputs[model])  # ΣW n_out
    for (place, window), row in zip(audience.seen, values, strict=True):
        judged[place].append(JudgedWindow(window=window, outputs=row))
    windows = []
    for stretch in candidate.stretches:
        windows.append(tuple(judged[number[_place(stretch)]]))
        for said in windows[-1]:
            if not np.isfinite(said.outputs).all():
                return not_finite(stretch, said.outputs)
    return Judged(windows=tuple(windows), bytes_read=bytes_read)


def not_finite(stretch: Stretch, outputs: NDArray[np.float64]) -> NotFiniteError:
    """What is said of such outputs (n_out,) of one window."""
    return NotFiniteError(
        f"the decoder's output for video {stretch.id!r} is {outputs.tolist()}, expected finite "
        "numbers; training diverged, lower --set optimizer.lr"
    )


def _shares(
    num_bytes: Sequence[int], candidates: Sequence[Candidate], number: dict[_Place, int]
) -> list[int]:
    """The bytes of each timeline split between the candidates that looked at it."""
    users: defaultdict[int, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        for place in {_place(s) for s in candidate.stretches}:
            users[number[place]].append(i)
    shares = [0] * len(candidates)
    for stretch, count in enumerate(num_bytes):
        each, rest = divmod(count, len(users[stretch]))
        for k, user in enumerate(users[stretch]):
            shares[user] += each + (k < rest)
    return shares


def _place(stretch: Stretch) -> _Place:
    return stretch.id, stretch.extent.start, stretch.extent.stop


def _on_host(outputs: Sequence[Tensor]) -> NDArray[np.float64]:
    """All window outputs as float64 (W, n_out); one wait for the device."""
    if not outputs:
        return np.zeros((0, 0))
    return torch.cat(list(outputs)).double().cpu().numpy()
