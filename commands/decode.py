"""Stage 2: `vis4mer train-decoder`, `import-weights`, `evaluate` and `decoders`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..render import decode as render
from ..store.errors import UsageError
from .shared import Device, Json, Preload, Protocol, Split, Which, exit_with, processes_together

if TYPE_CHECKING:
    from ..decode.config import TrainConfig
    from ..store.cache import Cache


def train_decoder(
    run: Annotated[
        Path, typer.Option(help="Directory of this run, or of several runs; made or continued.")
    ],
    cache: Annotated[str, typer.Option(help="The feature cache to learn from, or its URL.")],
    task: Annotated[
        str | None,
        typer.Option(help="DATASET/TASK, e.g. lvu/relationship; several with commas between."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="5 for seeds 0 to 4, or seeds such as 0,3,7: a run for each."),
    ] = None,
    protocol: Annotated[
        Protocol | None, typer.Option(help="The settings to begin with; others override them.")
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="See `vis4mer decoders`.")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Token view, e.g. 60x7x7 or 60xcls; its frames spread over the window."),
    ] = None,
    window: Annotated[float | None, typer.Option(help="Seconds of video in a window.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training videos.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.")] = None,
    shuffle_frames: Annotated[
        bool, typer.Option("--shuffle-frames", help="A control: a window's frames in random order.")
    ] = False,
    lanes: Annotated[
        bool, typer.Option("--lanes", help="Whole videos in order, for a decoder with a memory.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and windows.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    share_memory: Annotated[
        float, typer.Option(min=0.001, help="GB of memory for what several runs read together.")
    ] = 4.0,
    preload: Annotated[
        Preload | None,
        typer.Option(help="Hold the tokens of train and val videos in ram or on the gpu."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Begin with the encoder of this `vis4mer pretrain` run.")
    ] = None,
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

    Several tasks or seeds train in one pass: a decoder for each, in RUN/DATASET-TASK/seedN, that
    share what is read and nothing else. Killed at any moment, the same command goes on; so does
    --cache and --run with --resume alone. Begun by torchrun, its processes learn together from each
    batch what one would (torchrun --nproc-per-node 4 -m -- vis4mer train-decoder …).

    Example: vis4mer train-decoder --cache lvu.zarr --task lvu/relationship,lvu/scene --seeds 5
    --run runs/s4
    """
    from ..decode.config import load_config
    from ..decode.pretraining.encoder import read_encoder
    from ..decode.runs.run import open_run
    from ..decode.train import train_decoders
    from ..decode.training.many import over_seeds, plan_training
    from ..store.cache import open_cache

    with processes_together() as ranks:
        opened = open_cache(cache)
        tasks = [] if task is None else [name.strip() for name in task.split(",")]
        if not resume and task is None and config is None and not sets:
            raise _task_is_missing(opened)
        if seed is not None and seeds is not None:
            raise UsageError("--seed and --seeds: give one of them")
        flags = {
            "task": tasks[0] if tasks else None,
            "protocol": protocol,
            "decoder.name": decoder,
            "tokens": tokens,
            "window_seconds": window,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer.lr": lr,
            "shuffle_frames": shuffle_frames or None,
            "lanes": lanes or None,
            "seed": seed,
            "device": device,
            "preload": preload,
        }

        def resolved(begun: Path | None = None) -> TrainConfig:
            base = open_run(begun).about.train if begun is not None and config is None else None
            return load_config(file=config, base=base, flags=flags, sets=sets or [])

        plan = plan_training(run, resolved, tasks=tasks, seeds=seeds, resume=resume)
        leads = ranks is None or ranks.leads
        with console.Progress() as show:
            outcomes = train_decoders(
                opened,
                plan.jobs,
                share_bytes=round(share_memory * 1e9),
                several=plan.several,
                init=None if init is None else read_encoder(init),
                progress=render.TrainingDisplay(show) if leads else None,
                ranks=ranks,
            )
        if leads and plan.several:
            render.print_pass(outcomes, over_seeds(outcomes), folder=run, as_json=as_json)
        elif leads:
            render.print_training(outcomes[0].require(), as_json=as_json)
    num_failed = sum(outcome.result is None for outcome in outcomes)
    exit_with(len(outcomes) - num_failed, num_failed)


def _task_is_missing(cache: Cache) -> UsageError:
    present = ", ".join(cache.tasks()) or "none; add labels with `vis4mer label`"
    return UsageError(f"--task is missing: expected DATASET/TASK; {cache.name} has {present}")


def import_weights(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state dict: .safetensors, .pth, .pt or .ckpt.")
    ],
    tokens: Annotated[str, typer.Option(help="The token view that it was trained on.")],
    cache: Annotated[str, typer.Option(help="A cache, or its URL, of such tokens and the task.")],
    task: Annotated[str, typer.Option(help="DATASET/TASK that it was trained on.")],
    run: Annotated[Path, typer.Option(help="Directory of the run to make.")],
    window: Annotated[float, typer.Option(help="Seconds of video in a window.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Make a run of weights that the released ViS4mer code saved, for `evaluate` and `predict`.

    Example: vis4mer import-weights scene.pth --tokens 60x14x14+cls --cache lvu.zarr
    --task lvu/scene --run runs/released
    """
    from ..decode.released import importing
    from ..store.cache import open_cache

    summary = importing.import_weights(
        file, open_cache(cache), task=task, tokens=tokens, run=run, window_seconds=window
    )
    render.print_import(summary, as_json=as_json)


def evaluate(
    run: Annotated[Path, typer.Option(help="A run directory.")],
    cache: Annotated[str, typer.Option(help="A cache, or its URL, that holds the run's task.")],
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
    from ..decode.judging.evaluate import evaluate_run
    from ..decode.runs.run import open_run
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


def decoders(
    tokens: Annotated[str, typer.Option(help="Token view of the costs, with frames.")] = "60x14x14",
    dim: Annotated[int, typer.Option(help="Width of the tokens.")] = 1024,
    as_json: Json = False,
) -> None:
    """The decoders there are: source, cost, and options (`--set decoder.OPTION=VALUE`).

    Costs are of one window and the options' defaults, computed and not measured: what a machine
    makes of them says `vis4mer bench`.

    Example: vis4mer decoders --tokens 60x7x7
    """
    from ..decode.decoders import describe_decoders
    from ..decode.decoders.cost import COUNTED, NOT_COUNTED, decoder_costs
    from ..store.views import TokenView

    view = TokenView.parse(tokens)
    costs = decoder_costs(view, dim=dim)
    setting = f"one window of {view} tokens, {dim} wide, with default options"
    render.print_decoders(
        describe_decoders(),
        costs,
        setting=setting,
        sums=(COUNTED, NOT_COUNTED),
        as_json=as_json,
    )
