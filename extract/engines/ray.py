"""Extraction on a Ray cluster: workers that hold the backbone, on as many machines as there are.

This process deals videos (ids and paths) to the workers and hears of each what became of it; files
are read and tokens are written where the workers are. A worker that dies is replaced, with what it
had in hand dealt again, and machines that join get workers too. What keeps a video from being done
twice is its claim in the store, so other engines may fill the same cache at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...store.cache import Cache, open_cache
from ...store.errors import UsageError
from ...store.files import create_exclusive
from ..annotations.finding import Request
from ..backbones.weights import random_seed
from ..planning.plan import largest_first
from ..request import (
    ExtractRequest,
    OnNote,
    find_videos,
    require_same_settings,
    save_labels,
    with_request,
)
from ..sources import VideoSource
from ..stages.progress import ExtractSummary
from ..stages.sharing import leave_catalog
from .actor import Post
from .base import EngineOptions, OnProgress, refuse_profile
from .cluster import joined_cluster, nodes_of
from .crew import Crew
from .places import Need, need_of

MAX_FOLDERS = 32  # of videos, that a worker looks for before it begins


def extract_on_ray(
    asked: ExtractRequest,
    *,
    options: EngineOptions,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> ExtractSummary:
    """Extract on the cluster at `options.address` (see `joined_cluster`), with a worker for each of
    its GPUs; `options.processes` is how many at most, on the CPU where there is no GPU.

    Cache, videos and weights must be at the same paths on every machine, and this package
    installed. Raises the trouble of the workers when none of them can begin, or when the cache
    cannot be written.
    """
    options.refuse("ray", "devices")
    refuse_profile(asked, "ray")
    asked = _everywhere(asked)
    request = find_videos(asked)
    tell = on_note or (lambda _: None)
    for note in request.notes:
        tell(note)
    require_same_settings(asked)
    videos = _in_order(request, asked)
    labels: list[str] = []

    def label(cache: Cache) -> None:
        labels.extend(save_labels(request, cache))
        for note in labels:
            tell(note)

    with joined_cluster(options.address) as ray, _mark_beside(asked.cache_path) as mark:
        need = need_of(
            nodes_of(ray), device=asked.device, processes=options.processes, workers=asked.workers
        )
        post = _post(asked, need, mark, videos)
        crew = Crew(ray, post, need, videos, limit=asked.limit, tell=tell, on_cache=label)
        with crew:
            while crew.has_work:
                crew.look(stop=stop is not None and stop.is_set())
                if progress is not None:
                    progress(crew.progress())
    summary = crew.summary()
    cache = open_cache(asked.cache_path)
    leave_catalog(cache)
    return with_request(summary, request, cache, [*labels, *crew.notes])


def _everywhere(asked: ExtractRequest) -> ExtractRequest:
    """The request with paths that mean the same on every machine. UsageError for options that have
    no meaning there."""
    if asked.device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device {asked.device}: with --engine ray each worker has the GPU that Ray gives "
            "it; expected auto, cpu or cuda"
        )
    is_file = asked.weights != "hub" and random_seed(asked.weights) is None
    return replace(
        asked,
        cache=asked.cache_path.absolute(),
        weights=str(Path(asked.weights).absolute()) if is_file else asked.weights,
    )


def _in_order(request: Request, asked: ExtractRequest) -> list[VideoSource]:
    """The videos by absolute path: largest first, but a worker's own share before the others', and
    with a limit as they were given."""
    videos = [replace(video, path=video.path.absolute()) for video in request.videos]
    share = asked.share
    parts = [videos] if share is None else share.split(videos)
    sort: Callable[[Sequence[VideoSource]], list[VideoSource]]
    sort = largest_first if asked.limit is None else list
    return [video for part in parts for video in sort(part)]


def _post(asked: ExtractRequest, need: Need, mark: Path, videos: Sequence[VideoSource]) -> Post:
    """What every worker is told. Of the dataset it needs no more than its settings."""
    own = replace(
        asked,
        inputs=(),
        dataset=None,
        annotations=None,
        videos=None,
        tasks=(),
        split=None,
        ids=(),
        backbone=asked.backbone_name,
        segments=asked.num_segments,
        device="auto" if need.gpus else "cpu",
        share=None,
        limit=None,
    )
    folders = dict.fromkeys(video.path.parent for video in videos)
    seen = [folder for folder in itertools.islice(folders, MAX_FOLDERS) if folder.is_dir()]
    return Post(asked=own, mark=mark, folders=tuple(seen))


@contextlib.contextmanager
def _mark_beside(cache: Path) -> Iterator[Path]:
    """A file by which a worker knows that it sees the folder of the cache, and no other one of the
    same name: it would make a cache of its own there."""
    mark = cache.with_name(f".{cache.name[:80]}.{secrets.token_hex(8)}.tmp")
    create_exclusive(mark, b"")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
