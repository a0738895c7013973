"""Servers that fail, stall or lie: tried again where it may pass, else refused; nothing secret in
any message, and no more memory than was asked for."""

from __future__ import annotations

import io
import multiprocessing
import tracemalloc
from collections.abc import Iterator

import pytest
import servers
from vis4mer.store.errors import UsageError
from vis4mer.store.remote import objects, retry, stores
from vis4mer.store.remote.place import (
    MissingObjectError,
    Place,
    RemoteError,
    TornObjectError,
    open_place,
)
from vis4mer.store.remote.urls import shown_url, without_secrets

pytest.importorskip("obstore")

DATA = bytes(range(256)) * 4000  # 1 MB


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def site() -> Iterator[servers.Site]:
    with servers.web_server({"shelf/a": DATA}) as found:
        yield found


def shelf(site: servers.Site) -> Place:
    return open_place(f"{site.url}/shelf")


def fetched(place: Place, start: int = 0, length: int | None = None) -> bytes:
    file = io.BytesIO()
    place.fetch("a", file, start=start, length=length)
    return file.getvalue()


@pytest.mark.parametrize(
    "fault", ["unavailable", "too_many", "reset", "cut", "cut_late", "longer", "huge"]
)
def test_what_may_pass_is_tried_again(site: servers.Site, fault: servers.Fault) -> None:
    place = shelf(site)
    site.faults[:] = [fault, fault]
    assert place.read("a", start=100, length=500_000) == DATA[100:500_100]
    assert site.faults == []
    site.faults[:] = [fault, fault]
    assert fetched(place, 100, 500_000) == DATA[100:500_100]
    assert site.faults == []


@pytest.mark.parametrize("fault", ["unavailable", "too_many", "reset", "cut"])
def test_tries_are_counted(site: servers.Site, fault: servers.Fault) -> None:
    place = shelf(site)
    site.faults[:] = [fault] * 50
    with pytest.raises(RemoteError, match=r"shelf/a: .* \(tried 5 times\)"):
        place.read("a", start=0, length=1000)
    assert len(site.asked) == retry.TRIES == 5


def test_a_stalled_server_is_not_waited_for(
    site: servers.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(servers, "STALL_SECONDS", 1.0)
    place = shelf(site)
    site.faults[:] = ["silent"]
    assert place.read("a", start=5, length=10) == DATA[5:15]
    site.faults[:] = ["silent"] * 10
    with pytest.raises(RemoteError, match="no answer in time"):
        place.read("a", start=5, length=10)


def test_a_broken_fetch_goes_on_where_it_broke_off(
    site: servers.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 1 << 16)
    place = shelf(site)
    site.faults[:] = ["cut_late"]
    assert fetched(place, 0, len(DATA)) == DATA
    first, second = [span for _, _, span in site.asked if span is not None]
    assert first == f"bytes=0-{len(DATA) - 1}"
    assert int(second.removeprefix("bytes=").partition("-")[0]) > len(DATA) // 2


def test_a_long_fetch_is_several_requests(
    site: servers.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_SEGMENT_BYTES", 300_000)
    place = shelf(site)
    assert fetched(place, 10) == DATA[10:]
    spans = [span for method, _, span in site.asked if method == "GET"]
    assert spans == [
        "bytes=10-300009",
        "bytes=300010-600009",
        "bytes=600010-900009",
        f"bytes=900010-{len(DATA) - 1}",
    ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("other_range", "the server sent other bytes than were asked for"),
        ("whole", "the server gives no byte ranges"),
        ("forbidden", "the server answered 403 Forbidden"),
    ],
)
def test_what_will_not_pass_is_refused_at_once(
    site: servers.Site, fault: servers.Fault, words: str
) -> None:
    place = shelf(site)
    site.faults[:] = [fault]
    with pytest.raises(RemoteError, match=words) as refusal:
        place.read("a", start=5, length=10)
    assert len(site.asked) == 1
    assert "AKIASECRETID" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_stated_size_is_never_allocated(site: servers.Site) -> None:
    place = shelf(site)
    site.faults[:] = ["huge"]  # a terabyte, it says
    tracemalloc.start()
    with pytest.raises(RemoteError, match="expected at most"):
        place.read("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_no_more_is_kept_than_was_announced(site: servers.Site) -> None:
    place = shelf(site)
    site.faults[:] = ["more"]
    with pytest.raises(RemoteError, match="more than it announced"):
        place.read("a")
    assert len(site.asked) == 1


def test_a_server_that_says_no_size_is_asked_once(site: servers.Site) -> None:
    place = shelf(site)
    for ask in (lambda: place.size("a"), lambda: place.read("a"), lambda: fetched(place)):
        site.faults[:] = ["sizeless"] * 5
        with pytest.raises(RemoteError, match="says no size") as refusal:
            ask()
        assert "tried" not in str(refusal.value)
        assert len(site.faults) == 4


def test_a_server_without_ranges_reads_whole_objects(site: servers.Site) -> None:
    """What a plain server of files can do."""
    place = shelf(site)
    site.faults[:] = ["whole"]
    assert place.read("a") == DATA


def test_a_web_server_is_read_only_and_has_no_list(site: servers.Site) -> None:
    with pytest.raises(UsageError, match="read-only"):
        open_place(site.url, writable=True)
    assert not shelf(site).can_list
    with pytest.raises(UsageError, match="cannot be listed"):
        list(shelf(site).list("records"))


def test_an_object_that_became_shorter(site: servers.Site) -> None:
    place = shelf(site)
    with pytest.raises(TornObjectError, match=f"{len(DATA)} bytes, but"):
        place.read("a", start=10, length=len(DATA))
    site.objects.clear()
    with pytest.raises(MissingObjectError):
        place.read("a")


def test_a_forked_process_is_refused_and_does_not_hang(site: servers.Site) -> None:
    place = shelf(site)
    assert place.size("a") == len(DATA)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def ask() -> None:
        for call in (lambda: place.read("a"), lambda: shelf(site)):
            try:
                answers.put(str(call()))
            except RemoteError as error:
                answers.put(str(error))

    child = context.Process(target=ask)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert "start processes by spawn" in answers.get()
    assert "start processes by spawn" in answers.get()


# S3 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[servers.Bucket]:
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    with servers.s3_server() as bucket:
        yield bucket


@pytest.fixture
def bucket(s3: servers.Bucket, monkeypatch: pytest.MonkeyPatch) -> servers.Bucket:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


def test_more_objects_than_one_page_of_a_listing(
    bucket: servers.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PAGE_OBJECTS", 4)
    place = open_place(f"{bucket.url}/pages", writable=True)
    place.put_many((f"records/{i:02}", b"") for i in range(10))
    assert [found.key for found in place.list("")] == [f"records/{i:02}" for i in range(10)]


def test_foreign_names_are_left_out_of_a_listing(bucket: servers.Bucket) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store.from_url(f"{bucket.url}/odd", client_options={"allow_http": True})
    for name in ("a b", "plain", "ü", "x%2fy"):
        obstore.put(store, name, b"")
    place = open_place(f"{bucket.url}/odd")
    assert [found.key for found in place.list("")] == ["plain"]


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there() -> None:
    place = open_place("s3://no-such-bucket/x", writable=True)
    for ask in (lambda: place.put("a", b""), lambda: place.read("a"), lambda: list(place.list(""))):
        with pytest.raises(RemoteError, match="NoSuchBucket"):
            ask()


def test_an_answer_that_was_lost_is_no_other_writer(
    bucket: servers.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is made, the answer never comes, and the next try finds the object."""
    import obstore

    put = obstore.put
    lost = [True]

    def losing(*args: object, **options: object) -> object:
        done = put(*args, **options)  # type: ignore[arg-type]
        if lost.pop() if lost else False:
            raise obstore.exceptions.GenericError("kind: Timeout")
        return done

    monkeypatch.setattr(obstore, "put", losing)
    place = open_place(f"{bucket.url}/lost", writable=True)
    assert place.put("mine", b"token 1", only_new=True) is True
    assert place.put("mine", b"token 2", only_new=True) is False


# Secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hushhush@host/x",
        "https://hushhush@host/x",
        "https://host/x?X-Amz-Signature=hushhush",
        "s3://key:hushhush@bucket/x",
        "az://container/x?sig=hushhush",
        "gs://bucket/x#hushhush",
        "ftp://me:hushhush@host/x",
        "hf://datasets/a/b?token=hushhush",
        "file:///x?hushhush",
        "http://[hushhush",
        "s3://KEY:hush/hush@bucket/x",
        "s3://KEY:hush?hush@bucket/x",
        "s3://KEY:hush#hush@bucket/x",
        "ssh://me:hush/hush@host/x",
        "hf://datasets:hush/hush@a/b",
    ],
)
def test_an_address_with_a_secret_is_refused_without_it(url: str) -> None:
    with pytest.raises(UsageError) as refusal:
        open_place(url)
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("S3://Bucket/a/b/", "s3://Bucket/a/b"),
        ("https://u:p@host:8080/a?q=1#f", "https://host:8080/a"),
        ("ssh://me@host/~/x", "ssh://host/~/x"),
        ("https://host/a\n\x1b[31m", "https://host/a\\x0a\\x1b[31m"),
        ("plain/path?x", "plain/path?x"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("s3://KEY:se/cret@bucket/x", "s3://…"),
    ],
)
def test_addresses_for_people(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_messages_of_libraries_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET_KEY", "quite-hidden")
    text = without_secrets(
        "GET https://u:hush1@host/x?X-Amz-Credential=hush2&sig=hush3 failed; "
        "Authorization: Bearer hush4; <AWSAccessKeyId>hush5</AWSAccessKeyId> "
        '{"token": "hush6", "x-amz-security-token": "hush7"} quite-hidden'
    )
    assert "hush" not in text
    assert "quite-hidden" not in text
    assert "https://host/x" in text
    assert without_secrets("the token expired at 5") == "the token expired at 5"


def test_credentials_of_the_environment_are_in_no_error(
    bucket: servers.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_place(f"{bucket.url}/x", writable=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    silent = open_place(f"{bucket.url}/x", writable=True)
    for ask in (
        lambda: place.read("none"),
        lambda: silent.read("none"),
        lambda: silent.put("none", b"x"),
        lambda: silent.put("none", b"x", only_new=True),
        lambda: list(silent.list("")),
    ):
        with pytest.raises((RemoteError, MissingObjectError)) as failure:
            ask()
        shown = f"{failure.value!r} {failure.value.__cause__!r}"
        for secret in (servers.S3_SECRET, "key-of-the-tests", "Signature"):
            assert secret not in shown


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for url, extra in (
        ("s3://b/x", "remote"),
        ("https://h/x", "remote"),
        ("ssh://h/x", "ssh"),
        ("hf://datasets/a/b", "hf"),
    ):
        with pytest.raises(UsageError, match=rf"pip install '\.\[{extra}\]'"):
            open_place(url)


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown scheme 'ftp', expected a path, file://, s3://"):
        open_place("ftp://host/x")
