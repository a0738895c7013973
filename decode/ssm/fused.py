"""The walk through the blocks of `walk.py`, fused into a GPU kernel.

What is a handful of batched products and a tree of states there is done here block by block: the
operators of a channel and its state stay on the chip, and every number of the sequence is read and
written once. With rows for vectors, T the Toeplitz matrix of the taps, R the readout, G the reach
reversed in time, and E = Āᵐ − I,

    y[j] = u[j] Tᵀ + x[j] Rᵀ,          x[j+1] = x[j] + x[j] Eᵀ + u[j] G

and with ȳ[j] the gradient of y[j], and λ[j] that of the state after block j, the way back is

    ū[j] = ȳ[j] T + λ[j] Gᵀ,           λ[j−1] = λ[j] + λ[j] E + ȳ[j] R

the same walk, with the operators transposed and time reversed. The states that both walks find
make the gradients of the operators, as products over all blocks and rows at once.

Sequences in bfloat16 are multiplied in bfloat16, as in `walk.py`; sums and what a state makes of
itself stay in float32. Products in float32 are so to the last bit, unless
`torch.set_float32_matmul_precision` lets torch use less for its own. Needs Triton and a GPU;
`why_not_fused` says what is in the way. Knows nothing of which way is quicker: `choice.py` does.

Letters: H channels, N state size, L sequence, m block length, J blocks, B batch.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from .walk import toeplitz

SIZES = (16, 32, 64, 128)
"""Of blocks and states: products on a GPU are of powers of two, from 16 on."""

MAX_BLOCK_BYTES = 256
"""Of a block of inputs: the operators of longer ones do not fit on the chip."""


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not_fused(u: Tensor, taps: Tensor, *handing_on: Tensor) -> str | None:
    """What stands in the way of `fused_walk` here; None where nothing does.

    Arguments as for `convolve_blocks`: without `handing_on` one block holds the sequence.
    """
    if not u.is_cuda:
        return f"the tokens are on {u.device.type}, not on a GPU"
    if not _triton_is_installed():
        return "Triton is not installed"
    if not handing_on:
        return "in a single block there is nothing to walk"
    if u.dtype not in (torch.float32, torch.bfloat16) or taps.dtype != torch.float32:
        return f"inputs of {u.dtype} and a system of {taps.dtype}"
    m, N = handing_on[0].shape[1:]
    if m not in SIZES or N not in SIZES or m * u.itemsize > MAX_BLOCK_BYTES:
        return f"blocks of {m} {u.dtype} and a state of {N} do not fit"
    return None


def fused_walk(u: Tensor, taps: Tensor, readout: Tensor, reach: Tensor, E: Tensor) -> Tensor:
    """As `walk`: the outputs of all blocks from a zero state, u (H, B, L) → (H, B, L), any L.

    taps: (H, m).   readout, reach: (H, m, N).   E: (H, N, N).   u is float32 or bfloat16, and so is
    the result; the others are float32.
    """
    L, m = u.shape[2], taps.shape[1]
    u = pad(u, (0, -L % m)).contiguous()  # H B J·m
    weights = toeplitz(taps), readout, reach.flip(1), E
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (u, *weights))
    y: Tensor = _Walk.apply(u, *weights, learns)  # type: ignore[no-untyped-call]
    return y[:, :, :L]


class _Walk(torch.autograd.Function):
    """(u, T, R, G, E) → y; the states are kept if there will be a way back."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, T: Tensor, R: Tensor, G: Tensor, E: Tensor, learns: bool
    ) -> Tensor:
        from .fused_kernels import walk_blocks

        ctx.precision = _precision()
        T, R, G = (operator.to(u.dtype) for operator in (T, R, G))
        y, x = walk_blocks(
            u,
            direct=T.mT,
            readout=R.mT,
            reach=G,
            advance=E.mT,
            reverse=False,
            keep_states=learns,
            precision=ctx.precision,
        )
        if x is not None:
            ctx.save_for_backward(u, x, T, R, G, E)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        from .fused_kernels import walk_blocks

        u, x, T, R, G, E = ctx.saved_tensors
        of_operators = any(ctx.needs_input_grad[1:5])
        grad_u, after = walk_blocks(
            grad_y,
            direct=T,
            readout=G.mT,
            reach=R,
            advance=E,
            reverse=True,
            keep_states=of_operators,
            precision=ctx.precision,
        )
        if after is None:
            return grad_u, None, None, None, None, None
        u, g = _rows(u, T.shape[1]), _rows(grad_y, T.shape[1])  # H B·J m
        x, after = _rows(x, E.shape[1]), _rows(after, E.shape[1])  # H B·J N
        pairs = ((g, u), (g, x), (u, after), (after, x))  # of T, R, G, E
        products = [torch.bmm(a.mT, b).to(E.dtype) for a, b in pairs]
        return grad_u, *products, None


def _rows(sequence: Tensor, size: int) -> Tensor:
    """(H, B, J·size), or (H, B, J, size) → (H, B·J, size)."""
    return sequence.reshape(sequence.shape[0], -1, size)


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
