"""What holds for every decoder outside ViS4mer's skeleton: padding, lengths, gradients, saving."""

import json

import pytest
import torch
from token_batches import cut, float64, padded, token_batch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.data.clips import Clip, collate
from vis4mer.decode.decoders import build_decoder, decoder_options
from vis4mer.decode.runs.checkpoints import (
    Checkpoint,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from vis4mer.decode.training.learner import training_loss
from vis4mer.store.errors import UsageError

SMALL_STAM = {"depth": 2, "feedforward": 64, "dropout": 0.0}
SMALL_MAMBA2 = {"width": 16, "state_size": 8, "heads": 4, "chunk": 16, "dropout": 0.0}
KINDS = {
    "stam": ("stam", SMALL_STAM),
    "stam of means": ("stam", {**SMALL_STAM, "frame": "mean"}),
    "cls-mean": ("cls-mean", {}),
    "segment-mean": ("segment-mean", {}),
    "attentive-probe": ("attentive-probe", {}),
    "gru": ("gru", {"width": 16, "dropout": 0.0}),
    "gru, two directions": ("gru", {"width": 16, "dropout": 0.0, "bidirectional": True}),
    "gru, last states": (
        "gru",
        {"width": 16, "dropout": 0.0, "bidirectional": True, "readout": "last", "depth": 2},
    ),
    "mamba2": ("mamba2", SMALL_MAMBA2),
}
STREAMABLE = {
    "cls-mean": ("cls-mean", {}),
    "attentive-probe": ("attentive-probe", {}),
    "gru": ("gru", {"width": 16}),
    "gru, last state": ("gru", {"width": 16, "readout": "last", "depth": 2}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind, batch, *, seed=0):
    torch.manual_seed(seed)
    name, options = KINDS[kind]
    return build_decoder(name, shape=batch.shape, num_outputs=4, options=options)


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# What must not matter ---------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("value", [1e4, float("nan")])
@pytest.mark.parametrize("frames", [1, 2, 11])
def test_padding_changes_nothing(kind, value, frames):
    batch = token_batch(frames=frames, grid=(3, 2), prefix=1)
    model = build(kind, batch).eval()
    with torch.no_grad():
        expected = model(batch)
        for missing in (1, 5):
            assert_same(model(padded(batch, missing, value=value)), expected)


@each_kind
def test_windows_of_a_batch_do_not_meet(kind):
    """Windows of 5, 9 and 1 frames beside one another: each as if alone."""
    whole = token_batch(frames=9, grid=(3, 3), prefix=1, batch=3)
    lengths = (5, 9, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    mixed = TokenBatch(
        patch=whole.patch, prefix=whole.prefix, mask=mask, pts_seconds=whole.pts_seconds
    )
    model = build(kind, whole).eval()
    with torch.no_grad():
        outputs = model(mixed)
        for window, length in enumerate(lengths):
            assert_same(outputs[window], model(cut(whole, 0, length))[window])


@each_kind
@pytest.mark.parametrize("frames", [1, 2, 7, 31, 60, 97])
def test_any_length_works_and_says_the_same_twice(kind, frames):
    batch = token_batch(frames=frames, grid=(2, 2), prefix=1)
    model = build(kind, batch).eval()
    with torch.no_grad():
        first = model(batch)
        assert torch.equal(first, model(batch))
    assert first.shape == (2, 4)
    assert bool(first.isfinite().all())


@each_kind
def test_float64_is_the_same_function(kind):
    batch = token_batch(frames=9, grid=(3, 2), prefix=1)
    model = build(kind, batch).eval()
    with torch.no_grad():
        assert_same(model(batch).double(), model.double()(float64(batch)))


# Training ---------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("missing", [0, 3])
def test_gradients_are_finite_under_bfloat16_autocast(kind, missing):
    batch = padded(token_batch(frames=10, grid=(4, 4), prefix=1), missing, value=1e4)
    half = batch.to("cpu", torch.float16)  # as a cache holds it
    model = build(kind, batch).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(half)
        loss = functional.cross_entropy(outputs.float(), torch.tensor([0, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@each_kind
def test_bfloat16_autocast_rounds_and_no_more(kind):
    batch = token_batch(frames=10, grid=(4, 4), prefix=1)
    model = build(kind, batch).eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch.to("cpu", torch.bfloat16))
        torch.testing.assert_close(rounded.float(), model(batch), rtol=0.02, atol=0.02)


@each_kind
def test_large_tokens_give_no_nan(kind):
    batch = token_batch(frames=9, grid=(2, 2), prefix=1)
    large = TokenBatch(
        patch=1e3 * batch.patch,
        prefix=1e3 * batch.prefix,
        mask=batch.mask,
        pts_seconds=batch.pts_seconds,
    )
    model = build(kind, batch).train()
    outputs = model(large)
    outputs.sum().backward()
    assert bool(outputs.isfinite().all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


class CountItems(TorchDispatchMode):
    """Counts the places where Python asks for the value of a tensor, and so waits for it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@each_kind
@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)], ids=["whole", "padded"])
def test_no_step_asks_for_a_value(kind, lengths):
    source = token_batch(frames=6, grid=(2, 2), prefix=1)
    model = build(kind, source)
    clips = [
        Clip(patch=source.patch[i, :n], prefix=source.prefix[i, :n], pts_seconds=torch.zeros(n))
        for i, n in enumerate(lengths)
    ]
    labels = torch.tensor([0, 1])
    with CountItems() as mode:
        batch = collate(clips, torch.float32)
        training_loss(model(batch), labels, "classification").backward()
    packed = model.name == "gru" and lengths[0] != lengths[1]
    assert mode.count == (2 if packed else 0)  # packing asks its own batch sizes, on the host


@each_kind
def test_a_checkpoint_gives_the_same_outputs_bit_by_bit(kind, tmp_path):
    batch = token_batch(frames=6, grid=(3, 3), prefix=1)
    model = build(kind, batch).eval()
    path = tmp_path / "w.safetensors"
    write_checkpoint(path, Checkpoint(tensors=model.state_dict(), about={}))
    other = build(kind, batch, seed=1).eval()
    assert not torch.equal(model(batch), other(batch))
    load_model(other, read_checkpoint(path).tensors, name="w")
    assert torch.equal(model(batch), other(batch))


@each_kind
def test_options_survive_json(kind):
    name, options = KINDS[kind]
    built = decoder_options(name, options)
    assert type(built).from_json(json.loads(json.dumps(built.to_json()))) == built
    assert decoder_options(name, {key: str(value) for key, value in options.items()}) == built


# Streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMABLE)
@pytest.mark.parametrize("sizes", [[1], [3, 1, 2]], ids=str)
def test_every_step_equals_the_window_so_far(kind, sizes):
    batch = token_batch(frames=13, grid=(3, 2), prefix=1)
    name, options = STREAMABLE[kind]
    torch.manual_seed(0)
    model = build_decoder(name, shape=batch.shape, num_outputs=4, options=options).eval()
    assert model.streamable
    state, at, step = model.start_stream(2, "cpu"), 0, 0
    while at < 13:
        stop = min(at + sizes[step % len(sizes)], 13)
        outputs, state = model.stream_step(cut(batch, at, stop), state)
        with torch.no_grad():
            assert_same(outputs, model(cut(batch, 0, stop)))
        at, step = stop, step + 1
    with pytest.raises(ValueError, match="real frames only"):
        model.stream_step(padded(batch, 1), state)


@pytest.mark.parametrize("kind", ["stam", "segment-mean", "gru, two directions", "mamba2"])
def test_decoders_that_look_ahead_refuse_to_stream(kind):
    batch = token_batch(frames=3, grid=(2, 2), prefix=1)
    model = build(kind, batch)
    assert not model.streamable
    with pytest.raises(UsageError, match=f"decoder '{model.name}' cannot be streamed"):
        model.start_stream(1, "cpu")


# Bad requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stam", {"frame": "max"}, "frame is 'max', expected one of cls, mean"),
        ("stam", {"depth": 0}, "depth is 0, expected at least 1"),
        ("stam", {"heads": 5}, r"heads is 5, which does not divide the width 32 .*heads=1"),
        ("stam", {"dropout": 1}, "dropout is 1.0, expected at least 0 and less than 1"),
        ("stam", {"width": 3}, "'decoder.width', expected one of frame, depth, heads"),
        ("cls-mean", {"depth": 1}, "unknown field 'decoder.depth'"),
        ("segment-mean", {"segments": 0}, "segments is 0, expected at least 1"),
        ("attentive-probe", {"heads": 12}, r"heads is 12, which does not divide .*heads=4"),
        ("attentive-probe", {"mlp_ratio": 0}, "mlp_ratio is 0, expected at least 1"),
        ("gru", {"width": 0}, "width is 0, expected at least 1"),
        ("gru", {"readout": "max"}, "readout is 'max', expected one of mean, last"),
        ("gru", {"dropout": -0.1}, "dropout is -0.1, expected at least 0 and less than 1"),
        ("mamba2", {"chunk": 0}, "chunk is 0, expected at least 1"),
        ("mamba2", {"heads": 7}, r"heads is 7, which does not divide the inner width 512.*heads=1"),
        ("mamba2", {"dropout": 1}, "dropout is 1.0, expected at least 0 and less than 1"),
    ],
)
def test_bad_options_are_refused_with_the_choices(name, options, message):
    shape = token_batch(frames=4, grid=(2, 2), prefix=1).shape
    with pytest.raises(UsageError, match=message):
        build_decoder(name, shape=shape, num_outputs=2, options=options)


@pytest.mark.parametrize(
    ("name", "options", "view", "message"),
    [
        ("stam", {}, {"grid": (2, 2)}, r"'stam' needs .*--tokens 5xcls.*decoder.frame=mean"),
        ("stam", {"frame": "mean"}, {"prefix": 1}, r"'stam' needs patches.*5x7x7.*frame=cls"),
        ("cls-mean", {}, {"grid": (2, 2)}, r"'cls-mean' needs .*--tokens 5xcls.*--decoder mean"),
    ],
)
def test_views_without_what_a_decoder_reads_are_refused(name, options, view, message):
    shape = token_batch(frames=5, **view).shape
    with pytest.raises(UsageError, match=message):
        build_decoder(name, shape=shape, num_outputs=2, options=options)


@pytest.mark.parametrize("kind", ["attentive-probe", "gru"])
def test_a_window_without_a_real_frame_is_refused(kind):
    batch = token_batch(frames=3, prefix=1)
    mask = torch.tensor([[True] * 3, [False] * 3])
    empty = TokenBatch(patch=None, prefix=batch.prefix, mask=mask, pts_seconds=batch.pts_seconds)
    with pytest.raises(UsageError, match="at least 1 real frame in a window, got 0"):
        build(kind, batch)(empty)
