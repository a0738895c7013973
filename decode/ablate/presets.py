"""The sweeps of the papers, by name, made for the caches at hand.

ViS4mer is Islam and Bertasius, arXiv 2204.01692; selective_s4 is Wang et al., arXiv 2303.14526.
What a paper does not say is a choice of ours, and its summary says so. Base and axes of a preset
can be replaced like those of any sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...store.errors import UsageError
from ...store.spec import CacheSpec
from ..typed import unknown_name
from .sweep import Axis, Settings, Sweep, Value

Specs = Sequence[CacheSpec]

_LONGEST: Settings = {"window_seconds": 60.0, "tokens": "60x14x14"}
"""The 11,760 tokens of the paper's main table."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """summary: what is swept, and after which table. build: raises UsageError for caches that
    cannot be swept so."""

    summary: str
    build: Callable[[Specs], Sweep]


def build_preset(name: str, specs: Specs) -> Sweep:
    """The sweep called `name` for some caches, by their settings. UsageError for an unknown name
    and for caches that it cannot be made of; whether they hold each view is seen by the plan."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name].build(specs)


def _paper_tokens(specs: Specs) -> Sweep:
    """60 × 1, where the cache has CLS tokens by these, and 60 × 5 × 5, 7 × 7, 14 × 14."""
    has_cls = all(spec.num_prefix and "prefix" in spec.arrays for spec in specs)
    frames = "60xcls" if has_cls else "60x1x1"
    views = (frames, "60x5x5", "60x7x7", "60x14x14")
    return _sweep({"window_seconds": 60.0}, {"tokens": views})


def _paper_mixers(_: Specs) -> Sweep:
    return _sweep(_LONGEST, {"decoder.name": ("vis4mer", "lst", "performer", "orthoformer")})


def _paper_dimension_reduction(_: Specs) -> Sweep:
    base = {**_LONGEST, "decoder.name": "vis4mer"}
    switch = (False, True)
    return _sweep(base, {"decoder.pooling": switch, "decoder.scaling": switch})


def _paper_window_length(specs: Specs) -> Sweep:
    """Every sampled frame of each window, of the largest grid that there is."""
    if any(spec.sampling.kind == "segments" for spec in specs):
        raise UsageError(
            "preset paper-window-length: the entries of this cache are segments, and a window is "
            "always the whole entry; it needs a cache sampled at a rate, such as --fps 1"
        )
    return _sweep({}, {"window_seconds": (10.0, 20.0, 40.0, 60.0)})


def _paper_encoders(specs: Specs) -> Sweep:
    if len(specs) < 2:
        raise UsageError(
            "preset paper-encoders: one cache is given, and every backbone has a cache of its own; "
            "give --cache several times"
        )
    return _sweep({"window_seconds": 60.0}, {})


def _selective_masking(_: Specs) -> Sweep:
    base = {**_LONGEST, "decoder.name": "selective_s4"}
    ratios = (0.25, 0.5, 0.75, 1.0)  # with 1 both are plain ViS4mer, where their lines meet
    return _sweep(base, {"decoder.selection": ("mask", "gather"), "decoder.keep_ratio": ratios})


def _sweep(base: Settings, axes: Mapping[str, tuple[Value, ...]]) -> Sweep:
    return Sweep(
        base=base, axes=tuple(Axis(name=name, values=values) for name, values in axes.items())
    )


PRESETS: Mapping[str, Preset] = {
    "paper-tokens": Preset(
        summary="60, 1,500, 2,940 and 11,760 tokens of 60 s (ViS4mer's table of cost and tokens)",
        build=_paper_tokens,
    ),
    "paper-mixers": Preset(
        summary="vis4mer, lst, performer, orthoformer in one skeleton (ViS4mer's table on LVU)",
        build=_paper_mixers,
    ),
    "paper-dimension-reduction": Preset(
        summary="pooling and scaling, each on and off (ViS4mer's ablation of its blocks)",
        build=_paper_dimension_reduction,
    ),
    "paper-window-length": Preset(
        summary="windows of 10, 20, 40 and 60 s, every sampled frame (the lengths are our choice)",
        build=_paper_window_length,
    ),
    "paper-encoders": Preset(
        summary="the same decoder on a cache of each backbone (ViS4mer's ablation of encoders)",
        build=_paper_encoders,
    ),
    "selective-masking": Preset(
        summary="keep ratio of selective_s4, with mask and gather (the ratios are our choice)",
        build=_selective_masking,
    ),
}
