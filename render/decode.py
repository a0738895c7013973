"""What training, evaluation and the catalogue of decoders show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import (
    Progress,
    human_bytes,
    human_seconds,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
    share,
)
from ..store.errors import UsageError
from ..store.wording import counted

if TYPE_CHECKING:
    from ..decode.decoders.about import DecoderAbout
    from ..decode.decoders.cost import DecoderCost
    from ..decode.judging.metrics import EvaluationResult
    from ..decode.judging.statistics import SeedStatistics
    from ..decode.released.importing import ImportSummary
    from ..decode.runs.results import TrainResult, Weights
    from ..decode.runs.runlog import EpochMetrics
    from ..decode.training.many import OverSeeds
    from ..decode.training.progress import TrainProgress
    from ..decode.training.side_by_side import Outcome
    from ..store.tasks import TaskKind


class TrainingDisplay:
    """A moving line within an epoch, and a line that stays for every epoch done.

    Of a pass of several runs an epoch's line speaks for all of them (each has its own
    `metrics.jsonl`), and what holds for every seed of a task is noted once.
    """

    def __init__(self, show: Progress) -> None:
        self._show = show
        self._noted: set[tuple[str, str]] = set()
        self._finished: list[EpochMetrics] = []  # of a pass, this epoch's so far

    def __call__(self, progress: TrainProgress) -> None:
        where = f"epoch {progress.epoch}/{progress.epochs}"
        if progress.finished is not None and progress.runs > 1:
            self._finished.append(progress.finished)
            return
        self._end_epoch(progress)
        if progress.note is not None:
            self._note(progress, progress.note)
        if progress.finished is not None:
            print_note(f"{where}  {_measured(progress.finished, progress.kind)}")
        elif progress.total:
            words = {"train": "training", "validate": "validating", "evaluate": "judging"}
            runs = f" {progress.runs} runs" if progress.runs > 1 else ""
            done = share(progress.done, progress.total)
            stall = _stall(progress.stall_share, least=0.05)
            self._show(f"{where} {words[progress.phase]}{runs} {done}{stall}")

    def _end_epoch(self, progress: TrainProgress) -> None:
        if self._finished:
            where = f"epoch {self._finished[0].epoch}/{progress.epochs}"
            losses = [epoch.train_loss for epoch in self._finished]
            mean = sum(losses) / len(losses)
            took = human_seconds(sum(epoch.seconds for epoch in self._finished))
            stall = _stall(self._finished[0].stall_share)
            print_note(
                f"{where}  {counted(len(losses), 'run')}, mean loss {mean:.4f}  {took}{stall}"
            )
            self._finished = []

    def _note(self, progress: TrainProgress, note: str) -> None:
        task = ""
        if progress.runs > 1 and progress.run is not None:
            task = progress.run.parent.name
        if (task, note) not in self._noted:
            self._noted.add((task, note))
            print_note(f"note: {task}{': ' * bool(task)}{note}")


def _measured(epoch: EpochMetrics, kind: TaskKind) -> str:
    what = "MSE" if kind == "regression" else "accuracy"
    validation = "" if epoch.val_score is None else f"  val {what} {epoch.val_score:.4f}"
    test = "" if epoch.test_score is None else f"  test {what} {epoch.test_score:.4f}"
    took = human_seconds(epoch.seconds)
    rate = ""
    if epoch.bytes_per_second is not None:
        rate = f"  {human_bytes(round(epoch.bytes_per_second))}/s"
    losses = f"loss {epoch.train_loss:.4f}{validation}{test}"
    return f"{losses}  lr {epoch.lr:.2e}  {took}{rate}{_stall(epoch.stall_share)}"


def _stall(share: float | None, *, least: float = 0.0) -> str:
    """How much of the time went into waiting for reads, where it is known and at least `least`."""
    return "" if share is None or share < least else f"  {100 * share:.0f} % waiting"


def print_training(result: TrainResult, *, as_json: bool) -> None:
    """`train-decoder` of one run, once it is finished."""
    if as_json:
        print_json(result.to_json())
        return
    for judged in (result.val, result.test):
        if judged is not None:
            print_line(judged.describe())
            if (unseen := judged.describe_unseen()) is not None:
                print_line(f"  {unseen}")
    _print_other_weights(result)
    if result.horizon_seconds:
        horizons = ", ".join(f"{seconds:.3g}" for seconds in result.horizon_seconds)
        print_line(f"the kernels reach back (99 % of the energy, median, by layer): {horizons} s")
    print_line(
        f"{result.num_parameters:,} parameters, {_word(result.selected)} weights of epoch "
        f"{result.epoch}, {human_seconds(result.seconds)}, {human_bytes(result.bytes_read)} read; "
        f"everything is in {result.run}"
    )


def _print_other_weights(result: TrainResult) -> None:
    """What was judged beside the selected weights, each under its own name."""
    for name, judged in result.by_weights.items():
        figures = judged.test or judged.val
        if judged.epoch != result.epoch and figures is not None:
            print_line(f"{_word(name)} weights (epoch {judged.epoch}): {figures.describe()}")
    if result.best_test_epoch is not None and result.test is not None:
        regression = result.test.kind == "regression"
        print_line(result.best_test_epoch.describe(regression=regression))


def print_pass(
    outcomes: Sequence[Outcome], rows: Sequence[OverSeeds], *, folder: Path, as_json: bool
) -> None:
    """`train-decoder` of several runs: mean and spread over seeds, and what failed."""
    if as_json:
        print_json(
            {
                "runs": [outcome.to_json() for outcome in outcomes],
                "tasks": [row.to_json() for row in rows],
            }
        )
    elif rows:
        columns = (
            *("task", "split", "weights", "accuracy or MSE", "floor", "videos", "unseen"),
            *("seeds", "each"),
        )
        print_table(columns, [_over_seeds_cells(row) for row in rows])
        _print_best_test_epochs(outcomes)
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        print_line(
            f"{counted(len(results), 'run')}, {human_seconds(sum(r.seconds for r in results))}, "
            f"{human_bytes(sum(r.bytes_read for r in results))} read; everything is in {folder}"
        )
    for outcome in outcomes:
        if outcome.error is not None:
            print_error(f"{outcome.task}, seed {outcome.seed}: {outcome.error}")


def _over_seeds_cells(row: OverSeeds) -> tuple[str, ...]:
    each = [_figure(row, value) for value in row.figure.values]
    if row.correct is not None:
        each = [f"{k}/{n}" for k, n in zip(row.correct, row.totals, strict=True)]
    mse = "MSE " if row.kind == "regression" else ""
    total = row.totals[0]
    unseen = f"{row.num_unseen}/{total}"
    if row.unseen is not None and row.num_unseen < total:
        unseen += f": {_mean(row, row.unseen)}"
    return (
        row.task,
        row.split,
        _word(row.weights),
        f"{mse}{_mean(row, row.figure)}",
        _figure(row, row.floor) + _unit(row),
        f"{total}/{row.listed}",
        unseen,
        str(len(row.seeds)),
        ", ".join(each),
    )


def _word(weights: Weights) -> str:
    """As `--set select` calls them."""
    return "best-val" if weights == "best" else "last"


def _mean(row: OverSeeds, figure: SeedStatistics) -> str:
    """Such as `75.0 ± 12.5 %`, or `0.263`."""
    spread = "" if figure.std is None else f" ± {_figure(row, figure.std)}"
    return f"{_figure(row, figure.mean)}{spread}{_unit(row)}"


def _figure(row: OverSeeds, value: float) -> str:
    return f"{value:.3f}" if row.kind == "regression" else f"{100 * value:.1f}"


def _unit(row: OverSeeds) -> str:
    return "" if row.kind == "regression" else " %"


def _print_best_test_epochs(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        result = outcome.result
        if result is None or result.best_test_epoch is None or result.test is None:
            continue
        said = result.best_test_epoch.describe(regression=result.test.kind == "regression")
        print_line(f"{outcome.task}, seed {outcome.seed}: {said}")


def print_import(summary: ImportSummary, *, as_json: bool) -> None:
    """`import-weights`."""
    if as_json:
        print_json(summary.to_json())
        return
    for note in summary.notes:
        print_note(f"note: {note}")
    print_line(
        f"{summary.file} (sha256 {summary.sha256[:12]}…): {summary.depth} layers, "
        f"{summary.num_parameters:,} parameters, {summary.num_tokens} tokens a window "
        f"({summary.tokens}) of width {summary.width}, {counted(summary.num_outputs, 'output')} "
        f"for {summary.task}; the run is {summary.run}"
    )


def print_evaluation(result: EvaluationResult, *, as_json: bool) -> None:
    """`evaluate`."""
    if as_json:
        print_json(result.to_json())
        return
    print_line(result.describe())
    if (unseen := result.describe_unseen()) is not None:
        print_line(unseen)
    if result.classes:
        rows = [
            (name, f"{int(row[i])}/{int(row.sum())}", *map(int, row))
            for i, (name, row) in enumerate(zip(result.classes, result.confusion, strict=True))
        ]
        print_table(("class", "right", *result.classes), rows, title="taken for:")
    print_line(
        f"{counted(result.num_windows, 'window')} every {result.stride_seconds:g} s, "
        f"{human_bytes(result.bytes_read)} read in {human_seconds(result.seconds)}"
    )


def print_decoders(
    described: Sequence[DecoderAbout],
    costs: Mapping[str, DecoderCost | UsageError],
    *,
    setting: str,
    sums: tuple[str, str],
    as_json: bool,
) -> None:
    """`decoders`. setting: of the costs. sums: what multiply-adds count, and what they leave
    out."""
    if as_json:
        decoders = [{**each.to_json(), "cost": _cost_json(costs[each.name])} for each in described]
        cost_of = {"setting": setting, "counted": sums[0], "not_counted": sums[1]}
        print_json({"cost_of": cost_of, "decoders": decoders})
        return
    print_table(
        ("decoder", "tokens", "parameters", "multiply-adds", "memory", "source"),
        [_cost_cells(about, costs[about.name]) for about in described],
        title=f"Forward pass of {setting}:",
    )
    print_line(f"Counted are the {sums[0]}; not {sums[1]}.")
    print_line("Memory is how that of a forward pass grows with the tokens of a window.")
    for name, cost in costs.items():
        if isinstance(cost, UsageError):
            print_line(f"{name}: {cost}")
    print_line()
    for each in described:
        print_line(f"{each.name}: {each.summary}")
        for option in each.options:
            print_line(f"  {option.name:<16} {option.describe()}")


def _cost_cells(about: DecoderAbout, cost: DecoderCost | UsageError) -> tuple[object, ...]:
    source = ", ".join(about.sources)
    if isinstance(cost, UsageError):
        return about.name, "refused", "", "", "", source
    parameters = f"{cost.num_parameters:,}"
    return about.name, cost.tokens, parameters, _short(cost.multiply_adds), cost.memory, source


def _cost_json(cost: DecoderCost | UsageError) -> dict[str, Any]:
    return {"refused": str(cost)} if isinstance(cost, UsageError) else cost.to_json()


def _short(count: float) -> str:
    """Such as `16.5 G`."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} E"
