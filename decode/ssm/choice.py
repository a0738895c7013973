"""Which way a block convolution goes: plain products, or one fused walk where that is quicker.

Both give the same numbers up to rounding. Whether the walk can be made at all, agrees with the
plain way and is quicker is tried once for each GPU and class of shapes, and remembered by this
process. Nothing is tried on a CPU: there the plain way is the only one.

Letters: H channels, B batch, L sequence.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .fused import fused_walk, why_not_fused
from .kernel import convolve_blocks

Way = Literal["blocks", "plain", "fused"]
_Convolution = Callable[..., Tensor]

REPEATS = 5
"""Timed runs of each way; the median counts."""

GAIN = 0.95
"""The walk is chosen if it takes at most so much of the plain time: near ties stay plain."""

AGREEMENT, LOW_AGREEMENT = 1e-3, 3e-2
"""How far the two may be apart, relative to the norm: with products in float32, and in less."""

_quicker: dict[tuple[object, ...], bool] = {}  # whether the walk is, by GPU and class of shapes


def convolve(u: Tensor, *prepared: Tensor, way: Way = "blocks") -> Tensor:
    """y = K * u + D u, (H, B, L), as `convolve_blocks`, from what `block_inputs` made.

    way: "blocks" tries what is quicker, "plain" and "fused" do as they are told; "fused" is plain
    where `why_not_fused` has a reason, so that a run can be judged anywhere.
    """
    if way == "plain" or why_not_fused(u, *prepared) is not None:
        return convolve_blocks(u, *prepared)
    if way == "fused" or _fused_is_quicker(u, *prepared):
        return fused_walk(u, *prepared)
    return convolve_blocks(u, *prepared)


def _fused_is_quicker(u: Tensor, *prepared: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    key = shape_class(u, *prepared)
    if key not in _quicker:
        if _captures_a_graph(u):  # nothing can be timed then
            return False
        _quicker[key] = try_fused(u, *prepared)
    return _quicker[key]


def _captures_a_graph(u: Tensor) -> bool:
    return u.is_cuda and torch.cuda.is_current_stream_capturing()


def shape_class(u: Tensor, *prepared: Tensor) -> tuple[object, ...]:
    """Shapes alike enough to share a choice: channels, rows and length up to a factor of two."""
    sizes = tuple(size.bit_length() for size in u.shape)
    blocks = tuple(tuple(each.shape[1:]) for each in prepared)
    return u.device, u.dtype, sizes, blocks, torch.get_float32_matmul_precision()


def try_fused(
    u: Tensor,
    *prepared: Tensor,
    plain: _Convolution = convolve_blocks,
    fused: _Convolution = fused_walk,
) -> bool:
    """Whether the fused way works here, agrees with the plain one and is quicker, there and back.

    One that fails or disagrees is given up with a warning.
    """
    try:
        found, expected = _there_and_back(fused, u, *prepared), _there_and_back(plain, u, *prepared)
        apart = [_relative_error(a, b) for a, b in zip(found, expected, strict=True)]
        del found, expected
        exact = u.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        allowed = AGREEMENT if exact else LOW_AGREEMENT
        if far := [error for error in apart if not error <= allowed]:  # NaN is far, too
            _give_up(f"its numbers are {far[0]:.1e} from the plain ones")
            return False
        times = _alternating_seconds(
            lambda: _there_and_back(fused, u, *prepared),
            lambda: _there_and_back(plain, u, *prepared),
        )
    except Exception as error:  # a compiler, a driver or memory: whatever it is, there is a way
        _give_up(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}")
        return False
    return times[0] <= GAIN * times[1]


def _give_up(reason: str) -> None:
    warnings.warn(
        f"the fused convolution cannot be used here ({reason}); going on with the plain one",
        RuntimeWarning,
        stacklevel=2,
    )


def _there_and_back(convolution: _Convolution, *inputs: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of all inputs; also where a decoder is only judged."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaves = [_ordinary(t).detach().requires_grad_() for t in inputs]
        y = convolution(*leaves)  # H B L
        return [y.detach(), *torch.autograd.grad(y, leaves, y.detach())]


def _ordinary(x: Tensor) -> Tensor:
    """x, or a copy that gradients can be taken of where x was made in inference mode."""
    return x.clone() if x.is_inference() else x


def _relative_error(found: Tensor, expected: Tensor) -> float:
    difference = torch.linalg.vector_norm((found - expected).float())
    return float(difference / torch.linalg.vector_norm(expected.float()).clamp(min=1e-30))


def _alternating_seconds(*works: Callable[[], object]) -> list[float]:
    """The median time of each; all have run before."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS):
        for work, taken in zip(works, times, strict=True):
            _wait()
            start = time.perf_counter()
            work()
            _wait()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
