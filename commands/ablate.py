"""`vis4mer ablate`: a sweep over settings of decoders, its table, figures and page."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..render import ablate as render
from ..store.errors import UsageError, Vis4merError
from .shared import Json, exit_with, refuse_torchrun

if TYPE_CHECKING:
    from ..decode.ablate.running import SweepResult
    from ..decode.ablate.sweep import Sweep
    from ..store.cache import Cache


def ablate(
    run: Annotated[Path, typer.Option(help="Directory of the sweep; made or continued.")],
    cache: Annotated[
        list[str],
        typer.Option(help="A feature cache or its URL; given several times, an axis of its own."),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="DATASET/TASK, e.g. lvu/relationship; several with commas between."),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE,VALUE for any setting, e.g. decoder.depth=1,3; repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with tables base, axes and runs, and seeds.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper-tokens, paper-mixers, paper-dimension-reduction, paper-window-length, "
            "paper-encoders or selective-masking; --axis and --set override it."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="5 for seeds 0 to 4, or seeds such as 0,3,7.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training videos.")] = None,
    device: Annotated[
        str, typer.Option(help="auto (every GPU, or the CPU), cpu, or e.g. cuda:0,cuda:1.")
    ] = "auto",
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any field, for all runs: NAME=VALUE.")
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Measure the peak memory of every setting's training step.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show runs, passes and bytes to read, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train decoders that differ in some settings, and show what each of them changes.

    Runs that can share their reads train in one pass. Killed at any moment, the same command goes
    on. RUN holds a run directory for each, results.jsonl, table.csv, figures and an HTML page.

    A TOML file for --config holds seeds = 3, a table named base of settings for all runs
    (epochs = 50), a table named axes of lists ("decoder.depth" = [1, 3]), and an array of tables
    named runs for single runs.

    Example: vis4mer ablate --cache lvu.zarr --task lvu/scene --run sweep
    --axis tokens=60xcls,60x7x7 --axis decoder.depth=1,3 --seeds 3
    """
    refuse_torchrun("ablate", "start it once: --device cuda:0,cuda:1 trains on several devices")
    from ..decode.ablate.devices import sweep_devices
    from ..decode.ablate.directory import require_own_sweep
    from ..decode.ablate.plan import plan_sweep
    from ..decode.ablate.running import run_sweep
    from ..store.cache import open_cache

    caches = _named([open_cache(path) for path in cache])
    sweep = _sweep(caches, task=task, axis=axis or [], config=config, preset=preset, seeds=seeds)
    devices = sweep_devices(device)
    sweep = sweep.with_base({"epochs": epochs, "device": devices[0]})
    points = sweep.points(list(caches), sets=sets or [])
    require_own_sweep(run, points, caches)
    plan = plan_sweep(points, caches, run)
    if preset is not None and plan.refused:
        name, error = next(iter(plan.refused.items()))
        raise UsageError(f"preset {preset}, {name}: {error}; replace that part by --axis or --set")
    if dry_run:
        render.print_plan(plan, devices=devices, as_json=as_json)
        return
    with _sigterm_interrupts(), console.Progress() as show:
        display = render.SweepDisplay(show, total=len(points))
        result = run_sweep(
            plan,
            points,
            caches,
            run,
            devices=devices,
            memory=memory,
            on_row=display.finished,
            on_text=display.tell,
        )
    written, notes = _write_all(result)
    render.print_sweep(result, written, notes, as_json=as_json)
    exit_with(len(result.rows), len(result.failed))


def _sweep(
    caches: dict[str, Cache],
    *,
    task: str | None,
    axis: list[str],
    config: Path | None,
    preset: str | None,
    seeds: str | None,
) -> Sweep:
    """What is asked, from a preset or a file and from the command line over it."""
    from dataclasses import replace

    from ..decode.ablate.presets import build_preset
    from ..decode.ablate.sweep import Axis, Sweep, read_sweep
    from ..decode.training.many import parse_seeds

    if config is not None and preset is not None:
        raise UsageError("--config and --preset: give one of them")
    sweep = Sweep()
    if preset is not None:
        sweep = build_preset(preset, [cache.spec for cache in caches.values()])
    if config is not None:
        sweep = read_sweep(config)
    tasks = [] if task is None else [name.strip() for name in task.split(",")]
    if len(tasks) == 1:
        sweep = sweep.with_base({"task": tasks[0]})
    elif tasks:
        sweep = sweep.with_axes([Axis(name="task", values=tuple(tasks))])
    sweep = sweep.with_axes([Axis.parse(text) for text in axis])
    return sweep if seeds is None else replace(sweep, seeds=parse_seeds(seeds))


def _named(caches: list[Cache]) -> dict[str, Cache]:
    """Caches by the names of their folders; UsageError where two are the same or have the same."""
    found: dict[str, Cache] = {}
    for cache in caches:
        name = cache.name.rpartition("/")[2].removesuffix(".zarr")
        if name in found:
            raise UsageError(
                f"--cache {cache.name}: {found[name].name} is called {name} too; caches of a sweep "
                "go by their names, rename one or give it once"
            )
        found[name] = cache
    return found


def _write_all(result: SweepResult) -> tuple[list[Path], list[str]]:
    """The table, the figures and the page; the files, and what could not be shown."""
    from ..both.report_page import report_page
    from ..decode.ablate.figures import draw_figures
    from ..decode.ablate.table import settings_csv
    from ..decode.report.formats import write_files
    from ..decode.report.table import build_report
    from ..store.files import write_atomic

    settings = result.settings
    if not settings:
        return [], []
    table = result.folder / "table.csv"
    write_atomic(table, settings_csv(settings).encode())
    written = [table, *draw_figures(settings, result.folder / "figures")]
    try:
        report = build_report([result.folder / row.run for row in result.rows])
    except Vis4merError as error:  # such as: no run has a test split
        return written, [f"no page was written: {error}"]
    page = report_page(report)
    written += write_files(report, result.folder / "report", page=page.html)
    return written, list(page.notes)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A scheduler's SIGTERM ends a sweep like Ctrl-C: other processes of it first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
