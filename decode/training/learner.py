"""One decoder that learns: model, optimizer, learning rate and best-so-far, a step at a time.

A learner knows nothing of caches, files or other learners, so that a loop may drive one of them or
several over the same reads. Each step seeds dropout from (seed, step) alone: what a learner becomes
is a function of its configuration and its batches, and a restored one goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...store import fields as f
from ...store.errors import Vis4merError
from ...store.tasks import TaskKind
from ..config import TrainConfig
from ..data.batch import TokenShape
from ..data.loader import LabelledBatch
from ..decoders import Decoder, build_decoder
from ..device import Compute
from ..judging.metrics import EvaluationResult
from ..rows import drawing_for
from ..runs.checkpoints import Checkpoint, load_model
from .compiling import compiled_forward
from .optim import (
    LearningRate,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from .ranks import Ranks

CHECK_STEPS = 50  # steps between looks at the losses; each look waits for the device


class DivergedError(Vis4merError, ArithmeticError):
    """The loss or a parameter is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best epoch so far (counted from 1) by validation score, then by validation loss."""

    epoch: int
    score: float
    loss: float
    weights: Mapping[str, Tensor]


class Learner:
    """A decoder in training. `epoch` and `steps` count what is finished.

    ranks: the processes that learn together; each is given its part of every batch, and all become
    what one would with whole batches, up to the rounding of sums.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        shape: TokenShape,
        kind: TaskKind,
        num_outputs: int,
        steps_per_epoch: float,
        compute: Compute,
        ranks: Ranks | None = None,
    ) -> None:
        torch.manual_seed(step_seed(config.seed, -1))  # the initial weights
        self.model: Decoder = build_decoder(
            config.decoder.name,
            shape=shape,
            num_outputs=num_outputs,
            options=config.decoder.options,
        ).to(compute.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        total_steps = round(config.epochs * steps_per_epoch)
        self.rate = LearningRate(config.optimizer, steps_per_epoch, total_steps)
        self.epoch = 0
        self.steps = 0
        self.best: Best | None = None
        self._forward = compiled_forward(self.model) if config.compile else self.model
        self._config = config
        self._kind = kind
        self._compute = compute
        self._ranks = ranks
        self._losses: list[float] = []  # of this epoch, those known to be finite
        self._unchecked: list[Tensor] = []  # those after them, still on the device
        self._sizes: list[int] = []
        self._memory: Any = None  # with lanes: what the rows of the last batch remember

    @property
    def lr(self) -> float:
        """The learning rate of the step to come, outside the dynamics."""
        return self._config.optimizer.lr * self.rate.scale(self.steps)

    def step(self, batch: LabelledBatch) -> None:
        """One update. DivergedError, within CHECK_STEPS steps, once a loss is not finite."""
        self.model.train()
        torch.manual_seed(step_seed(self._config.seed, self.steps))
        set_learning_rate(self.optimizer, self.rate.scale(self.steps))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        if self._config.optimizer.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.optimizer.grad_clip)
        self.optimizer.step()
        self.model.after_step()
        self._unchecked.append(loss)
        self._sizes.append(len(batch.labels) if batch.part is None else batch.part.total)
        self.steps += 1
        if len(self._unchecked) == CHECK_STEPS:
            self._check_losses()

    def end_steps(self) -> float:
        """The mean loss over the windows of this epoch; DivergedError unless all is finite.

        Nothing is remembered beyond it: an epoch begins with the starts of videos.
        """
        self._memory = None
        self._check_losses()
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(self.steps - 1, f"parameter {name} is not finite after it")
        mean = sum(x * n for x, n in zip(self._losses, self._sizes, strict=True)) / sum(self._sizes)
        self._losses, self._sizes = [], []
        return mean

    def end_epoch(self, train_loss: float, validation: EvaluationResult | None) -> None:
        """Count the epoch: move the plateau, remember the weights if they are the best so far."""
        self.epoch += 1
        self.rate.observe(train_loss if validation is None else validation.loss)
        if validation is None:
            return
        key = (validation.score, -validation.loss)
        if self.best is None or key > (self.best.score, -self.best.loss):
            weights = {
                name: t.detach().cpu().clone() for name, t in self.model.state_dict().items()
            }
            self.best = Best(
                epoch=self.epoch, score=validation.score, loss=validation.loss, weights=weights
            )

    # State ---------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on, and the best weights.

        To be taken between epochs, where no lane remembers anything: no memory is part of it.
        """
        best = self.best
        parts = {
            "model.": self.model.state_dict(),
            "optimizer.": optimizer_tensors(self.model, self.optimizer),
            "best.": {} if best is None else best.weights,
        }
        about = {
            "epoch": self.epoch,
            "steps": self.steps,
            "rate": self.rate.state(),
            "best": best and {"epoch": best.epoch, "score": best.score, "loss": best.loss},
        }
        tensors = {
            prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
        }
        return Checkpoint(tensors=tensors, about=about)

    def restore(self, checkpoint: Checkpoint, *, name: str) -> None:
        """Go on where `checkpoint` was taken; Vis4merError when it belongs to another decoder."""
        load_model(self.model, checkpoint.part("model."), name=name)
        load_optimizer_tensors(self.model, self.optimizer, checkpoint.part("optimizer."), name=name)
        self.epoch = f.integer(checkpoint.about, "epoch", name=name)
        self.steps = f.integer(checkpoint.about, "steps", name=name)
        self.rate.load_state(f.mapping(checkpoint.about, "rate", name=name), name=name)
        self.best = best_of(checkpoint, name=name)

    # ---------------------------------------------------------------------------------------------

    def _backward(self, batch: LabelledBatch) -> Tensor:
        """Gradients of the mean loss over a whole batch, whoever has its rows, and that loss ()."""
        with drawing_for(batch.part):
            with self._compute.autocast():
                outputs = self._outputs(batch)  # B n_out
            loss = training_loss(outputs, batch.labels, self._kind)
            if batch.part is not None:
                loss = loss * batch.part.weight
            loss.backward()  # type: ignore[no-untyped-call]
        if self._ranks is not None:
            return self._ranks.sum_gradients(self.model.parameters(), loss)
        return loss.detach()

    def _outputs(self, batch: LabelledBatch) -> Tensor:
        """Of every row of a batch; in lanes, after what the windows before it have left behind.

        No gradient passes from a window to those before it, and what is remembered of them was
        made by the weights of then.
        """
        if not self._config.lanes:
            outputs: Tensor = self._forward(batch.tokens)
            return outputs
        memory, starts = self.model.start_memory(), None
        if batch.carried is not None:
            rows, starts = batch.carried.rows, batch.carried.starts
            memory = self._memory if rows is None else self._memory.rows(rows)
        outputs, self._memory = self.model.forward_from(batch.tokens, memory, starts)
        return outputs

    def _check_losses(self) -> None:
        """Bring the new losses to the host; the only place where a step waits for the device."""
        if not self._unchecked:
            return
        losses: list[float] = torch.stack(self._unchecked).double().tolist()
        first = self.steps - len(losses)
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise self._diverged(step, f"its loss is {loss}")
        self._losses += losses
        self._unchecked = []

    def _diverged(self, step: int, what: str) -> DivergedError:
        lr = self._config.optimizer.lr * self.rate.scale(step)
        return DivergedError(
            f"training diverged at step {step + 1} (epoch {self.epoch + 1}), learning rate "
            f"{lr:.3g}: {what}; lower --set optimizer.lr or bound gradients with "
            "--set optimizer.grad_clip=1"
        )


def step_seed(seed: int, step: int) -> int:
    """The random seed of one step; -1 is the initialisation."""
    digest = hashlib.blake2b(f"{seed}\0{step}".encode(), digest_size=8, person=b"step").digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: manual_seed takes a signed integer


def training_loss(outputs: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Cross-entropy of (B, C) with classes (B,), or squared error of (B, 1) with values (B,)."""
    if kind == "classification":
        return nn.functional.cross_entropy(outputs.float(), labels)
    return nn.functional.mse_loss(outputs[:, 0].float(), labels)


def best_of(checkpoint: Checkpoint, *, name: str) -> Best | None:
    """The best epoch that a checkpoint knows; CacheFormatError, naming its file, when damaged."""
    if checkpoint.about.get("best") is None:
        return None
    about = f.mapping(checkpoint.about, "best", name=name)
    return Best(
        epoch=f.integer(about, "epoch", name=name),
        score=f.number(about, "score", name=name),
        loss=f.number(about, "loss", name=name),
        weights=checkpoint.part("best."),
    )


def weights_only(weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of weights alone, as `best.safetensors` holds them."""
    return Checkpoint(tensors={f"model.{k}": v for k, v in weights.items()}, about=about)
