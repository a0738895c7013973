"""CacheSpec: what made the numbers in a cache, and the fingerprint that says so in one word.

Everything that changes a stored value is part of the fingerprint. Versions, hosts and devices are
provenance (they stand in the records): shown and compared, but an upgrade locks nobody out.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from . import fields as f
from .errors import CacheFormatError, FieldDifference, FingerprintError, UsageError
from .files import canonical_json
from .wording import some_names

FORMAT = 1
MAX_FRAME_VALUES = 1 << 28  # of one frame: a larger claim in a shared cache is an attack
Built = TypeVar("Built")
StoredDtype = Literal["float16", "bfloat16", "int8"]
ComputeDtype = Literal["float32", "bfloat16"]
Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["short-side", "squash"]
SamplingKind = Literal["fps", "spread", "segments"]
ProtocolName = Literal["clean", "official"]  # settings by name; each stage says what of its own

# Fields that describe a cache without changing a value: where the weights came from (their hash is
# identity) and which arrays are kept (a partial copy of a cache holds the same numbers).
NOT_IDENTITY = ("weights", "arrays")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a frame becomes the backbone's input.

    size: (height, width) of the input in pixels. `short-side` resizes the short side to
    floor(size / crop_pct) and crops the centre; `squash` resizes both sides to `size`.
    mean, std: per RGB channel, for values in 0–1.
    """

    size: tuple[int, int]
    resize: Resize = "short-side"
    crop_pct: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        # 1 and 1.0 are equal but are spelt differently in JSON, and so in the fingerprint.
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if min(self.size) < 1 or not 0 < self.crop_pct <= 1 or min(self.std) <= 0:
            raise ValueError(f"not a preprocessing that can be applied: {self}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> Preprocess:
        height, width = _of_length(f.integers(data, "size", name=name), 2, "size", name)
        mean = _of_length(f.numbers(data, "mean", name=name), 3, "mean", name)
        std = _of_length(f.numbers(data, "std", name=name), 3, "std", name)
        return _built(
            cls,
            name,
            size=(height, width),
            resize=f.choice(data, "resize", get_args(Resize), name=name),
            crop_pct=f.number(data, "crop_pct", name=name),
            interpolation=f.choice(data, "interpolation", get_args(Interpolation), name=name),
            mean=mean,
            std=std,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which moments of a video become frames of tokens.

    fps: first pts + k / fps, over the whole file; crops and outros are extents of task rows.
    spread: floor(seconds · fps) moments, evenly over the whole file, the seconds being what the
    annotation says the video lasts (protocol `official`, whose durations leave the outro out).
    segments: `segments` equal parts of the video, or of the part that a task row speaks of, each
    seen as `clip_frames` frames; `fps` says nothing then and is 1, one step a segment.
    """

    kind: SamplingKind = "fps"
    fps: float = 1.0
    segments: int | None = None
    clip_frames: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", float(self.fps))
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number, got {self.fps}")
        if self.clip_frames < 1:
            raise ValueError(f"a clip has at least 1 frame, got {self.clip_frames}")
        in_segments = self.kind == "segments"
        if in_segments != (self.segments is not None) or (
            self.segments is not None and self.segments < 1
        ):
            raise ValueError(f"sampling by {self.kind}, got {self.segments} segments")
        if not in_segments and self.clip_frames != 1:
            raise ValueError(f"clips of {self.clip_frames} frames are sampled in segments")
        if in_segments and self.fps != 1.0:
            raise ValueError(f"segments have no rate of their own, got {self.fps} fps")

    @property
    def needs_extent(self) -> bool:
        """Whether a row's extent decides what is sampled, so that it is part of the entry's id."""
        return self.kind != "fps"

    def describe(self) -> str:
        """In words, such as `1 fps` or `64 segments of 32 frames`."""
        if self.kind == "segments":
            frames = "1 frame" if self.clip_frames == 1 else f"{self.clip_frames} frames"
            return f"{self.segments} segments of {frames}"
        return f"{self.fps:g} fps" + (" spread over the file" if self.kind == "spread" else "")

    def to_json(self) -> dict[str, Any]:
        """The fields that this kind has."""
        names: tuple[str, ...] = ("kind", "fps")
        if self.kind == "segments":
            names = ("kind", "segments", "clip_frames")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> Sampling:
        kind: SamplingKind = f.choice(data, "kind", get_args(SamplingKind), name=name)
        if kind == "segments":
            return _built(
                cls,
                name,
                kind=kind,
                segments=f.integer(data, "segments", name=name, minimum=1),
                clip_frames=f.integer(data, "clip_frames", name=name, minimum=1),
            )
        return _built(cls, name, kind=kind, fps=f.number(data, "fps", name=name))


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What a cache holds and what made it. Stored in the root group's attributes.

    backbone: timm name with tag, or `module:function`. weights: `hub`, `file`, `random:SEED` or
    `unknown`, a word and never a path: a spec may be somebody else's.
    weights_sha256: of the weights as loaded. layer: which layer the tokens come from.
    preprocess: None where it is not known how the tokens were made (an imported cache).
    grid: (h, w) of the patch tokens. num_prefix: CLS and register tokens a frame. dim: width D.
    arrays: the arrays each entry is written with, of `patch`, `prefix`, `gridN`; pooled copies that
    were added later (`pooling`) stand in the records of their entries alone.
    """

    backbone: str
    weights: str
    weights_sha256: str
    layer: str = "final-norm"
    preprocess: Preprocess | None
    sampling: Sampling
    reader: str
    compute_dtype: ComputeDtype = "float32"
    stored_dtype: StoredDtype = "float16"
    grid: tuple[int, int]
    num_prefix: int
    dim: int
    arrays: tuple[str, ...] = ("patch", "prefix")
    unknown_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _WEIGHTS_PATTERN.fullmatch(self.weights):
            raise ValueError(
                f"weights {self.weights[:80]!r}: expected hub, file, unknown or random:SEED "
                "with digits"
            )
        if min(self.grid) < 1 or self.dim < 1 or self.num_prefix < 0:
            raise ValueError(f"tokens need a grid and a width, got grid {self.grid} dim {self.dim}")
        if (self.grid[0] * self.grid[1] + self.num_prefix) * self.dim > MAX_FRAME_VALUES:
            raise ValueError(
                f"a frame of grid {self.grid}, {self.num_prefix} prefix tokens and width "
                f"{self.dim} has more than {MAX_FRAME_VALUES} values"
            )
        object.__setattr__(self, "arrays", self._checked_arrays())

    def _checked_arrays(self) -> tuple[str, ...]:
        """Known names, each once, in a fixed order; no prefix array when p = 0."""
        chosen = {name for name in self.arrays if name != "prefix" or self.num_prefix}
        for name in chosen:
            self.tokens_per_frame(name)
        if not chosen:
            raise ValueError("a cache needs at least one array")
        return tuple(sorted(chosen, key=lambda name: (_ARRAY_ORDER.get(name, 2), name)))

    def array_grid(self, array: str) -> tuple[int, int] | None:
        """(h, w) of `patch` or of a pooled copy `gridN`; None for `prefix`."""
        if array == "patch":
            return self.grid
        if array == "prefix":
            return None
        side = array.removeprefix("grid")
        if array == f"grid{side}" and _SIDE_PATTERN.fullmatch(side):
            pooled = int(side)
            if pooled <= min(self.grid):
                return (pooled, pooled)
        raise ValueError(
            f"unknown array {array!r:.80}: expected patch, prefix or gridN "
            f"with N from 1 to {min(self.grid)}"
        )

    def is_copy(self, array: str) -> bool:
        """Whether an array is the full grid averaged down, and so can be made of it."""
        return array != "patch" and self.array_grid(array) not in (None, self.grid)

    def tokens_per_frame(self, array: str) -> int:
        grid = self.array_grid(array)
        return self.num_prefix if grid is None else grid[0] * grid[1]

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "sampling": self.sampling.to_json()}
        del data["unknown_fields"]
        return {"format": FORMAT, **data, "fingerprint": self.fingerprint}

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that change stored values."""
        data = {**asdict(self), "sampling": self.sampling.to_json()}
        for name in (*NOT_IDENTITY, "unknown_fields"):
            del data[name]
        return {"format": FORMAT, **data}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of `identity`."""
        return hashlib.sha256(canonical_json(self.identity)).hexdigest()[:16]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> CacheSpec:
        """Read an untrusted spec. A newer format is refused by name; unknown fields are kept aside
        (such a cache can be read, not written)."""
        format_number = f.integer(data, "format", name=name, minimum=1)
        if format_number > FORMAT:
            raise CacheFormatError(
                f"{name}: cache format {format_number} is newer than this version reads "
                f"(format {FORMAT}); upgrade vis4mer"
            )
        preprocess = None
        if data.get("preprocess") is not None:
            preprocess = f.mapping(data, "preprocess", name=name)
        sampling = f.mapping(data, "sampling", name=name)
        height, width = _of_length(f.integers(data, "grid", name=name), 2, "grid", name)
        spec = _built(
            cls,
            name,
            backbone=f.text(data, "backbone", name=name),
            weights=f.text(data, "weights", name=name),
            weights_sha256=f.text(data, "weights_sha256", name=name),
            layer=f.text(data, "layer", name=name),
            preprocess=None if preprocess is None else Preprocess.from_json(preprocess, name=name),
            sampling=Sampling.from_json(sampling, name=name),
            reader=f.text(data, "reader", name=name),
            compute_dtype=f.choice(data, "compute_dtype", get_args(ComputeDtype), name=name),
            stored_dtype=f.choice(data, "stored_dtype", get_args(StoredDtype), name=name),
            grid=(height, width),
            num_prefix=f.integer(data, "num_prefix", name=name),
            dim=f.integer(data, "dim", name=name, minimum=1),
            arrays=f.texts(data, "arrays", name=name),
            unknown_fields=(
                *_unknown(data, cls, also=("format", "fingerprint", "checksum")),
                *_unknown(preprocess or {}, Preprocess, prefix="preprocess."),
                *_unknown(sampling, Sampling, prefix="sampling."),
            ),
        )
        if not spec.unknown_fields and data.get("fingerprint") != spec.fingerprint:
            raise CacheFormatError(
                f"{name}: fingerprint {reprlib.repr(data.get('fingerprint'))} does not match its "
                f"fields ({spec.fingerprint}); the file was edited or damaged"
            )
        return spec


def require_same(
    stored: CacheSpec, wanted: CacheSpec, *, name: str, other: str | None = None
) -> None:
    """Raise FingerprintError, listing the fields, unless both specs make the same numbers.

    other: the cache that `wanted` is of; None where it is what a command asks for.
    """
    differences = diff_specs(stored, wanted)
    if not differences:
        return
    here, there = ("cache", "asked") if other is None else ("here", "there")
    listed = "; ".join(
        f"{d.field}: {here} {_short(d.stored)}, {there} {_short(d.wanted)}" for d in differences
    )
    than, advice = (
        ("", "use the cache's own settings or choose another --cache")
        if other is None
        else (f" than {other}", "one cache holds values of one kind: choose another one")
    )
    raise FingerprintError(
        f"{name} was made with other settings{than} ({listed}); {advice}", differences
    )


def _short(value: str) -> str:
    """A SHA-256 by its first digits, which tell it from another."""
    return f"{value[:16]}…" if re.fullmatch("[0-9a-f]{64}", value) else value


def require_writable(stored: CacheSpec, wanted: CacheSpec, *, name: str) -> None:
    """What must hold before entries of `wanted` are added to a cache of `stored`.

    Raises FingerprintError when they make other numbers, CacheFormatError when the cache was
    written by a newer version, UsageError when it keeps other arrays. More pooled copies than asked
    for are none: entries are written with the arrays of the cache.
    """
    require_same(stored, wanted, name=name)
    if stored.unknown_fields:
        raise CacheFormatError(
            f"{name}: written by a newer version (unknown fields "
            f"{some_names(stored.unknown_fields)}), so it can be read, not written; upgrade vis4mer"
        )
    lacking, more = set(wanted.arrays) - set(stored.arrays), set(stored.arrays) - set(wanted.arrays)
    if lacking or not all(stored.is_copy(array) for array in more):
        raise UsageError(
            f"{name} holds the arrays {', '.join(stored.arrays)}, asked for "
            f"{', '.join(wanted.arrays)}; use the same --grids, and --no-full-grid as then, or "
            "choose another --cache"
        )


def joined_spec(stored: CacheSpec | None, moved: CacheSpec, whole: CacheSpec) -> CacheSpec:
    """The spec of a cache once entries have come from another: its arrays, in whatever order and
    parts they come.

    stored: of the cache until now; None makes one. whole: of the cache that they come from, moved:
    with the arrays that are taken of it. Beside the full grid a cache lists the pooled copies that
    its extraction writes; copies without it are all there is and are listed until it comes.

        (prefix, grid7), then all of (patch, prefix)          patch, prefix
        (patch, prefix), then all of (patch, prefix, grid7)   patch, prefix, grid7
    """
    before = () if stored is None else stored.arrays
    both = dict.fromkeys((*before, *moved.arrays))
    if "patch" in both:
        settled = {array for spec in (stored, whole) if spec is not None for array in _own(spec)}
        both = dict.fromkeys(a for a in both if a in settled or not whole.is_copy(a))
    return replace(moved if stored is None else stored, arrays=tuple(both))


def _own(spec: CacheSpec) -> tuple[str, ...]:
    """The arrays that an extraction writes, as far as a spec tells: in a part without the full grid
    a pooled copy may be one that was added later."""
    return spec.arrays if "patch" in spec.arrays else ()


def diff_specs(stored: CacheSpec, wanted: CacheSpec) -> tuple[FieldDifference, ...]:
    """Field-by-field differences in identity, nested fields with dotted names."""
    return f.differences(stored.identity, wanted.identity)


_WEIGHTS_PATTERN = re.compile(r"hub|file|unknown|random:[0-9]{1,19}")
_ARRAY_ORDER = {"patch": 0, "prefix": 1}
_SIDE_PATTERN = re.compile(r"[1-9][0-9]{0,3}")  # one spelling for each size


def _unknown(
    data: Mapping[str, Any], cls: type[Any], *, also: tuple[str, ...] = (), prefix: str = ""
) -> list[str]:
    """Names in `data` that this version does not know, dotted."""
    known = {field.name for field in fields(cls)}.union(also)
    return sorted(prefix + field for field in set(data) - known)


def _of_length(values: tuple[Any, ...], length: int, field: str, name: str) -> Any:
    if len(values) != length:
        raise CacheFormatError(f"{name}: field {field!r} has {len(values)} values, not {length}")
    return values


def _built(cls: type[Built], name: str, **values: Any) -> Built:
    """Construct a validated record; its ValueError becomes a format error that names the file."""
    try:
        return cls(**values)
    except ValueError as error:
        raise CacheFormatError(f"{name}: {error}") from error
