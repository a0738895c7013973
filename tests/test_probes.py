"""The floors and the attentive probe against sums and softmax by definition."""

import math

import pytest
import torch
from token_batches import float64, padded, token_batch
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.decoders import build_decoder


def build(name, batch, **options):
    torch.manual_seed(0)
    return build_decoder(name, shape=batch.shape, num_outputs=5, options=options).double().eval()


def assert_same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def parameters(name, *, dim, **options):
    shape = TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=dim)
    model = build_decoder(name, shape=shape, num_outputs=4, options=options)
    return sum(parameter.numel() for parameter in model.parameters())


# Means ------------------------------------------------------------------------------------------


def test_cls_mean_is_the_mean_of_the_first_prefix_token():
    batch = float64(token_batch(frames=5, grid=(2, 3), prefix=3))
    model = build("cls-mean", batch)
    expected = sum(batch.prefix[:, t, 0] for t in range(5)) / 5
    assert_same(model(padded(batch, 2)), expected @ model.head.weight.mT + model.head.bias)
    assert parameters("cls-mean", dim=64) == 64 * 4 + 4


def hand_batch(values, *, lengths):
    """One token of width 1 a frame."""
    tokens = torch.tensor(values, dtype=torch.float64).expand(len(lengths), -1)[..., None, None]
    mask = torch.arange(len(values)) < torch.tensor(lengths)[:, None]
    return TokenBatch(
        patch=None, prefix=tokens, mask=mask, pts_seconds=torch.zeros(mask.shape).double()
    )


def test_segments_of_windows_by_hand():
    """Powers of two, cut in four: 10 frames at 2, 5, 7; fewer frames than segments repeat some."""
    batch = hand_batch([2.0**t for t in range(10)], lengths=[10, 8, 4, 3, 2, 1])
    model = build("segment-mean", batch)
    expected = torch.tensor(
        [
            [3 / 2, (4 + 8 + 16) / 3, (32 + 64) / 2, (128 + 256 + 512) / 3],
            [3 / 2, 12 / 2, 48 / 2, 192 / 2],
            [1, 2, 4, 8],
            [1, 1, 2, 4],  # ⌊3k/4⌋ = 0, 0, 1, 2
            [1, 1, 2, 2],
            [1, 1, 1, 1],
        ],
        dtype=torch.float64,
    )
    assert_same(model(batch), expected @ model.head.weight.mT + model.head.bias)


def test_segments_take_all_tokens_of_their_frames():
    batch = float64(token_batch(frames=7, grid=(2, 3), prefix=2))
    model = build("segment-mean", batch, segments=3)
    tokens = torch.cat([batch.prefix, batch.patch.flatten(2, 3)], dim=2)  # B T S D
    means = [tokens[:, a:b].flatten(1, 2).mean(dim=1) for a, b in ((0, 2), (2, 4), (4, 7))]
    expected = torch.cat(means, dim=1) @ model.head.weight.mT + model.head.bias
    assert_same(model(padded(batch, 3)), expected)
    assert parameters("segment-mean", dim=64) == 4 * 64 * 4 + 4
    assert parameters("segment-mean", dim=64, segments=7) == 7 * 64 * 4 + 4


def test_one_segment_is_the_mean():
    batch = float64(token_batch(frames=7, grid=(2, 3), prefix=2))
    model, mean = build("segment-mean", batch, segments=1), build("mean", batch).float()
    mean.load_state_dict(model.state_dict())
    assert_same(model(batch).float(), mean(batch), 1e-6)


# Attentive probe --------------------------------------------------------------------------------


def layer_norm(x, norm):
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def linear(x, layer):
    y = x @ layer.weight.mT
    return y if layer.bias is None else y + layer.bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def slow_probe(model, tokens, heads):
    """Of one window's tokens (L, D): keys, values and softmax as the definition has them."""
    d = tokens.shape[1] // heads
    x = layer_norm(tokens, model.norm)
    Q = linear(model.query, model.to_query)
    K, V = linear(x, model.to_key), linear(x, model.to_value)
    parts = []
    for at in range(0, tokens.shape[1], d):
        channels = slice(at, at + d)
        weights = [math.exp(float(Q[channels] @ k[channels]) / math.sqrt(d)) for k in K]
        gathered = sum(w * v[channels] for w, v in zip(weights, V, strict=True))
        parts.append(gathered / sum(weights))
    q = model.query + torch.cat(parts)
    q = q + linear(gelu(linear(layer_norm(q, model.mlp_norm), model.mlp[0])), model.mlp[2])
    return linear(q, model.head)


@pytest.mark.parametrize("missing", [0, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_attentive_probe_is_its_definition(missing, heads):
    batch = float64(token_batch(frames=7, grid=(2, 3), prefix=2))
    model = build("attentive-probe", batch, heads=heads)
    tokens = torch.cat([batch.prefix, batch.patch.flatten(2, 3)], dim=2).flatten(1, 2)
    with torch.no_grad():
        for parameter in model.parameters():  # so that attention is far from uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
        expected = torch.stack([slow_probe(model, window, heads) for window in tokens])
        assert_same(model(padded(batch, missing, value=1e4)), expected)


def test_gradients_of_the_probe_are_those_of_its_definition():
    batch = float64(token_batch(frames=3, prefix=2, dim=8))
    found = []
    for slow in (False, True):
        model = build("attentive-probe", batch, heads=1)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        if slow:
            x = model.norm(batch.sequence())
            scores = model.to_key(x) @ model.to_query(model.query) / math.sqrt(8)  # B L
            a = (scores.softmax(dim=1)[..., None] * model.to_value(x)).sum(dim=1)
            q = model.query + a
            outputs = model.head(q + model.mlp(model.mlp_norm(q)))
        else:
            outputs = model(batch)
        outputs.square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for fast, expected in zip(*found, strict=True):
        assert_same(fast, expected)


def test_the_probe_knows_no_order():
    batch = float64(token_batch(frames=7, prefix=2))
    turned = TokenBatch(
        patch=None, prefix=batch.prefix.flip(1), mask=batch.mask, pts_seconds=batch.pts_seconds
    )
    model = build("attentive-probe", batch)
    assert_same(model(batch), model(turned))


@pytest.mark.parametrize("dim", [64, 1024])
def test_probe_parameter_count(dim):
    """Query; Q and V with a bias, K without; two norms; MLP of 4 D; head."""
    D = dim
    expected = D + 3 * D * D + 2 * D + 4 * D + 8 * D * D + 5 * D + 4 * D + 4
    assert parameters("attentive-probe", dim=dim) == expected
