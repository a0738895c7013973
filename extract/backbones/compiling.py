"""A backbone that `torch.compile` has made faster, where it can.

Compiling joins small operations; the products, which it leaves as they are, decide a large
backbone's speed. Its tokens differ from the plain ones in their last bits, so entries say that a
compiled backbone has made them. Knows nothing of videos.

Letters: B frames, H × W pixels as the backbone takes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ...store.wording import describe_error
from .loading import Backbone, Tokens

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far compiled tokens may be from the plain ones: the norm of the difference to their norm."""


def compile_backbone(backbone: Backbone, *, batch_frames: int) -> tuple[Backbone, str | None]:
    """The backbone compiled for batches of `batch_frames`, or as it is and a note that says why.

    One batch is tried, which takes up to minutes: where there is no compiler, where one fails, or
    where the tokens come out different, the plain backbone goes on. Smaller batches are filled up.
    """
    pixels = _trial(backbone, batch_frames)
    with _as_in_a_run(backbone.device):
        plain = backbone.encode(pixels)
        try:
            module = cast(nn.Module, torch.compile(backbone.module, dynamic=False))
            compiled = replace(backbone, module=module, compiled_frames=batch_frames)
            error = _distance(compiled.encode(pixels), plain)
        except Exception as failure:
            return backbone, f"the backbone runs uncompiled: {describe_error(failure)}"
    if not error <= TOLERANCE[backbone.compute_dtype]:  # NaN is no answer either
        return backbone, (
            f"the backbone runs uncompiled: compiled tokens are off by {error:.2g} of their norm, "
            f"expected at most {TOLERANCE[backbone.compute_dtype]:g}"
        )
    return compiled, None


def _trial(backbone: Backbone, batch_frames: int) -> Tensor:
    """uint8 noise (B, 3, H, W) laid out as resized frames are."""
    shape = (batch_frames, *backbone.preprocess.size, 3)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)  # B H W 3
    return noise.permute(0, 3, 1, 2)


def _distance(found: Tokens, expected: Tokens) -> float:
    """The norm of the difference as a part of the norm, of prefix and patches together."""
    difference = norm = 0.0
    for ours, theirs in ((found.patch, expected.patch), (found.prefix, expected.prefix)):
        difference += float((ours.float() - theirs.float()).square().sum())
        norm += float(theirs.float().square().sum())
    return (difference / norm) ** 0.5 if norm else float("inf")


@contextlib.contextmanager
def _as_in_a_run(device: torch.device) -> Iterator[None]:
    """Code for a CPU is compiled for a number of threads: one, as every backbone thread has."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
