"""A short form of `benchmarks/fuzz.py`, and that it sees what it looks for."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest
from vis4mer.store.errors import CacheFormatError

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"
EXAMPLES = 8


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def fuzzer(fuzz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz").resolve()
    return fuzz.Fuzzer(folder, tuple(fuzz.TARGETS))


@pytest.mark.parametrize(
    "target", ["records", "spec", "index", "packs", "catalog", "tasks", "runs"]
)
def test_malice_gives_right_values_or_one_clear_line(fuzz, fuzzer, target):
    before = fuzz.ANSWERS.copy()
    assert fuzzer.run(target, examples=EXAMPLES, number=0) is None
    assert fuzz.ANSWERS["refused"] > before["refused"]
    assert fuzz.ANSWERS["answered"] > before["answered"]


def test_every_target_is_tried(fuzz):
    (marked,) = test_malice_gives_right_values_or_one_clear_line.pytestmark
    assert set(fuzz.TARGETS) == set(marked.args[1])


def test_what_leaves_the_cache_is_seen(fuzz, tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "x").write_text("x")
    (inside / "link").symlink_to(outside / "x")
    with fuzz.watch().over(inside):
        (inside / "x").read_text()
    for leave in (
        (outside / "x").read_text,
        (inside / "link").read_text,
        (inside / ".." / "outside" / "x").read_text,
        lambda: (inside / "y").write_text("y"),
        (inside / "x").unlink,
    ):
        with pytest.raises(fuzz.FoundError), fuzz.watch().over(inside):
            leave()


def test_memory_is_seen(fuzz):
    with fuzz.frugal(1000):
        bytearray(1000)
    with pytest.raises(fuzz.FoundError, match="bytes of memory"), fuzz.frugal(1000):
        bytearray(10**7)


def fail(error):
    raise error


def test_only_clear_lines_count_as_answers(fuzz):
    assert fuzz.judged(lambda: 5) == (True, 5)
    assert fuzz.judged(lambda: fail(CacheFormatError("clear"))) == (False, "clear")
    for error in (ValueError("x"), MemoryError(), CacheFormatError("two\nlines")):
        with pytest.raises(fuzz.FoundError):
            fuzz.judged(lambda error=error: fail(error))
    with pytest.raises(fuzz.FoundError, match="a message of"):
        fuzz.judged(lambda: fail(CacheFormatError("x" * 5000)))


def test_wrong_values_are_seen(fuzz, tmp_path):
    subject = fuzz.make_cache(tmp_path)
    fuzz.read_cache(subject, subject.root, random.Random(0))
    subject.frames["patch"].pop()
    with pytest.raises(fuzz.FoundError, match="wrong values in patch"):
        [fuzz.read_cache(subject, subject.root, random.Random(number)) for number in range(8)]
