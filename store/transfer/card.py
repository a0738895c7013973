"""The README of a shared cache: what it is, for people and for a hub's page.

Written from what stands at the place, never from what is here. What others may have written stands
in spans of code, where Markdown makes neither links nor HTML of it.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from ..digest import digest_records
from ..records import EntryRecord
from ..spec import CacheSpec
from ..wording import counted, human_bytes, human_seconds, visible
from .contents import Contents

CARD = "README.md"
_MARK = "<!-- Written by vis4mer cache push. A file without this line is never replaced. -->"
_MOST_CHARACTERS = 120  # of a text in a table


def is_generated(data: bytes) -> bool:
    """Whether a README is one of ours, which may be replaced."""
    return _MARK.encode() in data


def card_for(contents: Contents) -> str:
    """Markdown with the front matter that dataset hubs read."""
    records = [contents.record(key) for key in sorted(contents.rows)]
    return "\n".join(
        [
            "---",
            "tags: [video, features, vis4mer]",
            "viewer: false",
            "---",
            _MARK,
            "",
            "# Feature cache",
            "",
            "Token tensors of a frozen backbone, for training temporal decoders with "
            "vis4mer. There are no videos in it.",
            "",
            *_facts(contents.spec, records),
            "",
            "## Use",
            "",
            "```bash",
            f"vis4mer cache pull {_address(contents.place.url)} cache.zarr",
            "vis4mer cache verify cache.zarr --full",
            f"vis4mer train-decoder --cache cache.zarr --task {_first_task(contents)} --run run",
            "```",
            "",
            *_coverage(contents, records),
            "## Licence",
            "",
            "The tokens derive from the videos and from the backbone's weights: the terms of both "
            "apply. Whoever shares this cache says here which those are.",
            "",
        ]
    )


def _facts(spec: CacheSpec, records: Sequence[EntryRecord]) -> list[str]:
    grid = "x".join(map(str, spec.grid))
    arrays = Counter(array for record in records for array in record.token_arrays)
    held = ", ".join(
        array if count == len(records) else f"{array} (in {counted(count, 'video')})"
        for array, count in sorted(arrays.items())
    )
    seconds = sum(record.duration_seconds for record in records)
    root, _ = digest_records(spec, records)
    rows = {
        "videos": f"{len(records):,}, {human_seconds(seconds)}",
        "frames": f"{sum(r.num_frames for r in records):,} ({spec.sampling.describe()})",
        "size": human_bytes(sum(record.num_bytes for record in records)),
        "backbone": f"{_text(spec.backbone)}, weights {_text(spec.weights)}",
        "SHA-256 of the weights": _text(spec.weights_sha256),
        "layer": _text(spec.layer),
        "tokens": f"{grid} + {spec.num_prefix} prefix, width {spec.dim}, {spec.stored_dtype}",
        "arrays": held or "none yet",
        "read by": _text(spec.reader),
        "fingerprint": _text(spec.fingerprint),
        "root digest": _text(root),
    }
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]


def _coverage(contents: Contents, records: Sequence[EntryRecord]) -> list[str]:
    """How many rows of each task have an entry."""
    if not contents.tasks:
        return []
    present = {record.id for record in records}
    lines = ["## Tasks", "", "| task | labels | train | val | test |", "|---|---|---|---|---|"]
    for reference in contents.tasks:
        table = contents.table(reference)
        cells = []
        for split in ("train", "val", "test"):
            rows = [row for row in table.rows if row.split == split]
            there = sum(row.id in present for row in rows)
            cells.append(f"{there:,} of {len(rows):,}" if rows else "–")
        lines.append(
            f"| {_text(reference)} | {table.describe_labels()} | {cells[0]} |"
            f" {cells[1]} | {cells[2]} |"
        )
    return [*lines, ""]


def _first_task(contents: Contents) -> str:
    return contents.tasks[0] if contents.tasks else "DATASET/TASK"


def _address(url: str) -> str:
    """Where others find the cache, as a shell takes it; a directory of this machine is nothing to
    tell them."""
    return shlex.quote(visible(url)).replace("`", "'") if "://" in url else "PLACE"


def _text(text: str) -> str:
    """A span of code with this text, also within a table."""
    inert = visible(text[:_MOST_CHARACTERS]).replace("`", "'").replace("|", "\\|").strip()
    return f"`{inert}`" if inert else "–"
