"""The S4 kernel and every way to convolve with it, against dense float64 recurrences."""

import copy

import numpy as np
import pytest
import torch
from oracles import (
    bilinear,
    causal_convolution,
    dense_legs,
    full_system,
    recurrent_kernel,
    relative_error,
    slow_kernel,
)
from vis4mer.decode.ssm.cauchy import (
    ContinuousDplr,
    cauchy_kernel,
    truncated_rows,
    unit_nodes,
    untruncated_rows,
)
from vis4mer.decode.ssm.channels import by_channels
from vis4mer.decode.ssm.hippo import legs_nplr
from vis4mer.decode.ssm.kernel import (
    block_convolution,
    block_operators,
    block_step,
    fast_fft_length,
    fft_convolution,
    kernel,
)
from vis4mer.decode.ssm.s4 import Dplr

LENGTHS = [1, 2, 3, 5, 64, 65, 97, 128, 788, 2955]


def layer(num_channels=6, **options):
    """A layer without skip connection, so that its kernel is all there is."""
    torch.manual_seed(0)
    ssm = Dplr(num_channels, **options)
    torch.nn.init.zeros_(ssm.D)
    return ssm


def perturbed(ssm):
    """Away from the initial values, in float64, as training would leave it."""
    ssm = ssm.double()
    with torch.no_grad():
        for parameter in ssm.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        ssm.D.zero_()
    return ssm


def system_of(ssm):
    return ssm.system(*ssm.vectors())


@pytest.mark.parametrize("length", [*LENGTHS, 11_760])
def test_kernel_is_dense_legs(length):
    ssm = layer()
    A, B = dense_legs(64)
    C = torch.view_as_complex(ssm.C.detach()).to(torch.complex128)
    C = 2 * (C @ legs_nplr(64).V.conj().T).real
    dt = ssm.log_dt.detach().double().exp()
    A_bar, B_bar = bilinear(A.expand(6, 64, 64), B.expand(6, 64), dt)
    expected = recurrent_kernel(A_bar, B_bar, C, length)
    with torch.no_grad():
        overall, worst = relative_error(kernel(system_of(ssm), length), expected)
    assert overall < 1e-5
    assert worst < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_float64_kernel_is_the_recurrence_to_rounding(length, tied):
    ssm = perturbed(layer(tied=tied, state_size=16))
    _, worst = relative_error(kernel(system_of(ssm), length), slow_kernel(ssm, length))
    assert worst < 1e-11


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("block", [8, 64])
def test_block_convolution_is_the_sum_over_taps(length, block):
    ssm = layer(num_channels=3, state_size=16)
    torch.nn.init.normal_(ssm.D)
    u = torch.randn(3, 2, length)
    K = slow_kernel(ssm, length)
    K[:, 0] += ssm.D
    expected = torch.from_numpy(causal_convolution(K.detach().numpy(), u.double().numpy()))
    with torch.no_grad():
        found = block_convolution(system_of(ssm), u, block=block)
    assert relative_error(found, expected)[1] < 2e-5


@pytest.mark.parametrize("length", LENGTHS)
def test_fft_convolution_is_the_sum_over_taps(length):
    K, u = torch.randn(3, length), torch.randn(3, 2, length)
    expected = torch.from_numpy(causal_convolution(K.double().numpy(), u.double().numpy()))
    assert relative_error(fft_convolution(K, u), expected)[1] < 2e-6


def test_fast_fft_lengths_are_the_smallest_smooth_even_ones():
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for at_least in [*range(1, 300), 23_519, 65_537]:
        expected = next(n for n in range(at_least, 10**6) if n % 2 == 0 and smooth(n))
        assert fast_fft_length(at_least) == expected


@pytest.mark.parametrize("blocks", [[1], [49], [197, 3, 1, 64], [500]])
def test_stream_equals_convolution(blocks):
    ssm = layer(num_channels=16)
    system, u = system_of(ssm), torch.randn(16, 2, 2000)
    sizes, left = [], 2000
    while left:
        sizes.append(min(blocks[len(sizes) % len(blocks)], left))
        left -= sizes[-1]
    x, outputs = torch.zeros(16, 2, 64), []
    with torch.no_grad():
        operators = {size: block_operators(system, size) for size in set(sizes)}
        for part in u.split(sizes, dim=2):
            y, x = block_step(operators[part.shape[2]], part, x)
            outputs.append(y)
        whole = block_convolution(system, u)
    assert relative_error(torch.cat(outputs, dim=2), whole)[1] < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_recurrence(tied):
    length = 75
    fast = perturbed(layer(num_channels=3, state_size=8, tied=tied))
    slow = copy.deepcopy(fast)
    u, weight = torch.randn(3, 2, length).double(), torch.randn(3, 2, length).double()
    (block_convolution(system_of(fast), u, block=8) * weight).sum().backward()
    K = slow_kernel(slow, length)
    K = torch.cat([K[:, :1] + slow.D[:, None], K[:, 1:]], dim=1)
    y = torch.stack(
        [(K[:, None, : at + 1].flip(2) * u[:, :, : at + 1]).sum(dim=2) for at in range(length)],
        dim=2,
    )
    (y * weight).sum().backward()
    for name, parameter in fast.named_parameters():
        expected = dict(slow.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-9, msg=name)


def test_a_few_channels_at_a_time_change_nothing():
    torch.manual_seed(0)
    ssm = Dplr(7, state_size=16)
    u = torch.randn(2, 150, 7, requires_grad=True)
    weight = torch.randn(2, 150, 7)

    def run(u, vectors, *, size):
        y = by_channels(lambda u, *v: block_convolution(ssm.system(*v), u), u, *vectors, size=size)
        leaves = [u, *ssm.parameters()]
        return y, torch.autograd.grad((y * weight).sum(), leaves)

    plain = block_convolution(system_of(ssm), u.permute(2, 0, 1)).permute(1, 2, 0)
    expected = torch.autograd.grad((plain * weight).sum(), [u, *ssm.parameters()])
    for size in (1, 3, 7, 100):
        y, gradients = run(u, ssm.vectors(), size=size)
        torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-6)
        for found, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 50, 197, 788])
def test_frequency_domain_agrees_at_even_and_odd_lengths(length):
    """The generating function at exact nodes, with C̃ = C (I − Āᴸ)."""
    ssm = perturbed(layer(num_channels=3, state_size=16, tied=False))
    system = system_of(ssm)
    with torch.no_grad():
        rows = truncated_rows(system.step, system.C, length)
        real, imag = rows.chunk(2, dim=1)
        half = ssm.A_frequency.shape[0]
        A, B, _ = full_system(ssm)
        del A
        continuous = ContinuousDplr(
            Lambda=torch.complex(-ssm.A_log_decay.exp(), ssm.A_frequency),
            P=torch.view_as_complex(ssm.P),
            Q=torch.view_as_complex(ssm.Q),
            B=B[:, :half],
            C=torch.complex(real / 2, -imag / 2),
            dt=ssm.log_dt.exp(),
        )
        found = cauchy_kernel(continuous, unit_nodes(length), num_taps=length)
        assert relative_error(found, slow_kernel(ssm, length))[1] < 1e-10
        again = untruncated_rows(system.step, rows, length)
    torch.testing.assert_close(again, system.C, rtol=1e-9, atol=1e-9)


def test_a_tied_system_can_only_shrink_whatever_its_parameters():
    ssm = layer(num_channels=32)
    with torch.no_grad():
        for parameter in ssm.parameters():
            parameter.add_(3 * torch.randn_like(parameter))
    with torch.no_grad():
        E = system_of(ssm).step.matrix().double()
        K = kernel(system_of(ssm), 5000)
    largest = torch.linalg.matrix_norm(E + torch.eye(64, dtype=E.dtype), ord=2)
    assert float(largest.max()) < 1 + 1e-4
    assert bool(K.isfinite().all())


def test_horizon_holds_the_energy_asked_for():
    ssm = layer(num_channels=8)
    K = slow_kernel(ssm, 3000).detach().numpy()
    for h, tokens in enumerate(ssm.horizon_tokens(3000).tolist()):
        energy = np.cumsum(K[h] ** 2)
        assert energy[tokens - 1] >= 0.99 * energy[-1] * (1 - 1e-4)
        assert energy[tokens - 2] < 0.99 * energy[-1] * (1 + 1e-4)
