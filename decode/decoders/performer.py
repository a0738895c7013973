"""Performer: ViS4mer's skeleton with linear attention by random features in place of S4.

A row of the comparison in ViS4mer (arXiv 2204.01692). A re-implementation: the paper ships no code
for these rows. See `mixers/performer.py` for the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fixed import FixedMixerOptions
from .vis4mer import Vis4mer


@dataclass(frozen=True, kw_only=True)
class PerformerDecoderOptions(FixedMixerOptions):
    """Options of the skeleton and of Performer."""

    mixer: str = "performer"


class PerformerDecoder(Vis4mer):
    """ViS4mer's skeleton with Performer (FAVOR+) instead of S4."""

    Options = PerformerDecoderOptions
    name = "performer"
