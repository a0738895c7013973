"""The hub that does not answer: found out at once, and what was downloaded before still loads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import constants
from vis4mer.extract.backbones import hub, timm_models
from vis4mer.extract.backbones.hub import first_sentence, hub_client
from vis4mer.store.errors import Vis4merError


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 120)  # who answers at all is never late
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on this machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Taken, so that nobody else comes to listen there, and refusing every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_hub_that_answers_is_left_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with hub_client() as silent:
        assert (silent, constants.HF_HUB_OFFLINE) == (None, False)


def test_a_silent_hub_makes_its_client_offline_for_this_call(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}/mirror")
    with hub_client() as silent:
        assert (silent, constants.HF_HUB_OFFLINE) == ("127.0.0.1", True)
    assert constants.HF_HUB_OFFLINE is False


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_up = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        given_up.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with hub_client() as silent:
        assert silent == "hub.invalid"
    given_up.set()


def test_a_silent_address_does_not_hide_one_that_answers(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, connect = threading.Event(), hub._connect

    def connect_unless_silent(family: int, address: tuple[object, ...]) -> None:
        if address[0] == "::1":
            given_up.wait(30)
            raise OSError("timed out")
        connect(family, address)

    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    found = [
        (socket.AF_INET6, *stream, ("::1", port, 0, 0)),
        (socket.AF_INET, *stream, ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(hub, "_connect", connect_unless_silent)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://hub.invalid:{port}")
    with hub_client() as silent:
        assert silent is None
    given_up.set()


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
def test_behind_a_proxy_nothing_is_tried(
    name: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://proxy:1")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with hub_client() as silent:
        assert (silent, constants.HF_HUB_OFFLINE) == (None, False)


def test_the_error_is_whole_and_says_what_to_do(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(Vis4merError) as refusal:
        timm_models.load_timm("vit_tiny_patch16_224.augreg_in21k", "hub", None)
    assert "from the hub (127.0.0.1 does not answer, and they are not among earlier" in str(
        refusal.value
    )
    assert "--weights FILE" in str(refusal.value)


def test_a_long_error_is_cut_after_a_sentence() -> None:
    error = OSError("We cannot find it " + "on the hub " * 40 + "today. Please try again.")
    assert first_sentence(error).endswith("on the hub today")
    assert first_sentence(OSError()) == "OSError"
