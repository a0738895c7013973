"""Names of entries on disk: any id, however hostile, becomes a safe and unique key.

An id may be `../x`, begin with `__` (reserved in Zarr) or `-`, hold any Unicode, or differ from
another by case alone. Its key is a lowercase slug for people and 16 hex digits of the SHA-256 of
its UTF-8 for certainty; two of those digits spread the keys over 256 folders.
"""

from __future__ import annotations

import hashlib
import re

from .errors import UsageError

MAX_ID_CHARACTERS = 1024
KEY_PATTERN = re.compile(r"[a-z0-9-]{0,40}-[0-9a-f]{16}")
ATTEMPT_PATTERN = re.compile(r"[0-9a-f]{12}")
_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def entry_key(entry_id: str) -> str:
    """The key of an id: slug (at most 40 of a–z, 0–9, -) + `-` + 16 hex digits."""
    check_id(entry_id)
    slug = re.sub(r"[^a-z0-9]+", "-", entry_id.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(entry_id.encode()).hexdigest()[:16]
    return f"{slug}-{digest}"


def check_id(entry_id: str) -> None:
    """Refuse an empty or oversized id, and a file name that is no Unicode."""
    if not 0 < len(entry_id) <= MAX_ID_CHARACTERS:
        raise UsageError(
            f"a video id has {len(entry_id)} characters, expected 1 to {MAX_ID_CHARACTERS}"
        )
    try:
        entry_id.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"video id {entry_id!r} is not valid Unicode; rename the file or give it an id"
        ) from error


def fan(key: str) -> str:
    """The folder of a key: the first two of its hex digits."""
    return key[-16:-14]


def task_path(reference: str) -> tuple[str, str]:
    """(dataset, task) of a reference such as `lvu/relationship`, safe as path parts."""
    dataset, slash, task = reference.partition("/")
    if not slash or not _NAME_PATTERN.fullmatch(dataset) or not _NAME_PATTERN.fullmatch(task):
        raise UsageError(
            f"task {reference!r:.160}: expected DATASET/TASK such as lvu/relationship, "
            "of lowercase letters, digits, _ and -"
        )
    return dataset, task


def is_task_path(reference: str) -> bool:
    """Whether this could be the reference of a task table."""
    try:
        task_path(reference)
    except UsageError:
        return False
    return True


def slug_name(text: str) -> str:
    """A dataset or task name made from free text such as a CSV's file name."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64]
    return slug or "data"
