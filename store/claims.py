"""Claims: who is at work on which video, so that many processes fill one cache and none waits.

    with Claims(cache.path) as claims:
        holder = claims.take("clip.mp4")     # None: it is ours until `release`

A claim is one small file, `claims/KEY.json`, that names a worker. It is made where none was, by one
step that the file system decides; that of a worker without a sign of life is removed first, by the
one that holds a claim for doing so. Claims save work and guard nothing: should two workers encode
one video after all, the first commit stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import fields as f
from .errors import CacheFormatError
from .files import (
    StorageError,
    create_exclusive,
    link_above,
    linked,
    read_json_bytes,
    seal,
    storage_errors,
    unseal,
)
from .keys import KEY_PATTERN, entry_key
from .workers import (
    BEAT_SECONDS,
    CLAIMS,
    Clock,
    Heartbeat,
    Lookout,
    Sign,
    Worker,
    check_token,
    list_workers,
    read_worker,
    worker_path,
)

_MAX_BYTES = 1 << 16
_TRIES = 10  # at a video whose claim changes hands all the while


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that stands. id: None where the file is damaged, and then `worker` is its name.

    data: the bytes of the file.
    """

    path: Path
    id: str | None
    worker: str
    data: bytes


class Claims:
    """What one worker holds. A context manager: leaving it releases everything.

    Nothing is written before the first `take`. Safe from several threads.
    """

    def __init__(
        self, root: Path, *, beat_seconds: float = BEAT_SECONDS, clock: Clock = time.monotonic
    ) -> None:
        self.token = secrets.token_hex(8)
        self._root = root
        self._lookout = Lookout(root, clock=clock)
        self._heartbeat = Heartbeat(
            root,
            Worker.here(self.token),
            seconds=beat_seconds,
            on_beat=self._lookout.look_at_all,
        )
        self._begun = False
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._taking_over = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for entry_id in tuple(self._held):
            self.release(entry_id)
        self._heartbeat.stop()

    def take(self, entry_id: str) -> Sign | None:
        """Claim a video: None when it is this worker's from now on, else of the one that holds it.

        StorageError when the file system refuses.
        """
        return self._take(entry_id)

    def take_chore(self, name: str) -> bool:
        """Claim what one worker is to do for all, and is no video; whether it is this worker's.
        Others see somebody at work."""
        return self._take(name) is None

    def _take(self, entry_id: str) -> Sign | None:
        with self._lock:
            if not self._begun:
                file = worker_path(self._root, self.token)
                if (link := link_above(file, self._root)) is not None:
                    raise StorageError(f"cannot write {file}: {linked(link)}")
                self._heartbeat.start()
                self._begun = True
        path = claim_path(self._root, entry_id)
        data = seal({"id": entry_id, "worker": self.token})
        ours = Claim(path=path, id=entry_id, worker=self.token, data=data)
        for _ in range(_TRIES):
            # First a look: among many workers most claims stand, and making a file costs more.
            standing = read_claim(path)
            if standing is None and create_exclusive(path, data):
                standing = ours
            if standing is None:  # made by another just now
                continue
            if standing.worker == self.token:  # also where a file server's first answer was lost
                with self._lock:
                    self._held[entry_id] = ours
                return None
            sign = self._lookout.look(standing.worker)
            if not sign.lapsed:
                return sign
            if (other := self._clear(standing)) is not None:
                return other
        somebody = Sign(token=path.stem, worker=None, silent_seconds=0.0, gone=False)
        return self.holder(entry_id) or somebody  # never this worker, which has made no claim

    def _clear(self, lapsed: Claim) -> Sign | None:
        """Remove the claim of a worker that is gone, or the sign of another that is just doing so.

        A worker that judged it long ago must not remove the claim that stands there by now, so the
        removal is itself claimed, and the claim is read again while nobody else may remove it.
        """
        name = f"the end of {hashlib.sha256(lapsed.data).hexdigest()}"
        with self._taking_over:  # threads of one worker share its claims
            if (other := self._take(name)) is not None:
                return other
            try:
                if read_claim(lapsed.path) == lapsed:
                    with storage_errors(lapsed.path):
                        withdraw(lapsed)
            finally:
                self.release(name)
        return None

    def release(self, entry_id: str) -> None:
        """Let others have a video; no matter if it was not this worker's."""
        with self._lock:
            claim = self._held.pop(entry_id, None)
        if claim is not None:
            try:
                withdraw(claim)
            except OSError:  # the end tries once more; what stays is taken over afterwards
                with self._lock:
                    self._held[entry_id] = claim

    def holder(self, entry_id: str) -> Sign | None:
        """Of the worker that holds a video; None when nobody does."""
        standing = read_claim(claim_path(self._root, entry_id))
        return None if standing is None else self._lookout.look(standing.worker)

    def others_at_work(self) -> bool:
        """Does any other worker hold a video now, of those not known to be gone?"""
        others = (c.worker for c in list_claims(self._root) if c.worker != self.token)
        return any(not self._lookout.look(token).lapsed for token in others)  # the first is enough


def claim_path(root: Path, entry_id: str) -> Path:
    return root / CLAIMS / f"{entry_key(entry_id)}.json"


def list_claims(root: Path) -> Iterator[Claim]:
    """All claims that stand, in order."""
    for path in sorted((root / CLAIMS).glob("*.json")):
        if KEY_PATTERN.fullmatch(path.stem) and (claim := read_claim(path)) is not None:
            yield claim


def read_claim(path: Path) -> Claim | None:
    """None when there is none. A damaged one is as good as any: its worker never gives a sign."""
    data = _read(path)
    if data is None:
        return None
    try:
        content = unseal(data, name=str(path))
        entry_id = f.text(content, "id", name=str(path))
        worker = check_token(f.text(content, "worker", name=str(path)), name=str(path))
        if claim_path(path.parent.parent, entry_id) != path:
            raise CacheFormatError(f"{path}: is the claim of video {entry_id!r:.80}")
    except ValueError:  # as CacheFormatError and UsageError are
        return Claim(path=path, id=None, worker=path.stem, data=data)
    return Claim(path=path, id=entry_id, worker=worker, data=data)


def _read(path: Path) -> bytes | None:
    """The bytes of a claim; none of one that cannot be read; None when there is none."""
    if link_above(path, path.parent.parent):
        return b""
    try:
        return read_json_bytes(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    except (CacheFormatError, OSError):
        return b""


def withdraw(claim: Claim) -> bool:
    """Remove a claim, unless it has changed hands since it was read. Was it removed, by us?"""
    aside = claim.path.with_name(f".{claim.path.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        claim.path.rename(aside)
    except FileNotFoundError:
        return False
    try:
        same = _read(aside) == claim.data
        if not same:
            with contextlib.suppress(FileExistsError):  # a third worker has it already
                os.link(aside, claim.path)
    finally:
        aside.unlink(missing_ok=True)
    return same


def clear_lapsed(root: Path, *, latest: float, dry_run: bool = False) -> dict[Path, int]:
    """Remove the claims of workers that are gone, or have given no sign since `latest` (seconds
    since the epoch, as the files say), and then their files. What was removed, or would be, and its
    bytes. A folder that is a link is left alone. StorageError when the file system refuses."""
    removed: dict[Path, int] = {}
    if link_above(worker_path(root, ""), root) is not None:
        return removed
    with storage_errors(root / CLAIMS):
        for claim in list_claims(root):
            if _has_lapsed(root, claim.worker, claim.path, latest=latest) and (
                dry_run or withdraw(claim)
            ):
                removed[claim.path] = len(claim.data)
        for token in list_workers(root):
            path = worker_path(root, token)
            if _has_lapsed(root, token, path, latest=latest):
                with contextlib.suppress(FileNotFoundError):  # it ended well just now
                    removed[path] = path.lstat().st_size
                    if not dry_run:
                        path.unlink()
    return removed


def _has_lapsed(root: Path, token: str, path: Path, *, latest: float) -> bool:
    """Is a worker gone, or are its file and `path`, a claim of it, as old as `latest`?"""
    try:
        worker = read_worker(root, token)
    except (CacheFormatError, OSError):
        worker = None
    if worker is not None and worker.is_gone:
        return True
    ages = []
    for each in (worker_path(root, token), path):
        with contextlib.suppress(FileNotFoundError):
            ages.append(each.lstat().st_mtime)
    return all(changed <= latest for changed in ages)
