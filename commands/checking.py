"""`vis4mer cache verify`, `digest`, `repair`, `diff` and `merge`: is it whole, is it the same?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import console
from ..render import checking as render
from ..store.errors import UsageError
from .cache import app
from .shared import EXIT_SOME_FAILED, CacheHere, CachePath, Device, Json, stop_on_sigterm

Videos = Annotated[
    list[Path] | None,
    typer.Option("--videos", metavar="DIR", help="A folder with the videos; may be repeated."),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="Needed again for a cache of a plug-in: module:function."),
]
Weights = Annotated[
    str | None, typer.Option(help="Needed again for a cache of a weights file: that file.")
]


@app.command("verify")
def cache_verify(
    cache: CachePath,
    full: Annotated[bool, typer.Option(help="Read every byte and check its checksum.")] = False,
    reencode: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Extract N random videos again and compare."),
    ] = None,
    videos: Videos = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Relative distance of a frame's values that counts as the same (default: 0.005, "
            "or 0.03 of bfloat16).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which videos are drawn.")] = 0,
    backbone: Backbone = None,
    weights: Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check that everything the records list is there and sound. Exit code 1 if not.

    With --reencode, also that the same videos still give the same values: another decoder,
    backbone or driver shows there.

    Example: vis4mer cache verify lvu.zarr --full

    Example: vis4mer cache verify lvu.zarr --reencode 20 --videos videos
    """
    from ..store.cache import open_cache
    from ..store.verify import verify_cache

    if reencode is None:
        _refuse_without_reencode(
            {
                "--videos": bool(videos),
                "--tolerance": tolerance is not None,
                "--seed": seed != 0,
                "--backbone": backbone is not None,
                "--weights": weights is not None,
                "--device": device != "auto",
            }
        )
    opened = open_cache(cache)
    with console.Progress() as show:
        report = verify_cache(
            opened,
            "full" if full else "quick",
            progress=lambda done, total: show(f"verifying {console.share(done, total)}"),
        )
        again = None
        if reencode is not None and report.ok:
            from ..both.reencode import reencode_sample

            again = reencode_sample(
                opened,
                reencode,
                videos=videos or (),
                backbone=backbone,
                weights=weights,
                device=device,
                tolerance=tolerance,
                seed=seed,
                on_phase=show,
            )
    skipped = reencode is not None and again is None
    render.print_verification(
        report, again, to_mend=opened.to_mend, skipped=skipped, as_json=as_json
    )
    if not report.ok or not (again is None or again.ok):
        raise typer.Exit(1)


def _refuse_without_reencode(options: Mapping[str, bool]) -> None:
    """UsageError for options, and whether they are given, that only a comparison takes."""
    unused = [option for option, is_given in options.items() if is_given]
    if unused:
        raise UsageError(f"{', '.join(unused)}: only for --reencode N; leave it out, or add that")


@app.command("digest")
def cache_digest(cache: CachePath, as_json: Json = False) -> None:
    """One word for all values in a cache: two people who read the same word hold the same thing.

    Also one for each array, which a copy of some arrays shares, and for each task table.

    Example: vis4mer cache digest lvu.zarr
    """
    from ..store.cache import open_cache
    from ..store.digest import digest_cache

    render.print_digest(digest_cache(open_cache(cache)), as_json=as_json)


@app.command("repair")
def cache_repair(
    cache: CacheHere,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="CACHE", help="A cache with the same values; may be repeated."
        ),
    ] = None,
    videos: Videos = None,
    backbone: Backbone = None,
    weights: Weights = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Mend what is damaged: from a sound copy, or by letting go of it and of nothing else.

    What is let go is extracted again at once with --videos, or by the next `vis4mer extract`.
    Exit code 3 when something is still to be extracted or was left as it is.

    Example: vis4mer cache repair lvu.zarr --from /mnt/copy/lvu.zarr --videos videos
    """
    from ..both.reencode import extract_again, require_again
    from ..store.cache import open_cache
    from ..store.mending.lost_spec import open_to_repair
    from ..store.repair import repair_cache

    mirrors = [open_cache(path) for path in mirror or ()]
    opened = open_to_repair(cache, mirrors)
    if videos:
        require_again(opened, videos=videos, backbone=backbone, weights=weights)
    with console.Progress() as show:  # a repair that is killed has lost nothing
        report = repair_cache(
            opened,
            mirrors=mirrors,
            dry_run=dry_run,
            progress=lambda done, total: show(f"verifying {console.share(done, total)}"),
        )
        lost = {step.id: step.source for step in report.dropped if step.id is not None}
        again = None
        if videos and lost and not dry_run:
            opened.refresh()
            with stop_on_sigterm() as stop:
                again = extract_again(
                    opened,
                    lost,
                    videos=videos,
                    backbone=backbone,
                    weights=weights,
                    device=device,
                    stop=stop,
                    on_phase=show,
                )
    render.print_repair(report, again, cache=cache, as_json=as_json)
    made_again = again is not None and not again.undone and len(lost) == len(report.dropped)
    left = any(step.deed == "left" for step in report.steps)
    if report.exit_code and (left or not made_again):
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command("diff")
def cache_diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A feature cache.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: Json = False,
) -> None:
    """In what two caches differ: settings, videos, values, times, labels. Exit code 1 if they do.

    Compares what the records say of the values; `vis4mer cache verify --full` checks those.

    Example: vis4mer cache diff mine.zarr yours.zarr
    """
    from ..store.cache import open_cache
    from ..store.diff import diff_caches

    found = diff_caches(open_cache(a), open_cache(b))
    render.print_diff(found, a, b, as_json=as_json)
    if not found.equal:
        raise typer.Exit(1)


@app.command("merge")
def cache_merge(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A cache to make or to fill.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE…", help="Caches to take over.")],
    prefer: Annotated[
        Literal["source", "target"] | None,
        typer.Option(help="Whose values stand where both hold other ones (default: show them)."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy files also where a second name would do.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Bring caches of the same settings together. The same command again continues.

    Sources are only read. A video that both hold with other values is shown and left: exit code 3,
    as for what cannot be read.

    Example: vis4mer cache merge all.zarr mine.zarr yours.zarr
    """
    from ..store.cache import open_cache
    from ..store.merge import merge_caches

    with console.Progress() as show, stop_on_sigterm() as stop:
        summary = merge_caches(
            target,
            [open_cache(source) for source in sources],
            prefer=prefer,
            link=not copy,
            dry_run=dry_run,
            stop=stop,
            progress=lambda done, total, name: show(f"{console.share(done, total)}  {name}"),
        )
    render.print_merge(summary, as_json=as_json)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)
