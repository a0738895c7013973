"""`vis4mer report`: the results of many runs as one table, in files and as a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..render import report as render
from ..store.errors import UsageError
from .shared import Json


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS…", help="Run directories, or folders to search for them."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write report.md, .tex, .csv, .html and figures.csv into this folder."),
    ] = None,
    html: Annotated[bool, typer.Option(help="With --out, write the HTML page too.")] = True,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos, whose frames the page then shows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The runs' test figures, mean ± std over seeds, beside the floors and published figures.

    Runs that differ in more than their seed stand in rows of their own.

    Example: vis4mer report runs --out report --videos movies
    """
    from ..both.report_page import report_page
    from ..decode.report.formats import write_files
    from ..decode.report.table import build_report

    if videos is not None and (out is None or not html):
        raise UsageError(f"--videos {videos}: frames are shown on the HTML page; add --out DIR")
    built = build_report(runs)
    page = None
    if out is not None and html:
        with console.Progress() as show:
            page = report_page(built, videos=videos, on_video=partial(render.show_stills, show))
    written = [] if out is None else write_files(built, out, page=page.html if page else None)
    render.print_report(built, written, page.notes if page else [], as_json=as_json)
