"""`vis4mer cache status`: who is doing what in a cache."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ..render import status as render
from .cache import app
from .shared import CacheHere, Json


@app.command("status")
def cache_status(
    cache: CacheHere,
    watch: Annotated[
        float | None,
        typer.Option(min=1, help="Look again every so many seconds, until Ctrl-C."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What is done, and who is at which video. Writes nothing, and reads no record.

    Whether a worker on another machine still lives shows only over time: with --watch 30.

    Example: vis4mer cache status lvu.zarr --watch 30
    """
    from ..store.cache import open_cache
    from ..store.status import StatusWatch

    watching = StatusWatch(open_cache(cache))
    render.print_status(watching.look(), as_json=as_json)
    try:
        while watch is not None:
            time.sleep(watch)
            render.print_status(watching.look(), as_json=as_json)
    except KeyboardInterrupt:  # how watching ends
        pass
