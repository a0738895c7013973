"""Several processes that train one run: who is here, and how they sum, wait and fail together.

    torchrun --nproc-per-node 4 -m -- vis4mer train-decoder …

Everything of torch.distributed is in this file. There are two groups: gloo on the host, for what
processes tell each other, and for gradients NCCL where each has a GPU of its own, else gloo too.
Nothing that is sent is pickled.

Before anything is summed or sent, all meet: one small exchange on the host. A process that fails
meets the others as well, with its error, so that all of them end, wherever they were, and none
waits for one that is gone. There are no deadlines: judging may take hours on one of them.

Knows no model, no cache and no run directory.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from ...store.errors import UsageError, Vis4merError
from ...store.files import canonical_json
from ..rows import Rows, Share

_FOREVER = datetime.timedelta(days=365)
_MOST_TEXT = 4000  # characters of an error that are told


class OtherRankError(Vis4merError):
    """Another process has failed; its error in one line, and its exit code."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostRankError(Vis4merError):
    """Another process ended without a word."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a launcher such as torchrun has put this process.

    index: its number among `count`. local_index, local_count: among those of this machine.
    """

    index: int
    count: int
    local_index: int
    local_count: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """None unless a launcher has begun several; UsageError for numbers that are none."""
        found = {name: environment.get(name) for name in _VARIABLES}
        if found["WORLD_SIZE"] in (None, "1") or found["RANK"] is None:
            return None
        try:
            index, count = int(found["RANK"]), int(found["WORLD_SIZE"] or "")
            local_index = int(found["LOCAL_RANK"] or index)
            local_count = int(found["LOCAL_WORLD_SIZE"] or count)
        except ValueError as error:
            raise UsageError(
                f"RANK, WORLD_SIZE or LOCAL_RANK in the environment is no number ({error}); "
                "expected what torchrun sets"
            ) from error
        return cls(index=index, count=count, local_index=local_index, local_count=local_count)


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks | None]:
    """The processes that a launcher has begun with this one; None for one by itself.

    An error in any of them ends all: the first process raises the error itself, or OtherRankError
    with what another says; so does every other.
    """
    place = Place.of(os.environ)
    if place is None:
        yield None
        return
    _share_cores(place)
    with _lost_is_an_error():
        dist.init_process_group("gloo", timeout=_FOREVER)
    ranks = Ranks(place)
    try:
        with ranks.failing_together():
            yield ranks
    finally:
        dist.destroy_process_group()


def _share_cores(place: Place) -> None:
    """Each process of a machine takes its part of the cores."""
    # torchrun itself writes 1 where nobody has said anything; any other number is somebody's.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, _num_cores() // place.local_count))


def _num_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Ranks:
    """The processes of one training; every method is called by all of them, in the same order."""

    def __init__(self, place: Place) -> None:
        self.share = Share(index=place.index, count=place.count)
        self._place = place
        self._gradients: dist.ProcessGroup | None = None  # None: the group on the host

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which writes and speaks for all."""
        return self.share.index == 0

    # Devices -------------------------------------------------------------------------------------

    def agreed_device(self, about: Any, device: torch.device) -> torch.device:
        """As `use`; UsageError unless all processes are about the same, which is JSON."""
        digest = hashlib.sha256(canonical_json(about)).hexdigest()
        for number, other in enumerate(told := self.texts(digest)):
            if other != told[0]:
                raise UsageError(
                    f"the config, cache or versions of process {number} differ from those of "
                    "process 0; begin all of them with the same command, cache and installation"
                )
        return self.use(device)

    def use(self, device: torch.device) -> torch.device:
        """The device of this process, where `device` is asked of all: `cuda` is a GPU for each.

        Opens NCCL where each has a GPU of its own. UsageError where there are too few of them, or
        some processes have none.
        """
        if device.type == "cuda":
            index = self._place.local_index if device.index is None else device.index
            if index >= torch.cuda.device_count():
                raise UsageError(
                    f"device {device}: {self._place.local_count} processes on this machine, which "
                    f"has {torch.cuda.device_count()} GPUs; begin one for each GPU "
                    "(--nproc-per-node), or name one for all of them, such as --device cuda:0"
                )
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        devices = self.texts(f"{platform.node()} {device}")
        kinds = {text.rpartition(" ")[2].partition(":")[0] for text in devices}
        if len(kinds) > 1:
            raise UsageError(
                f"the processes have different devices ({', '.join(devices)}); expected all on "
                "CPUs, or all on GPUs; name one with --device"
            )
        apart = len(set(devices)) == len(devices)
        if kinds == {"cuda"} and apart and dist.is_nccl_available():
            self._gradients = dist.new_group(backend="nccl", timeout=_FOREVER)
        return device

    # Sums ----------------------------------------------------------------------------------------

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients of all processes in place, and return the sum of `loss` ().

        A parameter that took part in no process keeps no gradient, so that no optimizer moves it.
        Where all agree on which took part, as nearly always, nobody waits for a device.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        present = bytes(parameter.grad is not None for parameter in trained)
        if not self._meet(zlib.crc32(present)):
            marks = torch.tensor(list(present), dtype=torch.int64)
            _reduced(marks)
            present = bytes(mark > 0 for mark in marks.tolist())
        learned = [p for p, has in zip(trained, present, strict=True) if has]
        total = loss.detach().clone()
        parts: dict[torch.dtype, list[Tensor]] = {total.dtype: [total.view(1)]}
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parts.setdefault(parameter.dtype, []).append(parameter.grad)
        for _, tensors in sorted(parts.items(), key=lambda item: str(item[0])):
            self._sum_flat(tensors)
        return total

    def sum_table(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of a table of every process, of the same shape everywhere."""
        self._meet()
        summed = torch.from_numpy(np.ascontiguousarray(table, dtype=np.float64).copy())
        _reduced(summed)
        return summed.numpy()

    def sum_count(self, count: int) -> int:
        """The sum of a number of every process."""
        self._meet()
        summed = torch.tensor([count], dtype=torch.int64)
        _reduced(summed)
        return int(summed)

    def whole_batch(self, own: Tensor, rows: Rows) -> Tensor:
        """The rows of all processes in order: (total, …) of one's own (count, …); no gradient."""
        self._meet()
        whole = own.new_zeros(rows.total, *own.shape[1:])
        whole[rows.first : rows.first + rows.own] = own[: rows.own].detach()
        _reduced(whole, group=self._gradients)  # a sum with zeros is exact
        return whole

    # Words ---------------------------------------------------------------------------------------

    def texts(self, text: str) -> list[str]:
        """What every process says, by number."""
        self._meet()
        return self._texts(text)

    def text_of_first(self, make: Callable[[], str]) -> str:
        """What `make` returns in the first process, which alone calls it."""
        return self.bytes_of_first(lambda: make().encode()).decode()

    def number_of_first(self, make: Callable[[], int]) -> int:
        """What `make` returns in the first process, which alone calls it."""
        return int(self.text_of_first(lambda: str(make())))

    def bytes_of_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns in the first process, which alone calls it."""
        said = make() if self.leads else b""
        self._meet()
        length = torch.tensor([len(said)], dtype=torch.int64)
        _sent(length)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads and said:
            content = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        if len(content):
            _sent(content)
        return content.numpy().tobytes()

    # Failing -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Left by all at once: with an error in each of them where there is one in any."""
        try:
            yield
            self._meet()
        except (OtherRankError, LostRankError):
            raise
        except Exception as error:  # told to the others, whatever it is, and raised again
            with contextlib.suppress(LostRankError):
                self._tell_failure(error)
            raise

    def _meet(self, value: int = 0) -> bool:
        """Wait for all; whether they bring the same value. OtherRankError where one has failed."""
        word = torch.tensor([0, value, -value], dtype=torch.int64)
        _reduced(word, largest=True)
        failed, largest, negated = word.tolist()
        if failed:
            self._raise_failure(self._texts(""))
        return bool(largest == -negated)

    def _tell_failure(self, error: Exception) -> None:
        """In place of the meeting that the others come to."""
        word = torch.tensor([1, 0, 0], dtype=torch.int64)
        _reduced(word, largest=True)
        code = getattr(error, "exit_code", 1)
        name = "" if isinstance(error, Vis4merError) else f"{type(error).__name__}: "
        self._texts(f"{code} {name}{error}"[:_MOST_TEXT])

    def _raise_failure(self, told: list[str]) -> None:
        number, text = next((i, text) for i, text in enumerate(told) if text)
        code, _, message = text.partition(" ")
        raise OtherRankError(f"process {number}: {message}", exit_code=int(code))

    # ---------------------------------------------------------------------------------------------

    def _texts(self, text: str) -> list[str]:
        said = text.encode("utf-8", "backslashreplace")
        lengths = torch.zeros(self.share.count, dtype=torch.int64)
        lengths[self.share.index] = len(said)
        _reduced(lengths)
        starts = [0, *lengths.cumsum(0).tolist()]
        content = torch.zeros(starts[-1], dtype=torch.uint8)
        if said:
            own = slice(starts[self.share.index], starts[self.share.index + 1])
            content[own] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        if len(content):
            _reduced(content)
        whole = content.numpy().tobytes()
        return [whole[a:b].decode() for a, b in pairwise(starts)]

    def _sum_flat(self, tensors: list[Tensor]) -> None:
        """Sum tensors of one type in place, all in one go."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _reduced(flat, group=self._gradients)
        first = 0
        for tensor in tensors:
            tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
            first += tensor.numel()


def _reduced(
    tensor: Tensor, *, largest: bool = False, group: dist.ProcessGroup | None = None
) -> None:
    """The sum over all processes, or the largest, in place."""
    op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
    with _lost_is_an_error():
        dist.all_reduce(tensor, op, group=group)


def _sent(tensor: Tensor) -> None:
    """From the first process to all."""
    with _lost_is_an_error():
        dist.broadcast(tensor, src=0)


@contextlib.contextmanager
def _lost_is_an_error() -> Iterator[None]:
    """What torch says of a closed connection, in one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise LostRankError(
            f"a process of this training has ended or cannot be reached ({said:.150}); begin all "
            "of them again: the same command goes on after the last finished epoch"
        ) from error
