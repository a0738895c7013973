"""What made the entries of a cache, and what of it may leave the house.

Each record says of itself which versions, device and host made it (`EntryRecord.provenance`). Here
entries that were made alike are counted together, and what is private is taken out of a record that
others are to read. Knows no devices: what is written there is said by who writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath

from .records import EntryRecord, SourceRecord

# Kinds of provenance that may be shown to everybody. What is not known to be harmless stays home.
PUBLIC = frozenset(
    {
        "vis4mer",
        "reader",
        "decoder",
        "torch",
        "timm",
        "torchvision",
        "device",
        "cuda",
        "compute_dtype",
        "weights_sha256",
        "imported from",
        "timestamps",
        "time",
    }
)
# What does not change a value: entries that differ in these alone were made alike.
_CIRCUMSTANCES = frozenset({"host", "time", "vis4mer"})


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made some of a cache's entries, as far as it may change the last bits of a value."""

    about: Mapping[str, str]
    num_videos: int

    def describe(self, others: Iterable[Maker]) -> str:
        """What tells this maker from the others, in words."""
        told = sorted(
            {
                kind
                for other in others
                for kind in self.about.keys() | other.about.keys()
                if self.about.get(kind) != other.about.get(kind)
            }
        )
        return ", ".join(f"{kind} {self.about.get(kind, 'not recorded')}" for kind in told)


def makers(records: Iterable[EntryRecord]) -> tuple[Maker, ...]:
    """The different makers of some entries, that of most entries first."""
    counts = Counter(
        tuple(sorted((k, v) for k, v in record.provenance.items() if k not in _CIRCUMSTANCES))
        for record in records
    )
    return tuple(Maker(about=dict(about), num_videos=n) for about, n in counts.most_common())


def without_private(record: EntryRecord) -> EntryRecord:
    """The record as others may read it: no host, no user, no path of this machine.

    A relative source name stays, for it is how the video is found again; of any other the file's
    name stays. Provenance of kinds that are not in `PUBLIC` goes.
    """
    source = replace(record.source, name=_public_name(record.source))
    public = {kind: value for kind, value in record.provenance.items() if kind in PUBLIC}
    return replace(record, source=source, provenance=public)


def _public_name(source: SourceRecord) -> str:
    name = source.name
    windows = PureWindowsPath(name)
    own = name.startswith(("/", "~")) or ".." in PurePosixPath(name).parts
    if own or windows.drive or windows.root or ".." in windows.parts:
        return windows.name if "\\" in name else PurePosixPath(name).name
    return name
