"""The GRU against its equations, one frame after another."""

import pytest
import torch
from token_batches import float64, padded, token_batch
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.decoders import build_decoder


def build(batch, **options):
    torch.manual_seed(0)
    options = {"width": 6, **options}
    return build_decoder("gru", shape=batch.shape, num_outputs=5, options=options).double().eval()


def slow_gru(frames, weights):
    """States after every frame (T, H), from frames (T, D)."""
    W, U, b, c = weights
    H = U.shape[1]
    h, states = torch.zeros(H, dtype=frames.dtype), []
    for x in frames:
        W_x, U_h = W @ x + b, U @ h + c
        r = torch.sigmoid(W_x[:H] + U_h[:H])
        z = torch.sigmoid(W_x[H : 2 * H] + U_h[H : 2 * H])
        n = torch.tanh(W_x[2 * H :] + r * U_h[2 * H :])
        h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states)


def weights_of(gru, layer, suffix=""):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(gru, f"{name}_l{layer}{suffix}") for name in names]


def slow_outputs(model, tokens):
    """Of one window's tokens (T, S, D), all real."""
    options = model.options
    x = tokens.mean(dim=1)
    x = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    for layer in range(options.depth):
        directions = [slow_gru(x, weights_of(model.gru, layer))]
        if options.bidirectional:
            back = slow_gru(x.flip(0), weights_of(model.gru, layer, "_reverse"))
            directions.append(back.flip(0))
        x = torch.cat(directions, dim=1)
    if options.readout == "mean":
        y = x.mean(dim=0)
    else:
        y = torch.cat([directions[0][-1], *(back[0] for back in directions[1:])])
    return model.head.weight @ y + model.head.bias


@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_gru_is_its_definition(readout, bidirectional, depth):
    """Windows of 8, 3 and 1 real frames in one batch."""
    batch = float64(token_batch(frames=8, grid=(2, 2), prefix=1, dim=10, batch=3))
    model = build(batch, readout=readout, bidirectional=bidirectional, depth=depth)
    lengths = (8, 3, 1)
    mixed = TokenBatch(
        patch=batch.patch,
        prefix=batch.prefix,
        mask=torch.arange(8) < torch.tensor(lengths)[:, None],
        pts_seconds=batch.pts_seconds,
    )
    tokens = torch.cat([batch.prefix, batch.patch.flatten(2, 3)], dim=2)  # B T S D
    with torch.no_grad():
        expected = [slow_outputs(model, tokens[i, :n]) for i, n in enumerate(lengths)]
        for found in (model(mixed), model(padded(mixed, 2))):
            torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_order_matters():
    batch = float64(token_batch(frames=8, prefix=1))
    turned = TokenBatch(
        patch=None, prefix=batch.prefix.flip(1), mask=batch.mask, pts_seconds=batch.pts_seconds
    )
    model = build(batch)
    assert not torch.allclose(model(batch), model(turned), atol=1e-3)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_parameter_count(bidirectional, depth):
    """Per layer and direction three gates of W, U and two biases; LayerNorm; the head."""
    D, H, directions = 64, 512, 1 + bidirectional
    model = build_decoder(
        "gru",
        shape=TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=D),
        num_outputs=4,
        options={"bidirectional": bidirectional, "depth": depth},
    )
    widths = [D] + [directions * H] * (depth - 1)
    layers = sum(directions * 3 * (H * width + H * H + 2 * H) for width in widths)
    expected = 2 * D + layers + directions * H * 4 + 4
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_dropout_is_between_layers_and_before_the_head():
    batch = token_batch(frames=5, prefix=1)
    torch.manual_seed(0)
    options = {"dropout": 0.5, "depth": 2}
    model = build_decoder("gru", shape=batch.shape, num_outputs=2, options=options).train()
    assert (model.gru.dropout, model.dropout.p) == (0.5, 0.5)
    torch.manual_seed(3)
    first = model(batch)
    torch.manual_seed(3)
    assert torch.equal(first, model(batch))
    assert not torch.equal(first, model(batch))
