"""A decoder in a process of its own, as its parent sees it: asked, answering, and possibly killed.

Questions and answers are lines of JSON, see `child`. Nothing is pickled.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from ...store import fields as f
from ...store.errors import UsageError, Vis4merError
from ...store.files import parse_json
from .memory import Peak

Work = Literal["forward", "train"]
_NAME = "answer of a bench process"
_LAST_WORDS = 4096  # bytes of its standard error that are read when it has ended


class BenchMemoryError(Vis4merError, MemoryError):
    """A decoder needed more memory than there is."""


class BenchFailedError(Vis4merError, RuntimeError):
    """A decoder's process ended for a reason other than memory."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The seconds of one call: on the clock, and of all threads together."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class About:
    """What a decoder says of itself. least_bytes: by work, 0 where it cannot be told before."""

    num_parameters: int
    least_bytes: Mapping[Work, int]
    machine: Mapping[str, Any]


class Worker(Protocol):
    """A decoder that can be timed. Each call may raise BenchMemoryError or BenchFailedError."""

    about: About

    def limit(self, max_bytes: int | None) -> int | None:
        """Take no more than so many bytes, None for what is free; the limit that holds."""

    def turn(self, work: Work) -> Turn:
        """Do the work at least once, and time it."""

    def peak(self) -> Peak:
        """The most memory since this was last asked."""

    def close(self) -> None:
        """End it. Harmless when it has ended."""


class ChildWorker:
    """A worker in a new Python process."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Any) -> None:
        self.process = process
        self._errors = errors
        self.about: About

    @classmethod
    def start(cls, request: Mapping[str, Any]) -> Self:
        """Build what `child.Bench` is asked for. Raises UsageError where the decoder refuses."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # -P: a folder that happens to be the current one lends no modules.
        command = [sys.executable, "-P", "-m", f"{__package__}.child"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        worker = cls(process, errors)
        try:
            worker.about = _about(worker._ask(request))
        except BaseException:
            worker.close()
            raise
        return worker

    def limit(self, max_bytes: int | None) -> int | None:
        answer = self._ask({"do": "limit", "max_bytes": max_bytes})
        if answer.get("limit_bytes") is None:
            return None
        return f.integer(answer, "limit_bytes", name=_NAME)

    def turn(self, work: Work) -> Turn:
        answer = self._ask({"do": "turn", "work": work})
        return Turn(
            seconds=f.number(answer, "seconds", name=_NAME),
            cpu_seconds=f.number(answer, "cpu_seconds", name=_NAME),
        )

    def peak(self) -> Peak:
        answer = self._ask({"do": "peak"})
        reserved = answer.get("reserved")
        return Peak(
            bytes=f.integer(answer, "bytes", name=_NAME),
            reserved=None if reserved is None else f.integer(answer, "reserved", name=_NAME),
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # a question that a dead process never read
                    stream.close()

    def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise ValueError("a bench process is started with pipes")
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._ended()
        answer = parse_json(line, name=_NAME)
        if "refused" in answer:
            raise UsageError(f.text(answer, "refused", name=_NAME))
        if "out_of_memory" in answer:
            raise BenchMemoryError(f.text(answer, "out_of_memory", name=_NAME))
        return answer

    def _ended(self) -> Vis4merError:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return BenchMemoryError("its process was killed, as a system does when memory ends")
        if code < 0:
            return BenchFailedError(f"its process died of {signal.Signals(-code).name}")
        self._errors.seek(0, 2)
        self._errors.seek(max(0, self._errors.tell() - _LAST_WORDS))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "and said nothing")
        return BenchFailedError(f"its process ended with exit code {code}: {last}")


def _about(answer: Mapping[str, Any]) -> About:
    least = f.mapping(answer, "least_bytes", name=_NAME)
    return About(
        num_parameters=f.integer(answer, "num_parameters", name=_NAME),
        least_bytes={
            "forward": f.integer(least, "forward", name=_NAME),
            "train": f.integer(least, "train", name=_NAME),
        },
        machine=f.mapping(answer, "machine", name=_NAME),
    )
