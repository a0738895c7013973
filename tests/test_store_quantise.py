"""Stored values against torch's rounding and against the bounds that the formulas promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from entries import make_spec, make_tokens, write
from vis4mer.store import quantise
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import Vis4merError


def every_float32(step: int) -> np.ndarray:
    """Finite float32 of all sizes, ties and subnormals among them."""
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    return values[np.isfinite(values)]


def test_bfloat16_rounds_as_torch_does():
    ties = (np.arange(0, 0x7F7F, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    beside = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    for values in (every_float32(9973), ties, -ties, *beside):
        wanted = torch.from_numpy(values).to(torch.bfloat16)
        fits = np.isfinite(wanted.float().numpy())
        stored = quantise.encode_bfloat16(values[fits])
        np.testing.assert_array_equal(stored, wanted.view(torch.uint16).numpy()[fits])
        np.testing.assert_array_equal(
            quantise.decode_bfloat16(stored), wanted.float().numpy()[fits]
        )


def test_values_that_round_to_infinity_are_refused():
    largest = float(torch.finfo(torch.bfloat16).max)
    quantise.encode_bfloat16(np.float32([largest, -largest]))
    for value in (np.finfo(np.float32).max, -np.finfo(np.float32).max):
        with pytest.raises(Vis4merError, match="bfloat16 cannot hold"):
            quantise.encode_bfloat16(np.float32([0, value]))
    quantise.encode_float16(np.float32([65504, 65519.99]))
    with pytest.raises(Vis4merError, match="65520, which float16 cannot hold"):
        quantise.encode_float16(np.float32([65520]))


def vit_like(random, frames=40, tokens=49, dim=64) -> np.ndarray:
    """Channels of very different size, a few of them large in every token."""
    sizes = np.exp(random.standard_normal(dim))
    sizes[:3] *= 20
    return (random.standard_normal((frames, tokens, dim)) * sizes).astype(np.float32)


def test_int8_is_within_half_a_step_and_nothing_is_clipped():
    random = np.random.default_rng(0)
    for tokens in (vit_like(random), vit_like(random) * 1e-20, vit_like(random) * 1e20):
        channel = quantise.channel_scale(tokens[:10])
        q, scale = quantise.encode_int8(tokens, channel)
        assert q.dtype == np.int8
        assert np.abs(q.astype(int)).max() == 127
        step = scale[..., None].astype(float) * channel
        decoded = quantise.decode_int8(q, scale, channel)
        assert (np.abs(decoded - tokens) <= 0.50001 * step).all()
        assert (np.abs(q).max(axis=-1) == 127).all()  # each token uses the whole range


def test_the_channel_scale_is_worth_its_bytes():
    """Relative L2 error on ViT-like tokens: below 0.01 with it, more than twice that without."""
    tokens = vit_like(np.random.default_rng(1), frames=100)

    def error(channel):
        decoded = quantise.decode_int8(*quantise.encode_int8(tokens, channel), channel)
        return np.linalg.norm(decoded - tokens) / np.linalg.norm(tokens)

    def relative_per_channel(channel):
        decoded = quantise.decode_int8(*quantise.encode_int8(tokens, channel), channel)
        norms = np.linalg.norm(tokens, axis=(0, 1))
        return np.median(np.linalg.norm(decoded - tokens, axis=(0, 1)) / norms)

    channel = quantise.channel_scale(tokens[:20])
    assert error(channel) < 0.01
    assert relative_per_channel(channel) < 0.5 * relative_per_channel(np.ones_like(channel))


def test_channel_scale_is_the_root_mean_square():
    tokens = vit_like(np.random.default_rng(2))
    wanted = np.sqrt((tokens.astype(float) ** 2).mean(axis=(0, 1)))
    np.testing.assert_allclose(quantise.channel_scale(tokens), wanted, rtol=1e-6)
    assert (quantise.channel_scale(np.zeros((2, 3, 4), np.float32)) == 1).all()


def test_a_channel_that_is_silent_at_first_does_not_ruin_the_others():
    random = np.random.default_rng(3)
    tokens = vit_like(random)
    tokens[:10, :, 5] *= 1e-6
    channel = quantise.channel_scale(tokens[:10])
    decoded = quantise.decode_int8(*quantise.encode_int8(tokens, channel), channel)
    others = np.delete(np.arange(64), 5)
    wrong = np.linalg.norm((decoded - tokens)[10:, :, others])
    assert wrong < 0.25 * np.linalg.norm(tokens[10:, :, others])


def test_what_int8_cannot_hold_is_refused():
    channel = quantise.channel_scale(np.full((1, 1, 4), 1e-30, np.float32))
    with pytest.raises(Vis4merError, match="--dtype bfloat16"):
        quantise.encode_int8(np.full((1, 1, 4), 1e30, np.float32), channel)
    for encode in (quantise.channel_scale, lambda t: quantise.encode_int8(t, channel)):
        with pytest.raises(Vis4merError, match="not a finite number"):
            encode(np.full((1, 1, 4), np.nan, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_no_type_stores_what_is_not_finite(tmp_path, dtype, value):
    cache = create_cache(tmp_path / "c.zarr", make_spec(stored_dtype=dtype))
    tokens = make_tokens(3, spec=cache.spec)
    tokens["patch"][2, 0, 0] = value
    with pytest.raises(Vis4merError, match="not a finite number"):
        write(cache, "a", tokens)
    assert open_cache_ids(cache) == []


def open_cache_ids(cache):
    cache.refresh()
    return cache.ids()


def test_int8_entries_written_in_pieces_share_one_channel_scale(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec(stored_dtype="int8"))
    tokens = make_tokens(300, spec=cache.spec)
    tokens["patch"][100:] *= 100  # far louder than the first piece
    write(cache, "a", tokens, piece=100)
    for array in ("patch", "prefix"):
        found = cache.read("a", array)
        wrong = np.abs(found - tokens[array]).max(axis=(1, 2))
        assert (wrong <= np.abs(tokens[array]).max(axis=(1, 2)) / 127 * 4).all()
        assert cache.record("a").arrays[f"{array}_channel"].shape == (1, 8)
