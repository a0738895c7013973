"""What is quick with ten thousand entries says the same as the plain way."""

from __future__ import annotations

import hashlib
import json

import pytest
from entries import make_spec, make_tokens, write
from vis4mer.store import catalog, fields, files
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError
from vis4mer.store.files import canonical_json, parse_json, require_checksum, seal, unseal

NUMBERS = [
    [], [1, 2.5, -3], [0.0, -0.0, 1e308], [2**53 + 1],
    [True], [1, None], ["1"], [float("inf")], [1, float("nan")], [10**400], [[1]],
]  # fmt: skip


@pytest.mark.parametrize("values", NUMBERS, ids=str)
def test_numbers_one_by_one_or_all_at_once(values):
    def outcome(read):
        try:
            return [repr(value) for value in read()]
        except CacheFormatError as error:
            return str(error)

    def one_by_one():
        return [fields.as_number(value, "times", name="file") for value in values]

    quick = outcome(lambda: fields.numbers({"times": values}, "times", name="file"))
    assert quick == outcome(one_by_one)


CONTENTS = [
    {"id": "clip.mp4", "zeros": [0.0, 1e-9]},
    {"id": "straße\u200b", "checksums": "none", "z": {"checksum": "sha256:0"}},
    {"id": "a\n\x01\\u0041", "z": 1},
    {"a": 1},  # nothing after the checksum
    {"a": 'x","checksum":"', "z": 1},
]


@pytest.mark.parametrize("content", CONTENTS, ids=str)
def test_a_seal_is_checked_as_it_stands_or_written_anew(content):
    """Each is accepted as it was sealed, also when spelt otherwise, and no other bytes are."""
    data = seal(content)
    require_checksum(parse_json(data, name="x"), name="x")
    for same in (data, data.decode(), json.dumps(json.loads(data), indent=1)):
        assert {k: v for k, v in unseal(same, name="x").items() if k != "checksum"} == content
    for i in range(0, len(data), 3):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(CacheFormatError):
            unseal(changed, name="x")


def test_most_seals_are_not_written_anew(monkeypatch):
    sealed = [seal(content) for content in CONTENTS[:1]]
    monkeypatch.setattr(files, "require_checksum", None)
    for data in sealed:
        unseal(data, name="x")


@pytest.mark.parametrize("half", ['"\\ud800"', '"\\uD800"', '"\ud800"'])
def test_half_a_character_is_refused_even_with_the_right_checksum(half):
    body = '{"a":' + half + ',"z":1}'
    digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
    text = body.replace(',"z"', f',"checksum":"sha256:{digest}","z"')
    with pytest.raises(CacheFormatError):
        unseal(text, name="x")


def test_many_records_are_read_at_once_and_none_is_mistaken(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_PORTION", 3)
    cache = create_cache(tmp_path / "c.zarr", make_spec(grid=(1, 1), num_prefix=0, dim=1))
    ids = [f"video {i}" for i in range(20)]
    for entry_id in ids:
        write(cache, entry_id, {"patch": make_tokens(2, spec=cache.spec)["patch"]})
    records = sorted((cache.path / "records").glob("*/*.json"))
    plain = {path.stem: json.loads(path.read_text())["id"] for path in records}
    assert {k: row.id for k, row in catalog.load_snapshot(cache.path).rows.items()} == plain
    records[4].write_bytes(b"{")
    snapshot = catalog.load_snapshot(cache.path)
    assert set(snapshot.rows) == set(plain) - {records[4].stem}
    assert [str(records[4]) in line for line in snapshot.damaged] == [True]
    records[4].unlink()
    cache.write_catalog()
    assert open_cache(cache.path).ids() == sorted(set(ids) - {plain[records[4].stem]})


def test_a_records_path_and_its_name_are_one():
    from pathlib import Path

    from vis4mer.store.records import record_name, record_path

    for root in (Path("c.zarr"), Path("/a/b.zarr"), Path("../x")):
        assert record_name(root, "slug-0123456789abcdef") == str(
            root / "records" / "01" / "slug-0123456789abcdef.json"
        )
        assert str(record_path(root, "slug-0123456789abcdef")) == record_name(
            root, "slug-0123456789abcdef"
        )


def test_canonical_json_is_what_a_seal_covers():
    body = canonical_json({"b": 1, "a": [1.5]})
    assert json.loads(seal({"b": 1, "a": [1.5]}))["checksum"] == (
        f"sha256:{hashlib.sha256(body).hexdigest()}"
    )
