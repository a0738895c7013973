"""One word for equal values: what changes it and what does not; and what made the entries."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from caches import make_cache, make_spec, write_tokens
from entries import edit_record, one_entry
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.digest import digest_cache, digest_records
from vis4mer.store.packing import pack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.provenance import makers, without_private
from vis4mer.store.summary import summarise
from vis4mer.store.tasks import TaskRow


def test_the_digest_by_hand(tmp_path):
    """The definition in the module's docstring, written out for one entry."""
    cache = create_cache(tmp_path / "c.zarr", make_spec(dim=2, num_prefix=0, arrays=("patch",)))
    tokens = np.arange(2 * 4 * 2, dtype=np.float16).reshape(2, 4, 2)
    write_tokens(cache, "é.mp4", tokens, pts_seconds=[0.0, 1.5])
    times = hashlib.sha256(struct.pack("<3d", 0.0, 1.5, 2.0)).hexdigest()  # it lasts 2 s
    values = hashlib.sha256(struct.pack("<16e", *range(16))).hexdigest()
    line = f'["é.mp4",2,"{times}",{{"patch":["float16",[2,4,2],"{values}"]}}]\n'
    expected = hashlib.sha256(f"{cache.spec.fingerprint}\n{line}".encode()).hexdigest()
    found = digest_cache(cache)
    assert found.root == expected == found.arrays["patch"]
    assert (found.num_videos, found.fingerprint, found.tasks) == (1, cache.spec.fingerprint, {})


def test_how_it_lies_on_the_disk_makes_no_difference(tmp_path):
    first, second = make_cache(tmp_path / "a"), make_cache(tmp_path / "b")
    digest = digest_cache(first)
    assert [first.record(i).attempt for i in first.ids()] != [
        second.record(i).attempt for i in second.ids()
    ]
    assert digest_cache(second) == digest
    pack_cache(second)
    (second.path / "catalog.json").unlink()
    assert digest_cache(open_cache(second.path)) == digest
    assert summarise(first).digest == digest.root
    records = [first.record(i) for i in first.ids()]
    assert digest_records(first.spec, reversed(records))[0] == digest.root


def test_every_value_changes_it_and_provenance_does_not(tmp_path):
    cache = one_entry(tmp_path)
    roots = {digest_cache(cache).root}

    def root_with(change) -> str:
        edit_record(cache, "clip.mp4", change)
        return digest_cache(open_cache(cache.path)).root

    for harmless in (
        lambda r: r.update(provenance={"host": "elsewhere"}),
        lambda r: r["source"].update(name="other.mp4", mtime_ns=5),
    ):
        assert root_with(harmless) in roots
    for harm in (
        lambda r: r["pts_seconds"].__setitem__(3, 3.000001),
        lambda r: r.update(duration_seconds=11.0),
        lambda r: r["arrays"]["patch"].update(sha256="0" * 64),
        lambda r: r["arrays"]["prefix"].update(sha256="1" * 64),
    ):
        roots.add(root_with(harm))
    assert len(roots) == 5


def test_a_copy_of_some_arrays_shares_their_digests(tmp_path):
    cache = make_cache(tmp_path, grid=(2, 2))
    before = digest_cache(cache)
    pool_cache(cache, (1,))
    after = digest_cache(open_cache(cache.path))
    assert after.root != before.root
    assert {name: after.arrays[name] for name in before.arrays} == dict(before.arrays)
    assert set(after.arrays) == {"patch", "prefix", "grid1"}


def test_task_tables_have_digests_of_their_own(tmp_path):
    cache = make_cache(tmp_path)
    before = digest_cache(cache)
    table = cache.task("toy/label")
    cache.save_task(replace(table, rows=tuple(reversed(table.rows))))
    assert digest_cache(cache) == before
    cache.save_task(replace(table, rows=(*table.rows, TaskRow(id="w", split="val", label=0))))
    assert digest_cache(cache).tasks != before.tasks
    assert digest_cache(cache).root == before.root


# Provenance ------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    return one_entry(tmp_path).record("clip.mp4")


def made_by(cache, entry_id: str, **provenance: str) -> None:
    edit_record(cache, entry_id, lambda r: r.update(provenance=provenance))


def test_a_cache_of_two_machines_says_so(tmp_path):
    cache = make_cache(tmp_path, num_videos=3)
    for i, device in enumerate(("cuda H100", "cuda H100", "cpu EPYC")):
        made_by(cache, f"v{i}", device=device, torch="2.9", host=f"node{i}", time=f"2026-0{i + 1}")
    summary = summarise(open_cache(cache.path))
    assert [(m.num_videos, m.about["device"]) for m in summary.makers] == [
        (2, "cuda H100"),
        (1, "cpu EPYC"),
    ]
    lines = [value for _, value in summary.lines(human_bytes=str)]
    assert any("in 2 different ways" in line for line in lines)
    assert "2 videos: device cuda H100" in lines
    assert "1 video: device cpu EPYC" in lines


def test_hosts_and_moments_make_no_other_machine(tmp_path):
    cache = make_cache(tmp_path, num_videos=3)
    for i in range(3):
        made_by(cache, f"v{i}", device="cpu", host=f"node{i}", time=f"2026-0{i + 1}")
    summary = summarise(open_cache(cache.path))
    assert len(summary.makers) == 1
    assert not any(name == "made" for name, _ in summary.lines(human_bytes=str))


def test_a_maker_without_a_version_is_told_from_one_with(record):
    records = [
        replace(record, provenance={"torch": "2.9", "decoder": "libavcodec 62"}),
        replace(record, provenance={"torch": "2.9"}),
    ]
    first, second = makers(records)
    assert {first.describe((first, second)), second.describe((first, second))} == {
        "decoder libavcodec 62",
        "decoder not recorded",
    }


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("videos/a.mp4", "videos/a.mp4"),
        ("/home/ann/films/a.mp4", "a.mp4"),
        ("../ann/a.mp4", "a.mp4"),
        ("~ann/a.mp4", "a.mp4"),
        ("C:\\Users\\ann\\a.mp4", "a.mp4"),
        ("\\\\server\\ann\\a.mp4", "a.mp4"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_what_is_private_stays_home(record, name, public):
    about = {"host": "annes-laptop", "user": "ann", "device": "cpu", "time": "2026-01-01"}
    source = replace(record.source, name=name)
    record = replace(record, source=source, provenance=about)
    shared = without_private(record)
    assert shared.source.name == public
    assert shared.source.sha256 == record.source.sha256
    assert shared.provenance == {"device": "cpu", "time": "2026-01-01"}
    assert "ann" not in json.dumps(shared.to_json())
