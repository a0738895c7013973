"""AdamW with explicit parameter groups, and the learning rate as a function of the step.

The state-space dynamics (dt, A, B, P …: what a module returns from `dynamics()`) learn at no more
than `dynamics_lr` and without weight decay, since decay pulls a continuous system towards another
time scale. Everything else, biases and norms included, takes `lr` and `weight_decay`, as the
released ViS4mer has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...store import fields as f
from ...store.errors import CacheFormatError
from ..config import OptimizerConfig


@runtime_checkable
class HasDynamics(Protocol):
    """A module that knows which of its own parameters describe a dynamical system."""

    def dynamics(self) -> Iterable[nn.Parameter]: ...


def dynamics_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that any module in `model` calls its dynamics."""
    return {
        parameter
        for module in model.modules()
        if isinstance(module, HasDynamics)
        for parameter in module.dynamics()
    }


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups; each group's `base_lr` is what the schedule scales."""
    dynamics = dynamics_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slow_lr = min(config.lr, config.dynamics_lr)
    groups: list[dict[str, Any]] = [
        _group([p for p in trained if p not in dynamics], config.lr, config.weight_decay),
        _group([p for p in trained if p in dynamics], slow_lr, 0.0),
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def _group(params: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": params, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


def set_learning_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Give every group `scale` times its base learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale


@dataclass
class LearningRate:
    """The factor on the base learning rates: warm-up times schedule.

    `scale(step)` is what step number `step` (from 0) uses. `observe(loss)` is told each epoch's
    validation loss and moves a plateau. steps_per_epoch: in the mean over the training. The three
    last fields are its whole state.
    """

    config: OptimizerConfig
    steps_per_epoch: float
    total_steps: int
    factor: float = 1.0
    best_loss: float = math.inf
    bad_epochs: int = 0

    def scale(self, step: int) -> float:
        warmup = round(self.config.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.config.schedule == "cosine":
            # ½ (1 + cos πx), x from 0 at the first step after warm-up to 1 after the last step
            progress = (step - warmup) / max(1, self.total_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.factor

    def observe(self, loss: float) -> None:
        """Count an epoch; after `plateau_patience` of them without a better loss, slow down."""
        if self.config.schedule != "plateau":
            return
        if loss < self.best_loss:
            self.best_loss, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.config.plateau_patience:
            self.factor *= self.config.plateau_factor
            self.bad_epochs = 0

    def state(self) -> dict[str, float | None]:
        best_loss = self.best_loss if math.isfinite(self.best_loss) else None
        return {"factor": self.factor, "best_loss": best_loss, "bad_epochs": self.bad_epochs}

    def load_state(self, state: Mapping[str, Any], *, name: str) -> None:
        self.factor = f.number(state, "factor", name=name)
        best_loss = f.optional_number(state, "best_loss", name=name)
        self.best_loss = math.inf if best_loss is None else best_loss
        self.bad_epochs = f.integer(state, "bad_epochs", name=name)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<parameter>/exp_avg` and so on."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    *,
    name: str,
) -> None:
    """Put back what `optimizer_tensors` gave; AdamW keeps its step count on the CPU.

    CacheFormatError, naming the file `name`, for a state that no parameter has.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        owner, _, key = full_name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or value.shape not in (parameter.shape, torch.Size([])):
            raise CacheFormatError(f"{name}: optimizer state {full_name!r} fits no parameter")
        device = "cpu" if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.to(device)
