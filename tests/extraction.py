"""A reader of tiny text files and a backbone whose tokens anybody can compute, for the pipeline.

A "video" is a JSON file: `frames` (how many), `start` (the first frame's grey level, one more each
frame), and what goes wrong: `open` or `decode` (a reason), `decode_at` (the frame before which it
does), `crash` (a Python exception by name), `damaged` (damaged frames).
"""

from __future__ import annotations

import builtins
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from vis4mer.extract.backbones.loading import Backbone, cache_spec
from vis4mer.extract.backbones.weights import hash_weights
from vis4mer.extract.readers.base import FrameBatch, VideoError, VideoInfo
from vis4mer.extract.sampling import Every, Moments
from vis4mer.extract.sources import VideoSource, resolve_sources
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.spec import Preprocess

SIZE, GRID, DIM = 8, 2, 3
PLAIN = Preprocess(size=(SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1))


def write_video(folder: Path, name: str, frames: int, **trouble: Any) -> Path:
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "frames": frames, **trouble}))
    return path


def videos(folder: Path) -> list[VideoSource]:
    return resolve_sources([str(folder)])


class FakeStream:
    method = "sequential"

    def __init__(self, path: Path, about: dict[str, Any], on_frame: Callable[[], None]) -> None:
        self._path = path
        self._about = about
        self._on_frame = on_frame
        self.damaged_frames = 0
        self.closed = False
        self.info = VideoInfo(
            duration_seconds=float(about["frames"]),
            first_pts_seconds=0.0,
            num_targets=about["frames"] or None,
            width=SIZE,
            height=SIZE,
            codec="grey",
            container="json",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[FrameBatch]:
        start, step = self._about.get("start", 0), 5
        for first in range(0, self._about["frames"], step):
            count = min(step, self._about["frames"] - first)
            if first + count > self._about.get("decode_at", 0):
                self._maybe_fail()
            levels = (start + first + np.arange(count)) % 256
            frames = np.broadcast_to(levels[:, None, None, None], (count, SIZE, SIZE, 3))
            for _ in range(count):
                self._on_frame()
            yield FrameBatch(
                frames=frames.astype(np.uint8),
                pts_seconds=np.arange(first, first + count, dtype=np.float64),
                index=first,
            )
        self.damaged_frames = self._about.get("damaged", 0)

    def _maybe_fail(self) -> None:
        if "decode" in self._about:
            raise VideoError(self._path, self._about["decode"])
        if "crash" in self._about:
            raise getattr(builtins, self._about["crash"])("told to")


class FakeReader:
    """Gives every frame there is, and checks that it is asked for `moments`."""

    name = "pyav"
    version = "test"

    def __init__(
        self, on_frame: Callable[[], None] | None = None, *, moments: Moments | None = None
    ) -> None:
        self.on_frame = on_frame or (lambda: None)
        self.moments = moments or Every(fps=1)
        self.streams: list[FakeStream] = []

    def open(self, path: Path, *, moments: Moments, max_pixels: int = 0) -> FakeStream:
        assert moments == self.moments
        assert not max_pixels
        about = json.loads(path.read_text())
        if "open" in about:
            raise VideoError(path, about["open"])
        self.streams.append(FakeStream(path, about, self.on_frame))
        return self.streams[-1]


class GreyTokens(torch.nn.Module):
    """Tokens of a uniform frame of level v: token s, channel d is v + s + d / 2 (v = 255 · pixel).

    A level in `poison` raises (or gives what is asked for); `batches` has the levels of each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.poison: dict[int, float | BaseException] = {}
        self.batches: list[list[int]] = []
        self.on_batch: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        levels = (pixels[:, 0, 0, 0] * 255).round()  # B
        with self._lock:
            self.batches.append([int(level) for level in levels])
        self.on_batch()
        place = torch.arange(1 + GRID**2)[:, None] + torch.arange(DIM)[None] / 2  # S D
        tokens = levels[:, None, None] * self.weight + place  # B S D
        for level, what in self.poison.items():
            chosen = levels == level
            if chosen.any():
                if isinstance(what, BaseException):
                    raise what
                tokens[chosen] = what
        return tokens


def expected_tokens(frames: int, start: int = 0) -> np.ndarray:
    """(T, 1 + GRID², DIM) by the definition in GreyTokens' docstring, prefix first."""
    levels = (start + np.arange(frames)) % 256
    place = np.arange(1 + GRID**2)[:, None] + np.arange(DIM)[None] / 2
    return levels[:, None, None] + place


def grey_backbone(weight: float = 1.0) -> Backbone:
    module = GreyTokens().requires_grad_(False)
    module.weight.fill_(weight)
    return Backbone(
        name="grey",
        module=module,
        grid=(GRID, GRID),
        num_prefix=1,
        dim=DIM,
        preprocess=PLAIN,
        weights="random:0",
        weights_sha256=hash_weights(module),
        device=torch.device("cpu"),
        compute_dtype="float32",
    )


def grey_cache(path: Path, backbone: Backbone | None = None, **options: Any) -> Cache:
    return create_cache(path, cache_spec(backbone or grey_backbone(), **options))


def attempts(cache: Cache) -> list[Path]:
    """Directories of attempts on the disk, committed or not."""
    return sorted(path for path in (cache.path / "videos").glob("*/*") if path.is_dir())


def assert_entry(cache: Cache, video_id: str, frames: int, start: int = 0) -> None:
    tokens = expected_tokens(frames, start)
    assert np.array_equal(cache.read(video_id, "prefix"), tokens[:, :1])
    assert np.array_equal(cache.read(video_id, "patch"), tokens[:, 1:])
    assert cache.record(video_id).pts_seconds == tuple(map(float, range(frames)))
