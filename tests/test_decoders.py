"""Both variants of ViS4mer and the mean, against slow definitions and what must not matter."""

import copy
import dataclasses
import json

import pytest
import torch
from oracles import slow_kernel
from safetensors.torch import load_file, save_file
from token_batches import cut, float64, padded, token_batch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.data.clips import Clip, collate
from vis4mer.decode.decoders import DECODERS, build_decoder, decoder_options, describe_decoders
from vis4mer.decode.mixers import MIXERS, mixer_class
from vis4mer.decode.mixers.ssm import SsmMixer
from vis4mer.decode.training.learner import training_loss
from vis4mer.store.errors import UsageError

VARIANTS = ["paper", "official"]
SSM_MIXERS = [name for name in MIXERS if issubclass(mixer_class(name), SsmMixer)]
VIEWS = {
    "grid": {"grid": (5, 3), "prefix": 0},
    "grid and prefix": {"grid": (4, 4), "prefix": 1},
    "prefix": {"prefix": 3},
    "one token": {"prefix": 1},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


def build(batch, *, num_outputs=4, seed=0, **options):
    torch.manual_seed(seed)
    options = {"state_size": 8, **options}
    return build_decoder("vis4mer", shape=batch.shape, num_outputs=num_outputs, options=options)


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# What they compute ------------------------------------------------------------------------------


def slow_s4(mixer, x):
    """Linear(GELU(k * u + D u)) by taps, one output token after another: (B, L, H)."""
    K = slow_kernel(mixer.ssm, x.shape[1])  # H L
    y = torch.stack(
        [
            torch.einsum("hj,bjh->bh", K[:, : at + 1].flip(1), x[:, : at + 1])
            for at in range(x.shape[1])
        ],
        dim=1,
    )
    return mixer.output(functional.gelu(y + mixer.ssm.D * x))


def slow_pair_mean(x, *, keep_tail):
    pairs = [x[:, at : at + 2].mean(dim=1) for at in range(0, x.shape[1] - 1, 2)]
    tail = [x[:, -1]] if keep_tail and x.shape[1] % 2 else []
    return torch.stack(pairs + tail, dim=1)


def slow_grid_mean(x, grid):
    h, w = grid
    frames = x.view(x.shape[0], -1, h, w, x.shape[2])
    cells = [
        frames[:, :, i : i + 2, j : j + 2].mean(dim=(2, 3))
        for i in range(0, h, 2)
        for j in range(0, w, 2)
    ]
    return torch.stack(cells, dim=2).flatten(1, 2), (-(-h // 2), -(-w // 2))


@each_view
def test_official_is_its_definition(view):
    batch = float64(token_batch(frames=11, **view))
    model = build(batch, variant="official").double().eval()
    parts = [batch.prefix] if batch.prefix is not None else []
    parts += [batch.patch.flatten(2, 3)] if batch.patch is not None else []
    x = torch.cat(parts, dim=2).flatten(1, 2)
    for block in model.blocks:
        x = x + slow_s4(block.mixer, block.norm(x))
        x = functional.avg_pool1d(x.mT, 2).mT
        x = functional.gelu(block.linear(x))
    assert_same(model(batch), model.head(x.mean(dim=1)), 1e-9)


@each_view
def test_paper_is_its_definition(view):
    batch = float64(token_batch(frames=11, **view))
    model = build(batch, variant="paper").double().eval()
    grid = view.get("grid")
    x = (batch.patch.flatten(1, 3) if grid else batch.prefix.flatten(1, 2)).clone()

    def pool(x):
        return slow_grid_mean(x, grid)[0] if grid else slow_pair_mean(x, keep_tail=True)

    for block in model.blocks:
        x_s4 = slow_s4(block.mixer, block.norm(x))
        x = block.mlp(pool(x_s4)) + pool(block.skip(x))
        grid = slow_grid_mean(torch.zeros(1, grid[0] * grid[1], 1), grid)[1] if grid else None
    assert_same(model(batch), model.head(x.mean(dim=1)), 1e-9)


def test_grids_halve_rounding_up():
    for grid, expected in (
        ((14, 14), (2, 2)),
        ((5, 5), (1, 1)),
        ((1, 1), (1, 1)),
        ((7, 3), (1, 1)),
    ):
        batch = token_batch(frames=2, grid=grid, dim=16)
        model = build(batch)
        tokens = model._tokens(batch)
        for block in model.blocks:
            tokens = block(tokens)
        assert tokens.grid == expected
        assert tokens.x.shape[1] == 2 * expected[0] * expected[1]


@each_variant
@each_view
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("missing", [0, 4])
def test_pooling_early_is_the_plain_definition(variant, view, training, missing):
    """Also with dropout, drawn alike, and with padding: outputs and gradients."""
    batch = padded(token_batch(frames=11, **view), missing)
    fast = build(batch, variant=variant).train(training)
    slow = copy.deepcopy(fast)
    torch.manual_seed(1)
    fast_outputs = fast(batch)
    torch.manual_seed(1)
    tokens = slow._tokens(batch)
    for block in slow.blocks:
        tokens = block.forward_plain(tokens)
    if tokens.mask is None:
        mean = tokens.x.mean(dim=1)
    else:
        mask = tokens.mask[..., None]
        mean = (tokens.x * mask).sum(dim=1) / mask.sum(dim=1)
    slow_outputs = slow.head(mean)
    assert_same(fast_outputs, slow_outputs)
    fast_outputs.square().sum().backward()
    slow_outputs.square().sum().backward()
    for (name, found), expected in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


@each_variant
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("scaling", [True, False])
def test_ablation_switches_change_length_and_width_alone(variant, pooling, scaling):
    batch = token_batch(frames=4, grid=(4, 4))
    model = build(batch, variant=variant, pooling=pooling, scaling=scaling).eval()
    tokens = model._tokens(batch)
    for block in model.blocks:
        tokens = block(tokens)
    length = {"paper": 4, "official": 8}[variant] if pooling else 64
    assert tokens.x.shape == (2, length, 4 if scaling else 32)
    assert model(batch).shape == (2, 4)


# What must not matter ---------------------------------------------------------------------------


@each_variant
@each_view
@pytest.mark.parametrize("mixer", ["s4", "s4d-lin"])
@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_padding_changes_nothing(variant, view, mixer, value):
    batch = token_batch(frames=11, **view)
    model = build(batch, variant=variant, mixer=mixer).eval()
    with torch.no_grad():
        expected = model(batch)
        for frames in (1, 2, 5):
            torch.testing.assert_close(
                model(padded(batch, frames, value=value)), expected, rtol=1e-5, atol=1e-5
            )


def test_windows_of_a_batch_do_not_meet():
    """One window with padding beside one without: each as if alone."""
    whole = token_batch(frames=9, grid=(3, 3), batch=2)
    mask = whole.mask.clone()
    mask[0, 5:] = False
    mixed = TokenBatch(patch=whole.patch, prefix=None, mask=mask, pts_seconds=whole.pts_seconds)
    for variant in VARIANTS:
        model = build(whole, variant=variant).eval()
        with torch.no_grad():
            assert_same(model(mixed)[0], model(cut(whole, 0, 5))[0])
            assert_same(model(mixed)[1], model(whole)[1])


@pytest.mark.parametrize("convolution", ["blocks", "fft"])
@pytest.mark.parametrize("tied", [True, False])
def test_convolutions_agree_and_lengths_leave_the_weights_alone(convolution, tied):
    batch = token_batch(frames=13, grid=(3, 3))
    model = build(batch, convolution=convolution, tied=tied).eval()
    other = build(batch, tied=tied).eval()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    with torch.no_grad():
        for frames in (13, 7, 1):
            assert_same(model(cut(batch, 0, frames)), other(cut(batch, 0, frames)))
        long = token_batch(frames=40, grid=(3, 3))
        assert_same(model(long), other(long))
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}


# Training ---------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("mixer", SSM_MIXERS)
def test_gradients_are_finite_under_bfloat16_autocast(variant, mixer):
    batch = token_batch(frames=10, grid=(4, 4), prefix=1)
    half = batch.to("cpu", torch.float16)  # as a cache holds it
    model = build(batch, variant=variant, mixer=mixer)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(half)
        loss = functional.cross_entropy(outputs.float(), torch.tensor([0, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    reference = build(batch, variant=variant, mixer=mixer).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = reference(half)
    with torch.no_grad():
        torch.testing.assert_close(rounded.float(), reference(batch), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mixer", SSM_MIXERS)
def test_aggressive_steps_never_give_a_nan(mixer):
    batch = token_batch(frames=40, grid=(3, 3))
    model = build(batch, mixer=mixer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
    for _ in range(12):
        loss = functional.cross_entropy(model(batch), torch.tensor([0, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert bool(loss.isfinite())
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name


def test_dropout_follows_the_seed_and_takes_whole_channels():
    batch = token_batch(frames=6, grid=(3, 3))
    model = build(batch, dropout=0.5).train()
    torch.manual_seed(3)
    first = model(batch)
    torch.manual_seed(3)
    assert torch.equal(first, model(batch))
    assert not torch.equal(first, model(batch))
    dropped = model.blocks[0].dropout(torch.ones(4, 5, 1000))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(float(dropped.mean()) - 1) < 0.1


def test_dynamics_are_the_slow_parameters():
    batch = token_batch(frames=6, grid=(3, 3))
    names = {"log_dt", "A_log_decay", "A_frequency", "B", "P", "Q"}
    for options, expected in (
        ({"variant": "paper"}, names - {"Q"}),
        ({"variant": "official"}, names),
        ({"mixer": "s4d-lin"}, names - {"P", "Q"}),
    ):
        mixer = build(batch, **options).blocks[0].mixer
        found = {id(p) for p in mixer.dynamics()}
        assert {n for n, p in mixer.ssm.named_parameters() if id(p) in found} == expected


def test_weights_survive_saving_bit_by_bit(tmp_path):
    batch = token_batch(frames=6, grid=(3, 3))
    for variant in VARIANTS:
        model = build(batch, variant=variant).eval()
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        other = build(batch, variant=variant, seed=1).eval()
        other.load_state_dict(load_file(tmp_path / "w.safetensors"))
        assert torch.equal(model(batch), other(batch))


# Sizes and options ------------------------------------------------------------------------------


def expected_parameters(dim, num_outputs, *, variant, state_size=64, depth=3):
    """By the shapes that the paper and the released code give."""
    n, total = state_size // 2, 0
    for H in [dim // 2**i for i in range(depth)]:
        rank_one = 2 if variant == "official" else 1
        ssm = H + 2 * n + (2 + rank_one) * H * 2 * n + H  # dt, A; B, C, P (and Q); D
        total += 2 * H + ssm + H * H + H
        to = H // 2
        total += H * to + to if variant == "official" else 2 * (H * to + to) + to * to + to
    width = dim // 2**depth
    return total + width * num_outputs + num_outputs


@pytest.mark.parametrize("dim", [64, 1024])
@each_variant
def test_parameter_count(dim, variant):
    shape = TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=dim)
    model = build_decoder("vis4mer", shape=shape, num_outputs=4, options={"variant": variant})
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == expected_parameters(dim, 4, variant=variant)
    if dim == 1024 and variant == "official":
        assert count == 2_533_700  # what the released code trains


def test_official_names_the_tokens_it_needs():
    message = "needs at least 8 tokens in a window, got 7"
    with pytest.raises(UsageError, match=message):
        build(token_batch(frames=7, prefix=1), variant="official")
    model = build(token_batch(frames=8, prefix=1), variant="official")
    with pytest.raises(UsageError, match=message):
        model(padded(token_batch(frames=7, prefix=1), 4))
    assert bool(model(token_batch(frames=8, prefix=1)).isfinite().all())
    build(token_batch(frames=1, prefix=1), variant="paper")


def test_a_width_that_cannot_be_halved_is_refused():
    with pytest.raises(UsageError, match="12 wide, which cannot be halved 3 times"):
        build(token_batch(frames=8, prefix=1, dim=12))
    build(token_batch(frames=8, prefix=1, dim=12), scaling=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "official", "depth": 2},
        {"mixer": "s4d-inv", "discretization": "bilinear", "dt_min": 1e-4, "pooling": False},
    ],
)
def test_options_survive_json(options):
    built = decoder_options("vis4mer", options)
    assert type(built).from_json(json.loads(json.dumps(built.to_json()))) == built


def test_options_are_read_from_text():
    text = {"depth": "2", "pooling": "false", "dropout": "0.1", "dt_max": "2e-1", "tied": "no"}
    options = decoder_options("vis4mer", text)
    assert (options.depth, options.pooling, options.dropout) == (2, False, 0.1)
    assert (options.mixer_options.dt_max, options.mixer_options.tied) == (0.2, False)
    assert decoder_options("vis4mer", {"variant": "official"}).mixer_options.tied is False
    assert decoder_options("vis4mer", {}).mixer_options.tied is True


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vismer", {}, "unknown decoder 'vismer', expected one of vis4mer, "),
        ("vis4mer", {"width": 3}, r"'decoder.width', expected one of variant, mixer, .*dt_min"),
        ("vis4mer", {"mixer": "s5"}, "unknown mixer 's5', expected one of s4, s4d-lin"),
        ("vis4mer", {"depth": "two"}, "depth is 'two', expected a whole number"),
        ("vis4mer", {"depth": 0}, "depth is 0, expected at least 1"),
        ("vis4mer", {"variant": "old"}, "variant is 'old', expected one of paper, official"),
        ("vis4mer", {"dropout": 1}, "dropout is 1.0, expected at least 0 and less than 1"),
        ("vis4mer", {"state_size": 7}, "state_size is 7, expected an even number"),
        ("vis4mer", {"dt_min": 0.5}, "dt_max is 0.1, expected at least dt_min, 0.5"),
        ("vis4mer", {"mixer": "s4d-lin", "tied": True}, "'decoder.tied', expected one of"),
        ("mean", {"depth": 1}, "'decoder.depth'"),
    ],
)
def test_bad_requests_are_refused_with_the_choices(name, options, message):
    shape = TokenShape(frames=8, grid=None, num_prefix=1, dim=32)
    with pytest.raises(UsageError, match=message):
        build_decoder(name, shape=shape, num_outputs=2, options=options)


def test_every_decoder_can_be_described_and_built():
    described = describe_decoders()
    assert [about.name for about in described] == list(DECODERS)
    shape = TokenShape(frames=8, grid=(2, 2), num_prefix=1, dim=32)
    for about in described:
        assert about.summary.endswith(".")
        own = [o for o in about.options if not o.mixers or "s4" in o.mixers]
        defaults = {option.name: option.default for option in own}
        model = build_decoder(about.name, shape=shape, num_outputs=2, options=defaults)
        assert model.options == decoder_options(about.name, {})


def test_every_option_of_every_mixer_is_described_as_it_is():
    (about,) = (about for about in describe_decoders() if about.name == "vis4mer")
    assert len({(o.name, o.mixers) for o in about.options}) == len(about.options)
    for mixer in MIXERS:
        described = {o.name: o for o in about.options if not o.mixers or mixer in o.mixers}
        for variant in VARIANTS:
            options = decoder_options("vis4mer", {"mixer": mixer, "variant": variant}).to_json()
            assert described.keys() == options.keys()
            for name in options.keys() - {"mixer", "variant"}:
                said = described[name]
                differs = variant == "official" and bool(said.exception)
                assert (options[name] != said.default) == differs
    text = {o.name: o.describe() for o in about.options}
    assert text["tied"] == "true or false, default true (false in official); mixer s4 only"
    assert text["discretization"].endswith("; mixer s4d-lin, s4d-inv, s4d-legs only")


@each_variant
@pytest.mark.parametrize("mixer", ["s4", "s4d-lin", "attention"])
def test_recomputing_changes_no_number(variant, mixer):
    batch = padded(token_batch(frames=9, grid=(4, 4)), 2)
    options = {"variant": variant, "mixer": mixer}
    models = []
    for recompute in (False, True):
        torch.manual_seed(0)
        given = options | {"recompute": recompute}
        models.append(build_decoder("vis4mer", shape=batch.shape, num_outputs=2, options=given))
    for model in models:
        torch.manual_seed(1)
        training_loss(model(batch), torch.tensor([0, 1]), "classification").backward()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def by_mask(func, args):
    """Whether a tensor is indexed by one of booleans."""
    if func.overloadpacket.__name__ not in ("index", "index_put", "index_put_"):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


class CountItems(TorchDispatchMode):
    """Counts the places where Python needs the value of a tensor, and so waits for it.

    A value itself, or a shape that depends on values, as of boolean indexing.
    """

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.waits or by_mask(func, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)], ids=["whole", "padded"])
@pytest.mark.parametrize("decoder", ["mean", "paper", "official"])
def test_no_step_asks_for_a_value(decoder, lengths):
    options = {} if decoder == "mean" else {"variant": decoder, "state_size": 8, "depth": 2}
    name = "mean" if decoder == "mean" else "vis4mer"
    source = token_batch(frames=6, grid=(2, 2), prefix=1)
    model = build_decoder(name, shape=source.shape, num_outputs=2, options=options)
    clips = [
        Clip(patch=source.patch[i, :n], prefix=source.prefix[i, :n], pts_seconds=torch.zeros(n))
        for i, n in enumerate(lengths)
    ]
    labels = torch.tensor([0, 1])
    with CountItems() as mode:
        batch = collate(clips, torch.float32)
        training_loss(model(batch), labels, "classification").backward()
        assert mode.count == 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert mode.count == 0
        bool(batch.mask.all())
        assert mode.count == 1  # it would have been seen
        labels[labels > 0]
        assert mode.count == 2
    assert (batch.lengths, batch.min_frames, batch.padded) == (lengths, lengths[1], lengths[1] < 6)


def test_lengths_are_checked_and_read_from_the_mask_when_left_out():
    batch = padded(token_batch(frames=3, prefix=1), 2)
    assert (batch.lengths, batch.min_frames, batch.padded) == ((3, 3), 3, True)
    assert batch.to("cpu", torch.float16).lengths == (3, 3)
    for lengths in ((3,), (3, 6), (3, -1)):
        with pytest.raises(ValueError, match="lengths are"):
            dataclasses.replace(batch, lengths=lengths)
    mask = torch.tensor([[True, False, True, False, False]] * 2)
    with pytest.raises(ValueError, match="real frame after padding"):
        dataclasses.replace(batch, mask=mask, lengths=())


# The floor --------------------------------------------------------------------------------------


def test_mean_is_the_mean_of_all_real_tokens():
    batch = token_batch(frames=5, grid=(2, 3), prefix=2)
    torch.manual_seed(0)
    model = build_decoder("mean", shape=batch.shape, num_outputs=3, options={})
    tokens = torch.cat([batch.prefix, batch.patch.flatten(2, 3)], dim=2)
    assert isinstance(model.head, nn.Linear)
    assert_same(model(batch), model.head(tokens.mean(dim=(1, 2))))
    assert_same(model(padded(batch, 3)), model(batch))
    assert_same(model(batch.to("cpu", torch.float16)), model(batch), 1e-2)
