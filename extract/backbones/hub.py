"""The hub of timm's weights: does it answer? Asked before its client tries for a minute.

Knows nothing of models. Only a connection is opened, and nothing is sent over it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}
_Address = tuple[Any, ...]  # as its family has it
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
    return None if _answers(host, port) else host


def _answers(host: str, port: int) -> bool:
    """Whether one of a host's addresses takes a connection. All are tried at once, for the first
    may be silent (a broken IPv6) where the next answers."""
    answered, decided = threading.Event(), threading.Event()

    def reach(family: int, address: _Address) -> None:
        with contextlib.suppress(OSError):
            _connect(family, address)
            answered.set()
            decided.set()

    def look_up() -> None:
        with contextlib.suppress(OSError, UnicodeError):  # no such name, or none at all
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            attempts = [_thread(reach, family, address) for family, *_, address in found]
            for attempt in attempts:
                attempt.join()
        decided.set()

    _thread(look_up)  # no timeout holds for the look-up of a name
    decided.wait(CONNECT_SECONDS)
    return answered.is_set()


def _thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="hub", daemon=True)
    thread.start()
    return thread


def _connect(family: int, address: _Address) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(address)


def first_sentence(error: BaseException) -> str:
    """An error's type and its message's first sentence, whole: the client's errors are long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.partition('. ')[0]}".removesuffix(": ").rstrip(".")
