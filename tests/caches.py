"""Small caches of random tokens, made in a moment, for whatever needs one to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling
from vis4mer.store.tasks import TaskKind, TaskRow, TaskTable

SPLIT_CYCLE = ("train", "train", "val", "test")


def make_spec(*, grid=(2, 2), dim=16, num_prefix=1, fps=1.0, **fields) -> CacheSpec:
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return CacheSpec(
        backbone="random",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=preprocess,
        sampling=Sampling(fps=fps),
        reader="none",
        grid=grid,
        num_prefix=num_prefix,
        dim=dim,
        **fields,
    )


def write_tokens(cache: Cache, entry_id: str, patch, prefix=None, *, pts_seconds=None) -> None:
    """Commit one entry: patch (T, h·w, D), prefix (T, p, D) where the spec has prefix tokens.

    pts_seconds: (T,), default k / fps.
    """
    spec = cache.spec
    frames = len(patch)
    if prefix is None:
        prefix = np.asarray(patch).mean(axis=1, keepdims=True).repeat(spec.num_prefix, axis=1)
    arrays = {"patch": patch, "prefix": prefix} if spec.num_prefix else {"patch": patch}
    source = SourceRecord(name=entry_id, size=1, mtime_ns=1, sha256="0" * 64)
    with cache.write_entry(entry_id, source=source) as entry:
        times = np.arange(frames) / spec.sampling.fps if pts_seconds is None else pts_seconds
        entry.append(arrays, pts_seconds=times)
        entry.commit(duration_seconds=frames / spec.sampling.fps, damaged_frames=0, provenance={})


def make_cache(
    path: Path,
    *,
    num_videos: int = 8,
    frames: int | Sequence[int] = 8,
    grid: tuple[int, int] = (2, 2),
    dim: int = 16,
    labels: Sequence[float] | None = None,
    num_classes: int = 2,
    kind: TaskKind = "classification",
    splits: Sequence[str] | None = None,
    num_prefix: int = 1,
    fps: float = 1.0,
    signal: float = 0.0,
    seed: int = 0,
) -> Cache:
    """A cache at `path / "tokens.zarr"` with entries v0 … and the task `toy/label`.

    frames: of every video, or one number a video. labels: one a video, default i mod num_classes.
    splits: one a video, default train, train, val, test in turn. signal: added to token dimension 0
    for every unit of the label (scaled to ±), so that there is something to learn.
    """
    spec = make_spec(grid=grid, dim=dim, num_prefix=num_prefix, fps=fps)
    cache = create_cache(Path(path) / "tokens.zarr", spec)
    lengths = [frames] * num_videos if isinstance(frames, int) else list(frames)
    chosen = [i % num_classes for i in range(num_videos)] if labels is None else list(labels)
    parts = [SPLIT_CYCLE[i // num_classes % 4] for i in range(num_videos)]
    parts = parts if splits is None else list(splits)
    random = np.random.default_rng(seed)
    rows = []
    for i in range(num_videos):
        patch = random.standard_normal((lengths[i], grid[0] * grid[1], dim))
        patch[..., 0] += signal * (2 * chosen[i] / max(1, num_classes - 1) - 1)
        write_tokens(cache, f"v{i}", patch.astype(np.float16))
        rows.append(TaskRow(id=f"v{i}", split=parts[i], label=chosen[i]))
    names = tuple(f"class{i}" for i in range(num_classes)) if kind == "classification" else ()
    cache.save_task(
        TaskTable(dataset="toy", task="label", kind=kind, classes=names, rows=tuple(rows))
    )
    cache.write_catalog()
    return cache
