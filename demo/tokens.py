"""The long-range demos: minutes of tokens, drawn here, whose label lies in their order alone.

A video is 60 frames at one a second. Background frames are noise; an event is some frames in a row
that show a kind, a vector of its own on a quarter of the grid. Three questions are asked of them:

    order   which of two kinds comes first        .....AAAA.........BBBB......     2 answers
    count   how often the only kind occurs        ..AAA......AAAAA...AA.......     4 answers
    match   are the first and last event alike    .AAAA..BBBB...AAAA...AAAA...     2 answers

Videos come in siblings, one for each answer, which stand in the same split and show the same
frames, noise included, in another order: an occurrence more makes the others shorter, and what is
no match swaps its last event for one of those between. So whatever ignores order gives siblings
the same answer and is right on exactly one of them: 1 of 2, or 1 of 4.

Knows how to draw tokens and to put them into a cache; nothing of decoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..store.cache import Cache, create_cache
from ..store.files import canonical_json
from ..store.records import SourceRecord
from ..store.spec import CacheSpec, Sampling
from ..store.tasks import SPLITS, Split, TaskRow, TaskTable

Question = Literal["order", "count", "match"]
Layout = NDArray[np.int64]  # (T,): 0 for the background, k for kind k

FRAMES = 60
WIDTH = 64
BACKGROUND = 0
EVENT_FRAMES = 4
MIN_GAP = 2
COUNT_FRAMES = 12  # all occurrences of a count together
MATCH_KINDS = 2
MATCH_EVENTS = 4

CLASSES: Mapping[Question, tuple[str, ...]] = {
    "order": ("first-a", "first-b"),
    "count": ("once", "twice", "three-times", "four-times"),
    "match": ("alike", "unlike"),
}
NUM_KINDS: Mapping[Question, int] = {"order": 2, "count": 1, "match": MATCH_KINDS}

NUM_VIDEOS: Mapping[Split, int] = {"train": 3200, "val": 200, "test": 400}
_WRITERS = 8  # an entry is written when the disk says so, and that is mostly waiting


@dataclass(frozen=True, kw_only=True)
class TokenDemo:
    """Which videos are drawn. side: the grid is side × side patches. num_videos: by split, as many
    as there are whole families of siblings. The same record makes the same tokens."""

    question: Question
    side: int = 1
    seed: int = 0
    num_videos: Mapping[Split, int] = field(default_factory=lambda: NUM_VIDEOS)

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES[self.question]

    @property
    def chance(self) -> float:
        return 1 / len(self.classes)

    @property
    def tokens(self) -> str:
        """The view of all tokens, such as `60x4x4`."""
        return f"{FRAMES}x{self.side}x{self.side}"

    @property
    def reference(self) -> str:
        """The task in the cache."""
        return f"demo/{self.question}"

    @property
    def spec(self) -> CacheSpec:
        """Of its cache: what is drawn is part of the fingerprint, as weights would be."""
        drawn = {**asdict(self), "num_videos": dict(self.num_videos)}
        return CacheSpec(
            backbone=f"synthetic-{self.question}",
            weights=f"random:{self.seed}",
            weights_sha256=hashlib.sha256(canonical_json(drawn)).hexdigest(),
            preprocess=None,
            sampling=Sampling(fps=1.0),
            reader="none",
            grid=(self.side, self.side),
            num_prefix=0,
            dim=WIDTH,
            arrays=("patch",),
        )

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, list(CLASSES).index(self.question), *stream])


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """One video to be drawn. layout: which kind each frame shows."""

    id: str
    family: str
    split: Split
    label: int
    layout: Layout


def plan_families(demo: TokenDemo) -> Iterator[tuple[Sibling, ...]]:
    """Families of siblings, one of every label, in no order that tells a label."""
    for split in SPLITS:
        for number in range(demo.num_videos[split] // len(demo.classes)):
            rng = demo._generator(1, SPLITS.index(split), number)
            layouts = _LAYOUTS[demo.question](rng)
            places = rng.permutation(len(layouts)).tolist()
            family = f"{split}-{number:04d}"
            yield tuple(
                Sibling(
                    id=f"{family}-{place}",
                    family=family,
                    split=split,
                    label=label,
                    layout=layouts[label],
                )
                for place, label in enumerate(places)
            )


# Layouts ----------------------------------------------------------------------------------------


def _order_layouts(rng: np.random.Generator) -> tuple[Layout, ...]:
    lengths = [EVENT_FRAMES, EVENT_FRAMES]
    starts = _draw_starts(rng, lengths)
    return tuple(_layout(starts, lengths, kinds) for kinds in ([1, 2], [2, 1]))


def _count_layouts(rng: np.random.Generator) -> tuple[Layout, ...]:
    """Once to four times, COUNT_FRAMES frames in all."""
    layouts = []
    for count in range(1, len(CLASSES["count"]) + 1):
        cuts = np.sort(rng.choice(np.arange(1, COUNT_FRAMES), size=count - 1, replace=False))
        lengths = np.diff([0, *cuts, COUNT_FRAMES]).tolist()
        layouts.append(_layout(_draw_starts(rng, lengths), lengths, [1] * count))
    return tuple(layouts)


def _match_layouts(rng: np.random.Generator) -> tuple[Layout, ...]:
    """Alike; and with the last event in the place of one between that shows another kind."""
    between = rng.integers(1, MATCH_KINDS + 1, MATCH_EVENTS - 2)
    swapped = int(rng.integers(MATCH_EVENTS - 2))
    outer = int(rng.choice([k for k in range(1, MATCH_KINDS + 1) if k != between[swapped]]))
    alike = [outer, *between.tolist(), outer]
    unlike = alike.copy()
    unlike[1 + swapped], unlike[-1] = alike[-1], alike[1 + swapped]
    lengths = [EVENT_FRAMES] * MATCH_EVENTS
    starts = _draw_starts(rng, lengths)
    return tuple(_layout(starts, lengths, kinds) for kinds in (alike, unlike))


_LAYOUTS: Mapping[Question, Callable[[np.random.Generator], tuple[Layout, ...]]] = {
    "order": _order_layouts,
    "count": _count_layouts,
    "match": _match_layouts,
}


def _draw_starts(rng: np.random.Generator, lengths: list[int]) -> list[int]:
    """Starts of events in a row, uniform over all that leave MIN_GAP frames between them."""
    slack = FRAMES - sum(lengths) - MIN_GAP * (len(lengths) - 1)
    # Places with repetition among slack + 1 are distinct ones among slack + n, less their rank.
    n = len(lengths)
    places = np.sort(rng.choice(slack + n, size=n, replace=False)) - np.arange(n)
    before = np.cumsum([0, *lengths[:-1]]) + MIN_GAP * np.arange(n)
    starts: list[int] = (places + before).tolist()
    return starts


def _layout(starts: list[int], lengths: list[int], kinds: list[int]) -> Layout:
    layout = np.full(FRAMES, BACKGROUND, dtype=np.int64)  # T
    for start, length, kind in zip(starts, lengths, kinds, strict=True):
        layout[start : start + length] = kind
    return layout


# Tokens -----------------------------------------------------------------------------------------


def draw_family(demo: TokenDemo, family: tuple[Sibling, ...]) -> list[NDArray[np.float16]]:
    """The tokens of siblings, each (T, side·side, D): the same frames, as their layouts say."""
    split, number = family[0].family.rsplit("-", 1)
    stream = SPLITS.index(family[0].split), int(number)
    kinds = np.sort(family[0].layout)  # T: what there is to be shown
    frames = _draw_frames(demo, kinds, demo._generator(2, *stream))  # T S D
    videos = []
    for sibling in family:
        if not np.array_equal(np.sort(sibling.layout), kinds):
            raise ValueError(f"{sibling.id} does not show what its siblings in {split} show")
        video = np.empty_like(frames)
        video[np.argsort(sibling.layout, kind="stable")] = frames
        videos.append(video)
    return videos


def _draw_frames(demo: TokenDemo, kinds: Layout, rng: np.random.Generator) -> NDArray[np.float16]:
    """Noise of variance 1; a kind is added on a square of half the grid's side, anywhere."""
    side, part = demo.side, max(1, demo.side // 2)
    vectors = demo._generator(0).standard_normal((NUM_KINDS[demo.question] + 1, WIDTH))  # K D
    frames = rng.standard_normal((len(kinds), side, side, WIDTH), dtype=np.float32)  # T h w D
    corners = rng.integers(0, side - part + 1, (len(kinds), 2))
    for frame, kind, (top, left) in zip(frames, kinds, corners, strict=True):
        if kind != BACKGROUND:
            frame[top : top + part, left : left + part] += vectors[kind]
    return frames.reshape(len(kinds), side * side, WIDTH).astype(np.float16)  # T S D


# Cache ------------------------------------------------------------------------------------------


def write_token_demo(path: Path, demo: TokenDemo) -> Cache:
    """The cache at `path` with all videos and their labels; what is there already stays.

    Raises FingerprintError when the cache there was drawn otherwise.
    """
    cache = create_cache(path, demo.spec)
    there = set(cache.ids())
    families = list(plan_families(demo))
    missing = [f for f in families if not there.issuperset(sibling.id for sibling in f)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(lambda family: _write_family(cache, demo, family), missing):
            pass
    cache.save_task(_labels(demo, families))
    if missing:
        cache.write_catalog()
    return cache


def _labels(demo: TokenDemo, families: Iterable[tuple[Sibling, ...]]) -> TaskTable:
    dataset, task = demo.reference.split("/")
    return TaskTable(
        dataset=dataset,
        task=task,
        kind="classification",
        classes=demo.classes,
        rows=tuple(
            TaskRow(id=sibling.id, split=sibling.split, label=sibling.label, group=sibling.family)
            for family in families
            for sibling in family
        ),
    )


def _write_family(cache: Cache, demo: TokenDemo, family: tuple[Sibling, ...]) -> None:
    for sibling, tokens in zip(family, draw_family(demo, family), strict=True):
        _write_entry(cache, sibling.id, tokens)


def _write_entry(cache: Cache, entry_id: str, tokens: NDArray[np.float16]) -> None:
    source = SourceRecord(
        name=entry_id,
        size=tokens.nbytes,
        mtime_ns=0,
        sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )
    with cache.write_entry(entry_id, source=source) as entry:
        entry.append({"patch": tokens}, pts_seconds=np.arange(FRAMES, dtype=np.float64).tolist())
        entry.commit(duration_seconds=float(FRAMES), damaged_frames=0, provenance={})
