"""What a sweep asks for: a base, axes whose product are its settings, and seeds for each of them.

    [base]
    task = "lvu/scene"
    epochs = 20

    [axes]
    tokens = ["60xcls", "60x7x7"]
    decoder.depth = [1, 3]

    [[runs]]                  # settings of their own, beside the product
    decoder.name = "mean"

Axes are fields of `TrainConfig` by their dotted names, and `cache` where there are several. Knows
what a config is, and nothing of caches.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...store.errors import UsageError
from ...store.fields import flatten
from ...store.files import canonical_json
from ..config import TrainConfig, load_config
from ..training.many import parse_seeds
from ..typed import convert, refuse, unknown_name

Value = str | int | float | bool
Settings = Mapping[str, Value]

CACHE = "cache"
"""The axis that is no field of a config: which of the given caches a run learns from."""

SEED = "seed"
MAX_NAME = 100  # characters of a run's folder


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting, by its dotted name, and the values that it takes; each once."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.name in ("decoder", "optimizer"):
            raise UsageError(f"axis {self.name}: expected one of its fields, e.g. {self.name}.name")
        if not self.values:
            raise UsageError(f"axis {self.name}: expected at least one value")
        if len({str(value) for value in self.values}) < len(self.values):
            raise UsageError(f"axis {self.name}: a value stands there twice")

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`decoder.depth=1,3`; UsageError for anything else."""
        name, equals, values = text.partition("=")
        parts = tuple(value.strip() for value in values.split(","))
        if not equals or not name.strip() or not all(parts):
            raise UsageError(f"--axis {text}: expected NAME=VALUE,VALUE such as decoder.depth=1,3")
        return cls(name=name.strip(), values=parts)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    name: of its folder, unique. settings: what it has of the axes, in their order; its seed where
    those are swept too.
    """

    name: str
    cache: str
    settings: Settings
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """base: fields by dotted names, for all runs. runs: settings beside those of the axes' product.
    seeds: none is the base's own."""

    base: Settings = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    runs: tuple[Settings, ...] = ()
    seeds: tuple[int, ...] = ()

    def with_axes(self, axes: Iterable[Axis]) -> Sweep:
        """The same with further axes; one of a name that is there takes its place."""
        named = {axis.name: axis for axis in self.axes}
        given: set[str] = set()
        for axis in axes:
            if axis.name in given:
                raise UsageError(f"--axis {axis.name} is given twice; list its values in one")
            given.add(axis.name)
            named[axis.name] = axis
        return replace(self, axes=tuple(named.values()))

    def with_base(self, base: Mapping[str, Value | None]) -> Sweep:
        """The same with further settings for all runs; None is skipped."""
        given = {name: value for name, value in base.items() if value is not None}
        return replace(self, base={**self.base, **given})

    def points(self, caches: Sequence[str], *, sets: Sequence[str] = ()) -> tuple[Point, ...]:
        """Every run, in the order of the axes, the last one fastest, and seeds within a setting.

        caches: their names; several are an axis of their own. sets: texts such as `a.b=c` for all
        runs. UsageError for values that no config takes and for the same run twice.
        """
        sweep = self._with_caches(caches)._with_seeds()
        sweep._require_apart(sets)
        settings = sweep._settings()
        names = run_names(settings)
        points = []
        for name, chosen in zip(names, settings, strict=True):
            flags = {k: v for k, v in {**sweep.base, **chosen}.items() if k != CACHE}
            points.append(
                Point(
                    name=name,
                    cache=str(chosen.get(CACHE, caches[0])),
                    settings=chosen,
                    config=load_config(flags=flags, sets=sets),
                )
            )
        _require_distinct(points)
        return tuple(points)

    def _with_caches(self, caches: Sequence[str]) -> Sweep:
        """Several caches are an axis, the first one, and what is no part of the product is run on
        each of them, unless it says where."""
        asked = [value for axis in self.axes if axis.name == CACHE for value in axis.values]
        for value in (*asked, *(run[CACHE] for run in self.runs if CACHE in run)):
            if value not in caches:
                raise UsageError(f"cache {value!r} is none of --cache: {', '.join(caches)}")
        if asked or len(caches) == 1:
            return self
        axis = Axis(name=CACHE, values=tuple(caches))
        runs = tuple({CACHE: name, **run} for run in self.runs for name in caches)
        return replace(self, axes=(axis, *self.axes) if self.axes or not runs else (), runs=runs)

    def _with_seeds(self) -> Sweep:
        """An axis of seeds is the same as seeds."""
        axes = {axis.name: axis for axis in self.axes}
        swept = axes.pop(SEED, None)
        seeds = self.seeds
        if swept is not None:
            if seeds:
                raise UsageError("--seeds and an axis `seed`: give one of them")
            seeds = tuple(convert(value, int, field="axis seed") for value in swept.values)
        if seeds and any(SEED in run for run in self.runs):
            raise UsageError("runs: a seed of its own beside the seeds of all; leave one out")
        return replace(self, axes=tuple(axes.values()), seeds=seeds)

    def _require_apart(self, sets: Sequence[str]) -> None:
        swept = {axis.name for axis in self.axes} | ({SEED} if self.seeds else set())
        for text in sets:
            if (name := text.partition("=")[0].strip()) in swept:
                raise UsageError(f"--set {text}: {name} is an axis of the sweep; leave one out")

    def _settings(self) -> list[Settings]:
        if not self.axes and not self.runs and len(self.seeds) < 2:
            raise UsageError(
                "nothing is swept; add --axis NAME=VALUE,VALUE, --preset NAME or --config FILE"
            )
        grid: list[Settings] = []
        if self.axes or not self.runs:
            names = [axis.name for axis in self.axes]
            rows = product(*(axis.values for axis in self.axes))
            grid = [dict(zip(names, row, strict=True)) for row in rows]
        settings = [*grid, *self.runs]
        if not self.seeds:
            return settings
        return [{**chosen, SEED: seed} for chosen in settings for seed in self.seeds]


def _require_distinct(points: Sequence[Point]) -> None:
    met: dict[bytes, str] = {}
    for point in points:
        key = canonical_json([point.cache, point.config.to_json()])
        if key in met:
            raise UsageError(f"{met[key]} and {point.name} are the same run; leave one out")
        met[key] = point.name


# Names ------------------------------------------------------------------------------------------


def run_names(settings: Sequence[Settings]) -> list[str]:
    """A folder for each: `tokens-60x7x7_depth-1_seed-0`.

    A field goes by its last word where no other has that word. Names that would be the same, on a
    file system that ignores case too, or longer than MAX_NAME get a part of their hash.
    """
    leaves = _leaves(dict.fromkeys(name for chosen in settings for name in chosen))
    names = [
        "_".join(f"{leaves[name]}-{_slug(_said(value))}" for name, value in chosen.items())
        for chosen in settings
    ]
    counts = Counter(name.casefold() for name in names)
    return [
        name
        if counts[name.casefold()] == 1 and len(name) <= MAX_NAME
        else f"{name[: MAX_NAME - 13]}_{_digest(chosen)}"
        for name, chosen in zip(names, settings, strict=True)
    ]


def leaf(name: str) -> str:
    """`depth` for decoder.depth, `decoder` for decoder.name."""
    parent, _, last = name.rpartition(".")
    return parent if parent and last == "name" else last


def _leaves(names: Iterable[str]) -> dict[str, str]:
    found = {name: _slug(leaf(name)).replace("_", "-") for name in names}
    counts = Counter(found.values())
    return {
        name: short if counts[short] == 1 else _slug(name).replace("_", "-")
        for name, short in found.items()
    }


def _said(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+@_]+", "-", text).strip("-.") or "x"


def _digest(settings: Settings) -> str:
    return hashlib.sha256(canonical_json(dict(settings))).hexdigest()[:12]


# TOML -------------------------------------------------------------------------------------------


def read_sweep(file: Path) -> Sweep:
    """A sweep from TOML; UsageError when it cannot be read or says something unknown."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # covers tomllib.TOMLDecodeError and UnicodeDecodeError
        raise UsageError(f"--config {file}: not TOML ({error})") from error
    known = ("base", "axes", "runs", "seeds")
    for name in data:
        if name not in known:
            raise unknown_name("part of a sweep", name, known)
    runs = data.get("runs", [])
    if not isinstance(runs, list):
        raise refuse("runs", runs, "a list of tables, [[runs]]")
    return Sweep(
        base=_table(data, "base"),
        axes=tuple(_axis(name, values) for name, values in _flat(data, "axes").items()),
        runs=tuple(_scalars(flatten(_mapping(run, "runs")), "runs") for run in runs),
        seeds=_seeds(data["seeds"]) if "seeds" in data else (),
    )


def _seeds(value: object) -> tuple[int, ...]:
    """A number of seeds, or a list of them."""
    if not isinstance(value, list):
        return parse_seeds(str(value))
    return Sweep(axes=(_axis(SEED, value),))._with_seeds().seeds


def _axis(name: str, values: object) -> Axis:
    if not isinstance(values, list):
        raise refuse(f"axes.{name}", values, "a list of values")
    return Axis(name=name, values=tuple(_scalar(value, f"axes.{name}") for value in values))


def _table(data: Mapping[str, Any], name: str) -> Settings:
    return _scalars(_flat(data, name), name)


def _flat(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    return flatten(_mapping(data.get(name, {}), name))


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refuse(name, value, "a table of fields")
    return value


def _scalars(flat: Mapping[str, Any], name: str) -> Settings:
    return {key: _scalar(value, f"{name}.{key}") for key, value in flat.items()}


def _scalar(value: object, name: str) -> Value:
    if not isinstance(value, (str, int, float, bool)):
        raise refuse(name, value, "text, a number, true or false")
    return value
