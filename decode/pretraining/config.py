"""What a pretraining run is asked to do; a frozen record that round-trips through JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...store.errors import FieldDifference
from ...store.fields import differences
from ...store.keys import task_path
from ...store.views import TokenView
from ..config import NOT_LEARNED, DecoderConfig, OptimizerConfig, Precision, override
from ..typed import build, convert, refuse


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One run of long-short mask contrastive learning (LSMCL).

    tokens: the view of a clip, with its number of frames, such as 60x7x7.
    decoder: the query encoder; its head is the projection, `width` numbers wide.
    task: learn from the training videos of this DATASET/TASK alone; None is every video.
    long_stride, short_stride: sampled frames from one frame of a clip to the next, τ_L > τ_S. Their
    values are not confirmed: 2 and 1 make clips of 60 frames fit into videos of two minutes at
    1 fps.
    mask_ratio: η, the share of a clip's tokens that is set to zero.
    temperature: ρ of InfoNCE.
    momentum: m of the key encoder. Not confirmed; 0.99 is an average over about 100 steps.
    queue: keys of earlier steps that are negatives. Not confirmed.
    epochs: passes over the videos, one pair of clips of each. The rest is as in TrainConfig.
    """

    tokens: str
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    task: str | None = None
    long_stride: int = 2
    short_stride: int = 1
    mask_ratio: float = 0.5
    temperature: float = 0.2
    momentum: float = 0.99
    queue: int = 1024
    width: int = 128
    epochs: int = 100
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    workers: int = 4

    def __post_init__(self) -> None:
        view = TokenView.parse(self.tokens)
        if view.frames is None:
            raise refuse("tokens", self.tokens, f"a number of frames before it, as in 60x{view}")
        object.__setattr__(self, "tokens", str(view))
        if self.task is not None:
            task_path(self.task)
        for name in ("short_stride", "width", "epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")
        if self.long_stride <= self.short_stride:
            raise refuse("long_stride", self.long_stride, f"more than {self.short_stride}")
        for name in ("mask_ratio", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 0 and less than 1")
        if not self.temperature > 0:
            raise refuse("temperature", self.temperature, "more than 0")
        if self.queue < 0:
            raise refuse("queue", self.queue, "at least 0")
        if not 0 <= self.seed < 2**63:
            raise refuse("seed", self.seed, "0 or more")
        convert(self.precision, Precision, field="precision")

    @property
    def frames(self) -> int:
        """Of a clip."""
        return TokenView.parse(self.tokens).frames or 1

    def to_json(self) -> dict[str, Any]:
        """Nested JSON; `from_json` gives an equal record back."""
        return {**asdict(self), "decoder": self.decoder.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "") -> PretrainConfig:
        return build(cls, data, path=path)


def load_pretrain_config(
    *, flags: Mapping[str, object] | None = None, sets: Sequence[str] = ()
) -> PretrainConfig:
    """A config from `flags` (dotted name → value, None skipped) and texts such as `a.b=c`."""
    data: dict[str, Any] = {}
    override(data, flags=flags or {}, sets=sets)
    return PretrainConfig.from_json(data)


def pretrain_differences(
    stored: PretrainConfig, wanted: PretrainConfig
) -> tuple[FieldDifference, ...]:
    """Fields in which two runs learn something else, dotted names, sorted."""
    return differences(stored.to_json(), wanted.to_json(), ignoring=NOT_LEARNED)
