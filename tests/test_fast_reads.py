"""Every faster way of reading gives what the plain one gives, in the memory that it says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from entries import edit_spec, record_file
from vis4mer.decode.config import load_config
from vis4mer.decode.data.ahead import ReadAhead, Stopwatch
from vis4mer.decode.data.buffers import BufferPool
from vis4mer.decode.data.clips import on_device
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import WindowPlan, split_samples
from vis4mer.decode.data.preload import Held, held_bytes, wanted_frames
from vis4mer.decode.data.sharing import SharedEpoch
from vis4mer.decode.data.stored_clips import read_clip
from vis4mer.decode.data.timelines import Timelines
from vis4mer.decode.judging.evaluate import evaluate_run
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoder, train_decoders
from vis4mer.decode.training import holding, side_by_side
from vis4mer.store import stored
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import DamagedEntryError, UsageError
from vis4mer.store.files import seal
from vis4mer.store.tasks import TaskRow, TaskTable

CPU = torch.device("cpu")
DTYPES = ("float16", "bfloat16", "int8")
VIEWS = ("4x2x2", "2x2x2+cls", "4x1x1", "4xcls", "4x2x2@random0.5")


def cache_of(path, stored_dtype, lengths=(9, 3, 12, 6, 7, 11)):
    """Training videos v0 …, then as many to validate on, of random tokens."""
    cache = create_cache(path / f"{stored_dtype}.zarr", make_spec(stored_dtype=stored_dtype))
    random, rows = np.random.default_rng(0), []
    for i, num_frames in enumerate((*lengths, *lengths)):
        tokens = random.standard_normal((num_frames, 5, 16)).astype(np.float32) * (1 + i)
        write_tokens(cache, f"v{i}", tokens[:, :4], tokens[:, 4:])
        split = "train" if i < len(lengths) else "val"
        rows.append(TaskRow(id=f"v{i}", split=split, label=i % 2))
    cache.save_task(
        TaskTable(
            dataset="toy",
            task="label",
            kind="classification",
            classes=("a", "b"),
            rows=tuple(rows),
        )
    )
    return cache


def plan_of(cache, tokens="4x2x2"):
    return WindowPlan.of(cache.spec, tokens=tokens, window_seconds=4)


def samples_of(cache, split="train"):
    return split_samples(cache, cache.task("toy/label"), split).samples


def loader_of(cache, tokens="4x2x2", **options):
    settings = {"batch_size": 2, "windows_per_video": 2, "seed": 1, "workers": 3, **options}
    return TrainLoader(
        cache,
        samples_of(cache),
        plan_of(cache, tokens),
        kind="classification",
        device=CPU,
        dtype=torch.float32,
        **settings,
    )


def held_of(cache, tokens="4x2x2"):
    plan = plan_of(cache, tokens)
    users = [(samples_of(cache, split), plan) for split in ("train", "val")]
    return Held(cache, wanted_frames(cache, users), workers=2, device=CPU, to=CPU)


def assert_same_batches(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert one.tokens.lengths == other.tokens.lengths
        for name in ("patch", "prefix", "mask", "pts_seconds"):
            tensor, same = getattr(one.tokens, name), getattr(other.tokens, name)
            assert (tensor is None) == (same is None)
            assert tensor is None or torch.equal(tensor, same)


class Reads:
    """Counts what the store is asked for, by video, array and frame."""

    def __init__(self, monkeypatch):
        self.frames = Counter()
        read, lock = stored.read_frames, threading.Lock()

        def counting(backing, record, array, frames, *rest, **options):
            with lock:
                self.frames.update((record.id, array, int(frame)) for frame in frames)
            return read(backing, record, array, frames, *rest, **options)

        monkeypatch.setattr(stored, "read_frames", counting)


# As stored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", ["4x2x2", "4x2x2+cls", "4xcls"])
def test_what_is_decoded_on_the_device_is_what_the_cache_decodes(tmp_path, dtype, view):
    cache, frames = cache_of(tmp_path, dtype), [1, 2, 4, 5]
    plan = plan_of(cache, view)
    host = read_clip(cache, "v2", plan, frames)
    clip = on_device(host.clip, plan, CPU, key="v2", frames=frames)
    plain = cache.read_view("v2", plan.view, frames, pool=False)
    assert host.num_bytes == plain.num_bytes
    for found, expected in ((clip.patch, plain.patch), (clip.prefix, plain.prefix)):
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_array_equal(found.float().numpy(), expected.astype(np.float32))
    assert clip.pts_seconds.tolist() == [1, 2, 4, 5]


def test_int8_waits_in_memory_as_int8(tmp_path):
    cache = cache_of(tmp_path, "int8")
    clip = read_clip(cache, "v0", plan_of(cache), range(4)).clip
    assert clip.patch.values.dtype == torch.int8
    assert clip.patch.scale.shape == (4, 2, 2)


def test_a_torn_frame_is_an_error_and_never_old_memory(tmp_path):
    cache = cache_of(tmp_path, "float16")
    memory = BufferPool()
    read_clip(cache, "v1", plan_of(cache), range(3), memory=memory)
    folder = cache.path / cache.record("v0").folder / "patch" / "c"
    [shard] = [path for path in folder.rglob("*") if path.is_file()]
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedEntryError, match="checksum"):
        read_clip(cache, "v0", plan_of(cache), range(3), memory=memory)


# Buffers --------------------------------------------------------------------------------------


def test_no_memory_is_asked_for_what_the_files_do_not_hold(tmp_path):
    """A record may claim frames of half a gigabyte each, and say so with right checksums."""
    cache = cache_of(tmp_path, "float16", lengths=(3,))
    edit_spec(cache, lambda about: about.update(make_spec(grid=(999, 999), dim=268).to_json()))
    for name in ("v0", "v1"):
        path = record_file(cache, name)
        content = json.loads(path.read_bytes())
        del content["checksum"]
        content["arrays"]["patch"]["shape"] = [3, 999 * 999, 268]
        content["arrays"]["prefix"]["shape"] = [3, 1, 268]
        content["objects"]["patch/c/0/0/0"]["size"] = 10**10
        path.write_bytes(seal(content))
    claimed, asked = open_cache(cache.path), []
    plan = WindowPlan.of(claimed.spec, tokens="3x999x999", window_seconds=3)
    with pytest.raises(DamagedEntryError, match="the record says 10000000000"):
        read_clip(claimed, "v0", plan, [0, 1, 2], memory=asked.append)
    assert asked == []


def test_a_buffer_is_used_again_once_nothing_lies_in_it():
    pool = BufferPool()
    whole = pool(1000)
    part, place = whole[100:200].view(torch.float16), whole.data_ptr()
    del whole
    other = pool(1000)  # the first is still in use
    assert other.data_ptr() != place
    assert pool.num_buffers == 2
    del part
    smaller = pool(10)
    assert (smaller.data_ptr(), len(smaller)) == (place, 10)
    del smaller
    assert len(pool(5000)) == 5000  # takes the place of one that is too small
    assert pool.num_buffers == 2


def test_threads_never_share_a_buffer():
    pool, errors = BufferPool(), []

    def work(number):
        for _ in range(300):
            mine = pool(64)
            mine.fill_(number)
            time.sleep(0)
            if not (mine == number).all():
                errors.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert pool.num_buffers <= 2 * 8  # the old one goes when the new one is there


@pytest.mark.parametrize("tokens", ["4x2x2", "4x1x1"])
def test_the_number_of_buffers_does_not_grow_with_the_epochs(tmp_path, tokens):
    loader = loader_of(cache_of(tmp_path, "int8"), tokens)
    for epoch in range(6):
        for _ in loader.epoch(epoch, then=epoch + 1):
            assert loader.memory.num_buffers <= loader.depth == 2 + 3
    loader.close()


def test_what_is_taken_and_on_its_way_stay_within_the_depth():
    alive, most, lock = 0, 0, threading.Lock()

    class Result:
        def __init__(self, _):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    reads = ReadAhead(Result, workers=3, depth=7)
    reads.add(range(40))
    while taken := reads.take(4):
        del taken
        reads.fill()
    reads.close()
    assert most <= 7


def test_reads_without_threads_are_made_when_they_are_taken():
    begun = []
    reads = ReadAhead(begun.append, workers=0, depth=4)
    reads.add(range(3))
    reads.add(range(3, 5))
    reads.fill()
    assert begun == []
    assert (len(reads.take(4)), begun) == (4, [0, 1, 2, 3])
    assert (len(reads.take(4)), begun) == (1, [0, 1, 2, 3, 4])


# The epoch to come ----------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [False, True])
def test_an_epoch_read_ahead_is_the_same(tmp_path, lanes):
    cache = cache_of(tmp_path, "float16")
    options = {"lanes": lanes, "windows_per_video": 1 if lanes else 2}
    ahead, plain = loader_of(cache, **options), loader_of(cache, **options)
    for epoch in range(4):
        then = epoch + 1 if epoch < 3 else None
        assert_same_batches(ahead.epoch(epoch, then=then), plain.epoch(epoch))
        assert ahead.bytes_read == plain.bytes_read
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]
    assert_same_batches(ahead.epoch(7, then=8), plain.epoch(7))
    assert_same_batches(ahead.epoch(2), plain.epoch(2))  # another one than was told


def test_the_next_epoch_begins_to_be_read_before_it_is_asked_for(tmp_path, monkeypatch):
    cache, reads = cache_of(tmp_path, "float16"), Reads(monkeypatch)
    loader = loader_of(cache)
    of_one = len(list(loader.epoch(0, then=1))) and loader.bytes_read
    counted = sum(reads.frames.values()) * 4 * 16 * 2
    for _ in range(12_000):
        counted = sum(reads.frames.values()) * 4 * 16 * 2
        if counted > of_one:
            break
        time.sleep(0.005)
    assert counted > of_one
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


# Preloaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", VIEWS)
def test_preloaded_batches_and_windows_are_those_of_the_cache(tmp_path, monkeypatch, dtype, tokens):
    cache = cache_of(tmp_path, dtype)
    plain, loader = loader_of(cache, tokens), loader_of(cache, tokens)
    held, reads = held_of(cache, tokens), Reads(monkeypatch)
    loader.hold(held)
    batches = list(loader.epoch(3))
    settings = {"stride_seconds": 1, "workers": 2, "device": CPU, "piece_frames": 5}
    stretches, plan = samples_of(cache, "val"), plan_of(cache, tokens)
    timelines = Timelines(cache, stretches, plan, held=held, **settings)
    windows = list(timelines)
    assert (loader.bytes_read, timelines.bytes_read, sum(reads.frames.values())) == (0, 0, 0)
    assert_same_batches(batches, plain.epoch(3))
    for one, other in zip(windows, Timelines(cache, stretches, plan, **settings), strict=True):
        assert (one.id, one.window) == (other.id, other.window)
        for name in ("patch", "prefix", "pts_seconds"):
            tensor, same = getattr(one.clip, name), getattr(other.clip, name)
            assert (tensor is None) == (same is None)
            assert tensor is None or torch.equal(tensor, same)


def test_preloaded_bytes_are_counted_before_they_are_read(tmp_path):
    cache = cache_of(tmp_path, "int8")
    users = [(samples_of(cache), plan_of(cache, "2x2x2+cls"))]
    frames, tokens = 9 + 3 + 12 + 6 + 7 + 11, 5
    assert held_bytes(cache, wanted_frames(cache, users)) == frames * (tokens * (16 + 4) + 8)
    held = Held(cache, wanted_frames(cache, users), workers=1, device=CPU, to=CPU)
    assert held.num_bytes == frames * tokens * (16 + 4)


def test_what_is_not_held_is_read(tmp_path):
    cache = cache_of(tmp_path, "float16")
    users = [(samples_of(cache)[:2], plan_of(cache))]
    held = Held(cache, wanted_frames(cache, users), workers=1, device=CPU, to=CPU)
    loader = loader_of(cache)
    loader.hold(held)
    assert_same_batches(loader.epoch(0), loader_of(cache).epoch(0))
    assert loader.bytes_read > 0


def test_shared_reads_of_preloaded_videos_are_the_same(tmp_path, monkeypatch):
    cache = cache_of(tmp_path, "int8")
    held = held_of(cache)

    def batches(**options):
        loaders = [loader_of(cache, view, seed=i) for i, view in enumerate(("4x2x2", "4x1x1"))]
        return list(SharedEpoch(cache, loaders, epoch=1, workers=2, pin=False, **options))

    plain, reads = batches(), Reads(monkeypatch)
    found = batches(held=held)
    assert not reads.frames
    assert [i for i, _ in found] == [i for i, _ in plain]
    assert_same_batches((b for _, b in found), (b for _, b in plain))


def config(**flags):
    settings = {"task": "toy/label", "window_seconds": 4, "epochs": 2, "batch_size": 4}
    options = {"decoder.depth": 1, "decoder.state_size": 4, "device": "cpu"}
    return load_config(flags={**settings, **options, "tokens": "4x2x2", **flags})


def test_a_preloaded_run_becomes_what_it_is_without(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=[4 + i % 5 for i in range(16)])
    train_decoder(cache, config(), tmp_path / "plain")
    train_decoder(cache, config(preload="ram", epochs=2), tmp_path / "held")
    both = [(config(preload="ram", seed=s), tmp_path / f"s{s}") for s in range(2)]
    train_decoders(cache, both)
    for run in ("held", "s0"):
        for name in ("last.safetensors", "timelines.safetensors"):
            expected = (tmp_path / "plain" / name).read_bytes()
            assert (tmp_path / run / name).read_bytes() == expected, (run, name)
    read = [epoch.bytes_read for epoch in open_run(tmp_path / "held").epochs()]
    assert read[0] > 0 == read[1]
    again = train_decoder(cache, config(preload="off"), tmp_path / "held")  # the same run
    assert again.bytes_read == open_run(tmp_path / "held").results().bytes_read


def test_what_is_preloaded_counts_with_the_seconds_that_it_took(tmp_path, monkeypatch):
    """By a clock that stands still but for a second a read."""
    cache, read, told = make_cache(tmp_path, num_videos=16, frames=8), stored.read_frames, []
    reads = []

    def counted(*arguments, **options):
        reads.append(1)
        return read(*arguments, **options)

    clock = SimpleNamespace(monotonic=lambda: float(len(reads)))
    monkeypatch.setattr(side_by_side, "time", clock)
    monkeypatch.setattr(stored, "read_frames", counted)
    jobs = [(config(preload="ram", workers=1, seed=s), tmp_path / f"s{s}") for s in range(2)]
    train_decoders(cache, jobs, progress=told.append)
    for _, run in jobs:
        first, second = open_run(run).epochs()
        assert (first.seconds, second.seconds) == (12 / 2, 0)  # of 12 videos, shared by two runs
        assert first.bytes_per_second == pytest.approx(first.bytes_read / first.seconds)
    assert [r.note for r in told if r.note and "preload" in r.note] == [
        "preload: 13.1 kB of 12 videos are read into memory first"
    ]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    cache = make_cache(tmp_path, num_videos=16, frames=8)
    monkeypatch.setattr(holding, "free_bytes", lambda: 1000)
    with pytest.raises(UsageError, match=r"12 videos are 13,056 bytes, and 1,000 are free") as said:
        train_decoder(cache, config(preload="ram"), tmp_path / "run")
    assert "\n" not in str(said.value)
    monkeypatch.setattr(holding, "free_bytes", lambda: 20_000)
    held = [(config(preload="ram"), tmp_path / "run")]
    with pytest.raises(UsageError, match=r"12 videos are 26,112 bytes, and 20,000 are free"):
        train_decoders(cache, held, processes=2)  # another pass takes as much beside it
    with pytest.raises(UsageError, match="preload is gpu and the device is cpu; use --preload ram"):
        train_decoder(cache, config(preload="gpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What is told ---------------------------------------------------------------------------------


def test_waiting_counts_the_time_in_which_nothing_was_there(tmp_path, monkeypatch):
    """By a clock that stands still but for a second a read, none of which is done before."""
    cache, read = cache_of(tmp_path, "float16"), stored.read_frames
    reads, somebody_waits = [], threading.Event()

    def looked_at():
        somebody_waits.set()
        return float(len(reads))

    def slow(*arguments, **options):
        somebody_waits.wait(60)
        reads.append(1)
        return read(*arguments, **options)

    clock = SimpleNamespace(perf_counter=looked_at)
    monkeypatch.setattr("vis4mer.decode.data.ahead.time", clock)
    monkeypatch.setattr(stored, "read_frames", slow)
    loader, waiting = loader_of(cache, workers=1), Stopwatch()
    batches = loader.epoch(0, waiting=waiting)
    next(batches)  # two reads, one after another
    assert waiting.seconds >= 2
    batches.close()


@pytest.mark.parametrize("num_runs", [1, 2])
def test_metrics_say_how_fast_was_read_and_how_long_the_steps_waited(tmp_path, num_runs):
    cache, told = make_cache(tmp_path, num_videos=16, frames=8), []
    jobs = [(config(epochs=1, seed=s), tmp_path / f"s{s}") for s in range(num_runs)]
    train_decoders(cache, jobs, progress=told.append)
    for _, run in jobs:
        [line] = (run / "metrics.jsonl").read_text().splitlines()
        epoch = json.loads(line)
        assert 0 < epoch["stall_share"] <= 1
        rate = epoch["bytes_read"] / epoch["seconds"]
        assert epoch["bytes_per_second"] == pytest.approx(rate)
    assert all(0 <= r.stall_share <= 1 for r in told if r.phase == "train" and r.total)


@pytest.mark.parametrize("tokens", ["4x2x2", "2x2x2+cls", "4xcls"])
def test_an_evaluation_at_one_second_reads_each_timeline_once(tmp_path, monkeypatch, tokens):
    lengths = [4 + i % 7 for i in range(16)]
    cache = make_cache(tmp_path, num_videos=16, frames=lengths)
    train_decoder(cache, config(tokens=tokens, epochs=1), tmp_path / "run")
    reads = Reads(monkeypatch)
    result = evaluate_run(
        open_run(tmp_path / "run"), cache, split="test", stride_seconds=1, device="cpu"
    )
    judged = {i: n for i, n in enumerate(lengths) if f"v{i}" in _ids(cache, "test")}
    arrays = {"4x2x2": ("patch",), "2x2x2+cls": ("patch", "prefix"), "4xcls": ("prefix",)}[tokens]
    whole = {(f"v{i}", a, f) for i, n in judged.items() for a in arrays for f in range(n)}
    assert set(reads.frames.values()) == {1}
    assert set(reads.frames) <= whole
    if tokens != "2x2x2+cls":  # which leaves out frames that no window at this stride keeps
        assert set(reads.frames) == whole
        per_frame = (4 if tokens == "4x2x2" else 1) * 16 * 2
        assert result.bytes_read == sum(judged.values()) * per_frame


def _ids(cache, split):
    return {row.id for row in cache.task("toy/label").split(split)}
