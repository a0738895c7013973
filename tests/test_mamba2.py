"""Mamba-2 against its recurrence, one token after another."""

import math

import pytest
import torch
from token_batches import cut, float64, padded, token_batch
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.decoders.mamba2 import reverse, reversed_places, scan
from vis4mer.decode.training.optim import dynamics_parameters

OPTIONS = {"width": 12, "depth": 2, "state_size": 5, "heads": 3, "chunk": 7}


def build(batch, **options):
    torch.manual_seed(0)
    options = {**OPTIONS, **options}
    return build_decoder("mamba2", shape=batch.shape, num_outputs=4, options=options)


def draw(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def slow_scan(x, a, B, C):
    """The recurrence in float64: x (b, L, N, P), a (b, L, N), B and C (b, L, S)."""
    x, a, B, C = (tensor.double() for tensor in (x, a, B, C))
    h, rows = torch.zeros(*x[:, 0].shape, B.shape[2], dtype=torch.float64), []
    for t in range(x.shape[1]):
        h = a[:, t].exp()[..., None, None] * h + torch.einsum("bnp,bs->bnps", x[:, t], B[:, t])
        rows.append(torch.einsum("bnps,bs->bnp", h, C[:, t]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 2, 31, 64, 197])
@pytest.mark.parametrize("chunk", [1, 8, 64, 256])
def test_chunks_are_the_recurrence(dtype, tolerance, length, chunk):
    """Decays from none at all to forgetting at once; the error is relative to the largest value."""
    x, B, C = (draw(2, length, *size, dtype=dtype) for size in ((3, 4), (6,), (6,)))
    a = -draw(2, length, 3, dtype=dtype, seed=1).mul(2).exp() * 0.1
    expected = slow_scan(x, a, B, C)
    found = scan(x, a, B, C, chunk=chunk)
    assert found.dtype == dtype
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_gradients_of_the_chunks_are_those_of_the_recurrence():
    inputs = [draw(2, 19, *size, dtype=torch.float64) for size in ((3, 4), (3,), (5,), (5,))]
    inputs[1] = -inputs[1].abs()
    found = []
    for how in (lambda *values: scan(*values, chunk=4), slow_scan):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        how(*leaves).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for chunked, slow in zip(*found, strict=True):
        torch.testing.assert_close(chunked, slow, rtol=1e-9, atol=1e-9)


def test_extreme_decays_overflow_nowhere():
    """exp of a sum of steps of 1e4 would, if any exponent had the wrong sign."""
    x, B, C = (draw(1, 40, *size, dtype=torch.float32) for size in ((2, 3), (4,), (4,)))
    a = torch.full((1, 40, 2), -1e4).requires_grad_()
    y = scan(x, a, B, C, chunk=16)
    y.sum().backward()
    assert bool(a.grad.isfinite().all())
    now = torch.einsum("bls,bls->bl", B, C)[..., None, None] * x  # nothing is remembered
    torch.testing.assert_close(y, now, rtol=1e-5, atol=1e-5)


def numbers_kept(length):
    """What autograd keeps of a scan, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    inputs = [draw(1, length, *size, dtype=torch.float32) for size in ((2, 8), (2,), (8,), (8,))]
    inputs[1] = -inputs[1].abs()
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = scan(*leaves, chunk=64)
    del y
    return sum(size for size, _ in kept.values())


def test_memory_grows_with_the_tokens():
    assert numbers_kept(2048) <= 4.1 * numbers_kept(512)


# The block --------------------------------------------------------------------------------------


def slow_conv(x, conv):
    """Causal taps of every channel: (L, channels)."""
    taps = conv.weight[:, 0]  # channels k
    k = taps.shape[1]
    rows = []
    for t in range(len(x)):
        seen = [taps[:, k - 1 - back] * x[t - back] for back in range(min(k, t + 1))]
        rows.append(sum(seen) + conv.bias)
    return torch.stack(rows)


def silu(x):
    return x / (1 + (-x).exp())


def slow_direction(scan_module, x_B_C, dt, heads, state):
    inner = x_B_C.shape[1] - 2 * state
    x, B, C = silu(slow_conv(x_B_C, scan_module.conv)).split([inner, state, state], dim=1)
    x = x.view(len(x), heads, -1)
    dt = (1 + (dt + scan_module.dt_bias).exp()).log()
    A = -scan_module.log_A.exp()
    y = slow_scan((dt[..., None] * x)[None], (dt * A)[None], B[None], C[None])[0]
    return (y + scan_module.D[:, None] * x).flatten(1)


def slow_block(block, u, options):
    """Of one window (L, W), all real."""
    normal = block.norm(u) @ block.in_proj.weight.mT
    inner, state, heads = 2 * options["width"], options["state_size"], options["heads"]
    z, x_B_C, dt, dt_back = normal.split([inner, inner + 2 * state, heads, heads], dim=1)
    y = slow_direction(block.forwards, x_B_C, dt, heads, state)
    back = slow_direction(block.backwards, x_B_C.flip(0), dt_back.flip(0), heads, state)
    y = (y + back.flip(0)) * silu(z)
    y = y / (y.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * block.gated_norm.weight
    return u + y @ block.out_proj.weight.mT


def test_mamba2_is_its_definition():
    """Windows of 6 and 4 real frames in one batch."""
    batch = float64(token_batch(frames=6, grid=(2, 1), prefix=1, dim=10))
    model = build(batch).double().eval()
    lengths = (6, 4)
    mixed = TokenBatch(
        patch=batch.patch,
        prefix=batch.prefix,
        mask=torch.arange(6) < torch.tensor(lengths)[:, None],
        pts_seconds=batch.pts_seconds,
    )
    tokens = torch.cat([batch.prefix, batch.patch.flatten(2, 3)], dim=2)  # B T S D
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        found = model(mixed)
        for window, length in enumerate(lengths):
            u = model.embed(tokens[window, :length].flatten(0, 1))
            for block in model.blocks:
                u = slow_block(block, u, OPTIONS)
            expected = model.head(model.norm(u).mean(dim=0))
            torch.testing.assert_close(found[window], expected, rtol=1e-9, atol=1e-9)


def test_the_reverse_of_a_window_turns_its_real_tokens_alone():
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    places = reversed_places(mask)
    assert places.tolist() == [[4, 3, 2, 1, 0], [2, 1, 0, 3, 4], [0, 1, 2, 3, 4]]
    x = draw(3, 5, 2, dtype=torch.float32)
    assert torch.equal(reverse(reverse(x, places), places), x)
    assert torch.equal(reverse(x, None)[0], reverse(x, places)[0])


@pytest.mark.parametrize("chunk", [1, 16, 500])
def test_the_chunk_changes_rounding_alone(chunk):
    batch = padded(token_batch(frames=11, grid=(3, 3)), 2)
    model, other = build(batch, chunk=7).eval(), build(batch, chunk=chunk).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(batch), other(batch), rtol=1e-5, atol=1e-5)


def test_one_model_takes_any_length():
    model = build(token_batch(frames=7, grid=(2, 2))).eval()
    long = token_batch(frames=53, grid=(2, 2))
    with torch.no_grad():
        for frames in (1, 2, 53):
            assert bool(model(cut(long, 0, frames)).isfinite().all())


def test_it_reads_in_both_directions():
    """Of the last block's tokens, the first depends on the last and the last on the first."""
    batch = token_batch(frames=9, prefix=1)
    model = build(batch, depth=1).eval()
    u = draw(1, 9, OPTIONS["width"], dtype=torch.float32).requires_grad_()
    model.blocks[0](u, None)[0, 0].sum().backward()
    assert bool(u.grad[0, 8].any())
    u.grad = None
    model.blocks[0](u, None)[0, 8].sum().backward()
    assert bool(u.grad[0, 0].any())


# Sizes and beginnings ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 1024])
def test_parameter_count(dim):
    """W, 2W, S, N of the defaults; two directions have their own dt, taps, A and D."""
    W, inner, S, N, n_out = 256, 512, 64, 8, 4
    shape = TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=dim)
    model = build_decoder("mamba2", shape=shape, num_outputs=n_out, options={})
    projection = W * (inner + inner + 2 * S + 2 * N)
    direction = (inner + 2 * S) * (4 + 1) + 3 * N
    block = 2 * W + projection + 2 * direction + inner + inner * W
    expected = dim * W + W + 2 * block + 2 * W + W * n_out + n_out
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_time_begins_in_the_published_ranges_and_learns_slowly():
    model = build(token_batch(frames=2, prefix=1), width=256, heads=64)
    for block in model.blocks:
        for direction in (block.forwards, block.backwards):
            dt = torch.nn.functional.softplus(direction.dt_bias).detach()
            assert float(dt.min()) > 1e-3 * 0.99
            assert float(dt.max()) < 1e-1 * 1.01
            assert abs(float(dt.log().mean()) - (math.log(1e-3) + math.log(1e-1)) / 2) < 0.6
            decay = direction.log_A.detach().exp()
            assert 0.99 < float(decay.min()) < 4
            assert 13 < float(decay.max()) < 16.01
    found = {id(parameter) for parameter in dynamics_parameters(model)}
    names = {name.rpartition(".")[2] for name, p in model.named_parameters() if id(p) in found}
    assert names == {"log_A", "dt_bias"}
    assert len(found) == 2 * 2 * 2


def test_decays_stay_in_float32_under_autocast():
    """Steps of 1e-3 over 512 tokens: in bfloat16 the running sum would lose half of them."""
    x, B, C = (draw(1, 512, *size, dtype=torch.float32) for size in ((2, 4), (8,), (8,)))
    a = torch.full((1, 512, 2), -1e-3)
    expected = slow_scan(x, a, B, C)
    with torch.autocast("cpu", torch.bfloat16):
        found = scan(x, a, B.bfloat16(), C.bfloat16(), chunk=64)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.01
