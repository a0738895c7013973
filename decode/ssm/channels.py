"""Work on a few channels at a time, and again on the way back, so that memory stays bounded.

A function of independent channels is run over slices of them; only its inputs are kept, and the
backward pass runs each slice once more to get its gradients. What would be gigabytes of saved
intermediates becomes the intermediates of one slice. What does not grow with the sequence may be
prepared apart from the rest, and kept.

Letters: B batch, L sequence, P sequence with the zeros after it, M results, H channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ChannelFunction = Callable[..., Tensor]
"""(u (h, B, P), *prepared) → (h, B, M), for any slice of h channels; M is the same for all."""

Preparation = Callable[..., tuple[Tensor, ...]]
"""(*vectors each (h, …)) → prepared, each (h, …), for any slice of h channels."""


def as_they_are(*vectors: Tensor) -> tuple[Tensor, ...]:
    """No preparation."""
    return vectors


def by_channels(
    function: ChannelFunction,
    u: Tensor,
    *vectors: Tensor,
    size: int,
    prepare: Preparation = as_they_are,
    keep: bool = False,
    padded: int | None = None,
) -> Tensor:
    """`function(u, *prepare(*vectors))`, at most `size` channels at a time: u (B, L, H), result
    (B, M, H).

    `function` sees channels first, contiguous, in the dtype of `u`, which the result has too,
    whatever it returns. Both must be deterministic and treat channels independently. Autocast is
    off inside. keep: what `prepare` made is kept for the way back, with what its gradient needs,
    instead of made again. padded: P ≥ L, what `function` sees of a sequence, zeros after its end;
    to pad on the way costs less than later.
    """
    keep = keep and torch.is_grad_enabled()
    result: Tensor = _ByChannels.apply(  # type: ignore[no-untyped-call]
        function, prepare, keep, size, padded or u.shape[1], u, *vectors
    )
    return result


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: ChannelFunction,
        prepare: Preparation,
        keep: bool,
        size: int,
        padded: int,
        u: Tensor,
        *vectors: Tensor,
    ) -> Tensor:
        ctx.function, ctx.prepare, ctx.size, ctx.padded = function, prepare, size, padded
        ctx.kept = {}  # by slice
        ctx.save_for_backward(u, *vectors)
        y = torch.empty(0)
        with torch.autocast(u.device.type, enabled=False):
            for at, part in enumerate(_slices(u.shape[2], size)):
                some = _leaves([v[part] for v in vectors], ctx.needs_input_grad[6:])
                with torch.set_grad_enabled(keep):
                    prepared = prepare(*some)
                if keep:
                    ctx.kept[at] = some, prepared
                rows = _channels_first(u, part, padded)  # h B P
                found = function(rows, *(p.detach() for p in prepared)).permute(1, 2, 0)  # B M h
                if at == 0:
                    y = u.new_empty(*found.shape[:2], u.shape[2])  # B M H
                y[..., part] = found
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, *vectors = ctx.saved_tensors
        L = u.shape[1]
        wanted = ctx.needs_input_grad[5:]
        grad_u = torch.empty_like(u) if wanted[0] else None  # B L H
        grads = [
            torch.empty_like(v) if w else None for v, w in zip(vectors, wanted[1:], strict=True)
        ]
        for at, part in enumerate(_slices(u.shape[2], ctx.size)):
            with torch.enable_grad(), torch.autocast(u.device.type, enabled=False):
                if at in ctx.kept:
                    some, prepared = ctx.kept.pop(at)
                else:
                    some = _leaves([v[part] for v in vectors], wanted[1:])
                    prepared = ctx.prepare(*some)
                inputs = [_channels_first(u, part, ctx.padded), *prepared]
                inputs = _leaves(inputs, [wanted[0], *(p.requires_grad for p in prepared)])
                y = ctx.function(*inputs)
            of_y = _channels_first(grad_y, part, grad_y.shape[1]).to(y.dtype)  # h B M
            of_u, *of_prepared = _gradients([y], inputs, [of_y])
            if grad_u is not None:
                # Whole blocks are often whole pages: rows so far apart share a place in the cache,
                # and to read 64 of them side by side costs twice what a copy without padding does.
                grad_u[..., part] = of_u[..., :L].contiguous().permute(1, 2, 0)
            found = _gradients(prepared, some, of_prepared)
            for grad, of_vector in zip(grads, found, strict=True):
                if grad is not None:
                    grad[part] = of_vector
        return None, None, None, None, None, grad_u, *grads


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], of_outputs: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of all inputs; those that take none get an empty tensor.

    An input that no output depends on gets zeros: a window of one token never uses the step to the
    next.
    """
    used = [(y, g) for y, g in zip(outputs, of_outputs, strict=True) if y.requires_grad]
    asked = [x for x in inputs if x.requires_grad]
    if not used or not asked:
        return [torch.empty(0)] * len(inputs)
    ys, gs = zip(*used, strict=True)
    found = iter(torch.autograd.grad(ys, asked, gs, materialize_grads=True))
    return [next(found) if x.requires_grad else torch.empty(0) for x in inputs]


def _channels_first(x: Tensor, part: slice, padded: int) -> Tensor:
    """x (B, L, H) → (h, B, P), contiguous, zeros after the end.

    In two copies, of which the second transposes a matrix, which torch does by tiles: one copy
    alone would go to another row of memory for each number.
    """
    some = x[..., part]  # B L h
    B, L, h = some.shape
    if padded == L:
        rows = some.contiguous()
    else:
        rows = x.new_empty(B, padded, h)
        rows[:, :L] = some
        rows[:, L:] = 0
    return rows.view(B * padded, h).T.contiguous().view(h, B, padded)


def _slices(num_channels: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, num_channels)) for at in range(0, num_channels, size)]
