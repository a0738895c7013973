"""What made the numbers: fingerprints, refusals field by field, versions; and names of entries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import pytest
from entries import edit_spec, make_spec, make_tokens, one_entry, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, FingerprintError, UsageError
from vis4mer.store.keys import entry_key, fan, slug_name, task_path
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling, diff_specs

PREPROCESS = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# One change for every field of a spec that makes other numbers: what is said of it.
CHANGES = {
    "backbone": ({"backbone": "vit_other"}, "cache vit_test, asked vit_other"),
    "weights_sha256": ({"weights_sha256": "1" * 64}, f"cache {'0' * 16}…, asked {'1' * 16}…"),
    "layer": ({"layer": "block-3"}, "cache final-norm, asked block-3"),
    "preprocess.size": (
        {"preprocess": dataclasses.replace(PREPROCESS, size=(32, 48))},
        "cache (32, 32), asked (32, 48)",
    ),
    "preprocess.resize": (
        {"preprocess": dataclasses.replace(PREPROCESS, resize="squash")},
        "cache short-side, asked squash",
    ),
    "preprocess.crop_pct": (
        {"preprocess": dataclasses.replace(PREPROCESS, crop_pct=0.9)},
        "cache 1.0, asked 0.9",
    ),
    "preprocess.interpolation": (
        {"preprocess": dataclasses.replace(PREPROCESS, interpolation="bilinear")},
        "cache bicubic, asked bilinear",
    ),
    "preprocess.mean": (
        {"preprocess": dataclasses.replace(PREPROCESS, mean=(0.5, 0.5, 0.4))},
        "cache (0.5, 0.5, 0.5), asked (0.5, 0.5, 0.4)",
    ),
    "preprocess.std": (
        {"preprocess": dataclasses.replace(PREPROCESS, std=(0.1, 0.5, 0.5))},
        "cache (0.5, 0.5, 0.5), asked (0.1, 0.5, 0.5)",
    ),
    "sampling.fps": ({"sampling": Sampling(fps=2)}, "cache 1.0, asked 2.0"),
    "sampling.kind": ({"sampling": Sampling(kind="spread")}, "cache fps, asked spread"),
    "reader": ({"reader": "decord"}, "cache pyav, asked decord"),
    "compute_dtype": ({"compute_dtype": "bfloat16"}, "cache float32, asked bfloat16"),
    "stored_dtype": ({"stored_dtype": "int8"}, "cache float16, asked int8"),
    "grid": ({"grid": (4, 2)}, "cache (4, 4), asked (4, 2)"),
    "num_prefix": ({"num_prefix": 1}, "cache 2, asked 1"),
    "dim": ({"dim": 16}, "cache 8, asked 16"),
}
NOT_IDENTITY = {"weights", "arrays", "unknown_fields"}
OF_SEGMENTS = {"sampling.segments", "sampling.clip_frames"}
SEGMENTS = Sampling(kind="segments", segments=4, clip_frames=2)


def test_every_field_is_either_identity_or_said_not_to_be():
    spec = make_spec()
    names = set()
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if dataclasses.is_dataclass(value):
            names |= {f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)}
        else:
            names.add(field.name)
    assert names == set(CHANGES) | NOT_IDENTITY | OF_SEGMENTS


@pytest.mark.parametrize("field", sorted(OF_SEGMENTS))
def test_other_segments_make_other_numbers(field):
    name = field.partition(".")[2]
    stored = make_spec(sampling=SEGMENTS)
    wanted = make_spec(sampling=dataclasses.replace(SEGMENTS, **{name: 8}))
    assert wanted.fingerprint != stored.fingerprint
    assert [difference.field for difference in diff_specs(stored, wanted)] == [field]


def test_a_sampling_states_the_fields_of_its_kind_and_reads_them_back():
    assert SEGMENTS.to_json() == {"kind": "segments", "segments": 4, "clip_frames": 2}
    spread = Sampling(kind="spread", fps=2)
    assert spread.to_json() == {"kind": "spread", "fps": 2.0}
    for sampling in (SEGMENTS, spread, Sampling(fps=0.5)):
        assert Sampling.from_json(sampling.to_json(), name="x") == sampling


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "segments"}, "None segments"),
        ({"segments": 4}, "4 segments"),
        ({"kind": "segments", "segments": 0}, "0 segments"),
        ({"kind": "segments", "segments": 4, "fps": 2.0}, "no rate of their own"),
        ({"clip_frames": 2}, "sampled in segments"),
        ({"kind": "segments", "segments": 4, "clip_frames": 0}, "at least 1 frame"),
    ],
)
def test_a_sampling_that_means_nothing_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**fields)


def test_a_cache_whose_making_is_unknown_reads_back(tmp_path):
    spec = make_spec(preprocess=None, weights="unknown")
    assert open_cache(create_cache(tmp_path / "c.zarr", spec).path).spec == spec


@pytest.mark.parametrize("field", CHANGES)
def test_another_value_is_refused_by_name(tmp_path, field):
    change, said = CHANGES[field]
    cache = one_entry(tmp_path)
    assert make_spec(**change).fingerprint != cache.spec.fingerprint
    with pytest.raises(FingerprintError, match=re.escape(f"{field}: {said}")) as refusal:
        create_cache(cache.path, make_spec(**change))
    assert [difference.field for difference in refusal.value.differences] == [field]
    assert str(cache.path) in str(refusal.value)


def test_several_differences_are_all_listed(tmp_path):
    cache = one_entry(tmp_path)
    with pytest.raises(FingerprintError) as refusal:
        create_cache(cache.path, make_spec(reader="decord", sampling=Sampling(fps=2), dim=16))
    fields = [difference.field for difference in refusal.value.differences]
    assert fields == ["dim", "reader", "sampling.fps"]


def test_where_weights_came_from_and_what_is_kept_is_no_identity(tmp_path):
    cache = one_entry(tmp_path)
    for change in ({"weights": "hub"}, {"arrays": ("prefix",)}):
        assert make_spec(**change).fingerprint == cache.spec.fingerprint
    create_cache(cache.path, make_spec(weights="file"))
    with pytest.raises(UsageError, match="holds the arrays patch, prefix, asked for prefix"):
        create_cache(cache.path, make_spec(arrays=("prefix",)))


def test_a_cache_may_keep_more_copies_than_are_asked_for(tmp_path):
    """Its entries are written with its own arrays, whoever extracts to it; the full grid, which
    takes much more, is never kept unasked, and what is asked for is never left out."""
    arrays = ("patch", "prefix", "grid1")
    path = create_cache(tmp_path / "kept.zarr", make_spec(arrays=arrays)).path
    assert create_cache(path, make_spec()).spec.arrays == arrays
    for others in (("prefix", "grid1"), ("patch", "prefix", "grid2")):
        with pytest.raises(UsageError, match="use the same --grids"):
            create_cache(path, make_spec(arrays=others))


def test_numbers_are_the_same_however_they_are_written(tmp_path):
    """1 and 1.0, lists and tuples: one fingerprint, and what is written can be read."""
    whole = Preprocess(size=(32, 32), crop_pct=1, mean=(0, 0, 0), std=(1, 1, 1))
    point = Preprocess(size=(32, 32), crop_pct=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    specs = [
        make_spec(preprocess=whole, sampling=Sampling(fps=1)),
        make_spec(preprocess=point, sampling=Sampling(fps=1.0)),
    ]
    assert specs[0].fingerprint == specs[1].fingerprint
    create_cache(tmp_path / "c.zarr", specs[0])
    assert open_cache(tmp_path / "c.zarr").spec == specs[1]


def test_the_fingerprint_is_of_the_canonical_json():
    spec = make_spec()
    fields = {
        "format": 1,
        "backbone": "vit_test",
        "weights_sha256": "0" * 64,
        "layer": "final-norm",
        "preprocess": {
            "size": [32, 32],
            "resize": "short-side",
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "sampling": {"kind": "fps", "fps": 1.0},
        "reader": "pyav",
        "compute_dtype": "float32",
        "stored_dtype": "float16",
        "grid": [4, 4],
        "num_prefix": 2,
        "dim": 8,
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert spec.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_newer_format_is_refused_by_name(tmp_path):
    cache = one_entry(tmp_path)
    edit_spec(cache, lambda spec: spec.update(format=2, checksum="of another kind"), checksum=False)
    for opening in (lambda: open_cache(cache.path), lambda: create_cache(cache.path, cache.spec)):
        with pytest.raises(CacheFormatError, match=r"format 2 is newer .* upgrade vis4mer"):
            opening()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda spec: spec.update(added=[1, 2]), "added"),
        (lambda spec: spec["preprocess"].update(gamma=2.2), "preprocess.gamma"),
        (lambda spec: spec["sampling"].update(jitter=0.1), "sampling.jitter"),
    ],
)
def test_unknown_fields_are_readable_not_writable(tmp_path, change, name):
    cache = one_entry(tmp_path)
    edit_spec(cache, change)
    opened = open_cache(cache.path)
    assert opened.spec.unknown_fields == (name,)
    assert opened.read("clip.mp4").shape == (10, 16, 8)
    with pytest.raises(CacheFormatError, match=f"unknown fields {name}.* not written"):
        create_cache(cache.path, cache.spec)


def test_a_changed_spec_is_noticed(tmp_path):
    cache = one_entry(tmp_path)
    edit_spec(cache, lambda spec: spec.update(weights="hub"), checksum=False)
    with pytest.raises(CacheFormatError, match="checksum does not match"):
        open_cache(cache.path)


PATHS = ["/etc/passwd", "w.safetensors", "", "HUB", "hub\n", "file:x", "random:", "random:-1"]


@pytest.mark.parametrize("weights", [*PATHS, "random:١", "random:1x", f"random:{'9' * 20}"])
def test_weights_are_a_word_and_never_a_path(tmp_path, weights):
    with pytest.raises(ValueError, match="expected hub, file, unknown or random:SEED"):
        make_spec(weights=weights)
    cache = one_entry(tmp_path)
    edit_spec(cache, lambda spec: spec.update(weights=weights))
    with pytest.raises(CacheFormatError, match="expected hub, file, unknown or random:SEED"):
        open_cache(cache.path)


def test_arrays_have_one_order_and_one_spelling():
    spec = make_spec(arrays=("grid2", "prefix", "patch", "patch", "grid1"))
    assert spec.arrays == ("patch", "prefix", "grid1", "grid2")
    assert make_spec(arrays=("patch", "prefix"), num_prefix=0).arrays == ("patch",)
    for array in ("grid0", "grid5", "grid02", "grid", "grid-1", "grid²", "other", "", "../patch"):
        with pytest.raises(ValueError, match="unknown array"):
            make_spec(arrays=("patch", array))
    with pytest.raises(ValueError, match="at least one array"):
        make_spec(arrays=())


@pytest.mark.parametrize(
    "change", [{"grid": (0, 4)}, {"dim": 0}, {"num_prefix": -1}, {"grid": (99999, 99999)}]
)
def test_specs_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match=r"tokens need|has more than"):
        make_spec(**change)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps must be"):
            Sampling(fps=fps)
    assert isinstance(make_spec(), CacheSpec)


# Names of entries ----------------------------------------------------------------------------

IDS = [
    "clip.mp4",
    "Clip.mp4",
    "CLIP.MP4",
    "../x",
    "/etc/passwd",
    "__init__",
    "-x",
    "--help",
    "a/b/c.mp4",
    "a\\b",
    "a\nb",
    "a\x00b",
    "é",
    "e\u0301",
    "映画.mp4",
    "🎬",
    ".",
    "..",
    " ",
    "zarr.json",
    "x" * 1000,
    "CON",
]


def test_any_id_is_safe(tmp_path):
    cache = create_cache(tmp_path / "c.zarr", make_spec())
    for i, entry_id in enumerate(IDS):
        write(cache, entry_id, make_tokens(1, spec=cache.spec, seed=i))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zarr"]
    fresh = open_cache(cache.path)
    assert fresh.ids() == sorted(IDS)
    for i, entry_id in enumerate(IDS):
        wanted = make_tokens(1, spec=cache.spec, seed=i)["patch"].astype("f2")
        assert (fresh.read(entry_id) == wanted).all()
    names = [p.name for p in cache.path.rglob("*")]
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) and len(name) <= 75 for name in names)


@pytest.mark.parametrize("entry_id", ["", "x" * 1025, "a\ud800", "\udce9.mp4"])
def test_what_is_no_id_is_refused(tmp_path, entry_id):
    cache = one_entry(tmp_path)
    for use in (entry_key, cache.read, lambda i: write(cache, i, {"patch": []})):
        with pytest.raises(UsageError, match="video id"):
            use(entry_id)


def test_keys_are_slug_and_digest():
    digest = hashlib.sha256(b"Movie: Part 2!.mp4").hexdigest()[:16]
    assert entry_key("Movie: Part 2!.mp4") == f"movie-part-2-mp4-{digest}"
    assert fan(entry_key("Movie: Part 2!.mp4")) == digest[:2]
    assert entry_key("映画") == "-" + hashlib.sha256("映画".encode()).hexdigest()[:16]
    assert len({entry_key(entry_id) for entry_id in IDS}) == len(IDS)


@pytest.mark.parametrize("reference", ["", "lvu", "lvu/", "/x", "../x", "a/b/c", "A/b", "a/-b"])
def test_task_references_are_safe_paths(reference):
    with pytest.raises(UsageError, match="expected DATASET/TASK"):
        task_path(reference)
    assert task_path("lvu/way_speaking-2") == ("lvu", "way_speaking-2")


def test_free_text_becomes_a_name():
    assert slug_name("My Labels (v2)") == "my-labels-v2"
    assert slug_name("映画") == "data"
    for text in ("My Labels (v2)", "映画", "-", "__x__", "x" * 100):
        task_path(f"{slug_name(text)}/label")
