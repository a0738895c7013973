"""Object stores (S3, Google, Azure) and web servers as places, through obstore.

Retries are ours, so that a read goes on where it broke off; only the parts of a large upload are
left to the library. How a store is reached, and with which credentials, is for `stores`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..errors import UsageError
from ..wording import first_line
from .place import (
    MissingObjectError,
    Place,
    PlacedObject,
    RemoteError,
    TornObjectError,
    check_key,
    check_prefix,
    check_range,
    is_key,
    missing,
    require_bounded,
    require_span,
    whole_of,
)
from .retry import PASSING_STATUS, PassingError, created, tried_again
from .stores import KINDS, MAX_REASON_CHARACTERS, Kind, open_store, require_same_process
from .urls import refuse_secrets, scheme_of, shown_url, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
_SEGMENT_BYTES = 64 << 20  # of one request; a longer read is several, each with its own tries
_BLOCK_BYTES = 4 << 20  # read and written at once
_PART_BYTES = 8 << 20  # of an upload; larger files go up in parts
_PARTS_AT_ONCE = 4
_PAGE_OBJECTS = 1000  # of a listing; what S3 gives at once
_NOT_SATISFIABLE = 416  # HTTP: no byte of the range is there
_BEYOND = "but object was only"  # the library's words where the server does not answer 416
_NOT_ALLOWED = ("401", "403")
_NO_STORES = ("NoSuchBucket", "ContainerNotFound")  # the servers' codes
_NO_STORE = "no such bucket or container there"
# Where the libraries look for credentials when the environment has none.
_METADATA_SERVERS = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")


def open_objects(url: str, *, writable: bool) -> ObjectPlace:
    """The place of an `s3://`, `gs://`, `az://` or `http(s)://` address."""
    refuse_secrets(url, user_allowed=scheme_of(url) in ("abfs", "abfss"))  # container@account
    web = scheme_of(url) in ("http", "https")
    if web and writable:
        raise UsageError(f"address {shown_url(url)}: web servers are read-only; push elsewhere")
    if importlib.util.find_spec("obstore") is None:
        raise UsageError(
            f"address {shown_url(url)}: needs the library obstore; `pip install '.[remote]'` in "
            "the checkout"
        )
    return ObjectPlace(url, listable=not web)


class ObjectPlace(Place):
    """A bucket's folder, or a folder of a web server (which cannot be listed)."""

    def __init__(self, url: str, *, listable: bool) -> None:
        self.url = shown_url(url)
        self.can_list = listable
        self._opened = open_store(url, retries=0)
        self._uploads = open_store(url, retries=4) if listable else self._opened

    @property
    def _store(self) -> ObjectStore:
        require_same_process(self.url)
        return self._opened

    def size(self, key: str) -> int | None:
        import obstore

        check_key(key)
        try:
            found = self._asked(key, lambda: obstore.head(self._store, key))
        except FileNotFoundError:
            return None
        return found["size"]

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length is None and start == 0:
            return tried_again(lambda: self._read_whole(key))
        length = self._span(key, start, length)
        if length == 0:
            return b""
        stop = start + length
        return self._asked(key, lambda: b"".join(self._stream(key, start, stop)))

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        check_key(key)
        check_range(start, length)
        stop = start + self._span(key, start, length)
        for first in range(start, stop, _SEGMENT_BYTES):
            self._fetch_segment(key, target, first, min(first + _SEGMENT_BYTES, stop))

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        check_key(key)
        require_same_process(self.url)
        if isinstance(source, Path) and (only_new or source.stat().st_size <= _PART_BYTES):
            source = source.read_bytes()
        try:
            return self._create(key, whole_of(source)) if only_new else self._put(key, source)
        except MissingObjectError:
            raise RemoteError(f"{self.url}/{key}: {_NO_STORE}") from None

    def _put(self, key: str, source: bytes | Path) -> bool:
        import obstore

        self._asked(
            key,
            lambda: obstore.put(
                self._uploads,
                key,
                source,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            ),
        )
        return True

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        folder = check_prefix(prefix)
        if not self.can_list:
            raise UsageError(
                f"{self.url}: a web server cannot be listed; only what catalog.json names is there"
            )
        return self._listed(folder)

    def _listed(self, folder: str) -> Iterator[PlacedObject]:
        """Page by page by the store's own marks; after a failure anew, from the last name on.

        Not from a name to the next thousand: Azure and others do not begin at a name, and send all
        that comes before it again.
        """
        import obstore

        last: str | None = None
        since: str | None = None  # where a listing that broke off is taken up
        pages: Iterator[Sequence[Any]] | None = None

        def next_page() -> Sequence[Any]:
            nonlocal pages, since
            try:
                pages = pages or obstore.list(
                    self._store, prefix=folder or None, offset=since, chunk_size=_PAGE_OBJECTS
                )
                for page in pages:
                    if new := [each for each in page if since is None or each["path"] > since]:
                        return new
            except Exception as error:
                pages, since = None, last
                raise self._translated(folder, error) from None
            return []

        while page := tried_again(next_page):
            for found in page:
                if is_key(found["path"]):
                    yield PlacedObject(key=found["path"], size=found["size"])
            last = page[-1]["path"]

    def _create(self, key: str, data: bytes) -> bool:
        """Create an object; False when another is there."""
        import obstore

        def create() -> bool:
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
            except Exception as error:
                raise self._translated(key, error) from None
            return True

        return created(self, key, data, create)

    def _read_whole(self, key: str) -> bytes:
        import obstore

        try:
            found = obstore.get(self._store, key)
            size = found.meta["size"]
            require_bounded(self.url, key, size)
            data = bytearray()
            for block in found.stream(min_chunk_size=_BLOCK_BYTES):
                data += block
                if len(data) > size:  # the library does not compare them
                    raise RemoteError(f"{self.url}/{key}: the server sent more than it announced")
        except RemoteError:
            raise
        except Exception as error:
            raise self._translated(key, error) from None
        require_span(self.url, key, size=len(data), start=0, length=size)
        return bytes(data)

    def _span(self, key: str, start: int, length: int | None) -> int:
        """How many bytes are meant; what is not known is asked for."""
        if length is not None:
            return length
        size = self.size(key)
        if size is None:
            raise missing(self.url, key)
        return require_span(self.url, key, size=size, start=start, length=None)

    def _fetch_segment(self, key: str, target: BinaryIO, start: int, stop: int) -> None:
        """Write bytes [start, stop); after a failure on from where it broke off."""
        done = start

        def go_on() -> None:
            nonlocal done
            for block in self._stream(key, done, stop):
                target.write(block)
                done += len(block)

        tried_again(go_on)

    def _stream(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop), never more; PassingError or RemoteError when fewer came."""
        import obstore

        left = stop - start
        try:
            found = obstore.get(self._store, key, options={"range": (start, stop)})
            size = found.meta["size"]
            blocks = iter(found.stream(min_chunk_size=_BLOCK_BYTES))
        except Exception as error:
            raise self._translated(key, error) from None
        require_span(self.url, key, size=size, start=start, length=stop - start)
        while left:
            try:
                block = next(blocks, b"")
            except Exception as error:
                raise self._translated(key, error) from None
            if not 0 < len(block) <= left:
                raise PassingError(f"{self.url}/{key}: the answer has another length than asked")
            yield bytes(block)
            left -= len(block)

    def _asked(self, key: str, call: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return call()
            except RemoteError:
                raise
            except Exception as error:
                raise self._translated(key, error) from None

        return tried_again(once)

    def _translated(self, key: str, error: Exception) -> Exception:
        """A library's error as ours: what happened, of which object, and nothing secret."""
        from obstore import exceptions

        text, kind = str(error), KINDS.get(scheme_of(self.url))
        if isinstance(error, FileNotFoundError) and not any(code in text for code in _NO_STORES):
            return missing(self.url, key)
        message = f"{self.url}/{key}: {_reason(error, text, kind)}"
        if kind is not None and any(server in text for server in _METADATA_SERVERS):
            return RemoteError(
                f"{self.url}/{key}: no credentials in the environment; set {kind.credentials}"
            )
        if not isinstance(error, exceptions.GenericError) or any(sign in text for sign in _FINAL):
            return RemoteError(message)
        status = re.search(r"status code: (\d{3})", text)
        none_left = status is not None and int(status[1]) == _NOT_SATISFIABLE
        if none_left or _BEYOND in text:
            return TornObjectError(f"{self.url}/{key}: it ends before the bytes asked for; torn?")
        if status is not None and int(status[1]) not in PASSING_STATUS:
            return RemoteError(message)
        return PassingError(message)


# What is so every time.
_FINAL = ("UnexpectedRange", "Content-Length Header missing", "BadScheme")
# What a library's error holds → what is said. The rest of its text quotes addresses and answers.
_REASONS = (
    ("Content-Length Header missing", "the server says no size; use one that does, such as nginx"),
    ("RangeNotSupported", "the server gives no byte ranges; use one that does, such as nginx"),
    ("UnexpectedRange", "the server sent other bytes than were asked for"),
    ("TimedOut", "no answer in time"),
    ("kind: Timeout", "no answer in time"),
    ("IncompleteBody", "the answer was cut off"),
    ("ConnectionRefused", "the server takes no connection"),
    ("dns error", "no such host, or no network"),
    ("certificate", "the server's certificate is not trusted"),
    ("ConnectionReset", "the connection broke"),
    ("IncompleteMessage", "the connection broke"),
    ("kind: Connect", "no connection"),
    ("kind: Request", "the connection broke"),
    ("kind: Interrupted", "the answer was cut off"),
)


def _reason(error: Exception, text: str, kind: Kind | None) -> str:
    """What happened: the server's status and code, or a phrase of ours."""
    status = re.search(r"status code: (\d{3}[A-Za-z -]{0,40})", text)
    if status is not None:
        code = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
        named = f" ({code[1]})" if code is not None else ""
        if code is not None and code[1] in _NO_STORES:
            return f"{_NO_STORE}{named}"
        allowed = kind is None or not status[1].startswith(_NOT_ALLOWED)
        advice = "" if kind is None or allowed else f"; look at {kind.credentials}"
        return f"the server answered {status[1].strip()}{named}{advice}"
    if kind is not None and "BadScheme" in text:
        return (
            "the endpoint is plain http, which anybody on the way can read; set "
            f"{kind.allow_plain}=true where that is right, or {kind.endpoints[0]} to an https:// "
            "one"
        )
    for sign, words in _REASONS:
        if sign in text:
            return words
    return without_secrets(first_line(error))[:MAX_REASON_CHARACTERS]
