"""What a decoder costs at some tokens: parameters, multiply-adds, and how its memory grows.

Nothing is computed and no weight is held: a decoder is built, and run forward, on tensors that have
a shape and no values. Counted are the multiply-adds of matrix products, convolutions and Fourier
transforms, on complex numbers as if they were real. Elementwise work is not: norms, activations,
softmax, sums, and what a scan does between its products. So this says which decoder has how much to
do; how long it takes on a machine is measured by a bench.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ...store.errors import UsageError
from ...store.views import TokenView
from ..data.batch import TokenBatch, TokenShape
from ..mixers.base import Growth
from . import DECODERS, build_decoder

COUNTED = "multiply-adds of matrix products, convolutions and Fourier transforms"
NOT_COUNTED = "elementwise work, norms, softmax, sums and the steps of a scan between its products"

NUM_OUTPUTS = 10  # classes: the last layer weighs next to nothing

MOST_FRAMES = 3600  # an hour, one a second: some decoders go frame after frame, here as anywhere
MOST_TOKENS, MOST_DIM = 10**6, 10**5  # of more, a table would be nothing but a typing error


@dataclass(frozen=True, kw_only=True)
class DecoderCost:
    """One decoder on one window.

    tokens: the view.   multiply_adds: of a forward pass; see above for what is counted.
    memory: how that of a forward pass grows with the tokens of a window.
    """

    tokens: str
    num_tokens: int
    num_parameters: int
    multiply_adds: int
    memory: Growth

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def decoder_costs(view: TokenView, *, dim: int) -> dict[str, DecoderCost | UsageError]:
    """Of every decoder by name, with its default options; or why it cannot take such windows.

    dim: width of the tokens. A decoder that the view has no CLS tokens for gets the same with them.
    UsageError for a view without frames, for no width, and for numbers above the bounds.
    """
    if view.frames is None:
        raise UsageError(f"--tokens {view}: say how many frames a window has, such as 60x{view}")
    if not 1 <= dim <= MOST_DIM:
        raise UsageError(f"--dim is {dim}, expected 1 to {MOST_DIM}")
    if view.frames > MOST_FRAMES:
        raise UsageError(f"--tokens {view}: expected at most {MOST_FRAMES} frames in a window")
    num_tokens = _shape(view, dim).num_tokens
    if num_tokens > MOST_TOKENS:
        raise UsageError(
            f"--tokens {view}: a window has {num_tokens} tokens, expected at most {MOST_TOKENS}"
        )
    return {name: _cost(name, view, dim=dim) for name in DECODERS}


def _cost(name: str, view: TokenView, *, dim: int) -> DecoderCost | UsageError:
    try:
        return forward_cost(name, view, dim=dim)
    except UsageError as error:
        if not view.cls:
            with_cls = _cost(name, replace(view, cls=True), dim=dim)
            if isinstance(with_cls, DecoderCost):
                return with_cls
        return error


def forward_cost(
    name: str, view: TokenView, *, dim: int, options: Mapping[str, Any] | None = None
) -> DecoderCost:
    """Of one decoder. view: with frames. UsageError where it refuses its options or the windows."""
    shape = _shape(view, dim)
    counter = FlopCounterMode(display=False, custom_mapping=_FOURIER)
    with torch.device("meta"), _Valueless(), torch.no_grad():
        decoder = build_decoder(name, shape=shape, num_outputs=NUM_OUTPUTS, options=options or {})
        decoder.eval()
        window = _window(shape)
        with counter:
            decoder(window)
    return DecoderCost(
        tokens=str(view),
        num_tokens=shape.num_tokens,
        num_parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        memory=decoder.memory_growth,
    )


def _shape(view: TokenView, dim: int) -> TokenShape:
    if view.frames is None:
        raise ValueError(f"view {view} says no frames")  # as `decoder_costs` has refused
    return TokenShape(frames=view.frames, grid=view.given_grid, num_prefix=int(view.cls), dim=dim)


def _window(shape: TokenShape) -> TokenBatch:
    """One window whose frames are all real."""
    T, D = shape.frames, shape.dim
    return TokenBatch(
        patch=torch.empty(1, T, *shape.grid, D) if shape.grid else None,
        prefix=torch.empty(1, T, shape.num_prefix, D) if shape.num_prefix else None,
        mask=torch.empty(1, T, dtype=torch.bool),
        pts_seconds=torch.empty(1, T, dtype=torch.float64),
        lengths=(T,),
    )


class _Valueless(TorchFunctionMode):
    """Within `torch.device("meta")`: tensors without values that say they lie on a CPU.

    Whatever is asked to be on a device stays where it is, so that a decoder goes the way that it
    goes on a CPU, where autocast and attention are known; and a value, which none has, is 0.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == _DEVICE:
            return torch.device("cpu")
        if func in _VALUES:
            return _VALUES[func]
        named = {k: v for k, v in (kwargs or {}).items() if k != "generator"}  # of the CPU
        if named.get("device") is not None:
            named["device"] = _META
        return func(*(_META if isinstance(a, torch.device) else a for a in args), **named)


_META = torch.device("meta")
_DEVICE = torch.Tensor.device.__get__
_VALUES: Mapping[Callable[..., Any], int | float | bool] = {
    torch.Tensor.__int__: 0,
    torch.Tensor.__float__: 0.0,
    torch.Tensor.__bool__: False,
    torch.Tensor.item: 0,
}


def _fourier_flops(length: int, batch: int) -> int:
    """Of real transforms of so many points: 2.5 n log2 n each, half of a complex one's."""
    return round(batch * 2.5 * length * math.log2(max(2, length)))


def _forward_flops(x: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> int:
    length = math.prod(x[dim] for dim in dims)
    return _fourier_flops(length, math.prod(x) // length)


def _backward_flops(x: Sequence[int], dims: Sequence[int], _: int, length: int, **__: Any) -> int:
    return _fourier_flops(length, math.prod(x) // x[dims[-1]])


_FOURIER = {
    torch.ops.aten._fft_r2c: _forward_flops,
    torch.ops.aten._fft_c2r: _backward_flops,
}
