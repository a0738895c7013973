"""LST: ViS4mer's skeleton with multi-head self-attention in place of S4.

A row of the comparison in ViS4mer (arXiv 2204.01692). A re-implementation: the paper ships no code
for these rows. See `mixers/attention.py` for the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fixed import FixedMixerOptions
from .vis4mer import Vis4mer


@dataclass(frozen=True, kw_only=True)
class LstOptions(FixedMixerOptions):
    """Options of the skeleton and of attention."""

    mixer: str = "attention"


class Lst(Vis4mer):
    """ViS4mer's skeleton with self-attention instead of S4, fused or materialised."""

    Options = LstOptions
    name = "lst"
