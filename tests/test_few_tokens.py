"""Windows of one token, or very few, train like any other: a single frame is a fair question."""

from __future__ import annotations

import pytest
import torch
from token_batches import token_batch
from vis4mer.decode.decoders import build_decoder


@pytest.mark.parametrize("mixer", ["s4", "s4d-lin"])
@pytest.mark.parametrize("convolution", ["blocks", "fft"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_every_gradient_is_finite(frames, convolution, mixer):
    batch = token_batch(frames=frames, prefix=1, dim=16)
    decoder = build_decoder(
        "vis4mer",
        shape=batch.shape,
        num_outputs=3,
        options={"mixer": mixer, "convolution": convolution},
    )
    outputs = decoder(batch)
    outputs.square().sum().backward()
    assert outputs.shape == (len(batch.mask), 3)
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
