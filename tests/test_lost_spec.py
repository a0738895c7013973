"""A cache whose `zarr.json` is lost or torn, mended by another one of the same values."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from caches import make_cache, make_spec
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.directory import spec_bytes
from vis4mer.store.errors import CacheFormatError
from vis4mer.store.files import parse_json, seal
from vis4mer.store.mending.lost_spec import open_to_repair
from vis4mer.store.pooling import pool_cache
from vis4mer.store.repair import repair_cache
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.selection import Selection
from vis4mer.store.verify import verify_cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path, num_videos=3, frames=3)


@pytest.fixture
def mirror(cache: Cache, tmp_path: Path) -> Cache:
    shutil.copytree(cache.path, tmp_path / "mirror")
    return open_cache(tmp_path / "mirror")


def flipped(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"dim":16', b'"dim":17'))


HARM = {
    "lost": Path.unlink,
    "torn": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "flipped": flipped,
    "no cache": lambda path: path.write_text('{"zarr_format":3,"node_type":"group"}'),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_mirror_gives_back_the_settings(cache: Cache, mirror: Cache, harm) -> None:
    whole = (cache.path / "zarr.json").read_bytes()
    HARM[harm](cache.path / "zarr.json")
    with pytest.raises(CacheFormatError, match=f"repair {cache.path} --from COPY"):
        open_cache(cache.path)
    opened = open_to_repair(cache.path, [mirror])
    assert repair_cache(opened, mirrors=[mirror], dry_run=True).steps
    report = repair_cache(opened, mirrors=[mirror])
    assert [(step.deed, report.exit_code) for step in report.steps] == [("rebuilt", 0)]
    assert (cache.path / "zarr.json").read_bytes() == whole
    assert verify_cache(open_cache(cache.path), "full").ok


def test_the_arrays_are_those_that_are_here(cache: Cache, tmp_path: Path) -> None:
    pool_cache(cache, (1,))
    for name, arrays in (("small", ("grid1",)), ("pooled", ("patch", "prefix", "grid1"))):
        pull_cache(str(cache.path), tmp_path / name, Selection(arrays=arrays))
        spec = open_cache(tmp_path / name).spec
        (tmp_path / name / "zarr.json").unlink()
        assert open_to_repair(tmp_path / name, [open_cache(cache.path)]).spec == spec


def test_other_values_prove_nothing(cache: Cache, tmp_path: Path) -> None:
    """Nor does a mirror without a video in common: its settings may be others."""
    others = [
        make_cache(tmp_path / "other", num_videos=3, frames=3, seed=1),
        create_cache(tmp_path / "empty", make_spec(fps=2.0)),
    ]
    (cache.path / "zarr.json").unlink()
    with pytest.raises(CacheFormatError, match="no cache after --from holds the same values"):
        open_to_repair(cache.path, others)
    assert not (cache.path / "zarr.json").exists()


def test_a_newer_version_is_never_written_over(cache: Cache, mirror: Cache) -> None:
    newer = json.loads(spec_bytes(replace(cache.spec, layer="other")))
    newer["attributes"]["vis4mer"]["format"] = 2
    about = {k: v for k, v in newer["attributes"]["vis4mer"].items() if k != "checksum"}
    newer["attributes"]["vis4mer"] = parse_json(seal(about), name="newer")
    (cache.path / "zarr.json").write_text(json.dumps(newer))
    with pytest.raises(CacheFormatError, match="upgrade vis4mer"):
        open_to_repair(cache.path, [mirror])


def test_the_command(cache: Cache, mirror: Cache) -> None:
    (cache.path / "zarr.json").unlink()
    for arguments, code in (([], 1), (["--from", str(mirror.path)], 0), ([], 0)):
        told = CliRunner().invoke(app, ["cache", "repair", str(cache.path), *arguments])
        assert told.exit_code == code, told.output
    assert verify_cache(open_cache(cache.path), "full").ok
