"""A task's windows as a dataset: through torch's own DataLoader, in this process and in workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from entries import flip, make_spec, make_tokens, shard, write
from torch.utils.data import DataLoader
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import DamagedEntryError, UsageError
from vis4mer.store.spec import Sampling
from vis4mer.store.tasks import TaskRow, TaskTable

LENGTHS = {"a": 25, "b": 10, "c": 4, "d": 12}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset") / "c.zarr"
    cache = create_cache(path, make_spec(sampling=Sampling(fps=2)))
    for i, (entry_id, frames) in enumerate(LENGTHS.items()):
        write(cache, entry_id, make_tokens(frames, spec=cache.spec, seed=i))
    rows = (
        TaskRow(id="a", split="train", label=2),
        TaskRow(id="b", split="test", label=1),
        TaskRow(id="gone", split="train", label=0),
        TaskRow(id="c", split="train", label=0),
        TaskRow(id="d", split="train", label=1, start_seconds=1, end_seconds=4),
        TaskRow(id="d", split="train", label=1, start_seconds=100),
    )
    cache.save_task(
        TaskTable(
            dataset="toy", task="kind", kind="classification", classes=("x", "y", "z"), rows=rows
        )
    )
    cache.save_task(
        TaskTable(
            dataset="toy", task="score", kind="regression",
            rows=(TaskRow(id="b", split="val", label=2.5), TaskRow(id="c", split="val", label=-1)),
        )
    )  # fmt: skip
    cache.write_catalog()
    return open_cache(path)


def test_items_are_the_windows_of_the_rows_that_are_there(cache):
    dataset = cache.dataset("toy/kind", "train", tokens="5x4x4+cls", window_seconds=5)
    assert dataset.missing == ("gone",)
    assert dataset.empty == ("d",)
    # 5 s at 2 fps are 10 frames: a has 25 (two windows), c only 4, d the frames 2 to 8.
    starts = [(item["id"], item["start_seconds"], int(item["mask"].sum())) for item in dataset]
    assert starts == [("a", 0, 5), ("a", 5, 5), ("c", 0, 2), ("d", 1, 3)]
    assert len(dataset) == 4
    item = dataset[1]
    patch = cache.read("a", frames=range(10, 20, 2)).reshape(5, 4, 4, 8)
    np.testing.assert_array_equal(item["patch"], patch)
    np.testing.assert_array_equal(
        item["prefix"], cache.read("a", "prefix", range(10, 20, 2))[:, :1]
    )
    assert item["patch"].dtype == item["prefix"].dtype == np.float16
    assert item["label"] == 2


def test_short_windows_are_padded_behind_with_zeros(cache):
    item = cache.dataset("toy/kind", "train", tokens="4x4+cls", window_seconds=5)[2]
    assert item["id"] == "c"
    assert item["mask"].tolist() == [True] * 4 + [False] * 6
    np.testing.assert_array_equal(item["patch"][:4], cache.read("c").reshape(4, 4, 4, 8))
    assert item["patch"].shape == (10, 4, 4, 8)
    assert item["prefix"].shape == (10, 1, 8)
    assert not item["patch"][4:].any()
    assert not item["prefix"][4:].any()


def test_strides_and_views(cache):
    dataset = cache.dataset("toy/kind", "train", tokens="cls", window_seconds=5, stride_seconds=0.5)
    assert sum(item["id"] == "a" for item in dataset) == 16
    assert "patch" not in dataset[0]
    pooled = cache.dataset("toy/kind", "test", tokens="2x2x2", window_seconds=5)
    assert pooled[0]["patch"].shape == (2, 2, 2, 8)
    assert "prefix" not in pooled[0]


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_torchs_loader_takes_it(cache, context):
    dataset = cache.dataset("toy/kind", "train", tokens="5x4x4+cls", window_seconds=5)
    workers = (
        {"num_workers": 2 if context == "fork" else 1, "multiprocessing_context": context}
        if context
        else {}
    )
    batches = list(DataLoader(dataset, batch_size=3, **workers))
    assert [len(batch["id"]) for batch in batches] == [3, 1]
    batch = batches[0]
    assert batch["patch"].shape == (3, 5, 4, 4, 8)
    assert batch["patch"].dtype == torch.float16
    assert batch["prefix"].shape == (3, 5, 1, 8)
    assert batch["mask"].dtype == torch.bool
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [2, 2, 0]
    assert batch["id"] == ["a", "a", "c"]
    assert batch["start_seconds"].tolist() == [0, 5, 0]
    wanted = torch.from_numpy(cache.read("a", frames=range(10, 20, 2))).reshape(5, 4, 4, 8)
    assert torch.equal(batch["patch"][1], wanted)


def test_values_are_float32(cache):
    dataset = cache.dataset("toy/score", "val", tokens="cls", window_seconds=2)
    (batch,) = DataLoader(dataset, batch_size=10)
    assert batch["label"].dtype == torch.float32
    assert batch["label"].tolist() == [2.5, 2.5, -1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "toy/other"}, "no task 'toy/other'.*toy/kind, toy/score"),
        ({"split": "dev"}, "expected one of train, val, test"),
        ({"tokens": "60x4x4"}, "asks for 60 frames.*has 10"),
        ({"tokens": "big"}, "FRAMESxHxW"),
        ({"tokens": "5x9x9"}, "cannot give it"),
        ({"window_seconds": 0}, "positive number of seconds"),
        ({"window_seconds": float("nan")}, "positive number of seconds"),
        ({"stride_seconds": -1}, "stride_seconds -1"),
    ],
)
def test_what_cannot_be_asked(cache, arguments, said):
    asked = {
        "task": "toy/kind",
        "split": "train",
        "tokens": "5x4x4",
        "window_seconds": 5,
    } | arguments
    with pytest.raises(UsageError, match=said):
        cache.dataset(asked.pop("task"), asked.pop("split"), **asked)


def test_damage_is_no_zeros(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    write(cache, "a", make_tokens(3, spec=cache.spec))
    rows = (TaskRow(id="a", split="train", label=0),)
    cache.save_task(
        TaskTable(dataset="toy", task="t", kind="classification", classes=("x",), rows=rows)
    )
    dataset = cache.dataset("toy/t", "train", tokens="4x4", window_seconds=3)
    flip(shard(cache, "a"), 5)
    with pytest.raises(DamagedEntryError, match="video 'a'"):
        dataset[0]


def test_an_entry_of_segments_is_one_item_whatever_the_seconds(tmp_path):
    sampling = Sampling(kind="segments", segments=5, clip_frames=2)
    cache = create_cache(tmp_path / "c.zarr", make_spec(sampling=sampling))
    write(cache, "v", make_tokens(5, spec=cache.spec))
    row = TaskRow(id="v", split="train", label=0, start_seconds=1, end_seconds=3)
    cache.save_task(
        TaskTable(dataset="d", task="t", kind="classification", classes=("a",), rows=(row,))
    )
    dataset = cache.dataset("d/t", "train", tokens="cls", stride_seconds=1)
    assert (len(dataset), dataset[0]["prefix"].shape[0]) == (1, 5)
    with pytest.raises(UsageError, match="asks for 6 frames, but an entry of segments has 5"):
        cache.dataset("d/t", "train", tokens="6xcls")
