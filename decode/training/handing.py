"""What the first of several processes has and hands to the others: checkpoints and results.

The others never open the run directory, which may lie on the first one's disk alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load, save

from ..runs.checkpoints import Checkpoint
from ..runs.results import TrainResult
from ..runs.runlog import EpochMetrics
from .ranks import Ranks


def handed_out(checkpoint: Checkpoint, ranks: Ranks) -> Checkpoint:
    """The first process's, in every process."""
    about = ranks.text_of_first(lambda: json.dumps(checkpoint.about))
    tensors = ranks.bytes_of_first(
        lambda: save(
            {
                name: tensor.detach().to("cpu").contiguous().clone()  # shared storage is refused
                for name, tensor in checkpoint.tensors.items()
            }
        )
    )
    return Checkpoint(tensors=load(tensors), about=json.loads(about))


def handed_epochs(epochs: Sequence[EpochMetrics], ranks: Ranks) -> list[EpochMetrics]:
    """The first process's, in every process."""
    said = ranks.text_of_first(lambda: json.dumps([epoch.to_json() for epoch in epochs]))
    return [EpochMetrics.from_json(one, name="process 0") for one in json.loads(said)]


def handed_result(
    find: Callable[[], TrainResult | None], ranks: Ranks | None, *, run: Path
) -> TrainResult | None:
    """What `find` gives; of several processes, in the first, which alone calls it."""
    if ranks is None:
        return find()

    def text() -> str:
        found = find()
        return "" if found is None else json.dumps(found.to_json())

    said = ranks.text_of_first(text)
    return TrainResult.from_json(json.loads(said), run=run, name=str(run)) if said else None
