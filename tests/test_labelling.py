"""Labels into a cache and what a refresh changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import make_spec, write_tokens
from lvu_files import SMALL, write_lvu
from vis4mer.extract.annotations.labelling import label_cache
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Sampling


def cache_of(path: Path, *ids: str, sampling: Sampling | None = None) -> Cache:
    cache = create_cache(path, replace(make_spec(), sampling=sampling or Sampling()))
    for video_id in ids:
        write_tokens(cache, video_id, np.zeros((2, 4, 16), np.float16))
    return cache


def label(cache: Cache, tmp_path: Path, **options: object):
    return label_cache(cache.path, "lvu", annotations=tmp_path / "lvu_1.0", **options)


def test_new_tables_and_what_the_cache_does_not_hold(tmp_path: Path) -> None:
    write_lvu(tmp_path / "lvu_1.0")
    cache = cache_of(tmp_path / "c.zarr", "-e6lEsIUf3U", "01ClRWyf9I4")
    result = label(cache, tmp_path, tasks=["relationship", "director"])
    assert cache.tasks() == ["lvu/director", "lvu/relationship"]
    relationship, director = result.tables
    assert relationship.is_new
    assert relationship.describe() is None
    assert relationship.missing == ("KAeAqaA0Llg", "__abc_defgh")
    assert director.missing == ("zzzzzzzzzzz",)
    assert cache.task("lvu/director") == director.table
    assert any("there is no folder" in note for note in result.notes)


def test_a_refresh_says_what_changed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "c.zarr", "01ClRWyf9I4")
    lines = ["0 office 01ClRWyf9I4 tt3", "1 airport b tt1", "2 school c tt1"]
    write_lvu(tmp_path / "lvu_1.0", {"scene": {"train": lines}})
    label(cache, tmp_path)
    (same,) = label(cache, tmp_path).tables
    assert (same.is_new, same.added, same.removed, same.changed) == (False, (), (), ())
    lines = ["0 office 01ClRWyf9I4 tt3", "2 school b tt1", "2 school d tt1"]
    write_lvu(tmp_path / "lvu_1.0", {"scene": {"train": lines}})
    (change,) = label(cache, tmp_path).tables
    assert (change.added, change.removed, change.changed) == (("d",), ("c",), ("b",))
    assert change.describe() == (
        "labels of lvu/scene in the cache: 1 video added, 1 video removed, 1 video changed"
    )
    assert {row.id for row in cache.task("lvu/scene").rows} == {"01ClRWyf9I4", "b", "d"}


def test_a_cache_made_of_a_folder_is_labelled_by_its_file_names(tmp_path: Path) -> None:
    write_lvu(tmp_path / "lvu_1.0")
    cache = cache_of(tmp_path / "c.zarr", "x/-e6lEsIUf3U.mp4", "Title [01ClRWyf9I4].webm", "a.mp4")
    label(cache, tmp_path, tasks=["relationship"])
    assert [row.id for row in cache.task("lvu/relationship").rows] == [
        "x/-e6lEsIUf3U.mp4",
        "__abc_defgh",
        "Title [01ClRWyf9I4].webm",
        "KAeAqaA0Llg",
    ]


def test_where_extents_are_part_of_ids_they_are_in_the_table_too(tmp_path: Path) -> None:
    write_lvu(tmp_path / "lvu_1.0")
    cache = cache_of(tmp_path / "c.zarr", "-e6lEsIUf3U@0-124000", sampling=Sampling(kind="spread"))
    label(cache, tmp_path, tasks=["relationship"])
    row = cache.task("lvu/relationship").rows[0]
    assert (row.id, row.end_seconds) == ("-e6lEsIUf3U@0-124000", None)


def test_another_datasets_labels_are_refused(tmp_path: Path) -> None:
    write_lvu(tmp_path / "lvu_1.0", SMALL)
    cache = cache_of(tmp_path / "c.zarr", "other")
    with pytest.raises(UsageError, match=r"lvu names no video of .*: it says '-e6lEsIUf3U', the"):
        label(cache, tmp_path)
    write_lvu(tmp_path / "lvu_1.0", {"scene": {"train": []}})
    with pytest.raises(UsageError, match="lvu names no video in scene"):
        label(cache, tmp_path, tasks=["scene"])
    assert cache.tasks() == []


def test_a_damaged_table_is_replaced_and_said(tmp_path: Path) -> None:
    write_lvu(tmp_path / "lvu_1.0")
    cache = cache_of(tmp_path / "c.zarr", "01ClRWyf9I4")
    label(cache, tmp_path, tasks=["director"])
    (file,) = (cache.path / "tasks").rglob("director*")
    file.write_bytes(file.read_bytes()[:-9])
    result = label(cache, tmp_path, tasks=["director"])
    (change,) = result.tables
    assert (change.is_new, change.was_damaged) == (True, True)
    assert "lvu/director: the table in the cache was damaged and is replaced" in result.notes
    assert cache.task("lvu/director") == change.table
