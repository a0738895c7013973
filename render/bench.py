"""What `bench` shows: our figures, the paper's beside them, and how the decoders compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..console import human_bytes, print_json, print_line, print_table

if TYPE_CHECKING:
    from ..decode.bench.records import BenchResult, BenchRow, Comparison, Cost

NONE = "–"


def print_bench(result: BenchResult, *, figure: Path | None, as_json: bool) -> None:
    """`bench`."""
    if as_json:
        drawn = None if figure is None else str(figure)
        print_json({**result.to_json(), "figure": drawn})
        return
    from ..decode.bench.figure import describe_conditions

    print_line(describe_conditions(result))
    print_line("samples/s are medians; memory is the peak beyond a process that only waits")
    print_line()
    columns = (
        "tokens",
        "decoder",
        "forward/s",
        "training/s",
        "forward memory",
        "training memory",
        "paper/s (their GPU)",
        "ours ÷ paper",
        "paper memory",
        "ours ÷ paper",
    )
    print_table(columns, [_cells(row) for row in result.rows])
    _print_comparisons(result)
    lost = [row for row in result.rows if row.status != "measured"]
    for row in lost:
        print_line(f"{row.status}: {row.subject.label} at {row.view}: {row.reason}")
    if figure is not None:
        print_line(f"drawn: {figure}")


def _cells(row: BenchRow) -> tuple[str, ...]:
    paper, over = row.paper, row.over_paper()
    unmeasured = row.status if row.status != "measured" else NONE
    return (
        f"{row.num_tokens:,}",
        row.subject.label,
        _speed(row.forward, unmeasured),
        _speed(row.train, unmeasured),
        NONE if row.forward is None else human_bytes(row.forward.peak_bytes),
        NONE if row.train is None else human_bytes(row.train.peak_bytes),
        NONE if paper is None else f"{paper.samples_per_second:.2f}",
        NONE if over is None else times(over["samples_per_second"]),
        NONE if paper is None else f"{paper.gigabytes:.2f} GB",
        NONE if over is None else times(over["memory"]),
    )


def _speed(cost: Cost | None, unmeasured: str) -> str:
    return unmeasured if cost is None else number(cost.samples_per_second)


def _print_comparisons(result: BenchResult) -> None:
    if not result.comparisons:
        return
    first = result.request.subjects[0].label
    print_line()
    columns = (
        "tokens",
        "decoder",
        f"speed beside {first}, forward",
        "training",
        "paper",
        f"memory beside {first}, forward",
        "training",
        "paper",
    )
    print_table(columns, [_comparison_cells(each) for each in result.comparisons])


def _comparison_cells(each: Comparison) -> tuple[str, ...]:
    return (
        f"{each.row.num_tokens:,}",
        each.row.subject.label,
        _as_fast(each.forward_speed),
        _as_fast(each.train_speed),
        _as_fast(each.paper_speed),
        _as_much(each.forward_memory),
        _as_much(each.train_memory),
        _as_much(each.paper_memory),
    )


def _as_fast(first_over_it: float | None) -> str:
    """How fast a decoder is where the first one is so many times as fast as it."""
    if first_over_it is None:
        return NONE
    slower = first_over_it > 1
    return f"{times(first_over_it)} slower" if slower else f"{times(1 / first_over_it)} as fast"


def _as_much(it_over_first: float | None) -> str:
    if it_over_first is None or not it_over_first:
        return NONE
    more = it_over_first >= 1
    return f"{times(it_over_first)} as much" if more else f"{times(1 / it_over_first)} less"


def number(value: float) -> str:
    """Three digits, without an exponent: 0.0123, 4.56, 1,235."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """2.6316 → "2.63 ×"; a dash where there is no ratio."""
    return NONE if ratio is None else f"{number(ratio)} ×"
