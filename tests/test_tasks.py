"""Task tables: what goes in comes out, and what cannot be is refused with its row."""

from __future__ import annotations

import json
import math
import re

import pytest
from entries import one_entry
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import CacheFormatError, UsageError
from vis4mer.store.files import seal
from vis4mer.store.spec import Sampling
from vis4mer.store.tasks import (
    TaskRow,
    TaskTable,
    extent_id,
    in_several_splits,
    video_of,
    without_extent,
)
from vis4mer.store.verify import verify_cache

ROWS = (
    TaskRow(id="__x", split="train", label=0, group="tt01"),
    TaskRow(id="-y", split="val", label=1, start_seconds=0, end_seconds=1.5),
    TaskRow(id="映画", split="test", label=1, start_seconds=10.25),
    TaskRow(id="映画", split="test", label=0, end_seconds=10.25),
)
TABLE = TaskTable(
    dataset="lvu", task="relationship", kind="classification", classes=("a", "b"), rows=ROWS
)
SCORES = TaskTable(
    dataset="lvu", task="like_ratio", kind="regression",
    rows=(TaskRow(id="a", split="train", label=-3.25),),
)  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    return one_entry(tmp_path)


def test_tables_travel_in_the_cache(cache):
    assert cache.tasks() == []
    for table in (TABLE, SCORES):
        cache.save_task(table)
    fresh = open_cache(cache.path)
    assert fresh.tasks() == ["lvu/like_ratio", "lvu/relationship"]
    assert fresh.task("lvu/relationship") == TABLE
    assert fresh.task("lvu/like_ratio") == SCORES
    assert [row.id for row in TABLE.split("test")] == ["映画", "映画"]
    assert (TABLE.num_outputs, SCORES.num_outputs) == (2, 1)
    cache.save_task(TaskTable(dataset="lvu", task="relationship", kind="regression", rows=()))
    assert fresh.task("lvu/relationship").rows == ()


def test_the_error_lists_the_tasks_there_are(cache):
    with pytest.raises(UsageError, match="none; add labels with `vis4mer label`"):
        cache.task("lvu/scene")
    cache.save_task(TABLE)
    with pytest.raises(UsageError, match="no task 'lvu/scene'; it has lvu/relationship"):
        cache.task("lvu/scene")
    with pytest.raises(UsageError, match="DATASET/TASK"):
        cache.task("../../etc")


@pytest.mark.parametrize(
    "fields",
    [
        {"label": 2},
        {"label": -1},
        {"label": 0.5},
        {"label": math.nan},
        {"label": math.inf},
        {"start_seconds": -1},
        {"start_seconds": 5, "end_seconds": 5},
        {"end_seconds": 0},
        {"start_seconds": math.nan},
        {"end_seconds": math.inf},
        {"start_seconds": 1e300},
    ],
)
def test_rows_that_cannot_be_are_refused_by_their_id(fields):
    with pytest.raises(UsageError, match=r"video 'v\.mp4'"):
        TaskTable(
            dataset="d", task="t", kind="classification", classes=("a", "b"),
            rows=(TaskRow(**({"id": "v.mp4", "split": "train", "label": 0} | fields)),),
        )  # fmt: skip


def test_tables_that_cannot_be_are_refused():
    for fields in ({"classes": ()}, {"kind": "regression"}):
        with pytest.raises(UsageError, match="has classes"):
            TaskTable(**({"dataset": "d", "task": "t", "kind": "classification",
                          "classes": ("a",), "rows": ()} | fields))  # fmt: skip
    for fields in ({"dataset": "../x"}, {"task": "A b"}, {"task": ""}):
        with pytest.raises(UsageError, match="DATASET/TASK"):
            TaskTable(**({"dataset": "d", "task": "t", "kind": "regression", "rows": ()} | fields))
    with pytest.raises(UsageError, match="video id"):
        TaskTable(dataset="d", task="t", kind="regression",
                  rows=(TaskRow(id="", split="train", label=0),))  # fmt: skip


TAMPERED = {
    "unknown kind": lambda t: t.update(kind="ranking"),
    "unknown split": lambda t: t["rows"][0].__setitem__(1, "dev"),
    "short row": lambda t: t["rows"][0].pop() or None,
    "row of no list": lambda t: t["rows"].append("x"),
    "label in words": lambda t: t["rows"][0].__setitem__(2, "0"),
    "label of many digits": lambda t: t["rows"][0].__setitem__(2, 10**400),
    "label beyond the classes": lambda t: t["rows"][0].__setitem__(2, 7),
    "id of a number": lambda t: t["rows"][0].__setitem__(0, 7),
    "huge id": lambda t: t["rows"][0].__setitem__(0, "x" * 5000),
    "far extent": lambda t: t["rows"][0].__setitem__(3, 1e308),
    "no rows": lambda t: t.pop("rows") and None,
    "another's name": lambda t: t.update(task="scene"),
    "climbing name": lambda t: t.update(dataset="../.."),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=list(TAMPERED))
def test_tampered_tables_are_refused_and_found(cache, change):
    cache.save_task(TABLE)
    path = cache.path / "tasks" / "lvu" / "relationship.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    change(content)
    path.write_bytes(seal(content))
    with pytest.raises(CacheFormatError, match=re.escape(str(path))):
        cache.task("lvu/relationship")
    (problem,) = verify_cache(cache).problems
    assert str(path) in problem.reason


def test_a_torn_table_is_refused_and_found(cache):
    cache.save_task(TABLE)
    path = cache.path / "tasks" / "lvu" / "relationship.json"
    path.write_bytes(path.read_bytes().replace(b"train", b"testx"))
    with pytest.raises(CacheFormatError, match="checksum does not match"):
        cache.task("lvu/relationship")
    assert not verify_cache(cache).ok


def test_a_row_whose_extent_is_sampled_names_it():
    rows = (
        TaskRow(id="a", split="train", label=0, start_seconds=2.5, end_seconds=10.0),
        TaskRow(id="b", split="train", label=0, start_seconds=2.0),
        TaskRow(id="c", split="test", label=0, group="film"),
    )
    table = TaskTable(
        dataset="coin", task="recipe", kind="classification", classes=("x",), rows=rows
    )
    assert table.as_sampled(Sampling()) is table
    sampled = table.as_sampled(Sampling(kind="segments", segments=4))
    assert [row.id for row in sampled.rows] == ["a@2500-10000", "b@2000-", "c"]
    assert {(row.start_seconds, row.end_seconds) for row in sampled.rows} == {(None, None)}
    assert [row.group for row in sampled.rows] == ["a", "b", "film"]
    segments = Sampling(kind="segments", segments=4)
    assert [video_of(row.id, segments) for row in sampled.rows] == ["a", "b", "c"]
    assert video_of("a@2500-10000", Sampling()) == "a@2500-10000"  # an id of its own there


def test_leaks_by_id_or_by_group() -> None:
    def row(id: str, split: str, group: str | None = None) -> TaskRow:
        return TaskRow(id=id, split=split, label=0.0, group=group)  # type: ignore[arg-type]

    rows = (row("a", "train", "m"), row("b", "train"), row("a", "test"), row("b", "val"))
    rows += (row("c", "test", "m"), row("d", "test", "n"), row("e", "test"))
    table = TaskTable(dataset="d", task="t", kind="regression", rows=rows)
    assert table.leaking() == ("a", "c")
    assert in_several_splits(rows) == ("a", "b")
    parts = (row("v@0-10", "train"), row("v@10-20", "test"), row("w@0-", "test"))
    assert in_several_splits(parts) == ()
    segments = Sampling(kind="segments", segments=4)
    assert in_several_splits(parts, sampling=segments) == ("v",)


@pytest.mark.parametrize("extent", [(2.5, 9.0), (2.5, None), (None, 9.0), (None, None)])
@pytest.mark.parametrize("name", ["v", "a/b.mp4", "x@y", "line\nend", "v@1-2"])
def test_an_extent_is_taken_off_as_it_was_put_on(
    name: str, extent: tuple[float | None, float | None]
) -> None:
    called = extent_id(name, *extent)
    if called != name:
        assert without_extent(called) == name
    elif name != "v@1-2":
        assert without_extent(name) == name
