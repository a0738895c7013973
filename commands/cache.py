"""`vis4mer cache …`: look into a feature cache, check it, clean it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import console
from ..render import cache as render
from ..store.errors import UsageError
from ..store.wording import counted
from .shared import (
    CacheHere,
    CachePath,
    Json,
    Split,
    parse_bytes,
    parse_names,
    parse_sides,
    stop_on_sigterm,
)

if TYPE_CHECKING:
    from ..store.packing import PackSummary

app = typer.Typer(no_args_is_help=True, help="Look into a feature cache and check it.")
Dtype = Literal["float16", "bfloat16", "int8"]


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
        entries, unreadable = opened.readable_records()
        render.print_entries(entries, unreadable, to_mend=opened.to_mend, as_json=as_json)


@app.command("gc")
def cache_gc(
    cache: CacheHere,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Keep what changed within this many hours.")
    ] = 24.0,
    dry_run: Annotated[
        bool,
        typer.Option(help="Only say what would be removed, by the clock of this machine."),
    ] = False,
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
    cache: CacheHere,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Videos to remove.")],
) -> None:
    """Remove videos from a cache; whoever reads them now has a day to finish.

    Example: vis4mer cache rm lvu.zarr broken.mp4
    """
    from ..store.cache import open_cache
    from ..store.replacement import remove_entries

    num_removed = remove_entries(open_cache(cache), ids)
    its = "its" if num_removed == 1 else "their"
    console.print_line(
        f"removed {counted(num_removed, 'video')}; `vis4mer cache gc {cache}` frees {its} space "
        f"from tomorrow on, and `vis4mer cache pack {cache}` before it what lies in packs with "
        "others"
    )


@app.command("pool")
def cache_pool(
    cache: CacheHere,
    grid: Annotated[
        str, typer.Option(metavar="SIDES", help="Sides of the copies, such as 7 or 7,4.")
    ],
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove these copies instead of adding them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store average-pooled copies of the patches, so that small views are cheap to read.

    No video is touched. The same command again continues.

    Example: vis4mer cache pool lvu.zarr --grid 7,4
    """
    from ..store.cache import open_cache
    from ..store.pooling import pool_cache

    sides = parse_sides(grid, option="--grid")
    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = pool_cache(
            open_cache(cache),
            sides,
            drop=drop,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    render.print_pooling(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


Videos = Annotated[
    list[str] | None, typer.Option("--ids", help="Only these videos: --ids=ID,ID or --ids @FILE.")
]
FreeAtOnce = Annotated[
    bool,
    typer.Option(
        "--free-at-once", help="Remove what is replaced at once; nobody else may be reading."
    ),
]


@app.command("pack")
def cache_pack(
    cache: CacheHere,
    size: Annotated[str, typer.Option(metavar="SIZE", help="Of a pack, such as 200MB.")] = "200MB",
    ids: Videos = None,
    free_at_once: FreeAtOnce = False,
    as_json: Json = False,
) -> None:
    """Move the files of videos into a few large ones, for places that count files.

    Every reader of ours reads them as before; other Zarr readers need `vis4mer cache unpack` first.
    The same command again continues.

    Example: vis4mer cache pack lvu.zarr --size 200MB
    """
    from ..store.cache import open_cache
    from ..store.packing import pack_cache

    size_bytes = parse_bytes(size, option="--size")
    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = pack_cache(
            open_cache(cache),
            size_bytes=size_bytes,
            ids=parse_names(ids) or None,
            free_at_once=free_at_once,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    _end_packing(summary, as_json=as_json)


@app.command("unpack")
def cache_unpack(
    cache: CacheHere,
    ids: Videos = None,
    free_at_once: FreeAtOnce = False,
    as_json: Json = False,
) -> None:
    """Give every object of packed videos a file of its own again.

    Example: vis4mer cache unpack lvu.zarr
    """
    from ..store.cache import open_cache
    from ..store.packing import unpack_cache

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = unpack_cache(
            open_cache(cache),
            ids=parse_names(ids) or None,
            free_at_once=free_at_once,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    _end_packing(summary, as_json=as_json)


def _end_packing(summary: PackSummary, *, as_json: bool) -> None:
    render.print_packing(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command("import")
def cache_import(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help=".npy .npz .pt .h5 .safetensors, or folders."),
    ],
    cache: Annotated[str, typer.Option(help="The feature cache to make or to continue.")],
    layout: Annotated[
        Literal["plain", "vis4mer"],
        typer.Option(help="vis4mer: ID.npy of (T, 197, width), CLS first, as it was released."),
    ] = "plain",
    fps: Annotated[
        float | None,
        typer.Option(help="Frames taken from a second of video (default: as exported, else 1)."),
    ] = None,
    prefix: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens before the patches (default: 0 or 1, what fits)."),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="HxW of the patches (default: the square that fits).")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored tokens.")] = "float16",
    backbone: Annotated[
        str | None,
        typer.Option(help="What is said to have made them (default: as exported, else unknown)."),
    ] = None,
    name_by: Annotated[
        Literal["auto", "file", "array"],
        typer.Option(help="What names a video; auto is the array's name where there are several."),
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=0, help="Import this many at most.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Import again what is there already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take tokens that were made elsewhere into a cache. The same command again continues.

    Arrays are (T, D), (T, tokens, D) or (T, h, w, D). Nothing is unpickled. Of an export of ours
    the rate, the layout of tokens and the backbone's name are taken over.

    Example: vis4mer cache import features/ --cache old.zarr --layout vis4mer
    """
    from ..store.convert.importing import import_tokens

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = import_tokens(
            sources,
            cache=cache,
            layout=layout,
            fps=fps,
            prefix=prefix,
            grid=_parse_grid(grid),
            stored_dtype=dtype,
            backbone=backbone,
            name_by=name_by,
            limit=limit,
            overwrite=overwrite,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    render.print_import(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command("export")
def cache_export(
    cache: CachePath,
    to: Annotated[str, typer.Option(help="A folder to make, or an earlier export to continue.")],
    file_format: Annotated[
        Literal["npy", "h5", "safetensors"],
        typer.Option("--format", help="A file a video, or one HDF5 file (h5)."),
    ],
    tokens: Annotated[
        str | None, typer.Option(help="Token view, e.g. 14x14+cls or 7x7 (default: all).")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only videos of DATASET/TASK.")] = None,
    split: Annotated[Split | None, typer.Option(help="Only this split of --task.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option(help="Only these videos: --ids=ID,ID or --ids @FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write tokens as plain files, (T, tokens, D) a video. The same command again continues.

    Example: vis4mer cache export lvu.zarr --to features --format npy --tokens 14x14+cls
    """
    from ..store.cache import open_cache
    from ..store.convert.exporting import export_tokens

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = export_tokens(
            open_cache(cache),
            to,
            file_format=file_format,
            tokens=tokens,
            task=task,
            split=split,
            ids=parse_names(ids) or None,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    render.print_export(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _parse_grid(text: str | None) -> tuple[int, int] | None:
    """`14x14` as (14, 14). UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII)
    if match is None:
        raise UsageError(f"--grid {text}: expected HxW such as 14x14")
    return int(match[1]), int(match[2])
