"""Extracting videos of a cache again: to see whether the values are still the same, or to mend it.

    reencode_sample(open_cache("lvu.zarr"), 20, videos=["videos"])    # a wrong decoder shows here
    extract_again(cache, lost, videos=["videos"])                     # after a repair

A cache may be a colleague's: the files that it names are looked for only in the folders that the
caller gives, by name and by SHA-256; what it says of its backbone is used as `load_backbone_again`
says.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.cache import Cache, create_cache
from ..store.errors import UsageError
from ..store.records import SourceRecord
from ..store.spec import CacheSpec
from ..store.tasks import extent_of, video_of
from .compare import ReencodedVideo, compare_entries

if TYPE_CHECKING:
    from ..extract.backbones.loading import Backbone
    from ..extract.readers.base import Reader
    from ..extract.sources import VideoSource
    from ..extract.stages.progress import ExtractSummary

GROUP_VIDEOS = 8
"""So many videos' tokens are on the disk (in TMPDIR) at once, however many are compared."""

OnPhase = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ReencodeReport:
    """What became of a sample. missing: drawn, but not found in the folders given. failures: found
    and not to be read any more, with the reason."""

    tolerance: float
    seed: int
    videos: tuple[ReencodedVideo, ...]
    missing: tuple[str, ...]
    failures: Mapping[str, str]

    @property
    def differing(self) -> tuple[ReencodedVideo, ...]:
        return tuple(video for video in self.videos if not video.within(self.tolerance))

    @property
    def ok(self) -> bool:
        return not self.differing and not self.failures

    def to_json(self) -> dict[str, Any]:
        differing = [video.id for video in self.differing]
        return {"ok": self.ok, "differing": differing, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Reextracted:
    """What became of entries that were to be made again. missing: ids whose file is not there."""

    summary: ExtractSummary
    missing: tuple[str, ...]

    @property
    def undone(self) -> bool:
        """Whether some are not there still."""
        return bool(self.missing or self.summary.failures or self.summary.left)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.summary), "missing_files": list(self.missing)}


def default_tolerance(spec: CacheSpec) -> float:
    """The relative L2 distance of a frame up to which values count as the same.

    Another processor, driver or batch changes the last bits of what the backbone computes; another
    decoder, resize or frame changes far more (see docs/decisions.md for what was measured).
    """
    computed = 0.03 if spec.compute_dtype == "bfloat16" else 0.005
    stored = {"float16": 0.0, "bfloat16": 0.005, "int8": 0.01}[spec.stored_dtype]
    return max(computed, stored)


def reencode_sample(
    cache: Cache,
    count: int,
    *,
    videos: Sequence[str | Path],
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    on_phase: OnPhase | None = None,
) -> ReencodeReport:
    """Extract `count` videos again, drawn at random, with the cache's own settings, and compare.

    videos: folders where the files may be. backbone, weights: needed only for a plug-in or a
    weights file, as in `predict_videos`. tolerance: default `default_tolerance`. seed: of the draw.
    Videos that are not there are told and others drawn in their place. Pooled copies that were
    added later are not compared.

    Raises UsageError when none of them is there, when the tokens were imported or for a device that
    is not here, FingerprintError when the backbone is another one now.
    """
    from ..extract.readers import get_reader

    tell = on_phase or (lambda _: None)
    if count < 1:
        raise UsageError(f"a sample has at least 1 video, got {count}")
    loaded = _load(cache, backbone=backbone, weights=weights, device=device, tell=tell)
    reader = get_reader(cache.spec.reader)
    tell("looking for the videos")
    sources, missing = _drawn(cache, count, videos, seed=seed)
    if not sources:
        raise UsageError(
            f"no video of {cache.name} is in {', '.join(map(str, videos))} under its name and with "
            "its recorded SHA-256; give the folder with the videos as --videos"
        )
    compared: list[ReencodedVideo] = []
    failures: dict[str, str] = {}
    for start in range(0, len(sources), GROUP_VIDEOS):
        group = sources[start : start + GROUP_VIDEOS]
        tell(f"extracting videos {start + 1}–{start + len(group)} of {len(sources)} again")
        found, failed = _compare_group(cache, group, loaded, reader)
        compared += found
        failures |= failed
    return ReencodeReport(
        tolerance=default_tolerance(cache.spec) if tolerance is None else tolerance,
        seed=seed,
        videos=tuple(compared),
        missing=tuple(missing),
        failures=failures,
    )


def require_again(
    cache: Cache,
    *,
    videos: Sequence[str | Path],
    backbone: str | None = None,
    weights: str | None = None,
) -> None:
    """UsageError for what `extract_again` would refuse, before anything is loaded or let go."""
    from ..extract.backbones.again import require_named

    _Folders(videos)
    require_named(cache.spec, has=_has(cache), backbone=backbone, weights=weights)


def extract_again(
    cache: Cache,
    lost: Mapping[str, SourceRecord | None],
    *,
    videos: Sequence[str | Path],
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    stop: threading.Event | None = None,
    on_phase: OnPhase | None = None,
) -> Reextracted:
    """Make entries that a repair has let go again.

    lost: ids and the files that they were made from; of None any file of that name is taken. Other
    arguments and errors as for `reencode_sample`.
    """
    from ..extract.readers import get_reader
    from ..extract.stages.pipeline import fill_cache

    tell = on_phase or (lambda _: None)
    loaded = _load(cache, backbone=backbone, weights=weights, device=device, tell=tell)
    folders = _Folders(videos)
    found = {entry_id: folders.source(cache.spec, entry_id, lost[entry_id]) for entry_id in lost}
    sources = [source for source in found.values() if source is not None]
    tell(f"extracting {len(sources)} videos again")
    summary = fill_cache(
        sources, cache, loaded, get_reader(cache.spec.reader), retry_failed=True, stop=stop
    )
    missing = tuple(entry_id for entry_id, source in found.items() if source is None)
    return Reextracted(summary=summary, missing=missing)


def _load(
    cache: Cache, *, backbone: str | None, weights: str | None, device: str, tell: OnPhase
) -> Backbone:
    from ..extract.backbones.again import load_backbone_again

    tell("loading the backbone")
    return load_backbone_again(
        cache.spec,
        has=_has(cache),
        name=cache.name,
        backbone=backbone,
        weights=weights,
        device=device,
    )


def _has(cache: Cache) -> str:
    return f"{cache.name} holds tokens"


class _Folders:
    """The video files below some folders. UsageError for one that is not there, or for none."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        from ..extract.annotations.index import VideoIndex

        if not folders:
            raise UsageError("it is not said where the videos are; add --videos DIR")
        self._indices = [VideoIndex(folder) for folder in folders]

    def source(
        self, spec: CacheSpec, entry_id: str, recorded: SourceRecord | None
    ) -> VideoSource | None:
        """The file that an entry was made from, found by name and told by its SHA-256."""
        from ..extract.sources import VideoSource

        start, end = extent_of(entry_id) if spec.sampling.needs_extent else (None, None)
        for path in self._candidates(video_of(entry_id, spec.sampling), recorded):
            if recorded is None or _is_file(path, recorded):
                return VideoSource(
                    id=entry_id,
                    path=path,
                    name=str(path),
                    start_seconds=start,
                    end_seconds=end,
                )
        return None

    def _candidates(self, video_id: str, recorded: SourceRecord | None) -> Iterator[Path]:
        names = [video_id, *([Path(recorded.name).name] if recorded else [])]
        for index in self._indices:
            for name in dict.fromkeys(names):
                yield from index.candidates(name)


def _is_file(path: Path, recorded: SourceRecord) -> bool:
    from ..extract.planning.plan import SourceError, hash_file

    try:
        return path.stat().st_size == recorded.size and hash_file(path) == recorded.sha256
    except (OSError, SourceError):
        return False


def _drawn(
    cache: Cache, count: int, videos: Sequence[str | Path], *, seed: int
) -> tuple[list[VideoSource], list[str]]:
    """Videos drawn at random whose files are there, and those drawn before that are not."""
    folders, ids = _Folders(videos), cache.ids()
    sources: list[VideoSource] = []
    missing: list[str] = []
    for entry_id in random.Random(seed).sample(ids, len(ids)):
        if len(sources) == count:
            break
        source = folders.source(cache.spec, entry_id, cache.record(entry_id).source)
        if source is None:
            missing.append(entry_id)
        else:
            sources.append(source)
    return sources, missing


def _compare_group(
    cache: Cache, sources: Sequence[VideoSource], backbone: Backbone, reader: Reader
) -> tuple[list[ReencodedVideo], dict[str, str]]:
    """Extract some videos into a cache that is gone afterwards, and compare each."""
    from ..extract.stages.pipeline import fill_cache

    with tempfile.TemporaryDirectory(prefix="vis4mer-reencode-") as folder:
        again = create_cache(Path(folder) / "again.zarr", cache.spec)
        summary = fill_cache(sources, again, backbone, reader)
        failures = {failure.id: failure.reason for failure in summary.failures}
        done = [source.id for source in sources if source.id in again]
        return [compare_entries(cache, again, entry_id) for entry_id in done], failures
