"""Where and how precisely a decoder is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..store.errors import UsageError
from .config import Precision, TrainConfig
from .typed import convert


@dataclass(frozen=True, kw_only=True)
class Compute:
    """A device and the type that token batches and matrix products have on it."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, *, device: str = "auto", precision: Precision = "auto") -> Compute:
        """`auto` is the first GPU, or the CPU; and bfloat16 on a GPU, float32 on a CPU.

        UsageError for a device that is not here or a precision that does not exist. Cheap: nothing
        is put on the device, so ask before work that would be lost.
        """
        convert(precision, Precision, field="precision")
        chosen = _device(device)
        low = precision == "bfloat16" or (precision == "auto" and chosen.type == "cuda")
        return cls(device=chosen, dtype=torch.bfloat16 if low else torch.float32)

    @classmethod
    def for_run(
        cls, config: TrainConfig, *, device: str = "auto", precision: Precision | None = None
    ) -> Compute:
        """Where a trained run is judged. precision None: on a GPU that of its training, on a CPU
        float32. `config` is the run's own, with `auto` resolved. Errors as for `of`."""
        if precision is None:
            precision = config.precision if _device(device).type == "cuda" else "float32"
        return cls.of(device=device, precision=precision)

    @property
    def precision(self) -> Precision:
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """bfloat16 for what may be; decoders keep their kernels and FFTs in float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @contextlib.contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Leave the caller's random state as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r}, expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"device {name!r}: decoders are computed on a CPU or a CUDA GPU, expected auto, cpu, "
            "cuda or cuda:N"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: this torch sees no GPU; use --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0"
        )
    return device
