"""`vis4mer bench`: what decoders cost on the device at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import console
from ..render import bench as render
from ..store.errors import UsageError
from .shared import Device, Json, exit_with


def bench(
    decoders: Annotated[
        str, typer.Option(help="NAME[:OPTION=VALUE], several with commas between.")
    ] = "vis4mer,lst,lst:attention=materialised",
    tokens: Annotated[
        str, typer.Option(help="Token views, with commas between.")
    ] = "60x1x1,60x5x5,60x7x7,60x14x14",
    dim: Annotated[int, typer.Option(help="Width of the tokens.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Windows in a step.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed turns of each; their median counts.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Turns before them.")] = 1,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU."),
    ] = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="decoder.OPTION=VALUE, for every decoder that has it."),
    ] = None,
    max_memory: Annotated[
        float | None, typer.Option(help="GB that a decoder may take; else what is free.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw it into FILE.png or FILE.svg too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Speed and peak memory of decoders on random tokens, beside the paper's figures.

    A forward pass and a training step with AdamW of each, in alternation; every decoder in a
    process of its own. What does not fit into memory is a row that says so.

    Example: vis4mer bench --decoders vis4mer,lst,lst:attention=materialised --tokens 60x7x7
    """
    from ..decode.bench.figure import FORMATS, draw_costs
    from ..decode.bench.measure import run_bench
    from ..decode.bench.records import BenchRequest
    from ..decode.bench.subjects import parse_subjects, parse_views
    from ..decode.figure_path import check_figure_path

    if figure is not None:
        check_figure_path(figure, formats=FORMATS)
    if max_memory is not None and not 0 < max_memory < 1e9:  # NaN too
        raise UsageError(f"--max-memory is {max_memory}, expected GB such as 20")
    request = BenchRequest(
        subjects=parse_subjects(decoders, sets or []),
        views=parse_views(tokens),
        dim=dim,
        batch_size=batch_size,
        repeats=repeats,
        warm_up=warm_up,
        device=device,
        precision=precision,
        max_bytes=None if max_memory is None else round(1e9 * max_memory),
    )
    with console.Progress() as show:
        result = run_bench(request, report=show)
    if figure is not None:
        draw_costs(result, figure)
    render.print_bench(result, figure=figure, as_json=as_json)
    num_failed = sum(row.status == "failed" for row in result.rows)
    exit_with(len(result.rows) - num_failed, num_failed)
