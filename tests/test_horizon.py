"""Horizons in seconds, against a kernel whose memory is known in closed form."""

import math

import pytest
import torch
from caches import make_spec
from vis4mer.decode.data.plan import WindowPlan
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.judging.horizon import kernel_horizon_seconds


@pytest.mark.parametrize(("fps", "seconds", "grid"), [(1.0, 60.0, (1, 1)), (2.0, 40.0, (2, 2))])
@pytest.mark.parametrize("decay", [0.05, 0.5, 5.0])
def test_an_exponential_kernel_reaches_as_far_as_it_must(fps, seconds, grid, decay):
    """k[l] = a^l, l < L, holds (1 - a^(2n)) / (1 - a^(2L)) of its energy in its first n tokens."""
    plan = WindowPlan.of(make_spec(grid=grid, fps=fps), tokens=None, window_seconds=seconds)
    options = {"mixer": "s4d-lin", "depth": 1, "state_size": 2}
    model = build_decoder("vis4mer", shape=plan.shape, num_outputs=2, options=options)
    ssm = model.blocks[0].mixer.ssm
    dt = 0.1
    with torch.no_grad():  # one real pole: a = exp(-dt * decay)
        ssm.log_dt.fill_(math.log(dt))
        ssm.A_log_decay.fill_(math.log(decay))
        ssm.A_frequency.zero_()
        ssm.C.fill_(1.0)
    log_a, length = -dt * decay, plan.shape.num_tokens
    whole = -math.expm1(2 * length * log_a)
    expected = math.ceil(math.log(1 - 0.99 * whole) / (2 * log_a))
    (found,) = kernel_horizon_seconds(model, window_seconds=plan.length / plan.fps)
    tokens_per_second = fps * grid[0] * grid[1]
    assert found == pytest.approx(expected / tokens_per_second, abs=1.01 / tokens_per_second)


def test_a_decoder_without_kernels_has_no_horizon():
    plan = WindowPlan.of(make_spec(), tokens=None, window_seconds=4)
    model = build_decoder("mean", shape=plan.shape, num_outputs=2, options={})
    assert kernel_horizon_seconds(model, window_seconds=plan.length / plan.fps) == ()
