"""What a cache holds, in a few figures: the answer to `vis4mer cache info`.

Computed from records and tables alone; reads no tokens. What a view costs to read follows from the
arrays that entries hold, which records say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .cache import Cache
from .digest import SHOWN_DIGITS, digest_records
from .provenance import Maker, makers
from .records import EntryRecord, frame_cost
from .remote.shelf import ShelfUse
from .spec import CacheSpec
from .views import TokenView
from .wording import counted, human_seconds

_WINDOW_FRAMES = 60
_TYPICAL_SIDES = (7, 4)
_MOST_MAKERS = 5  # that are shown to people


@dataclass(frozen=True, kw_only=True)
class ViewCost:
    """What one window of a view reads. num_bytes: of tokens, the mean over the entries' frames.

    num_stored: entries that hold the view's own array. In the others its grid is averaged from the
    full one, all of which is read. num_videos: that can give the view at all.
    """

    view: str
    num_bytes: int
    num_stored: int
    num_videos: int

    def describe(self, largest: int, *, human_bytes: Callable[[float], str]) -> str:
        """In words, beside a view that reads `largest` bytes."""
        share = f"{human_bytes(self.num_bytes)} a window"
        if largest > self.num_bytes > 0:
            share += f", {largest / self.num_bytes:.3g} times less than the largest"
        if self.num_stored == self.num_videos:
            return f"{share}; stored"
        some = f"stored in {self.num_stored} of {self.num_videos} videos, else "
        return f"{share}; {some if self.num_stored else ''}pooled on reading"


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """Counts and sizes of a cache.

    num_packed, packed_bytes, num_packs: the videos in packs, their bytes, and in how many packs.
    frame_bytes: stored bytes of one frame, by array. num_holding: videos that hold each array.
    views: what typical views read, dearest first. made_by: for each kind of provenance, how many
    videos each value made. makers: the same by whole machines and versions; more than one is worth
    a look before figures are compared. digest: the root digest of all values (`digest`); None
    when it cannot be told, because of records that cannot be read. unreadable: what is wrong with
    those, which no other figure counts. copies: of remote caches, the directory here that objects
    are copied to; None of a cache that is here.
    """

    path: str
    spec: CacheSpec
    num_videos: int
    num_frames: int
    duration_seconds: float
    num_bytes: int
    num_packed: int
    packed_bytes: int
    num_packs: int
    num_failures: int
    damaged_videos: int
    frame_bytes: Mapping[str, int]
    num_holding: Mapping[str, int]
    views: tuple[ViewCost, ...]
    tasks: tuple[str, ...]
    made_by: Mapping[str, Mapping[str, int]]
    makers: tuple[Maker, ...]
    digest: str | None
    unreadable: tuple[str, ...] = ()
    copies: ShelfUse | None = None

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        copies = None if self.copies is None else self.copies.to_json()
        return {**data, "spec": self.spec.to_json(), "copies": copies}

    def lines(self, *, human_bytes: Callable[[float], str]) -> list[tuple[str, str]]:
        """The summary as (name, value) lines for people."""
        spec = self.spec
        grid = "x".join(map(str, spec.grid))
        lines = [
            ("cache", f"{self.path} (format 1, fingerprint {spec.fingerprint})"),
            ("videos", f"{self.num_videos}, {human_seconds(self.duration_seconds)}"),
            ("frames", f"{self.num_frames} ({spec.sampling.describe()}), {_reader(spec)}"),
            ("size", human_bytes(self.num_bytes)),
            *self._pack_lines(human_bytes),
            *self._remote_lines(human_bytes),
            *self._unreadable_lines(),
            ("digest", self._digest_line()),
            ("failures", f"{self.num_failures} (`vis4mer cache ls --failures`)"),
            ("damaged", f"{counted(self.damaged_videos, 'video')} with damaged frames"),
            ("backbone", f"{spec.backbone}, weights {_weights(spec)}"),
            ("input", _input(spec)),
            ("tokens", f"{grid} + {spec.num_prefix} prefix, width {spec.dim}, {spec.stored_dtype}"),
        ]
        for array, count in self.frame_bytes.items():
            held = self.num_holding.get(array, 0)
            some = f", in {held} of {self.num_videos} videos" if held < self.num_videos else ""
            lines.append((f"  {array}", f"{human_bytes(count)} a frame{some}"))
        lines += self._view_lines(human_bytes)
        lines.append(("tasks", ", ".join(self.tasks) or "none"))
        for kind, values in self.made_by.items():
            if kind != "weights_sha256" or set(values) != {spec.weights_sha256}:  # said above
                lines.append((kind, _made(kind, values)))
        return [*lines, *self._maker_lines()]

    def _maker_lines(self) -> list[tuple[str, str]]:
        """Who made which part of a cache that was not made in one way; none of one that was."""
        if len(self.makers) < 2:
            return []
        shown = [
            f"{counted(maker.num_videos, 'video')}: {maker.describe(self.makers)}"
            for maker in self.makers[:_MOST_MAKERS]
        ]
        more = len(self.makers) - len(shown)
        return [
            (
                "made",
                f"in {len(self.makers)} different ways; their values may differ in the last bits "
                "(`vis4mer cache verify --reencode` compares)",
            ),
            *(("", line) for line in shown),
            *([("", f"and {more} more")] if more else []),
        ]

    def _digest_line(self) -> str:
        if self.digest is None:
            return "none while records cannot be read"
        return f"{self.digest[:SHOWN_DIGITS]}… of all values (`vis4mer cache digest`)"

    def _unreadable_lines(self) -> list[tuple[str, str]]:
        if not self.unreadable:
            return []
        records = counted(len(self.unreadable), "record")
        return [("unreadable", f"{records}, counted nowhere here (`vis4mer cache verify` lists)")]

    def _pack_lines(self, human_bytes: Callable[[float], str]) -> list[tuple[str, str]]:
        if not self.num_packed:
            return []
        share = f"{self.num_packed} of {counted(self.num_videos, 'video')}"
        size = f"{human_bytes(self.packed_bytes)} in {counted(self.num_packs, 'pack')}"
        return [("packed", f"{share}, {size}")]

    def _remote_lines(self, human_bytes: Callable[[float], str]) -> list[tuple[str, str]]:
        if self.copies is None:
            return []
        used, limit = human_bytes(self.copies.num_bytes), human_bytes(self.copies.limit_bytes)
        return [
            ("place", "remote and read-only; objects that are read are copied here"),
            ("copies", f"{used} of at most {limit}, of all caches, in {self.copies.folder}"),
        ]

    def _view_lines(self, human_bytes: Callable[[float], str]) -> list[tuple[str, str]]:
        """Which views are cheap to read, and what would make others so."""
        if not self.views:
            return []
        largest = max(cost.num_bytes for cost in self.views)
        lines = [("views", "bytes read; @random and @stride read what their grid does")]
        lines += [
            (f"  {cost.view}", cost.describe(largest, human_bytes=human_bytes))
            for cost in self.views
        ]
        dear = [cost for cost in self.views if cost.num_stored < cost.num_videos]
        sides = [str(grid[0]) for cost in dear if (grid := TokenView.parse(cost.view).grid)]
        if sides and "patch" in self.spec.arrays:
            name = self.path if self.copies is None else "CACHE"  # of a place: once it is pulled
            lines.append(("", f"`vis4mer cache pool {name} --grid {','.join(sides)}` stores them"))
        return lines


def summarise(cache: Cache) -> CacheSummary:
    """Add up all records of a cache that can be read."""
    records, unreadable = cache.readable_records()
    holding = Counter(array for record in records for array in record.token_arrays)
    copies = sorted(set(holding) - set(cache.spec.arrays))
    made_by: dict[str, Counter[str]] = {}
    for record in records:
        for kind, value in record.provenance.items():
            made_by.setdefault(kind, Counter())[value] += 1
    packed = [record for record in records if record.pack is not None]
    return CacheSummary(
        path=cache.name,
        spec=cache.spec,
        num_videos=len(records),
        num_frames=sum(record.num_frames for record in records),
        duration_seconds=sum(record.duration_seconds for record in records),
        num_bytes=sum(record.num_bytes for record in records),
        num_packed=len(packed),
        packed_bytes=sum(record.num_bytes for record in packed),
        num_packs=len({record.pack.name for record in packed if record.pack is not None}),
        num_failures=len(cache.failures()),
        damaged_videos=sum(record.damaged_frames > 0 for record in records),
        frame_bytes={
            array: frame_cost(cache.spec, array) for array in (*cache.spec.arrays, *copies)
        },
        num_holding={array: holding[array] for array in (*cache.spec.arrays, *copies)},
        views=view_costs(cache.spec, records),
        tasks=tuple(cache.tasks()),
        made_by={kind: dict(values) for kind, values in made_by.items()},
        makers=makers(records),
        digest=None if unreadable else digest_records(cache.spec, records)[0],
        unreadable=unreadable,
        copies=_copies(cache),
    )


def _copies(cache: Cache) -> ShelfUse | None:
    if not cache.is_remote:
        return None
    from .remote.mirror import mirror_of

    return mirror_of(cache).shelf.use()


def view_costs(spec: CacheSpec, records: Sequence[EntryRecord]) -> tuple[ViewCost, ...]:
    """What typical views of a window read: every grid that is stored, usual ones that could be, and
    CLS; of 60 frames, or of all segments. None for a cache without entries."""
    sides = {
        grid for record in records for a in record.token_arrays if (grid := spec.array_grid(a))
    }
    if "patch" in spec.arrays:
        sides |= {(side, side) for side in _TYPICAL_SIDES if side <= min(spec.grid)}
    frames = spec.sampling.segments or _WINDOW_FRAMES
    views = [TokenView(frames=frames, grid=grid) for grid in sides]
    if spec.num_prefix and "prefix" in spec.arrays:
        views.append(TokenView(frames=frames, grid=None, cls=True))
    costs = [cost for view in views if (cost := _view_cost(view, frames, spec, records))]
    return tuple(sorted(costs, key=lambda cost: (-cost.num_bytes, cost.view)))


def _view_cost(
    view: TokenView, frames: int, spec: CacheSpec, records: Sequence[EntryRecord]
) -> ViewCost | None:
    """None where no entry can give the view."""
    frames_by_array: Counter[str] = Counter()
    videos_by_array: Counter[str] = Counter()
    for record in records:
        held = record.token_arrays
        array = (
            ("prefix" if "prefix" in held else None) if view.cls else view.find_array(spec, held)
        )
        if array is not None:
            frames_by_array[array] += record.num_frames
            videos_by_array[array] += 1
    if not frames_by_array:
        return None
    total = sum(frame_cost(spec, array) * count for array, count in frames_by_array.items())
    own = [array for array in videos_by_array if spec.array_grid(array) == view.grid]
    return ViewCost(
        view=str(view),
        num_bytes=frames * total // frames_by_array.total(),
        num_stored=sum(videos_by_array[array] for array in own),
        num_videos=videos_by_array.total(),
    )


def _made(kind: str, values: Mapping[str, int]) -> str:
    """The values of one kind of provenance, and how many videos each made."""
    if kind == "time":  # which never is the same
        first, last = min(values), max(values)
        return first if first == last else f"{first} to {last}"
    if len(values) == 1:
        return next(iter(values))
    shown = ", ".join(f"{value} ({counted(count, 'video')})" for value, count in values.items())
    return f"{shown} — not all alike"


def _reader(spec: CacheSpec) -> str:
    return "imported" if spec.reader == "import" else f"read by {spec.reader}"


def _weights(spec: CacheSpec) -> str:
    if spec.weights == "unknown":
        return "unknown"
    shown = f"{spec.weights} (sha256 {spec.weights_sha256[:12]}…)"
    if spec.weights.startswith("random"):
        return f"{shown}: RANDOM, not trained: for trying the pipeline only"
    return shown


def _input(spec: CacheSpec) -> str:
    if spec.preprocess is None:
        return "not known how it was prepared"
    size = "x".join(map(str, spec.preprocess.size))
    return f"{size} {spec.preprocess.resize}, computed in {spec.compute_dtype}"
