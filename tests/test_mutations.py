"""Random harm to every sort of file that a cache has: a short form of `benchmarks/mutations.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "mutations.py"


@pytest.fixture(scope="module")
def mutations():
    spec = importlib.util.spec_from_file_location("mutations_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_no_harm_gives_a_wrong_value_in_silence(mutations, tmp_path):
    harms = mutations.run(tmp_path, count=60, seed=1)
    assert [harm for harm in harms if harm.outcome in ("silent", "crash")] == []
    assert len({harm.sort for harm in harms}) >= 8
    assert {harm.kind for harm in harms} == set(mutations.KINDS)
    # What is derived, or only tells of a failure, may go without a word; and only as a whole.
    harmless = [harm for harm in harms if harm.outcome == "harmless"]
    assert {harm.kind for harm in harmless} <= {"delete"}
    assert {harm.sort for harm in harmless} <= {"catalog", "failure", "group"}


def test_a_wrong_value_would_be_seen(mutations, tmp_path):
    """The examination itself: of a cache whose truth is another one."""
    cache = mutations.make_cache(tmp_path / "c.zarr", stored_dtype="float16")
    truth = mutations.contents(cache)
    assert mutations.examine(cache.path, truth) == ("harmless", False, "")
    truth["v2 patch"] = truth["v2 patch"][::-1]
    assert mutations.examine(cache.path, truth) == ("silent", True, "v2 patch")
