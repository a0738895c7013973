"""The directory of a cache: where one may stand, and the `zarr.json` files that make it Zarr.

    my.zarr/zarr.json             a group; the sealed spec is in its attributes
    my.zarr/videos/zarr.json      a group, as at every level above an entry

The one at the root is what a cache is told by. Knows nothing of what an entry holds.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import fields as f
from .errors import CacheFormatError, UsageError, Vis4merError
from .files import (
    JSON,
    canonical_json,
    create_exclusive,
    is_temporary,
    parse_json,
    read_json_bytes,
    require_checksum,
    seal,
    storage_errors,
)
from .keys import fan
from .layout import group_metadata
from .records import RECORDS
from .remote.local import path_of
from .remote.urls import require_named, scheme_of, shown_url
from .spec import CacheSpec

_ADDRESS = re.compile(r"(s3a?|gs|az|abfss?|https?|ssh|sftp|hf|file):/{1,2}")  # as Path spells it


def local_directory(path: str | Path) -> Path:
    """The directory of a cache that may be written to. UsageError for an address, also one that a
    `Path` has taken a slash from."""
    text = str(path)
    if scheme_of(text) == "file":
        return path_of(text)
    if isinstance(path, str):
        require_named(text)
    address = _ADDRESS.match(text)
    if address is not None and not Path(path).exists():
        if address[1] == "file":
            raise UsageError(f"{text}: expected the path itself, {text[address.end() - 1 :]}")
        url = shown_url(f"{address[1]}://{text[address.end() :]}")
        raise UsageError(
            f"{url} is an address, expected a directory here: a cache elsewhere is read-only; "
            f"`vis4mer cache pull {url} DIR` brings it here, `vis4mer cache push` sends it back"
        )
    return Path(path)


def require_room(root: Path) -> None:
    """UsageError when something else than a cache stands where one is to be made."""
    # Half-written files of a process that was killed while it made this cache do not count.
    if not root.exists() or (root.is_dir() and all(is_temporary(p.name) for p in root.iterdir())):
        return
    if not (root / "zarr.json").exists():  # somebody else may just have made it
        raise UsageError(
            f"{root} exists and is no feature cache; give --cache a new or empty directory"
        )


def make_root(root: Path, spec: CacheSpec) -> None:
    """Make an empty cache unless one is there. UsageError as `require_room`, StorageError."""
    with storage_errors(root):
        if not (root / "zarr.json").exists():
            require_room(root)
            # A loser of the race opens the winner's cache.
            create_exclusive(root / "zarr.json", spec_bytes(spec))


def ensure_groups(root: Path, key: str | None = None) -> None:
    """The groups above the entry of `key`, or above all entries."""
    with storage_errors(root):
        _ensure_group(root / "videos")
        if key is not None:
            _ensure_group(root / "videos" / fan(key))


def _ensure_group(folder: Path) -> None:
    """A `zarr.json` at every level, or whole groups vanish from plain Zarr readers."""
    path = folder / "zarr.json"
    if not path.exists():
        create_exclusive(path, canonical_json(group_metadata({})))


# The spec in `zarr.json` --------------------------------------------------------------------------


def spec_bytes(spec: CacheSpec) -> bytes:
    """`zarr.json` of a cache: a Zarr group whose attributes hold the sealed spec."""
    about: JSON = parse_json(seal(spec.to_json()), name="spec")
    return canonical_json(group_metadata({"vis4mer": about}))


def parse_spec(data: bytes, *, name: str) -> CacheSpec:
    """The spec in `zarr.json` of a cache; CacheFormatError when it is none, or does not check."""
    attributes = f.mapping(parse_json(data, name=name), "attributes", name=name)
    if "vis4mer" not in attributes:
        raise CacheFormatError(f"{name}: a Zarr group but no vis4mer feature cache")
    about = f.mapping(attributes, "vis4mer", name=name)
    spec = CacheSpec.from_json(about, name=name)
    require_checksum(about, name=name)
    return spec


def is_sealed_spec(data: bytes) -> bool:
    """Whether `zarr.json` of a cache is as some version wrote it, whatever it says."""
    name = "zarr.json"
    try:
        attributes = f.mapping(parse_json(data, name=name), "attributes", name=name)
        require_checksum(f.mapping(attributes, "vis4mer", name=name), name=name)
    except CacheFormatError:
        return False
    return True


def read_spec(root: Path) -> CacheSpec:
    """The spec of the cache in a directory; errors as `cache.open_cache`."""
    path = root / "zarr.json"
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory; expected a feature cache")
    try:
        data = read_json_bytes(path)
    except FileNotFoundError as error:
        lost = (root / RECORDS).is_dir()
        made = _where_from(root) if lost else "; `vis4mer extract --cache` makes one"
        has = "has lost its" if lost else "has no"
        raise CacheFormatError(f"{root} is no feature cache (it {has} zarr.json){made}") from error
    except OSError as error:
        raise Vis4merError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return parse_spec(data, name=str(path))
    except CacheFormatError as error:
        if not (root / RECORDS).is_dir() or is_sealed_spec(data):  # no cache, or a newer one
            raise
        raise CacheFormatError(f"{error}{_where_from(root)}") from error


def _where_from(root: Path) -> str:
    """Where a lost spec is to be had: nothing in the cache itself repeats it."""
    return (
        f"; `vis4mer cache repair {root} --from COPY` takes it from a cache that holds the same "
        "values"
    )
