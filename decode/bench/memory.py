"""How much memory a process of its own takes for a decoder: at most, at the least, and no more.

On a CPU it is what stays resident (VmHWM of Linux) beyond what the process held before it knew of
the decoder; on a GPU what torch's allocator handed out and, beside it, what that reserved.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..mixers.attention import AttentionMixer

FREE_SHARE = 0.95
"""Of what is free, this much may be taken when nobody says how much."""

_PROC = Path("/proc/self")
_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes above the baseline. reserved: by the allocator of a GPU; None on a CPU."""

    bytes: int
    reserved: int | None = None


class MemoryMeter(ABC):
    """Of this process, from the moment when it is made: the baseline."""

    baseline: int

    @abstractmethod
    def held(self) -> int:
        """Bytes above the baseline now."""

    @abstractmethod
    def restart(self) -> None:
        """Forget the peak so far, where the system can."""

    @abstractmethod
    def peak(self) -> Peak:
        """Since the last restart."""

    @abstractmethod
    def limit(self, max_bytes: int | None) -> int | None:
        """From now on more than `max_bytes` above the baseline is an error, not a dead machine.

        None stands for what is free now. Returns the limit; None where it cannot be known. A system
        without such limits does not enforce it.
        """


class CpuMemory(MemoryMeter):
    """Resident bytes. Where there is no /proc: the largest so far, and no limit."""

    def __init__(self) -> None:
        self.restart()
        self.baseline = self._now()
        self._data_before = _status_bytes("VmData")

    def held(self) -> int:
        return max(0, self._now() - self.baseline)

    def restart(self) -> None:
        with suppress(OSError):  # a locked-down /proc: the peak then is that of all so far
            (_PROC / "clear_refs").write_text("5")

    def peak(self) -> Peak:
        most = _status_bytes("VmHWM")
        most = _largest_resident() if most is None else most
        return Peak(bytes=max(0, most - self.baseline))

    def limit(self, max_bytes: int | None) -> int | None:
        if max_bytes is None and (free := free_bytes()) is not None:
            max_bytes = self.held() + int(FREE_SHARE * free)
        if max_bytes is not None and self._data_before is not None:
            import resource

            most = self._data_before + max_bytes
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        return max_bytes

    def _now(self) -> int:
        resident = _status_bytes("VmRSS")
        return _largest_resident() if resident is None else resident


class CudaMemory(MemoryMeter):
    """What torch's allocator handed out on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.baseline = torch.cuda.memory_allocated(device)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self._device) - self.baseline

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        most = torch.cuda.max_memory_allocated(self._device) - self.baseline
        return Peak(bytes=most, reserved=torch.cuda.max_memory_reserved(self._device))

    def limit(self, max_bytes: int | None) -> int | None:
        free, total = torch.cuda.mem_get_info(self._device)
        if max_bytes is None:
            max_bytes = self.held() + int(FREE_SHARE * free)
        share = min(1.0, (self.baseline + max_bytes) / total)
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        return max_bytes


def memory_meter(device: torch.device) -> MemoryMeter:
    """The meter for a device, its baseline taken now."""
    return CudaMemory(device) if device.type == "cuda" else CpuMemory()


def free_bytes() -> int | None:
    """Memory that processes could still take without swapping; None where nobody says.

    The machine's MemAvailable, or less where a control group (of version 2) allows less.
    """
    found = [*_free_in_groups()]
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    return min(found, default=None)


def _free_in_groups() -> Iterator[int]:
    """Of the process's control group and those that it lies in, each that has a limit.

    Files that the system keeps in memory count as free, as in MemAvailable: it gives them back, and
    whoever has just read a cache has a group full of them.
    """
    own = ""
    with suppress(OSError):
        lines = (_PROC / "cgroup").read_text().splitlines()
        own = next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in (_GROUPS / own, *(_GROUPS / own).parents):
        if folder.is_relative_to(_GROUPS):
            with suppress(OSError, ValueError):  # ValueError: the limit is the word "max"
                most = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                yield max(0, most - used + _file_bytes(folder))


def _file_bytes(group: Path) -> int:
    """Of files, in the memory of a control group."""
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))


def least_bytes(model: nn.Module, *, batch_size: int, itemsize: int) -> tuple[int, int]:
    """What the L × L scores of materialised attention take at the least: (forward, training step).

    A layer has scores and their softmax at once. Training keeps every layer's softmax; in a layer's
    backward pass the gradients of softmax and scores stand beside it, while those of the layers
    before it wait. Zero for a decoder without such scores.
    """
    scores = [
        batch_size * mixer.heads * mixer.length**2 * itemsize
        for mixer in model.modules()
        if isinstance(mixer, AttentionMixer) and mixer.attention == "materialised"
    ]
    forward = 2 * max(scores, default=0)
    train = max((sum(scores[:i]) + 3 * size for i, size in enumerate(scores)), default=0)
    return forward, train


def weight_bytes(model: nn.Module) -> int:
    """Of all parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _status_bytes(name: str) -> int | None:
    """A line such as `VmRSS:  2088 kB` of the process's status; None where there is none."""
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


def _largest_resident() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
