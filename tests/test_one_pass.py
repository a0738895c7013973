"""Runs that train in one pass share what is read, and nothing else."""

import json
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from caches import make_cache
from torch import nn
from vis4mer.decode.config import load_config
from vis4mer.decode.data.loader import epoch_draws, in_blocks
from vis4mer.decode.data.plan import Stretch, WindowPlan, split_samples
from vis4mer.decode.data.sharing import blocks_within, shared_bytes
from vis4mer.decode.device import Compute
from vis4mer.decode.judging.judge import Candidate, Judged, NotFiniteError, judge, judge_all
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.runs.runlog import OF_THE_CLOCK
from vis4mer.decode.runs.timelines import read_timelines
from vis4mer.decode.train import train_decoder, train_decoders
from vis4mer.decode.training.learner import DivergedError, Learner
from vis4mer.store import stored
from vis4mer.store.errors import UsageError
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.windows import Window

TOKEN_BYTES = 4 * 16 * 2  # of a frame: 2 × 2 patches of width 16 in float16


def config(**flags):
    defaults = {
        "task": "toy/label",
        "epochs": 3,
        "window_seconds": 4,
        "batch_size": 4,
        "decoder.depth": 1,
        "decoder.state_size": 4,
        "optimizer.lr": 0.01,
        "final_stride_seconds": 1,
        "device": "cpu",
    }
    return load_config(flags=defaults | {k.replace("__", "."): v for k, v in flags.items()})


def two_tasks(folder, *, frames=9, num_videos=24):
    """toy/label, and toy/other: a regression on two of three videos, with other splits."""
    cache = make_cache(folder, num_videos=num_videos, frames=frames)
    rows = [
        TaskRow(id=f"v{i}", split=("train", "train", "test", "val")[i // 2 % 4], label=i % 5)
        for i in range(num_videos)
        if i % 3
    ]
    cache.save_task(TaskTable(dataset="toy", task="other", kind="regression", rows=tuple(rows)))
    return cache


def jobs_of(folder, **flags):
    return [
        (config(task=task, seed=seed, **flags), folder / f"{task.replace('/', '-')}-{seed}")
        for task in ("toy/label", "toy/other")
        for seed in (0, 1)
    ]


def untimed(value):
    """JSON without what the clock says and without who read what."""
    if isinstance(value, list):
        return [untimed(v) for v in value]
    if not isinstance(value, dict):
        return value
    ignored = (*OF_THE_CLOCK, "bytes_read", "checksum")
    return {k: untimed(v) for k, v in value.items() if k not in ignored}


def assert_same_run(one, other):
    for name in ("last.safetensors", "best.safetensors", "timelines.safetensors", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, other)]
    assert [untimed(json.loads(x)) for x in lines[0]] == [untimed(json.loads(x)) for x in lines[1]]
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert untimed(results[0]) == untimed(results[1])


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_run_becomes_the_same_in_a_pass_as_alone(tmp_path, blocks):
    lengths = [3 + i % 9 for i in range(16)]
    cache = two_tasks(tmp_path, frames=lengths, num_videos=16)
    together = jobs_of(tmp_path / "together", blocks=blocks, windows_per_video=2, epochs=2)
    outcomes = train_decoders(cache, together)
    assert [o.error for o in outcomes] == [None] * 4
    assert [(o.task, o.seed) for o in outcomes] == [(c.task, c.seed) for c, _ in together]
    for asked, folder in together:
        alone = tmp_path / "alone" / folder.name
        train_decoder(cache, asked, alone)
        assert_same_run(alone, folder)
    assert len({(f / "last.safetensors").read_bytes() for _, f in together}) == 4


def test_an_interrupted_pass_ends_as_a_whole_one(tmp_path):
    class Interruption(BaseException):
        pass

    cache = two_tasks(tmp_path)
    whole = jobs_of(tmp_path / "whole", blocks=2)
    parts = jobs_of(tmp_path / "parts", blocks=2)
    train_decoders(cache, whole)
    train_decoder(cache, *parts[1])  # finished before the others begin
    moments = [
        lambda r: r.phase == "train" and r.done == 5,
        lambda r: r.finished and r.run == parts[2][1],  # the last has not committed the epoch
        lambda r: r.phase == "train" and r.epoch == 2 and r.done == 1,
        lambda r: r.phase == "evaluate" and r.done == 1,
    ]
    for moment in moments:

        def stop(report, moment=moment):
            if moment(report):
                raise Interruption

        with pytest.raises(Interruption):
            train_decoders(cache, parts, progress=stop)
    assert [len(open_run(folder).epochs()) for _, folder in parts] == [3, 3, 3, 3]
    train_decoders(cache, parts)
    for (_, one), (_, other) in zip(whole, parts, strict=True):
        assert_same_run(one, other)


class Reads:
    """Counts what the store is asked for, by video and frame."""

    def __init__(self, monkeypatch):
        self.frames = Counter()
        read, lock = stored.read_frames, threading.Lock()

        def counting(backing, record, array, frames, *rest, **options):
            with lock:
                self.frames.update((record.id, int(frame)) for frame in frames)
            return read(backing, record, array, frames, *rest, **options)

        monkeypatch.setattr(stored, "read_frames", counting)

    def take(self):
        found, self.frames = self.frames, Counter()
        return found


def test_a_pass_reads_every_video_once_whoever_learns_from_it(tmp_path, monkeypatch):
    """Videos as long as a window: all learners want the same frames."""
    cache = make_cache(tmp_path, num_videos=24, frames=4)
    reads = Reads(monkeypatch)
    alone = train_decoder(cache, config(blocks=2), tmp_path / "alone")
    read_alone = reads.take()
    outcomes = train_decoders(
        cache, [(config(seed=s, blocks=2), tmp_path / f"s{s}") for s in range(5)]
    )
    assert reads.take() == read_alone
    per_run = [o.result.bytes_read for o in outcomes]
    assert sum(per_run) == alone.bytes_read == sum(read_alone.values()) * TOKEN_BYTES
    assert max(per_run) - min(per_run) <= 5 * 24 * 2  # the odd bytes of splits by five


def test_windows_that_differ_are_read_as_their_union_and_paid_by_who_uses_them(
    tmp_path, monkeypatch
):
    cache = two_tasks(tmp_path, frames=11)
    reads = Reads(monkeypatch)
    jobs = jobs_of(tmp_path, epochs=1, validation_stride_seconds=4)
    outcomes = train_decoders(cache, jobs)
    counted = reads.take()
    assert sum(o.result.bytes_read for o in outcomes) == sum(counted.values()) * TOKEN_BYTES
    needed = Counter()
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)
    trained, validated, judged = set(), set(), set()
    for asked, _ in jobs:
        table = cache.task(asked.task)
        samples = split_samples(cache, table, "train").samples
        for d in epoch_draws(samples, plan, seed=asked.seed, epoch=0, windows_per_video=1):
            trained |= {(d.sample.id, f) for f in range(d.window.start, d.window.stop)}
        for s in split_samples(cache, table, "val").samples:
            validated |= {(s.id, f) for f in range(8)}  # two windows of four
            judged |= {("val", s.id, f) for f in range(11)}
        for s in split_samples(cache, table, "test").samples:
            judged |= {("test", s.id, f) for f in range(11)}
    for part in (trained, validated, [(i, f) for _, i, f in judged]):
        needed.update(part)
    assert counted == needed


def test_one_read_of_a_timeline_serves_all_windows_of_all_runs_and_checkpoints(
    tmp_path, monkeypatch
):
    """At a stride of one frame each frame lies in four windows, and is read once for all."""
    cache = make_cache(tmp_path, num_videos=24, frames=9, signal=0.1)
    jobs = [(config(seed=s, optimizer__lr=0.2), tmp_path / f"s{s}") for s in range(3)]
    reads, judging = Reads(monkeypatch), []

    def progress(report):
        if report.phase == "evaluate" and not judging:
            judging.append(reads.take())

    outcomes = train_decoders(cache, jobs, progress=progress)
    assert any(o.result.by_weights["best"].epoch < 3 for o in outcomes)  # two checkpoints judged
    table = cache.task("toy/label")
    judged = {row.id for split in ("val", "test") for row in table.split(split)}
    counted = reads.take() + judging[0]
    assert {frame: counted[frame] for frame in counted if frame[0] in judged_only(table)} == {
        (name, f): 1 for name in judged_only(table) for f in range(9)
    }
    assert all(o.result.test.num_windows == 6 * len(table.split("test")) for o in outcomes)
    assert len(judged) == 12


class Recorder(nn.Module):
    """Keeps the batches that it is given; says one value a window."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch.patch.clone())
        return batch.patch.mean(dim=(1, 2, 3))[:, :1]


def test_a_decoder_judged_among_others_is_given_its_own_batches(tmp_path):
    cache = make_cache(tmp_path, num_videos=9, frames=[4 + i % 4 for i in range(9)])
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)

    def stretches(numbers):
        return [Stretch(id=f"v{i}", extent=Window(start=0, stop=4 + i % 4)) for i in numbers]

    settings = {"stride_seconds": 1, "workers": 2}
    asked = [([8, 1, 3, 5], 3), ([1, 2, 3], 3), ([5, 8, 3, 1], 2), ([3], 3), ([1, 3, 5, 8], 3)]
    together = [Recorder() for _ in asked]
    candidates = [
        Candidate(models=[model], stretches=stretches(numbers), batch_size=size)
        for model, (numbers, size) in zip(together, asked, strict=True)
    ]
    cpu = Compute.of(device="cpu")
    verdicts = judge_all(candidates, cache, plan, cpu, **settings)
    for model, (numbers, size), (verdict,) in zip(together, asked, verdicts, strict=True):
        alone = Recorder()
        said = judge(alone, cache, stretches(numbers), plan, cpu, batch_size=size, **settings)
        assert len(alone.batches) == len(model.batches)
        assert all(map(torch.equal, alone.batches, model.batches))
        assert [len(windows) for windows in said.windows] == [1 + i % 4 for i in numbers]
        for i in range(len(numbers)):
            np.testing.assert_array_equal(said.outputs(i), verdict.outputs(i))


def test_an_output_that_is_no_number_fails_its_own_run_alone(tmp_path):
    class Broken(Recorder):
        def forward(self, batch):
            return super().forward(batch) * float("nan")

    cache = make_cache(tmp_path, num_videos=2, frames=4)
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)
    stretch = Stretch(id="v1", extent=Window(start=0, stop=4))
    pair = Candidate(models=[Recorder(), Broken()], stretches=[stretch], batch_size=1)
    cpu = Compute.of(device="cpu")
    ((sound, broken),) = judge_all([pair], cache, plan, cpu, stride_seconds=1, workers=1)
    assert isinstance(sound, Judged)
    assert isinstance(broken, NotFiniteError)
    assert "video 'v1' is [nan]" in str(broken)


def judged_only(table):
    """Test videos are read by nothing but the final evaluation."""
    return {row.id for row in table.split("test")}


def test_a_run_that_diverges_ends_alone(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6)
    wild = config(optimizer__lr=1e30, optimizer__schedule="constant", decoder__name="mean")
    wild = replace(wild, decoder=replace(wild.decoder, options={}))
    jobs = [
        (config(seed=0), tmp_path / "a"),
        (wild, tmp_path / "b"),
        (config(seed=1), tmp_path / "c"),
    ]
    outcomes = train_decoders(cache, jobs)
    assert [type(o.error) for o in outcomes] == [type(None), DivergedError, type(None)]
    assert outcomes[1].result is None
    assert not (tmp_path / "b" / "results.json").exists()
    for asked, folder in (jobs[0], jobs[2]):
        train_decoder(cache, replace(asked, blocks=1), tmp_path / "alone" / folder.name)
        assert_same_run(tmp_path / "alone" / folder.name, folder)


def test_nothing_is_read_for_runs_that_have_all_diverged(tmp_path, monkeypatch):
    def diverging(*_):
        raise DivergedError("training diverged at step 1")

    monkeypatch.setattr(Learner, "step", diverging)
    cache = make_cache(tmp_path, num_videos=16, frames=6)
    steps = []
    jobs = [(config(seed=s, batch_size=1), tmp_path / f"s{s}") for s in range(2)]
    outcomes = train_decoders(cache, jobs, progress=lambda r: r.total and steps.append(r.done))
    assert all(isinstance(o.error, DivergedError) for o in outcomes)
    assert len(steps) <= 9  # the first run has eight videos, the other sees its first step


def test_runs_of_one_pass_agree_on_what_they_share(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    for name, value in {"epochs": 4, "tokens": "4xcls", "window_seconds": 3, "blocks": 2}.items():
        with pytest.raises(UsageError, match=rf"{name} is .*runs of one pass share their reads"):
            train_decoders(
                cache,
                [
                    (config(blocks=1), tmp_path / "a"),
                    (config(**{"blocks": 1, name: value}), tmp_path / "b"),
                ],
            )
    with pytest.raises(UsageError, match="two runs of a pass cannot share a directory"):
        train_decoders(cache, [(config(), tmp_path / "a"), (config(seed=1), tmp_path / "a")])
    with pytest.raises(UsageError, match="at least one run"):
        train_decoders(cache, [])
    assert not (tmp_path / "a").exists()
    train_decoder(cache, config(epochs=1), tmp_path / "b")
    other = [
        (config(epochs=1, seed=1), tmp_path / "a"),
        (config(epochs=1, batch_size=2), tmp_path / "b"),
    ]
    with pytest.raises(UsageError, match="batch_size: run 4, asked 2"):  # before `a` is begun
        train_decoders(cache, other)
    assert not (tmp_path / "a" / "config.json").exists()


def test_blocks_follow_from_the_memory_and_stay_with_a_run(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=10)  # 8 train, windows of 4 of 10 frames
    jobs = [(config(seed=s, epochs=1), tmp_path / f"s{s}") for s in range(2)]
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)
    epoch_bytes = 8 * 8 * TOKEN_BYTES  # two learners draw eight of ten frames at most
    for share_bytes, expected in ((3 * epoch_bytes, 1), (epoch_bytes, 3), (10**12, 1)):
        needed = shared_bytes(cache.spec, [samples] * 2, [plan] * 2, windows_per_video=1)
        assert blocks_within(needed, share_bytes=share_bytes) == expected
    train_decoders(cache, jobs, share_bytes=epoch_bytes)
    assert [open_run(f).about.train.blocks for _, f in jobs] == [3, 3]
    # Another seed joins, with other memory: a run's own blocks stay.
    more = [*jobs, (config(seed=2, epochs=1), tmp_path / "s2")]
    outcomes = train_decoders(cache, more)
    assert open_run(tmp_path / "s2").about.train.blocks == 3
    assert all(o.result for o in outcomes)
    assert train_decoder(cache, jobs[0][0], jobs[0][1]) == outcomes[0].result
    train_decoder(cache, config(epochs=1), tmp_path / "alone")
    assert open_run(tmp_path / "alone").about.train.blocks == 1


def test_a_run_begun_alone_does_not_lift_the_limit_of_those_that_join_it(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=12)  # 8 train, windows of 4 of 12 frames
    window_bytes = 3 * 8 * 4 * TOKEN_BYTES  # of one learner's epoch, as often as it is held
    jobs = [(config(seed=s, epochs=1), tmp_path / f"s{s}") for s in range(3)]
    train_decoders(cache, jobs[:1], share_bytes=2 * window_bytes)
    assert open_run(tmp_path / "s0").about.train.blocks == 1
    # The finished run reads no more, and the one that joins streams.
    train_decoders(cache, jobs[:2], share_bytes=window_bytes)
    other = [(config(seed=s, epochs=1, blocks=1), tmp_path / f"t{s}") for s in range(2)]
    with pytest.raises(UsageError, match=r"blocks is 1 .* these 2 runs need 2 to share "):
        train_decoders(cache, other, share_bytes=2 * window_bytes - 1)
    assert not (tmp_path / "t0").exists()
    more = [*jobs, (config(seed=3, epochs=1), tmp_path / "s3")]
    with pytest.raises(UsageError, match=r"these 2 runs need 2 .* --share-memory 0\.1"):
        train_decoders(cache, more, share_bytes=2 * window_bytes - 1)
    assert not (tmp_path / "s2").exists()
    # Alone, but with others to come: dealt by the memory.
    train_decoders(cache, [(config(epochs=1), tmp_path / "first")], share_bytes=window_bytes // 2)
    assert open_run(tmp_path / "first").about.train.blocks == 2


def test_blocks_deal_the_same_videos_to_every_seed_and_others_each_epoch(tmp_path):
    cache = make_cache(tmp_path, num_videos=40, frames=6, splits=["train"] * 40)
    samples = split_samples(cache, cache.task("toy/label"), "train").samples
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=4)

    def dealt(seed, epoch, of=samples):
        draws = epoch_draws(of, plan, seed=seed, epoch=epoch, windows_per_video=2)
        return [[d.sample.id for d in b] for b in in_blocks(draws, epoch=epoch, blocks=4)]

    first, second = dealt(0, 0), dealt(1, 0)
    assert [set(b) for b in first] == [set(b) for b in second]
    assert first != second  # the order within is the seed's
    assert [set(b) for b in first] != [set(b) for b in dealt(0, 1)]
    assert [set(b) for b in dealt(0, 0, samples[:9])] == [
        set(b) & {s.id for s in samples[:9]} for b in first
    ]
    assert sorted(name for block in first for name in block) == sorted([s.id for s in samples] * 2)
    assert min(map(len, first)) > 4  # about twenty each


def test_predictions_over_time_are_those_of_the_selected_weights(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    result = train_decoder(cache, config(), tmp_path / "run")
    lines = read_timelines(open_run(tmp_path / "run").timelines)
    assert [(t.id, t.label) for t in lines] == [(p.id, p.label) for p in result.test.predictions]
    for line, prediction in zip(lines, result.test.predictions, strict=True):
        np.testing.assert_allclose(line.outputs.mean(axis=0), prediction.output, atol=1e-6)
        assert line.start_seconds.tolist() == [0, 1, 2, 3, 4, 5]
        assert line.end_seconds.tolist() == [4, 5, 6, 7, 8, 9]
