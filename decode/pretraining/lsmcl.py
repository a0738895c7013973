"""LSMCL: a query encoder that learns to tell videos apart from masked long and short clips.

Long-short mask contrastive learning (Wang et al., CVPR 2023, arXiv 2303.14526). A long and a short
clip of one video have the same number of frames at strides τ_L > τ_S; of each, a random half of the
tokens is masked, anew for either encoder. With f_q the query encoder and f_k its moving average,

    q_L, q_S = f_q(mask(x_L)), f_q(mask(x_S))       unit length
    k_L, k_S = f_k(mask(x_L)), f_k(mask(x_S))       unit length, no gradient
    loss = ½ InfoNCE(q_L, k_S) + ½ InfoNCE(q_S, k_L)
    f_k ← m f_k + (1 - m) f_q

Both encoders are decoders of the catalogue whose head projects to the embedding. Keys are made
without dropout, which is a choice. A learner knows nothing of caches and files.

Letters: B videos, d width of an embedding.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...store import fields as f
from ..data.batch import TokenBatch, TokenShape
from ..decoders import Decoder, build_decoder
from ..device import Compute
from ..rows import drawing_for
from ..runs.checkpoints import Checkpoint, load_model
from ..training.learner import DivergedError, step_seed
from ..training.optim import (
    LearningRate,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from ..training.ranks import Ranks
from .clip_pairs import PairBatch
from .config import PretrainConfig
from .contrast import KeyQueue, info_nce, mask_tokens


class Lsmcl:
    """An encoder in pretraining. `epoch` and `steps` count what is finished.

    ranks: the processes that learn together, each from its part of every batch; all queries meet
    the keys of all of them.
    """

    def __init__(
        self,
        config: PretrainConfig,
        *,
        shape: TokenShape,
        steps_per_epoch: int,
        compute: Compute,
        ranks: Ranks | None = None,
    ) -> None:
        torch.manual_seed(step_seed(config.seed, -1))  # the initial weights
        self.query: Decoder = build_decoder(
            config.decoder.name,
            shape=shape,
            num_outputs=config.width,
            options=config.decoder.options,
        ).to(compute.device)
        self.key = copy.deepcopy(self.query).requires_grad_(False).eval()
        self.queue = KeyQueue(config.queue, config.width, device=compute.device)
        self.optimizer = build_optimizer(self.query, config.optimizer)
        self.rate = LearningRate(
            config.optimizer, steps_per_epoch, total_steps=config.epochs * steps_per_epoch
        )
        self.epoch = 0
        self.steps = 0
        self._config = config
        self._compute = compute
        self._ranks = ranks
        self._losses: list[Tensor] = []  # of this epoch, on the device

    @property
    def lr(self) -> float:
        """The learning rate of the step to come, outside the dynamics."""
        return self._config.optimizer.lr * self.rate.scale(self.steps)

    def step(self, batch: PairBatch) -> None:
        """One update of both encoders and the queue."""
        self.query.train()
        torch.manual_seed(step_seed(self._config.seed, self.steps))
        set_learning_rate(self.optimizer, self.rate.scale(self.steps))
        self.optimizer.zero_grad(set_to_none=True)
        with drawing_for(batch.part):
            loss, keys = self._contrast(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        if self._ranks is not None:
            loss = self._ranks.sum_gradients(self.query.parameters(), loss)
        if self._config.optimizer.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.query.parameters(), self._config.optimizer.grad_clip)
        self.optimizer.step()
        self.query.after_step()
        self._follow()
        self.queue.push(keys, batch.videos.repeat(2))
        self._losses.append(loss.detach())
        self.steps += 1

    def _contrast(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The loss, and the keys of long and short clips (2B, d)."""
        with torch.no_grad():
            k_long, k_short = (self._embed(self.key, x) for x in (batch.long, batch.short))  # B d
        if self._ranks is not None and batch.part is not None:
            k_long, k_short = (self._ranks.whole_batch(k, batch.part) for k in (k_long, k_short))
        q_long, q_short = (self._embed(self.query, x) for x in (batch.long, batch.short))  # B d
        roles = [
            info_nce(
                q,
                k,
                videos=batch.videos,
                queue=self.queue,
                temperature=self._config.temperature,
                first=0 if batch.part is None else batch.part.first,
            )
            for q, k in ((q_long, k_short), (q_short, k_long))
        ]
        loss = (roles[0] + roles[1]) / 2
        if batch.part is not None:
            loss = loss * batch.part.weight
        return loss, torch.cat([k_long, k_short])

    def _embed(self, encoder: Decoder, clips: TokenBatch) -> Tensor:
        """Unit vectors of newly masked clips: float32 (B, d)."""
        masked = mask_tokens(clips, self._config.mask_ratio)
        with self._compute.autocast():
            outputs: Tensor = encoder(masked)  # B d
        return normalize(outputs.float(), dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        """f_k ← m f_k + (1 - m) f_q; what is no parameter is copied."""
        weights = 1 - self._config.momentum
        for held, now in zip(self.key.parameters(), self.query.parameters(), strict=True):
            held.lerp_(now, weights)
        buffers = zip(self.key.buffers(), self.query.buffers(), strict=True)
        for copy_of, buffer in buffers:
            copy_of.copy_(buffer)

    def end_epoch(self) -> float:
        """Count the epoch; its mean loss. DivergedError unless all is finite."""
        losses: list[float] = torch.stack(self._losses).double().tolist()
        first = self.steps - len(losses)
        finite = all(bool(torch.isfinite(p).all()) for p in self.query.parameters())
        for step, loss in enumerate(losses, start=first + 1):
            if not math.isfinite(loss) or (step == self.steps and not finite):
                raise DivergedError(
                    f"pretraining diverged by step {step} (epoch {self.epoch + 1}): its loss is "
                    f"{loss}; lower --set optimizer.lr or bound gradients with "
                    "--set optimizer.grad_clip=1"
                )
        self._losses = []
        self.epoch += 1
        mean = sum(losses) / len(losses)
        self.rate.observe(mean)
        return mean

    # State ---------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on; `model.` is the query encoder."""
        parts = {
            "model.": self.query.state_dict(),
            "key.": self.key.state_dict(),
            "optimizer.": optimizer_tensors(self.query, self.optimizer),
            "queue.": self.queue.tensors(),
        }
        about = {
            "epoch": self.epoch,
            "steps": self.steps,
            "rate": self.rate.state(),
            "queue_next": self.queue.next,
        }
        tensors = {
            prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
        }
        return Checkpoint(tensors=tensors, about=about)

    def restore(self, checkpoint: Checkpoint, *, name: str) -> None:
        """Go on where `checkpoint` was taken; Vis4merError when it belongs to another encoder."""
        load_model(self.query, checkpoint.part("model."), name=name)
        load_model(self.key, checkpoint.part("key."), name=name)
        load_optimizer_tensors(self.query, self.optimizer, checkpoint.part("optimizer."), name=name)
        self.queue.load(checkpoint, name=name)
        self.epoch = f.integer(checkpoint.about, "epoch", name=name)
        self.steps = f.integer(checkpoint.about, "steps", name=name)
        self.rate.load_state(f.mapping(checkpoint.about, "rate", name=name), name=name)
