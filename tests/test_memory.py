"""The memory decoder against its definition: one mask without a state, convolutions by loops."""

import itertools
import math

import pytest
import torch
from token_batches import cut, float64, padded, token_batch
from torch import nn
from torch.nn import functional
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.data.lanes import lane_steps
from vis4mer.decode.data.plan import Stretch
from vis4mer.decode.decoders import build_decoder, decoder_options
from vis4mer.decode.decoders.memory_attention import Compressor
from vis4mer.decode.decoders.memory_state import MemoryState
from vis4mer.decode.runs.checkpoints import (
    Checkpoint,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from vis4mer.store.errors import UsageError
from vis4mer.store.windows import Window

C = 4  # frames of a chunk, unless a test says otherwise
VIEWS = {
    "grid": {"grid": (5, 3)},
    "grid and prefix": {"grid": (3, 4), "prefix": 2},
    "prefix": {"prefix": 3},
    "one token": {"prefix": 1},
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


def build(batch, *, seed=0, **options):
    """A small decoder with no weight at a value that hides a mistake, such as a bias of zero."""
    torch.manual_seed(seed)
    options = {"chunk_frames": C, "width": 16, "heads": 4, "dropout": 0.0, **options}
    model = build_decoder("memory", shape=batch.shape, num_outputs=3, options=options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Slow definitions -------------------------------------------------------------------------------


def slow_compress(f, patches):
    """LN(conv(h)): patches (B, T, h, w, W), one output token after another."""
    B, T, h, w, _ = patches.shape
    weight = f.conv.weight[:, 0]  # W 7 3 3
    tokens = []
    for t, i, j in itertools.product(range(0, T, 4), range(0, h, 2), range(0, w, 2)):
        total = patches.new_zeros(B, patches.shape[4])
        for a, b, c in itertools.product(range(-3, 4), range(-1, 2), range(-1, 2)):
            if 0 <= t + a < T and 0 <= i + b < h and 0 <= j + c < w:
                total = total + weight[:, a + 3, b + 1, c + 1] * patches[:, t + a, i + b, j + c]
        tokens.append(f.norm(total))
    return torch.stack(tokens, dim=1)


def sequence_of(batch):
    parts = [] if batch.prefix is None else [batch.prefix]
    parts += [] if batch.patch is None else [batch.patch.flatten(2, 3)]
    return torch.cat(parts, dim=2)  # B T S D


def slow_attention(layer, queries, query_frames, keys, values, key_frames, allowed):
    """By head, with the whole matrix of scores; frames are counted from the window's first."""
    d = layer.query.weight.shape[0] // layer.heads
    Q, K, V = layer.query(queries), layer.key(keys), layer.value(values)
    distance = query_frames[:, None] - key_frames[None, :]
    place = (distance + layer.chunk_frames - 1).clamp(0, layer.bias.shape[1] - 1)
    heads = []
    for n in range(layer.heads):
        part = slice(n * d, (n + 1) * d)
        scores = Q[..., part] @ K[..., part].mT / math.sqrt(d) + layer.bias[n][place]
        weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        heads.append(weights @ V[..., part])
    return layer.output(torch.cat(heads, dim=-1))


def finish(model, x, chunks):
    y = model.norm(x)
    if model.options.readout == "last":
        y = y[:, chunks == chunks.max()]
    return model.head(y.mean(dim=1))


def masked_definition(model, batch):
    """No state: one attention over the whole window with one mask, chunk-causal and banded.

    Only without compression; gradients pass into earlier chunks here.
    """
    tokens = sequence_of(batch)
    frames = torch.arange(tokens.shape[1]).repeat_interleave(tokens.shape[2])
    chunks = frames // model.options.chunk_frames
    passed = chunks[:, None] - chunks[None, :]
    allowed = (passed >= 0) & (passed < model.options.memory_length)
    x = model.embed(tokens.flatten(1, 2))
    for block in model.blocks:
        h = block.norm(x)
        x = x + slow_attention(block.attention, h, frames, h, h, frames, allowed)
        x = x + block.mlp(block.mlp_norm(x))
    return finish(model, x, chunks)


def pipelined_definition(model, batch):
    """Layer after layer over all chunks: what each reads is written out, gradients included."""
    tokens = sequence_of(batch)
    p = 0 if batch.prefix is None else batch.prefix.shape[2]
    size, M = model.options.chunk_frames, model.options.memory_length
    starts = range(0, tokens.shape[1], size)
    x = [model.embed(tokens[:, s : s + size].flatten(1, 2)) for s in starts]
    frames = [torch.arange(s, min(s + size, tokens.shape[1])) for s in starts]
    for block in model.blocks:
        h = [block.norm(chunk) for chunk in x]
        for t, own in enumerate(h):
            keys, values, key_frames = [own], [own], [frames[t].repeat_interleave(tokens.shape[2])]
            for past in range(t - 1, max(-1, t - M), -1):
                old = h[past].detach().unflatten(1, (-1, tokens.shape[2]))  # B T S W
                prefix, patches = old[:, :, :p], old[:, :, p:].unflatten(2, batch.shape.grid)
                for f, read in ((block.compressor.keys, keys), (block.compressor.values, values)):
                    made = slow_compress(f, patches)
                    read.append(made if past == t - 1 else made.detach())
                    read.append(prefix.flatten(1, 2))
                per_slot = made.shape[1] // len(frames[past][::4])
                key_frames.append(frames[past][::4].repeat_interleave(per_slot))
                key_frames.append(frames[past].repeat_interleave(p))
            keys, values = torch.cat(keys, dim=1), torch.cat(values, dim=1)
            own_frames, key_frames = key_frames[0], torch.cat(key_frames)
            everything = torch.ones(len(own_frames), len(key_frames), dtype=torch.bool)
            layer = block.attention
            y = slow_attention(layer, own, own_frames, keys, values, key_frames, everything)
            x[t] = x[t] + y
            x[t] = x[t] + block.mlp(block.mlp_norm(x[t]))
    chunks = torch.cat([f // size for f in frames]).repeat_interleave(tokens.shape[2])
    return finish(model, torch.cat(x, dim=1), chunks)


# What it computes -------------------------------------------------------------------------------


@each_view
@pytest.mark.parametrize("memory_length", [1, 2, 3, 100], ids=lambda n: f"{n} chunks")
@pytest.mark.parametrize("readout", ["mean", "last"])
def test_without_compression_it_is_one_masked_attention(view, memory_length, readout):
    """One chunk is attention within chunks alone, 100 are full chunk-causal attention."""
    batch = float64(token_batch(frames=4 * C - 3, dim=8, **view))
    options = {"memory_length": memory_length, "compress": False, "readout": readout}
    model = build(batch, **options).double()
    with torch.no_grad():
        assert_same(model(batch), masked_definition(model, batch), 1e-10)


@pytest.mark.parametrize("view", ["grid", "grid and prefix"])
@pytest.mark.parametrize("memory_length", [1, 2, 4])
def test_with_compression_it_is_its_definition_gradients_too(view, memory_length):
    """The compressor learns in the one step that reads what it has just made."""
    batch = float64(token_batch(frames=11, dim=8, batch=1, **VIEWS[view]))
    options = {"memory_length": memory_length, "width": 8, "heads": 2, "chunk_frames": 3}
    fast = build(batch, **options).double()
    slow = build(batch, **options).double()
    found, expected = fast(batch), pipelined_definition(slow, batch)
    assert_same(found, expected, 1e-10)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, parameter), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-8, atol=1e-10, msg=name)
        assert bool(parameter.grad.any()), name
    assert any("compressor" in name for name in fast.state_dict()) == (memory_length > 1)


@pytest.mark.parametrize("shape", [(8, 14, 14), (5, 3, 1), (1, 1, 2), (4, 2, 2)], ids=str)
def test_the_compressor_by_loops(shape):
    torch.manual_seed(0)
    f = Compressor(2).double()
    patches = torch.randn(2, *shape, 2, dtype=torch.float64)
    found = f(patches)
    assert found.shape[1:4] == (-(-shape[0] // 4), -(-shape[1] // 2), -(-shape[2] // 2))
    assert_same(found.flatten(1, 3), slow_compress(f, patches), 1e-10)


def test_a_view_without_a_grid_has_no_compressor():
    batch = token_batch(frames=9, prefix=3)
    with_it, without = build(batch), build(batch, compress=False)
    assert with_it.state_dict().keys() == without.state_dict().keys()
    assert torch.equal(with_it(batch), without(batch))


def test_the_order_of_frames_within_a_chunk_matters():
    batch = token_batch(frames=C, grid=(2, 2))
    turned = TokenBatch(
        patch=batch.patch.flip(1), prefix=None, mask=batch.mask, pts_seconds=batch.pts_seconds
    )
    model = build(batch)
    assert not torch.allclose(model(batch), model(turned), atol=1e-3)
    for block in model.blocks:
        nn.init.zeros_(block.attention.bias)
    assert_same(model(batch), model(turned))


# Memory -----------------------------------------------------------------------------------------


def walk(model, batch, sizes, state=None):
    """The outputs of consecutive windows of these sizes, memory carried on."""
    state, at, outputs = state or model.start_memory(), 0, []
    for size in sizes:
        one, state = model.forward_from(cut(batch, at, at + size), state)
        outputs.append(one)
        at += size
    return outputs, state


@each_view
def test_windows_that_carry_the_memory_are_one_long_window(view):
    batch = float64(token_batch(frames=5 * C - 1, **view))
    model = build(batch, memory_length=3, readout="last").double()
    outputs, _ = walk(model, batch, [C, 2 * C, 2 * C - 1])
    assert_same(outputs[-1], model(batch), 1e-10)
    alone = model(cut(batch, 3 * C, 5 * C - 1))
    assert not torch.allclose(outputs[-1], alone, atol=1e-3)


@each_view
def test_a_lane_that_starts_a_video_remembers_nothing(view):
    batch = float64(token_batch(frames=5 * C, **view))
    model = build(batch, memory_length=4).double()
    _, state = walk(model, batch, [2 * C])
    after = cut(batch, 2 * C, 5 * C)
    starts = torch.tensor([True, False])
    outputs, state_after = model.forward_from(after, state, starts)
    assert_same(outputs[0], model(after)[0], 1e-10)
    carried, _ = model.forward_from(after, state)
    assert_same(outputs[1], carried[1], 1e-10)
    assert not torch.allclose(outputs[0], carried[0], atol=1e-3)
    # … nor at any later step, although the cleared chunks are still there
    fresh_state = model.forward_from(after, model.start_memory())[1]
    later = cut(token_batch_like(batch, seed=5), 0, C)
    assert_same(
        model.forward_from(later, state_after)[0][0],
        model.forward_from(later, fresh_state)[0][0],
        1e-10,
    )


def token_batch_like(batch, *, seed):
    shape = batch.shape
    return float64(
        token_batch(
            frames=shape.frames, grid=shape.grid, prefix=shape.num_prefix, dim=shape.dim, seed=seed
        )
    )


@each_view
def test_lanes_of_whole_videos_are_each_video_alone(view):
    """Windows that do not end with a chunk, short tails, idle lanes: no video sees another."""
    shape = token_batch(frames=1, **view).shape
    long = [10, 1, 17, 4, 6, 25]
    videos = [float64(token_batch(frames=n, batch=1, seed=i, **view)) for i, n in enumerate(long)]
    stretches = [Stretch(id=str(i), extent=Window(start=0, stop=n)) for i, n in enumerate(long)]
    model = build(videos[0], memory_length=3).double()
    alone = [
        walk(model, video, [min(6, n - at) for at in range(0, n, 6)])[0]
        for video, n in zip(videos, long, strict=True)
    ]
    for drop_idle in (False, True):  # a lane that has ended stays, all padding, or leaves the batch
        state, met, present = model.start_memory(), 0, list(range(4))
        for step in lane_steps(stretches, length=6, lanes=4, seed=0, epoch=0):
            if drop_idle:
                kept = [row for row, lane in enumerate(present) if step[lane]]
                state, present = state.rows(torch.tensor(kept)), [present[row] for row in kept]
            ones = [step[lane] for lane in present]
            rows = [
                cut(videos[one.stretch], one.window.start, one.window.stop) if one else None
                for one in ones
            ]
            starts = torch.tensor([one is not None and one.starts for one in ones])
            outputs, state = model.forward_from(side_by_side(rows, shape), state, starts)
            for row, one in enumerate(ones):
                if one:
                    expected = alone[one.stretch][one.window.start // 6][0]
                    assert_same(outputs[row], expected, 1e-10)
                    met += 1
        assert met == sum(map(len, alone)) == 13
        assert drop_idle == (len(present) < 4)


def side_by_side(rows, shape):
    """Windows of one row each, or none, in one batch with padding."""
    frames = max(row.mask.shape[1] for row in rows if row)
    nothing = token_batch(
        frames=frames, grid=shape.grid, prefix=shape.num_prefix, dim=shape.dim, batch=1
    )
    idle = float64(masked_after(nothing, 0))
    filled_up = [padded(row, frames - row.mask.shape[1]) if row else idle for row in rows]

    def join(field):
        parts = [getattr(row, field) for row in filled_up]
        return None if parts[0] is None else torch.cat(parts)

    return TokenBatch(
        patch=join("patch"),
        prefix=join("prefix"),
        mask=join("mask"),
        pts_seconds=join("pts_seconds"),
    )


def masked_after(batch, frames, *, window=0):
    """The same with only the first `frames` of one window real."""
    mask = batch.mask.clone()
    mask[window, frames:] = False
    return TokenBatch(
        patch=batch.patch, prefix=batch.prefix, mask=mask, pts_seconds=batch.pts_seconds
    )


@each_view
@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_padding_that_was_remembered_changes_nothing(view, value):
    """A chunk cut short by its window, compressed with its padding when the next window comes."""
    batch = float64(token_batch(frames=4 * C, **view))
    model = build(batch, memory_length=4).double()
    first, last = cut(batch, 0, C + 2), cut(batch, C + 2, 2 * C + 2)
    _, short = model.forward_from(first, model.start_memory())
    _, filled_up = model.forward_from(padded(first, C - 2, value=value), model.start_memory())
    expected, short = model.forward_from(last, short)
    found, filled_up = model.forward_from(last, filled_up)
    assert_same(found, expected, 1e-10)
    after = cut(batch, 2 * C + 2, 3 * C + 2)
    assert_same(model.forward_from(after, filled_up)[0], model.forward_from(after, short)[0], 1e-10)


@each_view
def test_what_is_masked_in_the_memory_may_hold_anything(view):
    batch = float64(token_batch(frames=3 * C, **view))
    model = build(batch, memory_length=3).double()
    _, state = walk(model, batch, [2 * C])
    cleared = state.cleared(torch.tensor([True, True]))
    garbage = MemoryState(
        layers=tuple(
            tuple(filled(slot, 1e4 * torch.randn_like(slot.keys)) for slot in memory)
            for memory in cleared.layers
        )
    )
    last = cut(batch, 2 * C, 3 * C)
    expected = model(last)
    assert_same(model.forward_from(last, cleared)[0], expected, 1e-10)
    assert_same(model.forward_from(last, garbage)[0], expected, 1e-10)
    # zeros without a mask take their share of the softmax: not the same
    zeros = MemoryState(
        layers=tuple(
            tuple(filled(slot, torch.zeros_like(slot.keys)) for slot in memory)
            for memory in state.layers
        )
    )
    assert not torch.allclose(model.forward_from(last, zeros)[0], expected, atol=1e-3)


def tensors_of(state):
    """Keys and values of all layers, each tensor once."""
    slots = [slot for memory in state.layers for slot in memory]
    return {id(t): t for slot in slots for t in (slot.keys, slot.values)}.values()


def filled(slot, numbers):
    return type(slot)(keys=numbers, values=numbers, real=slot.real, frames=slot.frames)


def test_gradient_reaches_the_compressor_for_exactly_one_step():
    """The chunk that a step compresses teaches it; those compressed before do not."""
    batch = token_batch(frames=4 * C, grid=(3, 3))
    model = build(batch, memory_length=4)

    def gradients(remembered):
        _, state = walk(model, batch, [3 * C]) if remembered else (None, None)
        calls = []
        hooks = [
            block.compressor.register_forward_hook(lambda *_: calls.append(1))
            for block in model.blocks
        ]
        model.zero_grad()
        model.forward_from(cut(batch, 3 * C, 4 * C), state)[0].square().sum().backward()
        for hook in hooks:
            hook.remove()
        return calls, {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if "compressor" in name
        }

    calls, found = gradients(remembered=True)
    assert len(calls) == len(model.blocks)
    # the same step from a memory that was made without any graph
    with torch.no_grad():
        _, state = walk(model, batch, [3 * C])
    model.zero_grad()
    model.forward_from(cut(batch, 3 * C, 4 * C), state)[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        if "compressor" in name:
            assert torch.equal(parameter.grad, found[name])
            assert bool(parameter.grad.any())
    assert not any(t.requires_grad for t in tensors_of(walk(model, batch, [4 * C])[1]))


def test_the_projections_learn_from_stale_features():
    batch = token_batch(frames=2 * C, prefix=2)
    model = build(batch, depth=1)
    _, state = walk(model, batch, [C])
    last = cut(batch, C, 2 * C)
    grads = []
    for starts in (None, torch.tensor([True, True])):
        model.zero_grad()
        model.forward_from(last, state, starts)[0].square().sum().backward()
        grads.append(model.blocks[0].attention.value.weight.grad.clone())
    assert not torch.allclose(*grads, atol=1e-3)


def test_the_memory_does_not_grow():
    batch = token_batch(frames=8 * C, grid=(4, 4), prefix=1)
    model = build(batch, memory_length=3).eval()
    held = [sum(t.numel() for t in tensors_of(walk(model, batch, [n * C])[1])) for n in range(1, 9)]
    whole, compressed = C * 17, C + 1 * 2 * 2  # tokens
    per_layer = 2 * 16  # windows, width
    assert held[0] == 2 * per_layer * whole
    assert set(held[1:]) == {2 * per_layer * (whole + 2 * compressed)}


# What must not matter ---------------------------------------------------------------------------


@each_view
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("value", [7.0, float("nan")])
@pytest.mark.parametrize("frames", [1, 7, 8, 11])
def test_padding_changes_nothing(view, readout, value, frames):
    batch = token_batch(frames=frames, **view)
    model = build(batch, readout=readout).eval()
    with torch.no_grad():
        expected = model(batch)
        for more in (1, 2, 6):
            assert_same(model(padded(batch, more, value=value)), expected)


def test_windows_of_a_batch_do_not_meet():
    """A short one, whose last chunks are all padding, beside a long one: each as if alone."""
    whole = token_batch(frames=5 * C, grid=(3, 3), prefix=1)
    for short in (1, C, 2 * C - 1, 2 * C):
        mixed = masked_after(whole, short)
        for readout in ("mean", "last"):
            model = build(whole, readout=readout).eval()
            outputs = model(mixed)
            assert_same(outputs[0], model(cut(whole, 0, short))[0])
            assert_same(outputs[1], model(whole)[1])
            model.zero_grad()
            outputs.sum().backward()
            assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_lane_without_frames_disturbs_nobody():
    whole = token_batch(frames=2 * C, grid=(3, 3))
    idle = masked_after(whole, 0)
    model = build(whole)
    outputs, _ = model.forward_from(idle, model.start_memory())
    assert_same(outputs[1], model(whole)[1])
    assert bool(outputs.isfinite().all())
    outputs[1].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    with pytest.raises(UsageError, match="'memory' needs at least 1 real frame"):
        model(idle)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 13])
@each_view
def test_any_number_of_frames_gives_finite_gradients_in_bfloat16(frames, view):
    batch = token_batch(frames=frames, **view)
    model = build(batch, dropout=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(padded(batch, 1))
    functional.cross_entropy(outputs.float(), torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert bool(parameter.grad.isfinite().all()), name
        else:
            assert "compressor" in name
            assert frames <= C


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (1, 5), (5, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("frames", [1, 8])
def test_the_compressor_learns_the_same_in_bfloat16(grid, frames):
    """A weight that meets nothing but padding has a gradient of zero, and not of anything."""
    torch.manual_seed(0)
    f = Compressor(8)
    patches = torch.randn(4, frames, *grid, 8)
    gradients = []
    for low in (True, False):
        for _ in range(3):  # what lay in memory before may be anything
            torch.full((300, 100), float("nan"), dtype=torch.bfloat16)
            f.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                f(patches)[..., ::2].square().sum().backward()
            gradients.append(f.conv.weight.grad.clone())
    largest = float(gradients[-1].abs().max())
    for gradient in gradients:
        assert_same(gradient / largest, gradients[-1] / largest, 0.02)


def test_bfloat16_is_close_to_float32():
    batch = token_batch(frames=11, grid=(3, 3), prefix=1)
    model = build(batch).eval()
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(batch.to("cpu", torch.bfloat16))
    assert float((outputs.float() - expected).norm() / expected.norm()) < 0.05


# Streams ----------------------------------------------------------------------------------------


@each_view
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("sizes", [[1], [3, 1, 6]], ids=str)
def test_every_step_of_a_stream_equals_the_window_so_far(view, readout, sizes):
    batch = token_batch(frames=3 * C + 2, **view)
    model = build(batch, readout=readout).eval()
    assert model.streamable
    state, at = model.start_stream(2, "cpu"), 0
    for size in itertools.cycle(sizes):
        stop = min(at + size, batch.mask.shape[1])
        outputs, state = model.stream_step(cut(batch, at, stop), state)
        at = stop
        assert state.waiting.shape[1] < C * batch.shape.tokens_per_frame
        with torch.no_grad():
            assert_same(outputs, model(cut(batch, 0, at)))
        if at == batch.mask.shape[1]:
            break
    with pytest.raises(ValueError, match="real frames only"):
        model.stream_step(padded(batch, 1), state)


# Sizes and options ------------------------------------------------------------------------------


def expected_parameters(dim, *, grid, compress=True, W=256, N=8, depth=2, frames=8, M=3):
    """By the equations: embedding, layers, last norm, head of 3."""
    layer = 2 * W + 4 * (W * W + W) + N * (M * frames + frames - 1)
    layer += 2 * W + (4 * W * W + 4 * W) + (4 * W * W + W)
    if grid and compress and M > 1:
        layer += 2 * (7 * 3 * 3 * W + 2 * W)
    return dim * W + W + depth * layer + 2 * W + 3 * W + 3


@pytest.mark.parametrize("grid", [None, (14, 14)])
@pytest.mark.parametrize(
    "options",
    [{}, {"compress": False}, {"memory_length": 1}, {"chunk_frames": 5, "depth": 1, "width": 64}],
    ids=str,
)
def test_parameter_count(grid, options):
    shape = TokenShape(frames=60, grid=grid, num_prefix=1, dim=96)
    model = build_decoder("memory", shape=shape, num_outputs=3, options=options)
    names = {"memory_length": "M", "chunk_frames": "frames", "width": "W"}
    by_letter = {names.get(name, name): value for name, value in options.items()}
    expected = expected_parameters(96, grid=grid, **by_letter)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_weights_survive_saving_bit_by_bit(tmp_path):
    batch = token_batch(frames=11, grid=(3, 3))
    model, other = build(batch), build(batch, seed=1)
    path = tmp_path / "w.safetensors"
    write_checkpoint(path, Checkpoint(tensors=model.state_dict(), about={}))
    load_model(other, read_checkpoint(path).tensors, name="w")
    assert torch.equal(model(batch), other(batch))


def test_options_are_read_from_text_and_survive_json():
    text = {"chunk_frames": "16", "compress": "false", "readout": "last", "dropout": "0"}
    options = decoder_options("memory", text)
    assert (options.chunk_frames, options.compress, options.readout) == (16, False, "last")
    assert type(options).from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 6}, "decoder.heads is 6, which does not divide the width 256; use --set .*=2"),
        ({"memory_length": 0}, "memory_length is 0, expected at least 1"),
        ({"chunk_frames": 0}, "chunk_frames is 0, expected at least 1"),
        ({"readout": "first"}, "readout is 'first', expected one of mean, last"),
        ({"dropout": 1}, "dropout is 1.0, expected at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        decoder_options("memory", options)
