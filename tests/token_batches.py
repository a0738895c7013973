"""Batches of random tokens for the decoder tests."""

import torch
from vis4mer.decode.data.batch import TokenBatch


def token_batch(*, frames, grid=None, prefix=0, dim=32, batch=2, seed=0):
    """All frames real."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(batch, frames, *shape, dim, generator=generator)

    return TokenBatch(
        patch=draw(*grid) if grid else None,
        prefix=draw(prefix) if prefix else None,
        mask=torch.ones(batch, frames, dtype=torch.bool),
        pts_seconds=torch.arange(frames, dtype=torch.float64).expand(batch, frames),
    )


def cut(batch, start, stop):
    """Frames start to stop."""
    return TokenBatch(
        patch=None if batch.patch is None else batch.patch[:, start:stop],
        prefix=None if batch.prefix is None else batch.prefix[:, start:stop],
        mask=batch.mask[:, start:stop],
        pts_seconds=batch.pts_seconds[:, start:stop],
    )


def padded(batch, frames, *, value=7.0):
    """`frames` more frames that are not real and hold `value`."""

    def pad(tokens, fill):
        if tokens is None:
            return None
        shape = (tokens.shape[0], frames, *tokens.shape[2:])
        return torch.cat([tokens, tokens.new_full(shape, fill)], dim=1)

    return TokenBatch(
        patch=pad(batch.patch, value),
        prefix=pad(batch.prefix, value),
        mask=pad(batch.mask, False),
        pts_seconds=pad(batch.pts_seconds, 0.0),
    )


def float64(batch):
    """The same tokens in float64."""
    return batch.to("cpu", torch.float64)
