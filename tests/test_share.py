"""Shares of one request: who begins with what, and that helping leaves nothing undone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import extraction as ex
import pytest
from vis4mer.extract.planning.share import Share, parse_share
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache
from vis4mer.store.errors import UsageError

# From `printf %s a.mp4 | sha256sum | cut -c1-16`, that number modulo 3, plus 1.
OF_THREE = {"a": 2, "b": 1, "c": 1, "d": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for frames, name in enumerate(OF_THREE, start=1):
        ex.write_video(tmp_path / "videos", name, frames)
    return tmp_path / "videos"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return ex.grey_cache(tmp_path / "c.zarr")


def slurm(task: int, first: int, last: int, step: int | None = None) -> dict[str, str]:
    told = {"ID": task, "MIN": first, "MAX": last, **({} if step is None else {"STEP": step})}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def test_a_share_follows_from_the_ids():
    for name, number in OF_THREE.items():
        owners = [i for i in (1, 2, 3) if Share(number=i, count=3).has(f"{name}.mp4")]
        assert owners == [number]


def test_shares_are_about_equal():
    shares = [Share(number=i + 1, count=10) for i in range(10)]
    sizes = [sum(share.has(f"videos/{i}.mp4") for i in range(5000)) for share in shares]
    assert sum(sizes) == 5000
    assert 400 < min(sizes) <= max(sizes) < 600  # five standard deviations


def test_a_part_of_a_share_lies_in_it():
    share = Share(number=3, count=4)
    for name in (f"{i}.mp4" for i in range(200)):
        of_four = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 4
        assert share.has(name) == (of_four == 2)
    parts = [share.part(number, 2) for number in (1, 2)]
    assert [str(part) for part in parts] == ["3/8", "7/8"]
    for name in (f"{i}.mp4" for i in range(200)):
        assert [part.has(name) for part in parts].count(True) == share.has(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (slurm(0, 0, 19, 1), "1/20"),
        (slurm(19, 0, 19, 1), "20/20"),
        (slurm(7, 1, 20), "7/20"),
        (slurm(9, 1, 17, 4), "3/5"),  # --array=1-17:4 is 1, 5, 9, 13, 17
        (slurm(3, 1, 7, 1), "3/7"),  # --array=1,3,7
        (slurm(5, 5, 5), "1/1"),
    ],
)
def test_the_tasks_of_an_array(environment, expected):
    assert str(parse_share("slurm", environment=environment)) == expected


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("0/5", {}, "0/5: expected"),
        ("6/5", {}, "6/5: expected"),
        ("1/0", {}, "1/0: expected"),
        ("a/b", {}, "a/b: expected NUMBER/COUNT"),
        ("3", {}, "NUMBER/COUNT"),
        ("-1/5", {}, "NUMBER/COUNT"),
        ("slurm", {}, "SLURM_ARRAY_TASK_ID is not set"),
        ("slurm", {"SLURM_ARRAY_TASK_ID": "x"}, "ID is 'x'"),
        ("slurm", {"SLURM_ARRAY_TASK_ID": "3"}, "MIN is not set"),
        ("slurm", slurm(9, 1, 8), "is 9, expected 1 to 8"),
    ],
)
def test_what_is_no_share_is_said_in_one_line(text, environment, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_share(text, environment=environment)
    assert "\n" not in str(caught.value)


def names_read(folder: Path, cache: Cache, share: Share | None, **options) -> str:
    """The names of the videos in the order in which one thread reads them."""
    reader = ex.FakeReader()
    fill_cache(
        *(ex.videos(folder), cache, ex.grey_backbone(), reader),
        **{"workers": 1, "claiming": True, "share": share, **options},
    )
    return "".join(stream._path.stem for stream in reader.streams)


def test_a_worker_begins_with_its_share_and_then_helps(folder, cache):
    read = names_read(folder, cache, Share(number=1, count=3))
    assert read[:2] in ("bc", "cb")
    assert sorted(read) == list("abcd")


def test_without_helping_the_share_is_all(folder, cache):
    share = Share(number=1, count=3, helps=False)
    assert sorted(names_read(folder, cache, share)) == ["b", "c"]
    cache.refresh()
    assert cache.ids() == ["b.mp4", "c.mp4"]


def test_a_limit_keeps_the_order_given_within_the_share(folder, cache):
    assert names_read(folder, cache, Share(number=1, count=3), limit=3) == "bca"


def test_the_share_of_one_that_never_came_is_done_by_the_others(folder, cache):
    names_read(folder, cache, Share(number=1, count=3))
    assert names_read(folder, cache, Share(number=2, count=3)) == ""
    cache.refresh()
    assert cache.ids() == [f"{name}.mp4" for name in OF_THREE]
