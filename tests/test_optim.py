"""Parameter groups and learning rates, against torch's own schedulers."""

import numpy as np
import pytest
import torch
from torch import nn
from vis4mer.decode.config import OptimizerConfig
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.training.optim import (
    LearningRate,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


class Oscillator(nn.Module):
    """A linear layer beside a parameter that is dynamics."""

    def __init__(self):
        super().__init__()
        self.log_dt = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(3, 2)

    def dynamics(self):
        return [self.log_dt]


@pytest.mark.parametrize(("lr", "dynamics_lr", "expected"), [(0.1, 1e-3, 1e-3), (1e-4, 1e-3, 1e-4)])
def test_dynamics_learn_at_the_lower_rate_and_never_decay(lr, dynamics_lr, expected):
    model = nn.Sequential(nn.Linear(3, 3), Oscillator())
    config = OptimizerConfig(lr=lr, dynamics_lr=dynamics_lr, weight_decay=0.2)
    rest, dynamics = build_optimizer(model, config).param_groups
    assert dynamics["params"] == [model[1].log_dt]
    assert (dynamics["lr"], dynamics["weight_decay"]) == (expected, 0.0)
    assert (rest["lr"], rest["weight_decay"]) == (lr, 0.2)
    assert len(rest["params"]) == 4  # both weights and both biases


def test_every_parameter_of_a_decoder_is_in_exactly_one_group():
    shape = TokenShape(frames=4, grid=(2, 2), num_prefix=0, dim=16)
    options = {"depth": 1, "state_size": 4}
    model = build_decoder("vis4mer", shape=shape, num_outputs=2, options=options)
    groups = build_optimizer(model, OptimizerConfig()).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    slow = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert any("log_dt" in name for name in slow)
    assert not any("linear" in name or "head" in name or "norm" in name for name in slow)


def test_cosine_is_torchs_cosine_annealing():
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20)
    rate = LearningRate(OptimizerConfig(lr=0.3, schedule="cosine"), 5, 20)
    for step in range(20):
        assert 0.3 * rate.scale(step) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12)
        sgd.step()
        oracle.step()


def test_warm_up_rises_linearly_to_the_schedule():
    rate = LearningRate(OptimizerConfig(schedule="cosine", warmup_epochs=1), 4, 12)
    scales = [rate.scale(step) for step in range(12)]
    np.testing.assert_allclose(scales[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert scales[8] == pytest.approx(0.5)  # half way between the end of warm-up and the end


def test_plateau_is_torchs_reduce_on_plateau_and_survives_a_restart():
    losses = np.random.default_rng(0).integers(0, 20, 60) / 10
    config = OptimizerConfig(lr=0.5, schedule="plateau", plateau_patience=3, plateau_factor=0.4)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd, factor=0.4, patience=3, threshold=0.0, eps=0.0
    )
    rate = LearningRate(config, 1, 60)
    for step, loss in enumerate(losses):
        restarted = LearningRate(config, 1, 60)
        restarted.load_state(rate.state(), name="state")
        rate = restarted
        assert 0.5 * rate.scale(step) == pytest.approx(sgd.param_groups[0]["lr"])
        rate.observe(float(loss))
        oracle.step(float(loss))
    assert rate.factor < 0.4  # it did slow down, more than once


def test_constant_stays():
    rate = LearningRate(OptimizerConfig(schedule="constant"), 1, 10)
    rate.observe(9.0)
    assert {rate.scale(step) for step in range(10)} == {1.0}


def test_a_restored_optimizer_takes_the_very_same_steps():
    torch.manual_seed(0)
    first, second = Oscillator(), Oscillator()
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 3)

    def step(model, optimizer, scale):
        set_learning_rate(optimizer, scale)
        optimizer.zero_grad()
        (model.linear(x * model.log_dt).square().sum()).backward()
        optimizer.step()

    one = build_optimizer(first, OptimizerConfig())
    for _ in range(3):
        step(first, one, 0.7)
    second.load_state_dict(first.state_dict())
    other = build_optimizer(second, OptimizerConfig())
    state = {name: value.clone() for name, value in optimizer_tensors(first, one).items()}
    assert "log_dt/exp_avg" in state
    load_optimizer_tensors(second, other, state, name="state")
    step(first, one, 0.3)
    step(second, other, 0.3)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
