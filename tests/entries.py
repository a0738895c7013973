"""Entries of known tokens, and the ways to find and to hurt their files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.files import canonical_json, seal
from vis4mer.store.records import EntryRecord, SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling

SOURCE = SourceRecord(name="videos/clip.mp4", size=1000, mtime_ns=123, sha256="ab" * 32)


def make_spec(**changes) -> CacheSpec:
    fields = {
        "backbone": "vit_test",
        "weights": "random:0",
        "weights_sha256": "0" * 64,
        "preprocess": Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        "sampling": Sampling(fps=1.0),
        "reader": "pyav",
        "grid": (4, 4),
        "num_prefix": 2,
        "dim": 8,
        "arrays": ("patch", "prefix"),
    }
    return CacheSpec(**{**fields, **changes})


def make_tokens(num_frames: int, *, spec: CacheSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 patch (T, h·w, D) and prefix (T, p, D) with channels of very different size."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.standard_normal(spec.dim)).astype("f4")  # D
    shapes = {"patch": spec.tokens_per_frame("patch"), "prefix": spec.num_prefix}
    return {
        name: (random.standard_normal((num_frames, tokens, spec.dim)) * sizes).astype("f4")
        for name, tokens in shapes.items()
    }


def write(cache: Cache, entry_id: str, tokens, *, piece: int = 100, overwrite=False) -> EntryRecord:
    """Commit an entry in pieces of some frames."""
    num_frames = len(tokens["patch"])
    with cache.write_entry(entry_id, source=SOURCE, overwrite=overwrite) as entry:
        for start in range(0, num_frames, piece):
            part = {name: values[start : start + piece] for name, values in tokens.items()}
            times = np.arange(start, start + len(part["patch"])) / cache.spec.sampling.fps
            entry.append(part, pts_seconds=times)
        return entry.commit(duration_seconds=num_frames / cache.spec.sampling.fps)


def one_entry(root: Path, *, num_frames: int = 10, entry_id: str = "clip.mp4", **changes) -> Cache:
    """A cache at root/c.zarr of one entry, opened afresh for reading."""
    cache = create_cache(root / "c.zarr", make_spec(**changes))
    write(cache, entry_id, make_tokens(num_frames, spec=cache.spec))
    cache.write_catalog()
    return open_cache(cache.path)


def shard(cache: Cache, entry_id: str, array: str = "patch", number: int = 0) -> Path:
    record = cache.record(entry_id)
    zeros = "/0" * (len(record.arrays[array].shape) - 1)
    return cache.path / record.folder / array / "c" / f"{number}{zeros}"


def record_file(cache: Cache, entry_id: str) -> Path:
    key = cache.record(entry_id).key
    return cache.path / "records" / key[-16:-14] / f"{key}.json"


def flip(path: Path, offset: int) -> None:
    """Flip one bit of one byte; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit_record(cache: Cache, entry_id: str, change) -> None:
    """Change a record as an attacker would: with a new, right checksum."""
    path = record_file(cache, entry_id)
    content = json.loads(path.read_bytes())
    del content["checksum"]
    path.write_bytes(seal(change(content) or content))


def edit_spec(cache: Cache, change, *, checksum: bool = True) -> None:
    """Change the spec in the root group, with or without a new checksum."""
    path = cache.path / "zarr.json"
    root = json.loads(path.read_bytes())
    about = root["attributes"]["vis4mer"]
    about = change(about) or about
    if checksum:
        del about["checksum"]
        about = json.loads(seal(about))
    root["attributes"]["vis4mer"] = about
    path.write_bytes(canonical_json(root))


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below `root` with its mode, size and time of change."""
    return {
        str(path.relative_to(root)): (stat.st_mode, stat.st_size, stat.st_mtime_ns)
        for path in sorted(root.rglob("*"))
        for stat in [path.lstat()]
    }


def attempts(cache: Cache) -> list[str]:
    """The attempts' directories, relative to the cache."""
    return sorted(
        path.relative_to(cache.path).as_posix()
        for path in (cache.path / "videos").glob("*/*")
        if path.is_dir()
    )


def age(path: Path, hours: float) -> None:
    """Make a file, or everything of an attempt, as old as that."""
    when = time.time() - hours * 3600
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        os.utime(each, (when, when))
