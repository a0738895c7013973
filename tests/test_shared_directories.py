"""A cache in a directory that a group shares, and a cache that nobody may write to."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from caches import make_cache
from entries import make_spec, make_tokens, tree, write
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.claims import Claims, claim_path
from vis4mer.store.files import create_exclusive, make_directory, write_atomic
from vis4mer.store.gc import collect_garbage
from vis4mer.store.pooling import pool_cache


@pytest.fixture
def umask():
    """Sets the umask for the time of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def modes(root: Path) -> dict[str, set[int]]:
    """The modes of all directories, and of all files, below and including `root`."""
    found: dict[str, set[int]] = {"directories": {mode(root)}, "files": set()}
    for path in root.rglob("*"):
        found["directories" if path.is_dir() else "files"].add(mode(path))
    return found


def fill(path: Path) -> None:
    """Everything that is written to a cache."""
    cache = create_cache(path, make_spec())
    write(cache, "a", make_tokens(3, spec=cache.spec))
    pool_cache(cache, (2,))
    cache.write_catalog()
    with Claims(path) as claims:
        claims.take("b")
        assert claim_path(path, "b").exists()
        claimed = {mode(claim_path(path, "b")), *map(mode, (path / "claims" / "workers").iterdir())}
        assert len(claimed) == 1
        assert claimed == modes(path)["files"]


@pytest.mark.parametrize(
    ("mask", "directories", "files"),
    [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)],
)
def test_the_umask_decides_in_a_directory_of_ones_own(tmp_path, umask, mask, directories, files):
    tmp_path.chmod(0o777)
    umask(mask)
    fill(tmp_path / "c.zarr")
    assert modes(tmp_path / "c.zarr") == {"directories": {directories}, "files": {files}}


@pytest.mark.parametrize(
    ("mask", "directories", "files"),
    [(0o022, 0o2775, 0o664), (0o077, 0o2770, 0o660), (0o002, 0o2775, 0o664)],
)
def test_a_shared_directory_shares_what_is_made_in_it(tmp_path, umask, mask, directories, files):
    """Group-writable and setgid: whatever the umask, the group may use, lock, link and replace."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    umask(mask)
    fill(shared / "c.zarr")
    assert modes(shared / "c.zarr") == {"directories": {directories}, "files": {files}}


def test_setgid_alone_does_not_share(tmp_path):
    tmp_path.chmod(0o2750)
    write_atomic(tmp_path / "file", b"")
    assert mode(tmp_path / "file") & stat.S_IWGRP == 0


def test_what_somebody_else_made_keeps_its_mode(tmp_path, umask):
    tmp_path.chmod(0o2770)
    (tmp_path / "there").mkdir(mode=0o700)
    make_directory(tmp_path / "there")
    assert mode(tmp_path / "there") & 0o777 == 0o700
    umask(0o077)
    assert create_exclusive(tmp_path / "file", b"one")
    assert mode(tmp_path / "file") == 0o660


AS_USER = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from entries import make_spec, make_tokens, write
from vis4mer.store.cache import create_cache
from vis4mer.store.claims import Claims
from vis4mer.store.gc import collect_garbage
from vis4mer.store.pooling import pool_cache
os.umask(0o077)
os.setgroups([])
os.setgid({group})
os.setuid({user})
{work}
"""


def as_user(user: int, group: int, work: str) -> None:
    """Run Python as another user of a group, with a umask that shares nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    path = [str(Path(__file__).parent), *sys.path]
    code = AS_USER.format(path=path, user=user, group=group, work=work)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def shared() -> Path:
    """A directory of group 4711 in a place that everybody can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        shared = Path(folder) / "shared"
        shared.mkdir()
        if os.geteuid() == 0:
            os.chown(shared, -1, 4711)
        shared.chmod(0o2770)
        yield shared


def test_what_one_member_writes_another_goes_on_with(shared):
    """One makes a cache; another adds to it, locks it, links to its files, replaces and removes."""
    make = f"cache = create_cache(Path({str(shared / 'c.zarr')!r}), make_spec())"
    one = f"""{make}
write(cache, "a", make_tokens(3, spec=cache.spec))
pool_cache(cache, (1,))
cache.write_catalog()
Claims(cache.path).take("b")
"""
    other = f"""{make}
with Claims(cache.path) as claims:
    assert claims.take("b") is None        # of a process that has ended
    write(cache, "b", make_tokens(2, spec=cache.spec))
pool_cache(cache, (2,))                    # locks, and links to what the other wrote
write(cache, "a", make_tokens(4, spec=cache.spec), overwrite=True)
cache.write_catalog()
assert collect_garbage(cache, grace_seconds=0).num_files > 0
"""
    as_user(4001, 4711, one)
    as_user(4002, 4711, other)
    cache = open_cache(shared / "c.zarr")
    assert cache.ids() == ["a", "b"]
    assert cache.record("a").num_frames == 4
    assert "grid2" in cache.record("b").token_arrays
    assert collect_garbage(cache, grace_seconds=0).num_files == 0


# A cache that nobody may write to ---------------------------------------------------------------

READ_EVERYTHING = """
import json, os, sys
from pathlib import Path
root, run = Path(sys.argv[1]), sys.argv[2]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod",
           "os.chown", "os.truncate", "os.utime", "os.setxattr", "os.removexattr"}
LOCKS = {"fcntl.flock", "fcntl.lockf"}
touched = []

def below(path):
    if isinstance(path, int):
        path = f"/proc/self/fd/{path}"
    named = isinstance(path, (str, bytes, os.PathLike))
    return named and Path(os.path.realpath(os.fsdecode(path))).is_relative_to(root)

def hook(event, args):
    if event == "open":
        writes = bool(args[2] and args[2] & WRITES) or bool(args[1] and set(args[1]) & set("wax+"))
        if writes and not isinstance(args[0], int) and below(args[0]):
            touched.append([event, str(args)])
    elif event in LOCKS | CHANGES and any(map(below, args[:2 if event in CHANGES else 1])):
        touched.append([event, str(args)])

sys.addaudithook(hook)
from vis4mer.cli import app
from vis4mer.store.cache import open_cache
cache = open_cache(root)
sums = {i: float(cache.read(i).astype("f8").sum()) for i in cache.ids()}
done = []
for command in (
    f"cache info {root}", f"cache ls {root}", f"cache ls {root} --failures",
    f"cache verify {root} --full", f"cache status {root}", f"cache gc {root} --dry-run",
    f"train-decoder --cache {root} --task toy/label --run {run} --decoder mean --tokens 8x2x2"
    " --window 8 --epochs 1 --device cpu",
    f"evaluate --run {run} --cache {root}",
):
    try:
        app(command.split())
    except SystemExit as end:
        done.append(end.code)
(root / "probe").exists()
quiet = list(touched)
try:
    (root / "probe").write_text("")
except OSError:
    pass
print(json.dumps({"touched": quiet, "seen": len(touched) - len(quiet), "sums": sums, "done": done}))
"""


def test_everything_that_reads_writes_nothing(tmp_path):
    """Opens, lists, verifies, trains: under a hook that sees each attempt to change or to lock
    anything, on a tree whose write bits are gone, while a worker is at it."""
    cache = make_cache(tmp_path)
    sums = {i: float(cache.read(i).astype("f8").sum()) for i in cache.ids()}
    claims = Claims(cache.path)
    claims.take("at work")
    (cache.path / "catalog.json").unlink()  # all records are read
    before = tree(cache.path)
    paths = [cache.path, *cache.path.rglob("*")]
    for path in paths:
        path.chmod(mode(path) & ~0o222)
    try:
        command = [sys.executable, "-c", READ_EVERYTHING, str(cache.path), str(tmp_path / "run")]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for path in paths:
            path.chmod(mode(path) | 0o200)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["touched"] == []
    assert found["seen"] == 1  # the hook sees what it is to see
    assert found["sums"] == sums
    assert found["done"] == [0] * 8, run.stderr
    (cache.path / "probe").unlink(missing_ok=True)
    assert tree(cache.path) == before
    claims.__exit__(None, None, None)
