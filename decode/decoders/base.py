"""What every decoder is: a batch of windows in, one row of outputs a window.

Letters: B windows, T frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..mixers.base import Growth
from ..runs.checkpoints import load_model
from ..typed import build
from .about import OptionAbout, options_about


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """The options of a decoder: flat, of plain values, validated when they are built."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "decoder") -> Self:
        """Options from names and values, text included. Raises UsageError, naming the choices."""
        return build(cls, data, path=path)

    @classmethod
    def about(cls) -> tuple[OptionAbout, ...]:
        """Every option with its type and default."""
        return options_about(cls)

    def to_json(self) -> dict[str, Any]:
        """Flat names and values; `from_json` gives an equal record back."""
        return asdict(self)


class Decoder(nn.Module, ABC):
    """Windows of tokens to outputs; built by `build_decoder`.

    name: as in the catalogue, for errors.   shape: the windows it is for.
    """

    Options: ClassVar[type[DecoderOptions]]
    name: ClassVar[str]
    fresh: ClassVar[tuple[str, ...]] = ("head.",)
    """How the names of those weights begin that no pretrained encoder brings."""

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: Any) -> None:
        super().__init__()
        self.shape = shape
        self.num_outputs = num_outputs
        self.options = options

    @abstractmethod
    def forward(self, batch: TokenBatch) -> Tensor:
        """Outputs (B, num_outputs): class logits, or values on the training scale."""

    @property
    def min_frames(self) -> int:
        """The fewest real frames of a window that this decoder can say anything of."""
        return 1

    @property
    def memory_growth(self) -> Growth:
        """How the memory of a forward pass grows."""
        return "linear"

    def require_trainable(self) -> None:
        """UsageError for a decoder whose weights can only be imported."""

    @property
    def draws_by_row(self) -> bool:
        """Whether whatever is random in a training step comes from `drawn_by_row`."""
        return True

    def require_shareable(self) -> None:
        """UsageError for a decoder that would learn something else from a batch in parts."""
        if not self.draws_by_row:
            raise UsageError(
                f"decoder {self.name!r} cannot learn in several processes: its dropout is drawn "
                "inside of torch's own layers, not by row; use one process, or --set "
                "decoder.dropout=0"
            )

    def after_step(self) -> None:
        """Called once after each training step's update, for what follows the weights slowly."""

    @property
    def carries_memory(self) -> bool:
        """Whether `start_memory` and `forward_from` work, and `next_window` in a stream.

        Such a decoder takes windows of any length from one frame on, as videos end anywhere.
        """
        return False

    @property
    def windows_to_fill(self) -> int:
        """After how many full windows what is remembered is as much as it gets; 0 of no memory."""
        return 0

    def start_memory(self) -> Any:
        """What is remembered before any window, for any number of rows; `.rows(kept)`, int64 (B',),
        of what `forward_from` gives picks rows of it. UsageError where no memory is carried."""
        raise self._no_memory()

    def forward_from(
        self,
        batch: TokenBatch,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        starts: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Any]:
        """Outputs (B, num_outputs) of windows that go on where `state` was left, and the state
        after them, without gradient.

        starts: bool (B,), True in the rows where another video begins, of which nothing is
        remembered. UsageError where no memory is carried.
        """
        raise self._no_memory()

    def _no_memory(self) -> UsageError:
        return UsageError(
            f"decoder {self.name!r} remembers nothing from window to window, and lanes are for one "
            "that does; use --decoder memory, or leave lanes out"
        )

    def initialise(self, encoder: Mapping[str, Tensor], *, name: str) -> None:
        """Take over the weights of an encoder of the same shape, all but those that are `fresh`.

        Raises UsageError where there is nothing to take over, CacheFormatError, naming `name` and
        the weight, where shapes or names differ.
        """
        kept = {key: value for key, value in self.state_dict().items() if self._is_fresh(key)}
        taken = {key: value for key, value in encoder.items() if not self._is_fresh(key)}
        if len(kept) == len(self.state_dict()):
            raise UsageError(
                f"decoder {self.name!r} has nothing that a pretrained encoder could begin: all of "
                "its weights are its head; choose another --decoder"
            )
        load_model(self, {**kept, **taken}, name=name)

    def _is_fresh(self, key: str) -> bool:
        return key.startswith(self.fresh)

    @property
    def streamable(self) -> bool:
        """Whether `start_stream` and `stream_step` work: only for causal decoders."""
        return False

    def start_stream(self, batch_size: int, device: torch.device | str) -> Any:  # noqa: ARG002
        """The state before a window's first frame. Raises UsageError if not streamable."""
        raise self._not_causal()

    def stream_step(self, frames: TokenBatch, state: Any) -> tuple[Tensor, Any]:  # noqa: ARG002
        """Outputs of the window so far (B, num_outputs) and the state after these T ≥ 1 frames.

        All frames must be real. Evaluation only: no gradients, no dropout. After a window's last
        frame the outputs are those of `forward` on that window. Raises UsageError if not
        streamable.
        """
        raise self._not_causal()

    def next_window(self, state: Any) -> Any:  # noqa: ARG002
        """After a window's last frame: the state before the first frame of the window that follows
        it in the same video, what is remembered carried on. UsageError where it is not."""
        raise self._no_memory()

    def _not_causal(self) -> UsageError:
        return UsageError(
            f"decoder {self.name!r} cannot be streamed: it is not causal, later frames change what "
            "it makes of earlier ones; decode whole windows instead"
        )


def check_stream_frames(frames: TokenBatch) -> None:
    """Raise ValueError unless every frame is real."""
    if frames.padded:
        raise ValueError("a stream step takes real frames only, but its mask marks padding")
