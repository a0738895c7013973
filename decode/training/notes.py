"""What a reader of a run's figures must know, in one line each; they stand in `results.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...store.cache import Cache
from ...store.errors import EntryNotFoundError, Vis4merError
from ...store.spec import Sampling
from ...store.tasks import Split, TaskTable, in_several_splits
from ...store.windows import Window
from ...store.wording import counted, some_of
from ..config import TrainConfig
from ..data.plan import SplitSamples, WindowPlan
from .departures import departure_note
from .protocols import extraction_note


def run_notes(
    cache: Cache,
    table: TaskTable,
    splits: Mapping[Split, SplitSamples],
    config: TrainConfig,
    plan: WindowPlan,
) -> tuple[str, ...]:
    """The notes of a run to come; Vis4merError when there is nothing to learn from."""
    _require_training(table, splits["train"])
    protocol = config.protocol
    about_protocol = (
        extraction_note(protocol, cache.spec),
        departure_note(config.to_json()),
    )
    return (
        *_data_notes(table, splits, cache.spec.sampling),
        *_overlong(cache, table),
        *_long_windows(splits, plan),
        *_split_notes(splits, config),
        *(note for note in about_protocol if note is not None),
    )


def _require_training(table: TaskTable, train: SplitSamples) -> None:
    if not train.samples:
        raise Vis4merError(
            f"{table.reference}: no video to train on, the cache covers "
            f"{train.coverage.describe('train')}; "
            + ("use a smaller decoder.depth" if train.coverage.short else "extract them first")
        )


def _data_notes(
    table: TaskTable, splits: Mapping[Split, SplitSamples], sampling: Sampling
) -> Iterator[str]:
    for split, chosen in splits.items():
        if not chosen.coverage.complete:
            yield f"the cache covers {chosen.coverage.describe(split)}"
    seen = {int(sample.label) for sample in splits["train"].samples}
    unseen = [name for i, name in enumerate(table.classes) if i not in seen]
    if unseen:
        yield f"never seen in training: class {', '.join(unseen)}"
    if twice := sorted(in_several_splits(table.rows, sampling=sampling)):
        yield f"in more than one split: {some_of(twice)}"


def _overlong(cache: Cache, table: TaskTable) -> Iterator[str]:
    """Extents that end more than a frame behind their video."""
    if cache.spec.sampling.kind == "segments":
        return
    frame_seconds = 1 / cache.spec.sampling.fps
    found: dict[str, None] = {}
    for row in table.rows:
        if row.end_seconds is None:
            continue
        try:
            duration = cache.record(row.id).duration_seconds
        except EntryNotFoundError:
            continue
        if row.end_seconds > duration + frame_seconds:
            found[row.id] = None
    if found:
        yield f"the labels speak of more than the video holds: {some_of(list(found))}"


def _long_windows(splits: Mapping[Split, SplitSamples], plan: WindowPlan) -> Iterator[str]:
    """A view spreads its frames over the whole window, of which short videos fill only a part."""
    longest = max(s.extent.num_frames for chosen in splits.values() for s in chosen.samples)
    if longest >= plan.length or plan.shape.frames == plan.length:
        return
    taken = len(plan.frames(Window(start=0, stop=longest)))
    better = max(longest, plan.shape.frames)
    then = min(longest, plan.shape.frames)
    yield (
        f"no video is longer than {longest / plan.fps:g} s, and a window is "
        f"{plan.length / plan.fps:g} s: {plan.view} takes at most {counted(taken, 'frame')} of a "
        f"video; with --window {better / plan.fps:g} it would take {then}"
    )


def _split_notes(splits: Mapping[Split, SplitSamples], config: TrainConfig) -> Iterator[str]:
    if config.hold_out:
        yield (
            f"the validation split is {len(splits['val'].samples)} videos held out of training "
            f"({config.hold_out:g} of its groups)"
        )
    if not splits["val"].samples and config.select == "best-val":
        yield "there is no validation split, so the last epoch is selected"
    if not splits["test"].samples:
        yield "there is no test split to judge"
    if config.lanes and config.compile:
        yield "compile changes nothing with lanes, whose steps are never compiled"
    elif config.compile:
        yield "the decoder is compiled: the first steps take up to minutes, and rounding differs"
    if config.lanes and config.shuffle_frames:
        yield (
            "shuffle_frames with lanes: the windows themselves still come in order, so this is no "
            "control of what the memory carries from one to the next; that is a run without lanes"
        )
