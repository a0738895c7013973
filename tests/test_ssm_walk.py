"""The quick ways through a state-space layer, against slow ones: powers, rows, walk, slices."""

import pytest
import torch
from oracles import relative_error
from torch.autograd import gradcheck
from vis4mer.decode.mixers.s4 import S4Mixer, S4Options
from vis4mer.decode.mixers.s4d import S4dLinMixer, S4dOptions
from vis4mer.decode.skeleton import GridPool, NoPool, PairPool, Tokens
from vis4mer.decode.ssm.channels import by_channels
from vis4mer.decode.ssm.doubling import doubled_rows
from vis4mer.decode.ssm.kernel import (
    block_convolution,
    block_operators,
    fft_convolution,
    first_taps,
    kernel,
)
from vis4mer.decode.ssm.s4 import Dplr
from vis4mer.decode.ssm.s4d import DiagonalSsm
from vis4mer.decode.ssm.system import Dense, power
from vis4mer.decode.ssm.walk import walk

LAYERS = {
    "s4": lambda **sizes: Dplr(3, **sizes),
    "s4, untied": lambda **sizes: Dplr(3, tied=False, **sizes),
    "s4d": lambda **sizes: DiagonalSsm(3, start="lin", **sizes),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def system_of(ssm):
    return ssm.system(*ssm.vectors())


def random(*shape, scale=1.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


@each_layer
@pytest.mark.parametrize("exponent", [1, 2, 3, 8, 9, 16, 33, 100])
def test_powers_are_those_of_the_full_matrix(layer, exponent):
    torch.manual_seed(0)
    with torch.no_grad():
        step = system_of(layer(state_size=16).double()).step
        whole = torch.eye(16, dtype=torch.float64) + step.matrix()
        expected = torch.linalg.matrix_power(whole, exponent)
        found, x = power(step, exponent), torch.randn(3, 5, 16, dtype=torch.float64)
        torch.testing.assert_close(found.matrix() + torch.eye(16), expected, rtol=0, atol=1e-11)
        moved = torch.einsum("hnk,hjk->hjn", expected, x)
        torch.testing.assert_close(x + found.excess(x), moved, rtol=0, atol=1e-11)
        moved = torch.einsum("hkn,hjk->hjn", expected, x)
        torch.testing.assert_close(x + found.excess_transposed(x), moved, rtol=0, atol=1e-11)


def test_powers_of_a_small_step_keep_their_digits():
    torch.manual_seed(0)
    ssm = Dplr(4, dt_min=1e-6, dt_max=1e-5)
    with torch.no_grad():
        found = power(system_of(ssm).step, 64).matrix()
        exact = power(Dense(system_of(ssm.double()).step.matrix()), 64).matrix()
    assert relative_error(found, exact)[1] < 1e-5


@pytest.mark.parametrize(("known", "length"), [(1, 8), (2, 7), (4, 4), (8, 64)])
def test_doubled_rows_are_the_sequence_of_products(known, length):
    torch.manual_seed(0)
    A = torch.randn(2, 4, 4, dtype=torch.float64)
    A /= torch.linalg.matrix_norm(A, ord=2, keepdim=True)  # stable
    b, c = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    powers = [torch.linalg.matrix_power(A, i) for i in range(length)]
    reach = torch.stack([torch.einsum("hnk,hk->hn", p, b) for p in powers], dim=1)
    readout = torch.stack([torch.einsum("hkn,hk->hn", p, c) for p in powers], dim=1)
    E = torch.linalg.matrix_power(A, known) - torch.eye(4)
    found = doubled_rows(E, reach[:, :known], readout[:, :known], length)
    torch.testing.assert_close(found[0], reach, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], readout, rtol=0, atol=1e-12)
    reached = known
    while reached < length:
        reached *= 2
    last = torch.linalg.matrix_power(A, reached) - torch.eye(4)
    torch.testing.assert_close(found[2], last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [7, 8])
def test_gradients_of_doubled_rows_are_the_numerical_ones(length):
    torch.manual_seed(0)
    inputs = random(2, 3, 3, scale=0.3), random(2, 2, 3), random(2, 2, 3)
    assert gradcheck(lambda *x: doubled_rows(*x, length), inputs)


@pytest.mark.parametrize(("batch", "length"), [(2, 5), (1, 11), (2, 103)])
def test_gradients_of_a_walk_are_the_numerical_ones(batch, length):
    """Of few steps, one by one, and of many, in pairs."""
    torch.manual_seed(0)
    inputs = [random(2, batch, length), random(2, 2), random(2, 2, 3), random(2, 2, 3)]
    E = 0.2 * torch.randn(2, 3, 3, dtype=torch.float64) - 0.5 * torch.eye(3)  # of a stable step
    inputs.append(E.requires_grad_())
    assert gradcheck(walk, inputs, fast_mode=length > 100)


@each_layer
@pytest.mark.parametrize("length", [40, 700, 3000])
def test_gradients_are_those_of_kernel_and_fft(layer, length):
    torch.manual_seed(0)
    ssm = layer(state_size=16).double()
    u, weight = random(3, 2, length), torch.randn(3, 2, length, dtype=torch.float64)
    leaves = [u, *ssm.parameters()]
    slow = fft_convolution(kernel(system_of(ssm), length), u)
    fast = block_convolution(system_of(ssm), u, block=64)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad((slow * weight).sum(), leaves)
    found = torch.autograd.grad((fast * weight).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * float(b.detach().abs().max()))


@each_layer
def test_in_bfloat16_errors_are_those_of_its_products_at_any_length(layer):
    torch.manual_seed(0)
    ssm = layer()
    for length in (50, 700, 12_000, 48_000):
        u, g = torch.randn(3, 1, length).bfloat16(), torch.randn(3, 1, length).bfloat16()

        def there_and_back(ssm, u, g):
            u = u.clone().requires_grad_()
            y = block_convolution(system_of(ssm), u)
            return [y, *torch.autograd.grad(y, [u, ssm.B, ssm.C, ssm.D, ssm.log_dt], g)]

        expected = there_and_back(ssm.double(), u.double(), g.double())
        found = there_and_back(ssm.float(), u, g)
        assert found[0].dtype == found[1].dtype == torch.bfloat16
        assert {gradient.dtype for gradient in found[2:]} == {torch.float32}
        for a, b in zip(found, expected, strict=True):
            error = (a.detach().double() - b.detach()).norm() / b.detach().norm()
            assert float(error) < 1e-2, length


def test_taps_alone_are_those_of_the_operators():
    torch.manual_seed(0)
    system = system_of(Dplr(3, state_size=16))
    for length in (1, 2, 37, 64):
        taps = block_operators(system, length).taps
        torch.testing.assert_close(first_taps(system, length), taps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_kept_is_made_once(keep):
    torch.manual_seed(0)
    made = []

    def prepare(scale, a):
        made.append(len(a))
        return scale, a.exp(), (2 * a).cos()

    def function(u, scale, b, c):
        return u * scale * b[:, None, None] + c[:, None, None]

    u, a = random(2, 3, 5), random(5)
    scale = torch.ones(5, 1, 1, dtype=torch.float64)
    y = by_channels(function, u, scale, a, size=2, prepare=prepare, keep=keep)
    found = torch.autograd.grad(y.square().sum(), [u, a])
    plain = u * a.exp() + (2 * a).cos()
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), [u, a]))
    assert made == ([2, 2, 1] if keep else [2, 2, 1, 2, 2, 1])


@pytest.mark.parametrize("convolution", ["blocks", "fft"])
@pytest.mark.parametrize("kind", [(S4Mixer, S4Options), (S4dLinMixer, S4dOptions)])
def test_keeping_operators_changes_no_bit(kind, convolution):
    mixer_class, options = kind
    torch.manual_seed(0)
    options = options(state_size=16, convolution=convolution)
    mixer = mixer_class(70, length=150, dropout=0.3, options=options)
    x = torch.randn(2, 150, 70, requires_grad=True)

    def gradients(*, keep):
        mixer.keep_operators = keep
        torch.manual_seed(1)
        y = mixer.core(x, None)
        leaves = [x, *mixer.ssm.parameters()]
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    for a, b in zip(gradients(keep=True), gradients(keep=False), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("padded", [5, 6, 9])
def test_padding_on_the_way_in_changes_nothing(padded):
    """A function of channels that also looks back, so that what stands in the zeros matters."""
    torch.manual_seed(0)
    seen = []

    def function(u, a):
        seen.append(u.shape)
        assert not u[..., 5:].any()
        return (u.cumsum(dim=2) * a[:, None, None]).square()[..., :5]

    u, a = random(2, 5, 7), random(7)
    y = by_channels(function, u, a, size=3, padded=padded)
    plain = (u.cumsum(dim=1) * a).square()
    torch.testing.assert_close(y, plain)
    found = torch.autograd.grad(y.sin().sum(), [u, a])
    torch.testing.assert_close(found, torch.autograd.grad(plain.sin().sum(), [u, a]))
    assert {shape[2] for shape in seen} == {padded}


@pytest.mark.parametrize("convolution", ["blocks", "fft"])
@pytest.mark.parametrize(
    ("pool", "grid", "num_tokens"),
    [
        (NoPool(), None, 150),
        (PairPool(drop_tail=True), None, 151),
        (PairPool(drop_tail=False), None, 151),
        (PairPool(drop_tail=True), None, 3),
        (PairPool(drop_tail=True), None, 1),
        (GridPool(), (3, 5), 150),
        (GridPool(), (2, 2), 256),
        (GridPool(), (21, 20), 840),
    ],
)
def test_pooling_in_hand_is_pooling_afterwards(pool, grid, num_tokens, convolution):
    torch.manual_seed(0)
    options = S4Options(state_size=16, convolution=convolution)
    mixer = S4Mixer(70, length=num_tokens, dropout=0.3, options=options).double()
    x = random(2, num_tokens, 70)

    def gradients(pooled):
        torch.manual_seed(1)
        y = pooled()
        return [y, *torch.autograd.grad(y.square().sum(), [x, *mixer.ssm.parameters()])]

    tokens = Tokens(x=x, mask=None, grid=grid)
    in_hand = gradients(lambda: mixer.pooled_core(x, pool.in_hand(tokens)))
    plain = gradients(lambda: pool(tokens.like(mixer.core(x, None))).x)
    assert in_hand[0].shape == plain[0].shape
    for a, b in zip(in_hand, plain, strict=True):
        torch.testing.assert_close(a, b)
