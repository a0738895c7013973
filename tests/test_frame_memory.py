"""Full-resolution frames: one batch a reading thread, and no second copy of it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import extraction as ex
import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from vis4mer.extract.backbones.preprocess import resize_frames
from vis4mer.extract.readers.base import FrameBatch
from vis4mer.extract.sampling import Moments
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.spec import Preprocess

pytestmark = pytest.mark.timeout(120)


class LargeStream(ex.FakeStream):
    """Frames of four times the backbone's size, and which of its batches still exist."""

    def __iter__(self) -> Iterator[FrameBatch]:
        given: list[weakref.ref[np.ndarray]] = []
        for index in range(self._about["frames"]):
            self._on_frame()
            assert not [frames for frames in given if frames() is not None]
            frames = np.full((1, 4 * ex.SIZE, 4 * ex.SIZE, 3), index, dtype=np.uint8)  # T H W 3
            given.append(weakref.ref(frames))
            batch = FrameBatch(frames=frames, pts_seconds=np.array([float(index)]), index=index)
            del frames
            yield batch
            del batch


class LargeReader(ex.FakeReader):
    def open(self, path: Path, *, moments: Moments, max_pixels: int = 0) -> ex.FakeStream:
        assert moments == self.moments
        assert not max_pixels
        return LargeStream(path, json.loads(path.read_text()), self.on_frame)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_is_gone_before_the_next_one_is_decoded(tmp_path: Path, batch_size: int) -> None:
    ex.write_video(tmp_path / "v", "a", 20)
    cache = ex.grey_cache(tmp_path / "c.zarr")
    summary = fill_cache(
        ex.videos(tmp_path / "v"),
        cache,
        ex.grey_backbone(),
        LargeReader(),
        batch_size=batch_size,
        workers=1,
    )
    assert not summary.failures  # an assertion of the stream would be one
    ex.assert_entry(cache, "a.mp4", 20)


@pytest.mark.parametrize("resize", ["short-side", "squash"])
def test_resizing_makes_no_second_full_resolution_copy(resize: str) -> None:
    """All memory that torch ever takes in between, even if it were held at once, is less."""
    preprocess = Preprocess(
        size=(224, 224),
        resize=resize,  # type: ignore[arg-type]
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    frames = np.random.default_rng(0).integers(0, 256, (4, 720, 1280, 3), dtype=np.uint8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        pixels = resize_frames(frames, preprocess)
    taken = sum(max(0, event.cpu_memory_usage) for event in profiler.events())
    assert pixels.nbytes < taken < frames.nbytes / 2
    assert not np.shares_memory(pixels.permute(0, 2, 3, 1).numpy(), frames)
    assert pixels.dtype == torch.uint8
