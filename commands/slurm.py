"""`vis4mer slurm`: the script of an array of tasks that fill one cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..render.slurm import ArrayScript, array_script
from ..store.errors import UsageError
from ..store.remote.urls import refuse_address
from .extract import extract

_NAME = re.compile(r"[\w.,+-]{1,200}")
_TIME = re.compile(r"[0-9]{1,6}(-[0-9]{1,2})?(:[0-9]{1,2}){0,2}")
_MEMORY = re.compile(r"[0-9]{1,9}[KMGT]?")
MIN_SECONDS = 300  # SLURM tells a task to stop up to two minutes before its end
# What the script says itself.
_SCRIPTED = ("worker", "engine", "devices", "processes", "address")
_BY_ITSELF = "; run that by itself: `vis4mer extract …"
# What many tasks, each of which may be begun again, cannot do together.
_OF_ONE_RUN = {
    "overwrite": f"each task would replace what the others have just made{_BY_ITSELF} --overwrite`",
    "retry_failed": f"each task would try them again{_BY_ITSELF} --retry-failed`",
    "limit": "each task would count for itself; name fewer videos, or take --ids @FILE",
    "profile": f"all tasks would write the one file{_BY_ITSELF} --limit 8 --profile FILE.json`",
    "dry_run": f"the tasks would do nothing{_BY_ITSELF} --dry-run`",
}
# Options that are not its own are those of `extract`.
PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


class KeepsDashes(TyperCommand):
    """A command that passes `--` on to whoever reads its other arguments, with what follows it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = args.index("--") if "--" in args else len(args)
        super().parse_args(ctx, args[:before])
        rest: list[str] = [*ctx.args, *args[before:]]
        ctx.args = rest
        return rest


def slurm(
    context: typer.Context,
    tasks: Annotated[int, typer.Option(min=1, max=10_000, help="Tasks of the array.")] = 8,
    time: Annotated[str, typer.Option(help="Of a task, e.g. 30, 12:00:00 or 2-0.")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Where they run.")] = None,
    account: Annotated[str | None, typer.Option(help="Who is charged.")] = None,
    gpus: Annotated[int, typer.Option(min=0, max=64, help="GPUs of a task; 0 is the CPU.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, max=1024, help="CPU cores of a task.")] = 8,
    mem: Annotated[str, typer.Option(help="Memory of a task.")] = "32G",
) -> None:
    """Print the script of a SLURM array that runs `vis4mer extract` with the other options.

    Writes nothing and needs no SLURM. Each task begins with a share of the videos, then helps the
    others; a task that is preempted, killed or out of time loses what it had in hand, no more.
    Paths are taken from the folder where this is run.

    Example: vis4mer slurm videos.csv --cache my.zarr --tasks 20 --time 4:00:00 > array.sh
    """
    _check_options(context.args)
    engine = ["--engine", "local"] if gpus > 1 else []
    # -P: a folder that happens to be the current one lends no modules.
    program = [sys.executable, "-P", "-m", __package__.partition(".")[0]]
    script = ArrayScript(
        command=[*program, "extract", "--worker", "slurm", *engine, *context.args],
        folder=str(Path.cwd()),
        tasks=tasks,
        gpus=gpus,
        cpus=cpus,
        memory=_fitting(_MEMORY, mem, "--mem", "a size such as 32G"),
        time=_long_enough(_fitting(_TIME, time, "--time", "minutes, HH:MM:SS or DAYS-HH")),
        partition=partition and _fitting(_NAME, partition, "--partition", "a name"),
        account=account and _fitting(_NAME, account, "--account", "a name"),
    )
    typer.echo(array_script(script), nl=False)


def _check_options(arguments: Sequence[str]) -> None:
    """The parser's error for what `vis4mer extract` would not take; UsageError for options that
    the script sets or that are of one run, for a cache elsewhere, and where no video is named."""
    app = typer.Typer(add_completion=False)
    app.command(name="extract")(extract)
    parsed = typer.main.get_command(app).make_context("vis4mer extract", list(arguments))
    for name in _SCRIPTED:
        source = parsed.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name}: the script says it itself; see --tasks and --gpus")
    for name, reason in _OF_ONE_RUN.items():
        value = parsed.params[name]
        if value is not None and value is not False:
            raise UsageError(f"--{name.replace('_', '-')}: {reason}")
    if parsed.params["cache"] is not None:
        refuse_address(str(parsed.params["cache"]), what="an extraction fills")
    if not parsed.params["inputs"] and parsed.params["dataset"] is None:
        raise UsageError("no videos named: give files, a folder, a list, or --dataset")


def _fitting(pattern: re.Pattern[str], text: str, option: str, expected: str) -> str:
    """Text for a line of the header, where nothing can be quoted."""
    if not pattern.fullmatch(text):
        raise UsageError(f"{option} {text!r:.80}: expected {expected}")
    return text


def _long_enough(time: str) -> str:
    """UsageError for a time in which a task would be requeued again and again, and do nothing."""
    if 0 < _seconds(time) < MIN_SECONDS:  # zero is without an end
        raise UsageError(
            f"--time {time}: a task would be told to stop, and requeued, before it has done "
            f"anything; expected {MIN_SECONDS // 60} minutes at least"
        )
    return time


def _seconds(time: str) -> int:
    """Of a time as sbatch takes it: M, M:S, H:M:S, or D-H, D-H:M, D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
