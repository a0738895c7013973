"""STAM against a post-norm Transformer written out by its definition."""

import math

import pytest
import torch
from token_batches import cut, float64, padded, token_batch
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.decoders import build_decoder
from vis4mer.store.errors import UsageError


def build(batch, **options):
    torch.manual_seed(0)
    options = {"depth": 3, "heads": 4, "feedforward": 48, **options}
    return build_decoder("stam", shape=batch.shape, num_outputs=5, options=options)


def layer_norm(x, norm):
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def slow_attention(x, attention, heads):
    """Of one window (L, D): query after query, head after head."""
    L, D = x.shape
    d = D // heads
    Q, K, V = (x @ attention.in_proj_weight.mT + attention.in_proj_bias).split(D, dim=1)
    rows = []
    for i in range(L):
        parts = []
        for at in range(0, D, d):
            channels = slice(at, at + d)
            scores = [float(Q[i, channels] @ K[j, channels]) / math.sqrt(d) for j in range(L)]
            weights = [math.exp(score) for score in scores]
            total = sum(w * V[j, channels] for j, w in enumerate(weights))
            parts.append(total / sum(weights))
        rows.append(torch.cat(parts))
    out = attention.out_proj
    return torch.stack(rows) @ out.weight.mT + out.bias


def slow_stam(model, frames, heads):
    """Of one window's frame embeddings (T, D)."""
    x = torch.cat([model.cls[None], frames]) + model.positions[: len(frames) + 1]
    for layer in model.encoder.layers:
        x = layer_norm(x + slow_attention(x, layer.self_attn, heads), layer.norm1)
        hidden = (x @ layer.linear1.weight.mT + layer.linear1.bias).clamp(min=0)
        x = layer_norm(x + hidden @ layer.linear2.weight.mT + layer.linear2.bias, layer.norm2)
    return layer_norm(x, model.encoder.norm)[0] @ model.head.weight.mT + model.head.bias


@pytest.mark.parametrize("frame", ["cls", "mean"])
@pytest.mark.parametrize("missing", [0, 3])
def test_stam_is_its_definition(frame, missing):
    batch = float64(token_batch(frames=7, grid=(2, 3), prefix=2))
    model = build(batch, frame=frame).double().eval()
    frames = batch.prefix[:, :, 0] if frame == "cls" else batch.patch.mean(dim=(2, 3))
    with torch.no_grad():
        for parameter in model.parameters():  # so that norms and biases take part
            parameter.add_(0.3 * torch.randn_like(parameter))
        expected = torch.stack([slow_stam(model, window, 4) for window in frames])
        found = model(padded(batch, missing, value=1e4))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_training_without_dropout_is_the_same_function_as_evaluation():
    """torch computes a layer otherwise when no gradient is wanted."""
    batch = padded(token_batch(frames=7, prefix=1), 2)
    model = build(batch, dropout=0.0)
    trained = model.train()(batch)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), trained, rtol=1e-5, atol=1e-5)


def test_order_matters_by_the_positions_alone():
    batch = token_batch(frames=9, prefix=1)
    turned = TokenBatch(
        patch=None, prefix=batch.prefix.flip(1), mask=batch.mask, pts_seconds=batch.pts_seconds
    )
    model = build(batch).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, attention is nearly uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
        assert not torch.allclose(model(batch), model(turned), atol=1e-2)
        model.positions.zero_()
        torch.testing.assert_close(model(batch), model(turned), rtol=1e-5, atol=1e-5)


def test_defaults_are_those_of_the_paper():
    model = build_decoder(
        "stam",
        shape=TokenShape(frames=16, grid=None, num_prefix=1, dim=64),
        num_outputs=3,
        options={},
    )
    assert len(model.encoder.layers) == 6
    layer = model.encoder.layers[0]
    assert (layer.self_attn.num_heads, layer.linear1.out_features) == (8, 2048)
    dropouts = (layer.dropout.p, layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout)
    assert dropouts == (0.1,) * 4
    assert not layer.norm_first
    assert layer.activation is torch.nn.functional.relu
    assert model.positions.shape == (17, 64)


def test_weights_are_drawn_around_zero_with_deviation_002():
    torch.manual_seed(0)
    shape = TokenShape(frames=64, grid=None, num_prefix=1, dim=256)
    model = build_decoder("stam", shape=shape, num_outputs=64, options={"depth": 2})
    drawn = [model.positions, model.head.weight]
    for layer in model.encoder.layers:
        attention = layer.self_attn
        drawn += [attention.in_proj_weight, attention.out_proj.weight]
        drawn += [layer.linear1.weight, layer.linear2.weight]
        for bias in (attention.in_proj_bias, attention.out_proj.bias, layer.linear1.bias):
            assert not bool(bias.any())
    for weight in drawn:
        assert abs(weight.mean().item()) < 1e-3
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    first, second = model.encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert model.cls.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("dim", "frames"), [(64, 7), (768, 60)])
def test_parameter_count(dim, frames):
    """CLS, T+1 positions; per layer Q, K, V, output, FFN, two norms; a norm; the head."""
    shape = TokenShape(frames=frames, grid=(14, 14), num_prefix=1, dim=dim)
    model = build_decoder("stam", shape=shape, num_outputs=4, options={"depth": 2})
    layer = 4 * dim * dim + 4 * dim + 2 * dim * 2048 + 2048 + dim + 4 * dim
    expected = dim + (frames + 1) * dim + 2 * layer + 2 * dim + 4 * dim + 4
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_window_longer_than_its_positions_is_refused():
    batch = token_batch(frames=8, prefix=1)
    model = build(cut(batch, 0, 7)).eval()
    assert model(cut(batch, 0, 3)).shape == (2, 5)
    assert model(padded(cut(batch, 0, 7), 4)).shape == (2, 5)
    with pytest.raises(UsageError, match="positions for 7 frames, got a window of 8"):
        model(batch)
