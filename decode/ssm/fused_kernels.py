"""One GPU kernel, in Triton: walk through the blocks of a sequence with the state on the chip.

Imports Triton, which is not there on every machine: `fused.py` imports this file when it is asked
for a kernel, nobody else does. Knows nothing of systems or gradients.

Letters: H channels, B batch, J blocks, M block length, N state size.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows of the batch in one program: as few as a GPU multiplies at a time."""

NUM_WARPS = 8
"""What the compiler says of GPUs of capability 8.0 and 9.0 with states of 64: in float32, blocks of
64, 202 to 205 registers a thread; in bfloat16 77 to 78, and 98 with blocks of 128; none spilled. In
float32, 4 warps or 32 rows would spill thousands of bytes, and blocks of 128 hundreds."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels are run by NumPy on the CPU, which has no bfloat16: its numbers are multiplied as
float32 then, which is what a GPU does with them."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]  # Triton may be missing, and untyped
def walk_kernel(
    inputs: tl.tensor,  # pointers, to contiguous tensors: H B J·M
    direct: tl.tensor,  # H M M
    readout: tl.tensor,  # H N M
    advance: tl.tensor,  # H N N
    reach: tl.tensor,  # H M N
    outputs: tl.tensor,  # H B J·M
    states: tl.tensor,  # H B J N
    num_rows: tl.tensor,
    num_blocks: tl.tensor,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """One channel and ROWS rows of its batch: every block after the other, as in `walk_blocks`."""
    channel = tl.program_id(0).to(tl.int64)  # a tensor may have more than 2³¹ elements
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # ROWS
    i, n = tl.arange(0, M), tl.arange(0, N)  # M, N
    there = (row < num_rows)[:, None]  # ROWS 1
    to_output = tl.load(direct + channel * M * M + i[:, None] * M + i[None, :])  # M M
    from_state = tl.load(readout + channel * N * M + n[:, None] * M + i[None, :])  # N M
    onward = tl.load(advance + channel * N * N + n[:, None] * N + n[None, :])  # N N
    to_state = tl.load(reach + channel * M * N + i[:, None] * N + n[None, :])  # M N
    if WIDEN:
        to_output, from_state = to_output.to(tl.float32), from_state.to(tl.float32)
        to_state = to_state.to(tl.float32)
    first_block = ((channel * num_rows + row) * num_blocks)[:, None]  # ROWS 1
    x = tl.zeros((ROWS, N), dtype=tl.float32)  # ROWS N
    for step in range(num_blocks):
        block = first_block + (num_blocks - 1 - step if REVERSE else step)  # ROWS 1
        at = block * M + i[None, :]  # ROWS M
        v = tl.load(inputs + at, mask=there, other=0.0)  # ROWS M
        seen = x.to(inputs.dtype.element_ty)  # ROWS N
        if KEEP:
            tl.store(states + block * N + n[None, :], seen, mask=there)
        if WIDEN:
            v, seen = v.to(tl.float32), seen.to(tl.float32)
        y = tl.dot(v, to_output, input_precision=PRECISION)  # ROWS M
        y = tl.dot(seen, from_state, acc=y, input_precision=PRECISION)
        tl.store(outputs + at, y.to(outputs.dtype.element_ty), mask=there)
        # What is added is summed on its own: added up in x, its digits would be lost one by one.
        change = tl.dot(x, onward, input_precision=PRECISION)  # ROWS N
        x += tl.dot(v, to_state, acc=change, input_precision=PRECISION)


def walk_blocks(
    inputs: Tensor,
    *,
    direct: Tensor,
    readout: Tensor,
    advance: Tensor,
    reach: Tensor,
    reverse: bool,
    keep_states: bool,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """For every block v[j] of the inputs, from a state x of zero:

        y[j] = v[j] direct + x readout,     then     x ← x + x advance + v[j] reach

    in the order of time, or `reverse`. inputs: (H, B, J·M), float32 or bfloat16; of the same type
    direct (H, M, M), readout (H, N, M), reach (H, M, N); always float32: advance (H, N, N), the
    state itself, and every sum. M and N are powers of two from 16 on. precision: of products in
    float32, as Triton names it (ieee, tf32).

    Returns y and, if they are kept, the states that the blocks found, (H, B, J, N), as the inputs.
    """
    H, B, length = inputs.shape
    M, N = reach.shape[1], reach.shape[2]
    outputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)  # H B J·M
    kept = (H, B, length // M, N) if keep_states else (0,)
    states = torch.empty(kept, device=inputs.device, dtype=inputs.dtype)  # H B J N
    walk_kernel[(H, triton.cdiv(B, ROWS))](
        inputs.contiguous(),
        direct.contiguous(),
        readout.contiguous(),
        advance.contiguous(),
        reach.contiguous(),
        outputs,
        states,
        B,
        length // M,
        ROWS=ROWS,
        M=M,
        N=N,
        REVERSE=reverse,
        KEEP=keep_states,
        PRECISION=precision,
        WIDEN=INTERPRETED,
        num_warps=NUM_WARPS,
    )
    return outputs, states if keep_states else None
