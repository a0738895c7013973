"""Stage 1: `vis4mer extract` and `vis4mer label`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import console
from ..render import extract as render
from ..render import plan as plan_render
from ..store.errors import UsageError
from .shared import (
    CacheHere,
    Device,
    Json,
    Protocol,
    Split,
    parse_names,
    parse_sides,
    stop_on_sigterm,
)

if TYPE_CHECKING:
    from ..extract.planning.share import Share

Dtype = Literal["float16", "bfloat16", "int8"]
Precision = Literal["auto", "float32", "bfloat16"]
ReaderName = Literal["pyav", "decord", "torchcodec"]
EngineName = Literal["inline", "local", "ray"]
DATASET_HELP = "lvu, breakfast, coin, or a CSV of labels with the columns path,label,split."
Annotations = Annotated[
    Path | None, typer.Option(help="Annotation files of lvu, breakfast or coin.")
]
Videos = Annotated[
    Path | None,
    typer.Option(help="The folder with the dataset's videos (of a CSV, by default its own)."),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="Only these tasks, e.g. relationship,scene.")
]


def extract(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIDEO…]", help="Files, folders, globs, @LISTS, or one CSV."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="The feature cache to make or to continue (default: lvu.zarr for lvu)."),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help=DATASET_HELP)] = None,
    annotations: Annotations = None,
    videos: Videos = None,
    task: Tasks = None,
    split: Annotated[
        Split | None, typer.Option(help="Only the videos of this split; labels stay whole.")
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(help="Only these videos: --ids=ID,ID or --ids @FILE; labels stay whole."),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(help="How frames are chosen and prepared; official repeats the paper's code."),
    ] = "clean",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="A timm name, with @SIZE for another input size, swin3d_b and the like, or "
            "module:function (default: vit_large_patch16_224.augreg_in21k; swin3d_b for "
            "breakfast and coin)."
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="hub, a file, or random:SEED.")] = "hub",
    fps: Annotated[
        float | None, typer.Option(help="Frames taken from a second of video (default: 1).")
    ] = None,
    segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Equal parts of each video instead, a frame or a clip each (default: 64 for "
            "breakfast and coin).",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored tokens.")] = "float16",
    grids: Annotated[
        str, typer.Option(help="Sides of pooled copies to keep beside the patches, e.g. 7 or 7,4.")
    ] = "",
    full_grid: Annotated[
        bool,
        typer.Option(
            "--full-grid/--no-full-grid", help="Keep the patches, or the --grids copies alone."
        ),
    ] = True,
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
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Begin with the share of worker I of N, e.g. 3/20, or `slurm` for this task of an "
            "array; then help with what the others have not begun.",
        ),
    ] = None,
    help_others: Annotated[
        bool,
        typer.Option("--help-others/--no-help-others", help="With --worker: whether to help."),
    ] = True,
    engine: Annotated[
        EngineName,
        typer.Option(help="This process, a process for every GPU here, or a Ray cluster."),
    ] = "inline",
    devices: Annotated[
        str | None,
        typer.Option(help="With --engine local: these, e.g. 0,1 (default: all GPUs)."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many: with --engine local on the CPU, with ray of all there could be."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray: auto, the cluster that this machine is in (default); local; "
            "HOST:PORT or ray://HOST:PORT."
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Try torch.compile on the backbone: minutes first, then the same tokens up to "
            "rounding.",
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write what every thread did when, for ui.perfetto.dev, and say what sets the "
            "pace.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and what it takes.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="With --dry-run, try the backbone and some videos for hours."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a frozen backbone over videos and cache its tokens. The same command again continues.

    Any number of processes, on any number of machines, may run it on one cache at the same time:
    each video is encoded once. Exit code 0 also while others hold some videos, 3 when some failed,
    1 after a stop.

    A known dataset's folders may also stand in the environment (VIS4MER_LVU_ANNOTATIONS,
    VIS4MER_LVU_VIDEOS) or in vis4mer.toml, so that `vis4mer extract --dataset lvu` is enough.

    Example: vis4mer extract videos.csv --cache my.zarr --backbone vit_small_patch16_224.augreg_in1k

    Example: vis4mer extract --dataset lvu --annotations lvu_1.0 --videos videos --task relationship
    """
    from ..extract.engines.base import EngineOptions, engine_named
    from ..extract.request import ExtractRequest, plan_videos

    asked = ExtractRequest(
        inputs=inputs or [],
        cache=cache,
        dataset=dataset,
        annotations=annotations,
        videos=videos,
        tasks=parse_names(task),
        split=split,
        ids=parse_names(ids),
        protocol=protocol,
        backbone=backbone,
        weights=weights,
        fps=fps,
        segments=segments,
        stored_dtype=dtype,
        grids=parse_sides(grids),
        full_grid=full_grid,
        reader=reader,
        device=device,
        compute_dtype=None if precision == "auto" else precision,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        overwrite=overwrite,
        retry_failed=retry_failed,
        share=_share(worker, helps=help_others),
        compiled=compiled,
        profile=profile,
    )
    options = EngineOptions(devices=_devices(devices), processes=processes, address=address)
    if dry_run and profile is not None:
        raise UsageError("--profile: a dry run has no steps to record; leave one of them out")
    if dry_run:
        with console.Progress() as show:
            show("looking at the videos" + (" and trying the backbone" if probe else ""))
            plan = plan_videos(asked, probe=probe)
        plan_render.print_plan(plan, as_json=as_json)
        return
    with console.Progress() as show, stop_on_sigterm() as stop:
        show(f"loading the backbone (weights: {weights})")
        summary = engine_named(engine)(
            asked,
            options=options,
            stop=stop,
            progress=partial(render.show_extraction, show),
            on_note=console.print_note,
        )
    render.print_extraction(summary, cache=str(asked.cache_path), as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _share(worker: str | None, *, helps: bool) -> Share | None:
    from ..extract.planning.share import parse_share

    if worker is not None:
        return parse_share(worker, helps=helps)
    if not helps:
        raise UsageError("--no-help-others: whom not to help follows from --worker, e.g. 3/20")
    return None


def _devices(text: str | None) -> tuple[str, ...]:
    """`0,1` as ("cuda:0", "cuda:1"); other names as they are."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)


def label(
    cache: CacheHere,
    dataset: Annotated[Path, typer.Option(help=DATASET_HELP)],
    annotations: Annotations = None,
    videos: Videos = None,
    task: Tasks = None,
    as_json: Json = False,
) -> None:
    """Add labels to a cache, or refresh them, without touching a video.

    Example: vis4mer label my.zarr --dataset videos.csv

    Example: vis4mer label lvu.zarr --dataset lvu --annotations lvu_1.0 --task scene
    """
    from ..extract.annotations.labelling import label_cache

    result = label_cache(
        cache, dataset, annotations=annotations, videos=videos, tasks=parse_names(task)
    )
    render.print_labels(cache, result, as_json=as_json)
