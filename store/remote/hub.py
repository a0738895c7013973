"""A dataset repository of the Hugging Face hub as a place, through huggingface_hub.

    hf://datasets/ORG/NAME[@REVISION][/FOLDER]

A hub counts commits, so many writes go into few. A repository that is not there is made, private.
The token is the client's own (HF_TOKEN, `hf auth login`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..errors import UsageError, Vis4merError
from .place import (
    Place,
    PlacedObject,
    RemoteError,
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
from .urls import refuse_secrets, shown_url

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
TIMEOUT_SECONDS = 60.0
_BLOCK_BYTES = 1 << 20
_COMMIT_FILES = 200
_COMMIT_BYTES = 2 << 30
_ADDRESS = re.compile(
    r"hf://datasets/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?(?:/(.*))?", re.ASCII
)
_MOVED_ON = 412  # the branch has another commit than the one that was looked at
_MEANINGS = {
    401: "the hub wants a token; set HF_TOKEN or run `hf auth login`",
    403: "the token has not the right to do this",
    404: "no such repository or revision, or the token may not see it",
}


def open_hub(url: str, *, writable: bool) -> HubPlace:
    """The place of an `hf://` address; UsageError when it is none or the client is missing.

    writable: nothing is asked of the hub yet, whose answer to the first write says it.
    """
    refuse_secrets(url.replace("@", "/"))
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise UsageError(
            f"address {shown_url(url)}: expected hf://datasets/ORG/NAME[@REVISION][/FOLDER]"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(
            f"address {url}: needs huggingface_hub; `pip install '.[hf]'` in the checkout"
        )
    _utilities().disable_progress_bars()
    _ = writable
    return HubPlace(
        url.rstrip("/"),
        repository=match[1],
        revision=match[2] or "main",
        folder=check_prefix(match[3] or ""),
    )


class HubPlace(Place):
    """Files of one revision of a dataset repository, below a folder of it."""

    commits = True

    def __init__(self, url: str, *, repository: str, revision: str, folder: str) -> None:
        from huggingface_hub import HfApi

        self.url = url
        self._repository, self._revision = repository, revision
        self._prefix = f"{folder}/" if folder else ""
        self._api: HfApi = HfApi()

    def size(self, key: str) -> int | None:
        check_key(key)
        return self._asked(key, lambda: self._size(key, self._revision))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        wanted = self._span(key, start, length)
        if length is None:
            require_bounded(self.url, key, wanted)

        def read() -> bytes:
            return b"".join(self._stream(key, start, start + wanted))

        return self._asked(key, read)

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        done, stop = start, start + self._span(key, start, length)

        def go_on() -> None:
            nonlocal done
            for block in self._stream(key, done, stop):
                target.write(block)
                done += len(block)

        tried_again(go_on)

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        check_key(key)
        if only_new:
            data = whole_of(source)
            return created(
                self, key, data, lambda: self._once(key, lambda: self._create(key, data))
            )
        self._commit([(key, source)])
        return True

    def put_many(self, items: Iterable[tuple[str, bytes | Path]]) -> None:
        """In order, as many at once as one commit may have; a commit is there whole or not."""
        batch: list[tuple[str, bytes | Path]] = []
        num_bytes = 0
        for key, source in items:
            check_key(key)
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            if batch and (len(batch) == _COMMIT_FILES or num_bytes + size > _COMMIT_BYTES):
                self._commit(batch)
                batch, num_bytes = [], 0
            batch.append((key, source))
            num_bytes += size
        if batch:
            self._commit(batch)

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        folder = check_prefix(prefix)
        path = f"{self._prefix}{folder}".rstrip("/") or None
        yield from self._asked(folder, lambda: list(self._tree(path)))

    def _tree(self, path: str | None) -> Iterator[PlacedObject]:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            for found in self._api.list_repo_tree(
                self._repository, path, recursive=True, revision=self._revision, repo_type="dataset"
            ):
                key = found.path.removeprefix(self._prefix)
                if isinstance(found, RepoFile) and is_key(key):
                    yield PlacedObject(key=key, size=found.size)
        except (EntryNotFoundError, RepositoryNotFoundError):
            return  # as empty as one that the first commit will make

    def _size(self, key: str, revision: str) -> int | None:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = self._api.get_paths_info(
                self._repository, self._prefix + key, revision=revision, repo_type="dataset"
            )
        except RepositoryNotFoundError:
            return None
        sizes = [each.size for each in found if isinstance(each, RepoFile)]
        return sizes[0] if sizes else None

    def _span(self, key: str, start: int, length: int | None) -> int:
        check_range(start, length)
        size = self.size(key)
        if size is None:
            raise missing(self.url, key)
        return require_span(self.url, key, size=size, start=start, length=length)

    def _stream(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop), never more. The hub's redirect to its storage is followed."""
        utilities = _utilities()
        # No part of it needs escaping: what an address and a key may hold is checked.
        url = (
            f"{self._api.endpoint}/datasets/{self._repository}/resolve/{self._revision}/"
            f"{self._prefix}{key}"
        )
        headers = {
            **utilities.build_hf_headers(),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        left = stop - start
        if not left:
            return
        try:
            request = utilities.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS
            )
            with request as answer:
                utilities.hf_raise_for_status(answer)
                span = answer.headers.get("Content-Range", "")
                if answer.status_code != 206 or not span.startswith(f"bytes {start}-{stop - 1}/"):
                    raise RemoteError(f"{self.url}/{key}: the hub sent other bytes than asked for")
                for block in answer.iter_raw(_BLOCK_BYTES):
                    left -= len(block)
                    if left < 0:
                        raise RemoteError(f"{self.url}/{key}: the hub sent more than asked for")
                    yield block
        except Exception as error:
            raise self._translated(key, error) from None
        if left:
            raise PassingError(f"{self.url}/{key}: the answer was cut off")

    def _create(self, key: str, data: bytes) -> bool:
        """Commit onto the very commit that has no such file; another in between: once more."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        try:
            info = self._api.dataset_info(self._repository, revision=self._revision)
        except RepositoryNotFoundError:
            self._make_repository()
            info = self._api.dataset_info(self._repository, revision=self._revision)
        head = info.sha or self._revision
        if self._size(key, head) is not None:
            return False
        try:
            self._send([(key, data)], parent=head)
        except HfHubHTTPError as error:
            if _status(error) == _MOVED_ON:
                raise PassingError(f"{self.url}/{key}: others write there at once") from None
            raise
        return True

    def _commit(self, items: Sequence[tuple[str, bytes | Path]]) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        def commit() -> None:
            try:
                self._send(items)
            except RepositoryNotFoundError:
                self._make_repository()
                self._send(items)

        self._asked(items[0][0], commit)

    def _send(self, items: Sequence[tuple[str, bytes | Path]], parent: str | None = None) -> None:
        from huggingface_hub import CommitOperationAdd

        additions = [
            CommitOperationAdd(
                self._prefix + key, source if isinstance(source, bytes) else str(source)
            )
            for key, source in items
        ]
        self._api.create_commit(
            self._repository,
            additions,
            commit_message=f"Add {len(items)} files of a vis4mer cache",
            repo_type="dataset",
            revision=self._revision,
            parent_commit=parent,
        )

    def _make_repository(self) -> None:
        self._api.create_repo(self._repository, repo_type="dataset", private=True, exist_ok=True)

    def _asked(self, key: str, call: Callable[[], T]) -> T:
        return tried_again(lambda: self._once(key, call))

    def _once(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            raise self._translated(key, error) from None

    def _translated(self, key: str, error: Exception) -> Exception:
        """The client's error as ours; its own words quote signed addresses."""
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        if isinstance(error, Vis4merError):
            return error
        if isinstance(error, EntryNotFoundError):
            return missing(self.url, key)
        name = f"{self.url}/{key}"
        if isinstance(error, HfHubHTTPError):
            status = _status(error)
            meaning = _MEANINGS.get(status, f"the hub answered {status}")
            kind = PassingError if status in PASSING_STATUS else RemoteError
            return kind(f"{name}: {meaning}")
        # The client's HTTP library has had several names; its failures to connect have had one.
        if any(base.__name__ == "TransportError" for base in type(error).__mro__):
            return PassingError(f"{name}: no answer from the hub ({type(error).__name__})")
        return RemoteError(f"{name}: the hub's client failed ({type(error).__name__})")


def _utilities() -> Any:
    """The client's public helpers, which it loads by name and so hides from type checkers."""
    return importlib.import_module("huggingface_hub.utils")


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))
