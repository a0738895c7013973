"""Orthoformer: ViS4mer's skeleton with attention through landmarks in place of S4.

A row of the comparison in ViS4mer (arXiv 2204.01692). A re-implementation: the paper ships no code
for these rows. See `mixers/orthoformer.py` for the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fixed import FixedMixerOptions
from .vis4mer import Vis4mer


@dataclass(frozen=True, kw_only=True)
class OrthoformerDecoderOptions(FixedMixerOptions):
    """Options of the skeleton and of Orthoformer."""

    mixer: str = "orthoformer"


class OrthoformerDecoder(Vis4mer):
    """ViS4mer's skeleton with Orthoformer's landmarks instead of S4."""

    Options = OrthoformerDecoderOptions
    name = "orthoformer"
