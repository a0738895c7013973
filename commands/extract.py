"""Stage 1: `vis4mer extract` and `vis4mer label`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import console
from ..render import extract as render
from ..store.errors import UsageError
from .shared import CachePath, Device, Json, stop_on_sigterm

Dtype = Literal["float16", "bfloat16", "int8"]
Precision = Literal["auto", "float32", "bfloat16"]
ReaderName = Literal["pyav", "decord", "torchcodec"]
Dataset = Annotated[
    Path | None, typer.Option(help="A CSV of labels with the columns path,label,split.")
]
Videos = Annotated[
    Path | None, typer.Option(help="The folder that the CSV's paths are below (default: its own).")
]


def parse_sides(text: str) -> tuple[int, ...]:
    """`7,4` as (7, 4). UsageError for anything else."""
    try:
        return tuple(int(side) for side in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--grids {text}: expected whole numbers such as 7 or 7,4") from error


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
    from ..extract.request import extract_videos, plan_videos

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


def label(
    cache: CachePath,
    dataset: Annotated[Path, typer.Option(help="A CSV with the columns path,label,split.")],
    videos: Videos = None,
    as_json: Json = False,
) -> None:
    """Add labels to a cache, or refresh them, without touching a video.

    Example: vis4mer label my.zarr --dataset videos.csv
    """
    from ..extract.request import label_cache

    table, missing = label_cache(cache, dataset, videos=videos)
    render.print_labels(cache, table, missing, as_json=as_json)
