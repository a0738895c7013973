"""What the command line shows: one error line, tables, progress that suits where it is printed.

On a terminal progress is a live display; anywhere else it is a plain line now and then, so that a
cluster's log stays readable. Everything that comes from a cache or a file name is escaped, because
square brackets are markup to Rich.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

PLAIN_LINE_SECONDS = 10.0

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """The one line of a failure, on standard error."""
    err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}")


def print_note(message: str) -> None:
    """A line for people, on standard error, so that `--json` output stays clean."""
    err.print(escape(message))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_line(message: str = "") -> None:
    out.print(escape(message))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """A table; columns whose values are all numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(f"{v:.3g}" if isinstance(v, float) else str(v)) for v in row))
    out.print(table)


def human_bytes(count: float) -> str:
    """1536 → "1.5 kB", decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A live line that is redrawn on a terminal, and printed every ten seconds elsewhere.

    Call it with the text of the moment; text may have several lines. A context manager.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._live = Live(console=err, refresh_per_second=8) if err.is_terminal else None
        self._clock = clock
        self._next = clock() + PLAIN_LINE_SECONDS

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update("")
            self._live.stop()

    def __call__(self, text: str, *, always: bool = False) -> None:
        """Show `text`; `always` prints it off a terminal too, whenever the last line was."""
        if self._live is not None:
            self._live.update(escape(text))
        elif always or self._clock() >= self._next:
            self._next = self._clock() + PLAIN_LINE_SECONDS
            print_note(text)


def bar(done: int, total: int, *, width: int = 24) -> str:
    """A bar of `width` characters, in plain text."""
    filled = width * done // max(1, total)
    return "━" * filled + "─" * (width - filled)
