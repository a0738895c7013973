"""The catalogue of token mixers: how tokens of a sequence get to know one another.

A mixer maps (x (B, L, D), mask (B, L)) to (B, L, D) and is the only part of the skeleton that
lets tokens meet. To add one, write one file here with a subclass of `base.Mixer` (or
`CausalMixer`, if it can be streamed) and add one line to `MIXERS`.
"""

from __future__ import annotations

from ..catalogue import look_up
from .base import CausalMixer, Mixer, MixerOptions

MIXERS = {
    "s4": "s4:S4Mixer",
    "s4d-lin": "s4d:S4dLinMixer",
    "s4d-inv": "s4d:S4dInvMixer",
    "s4d-legs": "s4d:S4dLegsMixer",
    "attention": "attention:AttentionMixer",
    "performer": "performer:PerformerMixer",
    "orthoformer": "orthoformer:OrthoformerMixer",
}

# Those that hold weights made elsewhere and cannot be trained: only an import makes runs of them.
IMPORTED_MIXERS = {
    "s4-released": "released:ReleasedS4Mixer",
}

__all__ = ["IMPORTED_MIXERS", "MIXERS", "CausalMixer", "Mixer", "MixerOptions", "mixer_class"]


def mixer_class(name: str) -> type[Mixer]:
    """The mixer called `name`. Raises UsageError for an unknown name."""
    found: type[Mixer] = look_up(
        {**MIXERS, **IMPORTED_MIXERS}, name, kind="mixer", package=__name__
    )
    return found
