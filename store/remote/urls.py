"""Addresses: taken apart, and shown without what is secret in them.

A user's name, a password, a query and a fragment may each be a credential (signed links); messages
of libraries quote whole addresses. Nothing here opens anything.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ..errors import UsageError
from ..wording import visible

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# With one slash or none.
_TORN = re.compile(r"(?i)(s3a?|gs|az|abfss?|https?|ssh|sftp|hf|file):(/?)(?!/)")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{0,5})?")  # with a port, if there is a colon
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]*")
# Names that stand before a secret in headers, queries, XML and the debug output of HTTP clients.
_SECRET = re.compile(
    r"""(?ix) ( (?: authorization | [a-z0-9_-]* (?: signature | credential | token | secret
        | password | passwd | api[_-]?key | account[_-]?key | access[_-]?key[a-z_-]* | \bsig ) )
        ["']? \s* [:=>]+ \s* ["']? | \bbearer\s+ | \bbasic\s+ )
        (?: bearer\s+ | basic\s+ )? [^\s"'&,;<>)}\]]+"""
)
# What the libraries take for credentials; a message that quotes one is cleaned of it.
# Not the names of files.
_SECRET_VARIABLES = re.compile(
    r"(?i)(?!.*(?:_FILE|_PATH|APPLICATION_CREDENTIALS)$)"
    r".*(?:SECRET|TOKEN|PASSWORD|(?:ACCESS|ACCOUNT|MASTER|ENCRYPTION)_KEY|SAS|CREDENTIAL)"
)
_LEAST_SECRET = 6  # characters: shorter values would blank out words


def scheme_of(url: str) -> str:
    """`s3` of `s3://…`, in small letters; "" of a plain path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def shown_url(url: str) -> str:
    """An address for people: scheme, host, port and path."""
    if not scheme_of(url):
        return visible(url)
    scheme, _, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host):  # a password with a / ? or # in it, which is cut at none of them
        return visible(f"{scheme.lower()}://…")
    return visible(f"{scheme.lower()}://{host}{slash}{path.rstrip('/')}")


def require_named(text: str) -> None:
    """UsageError for a name that is empty, or an address that lacks a slash or two: taken for
    paths, they would be this folder, and a new one called `s3:`."""
    if not text.strip():
        raise UsageError("an empty name: no path and no address, expected such as my.zarr")
    if (torn := _TORN.match(text)) is not None:
        whole = _mended(text)
        given = re.sub(":/+", f":{torn[2]}", whole, count=1).rstrip(":")
        raise UsageError(f"{given}: no address, expected {whole}")


def refuse_address(text: str, *, what: str) -> None:
    """UsageError for any address, also one that lacks a slash, where `what` needs a directory."""
    if scheme_of(text) or _TORN.match(text):
        raise UsageError(f"{_mended(text)}: {what} a directory here, got an address")
    require_named(text)


def _mended(text: str) -> str:
    """An address as it may be shown, with the slashes that a torn one lacks."""
    torn = _TORN.match(text)
    if torn is None:
        return shown_url(text)
    root = "/" if torn[1].lower() == "file" else ""
    return shown_url(f"{torn[1]}://{root}{text[torn.end() :]}")


def refuse_secrets(url: str, *, user_allowed: bool = False) -> None:
    """UsageError for an address that carries a password, query or fragment (or a user)."""
    try:
        parts = urlsplit(url)
        user = parts.username is not None and not user_allowed
        carried = bool(parts.query or parts.fragment or parts.password is not None or user)
        _ = parts.port
    except ValueError:  # whose words quote a part of it
        raise UsageError(
            f"address {shown_url(url)}: no address, expected SCHEME://HOST[:PORT]/PATH and no user "
            "or password; put credentials in the environment"
        ) from None
    if carried:
        raise UsageError(
            f"address {shown_url(url)}: it carries a user, password, query or fragment, which "
            "would end up in logs; put credentials in the environment and leave them out"
        )


def without_secrets(text: str) -> str:
    """A library's message without credentials: addresses cut as `shown_url` does, values of
    headers, and what the environment holds as a secret."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and _SECRET_VARIABLES.match(name):
            text = text.replace(value, "…")
    text = _ADDRESS.sub(lambda match: shown_url(match[0]), text)
    return _SECRET.sub(lambda match: f"{match[1]}…", text)
