"""A cache or a run from somebody else: claims, links, strange JSON, other formats. One clear line,
nothing followed, nothing unpickled, no memory taken for what is only claimed."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
import tracemalloc

import pytest
import torch
from entries import edit_record, edit_spec, make_tokens, one_entry, record_file, shard, write
from judged_runs import write_run
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.decoders import build_decoder, decoder_class
from vis4mer.decode.runs.budget import Budget
from vis4mer.decode.runs.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from vis4mer.decode.runs.run import open_run
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.catalog import parse_catalog
from vis4mer.store.claims import claim_path, read_claim
from vis4mer.store.errors import CacheFormatError, DamagedEntryError, Vis4merError
from vis4mer.store.files import canonical_json, parse_json, read_json_bytes, seal
from vis4mer.store.layout import crc32c
from vis4mer.store.packing import pack_cache
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.verify import verify_cache

HOSTILE = "a\x1b[2J\u202e\nb[bold]c[/]"


def table():
    rows = (TaskRow(id="clip.mp4", split="test", label=0),)
    return TaskTable(dataset="d", task="t", kind="classification", classes=("a", "b"), rows=rows)


def read_all(path):
    opened = open_cache(path)
    opened.task("d/t")
    opened.failures()
    return opened.read("clip.mp4")


def move_behind_link(path, elsewhere):
    """The same bytes, reached through a link: whoever follows it reads what is right."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


# Links ---------------------------------------------------------------------------------------

LINKED = ("record", "record's folder", "shard", "attempt", "fan", "videos", "pack", "packs")
LINKED += ("spec", "table", "tables", "tasks")


@pytest.mark.parametrize("what", LINKED)
def test_no_link_within_a_cache_is_followed(tmp_path, what):
    cache = one_entry(tmp_path)
    create_cache(cache.path, cache.spec).save_task(table())
    if what.startswith("pack"):
        pack_cache(cache, free_at_once=True)
        cache = open_cache(cache.path)
    record = record_file(cache, "clip.mp4")
    folder = cache.path / cache.record("clip.mp4").folder
    packs = cache.path / "packs"
    path = {
        "record": record,
        "record's folder": record.parent,
        "shard": shard(cache, "clip.mp4"),
        "attempt": folder,
        "fan": folder.parent,
        "videos": cache.path / "videos",
        "packs": packs,
        "pack": next(iter(packs.glob("*.pack")), packs),
        "spec": cache.path / "zarr.json",
        "table": cache.path / "tasks" / "d" / "t.json",
        "tables": cache.path / "tasks" / "d",
        "tasks": cache.path / "tasks",
    }[what]
    (cache.path / "catalog.json").unlink()
    move_behind_link(path, tmp_path / "outside" / path.name)
    with pytest.raises(Vis4merError, match=r"link|not a plain file|Too many levels|no entry"):
        read_all(cache.path)


def test_the_directory_itself_may_be_a_link(tmp_path):
    cache = one_entry(tmp_path)
    (tmp_path / "link.zarr").symlink_to(cache.path)
    linked = open_cache(tmp_path / "link.zarr")
    assert (linked.read("clip.mp4") == cache.read("clip.mp4")).all()
    assert verify_cache(linked, "full").ok


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl"])
def test_no_link_within_a_run_is_followed(tmp_path, name):
    run = write_run(tmp_path / "run", right="1101")
    (run / "metrics.jsonl").touch()
    move_behind_link(run / name, tmp_path / "outside" / name)
    with pytest.raises(CacheFormatError, match=f"{name}: a link stands there"):
        [read() for read in (open_run(run).epochs, open_run(run).results)]


def test_a_linked_checkpoint_is_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    write_checkpoint(path, Checkpoint(tensors={"x": torch.zeros(2)}, about={}))
    assert read_checkpoint(path).tensors["x"].shape == (2,)
    move_behind_link(path, tmp_path / "outside" / path.name)
    with pytest.raises(CacheFormatError, match="expected a plain file"):
        read_checkpoint(path)


def test_a_linked_claim_says_nothing(tmp_path):
    cache = one_entry(tmp_path)
    path = claim_path(cache.path, "clip.mp4")
    path.parent.mkdir()
    path.write_bytes(seal({"id": "clip.mp4", "worker": "0" * 16}))
    assert read_claim(path).id == "clip.mp4"
    move_behind_link(path, tmp_path / "outside" / path.name)
    assert read_claim(path).id is None


def test_json_is_read_from_plain_files_alone(tmp_path):
    with pytest.raises(CacheFormatError, match="plain file"):
        read_json_bytes(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(CacheFormatError, match="plain file"):
            read_json_bytes(tmp_path / "s")
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert read_json_bytes(tmp_path / "b.json", follow_links=True) == b"{}"
    with pytest.raises(CacheFormatError, match="expected at most 1"):
        read_json_bytes(tmp_path / "a.json", max_bytes=1)


# Claims --------------------------------------------------------------------------------------


def test_an_index_that_points_outside_its_file_is_refused(tmp_path):
    """With right checksums of index, object and record."""
    cache = one_entry(tmp_path)
    path = shard(cache, "clip.mp4")
    record = cache.record("clip.mp4")
    capacity = record.arrays["patch"].frames_per_shard
    for offset in (len(path.read_bytes()), 2**63, 2**64 - 1, 10**10):
        data = path.read_bytes()
        index = bytearray(data[-16 * capacity - 4 : -4])
        struct.pack_into("<Q", index, 16 * 3, offset)
        data = data[: -16 * capacity - 4] + bytes(index) + struct.pack("<I", crc32c(bytes(index)))
        path.write_bytes(data)
        stored = {"size": len(data), "crc32c": crc32c(data)}
        edit_record(cache, "clip.mp4", lambda r: r["objects"].update({"patch/c/0/0/0": stored}))  # noqa: B023
        with pytest.raises(DamagedEntryError, match="frame 3 of the shard is missing or outside"):
            open_cache(cache.path).read("clip.mp4", frames=[0])


def test_a_file_that_claims_gigabytes_takes_no_memory(tmp_path):
    """In a record's size and times, in a catalog's row, in the header of safetensors."""
    cache = one_entry(tmp_path)
    edit_record(cache, "clip.mp4", lambda r: r["objects"]["patch/c/0/0/0"].update(size=10 * 10**9))
    key = cache.record("clip.mp4").key
    rows = seal({"entries": [[key, "clip.mp4", 10**10, 1, "{}"]], "tasks": []})
    about = {"x": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10**10]}}
    header = json.dumps(about).encode()
    weights = tmp_path / "last.safetensors"
    tracemalloc.start()
    try:
        with pytest.raises(DamagedEntryError, match="the record says 10000000000"):
            open_cache(cache.path).read("clip.mp4")
        assert parse_catalog(rows, name="c")[0][key].size == 10**10
        for size in (len(header), 10**10, 2**64 - 1):
            weights.write_bytes(struct.pack("<Q", size) + header + bytes(1000))
            with pytest.raises(CacheFormatError, match="not a safetensors file") as error:
                read_checkpoint(weights)
            assert "\n" not in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_config_that_asks_for_more_than_its_weights_is_refused():
    def build(width, depth=1):
        with Budget(1000, otherwise="too large"):
            layers = [torch.nn.Linear(width, width) for _ in range(depth)]
            return sum(layer.weight.numel() for layer in layers)

    assert build(1000) == 1_000_000
    for width, depth in ((10**6, 1), (1000, 10)):
        with pytest.raises(CacheFormatError, match="too large"):
            build(width, depth)
    with Budget(1000, otherwise="too large"):
        many = torch.arange(100_000)
        assert (many[:10, None] * many[None, :10]).shape == (10, 10)
        for make in (lambda: many[:, None] * many, lambda: torch.eye(10**6)):
            with pytest.raises(CacheFormatError, match="too large"):
                make()


@pytest.mark.parametrize("name", ["vis4mer", "lst", "stam", "gru", "attentive-probe"])
def test_no_option_of_a_decoder_takes_more_than_its_weights(name):
    """Widths, depths, states of millions: refused before they are made, and within a moment."""
    shape = TokenShape(frames=4, grid=(2, 2), num_prefix=1, dim=64)
    held = sum(value.numel() for value in built(name, shape, {}).state_dict().values())
    with Budget(held, otherwise="too large"):
        built(name, shape, {})
    options = {option.name for option in decoder_class(name).Options.about()}
    for option in sorted({"depth", "width", "heads", "state_size"} & options):
        for value in (10**7, 10**15):
            with pytest.raises(Vis4merError), Budget(held, otherwise="too large"):
                built(name, shape, {option: value})


def built(name, shape, options):
    return build_decoder(name, shape=shape, num_outputs=3, options=options)


HUGE = 10**4000


@pytest.mark.parametrize("field", ["num_frames", "damaged_frames", "size", "crc32c", "offset"])
def test_integers_of_thousands_of_digits_are_refused(tmp_path, field):
    cache = one_entry(tmp_path)
    pack_cache(cache, free_at_once=True)

    def change(record):
        if field in ("size", "crc32c"):
            record["objects"]["patch/c/0/0/0"][field] = HUGE
        elif field == "offset":
            record["pack"]["offsets"]["patch/c/0/0/0"] = HUGE
        else:
            record[field] = HUGE

    edit_record(cache, "clip.mp4", change)
    with pytest.raises(CacheFormatError, match="an integer of at most") as error:
        open_cache(cache.path).read("clip.mp4")
    assert len(str(error.value)) < 400


# JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ["zarr.json", "tasks/d/t.json", "catalog.json", "failures"])
@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 100_000], ids=["objects", "lists"])
def test_deep_json_is_refused(tmp_path, room, text):
    cache = one_entry(tmp_path)
    cache.save_task(table())
    path = cache.path / room
    if room == "failures":
        path = path / "ab" / "x-0123456789abcdab.json"
        path.parent.mkdir(parents=True)
    path.write_text(text)
    if room in ("catalog.json", "failures"):  # not needed to read, and passed by
        assert read_all(cache.path).shape == (10, 16, 8)
        (problem,) = verify_cache(open_cache(cache.path)).problems
        assert "not JSON" in problem.reason
        return
    with pytest.raises(CacheFormatError, match="not JSON"):
        read_all(cache.path)


def test_a_key_that_stands_twice_counts_as_damage(tmp_path):
    """The checksum is over what JSON keeps: the last; so the first cannot hide behind it."""
    cache = one_entry(tmp_path)
    path = record_file(cache, "clip.mp4")
    path.write_bytes(path.read_bytes().replace(b'"id":', b'"id":"other.mp4","id":'))
    assert open_cache(cache.path).read("clip.mp4").shape == (10, 16, 8)
    path.write_bytes(
        path.read_bytes().replace(b'"num_frames":10', b'"num_frames":10,"num_frames":9')
    )
    with pytest.raises(CacheFormatError, match="checksum"):
        open_cache(cache.path).read("clip.mp4")
    with pytest.raises(CacheFormatError, match="twice"):
        parse_json(b'{"a":1,"a":2}', name="x", unique=True)


def test_two_ids_of_one_key_cannot_be(tmp_path):
    """A catalog or a record whose id is not the one of its key."""
    cache = one_entry(tmp_path)
    key = cache.record("clip.mp4").key
    text = record_file(cache, "clip.mp4").read_text()
    with pytest.raises(CacheFormatError, match="does not belong to the key"):
        parse_catalog(seal({"entries": [[key, "other", 1, 1, text]]}), name="c")
    for other in (5, None, ["a"], {"a": 1}):
        with pytest.raises(CacheFormatError, match="does not belong to the key"):
            parse_catalog(seal({"entries": [[other, "clip.mp4", 1, 1, text]]}), name="c")


# What a terminal is given --------------------------------------------------------------------


def test_hostile_ids_are_shown_and_not_obeyed(tmp_path):
    cache = one_entry(tmp_path, entry_id=HOSTILE)
    write(create_cache(cache.path, cache.spec), "whole", make_tokens(4, spec=cache.spec))
    for command in ("ls", "info", "status", "verify"):
        done = CliRunner().invoke(app, ["cache", command, str(cache.path)])
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output
        assert "\u202e" not in done.output
        if command == "ls":
            assert r"a\x1b[2J\u202e\x0ab[bold]c[/]" in done.output.replace("\n", "")
    shard(cache, HOSTILE).unlink()
    with pytest.raises(DamagedEntryError) as error:
        open_cache(cache.path).read(HOSTILE)
    assert str(error.value).isprintable()
    done = CliRunner().invoke(app, ["cache", "verify", str(cache.path)])
    assert done.exit_code == 1
    assert "\x1b" not in done.output


# Other formats -------------------------------------------------------------------------------


class Trap:
    """What unpickling would do."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled_from_a_zarr_of_version_2(tmp_path):
    """An array of objects, as Zarr's old format had them, in the place of ours."""
    cache = one_entry(tmp_path)
    folder = cache.path / cache.record("clip.mp4").folder / "patch"
    old = {
        "zarr_format": 2, "shape": [10, 16, 8], "chunks": [10, 16, 8], "dtype": "|O", "order": "C",
        "compressor": None, "fill_value": None, "filters": [{"id": "pickle", "protocol": 4}],
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(old))
    (folder / "0.0.0").write_bytes(pickle.dumps([Trap()]))
    assert open_cache(cache.path).read("clip.mp4").shape == (10, 16, 8)  # nobody asked for it
    data = canonical_json(old)
    (folder / "zarr.json").write_bytes(data)
    stored = {"size": len(data), "crc32c": crc32c(data)}
    edit_record(cache, "clip.mp4", lambda r: r["objects"].update({"patch/zarr.json": stored}))
    with pytest.raises(DamagedEntryError, match="zarr cannot read it"):
        open_cache(cache.path).read("clip.mp4")


def test_a_root_of_version_2_is_no_cache(tmp_path):
    cache = one_entry(tmp_path)
    (cache.path / "zarr.json").unlink()
    (cache.path / ".zgroup").write_text('{"zarr_format":2}')
    with pytest.raises(CacheFormatError, match="no feature cache"):
        open_cache(cache.path)


@pytest.mark.parametrize("backbone", ["os:system", "../x:y"])
def test_a_spec_that_names_code_is_read_and_runs_nothing(tmp_path, backbone):
    """A plug-in is imported when it stands on the command line, never out of a cache."""
    cache = one_entry(tmp_path)

    def change(spec):
        spec.update(backbone=backbone)
        spec.update(added=1)  # so that the fingerprint is not compared

    edit_spec(cache, change)
    assert open_cache(cache.path).spec.backbone == backbone
    assert open_cache(cache.path).read("clip.mp4").shape == (10, 16, 8)
