"""What pretraining shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import human_bytes, human_seconds, print_json, print_line
from ..store.wording import counted

if TYPE_CHECKING:
    from ..decode.pretraining.train import PretrainResult


def print_pretraining(result: PretrainResult, *, as_json: bool) -> None:
    """`pretrain`, once it is finished."""
    if as_json:
        print_json(result.to_json())
        return
    print_line(
        f"{counted(result.num_videos, 'video')}, {counted(result.epochs, 'epoch')}, loss "
        f"{result.loss:.4f} after {human_seconds(result.seconds)}, "
        f"{human_bytes(result.bytes_read)} read"
    )
    print_line(f"begin with it: vis4mer train-decoder --init {result.run}")
