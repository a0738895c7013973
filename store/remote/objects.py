"""Object stores (S3, Google, Azure) and web servers as places, through obstore.

Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, with
AWS_ALLOW_HTTP=true for one of plain http, AWS_SKIP_SIGNATURE=true for public buckets,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*; with boto3 installed, ~/.aws too). Retries are
ours, so that a read goes on where it broke off; only the parts of a large upload are left to the
library.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from ..errors import UsageError
from ..wording import first_line
from .place import (
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
from .urls import refuse_secrets, scheme_of, shown_url, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
SILENCE_SECONDS = 60.0  # without a byte: a stalled connection
_CONNECT_SECONDS = 10.0
_SEGMENT_BYTES = 64 << 20  # of one request; a longer read is several, each with its own tries
_BLOCK_BYTES = 4 << 20  # read and written at once
_PART_BYTES = 8 << 20  # of an upload; larger files go up in parts
_PARTS_AT_ONCE = 4
_PAGE_OBJECTS = 1000  # of a listing; what S3 gives at once
_MAX_REASON_CHARACTERS = 200
_NOT_SATISFIABLE = 416  # HTTP: no byte of the range is there
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Where the libraries look for credentials when the environment has none.
_METADATA_SERVERS = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public "
    "bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_KINDS = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_NAMES = {"s3": "s3://BUCKET/FOLDER", "gs": "gs://BUCKET/FOLDER", "az": "az://CONTAINER/FOLDER"}


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
        self._opened = _open_store(url, retries=0)
        self._uploads = _open_store(url, retries=4) if listable else self._opened

    @property
    def _store(self) -> ObjectStore:
        _require_same_process(self.url)
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
        _require_same_process(self.url)
        if only_new:
            return self._create(key, whole_of(source))
        if isinstance(source, Path) and source.stat().st_size <= _PART_BYTES:
            source = source.read_bytes()
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
        """Page by page; after a failure on from the last name."""
        last: str | None = None
        while page := tried_again(partial(self._page, folder, last)):
            for found in page:
                if is_key(found["path"]):
                    yield PlacedObject(key=found["path"], size=found["size"])
            last = page[-1]["path"]

    def _page(self, folder: str, after: str | None) -> Sequence[Any]:
        import obstore

        with_prefix = obstore.list(
            self._store, prefix=folder or None, offset=after, chunk_size=_PAGE_OBJECTS
        )
        try:
            return list(next(with_prefix, []))
        except Exception as error:
            raise self._translated(folder, error) from None

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

        text = str(error)
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            return missing(self.url, key)
        message = f"{self.url}/{key}: {_reason(error, text)}"
        if any(server in text for server in _METADATA_SERVERS):
            return RemoteError(
                f"{self.url}/{key}: no credentials in the environment; set "
                f"{_CREDENTIALS[_KINDS[scheme_of(self.url)]]}"
            )
        if not isinstance(error, exceptions.GenericError) or any(sign in text for sign in _FINAL):
            return RemoteError(message)
        status = re.search(r"status code: (\d{3})", text)
        if status is not None and int(status[1]) == _NOT_SATISFIABLE:
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
    (
        "BadScheme",
        "the endpoint is plain http, which anybody on the way can read; set AWS_ALLOW_HTTP=true "
        "where that is right, or AWS_ENDPOINT_URL to an https:// one",
    ),
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


def _reason(error: Exception, text: str) -> str:
    """What happened: the server's status and code, or a phrase of ours."""
    status = re.search(r"status code: (\d{3}[A-Za-z -]{0,40})", text)
    if status is not None:
        code = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
        named = f" ({code[1]})" if code is not None else ""
        return f"the server answered {status[1].strip()}{named}"
    for sign, words in _REASONS:
        if sign in text:
            return words
    return without_secrets(first_line(error))[:_MAX_REASON_CHARACTERS]


def _open_store(url: str, *, retries: int) -> ObjectStore:
    from obstore import store
    from obstore.exceptions import BaseError

    _require_same_process(shown_url(url))
    scheme = scheme_of(url)
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=SILENCE_SECONDS),
        "timeout": timedelta(hours=1),  # of a segment, whatever the connection
    }
    if scheme == "http" or _may_be_plain():
        client["allow_http"] = True
    shared: dict[str, Any] = {
        "client_options": client,
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=60)},
    }
    try:
        if scheme in ("http", "https"):
            return store.HTTPStore.from_url(url, **shared)
        if scheme in ("s3", "s3a"):
            return store.S3Store.from_url(url, **shared, **_aws_credentials())
        kind = store.GCSStore if scheme == "gs" else store.AzureStore
        return kind.from_url(url, **shared)
    except (BaseError, ValueError) as error:
        raise UsageError(f"address {shown_url(url)}: {_refusal(error, scheme)}") from None


def _refusal(error: Exception, scheme: str) -> str:
    """Why the library takes no such address."""
    kind, text = _KINDS.get(scheme), str(error)
    if kind is not None and "Unable to recognise URL" in text:
        return f"expected {_NAMES[kind]}"
    if kind is not None and "Account must be specified" in text:
        return f"whose account? set {_CREDENTIALS[kind]}"
    return without_secrets(first_line(error))[:_MAX_REASON_CHARACTERS]


# The library's threads live in the process that used it first.
_used_in: list[int] = []


def _require_same_process(url: str) -> None:
    """RemoteError in a process that was forked from one that used the library: there it would wait
    for ever."""
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise RemoteError(
            f"{url}: cannot be read in a process that was forked from one that read such places; "
            "use threads, or start processes by spawn"
        )


def _may_be_plain() -> bool:
    """Whether an endpoint without encryption is meant: one on this machine, or as the environment
    says, which the library does not look at beside other options."""
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"):
        return True
    return urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname in _LOOPBACK


def _aws_credentials() -> dict[str, Any]:
    """boto3's look-up of ~/.aws, where it is installed and the environment has no key."""
    given = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    container = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
    if any(name in os.environ for name in (*given, container)):
        return {}
    if importlib.util.find_spec("boto3") is None:
        return {}
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    return {"credential_provider": Boto3CredentialProvider(session)}
