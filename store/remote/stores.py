"""The stores that obstore opens, as the environment sets them up: endpoints, credentials, timeouts.

Credentials and endpoints come from the variables that the library reads (AWS_*, GOOGLE_*, AZURE_*);
with boto3 installed, from ~/.aws too. Knows nothing of objects.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import UsageError
from ..wording import first_line
from .place import RemoteError
from .urls import scheme_of, shown_url, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SILENCE_SECONDS = 60.0  # without a byte: a stalled connection
MAX_REASON_CHARACTERS = 200
_CONNECT_SECONDS = 10.0
_SERVER = re.compile(r"https?://(?!/)[!#-;=?-\[\]_a-z~]+")  # what may stand in an address
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a kind of store calls things.

    example: an address. credentials: what to set where there are none. endpoints: variables that
    name a server of one's own. allow_plain: the variable that allows one of plain http.
    """

    example: str
    credentials: str
    endpoints: tuple[str, ...]
    allow_plain: str


_S3 = Kind(
    example="s3://BUCKET/FOLDER",
    credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a "
    "public bucket",
    endpoints=("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    allow_plain="AWS_ALLOW_HTTP",
)
_GOOGLE = Kind(
    example="gs://BUCKET/FOLDER",
    credentials="GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true to read a public "
    "bucket",
    endpoints=("GOOGLE_BASE_URL",),
    allow_plain="GOOGLE_ALLOW_HTTP",
)
_AZURE = Kind(
    example="az://CONTAINER/FOLDER",
    credentials="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    endpoints=("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    allow_plain="AZURE_ALLOW_HTTP",
)
KINDS: Mapping[str, Kind] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
}


def open_store(url: str, *, retries: int) -> ObjectStore:
    """The library's store of an address; UsageError in our words where it takes none.

    retries: of a request, by the library itself.
    """
    from obstore import store
    from obstore.exceptions import BaseError

    require_same_process(shown_url(url))
    scheme = scheme_of(url)
    _require_endpoints(scheme)
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=SILENCE_SECONDS),
        "timeout": timedelta(hours=1),  # of a segment, whatever the connection
    }
    if scheme == "http" or may_be_plain(scheme):
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


def _require_endpoints(scheme: str) -> None:
    """UsageError where a variable names no server: the library ends the process at such a one."""
    for name in KINDS[scheme].endpoints if scheme in KINDS else ():
        given = os.environ.get(name)
        if given is not None and not _is_server(given):
            raise UsageError(f"{name}: expected the address of a server, such as https://host:9000")


def _is_server(url: str) -> bool:
    """Whether an address has a host that can be one, and a port, if any, as the library has it."""
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore

    if not _SERVER.fullmatch(url):
        return False
    try:
        HTTPStore.from_url(url)
    except (BaseError, ValueError):
        return False
    return True


def _refusal(error: Exception, scheme: str) -> str:
    """Why the library takes no such address."""
    kind, text = KINDS.get(scheme), str(error)
    if kind is not None and "Unable to recognise URL" in text:
        return f"expected {kind.example}"
    if kind is not None and "Account must be specified" in text:
        return f"whose account? set {kind.credentials}"
    return without_secrets(first_line(error))[:MAX_REASON_CHARACTERS]


# The library's threads live in the process that used it first.
_used_in: list[int] = []


def require_same_process(url: str) -> None:
    """RemoteError in a process that was forked from one that used the library: there it would wait
    for ever."""
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise RemoteError(
            f"{url}: cannot be read in a process that was forked from one that read such places; "
            "use threads, or start processes by spawn"
        )


def may_be_plain(scheme: str) -> bool:
    """Whether an endpoint without encryption is meant: one on this machine, or as the environment
    says, which the library does not look at beside other options."""
    kind = KINDS.get(scheme)
    if kind is None:
        return False
    if os.environ.get(kind.allow_plain, "").lower() in ("1", "true"):
        return True
    hosts = {urlsplit(os.environ[name]).hostname for name in kind.endpoints if name in os.environ}
    return bool(hosts) and hosts <= _LOOPBACK


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
