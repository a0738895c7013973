"""Azure's and Google's stores: the variables that reach them, what is said when something is wrong,
and listings of servers that go on by other means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import real_servers
import servers
from vis4mer.store.errors import UsageError
from vis4mer.store.remote import objects, retry, stores
from vis4mer.store.remote.place import RemoteError, open_place

pytest.importorskip("obstore")

KINDS = ("s3", "google", "azure")
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"),
    "google": ("GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP"),
    "azure": ("AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP"),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    with ExitStack() as stack:

        @cache
        def start(kind: str) -> servers.Bucket:
            return stack.enter_context(real_servers.bucket_of(kind, tmp_path_factory.mktemp(kind)))

        yield start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def bucket_of(
    started: Callable[[str], servers.Bucket], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], servers.Bucket]:
    """kind → a bucket that the environment leads to."""

    def give(kind: str) -> servers.Bucket:
        if (reason := real_servers.why_not(kind)) is not None:
            pytest.skip(reason)
        bucket = started(kind)
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        return bucket

    return give


def told(ask: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as failure:
        ask()
    text = str(failure.value)
    assert "\n" not in text
    for secret in (real_servers.AZURE_SECRET, servers.S3_SECRET, "token-of-the-tests"):
        assert secret not in f"{text} {failure.value!r} {failure.value.__cause__!r}"
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_that_is_not_there_is_not_an_object_that_is_not_there(
    bucket_of: Any, kind: str
) -> None:
    scheme = bucket_of(kind).url.partition(":")[0]
    place = open_place(f"{scheme}://none-such/x", writable=True)
    for ask in (
        lambda: place.read("a"),
        lambda: place.put("a", b"x"),
        lambda: place.put("a", b"x", only_new=True),
        lambda: list(place.list("")),
    ):
        assert "no such bucket or container there" in told(ask)


def test_a_missing_bucket_that_has_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a store answers: nothing that is put can be missing."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token-of-the-tests")
    place = open_place("gs://none-such/x", writable=True)

    def put(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("404 Not Found")

    monkeypatch.setattr("obstore.put", put)
    for only_new in (False, True):
        ask = lambda only_new=only_new: place.put("a", b"x", only_new=only_new)  # noqa: E731
        assert "no such bucket or container there" in told(ask)


def test_a_key_that_the_store_does_not_take(bucket_of: Any, monkeypatch: Any) -> None:
    bucket = bucket_of("azure")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3JvbmcgYnV0IHNlY3JldA==")
    place = open_place(f"{bucket.url}/x", writable=True)
    for ask in (lambda: place.read("a"), lambda: place.put("a", b"x"), lambda: [*place.list("")]):
        text = told(ask)
        assert "the server answered 403" in text
        assert "look at AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY" in text
        assert "tried" not in text
        assert "d3Jvbmcg" not in text


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "tester")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "no base64, but secret")
    with pytest.raises(UsageError, match="az://shelf/x") as refusal:
        open_place("az://shelf/x")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_endpoint_elsewhere_is_refused_by_the_names_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """192.0.2.0/24 is for documentation: nothing is there, and a refusal asks nobody."""
    endpoint, allow = ENDPOINTS[kind]
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("GOOGLE_BEARER_TOKEN", "token-of-the-tests"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "tester"),
        ("AZURE_STORAGE_ACCOUNT_KEY", real_servers.AZURE_SECRET),
        (endpoint, "http://192.0.2.9:9"),
    ):
        monkeypatch.setenv(name, value)
    for other in {name for names in ENDPOINTS.values() for name in names} - {endpoint}:
        monkeypatch.delenv(other, raising=False)
    scheme = {"s3": "s3", "google": "gs", "azure": "az"}[kind]
    text = told(lambda: open_place(f"{scheme}://b/x").size("a"))
    assert f"set {allow}=true where that is right, or {endpoint} to an https:// one" in text
    assert not stores.may_be_plain(scheme)
    monkeypatch.setenv(allow, "true")
    assert stores.may_be_plain(scheme)
    monkeypatch.delenv(allow)
    monkeypatch.setenv(endpoint, "http://localhost:9")
    assert stores.may_be_plain(scheme)
    assert not any(stores.may_be_plain(each) for each in {"s3", "gs", "az"} - {scheme})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "endpoint",
    [
        *("localhost:9000", "nonsense", "", "ftp://host", "http://", "http://:9000", "https://%zz"),
        *("http://host:99999", "http://host:many", "http://[::1", "http://a]b", "http://[x]:9000"),
        *("http://1.2.3.999", "http://xn--", "http://host/<a>", "http://hé"),
    ],
)
def test_an_endpoint_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, endpoint: str
) -> None:
    """The library panics at some, which no `except Exception` takes."""
    name = ENDPOINTS[kind][0]
    monkeypatch.setenv(name, endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "tester")
    with pytest.raises(UsageError, match=f"{name}: expected the address of a server"):
        open_place({"s3": "s3://b/x", "google": "gs://b/x", "azure": "az://b/x"}[kind])


def test_the_name_of_a_file_of_credentials_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"none\.json"):
        open_place("gs://b/x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_down(bucket_of: Any, monkeypatch: Any, kind: str) -> None:
    bucket = bucket_of(kind)
    monkeypatch.setenv(ENDPOINTS[kind][0], "http://127.0.0.1:9")
    place = open_place(f"{bucket.url}/x", writable=True)
    for ask in (lambda: place.read("a"), lambda: place.put("a", b"x", only_new=True)):
        assert told(ask).endswith("the server takes no connection (tried 5 times)")


# Listings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_goes_on_where_it_broke_off(
    bucket_of: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What came before the failure is not given again, though Azure sends it again."""
    import obstore

    monkeypatch.setattr(objects, "_PAGE_OBJECTS", 4)
    begun: list[str | None] = []
    real, fail = obstore.list, [False, True]

    def listing(store: Any, *, offset: str | None, **options: Any) -> Iterator[Any]:
        begun.append(offset)
        pages = real(store, offset=offset, **options)
        for page in pages:
            yield page
            if fail.pop() if fail else False:
                raise obstore.exceptions.GenericError("kind: Timeout")

    place = open_place(f"{bucket_of(kind).url}/pages", writable=True)
    names = [f"records/{i:02}" for i in range(10)]
    place.put_many((name, b"") for name in names)
    monkeypatch.setattr(obstore, "list", listing)
    assert [found.key for found in place.list("")] == names
    assert begun == [None, "records/03"]
    assert [found.key for found in place.list("")] == names
    assert begun == [None, "records/03", None]


def test_a_listing_of_a_store_that_cannot_begin_at_a_name_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which fake-gcs-server is, as others may be: begun anew after each page it had no end."""
    if (reason := real_servers.why_not("fake_gcs")) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(objects, "_PAGE_OBJECTS", 3)
    with real_servers.fake_gcs_server() as server:
        for name, value in server.bucket.environment.items():
            monkeypatch.setenv(name, value)
        for i in range(7):
            server.put(f"x/{i}", b"")
        place = open_place(f"{server.bucket.url}/x")
        assert [found.key for found in place.list("")] == list("0123456")


def test_a_page_that_never_comes_is_tried_as_often_as_any_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the pages before it come each time."""
    import obstore

    begun: list[str | None] = []

    def listing(_store: Any, *, offset: str | None, **_: Any) -> Iterator[Any]:
        begun.append(offset)
        yield [{"path": "a", "size": 1}, {"path": "b", "size": 1}]
        raise obstore.exceptions.GenericError("kind: Timeout")

    monkeypatch.setattr(obstore, "list", listing)
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    found = open_place("s3://b/x").list("")
    assert [next(found).key, next(found).key] == ["a", "b"]
    assert "no answer in time (tried 5 times)" in told(lambda: next(found))
    assert begun == [None, "b", "b", "b", "b"]
