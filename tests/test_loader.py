"""What reaches a decoder equals what lies in the cache, whichever way it was read."""

import threading

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec
from vis4mer.decode.data.ahead import read_ahead
from vis4mer.decode.data.clips import Clip, collate, pool_to_grid
from vis4mer.decode.data.loader import TrainLoader, epoch_draws
from vis4mer.decode.data.plan import Stretch, WindowPlan, split_samples
from vis4mer.decode.data.timelines import Timelines
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.views import pool_grid
from vis4mer.store.windows import Window

CPU = torch.device("cpu")


def whole(cache, entry_id, grid=(2, 2)):
    """All patch tokens of an entry, float32 (T, h, w, D), read plainly."""
    tokens = cache.read(entry_id, "patch").astype(np.float32)
    return tokens.reshape(len(tokens), *grid, -1)


def plan_of(cache, tokens=None, seconds=4.0):
    return WindowPlan.of(cache.spec, tokens=tokens, window_seconds=seconds)


# Plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "14x14"),
        ({"arrays": ("grid7", "grid3", "prefix")}, "7x7"),
        ({"arrays": ("prefix",)}, "cls"),
    ],
)
def test_the_default_view_is_the_largest_grid_and_every_frame(fields, expected):
    spec = make_spec(grid=(14, 14), fps=2.0, **fields)
    plan = WindowPlan.of(spec, tokens=None, window_seconds=60)
    assert str(plan.view) == expected
    assert (plan.length, plan.shape.frames) == (120, 120)


def test_a_view_of_fewer_frames_keeps_an_even_stride():
    plan = WindowPlan.of(make_spec(), tokens="3x1x1+cls", window_seconds=6)
    assert (plan.length, plan.shape.frames, plan.shape.num_prefix) == (6, 3, 1)
    assert plan.frames(Window(start=10, stop=16)) == [10, 12, 14]
    assert plan.frames(Window(start=10, stop=13)) == [10, 12]


@pytest.mark.parametrize(("tokens", "seconds"), [("2x2", 5), ("3x2x2", 7), ("5x2x2", 60)])
def test_the_shortest_extent_of_which_a_view_keeps_some_frames(tokens, seconds):
    plan = WindowPlan.of(make_spec(), tokens=tokens, window_seconds=seconds)
    for kept in range(1, plan.shape.frames + 1):
        shortest = plan.frames_for(kept)
        assert len(plan.frames(Window(start=0, stop=shortest))) == kept
        if shortest > 1:
            assert len(plan.frames(Window(start=0, stop=shortest - 1))) == kept - 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("61x2x2", "a window of 60 s holds 60 frames at 1 fps"),
        ("3x3", "cannot give it"),
    ],
)
def test_a_view_that_the_cache_cannot_give_is_refused(tokens, message):
    with pytest.raises(UsageError, match=message):
        WindowPlan.of(make_spec(), tokens=tokens, window_seconds=60)
    with pytest.raises(UsageError, match="no CLS"):
        WindowPlan.of(make_spec(num_prefix=0), tokens="cls", window_seconds=60)


def test_rows_that_cannot_be_read_are_counted_and_listed(tmp_path):
    cache = make_cache(tmp_path, num_videos=2, frames=8, splits=["train", "train"])
    rows = (
        TaskRow(id="v0", split="train", label=0, start_seconds=2.5, end_seconds=5),
        TaskRow(id="gone", split="train", label=1),
        TaskRow(id="v1", split="train", label=1, start_seconds=8),
        TaskRow(id="v1", split="test", label=1),
    )
    table = TaskTable(dataset="d", task="t", kind="classification", classes=("a", "b"), rows=rows)
    chosen = split_samples(cache, table, "train")
    assert [(s.id, s.extent) for s in chosen.samples] == [("v0", Window(start=3, stop=5))]
    assert chosen.coverage.missing == ("gone",)
    assert chosen.coverage.empty == ("v1",)
    assert (chosen.coverage.present, chosen.coverage.total) == (1, 3)


# Clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(7, 7), (5, 3), (1, 1), (14, 14)])
def test_pooling_on_the_device_is_the_pooling_of_views(grid):
    tokens = np.random.default_rng(0).standard_normal((3, 14 * 14, 8)).astype(np.float16)
    expected = pool_grid(tokens, (14, 14), grid).reshape(3, *grid, 8)
    pooled = pool_to_grid(torch.from_numpy(tokens.reshape(3, 14, 14, 8)), grid)
    np.testing.assert_allclose(pooled.float().numpy(), expected, atol=1e-5)


def test_a_batch_pads_with_zeros_after_the_valid_frames():
    clips = [
        Clip(
            patch=torch.full((n, 1, 1, 2), float(n), dtype=torch.float16),
            prefix=None,
            pts_seconds=torch.arange(n).double() + 7,
        )
        for n in (2, 4, 1)
    ]
    batch = collate(clips, torch.float32)
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.patch[:, :, 0, 0, 0].tolist() == [[2, 2, 0, 0], [4, 4, 4, 4], [1, 0, 0, 0]]
    assert batch.pts_seconds.tolist() == [[7, 8, 0, 0], [7, 8, 9, 10], [7, 0, 0, 0]]
    assert batch.patch.dtype == torch.float32
    assert batch.prefix is None


def test_reading_ahead_keeps_the_order_and_bounds_what_waits():
    together, third_is_read = threading.Barrier(4), threading.Event()
    taken, most = 0, 0

    def items():
        nonlocal most
        for item in range(40):
            most = max(most, item + 1 - taken)  # asked for, and not yet taken
            yield item

    def read(item):
        if item < 4:
            together.wait(timeout=60)  # four threads, or none goes on
        if item == 0:
            assert third_is_read.wait(timeout=60)
        if item == 3:
            third_is_read.set()
        return item

    for result in read_ahead(read, items(), workers=4, depth=6):
        assert result == taken
        taken += 1
    assert (taken, most) == (40, 6)


def test_an_error_of_a_read_comes_in_its_place_and_ends_the_threads():
    begun = []

    def read(item):
        begun.append(item)
        if item == 3:
            raise OSError("torn")
        return item

    results = read_ahead(read, range(1000), workers=2, depth=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="torn"):
        next(results)
    assert len(begun) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


# Training -------------------------------------------------------------------------------------


def stretches(extents):
    return [Stretch(id=name, extent=Window(start=a, stop=b)) for name, a, b in extents]


def test_an_epoch_is_a_function_of_seed_epoch_and_samples_alone(tmp_path):
    cache = make_cache(tmp_path, num_videos=12, frames=20, splits=["train"] * 12)
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    plan = plan_of(cache)

    def draws(order, **settings):
        settings = {"seed": 3, "epoch": 5, "windows_per_video": 2} | settings
        return [(d.sample.id, d.window) for d in epoch_draws(order, plan, **settings)]

    first = draws(samples)
    assert first == draws(samples[::-1])
    assert sorted(name for name, _ in first) == sorted([s.id for s in samples] * 2)
    assert all(w.stop <= 20 and w.num_frames == 4 for _, w in first)
    for other in (draws(samples, epoch=6), draws(samples, seed=4)):
        assert [name for name, _ in other] != [name for name, _ in first]
        assert sorted(w.start for _, w in other) != sorted(w.start for _, w in first)
    assert len({w.start for _, w in first}) > 6  # 17 starts are possible


@pytest.mark.parametrize("tokens", [None, "2x2x2+cls", "1x1", "cls"])
def test_training_batches_hold_the_tokens_of_their_windows(tmp_path, tokens):
    lengths = [9, 3, 12, 6, 7]
    cache = make_cache(tmp_path, num_videos=5, frames=lengths, splits=["train"] * 5)
    plan = plan_of(cache, tokens)
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    loader = TrainLoader(
        cache,
        samples,
        plan,
        kind="classification",
        batch_size=2,
        windows_per_video=1,
        seed=0,
        workers=3,
        device=CPU,
        dtype=torch.float32,
    )
    draws = epoch_draws(samples, plan, seed=0, epoch=1, windows_per_video=1)
    batches = list(loader.epoch(1))
    assert [len(b.labels) for b in batches] == [2, 2, 1]
    assert loader.num_steps(1) == 3
    rows = [(batch, i) for batch in batches for i in range(len(batch.labels))]
    num_frames = 0
    for draw, (batch, i) in zip(draws, rows, strict=True):
        frames = plan.frames(draw.window)
        num_frames += len(frames)
        assert batch.labels[i] == draw.sample.label
        assert batch.tokens.mask[i].sum() == len(frames)
        assert batch.tokens.pts_seconds[i, : len(frames)].tolist() == [float(f) for f in frames]
        if batch.tokens.patch is not None:
            expected = whole(cache, draw.sample.id)[frames]
            if plan.view.grid == (1, 1):
                expected = expected.mean(axis=(1, 2), keepdims=True)
            found = batch.tokens.patch[i].numpy()
            np.testing.assert_allclose(found[: len(frames)], expected, atol=1e-6)
            assert not found[len(frames) :].any()
        if batch.tokens.prefix is not None:
            expected = cache.read(draw.sample.id, "prefix").astype(np.float32)[frames]
            np.testing.assert_array_equal(batch.tokens.prefix[i, : len(frames)], expected)
    assert (batches[0].tokens.patch is None) == (tokens == "cls")
    tokens_read = {None: 4, "2x2x2+cls": 5, "1x1": 4, "cls": 1}[tokens]
    assert loader.bytes_read == num_frames * tokens_read * 16 * 2  # float16 of width 16


# Evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, "2x2x2", "3x2x2"])
@pytest.mark.parametrize("stride", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("piece_frames", [1, 5, 256])
def test_a_timeline_gives_every_window_and_reads_each_frame_once(
    tmp_path, tokens, stride, piece_frames
):
    cache = make_cache(tmp_path, num_videos=3, frames=[17, 4, 9])
    plan = plan_of(cache, tokens, seconds=6.0)
    chosen = stretches([("v0", 2, 17), ("v1", 0, 4), ("v2", 0, 9)])
    timelines = Timelines(
        cache,
        chosen,
        plan,
        stride_seconds=stride,
        workers=2,
        device=CPU,
        piece_frames=piece_frames,
    )
    step = int(stride)
    expected = [(0, s, s + 6) for s in range(2, 12, step)]
    expected += [(1, 0, 4)] + [(2, s, s + 6) for s in range(0, 4, step)]
    found = list(timelines)
    assert [(c.stretch, c.window.start, c.window.stop) for c in found] == expected
    needed = set()
    for c in found:
        frames = range(c.window.start, c.window.stop, 6 // plan.shape.frames)
        name = chosen[c.stretch].id
        needed |= {(name, frame) for frame in frames}
        np.testing.assert_array_equal(c.clip.patch.float(), whole(cache, name)[list(frames)])
        assert c.clip.pts_seconds.tolist() == [float(frame) for frame in frames]
    assert timelines.bytes_read == len(needed) * 4 * 16 * 2
