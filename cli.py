"""The command line: parse, call, render. No logic of its own.

Every command imports what it needs when it runs, so that `vis4mer --help` answers at once. A
failure that a person can act on is one line and an exit code: 1 failure, 2 usage, 3 done with some
failures. `--debug`, anywhere on the line, shows the traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from . import __version__, console, render
from .store.errors import UsageError

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
Split = Literal["train", "val", "test"]
Which = Literal["selected", "best", "last"]
Dtype = Literal["float16", "bfloat16", "int8"]
Precision = Literal["auto", "float32", "bfloat16"]
ReaderName = Literal["pyav", "decord", "torchcodec"]


class OneLineErrors(TyperGroup):
    """A command group whose failures are one line on standard error and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        extra["standalone_mode"] = False
        try:
            code = super().main([a for a in given if a != "--debug"], *rest, **extra)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                raise
            sys.exit(_report(error))
        if code == EXIT_INTERRUPTED:  # the parser has turned Ctrl-C into its exit code
            _report(KeyboardInterrupt())
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException) -> int:
    """Print what went wrong, in one line; the exit code."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        console.print_error("interrupted; extraction and training go on with the same command")
        return EXIT_INTERRUPTED
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(getattr(error, "ctx").get_help())  # noqa: B009 - no public type
        return 2
    if hasattr(error, "format_message"):  # the parser's own errors
        hint = getattr(error, "ctx", None)
        command = hint.command_path if hint is not None else "vis4mer"
        console.print_error(f"{error.format_message()} (see `{command} --help`)")
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - `| head` closed the pipe
        return 1
    if hasattr(error, "exit_code"):  # Vis4merError
        console.print_error(str(error))
        return int(error.exit_code)
    if isinstance(error, (OSError, MemoryError)):
        console.print_error(f"{error} ({type(error).__name__}); --debug shows where")
        return 1
    console.print_error(
        f"unexpected {type(error).__name__}: {error}; this is a bug: please report it with the "
        "output of the same command and --debug"
    )
    return 1


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Long-video classification in two stages: `extract` runs a frozen backbone over every "
    "video once and caches its tokens; `train-decoder` trains temporal decoders from the cache.",
)
cache_app = typer.Typer(no_args_is_help=True, help="Look into a feature cache and check it.")
app.add_typer(cache_app, name="cache")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="A feature cache, NAME.zarr.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


def parse_sides(text: str) -> tuple[int, ...]:
    """`7,4` as (7, 4). UsageError for anything else."""
    try:
        return tuple(int(side) for side in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--grids {text}: expected whole numbers such as 7 or 7,4") from error


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets (a scheduler's preemption): finish what is in hand and leave."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"vis4mer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Global options; --debug shows the traceback of an error."""


def main() -> None:
    """Entry point of the `vis4mer` command."""
    app()


# Caches -----------------------------------------------------------------------------------------


@cache_app.command("info")
def cache_info(cache: CachePath, as_json: Json = False) -> None:
    """What a cache holds and what made it.

    Example: vis4mer cache info lvu.zarr
    """
    from .store.cache import open_cache
    from .store.summary import summarise

    render.print_summary(summarise(open_cache(cache)), as_json=as_json)


@cache_app.command("ls")
def cache_ls(
    cache: CachePath,
    failures: Annotated[bool, typer.Option(help="List what failed instead.")] = False,
    as_json: Json = False,
) -> None:
    """The videos in a cache, one line each.

    Example: vis4mer cache ls lvu.zarr --failures
    """
    from .store.cache import open_cache

    opened = open_cache(cache)
    if failures:
        render.print_failures(opened.failures(), as_json=as_json)
    else:
        entries = [opened.record(entry_id) for entry_id in opened.ids()]
        render.print_entries(entries, as_json=as_json)


@cache_app.command("verify")
def cache_verify(
    cache: CachePath,
    full: Annotated[bool, typer.Option(help="Read every byte and check its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Check that everything the records list is there and sound. Exit code 1 if not.

    Example: vis4mer cache verify lvu.zarr --full
    """
    from .store.cache import open_cache
    from .store.verify import verify_cache

    with console.Progress() as show:
        report = verify_cache(
            open_cache(cache),
            "full" if full else "quick",
            progress=lambda done, total: show(f"verifying {console.share(done, total)}"),
        )
    render.print_verification(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    cache: CachePath,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Keep what changed within this many hours.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed processes left behind; never anything that a record refers to.

    Example: vis4mer cache gc lvu.zarr --dry-run
    """
    from .store.cache import open_cache
    from .store.gc import collect_garbage

    report = collect_garbage(open_cache(cache), grace_seconds=grace_hours * 3600, dry_run=dry_run)
    render.print_garbage(report, dry_run=dry_run, as_json=as_json)


@cache_app.command("rm")
def cache_rm(
    cache: CachePath,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Videos to remove.")],
) -> None:
    """Remove videos from a cache; their bytes go with the next `vis4mer cache gc`.

    Example: vis4mer cache rm lvu.zarr broken.mp4
    """
    from .store.cache import open_cache

    opened = open_cache(cache)
    for record in [opened.record(entry_id) for entry_id in ids]:
        opened.remove(record.id)
    opened.write_catalog()
    console.print_line(f"removed {len(ids)} videos; `vis4mer cache gc {cache}` frees their space")


# Stage 1 ----------------------------------------------------------------------------------------

Dataset = Annotated[
    Path | None, typer.Option(help="A CSV of labels with the columns path,label,split.")
]
Videos = Annotated[
    Path | None, typer.Option(help="The folder that the CSV's paths are below (default: its own).")
]


@app.command()
def extract(
    cache: Annotated[Path, typer.Option(help="The feature cache to make or to continue.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIDEO…]", help="Files, folders, globs, @LISTS, or one CSV."),
    ] = None,
    dataset: Dataset = None,
    videos: Videos = None,
    backbone: Annotated[
        str,
        typer.Option(help="A timm name, with @SIZE for another input size, or module:function."),
    ] = "vit_large_patch16_224.augreg_in21k",
    weights: Annotated[str, typer.Option(help="hub, a file, or random:SEED.")] = "hub",
    fps: Annotated[float, typer.Option(help="Frames taken from a second of video.")] = 1.0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored tokens.")] = "float16",
    grids: Annotated[
        str, typer.Option(help="Sides of pooled copies to keep beside the patches, e.g. 7 or 7,4.")
    ] = "",
    reader: Annotated[ReaderName, typer.Option(help="What reads the video files.")] = "pyav",
    precision: Annotated[
        Precision, typer.Option(help="Of the backbone; auto is bfloat16 on a GPU.")
    ] = "auto",
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Frames in a step.")] = None,
    workers: Annotated[int | None, typer.Option(help="Videos read at once.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Extract this many at most.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Extract again what is there already.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try unchanged files that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a frozen backbone over videos and cache its tokens. The same command again continues.

    Example: vis4mer extract videos.csv --cache my.zarr --backbone vit_small_patch16_224.augreg_in1k
    """
    from .extract.request import extract_videos, plan_videos

    sides = parse_sides(grids)
    if dry_run:
        plan = plan_videos(
            inputs or [],
            cache=cache,
            dataset=dataset,
            videos=videos,
            backbone=backbone,
            fps=fps,
            stored_dtype=dtype,
            grids=sides,
            reader=reader,
            limit=limit,
            overwrite=overwrite,
            retry_failed=retry_failed,
        )
        render.print_plan(plan, as_json=as_json)
        return
    with console.Progress() as show, stop_on_sigterm() as stop:
        show(f"loading {backbone} (weights: {weights})")
        summary = extract_videos(
            inputs or [],
            cache=cache,
            dataset=dataset,
            videos=videos,
            backbone=backbone,
            weights=weights,
            fps=fps,
            stored_dtype=dtype,
            grids=sides,
            reader=reader,
            device=device,
            compute_dtype=None if precision == "auto" else precision,
            batch_size=batch_size,
            workers=workers,
            limit=limit,
            overwrite=overwrite,
            retry_failed=retry_failed,
            stop=stop,
            progress=partial(render.show_extraction, show),
        )
    render.print_extraction(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command()
def label(
    cache: CachePath,
    dataset: Annotated[Path, typer.Option(help="A CSV with the columns path,label,split.")],
    videos: Videos = None,
    as_json: Json = False,
) -> None:
    """Add labels to a cache, or refresh them, without touching a video.

    Example: vis4mer label my.zarr --dataset videos.csv
    """
    from .extract.request import label_cache

    table, missing = label_cache(cache, dataset, videos=videos)
    render.print_labels(cache, table, missing, as_json=as_json)


# Stage 2 ----------------------------------------------------------------------------------------


@app.command("train-decoder")
def train_decoder_command(
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
    from .decode.config import load_config
    from .decode.runs import open_run
    from .decode.train import train_decoder
    from .store.cache import open_cache

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
        result = train_decoder(opened, resolved, run, progress=partial(render.show_training, show))
    render.print_training(result, as_json=as_json)


@app.command()
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
    from .decode.evaluate import evaluate_run
    from .decode.runs import open_run
    from .store.cache import open_cache

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


@app.command()
def predict(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO…", help="Files, folders, globs.")],
    run: Annotated[Path, typer.Option(help="A run directory.")],
    stream: Annotated[
        bool, typer.Option("--stream", help="Frame by frame, in constant memory.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Needed for a plug-in backbone.")] = None,
    weights: Annotated[str | None, typer.Option(help="Needed for weights from a file.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict videos with a trained run: decode, extract, run the decoder.

    With --stream, a line a frame says what is predicted since the last reset, every window; with
    --json too, each is a JSON object of its own.

    Example: vis4mer predict new.mp4 --run runs/s4 --stream
    """
    from . import predict as predicting
    from .decode.runs import open_run
    from .store.errors import UsageError

    opened = open_run(run)
    if stream:
        if stride is not None:
            raise UsageError("--stride goes without --stream: a stream's windows never overlap")
        events = predicting.stream_videos(
            videos, opened, backbone=backbone, weights=weights, device=device
        )
        _exit(*render.print_stream(events, classes=opened.about.classes, top=top, as_json=as_json))
        return
    with console.Progress() as show:
        found = predicting.predict_videos(
            videos,
            opened,
            backbone=backbone,
            weights=weights,
            device=device,
            stride_seconds=stride,
            on_phase=show,
        )
    render.print_predictions(found, top=top, as_json=as_json)
    _exit(len(found.predictions), len(found.failures))


def _exit(num_done: int, num_failed: int) -> None:
    """End with exit code 3 when some videos failed, 1 when all did."""
    if num_failed:
        raise typer.Exit(EXIT_SOME_FAILED if num_done else 1)


@app.command()
def decoders(as_json: Json = False) -> None:
    """The decoders there are, with their options (`--set decoder.OPTION=VALUE`).

    Example: vis4mer decoders
    """
    from .decode.decoders import describe_decoders

    render.print_decoders(describe_decoders(), as_json=as_json)


# Both stages ------------------------------------------------------------------------------------


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Argument(help="Where videos, cache and runs go; kept, and continued.")
    ] = Path("vis4mer-demo"),
    seed: Annotated[int, typer.Option(help="Of the videos and of the training.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """See everything work: make videos, extract them, train two decoders, predict. No network.

    Example: vis4mer demo
    """
    # The demo's many small steps on a newcomer's busy machine: threads that wait by spinning would
    # take the cores from each other. Read when torch is loaded, which has not happened yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .demo import run_demo

    report = console.print_note if as_json else console.print_line
    result = run_demo(directory, seed=seed, device=device, report=report)
    render.print_demo(result, as_json=as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, video readers, and what is wrong. Exit code 1 if something is.

    Example: vis4mer doctor
    """
    from .doctor import diagnose

    checks = diagnose()
    render.print_checks(checks, as_json=as_json)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
