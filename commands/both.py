"""What needs both stages or neither: `vis4mer predict`, `demo` and `doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import console
from ..render import both as render
from ..store.errors import UsageError
from .shared import Device, Json, exit_with

if TYPE_CHECKING:
    from ..demo.long_range import LongRangeResult

Question = Literal["order", "count", "match"]


def predict(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO…", help="Files, folders, globs.")],
    run: Annotated[Path, typer.Option(help="A run directory.")],
    stream: Annotated[
        bool, typer.Option("--stream", help="Frame by frame, in constant memory.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw where the decoder looked: a PNG file, of one video.")
    ] = None,
    at: Annotated[
        float | None, typer.Option(help="With --figure: seconds; draw the window there.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Needed for a plug-in backbone.")] = None,
    weights: Annotated[str | None, typer.Option(help="Needed for weights from a file.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict videos with a trained run: decode, extract, run the decoder.

    With --stream, a line a frame says what is predicted since the last reset, every window; with
    --json too, each is a JSON object of its own.

    With --figure, frames of a window are drawn with the patches that the decoder kept
    (selective_s4), or the weight that each had (attentive-probe).

    Example: vis4mer predict new.mp4 --run runs/s4 --stream

    Example: vis4mer predict new.mp4 --run runs/selective --figure looked.png --at 75
    """
    from ..both import look as looking
    from ..both import predict as predicting
    from ..decode.runs.run import open_run

    opened = open_run(run)
    _require_together(stream=stream, stride=stride, figure=figure, at=at)
    if stream:
        events = predicting.stream_videos(
            videos, opened, backbone=backbone, weights=weights, device=device
        )
        exit_with(
            *render.print_stream(events, classes=opened.about.classes, top=top, as_json=as_json)
        )
        return
    drawn = None
    with console.Progress() as show:
        if figure is None:
            found = predicting.predict_videos(
                videos,
                opened,
                backbone=backbone,
                weights=weights,
                device=device,
                stride_seconds=stride,
                on_phase=show,
            )
        else:
            found, drawn = looking.predict_and_draw(
                videos,
                opened,
                figure,
                at_seconds=at,
                backbone=backbone,
                weights=weights,
                device=device,
                stride_seconds=stride,
                on_phase=show,
            )
    render.print_predictions(found, top=top, as_json=as_json, drawn=drawn)
    exit_with(len(found.predictions), len(found.failures))


def _require_together(
    *, stream: bool, stride: float | None, figure: Path | None, at: float | None
) -> None:
    """UsageError for options of `predict` that do not go together."""
    if at is not None and figure is None:
        raise UsageError(f"--at {at:g}: which window of a figure; add --figure FILE.png")
    if stream and stride is not None:
        raise UsageError("--stride goes without --stream: a stream's windows never overlap")
    if stream and figure is not None:
        raise UsageError("--figure goes without --stream: it shows a whole window")


def demo(
    directory: Annotated[
        Path, typer.Argument(help="Where videos, cache and runs go; kept, and continued.")
    ] = Path("vis4mer-demo"),
    dataset: Annotated[
        Question | None,
        typer.Option(help="Tokens drawn for a long-range question, in place of videos."),
    ] = None,
    decoders: Annotated[
        str | None, typer.Option(help="With --dataset: names such as vis4mer,mean.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="With --dataset: trainings, 3 or seeds such as 0,1,2.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="With --dataset: 60x1x1, 60x4x4, 60x14x14, or several.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn; of videos, the training too.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """See everything work: make videos, extract them, train two decoders, predict. No network.

    With --dataset, decoders are compared on generated tokens whose label lies in their order: which
    event comes first, how often one occurs, or whether the first and the last are alike.

    Example: vis4mer demo

    Example: vis4mer demo --dataset match --decoders vis4mer,lst:positions,mean --seeds 3
    """
    # The demo's many small steps on a newcomer's busy machine: threads that wait by spinning would
    # take the cores from each other. Read when torch is loaded, which has not happened yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    report = console.print_note if as_json else console.print_line
    if dataset is not None:
        found = _long_range(
            directory,
            dataset,
            decoders=decoders,
            seeds=seeds,
            tokens=tokens,
            seed=seed,
            device=device,
            report=report,
        )
        render.print_long_range(found, as_json=as_json)
        return
    for name, value in (("decoders", decoders), ("seeds", seeds), ("tokens", tokens)):
        if value is not None:
            raise UsageError(f"--{name} {value}: of a demo of tokens; add --dataset order")
    from ..demo.videos import run_demo

    result = run_demo(directory, seed=seed, device=device, report=report)
    render.print_demo(result, as_json=as_json)


def _long_range(
    directory: Path,
    question: Question,
    *,
    decoders: str | None,
    seeds: str | None,
    tokens: str | None,
    seed: int,
    device: str,
    report: Callable[[str], None],
) -> LongRangeResult:
    from ..decode.training.many import parse_seeds
    from ..demo.long_range import DECODERS, run_long_range

    return run_long_range(
        directory,
        question=question,
        decoders=DECODERS if decoders is None else _names(decoders),
        tokens=_names(tokens or "60x1x1"),
        seeds=parse_seeds(seeds or "1"),
        seed=seed,
        device=device,
        report=report,
    )


def _names(text: str) -> tuple[str, ...]:
    """Of a list with commas, each once, in their order."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def doctor(as_json: Json = False) -> None:
    """Versions, devices, video readers, and what is wrong. Exit code 1 if something is.

    Example: vis4mer doctor
    """
    from ..doctor import diagnose

    checks = diagnose()
    render.print_checks(checks, as_json=as_json)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
