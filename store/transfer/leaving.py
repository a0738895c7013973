"""Objects of entries as they leave for a place: checked against their records, as bytes or as a
file to send. Knows no plan of what is to be sent."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..cache import Cache
from ..errors import DamagedEntryError
from ..files import storage_errors
from ..packs import UnsoundEntryError, checked_blocks
from ..records import EntryRecord, StoredObject
from ..remote.place import MissingObjectError, Place, TornObjectError
from .arriving import Summing

SMALL_BYTES = 1 << 20  # objects that are sent from memory


def object_to_send(
    cache: Cache, record: EntryRecord, path: str, scratch: contextlib.ExitStack
) -> bytes | Path:
    """An object of the entry: a small one's bytes, its own file, or for one that lies in a pack a
    copy that lasts as long as `scratch`. UnsoundEntryError when it is not as recorded."""
    blocks = checked_blocks(cache.backing, record, path)
    try:
        if record.objects[path].size <= SMALL_BYTES:
            return b"".join(bytes(block) for block in blocks)
        if record.pack is None:
            for _ in blocks:  # an attempt's files never change once they are sound
                pass
            return cache.path / record.folder / path
        file, copied = scratch.enter_context(scratch_file())
        with storage_errors(Path(tempfile.gettempdir())):
            for block in blocks:
                file.write(block)
            file.flush()
        return copied
    except DamagedEntryError as error:
        raise UnsoundEntryError(str(error), entry_id=record.id) from error


@contextlib.contextmanager
def scratch_file() -> Iterator[tuple[BinaryIO, Path]]:
    """A file to write, and a path to read it by, which goes even when this process is killed
    (where the system has /proc)."""
    with storage_errors(Path(tempfile.gettempdir())):
        if Path("/proc/self/fd").is_dir():
            with tempfile.TemporaryFile(prefix="vis4mer-") as file:
                yield cast(BinaryIO, file), Path(f"/proc/self/fd/{file.fileno()}")
        else:
            with tempfile.NamedTemporaryFile(prefix="vis4mer-") as named:
                yield cast(BinaryIO, named), Path(named.name)


def sent_before(place: Place, key: str, stored: StoredObject) -> bool:
    """Has a push that was cut off left this very object there? Its bytes are read back."""
    if place.size(key) != stored.size:
        return False
    found = Summing(lambda _: None)
    try:
        place.fetch(key, cast(BinaryIO, found), length=stored.size)
    except (MissingObjectError, TornObjectError):
        return False
    return (found.size, found.crc32c) == (stored.size, stored.crc32c)
