"""`vis4mer datasets …`: what is known by name, the audit before a long run, annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import console
from ..render import datasets as render
from .extract import ReaderName
from .shared import Json

app = typer.Typer()

PresetName = Literal["lvu", "breakfast", "coin"]


@app.callback(invoke_without_command=True)
def datasets(context: typer.Context, as_json: Json = False) -> None:
    """Datasets known by name; audit their files, fetch their annotations.

    Without a command: what each needs, and what of it is set up here.

    Example: vis4mer datasets
    """
    if context.invoked_subcommand is not None:
        return
    from ..extract.annotations.overview import describe_presets

    render.print_presets(describe_presets(), as_json=as_json)


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="lvu, breakfast, coin, or a CSV of labels.")],
    annotations: Annotated[
        Path | None, typer.Option(help="The preset's annotation files (else as configured).")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="The folder with the videos (else as configured).")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            help="Count videos shorter than these seconds (default: 60; none for breakfast, coin)."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only look whether files are there; open none.")
    ] = False,
    reader: Annotated[ReaderName, typer.Option(help="What opens the files.")] = "pyav",
    workers: Annotated[int | None, typer.Option(min=1, help="Files opened at once.")] = None,
    missing: Annotated[
        Path | None, typer.Option(help="Write a CSV of the videos that cannot be used.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Audit a dataset before a long run: files, lengths, classes, leaks.

    Every file is opened and its first frame decoded. Exit code 1 when no video can be used.

    Example: vis4mer datasets check lvu --annotations lvu_1.0 --videos videos --missing missing.csv
    """
    from ..extract.annotations.check import check_dataset, write_missing
    from ..extract.readers import get_reader

    with console.Progress() as show:
        audit = check_dataset(
            dataset,
            annotations=annotations,
            videos=videos,
            reader=None if quick else get_reader(reader),
            window_seconds=window,
            workers=workers,
            on_file=lambda done, total: show(f"opening {console.share(done, total)}"),
        )
    if missing is not None:
        write_missing(missing, audit)
    render.print_audit(audit, missing=missing, as_json=as_json)
    if audit.looked and not audit.usable:
        raise typer.Exit(1)


@app.command()
def fetch(
    dataset: Annotated[PresetName, typer.Argument(help="lvu, breakfast or coin.")],
    to: Annotated[Path, typer.Option(help="The folder to fill, made if needed.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Download again what is there already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download the annotation files of a dataset from their official places; never a video.

    Example: vis4mer datasets fetch lvu --to annotations
    """
    from ..extract.annotations.fetch import FetchError, fetch_annotations
    from ..extract.annotations.presets import PRESETS

    try:
        with console.Progress() as show:
            fetched = fetch_annotations(dataset, to, overwrite=overwrite, on_phase=show)
    except FetchError as error:
        for line in error.by_hand:
            console.print_note(line)
        raise
    render.print_fetched(fetched, PRESETS[dataset].read(to), as_json=as_json)
