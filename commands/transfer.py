"""`vis4mer cache push` and `pull`: a cache to a place, and from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..render import transfer as render
from .cache import app
from .shared import CacheHere, Json, Split, parse_names, stop_on_sigterm

if TYPE_CHECKING:
    from ..store.transfer.selection import Selection

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="s3://, gs://, az://, hf://datasets/, ssh://, file:// or a path."
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="URL", help="As for push, and http:// and https://.")
]
Task = Annotated[str | None, typer.Option(help="Only videos of this task, DATASET/TASK.")]
OfSplit = Annotated[Split | None, typer.Option(help="With --task: only this split.")]
Ids = Annotated[list[str] | None, typer.Option(help="Only these videos: a,b or @FILE.")]
Views = Annotated[
    str | None,
    typer.Option(help="Only these arrays of each: patch, prefix, gridN; commas between."),
]
Jobs = Annotated[int, typer.Option(min=1, max=128, help="Videos that travel at once.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would travel.")]


@app.command("push")
def cache_push(
    cache: CacheHere,
    url: Url,
    task: Task = None,
    split: OfSplit = None,
    ids: Ids = None,
    views: Views = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Many videos in one object, for hubs with file limits.")
    ] = False,
    pack_size: Annotated[float, typer.Option(min=1, help="With --pack: MB of an object.")] = 200.0,
    card: Annotated[bool, typer.Option(help="Write a README there.")] = True,
    jobs: Jobs = 8,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy a cache to a place, or what the place lacks of it.

    Only what is missing or different travels; the same command again goes on. Hosts, users and
    folders are taken out of the records. Credentials come from the environment.

    Example: vis4mer cache push lvu.zarr s3://bucket/lvu.zarr --views grid7,prefix
    """
    from ..store.transfer.push import push_cache

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = push_cache(
            cache,
            url,
            _selection(task, split, ids, views),
            pack_bytes=round(pack_size * 1e6) if pack else None,
            card=card,
            jobs=jobs,
            dry_run=dry_run,
            stop=stop,
            progress=lambda progress: show(render.progress_line(progress)),
        )
    render.print_transfer(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command("pull")
def cache_pull(
    url: Source,
    cache: Annotated[
        str, typer.Argument(metavar="CACHE", help="A new cache here, or one to fill.")
    ],
    task: Task = None,
    split: OfSplit = None,
    ids: Ids = None,
    views: Views = None,
    jobs: Jobs = 8,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy a cache from a place, or a part of it, or what is lacking here.

    Every byte is checked against its record. The same command again goes on.

    Example: vis4mer cache pull s3://bucket/lvu.zarr lvu.zarr --task lvu/relationship
    """
    from ..store.transfer.pull import pull_cache

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = pull_cache(
            url,
            cache,
            _selection(task, split, ids, views),
            jobs=jobs,
            dry_run=dry_run,
            stop=stop,
            progress=lambda progress: show(render.progress_line(progress)),
        )
    render.print_transfer(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _selection(
    task: str | None, split: Split | None, ids: list[str] | None, views: str | None
) -> Selection:
    from ..store.transfer.selection import Selection

    return Selection(
        ids=parse_names(ids) if ids else None,
        task=task,
        split=split,
        arrays=parse_names([views]) if views is not None else None,
    )
