"""What a person is told when an object store is not set up: the scheme's own variables, no more."""

import pytest
from vis4mer.store.errors import UsageError
from vis4mer.store.remote.place import RemoteError

obstore = pytest.importorskip("obstore")

from vis4mer.store.remote import stores  # noqa: E402 - needs obstore
from vis4mer.store.remote.objects import open_objects  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "address s3://: expected s3://BUCKET/FOLDER"),
        ("gs:///x", "address gs:///x: expected gs://BUCKET/FOLDER"),
        (
            "az://c/x",
            "address az://c/x: whose account? set AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY",
        ),
    ],
)
def test_an_address_that_is_none_is_told_in_our_words(url, words):
    with pytest.raises(UsageError) as refused:
        open_objects(url, writable=False)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("url", "own", "other"),
    [("s3://b/x", "AWS_", "GOOGLE_"), ("gs://b/x", "GOOGLE_", "AWS_")],
)
def test_missing_credentials_are_those_of_the_scheme(url, own, other):
    place = open_objects(url, writable=False)
    error = obstore.exceptions.GenericError("Error performing PUT http://169.254.169.254/latest")
    told = place._translated("zarr.json", error)
    assert isinstance(told, RemoteError)
    assert own in str(told)
    assert other not in str(told)


def test_a_plain_endpoint_is_refused_once_until_it_is_allowed(monkeypatch):
    """192.0.2.0/24 is for documentation: nothing is there, and a refusal asks nobody."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.9:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(RemoteError, match=r"plain http.*set AWS_ALLOW_HTTP=true") as refused:
        open_objects("s3://b/x", writable=False).size("zarr.json")
    assert "tried" not in str(refused.value)
    assert not stores.may_be_plain("s3")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert stores.may_be_plain("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # where nobody listens
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    assert stores.may_be_plain("s3")
