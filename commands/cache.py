"""`vis4mer cache …`: look into a feature cache, check it, clean it."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console
from ..render import cache as render
from .shared import CachePath, Json

app = typer.Typer(no_args_is_help=True, help="Look into a feature cache and check it.")


@app.command("info")
def cache_info(cache: CachePath, as_json: Json = False) -> None:
    """What a cache holds and what made it.

    Example: vis4mer cache info lvu.zarr
    """
    from ..store.cache import open_cache
    from ..store.summary import summarise

    render.print_summary(summarise(open_cache(cache)), as_json=as_json)


@app.command("ls")
def cache_ls(
    cache: CachePath,
    failures: Annotated[bool, typer.Option(help="List what failed instead.")] = False,
    as_json: Json = False,
) -> None:
    """The videos in a cache, one line each.

    Example: vis4mer cache ls lvu.zarr --failures
    """
    from ..store.cache import open_cache

    opened = open_cache(cache)
    if failures:
        render.print_failures(opened.failures(), as_json=as_json)
    else:
        entries = [opened.record(entry_id) for entry_id in opened.ids()]
        render.print_entries(entries, as_json=as_json)


@app.command("verify")
def cache_verify(
    cache: CachePath,
    full: Annotated[bool, typer.Option(help="Read every byte and check its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Check that everything the records list is there and sound. Exit code 1 if not.

    Example: vis4mer cache verify lvu.zarr --full
    """
    from ..store.cache import open_cache
    from ..store.verify import verify_cache

    with console.Progress() as show:
        report = verify_cache(
            open_cache(cache),
            "full" if full else "quick",
            progress=lambda done, total: show(f"verifying {console.share(done, total)}"),
        )
    render.print_verification(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command("gc")
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
    from ..store.cache import open_cache
    from ..store.gc import collect_garbage

    report = collect_garbage(open_cache(cache), grace_seconds=grace_hours * 3600, dry_run=dry_run)
    render.print_garbage(report, dry_run=dry_run, as_json=as_json)


@app.command("rm")
def cache_rm(
    cache: CachePath,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Videos to remove.")],
) -> None:
    """Remove videos from a cache; their bytes go with the next `vis4mer cache gc`.

    Example: vis4mer cache rm lvu.zarr broken.mp4
    """
    from ..store.cache import open_cache

    opened = open_cache(cache)
    for record in [opened.record(entry_id) for entry_id in ids]:
        opened.remove(record.id)
    opened.write_catalog()
    console.print_line(f"removed {len(ids)} videos; `vis4mer cache gc {cache}` frees their space")
