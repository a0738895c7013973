"""A Ray cluster as this package sees it: joined for a while, and its machines.

The only place that imports Ray, when it is asked for. Knows nothing of videos.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from ...store.errors import UsageError
from ...store.wording import first_line
from .places import Resources

CONNECT_SECONDS = 10.0
CLIENT_TRIES = 3  # of half a minute each
_NO_SERVER = "Initialization failure from server"
_EXPECTED = "expected auto, local, HOST:PORT or ray://HOST:PORT"


@contextlib.contextmanager
def joined_cluster(address: str | None) -> Iterator[Any]:
    """Ray, joined to a cluster and left again; where this process has joined one, that one.

    address: `auto` or None is the cluster that this machine belongs to (or RAY_ADDRESS), `local` is
    one of this machine alone, only for this time. UsageError when there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports home
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"--engine ray needs Ray, which is not installed ({first_line(error)}): "
            "`pip install '.[ray]'` in the checkout"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = address or "auto"
    _require_answer(address)
    _join(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Join, and keep SIGTERM for whoever has it now: Ray takes it for itself."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    known = (ConnectionError, RuntimeError, ValueError, OSError, ImportError)
    try:
        _initialise(ray, address)
    except (*known, ray.exceptions.RayError) as error:
        unset = "RAY_AUTH_MODE" not in os.environ  # with which Ray proves to be no stranger
        token = "; RAY_AUTH_MODE=token before this command, if it asks for a token" if unset else ""
        raise UsageError(
            f"--address {address}: no Ray cluster can be joined ({_reason(error)}); start one "
            f"with `ray start --head`, or say --address local{token}"
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _initialise(ray: Any, address: str) -> None:
    """Join. The server at ray:// forks a process for each client, which now and then hangs (Ray
    2.60, one first client in three of a new cluster); the next client gets another."""
    for tries_left in reversed(range(CLIENT_TRIES)):
        try:
            with warnings.catch_warnings(action="ignore"):  # what they say, the error says
                ray.init(address=address, **_settings(address))
            return
        except ConnectionError as error:
            if not tries_left or _NO_SERVER not in str(error):
                raise


def _reason(error: Exception) -> str:
    """In one line; of a server's error with its traceback, how that ends."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = len(lines) > 1 and lines[0].endswith(":")
    return lines[-1] if ends else first_line(error)


def _settings(address: str) -> dict[str, Any]:
    """What workers print is no output of this command."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    return {**quiet, "include_dashboard": False} if address == "local" else quiet


def _require_answer(address: str) -> None:
    """UsageError for an address where nobody answers; Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or "/" in host or int(port) > 65535:
        raise UsageError(f"--address {address}: {_EXPECTED}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"--address {address}: nobody answers there ({error.strerror or error}); {_EXPECTED}"
        ) from error


def nodes_of(ray: Any) -> list[Resources]:
    """What each machine has that is there now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
