"""The hub of timm's weights: does it answer? Asked before its client tries for a minute.

Knows nothing of models. Only a connection is opened, and nothing is sent over it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

CONNECT_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@contextlib.contextmanager
def hub_client() -> Iterator[str | None]:
    """Inside, the hub's client gives what it has downloaded before, and warns of no retry.

    Yields the host that does not answer, in whose place the client uses its own copies alone, or
    None. Behind a proxy, and where the client is told to stay offline, nothing is tried.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")  # the error says it once, when all failed
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    silent = None if offline or _behind_a_proxy() else _silent_host(constants.ENDPOINT)
    logger.setLevel(logging.ERROR)
    try:
        constants.HF_HUB_OFFLINE = offline or silent is not None
        yield silent
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _behind_a_proxy() -> bool:
    return any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES)


def _silent_host(endpoint: str) -> str | None:
    """The host of an address that takes no connection within CONNECT_SECONDS, else None."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 443)
    except ValueError:  # no address: its client says so
        return None
    if host is None:
        return None
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            answered.set()

    # In a thread, for no timeout holds for the look-up of a name.
    attempt = threading.Thread(target=connect, name="hub", daemon=True)
    attempt.start()
    attempt.join(CONNECT_SECONDS)
    return None if answered.is_set() else host


def first_sentence(error: BaseException) -> str:
    """An error's type and its message's first sentence, whole: the client's errors are long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.partition('. ')[0]}".removesuffix(": ").rstrip(".")
