"""S4D against its own definition, K[l] = 2 Re Σ C Āˡ B̄, in complex128."""

import numpy as np
import pytest
import torch
from oracles import causal_convolution, relative_error
from vis4mer.decode.ssm.hippo import legs_nplr
from vis4mer.decode.ssm.kernel import block_convolution, block_operators, block_step, kernel
from vis4mer.decode.ssm.s4d import DiagonalSsm, expm1, initial_eigenvalues

each_start = pytest.mark.parametrize("start", ["lin", "inv", "legs"])
each_rule = pytest.mark.parametrize("rule", ["zoh", "bilinear"])


def layer(start, rule):
    torch.manual_seed(0)
    return DiagonalSsm(5, start=start, discretization=rule)


def definition(ssm, length):
    """The kernel with numpy, powers by `**`."""
    values = {k: v.detach().double().numpy() for k, v in ssm.named_parameters()}
    Lambda = -np.exp(values["A_log_decay"]) + 1j * values["A_frequency"]
    dt = np.exp(values["log_dt"])[:, None]
    B, C = (torch.view_as_complex(x.detach().double()).numpy() for x in (ssm.B, ssm.C))
    if ssm.discretization == "zoh":
        A_bar, B_bar = np.exp(dt * Lambda), (np.exp(dt * Lambda) - 1) / Lambda * B
    else:
        A_bar, B_bar = (1 + dt * Lambda / 2) / (1 - dt * Lambda / 2), dt * B / (1 - dt * Lambda / 2)
    powers = A_bar[..., None] ** np.arange(length)  # H n L
    return torch.from_numpy(2 * ((C * B_bar)[..., None] * powers).sum(axis=1).real)


@each_start
@each_rule
@pytest.mark.parametrize("length", [1, 2, 97, 2955])
def test_kernel_is_the_definition(start, rule, length):
    ssm = layer(start, rule)
    torch.nn.init.zeros_(ssm.D)
    with torch.no_grad():
        found = kernel(ssm.system(*ssm.vectors()), length)
    overall, worst = relative_error(found, definition(ssm, length))
    # The bilinear rule maps high frequencies close to -1, where Ā - I has no digits to spare.
    assert overall < (1e-5 if rule == "zoh" else 1e-4)
    assert worst < 1e-4


@each_rule
def test_convolution_and_stream_agree_with_the_sum_over_taps(rule):
    ssm = layer("lin", rule)
    system, u = ssm.system(*ssm.vectors()), torch.randn(5, 2, 700)
    K = definition(ssm, 700)
    K[:, 0] += ssm.D
    expected = torch.from_numpy(causal_convolution(K.detach().numpy(), u.double().numpy()))
    x, outputs = torch.zeros(5, 2, 64), []
    with torch.no_grad():
        for part in u.split(197, dim=2):
            y, x = block_step(block_operators(system, part.shape[2]), part, x)
            outputs.append(y)
        whole = block_convolution(system, u)
    assert relative_error(whole, expected)[1] < 2e-5
    assert relative_error(torch.cat(outputs, dim=2), expected)[1] < 2e-5


def test_initial_eigenvalues_are_the_published_ones():
    n = np.arange(32)
    lin, inv = initial_eigenvalues("lin", 64), initial_eigenvalues("inv", 64)
    np.testing.assert_allclose(lin.numpy(), -0.5 + 1j * np.pi * n)
    np.testing.assert_allclose(inv.numpy(), -0.5 + 1j * 64 / np.pi * (64 / (2 * n + 1) - 1))
    torch.testing.assert_close(initial_eigenvalues("legs", 64), legs_nplr(64).Lambda)


def test_expm1_keeps_its_digits_near_zero():
    z = np.array([1e-9 + 1e-9j, -1e-5 + 3e-6j, -0.3 + 2j, 1e-12j])
    expected = np.expm1(z)  # numpy's own complex expm1
    np.testing.assert_allclose(expm1(torch.from_numpy(z)).numpy(), expected, rtol=1e-14)


@each_start
def test_gradients_reach_every_parameter(start):
    ssm = layer(start, "zoh")
    y = block_convolution(ssm.system(*ssm.vectors()), torch.randn(5, 1, 200))
    y.square().sum().backward()
    for name, parameter in ssm.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name
