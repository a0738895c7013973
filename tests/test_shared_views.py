"""Runs of several token views in one pass: read once, and each becomes what it would be alone."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import pytest
import torch
from caches import make_cache, make_spec
from vis4mer.decode.ablate.plan import plan_sweep
from vis4mer.decode.ablate.running import run_sweep
from vis4mer.decode.ablate.sweep import Axis, Sweep
from vis4mer.decode.config import load_config
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import Sample, WindowPlan, split_samples
from vis4mer.decode.data.sharing import SharedEpoch, shared_bytes
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoder, train_decoders
from vis4mer.decode.training import clock as clocks
from vis4mer.decode.training import side_by_side
from vis4mer.decode.training.clock import StepClock
from vis4mer.store import stored
from vis4mer.store.errors import UsageError
from vis4mer.store.pooling import with_copies
from vis4mer.store.windows import Window

VIEWS = ("4x1x1", "4x2x2", "4x3x3", "4x4x4@random0.5", "4x4x4")
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path):
    """Videos of uneven lengths with a grid of 4 × 4; every second one holds 2 × 2 as well."""
    lengths = [3 + i % 7 for i in range(16)]
    cache = make_cache(tmp_path, num_videos=16, frames=lengths, grid=(4, 4), dim=8)
    for number in range(0, 16, 2):
        with_copies(cache, cache.record(f"v{number}"), ["grid2"])
    cache.write_catalog()
    return cache


def config(**flags):
    defaults = {
        "task": "toy/label",
        "epochs": 2,
        "window_seconds": 4,
        "windows_per_video": 2,
        "batch_size": 4,
        "blocks": 2,
        "final_stride_seconds": 2,
        "device": "cpu",
    }
    return load_config(flags=defaults | flags)


def plan_of(cache, tokens):
    return WindowPlan.of(cache.spec, tokens=tokens, window_seconds=4)


def loader_of(cache, tokens, *, seed):
    return TrainLoader(
        cache,
        split_samples(cache, cache.task("toy/label"), "train").samples,
        plan_of(cache, tokens),
        kind="classification",
        batch_size=3,
        windows_per_video=2,
        seed=seed,
        workers=2,
        device=CPU,
        dtype=torch.float32,
        blocks=2,
    )


def test_a_run_becomes_the_same_beside_other_views_as_alone(tmp_path, cache):
    asked = [("mean", "4x4x4@random0.5", 0), ("mean", "4x2x2", 0), ("gru", "4x3x3", 1)]
    jobs = [
        (config(tokens=view, seed=seed, **{"decoder.name": name}), tmp_path / "together" / str(i))
        for i, (name, view, seed) in enumerate(asked)
    ]
    outcomes = train_decoders(cache, jobs)
    assert [o.error for o in outcomes] == [None] * len(jobs)
    for asked, folder in jobs:
        alone = tmp_path / "alone" / folder.name
        train_decoder(cache, asked, alone)
        for name in ("last", "best", "timelines"):
            file = f"{name}.safetensors"
            assert (alone / file).read_bytes() == (folder / file).read_bytes(), (asked.tokens, file)
        assert (alone / "config.json").read_bytes() == (folder / "config.json").read_bytes()
        one, other = open_run(alone).epochs(), open_run(folder).epochs()
        assert [(e.train_loss, e.val_loss) for e in one] == [
            (e.train_loss, e.val_loss) for e in other
        ]


def test_batches_of_each_view_are_those_of_its_own_loader(cache):
    loaders = [loader_of(cache, view, seed=seed) for seed, view in enumerate(VIEWS)]
    found = [[] for _ in loaders]
    for learner, batch in SharedEpoch(cache, loaders, epoch=1, workers=2, pin=False):
        found[learner].append(batch)
    for seed, (view, batches) in enumerate(zip(VIEWS, found, strict=True)):
        alone = list(loader_of(cache, view, seed=seed).epoch(1))
        for batch, other in zip(batches, alone, strict=True):
            assert torch.equal(batch.tokens.patch, other.tokens.patch)
            assert torch.equal(batch.labels, other.labels)
            assert batch.tokens.lengths == other.tokens.lengths


def test_each_frame_is_read_once_of_what_its_views_need(cache, monkeypatch):
    """The full grid once for all of them; a video's own 2 × 2 for the view that has it."""
    counted, lock, read = Counter(), threading.Lock(), stored.read_frames

    def counting(backing, record, array, frames, *rest, **options):
        with lock:
            counted.update((record.id, array, int(f)) for f in frames)
        return read(backing, record, array, frames, *rest, **options)

    monkeypatch.setattr(stored, "read_frames", counting)
    loaders = [loader_of(cache, view, seed=0) for view in VIEWS]  # one seed: the same windows
    for _ in SharedEpoch(cache, loaders, epoch=0, workers=2, pin=False):
        pass
    assert set(counted.values()) == {1}
    drawn = {
        (d.sample.id, f)
        for block in loaders[0].draws(0)
        for d in block
        for f in range(d.window.start, d.window.stop)
    }
    copies = {(i, "grid2", f) for i, f in drawn if int(i[1:]) % 2 == 0}
    assert set(counted) == {(i, "patch", f) for i, f in drawn} | copies
    frame = 8 * 2  # bytes of a token
    assert sum(loader.bytes_read for loader in loaders) == frame * (
        16 * len(drawn) + 4 * len(copies)
    )
    # Of the full grid everybody pays a part, of the copies the one who reads them.
    pooled, others = loaders[1], [loader for loader in loaders if loader is not loaders[1]]
    assert all(pooled.bytes_read < loader.bytes_read + frame * 4 * len(copies) for loader in others)


def test_views_that_read_other_things_are_no_pass(tmp_path, cache):
    jobs = [(config(tokens=view), tmp_path / view) for view in ("4x2x2", "4x2x2+cls")]
    with pytest.raises(UsageError, match=r"tokens is 4x2x2 in .* and 4x2x2\+cls in .*share"):
        train_decoders(cache, jobs)
    jobs[1] = (config(tokens="2x2x2"), tmp_path / "fewer")
    with pytest.raises(UsageError, match=r"tokens is 4x2x2 in .* and 2x2x2 in .*share"):
        train_decoders(cache, jobs)


def test_a_sweep_of_views_is_a_pass_for_each_reading_and_knows_its_bytes(tmp_path):
    """Videos as long as a window: of 16, all runs train on the same 8, and judge the same 4 + 4."""
    cache = make_cache(tmp_path, num_videos=16, frames=4, grid=(4, 4), dim=8)
    base = {"task": "toy/label", "epochs": 2, "window_seconds": 4, "device": "cpu"}
    views = ("4xcls", "4x1x1", "4x2x2", "4x4x4")
    sweep = Sweep(base=base | {"decoder.name": "mean"}, axes=(Axis(name="tokens", values=views),))
    points, caches = sweep.points(["tokens"]), {"tokens": cache}

    def passes(folder):
        plan = plan_sweep(points, caches, tmp_path / folder)
        result = run_sweep(plan, points, caches, tmp_path / folder, devices=["cpu"], memory=False)
        read = {row.tokens: row.bytes_read for row in result.rows}
        for each in plan.passes:
            assert each.bytes_to_read() == sum(read[r.job.config.tokens] for r in each.runs)
        return [
            (tuple(r.job.config.tokens for r in p.runs), p.bytes_to_read()) for p in plan.passes
        ]

    frame, train, judged = 8 * 2, 2 * 8 * 4, (2 * 4 + 4 + 4) * 4
    full = 16 * frame  # trained on once by three runs, judged by each
    expected = [(views[:1], (train + judged) * frame), (views[1:], (train + 3 * judged) * full)]
    assert passes("plain") == expected
    for name in cache.ids():
        with_copies(cache, cache.record(name), ["grid2"])
    cache.refresh()
    own = 4 * frame  # and its run no longer judges by the full grid
    pooled = (train + 2 * judged) * full + (train + judged) * own
    assert passes("pooled") == [expected[0], (views[1:], pooled)]


def test_a_preloaded_sweep_knows_its_bytes(tmp_path):
    """Of 16 videos 8 + 4 are held, whatever the views and epochs; each view reads the other 4."""
    cache = make_cache(tmp_path, num_videos=16, frames=4, grid=(4, 4), dim=8)
    base = {"task": "toy/label", "epochs": 2, "window_seconds": 4, "device": "cpu"}
    base |= {"decoder.name": "mean", "preload": "ram"}
    sweep = Sweep(base=base, axes=(Axis(name="tokens", values=("4x1x1", "4x2x2")),))
    points, caches = sweep.points(["tokens"]), {"tokens": cache}
    plan = plan_sweep(points, caches, tmp_path / "sweep")
    result = run_sweep(plan, points, caches, tmp_path / "sweep", devices=["cpu"], memory=False)
    [one] = plan.passes
    assert one.bytes_to_read() == sum(row.bytes_read for row in result.rows)
    assert one.bytes_to_read() == (8 + 4 + 2 * 4) * 4 * (16 * 8 * 2)


def test_memory_of_shared_views_counts_the_grids_that_a_video_may_have_of_its_own():
    spec = make_spec(grid=(4, 4), dim=8)
    samples = [Sample(id=f"v{i}", extent=Window(start=0, stop=9), label=0) for i in range(5)]

    def needed(*views):
        plans = [WindowPlan.of(spec, tokens=view, window_seconds=4) for view in views]
        return shared_bytes(spec, [samples] * len(plans), plans, windows_per_video=1)

    def held(num_learners, tokens):  # three blocks, float16
        return 3 * 5 * min(9, 4 * num_learners) * tokens * 8 * 2

    assert needed("4x2x2") == needed("4x4x4") == held(1, 16)
    assert needed("4x2x2", "4x2x2") == needed("4x4x4@stride2", "4x4x4") == held(2, 16)
    assert needed("4x1x1", "4x2x2", "4x4x4") == held(3, 1 + 4 + 16)
    assert needed("4x2x2+cls", "4x4x4+cls") == held(2, 1 + 4 + 16)


def test_the_time_of_a_pass_is_divided_by_the_time_of_steps(monkeypatch):
    clock = StepClock(CPU, 3)
    assert clock.shares() == [1 / 3] * 3
    times = iter([0.0, 1.0, 5.0, 8.0, 20.0, 22.0])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(times))
    for run in (0, 2, 0):
        with clock.step(run):
            pass
    assert clock.shares() == [0.5, 0, 0.5]


def test_a_run_is_told_its_own_part_of_the_steps_and_its_views_judging(tmp_path, monkeypatch):
    """A clock that ticks whenever it is looked at: one second of training, one for each view."""
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    ticks = itertools.count()
    monkeypatch.setattr(side_by_side.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(StepClock, "shares", lambda _: [0.75, 0.2, 0.05])
    settings = {"decoder.name": "mean", "blocks": 1, "epochs": 1}
    jobs = [
        (config(tokens=view, seed=seed, **settings), tmp_path / f"{view}-{seed}")
        for view, seed in (("4x2x2", 0), ("4x1x1", 0), ("4x1x1", 1))
    ]
    train_decoders(cache, jobs)
    told = [open_run(folder).epochs()[0].seconds for _, folder in jobs]
    assert told == pytest.approx([0.75 + 1, 0.2 + 0.5, 0.05 + 0.5])
