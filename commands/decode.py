"""Stage 2: `vis4mer train-decoder`, `evaluate` and `decoders`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..render import decode as render
from ..store.errors import UsageError
from .shared import Device, Json, Split, Which


def train_decoder(
    run: Annotated[Path, typer.Option(help="Directory of this run, made or continued.")],
    cache: Annotated[Path, typer.Option(help="The feature cache to learn from.")],
    task: Annotated[str | None, typer.Option(help="DATASET/TASK, e.g. lvu/relationship.")] = None,
    decoder: Annotated[str | None, typer.Option(help="See `vis4mer decoders`.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token view, e.g. 60x7x7 or 60xcls.")] = None,
    window: Annotated[float | None, typer.Option(help="Seconds of video in a window.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training videos.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and windows.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; flags override it.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any field, e.g. decoder.variant=official.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the config that the run was begun with.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a temporal decoder from a feature cache, then judge it on val and test.

    Killed at any moment, the same command goes on; so does --cache and --run with --resume alone.

    Example: vis4mer train-decoder --cache lvu.zarr --task lvu/relationship --run runs/s4
    """
    from ..decode import train
    from ..decode.config import load_config
    from ..decode.runs import open_run
    from ..store.cache import open_cache

    opened = open_cache(cache)
    if resume and not (run / "config.json").exists():
        raise UsageError(f"--resume: {run} holds no run; leave --resume out to begin one")
    if not resume and task is None and config is None and not sets:
        present = ", ".join(opened.tasks()) or "none; add labels with `vis4mer label`"
        raise UsageError(f"--task is missing: expected DATASET/TASK; {cache} has {present}")
    flags = {
        "task": task,
        "decoder.name": decoder,
        "tokens": tokens,
        "window_seconds": window,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer.lr": lr,
        "seed": seed,
        "device": device,
    }
    base = open_run(run).about.train if resume and config is None else None
    resolved = load_config(file=config, base=base, flags=flags, sets=sets or [])
    with console.Progress() as show:
        result = train.train_decoder(
            opened, resolved, run, progress=partial(render.show_training, show)
        )
    render.print_training(result, as_json=as_json)


def evaluate(
    run: Annotated[Path, typer.Option(help="A run directory.")],
    cache: Annotated[Path, typer.Option(help="A cache that holds the run's task.")],
    split: Annotated[Split, typer.Option(help="Which videos to judge.")] = "test",
    which: Annotated[
        Which, typer.Option("--weights-of", help="The epoch whose weights are judged.")
    ] = "selected",
    stride: Annotated[float | None, typer.Option(help="Seconds between windows.")] = None,
    strict: Annotated[bool, typer.Option(help="Fail when a video is missing.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a run on a split of its task: k/N, the floor, every class, the coverage.

    Example: vis4mer evaluate --run runs/s4 --cache lvu.zarr --split test
    """
    from ..decode.evaluate import evaluate_run
    from ..decode.runs import open_run
    from ..store.cache import open_cache

    with console.Progress() as show:
        result = evaluate_run(
            open_run(run),
            open_cache(cache),
            split=split,
            which=which,
            stride_seconds=stride,
            device=device,
            strict=strict,
            on_video=lambda done, total: show(f"judging {console.share(done, total)}"),
        )
    render.print_evaluation(result, as_json=as_json)


def decoders(as_json: Json = False) -> None:
    """The decoders there are, with their options (`--set decoder.OPTION=VALUE`).

    Example: vis4mer decoders
    """
    from ..decode.decoders import describe_decoders

    render.print_decoders(describe_decoders(), as_json=as_json)
