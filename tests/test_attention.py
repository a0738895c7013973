"""Attention, Performer and Orthoformer against their definitions, and the decoders made of them."""

import copy
import itertools
import math

import pytest
import torch
from token_batches import cut, padded, token_batch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.decoders import build_decoder, decoder_options, describe_decoders
from vis4mer.decode.mixers import mixer_class
from vis4mer.decode.mixers.heads import sinusoids
from vis4mer.decode.mixers.orthoformer import choose_landmarks
from vis4mer.decode.mixers.performer import orthogonal_features
from vis4mer.decode.runs.checkpoints import (
    Checkpoint,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from vis4mer.store.errors import UsageError

KINDS = {
    "fused": ("attention", {}),
    "materialised": ("attention", {"attention": "materialised"}),
    "performer": ("performer", {"features": 32}),
    "orthoformer": ("orthoformer", {"landmarks": 5}),
}
DECODERS = {
    "fused": ("lst", {}),
    "materialised": ("lst", {"attention": "materialised"}),
    "performer": ("performer", {"features": 32}),
    "orthoformer": ("orthoformer", {"landmarks": 5}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_positions = pytest.mark.parametrize("positions", [False, True])


def build_mixer(name, *, width=16, heads=4, seed=0, **options):
    torch.manual_seed(seed)
    chosen = mixer_class(name)
    options = chosen.Options(heads=heads, **options)
    return chosen(width, length=8, dropout=0.0, options=options).eval()


def build(kind, batch, *, seed=0, **options):
    torch.manual_seed(seed)
    name, own = DECODERS[kind]
    return build_decoder(name, shape=batch.shape, num_outputs=4, options={**own, **options})


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads_of(mixer, x):
    """Q, K, V of every head, each (B, N, L, d)."""
    D, d = x.shape[2], x.shape[2] // mixer.heads
    weights, biases = mixer.qkv.weight.split(D), mixer.qkv.bias.split(D)
    found = []
    for weight, bias in zip(weights, biases, strict=True):
        y = x @ weight.mT + bias
        found.append(torch.stack([y[..., at : at + d] for at in range(0, D, d)], dim=1))
    return found


def assert_same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Attention --------------------------------------------------------------------------------------


def slow_attention(Q, K, V):
    """Of one head, one query after another: (L, d), (J, d), (J, e) → (L, e)."""
    rows = []
    for q in Q:
        weights = [math.exp(float(q @ k) / math.sqrt(len(q))) for k in K]
        rows.append(sum(w * v for w, v in zip(weights, V, strict=True)) / sum(weights))
    return torch.stack(rows)


def slow_core(mixer, x, attend):
    """All heads of all windows by `attend` of one head, beside one another."""
    rows = []
    for Q, K, V in zip(*heads_of(mixer, x), strict=True):
        rows.append(torch.cat([attend(*head) for head in zip(Q, K, V, strict=True)], dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["fused", "materialised"])
@pytest.mark.parametrize("length", [1, 2, 23])
def test_attention_is_its_definition(attention, length):
    mixer = build_mixer("attention", attention=attention).double()
    x = 3 * draw(2, length, 16)
    with torch.no_grad():
        expected = slow_core(mixer, x, slow_attention)
        assert_same(mixer.core(x, None), expected)
        assert_same(mixer(x), expected @ mixer.output.weight.mT + mixer.output.bias)


@pytest.mark.parametrize("real", [None, 150])
def test_fused_and_materialised_are_one_function_with_one_gradient(real):
    x = draw(2, 211, 32, dtype=torch.float32)
    mask = None
    if real is not None:
        mask = (torch.arange(211) < torch.tensor([[211], [real]])).contiguous()
    found = []
    for attention in ("fused", "materialised"):
        mixer = build_mixer("attention", width=32, heads=8, attention=attention)
        y = mixer(x, mask)
        (y if mask is None else y[mask]).square().sum().backward()
        found.append([y.detach(), *(p.grad for p in mixer.parameters())])
    for fused, materialised in zip(*found, strict=True):
        torch.testing.assert_close(fused, materialised, rtol=1e-4, atol=1e-4)


def saved_numbers(mixer, x, *, at_least=0):
    """How many numbers autograd keeps in tensors of at least that many, each storage once."""
    kept = {}

    def pack(tensor):
        if tensor.numel() >= at_least:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.numel(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = mixer(x, torch.ones(x.shape[:2], dtype=torch.bool))
    del y
    return sum(count for count, _ in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_materialised_attention_keeps_one_square_for_the_way_back(autocast):
    mixer = build_mixer("attention", attention="materialised")
    x = draw(1, 128, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert saved_numbers(mixer, x, at_least=128 * 128) == 4 * 128 * 128


@pytest.mark.parametrize("kind", ["fused", "performer", "orthoformer"])
def test_the_others_keep_what_grows_with_the_tokens(kind):
    name, options = KINDS[kind]
    mixer = build_mixer(name, **options).train()
    short, long = (saved_numbers(mixer, draw(1, n, 16, dtype=torch.float32)) for n in (512, 2048))
    assert long <= 4.1 * short


# Performer --------------------------------------------------------------------------------------


def slow_performer(W, epsilon):
    """The equations of one head; its keys are all real."""

    def attend(Q, K, V):
        m, d = W.shape
        Q, K = Q * d**-0.25, K * d**-0.25

        def exponent(x):
            return W @ x - x @ x / 2

        def phi(x, c):
            return ((exponent(x) - c).exp() + epsilon) / math.sqrt(m)

        c_K = max(float(exponent(k).max()) for k in K)
        keys = [phi(k, c_K) for k in K]
        rows = []
        for q in Q:
            weights = [float(phi(q, exponent(q).max()) @ key) for key in keys]
            rows.append(sum(w * v for w, v in zip(weights, V, strict=True)) / sum(weights))
        return torch.stack(rows)

    return attend


@pytest.mark.parametrize("real", [23, 17])
def test_performer_is_its_definition(real):
    mixer = build_mixer("performer", features=11, epsilon=0.03).double()
    x = 3 * draw(2, 23, 16)
    mask = None if real == 23 else (torch.arange(23) < real).expand(2, -1)
    with torch.no_grad():
        expected = slow_core(mixer, x[:, :real], slow_performer(mixer.W, 0.03))
        assert_same(mixer.core(x, mask)[:, :real], expected, 1e-6)  # W is drawn in float32


def test_performer_converges_to_softmax_attention():
    """The error of an average of m draws falls as m^(−½): 8 times from 64 to 4,096 features."""
    x = draw(1, 12, 16) / 2
    errors = {}
    for features in (64, 4096):
        squares = []
        for seed in range(8):
            mixer = build_mixer("performer", heads=2, features=features, seed=seed).double()
            with torch.no_grad():
                exact = slow_core(mixer, x, slow_attention)
                squares.append((mixer.core(x, None) - exact).square().mean() / exact.var())
        errors[features] = math.sqrt(torch.stack(squares).mean())
    assert errors[4096] < 0.01
    assert 5 < errors[64] / errors[4096] < 13


def test_features_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    W = orthogonal_features(4000, 6, torch.Generator().manual_seed(0)).double()
    assert W.shape == (4000, 6)
    directions = functional.normalize(W, dim=1)
    for at in range(0, 3996, 666):
        block = directions[at : at + 6]
        assert_same(block @ block.mT, torch.eye(6).double(), 1e-5)
    squares = W.square().sum(dim=1)  # chi-squared with 6 degrees: mean 6, variance 12
    assert abs(float(squares.mean()) - 6) < 0.3
    assert abs(float(squares.var()) - 12) < 1.5
    assert_same(W.mT @ W / 4000, torch.eye(6).double(), 0.1)  # no direction is preferred


def test_performer_redraws_by_its_own_count_of_training_steps():
    x = draw(1, 5, 16, dtype=torch.float32)

    def features_after(mixer, steps):
        seen = []
        for _ in range(steps):
            mixer(x)
            seen.append(mixer.W.clone())
        return seen

    mixer = build_mixer("performer", features=7, redraw=3)
    first = mixer.W.clone()
    assert all(torch.equal(W, first) for W in features_after(mixer, 7))  # evaluation
    half_way = None
    seen = []
    for step in range(9):
        torch.manual_seed(step)  # of no influence
        seen += features_after(mixer.train(), 1)
        if step == 4:
            half_way = copy.deepcopy(mixer.state_dict())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [True, True, False] * 2 + [
        True,
        True,
    ]
    assert torch.equal(seen[0], first)
    assert not torch.equal(seen[0], seen[6])
    restored = build_mixer("performer", features=7, redraw=3, seed=5).train()
    restored.load_state_dict(half_way)
    again = features_after(restored, 4)
    assert all(torch.equal(a, b) for a, b in zip(again, seen[5:], strict=True))
    never = build_mixer("performer", features=7).train()
    assert all(torch.equal(W, first) for W in features_after(never, 5))


# Orthoformer ------------------------------------------------------------------------------------


def slow_landmarks(Q, first, number):
    """Of one head, all of whose tokens are candidates."""
    unit = [q / q.norm() for q in Q]
    chosen = [first]
    while len(chosen) < number:
        left = [at for at in range(len(Q)) if at not in chosen]
        chosen.append(min(left, key=lambda at: max(abs(float(unit[at] @ unit[c])) for c in chosen)))
    return chosen


def test_landmarks_by_hand():
    """From (1, 0): its opposite and near ones are last, (0, 5) is first, the length is nothing."""
    angles = torch.tensor([0.0, 180.0, 80.0, 90.0, 45.0]).deg2rad()
    Q = torch.stack([angles.cos(), angles.sin()], dim=1).double() * torch.tensor(
        [[1.0], [2.0], [3.0], [5.0], [0.1]]
    )
    found = choose_landmarks(Q[None, None], None, torch.zeros(1, 1), number=5)
    # |cos| to (1, 0) and (0, 1): 80° has 0.985, 45° has 0.707, 180° has 1.
    assert found.tolist() == [[[0, 3, 4, 2, 1]]]


def test_landmarks_are_the_greedy_ones_among_real_tokens():
    Q = draw(3, 2, 31, 4)
    mask = torch.rand(3, 31, generator=torch.Generator().manual_seed(1)) < 0.6
    Q = torch.where(mask[:, None, :, None], Q, 1e4 * Q)
    share = torch.tensor([[0.0, 0.5], [0.99, 0.2], [0.7, 0.34]])
    found = choose_landmarks(Q, mask, share, number=9)
    for window, head in itertools.product(range(3), range(2)):
        real = mask[window].nonzero()[:, 0]
        first = int(share[window, head] * len(real))
        expected = slow_landmarks(Q[window, head, real], first, 9)
        assert found[window, head].tolist() == real[expected].tolist()
    whole = choose_landmarks(Q, None, share, number=9)
    assert whole[2, 0].tolist() == slow_landmarks(Q[2, 0], 21, 9)  # ⌊0.7 · 31⌋


@pytest.mark.parametrize(
    ("share", "place"),
    [(math.nan, 0), (-3.0, 0), (-math.inf, 0), (1.0, 4), (1e9, 4), (math.inf, 4)],
)
def test_a_share_that_is_none_still_gives_a_place(share, place):
    Q, first = draw(1, 1, 5, 4), torch.tensor([[share]])
    for mask in (None, torch.ones(1, 5, dtype=torch.bool)):
        assert choose_landmarks(Q, mask, first, number=1).tolist() == [[[place]]]


def slow_orthoformer(first, number):
    def attend(Q, K, V):
        P = Q[slow_landmarks(Q, int(first * len(Q)), min(number, len(Q)))]
        return slow_attention(Q, P, slow_attention(P, K, V))

    return attend


@pytest.mark.parametrize(("landmarks", "real"), [(5, 13), (5, 9), (13, 13), (40, 13), (10, 7)])
def test_orthoformer_is_its_definition(landmarks, real):
    """Few landmarks, and as many as there are tokens or more; with padding and without."""
    mixer = build_mixer("orthoformer", heads=1, landmarks=landmarks).double()
    x = 3 * draw(2, 13, 16)
    mask = None if real == 13 else (torch.arange(13) < real).expand(2, -1)
    with torch.no_grad():
        attend = slow_orthoformer(float(mixer.first[0]), landmarks)
        expected = slow_core(mixer, x[:, :real], attend)
        assert_same(mixer.core(x, mask)[:, :real], expected)


def test_orthoformer_with_all_tokens_as_landmarks_is_two_attentions():
    """softmax(QQᵀ/√d) (softmax(QKᵀ/√d) V): then no choice of landmarks plays a part."""
    mixer = build_mixer("orthoformer", landmarks=64).double()
    x = 3 * draw(2, 13, 16)
    with torch.no_grad():
        expected = slow_core(
            mixer, x, lambda Q, K, V: slow_attention(Q, Q, slow_attention(Q, K, V))
        )
        assert_same(mixer.core(x, None), expected)
        assert_same(mixer.train().core(x, None), expected)


def test_landmarks_have_a_gradient_and_their_choice_has_none():
    mixer = build_mixer("orthoformer", heads=1, landmarks=3).double()
    x = draw(1, 9, 16)
    mixer.core(x, None).square().sum().backward()
    found = mixer.qkv.weight.grad.clone()
    mixer.zero_grad()
    Q, K, V = (each[0, 0] for each in heads_of(mixer, x))
    P = Q[slow_landmarks(Q.detach(), int(mixer.first[0] * 9), 3)]
    gathered = torch.softmax(P @ K.mT / 4, dim=1) @ V
    (torch.softmax(Q @ P.mT / 4, dim=1) @ gathered).square().sum().backward()
    assert_same(found, mixer.qkv.weight.grad)


def test_the_first_landmark_is_random_in_training_and_fixed_at_evaluation():
    mixer = build_mixer("orthoformer", landmarks=1)
    x = draw(1, 50, 16, dtype=torch.float32)
    with torch.no_grad():
        fixed = [mixer(x) for _ in range(3)]
        drawn = [mixer.train()(x) for _ in range(3)]
        torch.manual_seed(7)
        one = mixer(x)
        torch.manual_seed(7)
        assert torch.equal(one, mixer(x))
    assert all(torch.equal(y, fixed[0]) for y in fixed)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


# Padding, lengths, order ------------------------------------------------------------------------


@each_kind
@each_positions
@pytest.mark.parametrize(("real", "length"), [(1, 2), (2, 211), (197, 211), (211, 512)])
def test_values_at_masked_places_change_nothing(kind, positions, real, length):
    name, options = KINDS[kind]
    mixer = build_mixer(name, width=32, heads=8, positions=positions, **options)
    x = draw(3, length, 32, dtype=torch.float32)
    x[:, real:] = 1e4 * x[:, real:].sign()
    mask = (torch.arange(length) < real).expand(3, -1)
    with torch.no_grad():
        y = mixer(x, mask)
        torch.testing.assert_close(y[:, :real], mixer(x[:, :real]), rtol=1e-5, atol=1e-5)
    assert bool(y.isfinite().all())


@each_kind
@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("view", [{"grid": (5, 3)}, {"grid": (4, 4), "prefix": 1}, {"prefix": 3}])
@pytest.mark.parametrize("value", [1e4, float("nan")])
def test_padding_frames_change_nothing(kind, variant, view, value):
    batch = token_batch(frames=11, **view)
    model = build(kind, batch, variant=variant, positions=True).eval()
    with torch.no_grad():
        expected = model(batch)
        for frames in (1, 5):
            found = model(padded(batch, frames, value=value))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@each_kind
def test_windows_of_a_batch_do_not_meet(kind):
    whole = token_batch(frames=9, grid=(3, 3), batch=2)
    mask = whole.mask.clone()
    mask[0, 5:] = False
    mixed = TokenBatch(patch=whole.patch, prefix=None, mask=mask, pts_seconds=whole.pts_seconds)
    model = build(kind, whole).eval()
    with torch.no_grad():
        outputs = model(mixed)
        assert_same(outputs[:1], model(cut(whole, 0, 5))[:1], 1e-5)
        assert_same(outputs[1:], model(whole)[1:], 1e-5)


def test_a_window_without_a_real_frame_is_refused():
    """So no softmax is ever over nothing."""
    batch = token_batch(frames=3, prefix=1)
    empty = TokenBatch(
        patch=None,
        prefix=batch.prefix,
        mask=torch.tensor([[True] * 3, [False] * 3]),
        pts_seconds=batch.pts_seconds,
    )
    for kind in DECODERS:
        with pytest.raises(UsageError, match="tokens in a window, got 0"):
            build(kind, batch)(empty)


@each_kind
@each_positions
def test_any_length_works(kind, positions):
    """One model, built for 7 frames: shorter, longer, odd and prime."""
    model = build(kind, token_batch(frames=7, prefix=1), positions=positions).eval()
    for length in (1, 2, 7, 197, 211):
        batch = token_batch(frames=length, prefix=1)
        with torch.no_grad():
            first, again = model(batch), model(batch)
        assert first.shape == (2, 4)
        assert bool(first.isfinite().all())
        assert torch.equal(first, again)  # whatever was drawn in between


def test_positions_are_the_sinusoids():
    found = sinusoids(7, 5, device=torch.device("cpu"))
    for place, channel in itertools.product(range(7), range(5)):
        angle = place / 10_000 ** ((channel - channel % 2) / 5)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert float(found[place, channel]) == pytest.approx(expected, abs=1e-6)


@each_kind
def test_order_is_known_by_positions_alone(kind):
    """Without pooling, the outputs for frames in reverse differ only with positions."""
    batch = token_batch(frames=12, prefix=1)
    reversed_batch = TokenBatch(
        patch=None, prefix=batch.prefix.flip(1), mask=batch.mask, pts_seconds=batch.pts_seconds
    )
    for positions in (False, True):
        options = {"pooling": False, "depth": 1, "positions": positions}
        if kind == "orthoformer":
            options["landmarks"] = 12  # fewer depend on which is first
        model = build(kind, batch, **options).eval()
        with torch.no_grad():
            same = torch.allclose(model(batch), model(reversed_batch), rtol=1e-5, atol=1e-5)
        assert same is not positions


# Training ---------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("missing", [0, 3])
def test_gradients_are_finite_under_bfloat16_autocast(kind, variant, missing):
    batch = padded(token_batch(frames=10, grid=(4, 4), prefix=1), missing, value=1e4)
    half = batch.to("cpu", torch.float16)  # as a cache holds it
    model = build(kind, batch, variant=variant, positions=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(half)
        loss = functional.cross_entropy(outputs.float(), torch.tensor([0, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", ["fused", "materialised", "performer"])
def test_bfloat16_autocast_rounds_and_no_more(kind):
    """Not Orthoformer: rounding may make it choose other landmarks."""
    batch = token_batch(frames=10, grid=(4, 4))
    model = build(kind, batch).eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch)
        torch.testing.assert_close(rounded.float(), model(batch), rtol=0.05, atol=0.05)


@each_kind
def test_large_activations_give_no_nan(kind):
    """Where every feature of Performer underflows, ε remains."""
    name, options = KINDS[kind]
    mixer = build_mixer(name, **options).train()
    x = 1e3 * draw(2, 9, 16, dtype=torch.float32)
    y = mixer(x, None)
    y.sum().backward()
    assert bool(y.isfinite().all())
    for parameter in mixer.parameters():
        assert bool(parameter.grad.isfinite().all())


class RefuseItems(TorchDispatchMode):
    """Fails where Python asks for the value of a tensor, and so waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@each_kind
def test_no_step_asks_for_a_value(kind):
    batch = padded(token_batch(frames=6, grid=(2, 2)), 2)
    options = {"redraw": 1} if kind == "performer" else {}
    model = build(kind, batch, **options).train()
    with RefuseItems():
        for _ in range(2):
            model(batch).square().sum().backward()
        with pytest.raises(AssertionError):
            bool(batch.mask.all())  # it would have been seen


@each_kind
def test_a_checkpoint_gives_the_same_outputs_bit_by_bit(kind, tmp_path):
    batch = token_batch(frames=6, grid=(3, 3))
    model = build(kind, batch).train()
    model(batch)
    path = tmp_path / "w.safetensors"
    write_checkpoint(path, Checkpoint(tensors=model.state_dict(), about={}))
    other = build(kind, batch, seed=1)
    load_model(other, read_checkpoint(path).tensors, name="w")
    assert torch.equal(model.eval()(batch), other.eval()(batch))
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())


# Sizes and options ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lst", "performer", "orthoformer"])
@pytest.mark.parametrize("dim", [64, 1024])
def test_parameter_count(name, dim):
    """Per block of width H: norm 2H; Q, K, V and output 4H² + 4H; the MLP and skip of the paper."""
    shape = TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=dim)
    model = build_decoder(name, shape=shape, num_outputs=4, options={"positions": True})
    expected = 0
    for H in (dim, dim // 2, dim // 4):
        half = H // 2
        expected += 2 * H + 4 * H * H + 4 * H + 2 * (H * half + half) + half * half + half
    expected += dim // 8 * 4 + 4
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lst", {"heads": 3}, r"heads is 3, which does not divide the width 32 .*heads=1"),
        ("lst", {"heads": 16}, r"heads is 16, which does not divide the width 8 .*heads=8"),
        ("lst", {"heads": 0}, "heads is 0, expected at least 1"),
        ("lst", {"mixer": "s4"}, "mixer is 's4', expected attention here; decoder vis4mer takes"),
        ("lst", {"attention": "sparse"}, "attention is 'sparse', expected one of fused, material"),
        ("lst", {"features": 3}, "'decoder.features', expected one of variant, .*attention"),
        ("performer", {"features": 0}, "features is 0, expected at least 1"),
        ("performer", {"redraw": 0}, "redraw is 0, expected at least 1, or none"),
        ("performer", {"epsilon": 0}, "epsilon is 0.0, expected more than 0"),
        ("orthoformer", {"landmarks": 0}, "landmarks is 0, expected at least 1"),
        ("vis4mer", {"landmarks": 2}, "'decoder.landmarks', expected one of"),
    ],
)
def test_bad_requests_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        build_decoder(
            name, shape=token_batch(frames=4, prefix=1).shape, num_outputs=2, options=options
        )


def test_the_three_decoders_are_vis4mer_with_another_mixer():
    batch = token_batch(frames=5, grid=(4, 4))
    for name, mixer in (
        ("lst", "attention"),
        ("performer", "performer"),
        ("orthoformer", "orthoformer"),
    ):
        models = []
        for decoder, options in ((name, {}), ("vis4mer", {"mixer": mixer})):
            torch.manual_seed(0)
            shape = batch.shape
            model = build_decoder(decoder, shape=shape, num_outputs=4, options=options).eval()
            models.append(model)
        assert torch.equal(models[0](batch), models[1](batch))
        assert isinstance(models[0].head, nn.Linear)
        with pytest.raises(UsageError, match=f"decoder '{name}' with mixer '{mixer}' cannot be st"):
            models[0].start_stream(1, "cpu")
        options = decoder_options(name, {"variant": "official", "heads": "2", "positions": "yes"})
        assert (options.mixer, options.mixer_options.heads) == (mixer, 2)
        assert type(options).from_json(options.to_json()) == options


def test_their_options_are_listed_with_their_defaults():
    about = {each.name: each for each in describe_decoders()}
    told = {
        name: {option.name: option.describe() for option in about[name].options}
        for name in ("lst", "performer", "orthoformer")
    }
    assert told["lst"]["mixer"] == "attention only, default attention"
    assert told["lst"]["heads"] == "whole number, default 8"
    assert told["lst"]["attention"] == "one of fused, materialised, default fused"
    assert told["performer"]["redraw"] == "whole number or none, default none"
    assert told["performer"]["features"] == "whole number, default 256"
    assert told["orthoformer"]["landmarks"] == "whole number, default 64"
    assert "state_size" not in told["lst"]
