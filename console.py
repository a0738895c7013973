"""What the command line shows: one error line, tables, progress that suits where it is printed.

On a terminal progress is a live display; anywhere else it is a plain line now and then, so that a
cluster's log stays readable. Text that comes from a cache or a file name may be hostile: square
brackets are markup to Rich, and control characters are commands to a terminal; both are shown, not
obeyed. What the results of commands look like is said in `render`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .store.wording import human_bytes as human_bytes
from .store.wording import human_seconds as human_seconds
from .store.wording import visible

PLAIN_LINE_SECONDS = 10.0
PLAIN_WIDTH = 400  # a table in a file or a pipe keeps one row a line

out = Console(
    highlight=False,
    emoji=False,  # ":smile:" in an id is text
    soft_wrap=True,
    width=None if sys.stdout.isatty() else PLAIN_WIDTH,
)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def print_error(message: str) -> None:
    """The one line of a failure, on standard error."""
    err.print(f"[bold red]error:[/] {shown(' '.join(message.split()))}")


def print_note(message: str) -> None:
    """A line for people, on standard error, so that `--json` output stays clean."""
    for line in message.splitlines():
        err.print(shown(line))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_line(message: str = "") -> None:
    out.print(shown(message))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    gap: int = 2,
) -> None:
    """A table; columns whose values are all numbers are aligned to the right. gap: between them."""
    table = Table(
        title=None if title is None else shown(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(shown(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(f"{v:.2f}" if isinstance(v, float) else str(v)) for v in row))
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as plain:
        out.print(table)
    for line in plain.get().splitlines():
        print_line(line.rstrip())  # in a file nobody needs the padding


def shown(text: str) -> str:
    """Text that a terminal can be given: control characters as \\xNN, markup escaped."""
    return escape(visible(text))


class Progress:
    """A live line that is redrawn on a terminal, and printed every ten seconds elsewhere.

    Call it with the text of the moment, which may have several lines. A context manager.
    """

    def __init__(self) -> None:
        self._live = Live(console=err, refresh_per_second=8) if err.is_terminal else None
        self._next = time.monotonic() + PLAIN_LINE_SECONDS

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update("")
            self._live.stop()

    def __call__(self, text: str) -> None:
        """Show `text` until the next call."""
        if self._live is not None:
            self._live.update("\n".join(map(shown, text.splitlines())))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_LINE_SECONDS
            print_note(text)


def bar(done: int, total: int, *, width: int = 24) -> str:
    """A bar of `width` characters, in plain text."""
    filled = width * done // max(1, total)
    return "━" * filled + "─" * (width - filled)


def share(done: int, total: int) -> str:
    """A bar and the counts, e.g. for a line of progress; the counts alone in a log."""
    return f"{bar(done, total)} {done}/{total}" if err.is_terminal else f"{done}/{total}"
