"""Selective S4: exactly K tokens, a guide that follows, and what must not matter."""

import copy
import json
import math

import pytest
import torch
from caches import make_cache
from safetensors.torch import load_file, save_file
from test_decoders import CountItems
from test_train import assert_same_run, config
from token_batches import cut, padded, token_batch
from torch.nn import functional
from vis4mer.decode.config import OptimizerConfig
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.decoders import build_decoder, decoder_options
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.selection import (
    MaskGenerator,
    gather_tokens,
    gumbel_difference,
    kept_count,
    straight_through,
    top_tokens,
)
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.optim import build_optimizer
from vis4mer.store.errors import UsageError

VIEWS = {
    "grid": {"grid": (5, 3), "prefix": 0},
    "grid and prefix": {"grid": (4, 4), "prefix": 1},
    "prefix": {"prefix": 3},
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
each_variant = pytest.mark.parametrize("variant", ["paper", "official"])
each_selection = pytest.mark.parametrize("selection", ["mask", "gather"])


def build(batch, *, seed=0, name="selective_s4", **options):
    torch.manual_seed(seed)
    options = {"state_size": 8, **options}
    return build_decoder(name, shape=batch.shape, num_outputs=4, options=options)


# The choice -------------------------------------------------------------------------------------


def test_the_best_are_kept_by_definition():
    """Against sorting each window's real tokens in Python; equal scores go to the earlier token."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (4, 23), generator=generator).float()
    lengths, counts = [23, 17, 9, 2], [7, 17, 1, 1]
    mask = torch.arange(23)[None] < torch.tensor(lengths)[:, None]
    scores[~mask] = 100.0
    kept = top_tokens(scores, mask, counts)
    for b, (length, num_kept) in enumerate(zip(lengths, counts, strict=True)):
        ranked = sorted(range(length), key=lambda i: (-float(scores[b, i]), i))
        assert kept[b].nonzero().flatten().tolist() == sorted(ranked[:num_kept])
    x = torch.randn(4, 23, 3, generator=generator)
    gathered = gather_tokens(x, kept, counts)
    assert gathered.x.shape == (4, 17, 3)
    for b, num_kept in enumerate(counts):
        assert torch.equal(gathered.x[b, :num_kept], x[b, kept[b]])
        assert not gathered.x[b, num_kept:].any()
        assert gathered.mask[b].tolist() == [k < num_kept for k in range(17)]


def test_gathering_everything_changes_nothing():
    x = torch.randn(2, 9, 3)
    all_of_them = gather_tokens(x, torch.ones(2, 9, dtype=torch.bool), [9, 9])
    assert torch.equal(all_of_them.x, x)
    assert all_of_them.mask is None


def test_kept_counts():
    assert [kept_count(n, 0.5) for n in (0, 1, 2, 7, 100)] == [0, 1, 1, 4, 50]
    assert kept_count(1000, 0.001) == 1
    assert kept_count(11760, 1.0) == 11760


def test_weights_are_one_going_forward_and_a_sigmoid_going_back():
    scores = torch.tensor([[2.0, -1.0, 0.5, 3.0]], requires_grad=True)
    kept = torch.tensor([[True, False, False, True]])
    weights = straight_through(kept, scores, temperature=0.5)
    assert weights.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    weights.sum().backward()
    for i, s in enumerate(scores[0].tolist()):
        p = 1 / (1 + math.exp(-s / 0.5))
        expected = p * (1 - p) / 0.5 if kept[0, i] else 0
        assert float(scores.grad[0, i]) == pytest.approx(expected, rel=1e-4)


def test_noise_is_a_logistic_variable_of_torchs_generator():
    torch.manual_seed(0)
    noise = gumbel_difference(torch.zeros(40_000))
    torch.manual_seed(0)
    assert torch.equal(noise, gumbel_difference(torch.zeros(40_000)))
    # The difference of two Gumbel variables: mean 0, variance π²/3, P(g < t) = σ(t)
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.var()) == pytest.approx(math.pi**2 / 3, rel=0.03)
    assert float((noise < 1.5).float().mean()) == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.01)


def test_generator_is_its_definition():
    torch.manual_seed(0)
    generator = MaskGenerator(6)
    x_S = torch.randn(2, 5, 6)
    lengths = [5, 3]
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    found = generator(x_S, mask)
    weight = torch.cat([generator.hidden_local.weight, generator.hidden_global.weight], dim=1)
    for b, length in enumerate(lengths):
        real = functional.layer_norm(x_S[b, :length], (6,))
        local = real @ generator.project_local.weight.T + generator.project_local.bias
        pooled = real @ generator.project_pooled.weight.T + generator.project_pooled.bias
        whole = sum(pooled) / length
        for i in range(length):
            hidden = weight @ torch.cat([local[i], whole]) + generator.hidden_local.bias
            logits = generator.classify(functional.gelu(hidden))
            p = logits.softmax(dim=0)
            torch.testing.assert_close(found[b, i], (p[0] / p[1]).log(), rtol=1e-4, atol=1e-5)


@each_selection
@pytest.mark.parametrize("training", [False, True])
def test_the_ratio_holds_exactly_in_every_window(selection, training):
    whole = token_batch(frames=9, grid=(3, 3), batch=2)
    mask = whole.mask.clone()
    mask[0, 5:] = False
    batch = TokenBatch(patch=whole.patch, prefix=None, mask=mask, pts_seconds=whole.pts_seconds)
    model = build(whole, selection=selection, keep_ratio=0.3).train(training)
    tokens = model._tokens(batch)
    kept, weights = model._choose(tokens, model._counts(tokens, batch))
    assert kept.sum(dim=1).tolist() == [round(0.3 * 45), round(0.3 * 81)]
    assert torch.equal(weights, kept.float())
    assert not kept[0, 45:].any()


# What it computes -------------------------------------------------------------------------------


@each_view
@each_variant
@each_selection
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("missing", [0, 4])
def test_at_keep_one_it_is_plain_vis4mer_exactly(view, variant, selection, training, missing):
    batch = padded(token_batch(frames=11, **view), missing)
    options = {"variant": variant, "dropout": 0.0}
    model = build(batch, selection=selection, keep_ratio=1.0, **options).train(training)
    plain = build(batch, name="vis4mer", **options).train(training)
    assert plain.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    assert torch.equal(model(batch), plain(batch))


@each_variant
def test_gather_is_plain_vis4mer_on_the_kept_tokens(variant):
    """The kept tokens given as a view without a grid."""
    batch = token_batch(frames=8, grid=(3, 3))
    model = build(batch, selection="gather", keep_ratio=0.25, variant=variant).eval()
    kept = model.kept_patches(batch)
    assert kept.shape == (2, 8, 3, 3)
    rows = torch.stack([batch.patch[b][kept[b]] for b in range(2)])  # 2 18 D
    view = TokenBatch(
        patch=None,
        prefix=rows[:, :, None],
        mask=torch.ones(2, 18, dtype=torch.bool),
        pts_seconds=torch.zeros(2, 18, dtype=torch.float64),
    )
    plain = build(view, name="vis4mer", variant=variant).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(model(batch), plain(view))


def test_mask_is_plain_vis4mer_on_zeros_for_the_dropped_tokens():
    batch = token_batch(frames=6, grid=(4, 2))
    model = build(batch, selection="mask", keep_ratio=0.4).eval()
    kept = model.kept_patches(batch)
    assert kept.sum(dim=(1, 2, 3)).tolist() == [19, 19]
    zeroed = TokenBatch(
        patch=torch.where(kept[..., None], batch.patch, 0),
        prefix=None,
        mask=batch.mask,
        pts_seconds=batch.pts_seconds,
    )
    plain = build(batch, name="vis4mer").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(model(batch), plain(zeroed))


def test_kept_patches_are_those_of_the_frames_prefix_or_not():
    batch = token_batch(frames=5, grid=(2, 3), prefix=2)
    model = build(batch, variant="official", keep_ratio=0.5).train()
    kept = model.kept_patches(batch)
    tokens = model._tokens(batch)
    chosen, _ = model.eval()._choose(tokens, [20, 20])
    assert torch.equal(kept, chosen.view(2, 5, 8)[:, :, 2:].reshape(2, 5, 2, 3))
    alone = token_batch(frames=8, prefix=1)
    with pytest.raises(UsageError, match="this view has none"):
        build(alone).kept_patches(alone)


# What must not matter ---------------------------------------------------------------------------


@each_view
@each_variant
@each_selection
@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_padding_changes_nothing(view, variant, selection, value):
    batch = token_batch(frames=11, **view)
    model = build(batch, variant=variant, selection=selection).eval()
    with torch.no_grad():
        expected = model(batch)
        for frames in (1, 2, 5):
            torch.testing.assert_close(
                model(padded(batch, frames, value=value)), expected, rtol=1e-5, atol=1e-5
            )


@each_selection
def test_windows_of_a_batch_do_not_meet(selection):
    whole = token_batch(frames=9, grid=(3, 3), batch=2)
    mask = whole.mask.clone()
    mask[0, 5:] = False
    mixed = TokenBatch(patch=whole.patch, prefix=None, mask=mask, pts_seconds=whole.pts_seconds)
    model = build(whole, selection=selection).eval()
    with torch.no_grad():
        outputs = model(mixed)
        for b, frames in ((0, 5), (1, 9)):
            torch.testing.assert_close(
                outputs[b], model(cut(whole, 0, frames))[b], rtol=1e-5, atol=1e-5
            )


@each_selection
@pytest.mark.parametrize("frames", [1, 7, 13, 40])
def test_any_length_works(selection, frames):
    model = build(token_batch(frames=13, grid=(3, 3)), selection=selection)
    for training in (False, True):
        outputs = model.train(training)(token_batch(frames=frames, grid=(3, 3)))
        assert bool(outputs.isfinite().all())


# Training ---------------------------------------------------------------------------------------


@each_variant
@each_selection
@pytest.mark.parametrize("mixer", ["s4", "s4d-inv"])
def test_gradients_reach_everything_under_bfloat16_autocast(variant, selection, mixer):
    batch = token_batch(frames=10, grid=(4, 4), prefix=1)
    model = build(batch, variant=variant, selection=selection, mixer=mixer).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch.to("cpu", torch.float16))
        loss = functional.cross_entropy(outputs.float(), torch.tensor([0, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        if name.startswith("generator.") and name != "generator.norm.bias":
            assert bool(parameter.grad.any()), name


def test_the_generator_learns_what_is_rewarded():
    """Tokens with a mark, one in four: hardly kept at first, and then nearly always."""

    def marked(seed):
        batch = token_batch(frames=8, grid=(2, 2), dim=16, batch=8, seed=seed)
        batch.patch[..., 1] = -2.0
        batch.patch[:, :, 1, 0, 1] = 2.0
        return batch

    def share(batch):
        return float(model.kept_patches(batch)[:, :, 1, 0].float().mean())

    model = build(marked(0), depth=1, keep_ratio=0.25, seed=1).train()
    before = share(marked(999))
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=0.01)
    for step in range(80):
        tokens = model._tokens(marked(step))
        _, weights = model._choose(tokens, [8] * 8)
        loss = -(tokens.x[..., 1] * weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5
    assert share(marked(999)) > 0.8


def test_the_guide_is_the_closed_form_of_an_average():
    """After n steps: m^n S_0 + (1 - m) Σ m^(n - 1 - i) S_(i + 1)."""
    batch = token_batch(frames=6, grid=(3, 3))
    model = build(batch, momentum=0.8)
    names = [name for name, _ in model.guide.named_buffers()]
    assert {"norm.weight", "mixer.ssm.log_dt", "mixer.ssm.C", "mixer.output.weight"} <= set(names)
    history = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        history.append(
            {name: model.blocks[0].get_parameter(name).detach().double().clone() for name in names}
        )
        with torch.no_grad():
            for parameter in model.blocks[0].parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        model.after_step()
    history.append({n: model.blocks[0].get_parameter(n).detach().double() for n in names})
    first, *later = history
    for name, held in model.guide.named_buffers():
        expected = 0.8**8 * first[name]
        for i, value in enumerate(later):
            expected = expected + 0.2 * 0.8 ** (7 - i) * value[name]
        torch.testing.assert_close(held.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_guide_is_saved_and_not_learned(tmp_path):
    batch = token_batch(frames=6, grid=(3, 3))
    model = build(batch)
    assert not [name for name, _ in model.named_parameters() if name.startswith("guide.")]
    optimizer = build_optimizer(model, OptimizerConfig())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    model.after_step()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = build(batch, seed=1).eval()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert int(other.steps) == 1
    assert torch.equal(model.eval()(batch), other(batch))


def test_parameters_are_those_of_vis4mer_and_a_generator():
    D = 32
    batch = token_batch(frames=6, grid=(3, 3), dim=D)
    sizes = [
        sum(p.numel() for p in build(batch, name=name).parameters())
        for name in ("selective_s4", "vis4mer")
    ]
    h = D // 2
    assert sizes[0] - sizes[1] == 2 * D + (D * D + D) + (h * h + h) + h * h + (2 * h + 2)


def test_the_guide_never_drops_a_channel():
    batch = token_batch(frames=6, grid=(3, 3))
    model = build(batch, dropout=0.5).train()
    tokens = model._tokens(batch)
    assert torch.equal(model.guide(tokens), model.guide(tokens))
    assert not model.guide(tokens).requires_grad
    block = copy.deepcopy(model.blocks[0]).eval()
    expected = block.mixer(block.norm(tokens.x), None)
    torch.testing.assert_close(model.guide(tokens), expected)


def test_warm_up_drops_more_and_more_in_training_alone():
    batch = token_batch(frames=10, grid=(2, 5))
    model = build(batch, keep_ratio=0.2, warmup_steps=4)
    found = []
    for _ in range(6):
        tokens = model._tokens(batch)
        found.append(model.train()._counts(tokens, batch)[0])
        assert model.eval()._counts(tokens, batch)[0] == 20
        model.after_step()
    assert found == [100, 80, 60, 40, 20, 20]


@each_selection
def test_no_step_asks_for_a_value(selection):
    batch = padded(token_batch(frames=6, grid=(2, 2)), 2)
    model = build(batch, selection=selection).train()
    with CountItems() as mode:
        model(batch).sum().backward()
        model.after_step()
    assert mode.count == 0


@pytest.mark.parametrize("selection", ["gather"])
def test_a_run_repeats_itself_and_goes_on(tmp_path, selection):
    """The guide is a part of the checkpoint: interrupted training ends where the whole one does."""
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    flags = {
        "decoder__name": "selective_s4",
        "decoder__depth": 1,
        "decoder__state_size": 4,
        "decoder__selection": selection,
    }
    train_decoder(cache, config(**flags), tmp_path / "whole")

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(progress):
        if progress.finished is not None and progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train_decoder(cache, config(**flags), tmp_path / "parts", progress=stop)
    train_decoder(cache, config(**flags), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    model = open_run(tmp_path / "whole").load_decoder("last")
    assert int(model.steps) == 3 * 2
    guide = dict(model.guide.named_buffers())["mixer.output.weight"]
    assert not torch.equal(guide, model.blocks[0].mixer.output.weight)


# Options ----------------------------------------------------------------------------------------


def test_options_survive_json():
    options = decoder_options(
        "selective_s4", {"selection": "gather", "keep_ratio": "0.25", "mixer": "s4d-lin"}
    )
    assert (options.keep_ratio, options.gathers) == (0.25, True)
    assert type(options).from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio is 0.0, expected more than 0 and at most 1"),
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5"),
        ({"temperature": 0}, "temperature is 0.0, expected more than 0"),
        ({"momentum": 1}, "momentum is 1.0, expected at least 0 and less than 1"),
        ({"selection": "drop"}, "selection is 'drop', expected one of mask, gather"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected at least 0"),
        ({"mixer": "attention"}, "mixer is 'attention', expected one of s4, s4d-lin"),
        ({"mixer": "s4-released"}, "mixer is 's4-released', expected one of s4, s4d-lin"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build(token_batch(frames=8, prefix=1), **options)


def test_official_counts_the_tokens_that_are_kept():
    message = "needs at least 8 tokens in a window, got 6"
    options = {"variant": "official", "selection": "gather"}
    with pytest.raises(UsageError, match=message):
        build(token_batch(frames=12, prefix=1), **options)
    batch = token_batch(frames=16, prefix=1)
    model = build(batch, **options)
    assert model.min_frames == 15  # of which 8 are kept, as 7.5 is rounded to even
    with pytest.raises(UsageError, match=message):
        model(cut(batch, 0, 12))


def test_it_cannot_be_streamed():
    model = build(token_batch(frames=8, prefix=1))
    assert not model.streamable
    with pytest.raises(UsageError, match="which tokens of a window are kept depends on all"):
        model.start_stream(1, "cpu")
