"""A decoder's forward pass through `torch.compile`, or plain where that does not work.

What it gains on a CPU is what lies between products: norms, GELUs and sums fused into fewer passes
over memory. State-space layers go through channels slice by slice, which the compiler would unroll
for minutes: they stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ..data.batch import TokenBatch
from ..decoders import Decoder
from ..mixers.ssm import SsmMixer

Forward = Callable[[TokenBatch], Tensor]


def compiled_forward(model: Decoder, *, backend: str = "inductor") -> Forward:
    """`model`, compiled at the first call and for each new shape; the same weights.

    Dropout draws the same numbers as without. Where compiling fails, for want of a compiler or for
    what the model does, a warning says so once and the model runs as it is.
    """
    for module in model.modules():
        if isinstance(module, SsmMixer):
            plain: Any = torch.compiler.disable(type(module).core)  # type: ignore[no-untyped-call]
            # A method, which a copy of the module has of its own.
            module.core = MethodType(plain, module)  # type: ignore[method-assign]
    options: dict[str, str | int | bool | Callable[..., object]] | None = None
    if backend == "inductor":
        options = {"fallback_random": True}
    compiled = torch.compile(model, backend=backend, options=options)
    works = True

    def forward(batch: TokenBatch) -> Tensor:
        nonlocal works
        if works:
            drawn = _random_states(batch.mask.device)
            try:
                outputs: Tensor = compiled(batch)
                return outputs
            except Exception as error:  # of whatever compiler; the model's own comes again below
                failed = error
                _set_random_states(batch.mask.device, drawn)  # a part may have run before it failed
        outputs = model(batch)
        if works:
            works = False
            _give_up(failed)
        return outputs

    return forward


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the generators that a decoder on the device draws from."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    host, *on_gpu = states
    torch.set_rng_state(host)
    for state in on_gpu:
        torch.cuda.set_rng_state(state, device)


def _give_up(error: Exception) -> None:
    reason = " ".join(str(error).partition("\n\n")[0].split())  # after it comes advice
    warnings.warn(
        f"the decoder could not be compiled ({type(error).__name__}: {reason:.200}); going on "
        "without",
        RuntimeWarning,
        stacklevel=2,
    )
