"""A stream gives, at every frame, what the whole window up to that frame would give."""

import sys
import types

import pytest
import torch
from token_batches import cut, padded, token_batch
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.decoders.base import Decoder
from vis4mer.decode.mixers import MIXERS, mixer_class
from vis4mer.decode.mixers.base import CausalMixer, Mixer, MixerOptions
from vis4mer.store.errors import UsageError

VIEWS = {
    "grid": {"grid": (5, 3)},
    "197 tokens a frame": {"grid": (14, 14), "prefix": 1},
    "prefix": {"prefix": 3},
    "one token": {"prefix": 1},
}
CAUSAL_MIXERS = [name for name in MIXERS if issubclass(mixer_class(name), CausalMixer)]
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


def build(name, batch, **options):
    torch.manual_seed(0)
    return build_decoder(name, shape=batch.shape, num_outputs=4, options=options).eval()


def stream(model, batch, sizes):
    """(frames so far, outputs) after each step; sizes are repeated as often as needed."""
    state, at, step = model.start_stream(batch.mask.shape[0], "cpu"), 0, 0
    while at < batch.mask.shape[1]:
        stop = min(at + sizes[step % len(sizes)], batch.mask.shape[1])
        outputs, state = model.stream_step(cut(batch, at, stop), state)
        at, step = stop, step + 1
        yield at, outputs, state


@pytest.mark.parametrize("variant", ["paper", "official"])
@each_view
@pytest.mark.parametrize("sizes", [[1], [3, 1, 2]], ids=str)
def test_every_step_equals_the_window_so_far(variant, view, sizes):
    batch = token_batch(frames=13, **view)
    model = build("vis4mer", batch, variant=variant)
    per_frame = model._tokens(batch).x.shape[1] // 13
    compared = 0
    for at, outputs, _ in stream(model, batch, sizes):
        if at * per_frame < model.min_tokens:
            assert bool(outputs.isnan().all())
            continue
        with torch.no_grad():
            expected = model(cut(batch, 0, at))
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize(
    "options",
    [
        *({"mixer": mixer} for mixer in CAUSAL_MIXERS),
        {"pooling": False},
        {"depth": 1, "scaling": False},
        {"mixer": "s4", "convolution": "fft"},
    ],
    ids=str,
)
def test_other_mixers_and_switches_stream_too(options):
    batch = token_batch(frames=9, prefix=3)
    model = build("vis4mer", batch, **options)
    *_, (_, outputs, _) = stream(model, batch, [2])
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(batch), rtol=1e-4, atol=1e-5)


def test_mean_streams():
    batch = token_batch(frames=9, grid=(2, 2), prefix=1)
    model = build("mean", batch)
    for at, outputs, _ in stream(model, batch, [1, 4]):
        with torch.no_grad():
            torch.testing.assert_close(outputs, model(cut(batch, 0, at)), rtol=1e-5, atol=1e-6)


def numbers(thing):
    """How many numbers a stream's state holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel()
    if isinstance(thing, dict):
        return sum(numbers(value) for value in thing.values())
    if isinstance(thing, tuple):
        return sum(map(numbers, thing))
    return sum(map(numbers, vars(thing).values())) if hasattr(thing, "__dict__") else 0


def test_memory_does_not_grow():
    batch = token_batch(frames=40, grid=(3, 3), dim=16)
    for variant in ("paper", "official"):
        model = build("vis4mer", batch, variant=variant)
        held = [numbers(state) for _, _, state in stream(model, batch, [1])]
        waiting = 2 * 2 * 16 * (1 + 0.5 + 0.25)  # at most a token and its core output a block
        assert max(held[12:]) <= max(held[4:12]) + waiting


def test_a_stream_leaves_other_streams_and_the_decoder_alone():
    batch, other = token_batch(frames=6, prefix=3), token_batch(frames=6, prefix=3, seed=1)
    model = build("vis4mer", batch)
    first, second = model.start_stream(2, "cpu"), model.start_stream(2, "cpu")
    for at in range(6):
        outputs, first = model.stream_step(cut(batch, at, at + 1), first)
        _, second = model.stream_step(cut(other, at, at + 1), second)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(batch), rtol=1e-4, atol=1e-5)


def test_padding_in_a_stream_is_refused():
    batch = token_batch(frames=2, prefix=3)
    for name in ("vis4mer", "mean"):
        model = build(name, batch)
        with pytest.raises(ValueError, match="real frames only"):
            model.stream_step(padded(batch, 1), model.start_stream(2, "cpu"))


class LookAhead(Mixer):
    """A mixer that is not causal."""

    Options = MixerOptions

    def __init__(self, width, *, length, dropout, options):
        del length, dropout, options
        torch.nn.Module.__init__(self)
        self.output = torch.nn.Linear(width, width)

    def core(self, x, mask):
        del mask
        return x.flip(1)


def test_decoders_that_are_not_causal_refuse_by_name(monkeypatch):
    module = types.ModuleType("look_ahead")
    module.LookAhead = LookAhead
    monkeypatch.setitem(sys.modules, "vis4mer.decode.mixers.look_ahead", module)
    monkeypatch.setitem(MIXERS, "look-ahead", "look_ahead:LookAhead")
    batch = token_batch(frames=9, prefix=3)
    model = build("vis4mer", batch, mixer="look-ahead")
    assert not model.streamable
    assert model(batch).shape == (2, 4)
    with pytest.raises(UsageError, match="'vis4mer' with mixer 'look-ahead' cannot be streamed"):
        model.start_stream(2, "cpu")


def test_a_decoder_of_another_kind_refuses_by_name():
    class Other(Decoder):
        name = "other"

        def forward(self, batch):
            return batch.sequence().mean(dim=1)

    batch = token_batch(frames=2, prefix=1)
    model = Other(shape=batch.shape, num_outputs=1, options=None)
    with pytest.raises(UsageError, match="decoder 'other' cannot be streamed"):
        model.start_stream(1, "cpu")
    with pytest.raises(UsageError, match="decoder 'other' cannot be streamed"):
        model.stream_step(batch, None)
