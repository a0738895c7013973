"""The catalogue of decoders: what turns a window of tokens into outputs.

To add one, write one file here with a subclass of `base.Decoder` and of `base.DecoderOptions`,
and add one line to `DECODERS`. A decoder that only exchanges the way tokens meet is a mixer of
`vis4mer` instead (see `mixers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...store.errors import UsageError
from ..catalogue import look_up
from ..data.batch import TokenShape
from .about import DecoderAbout, papers_of
from .base import Decoder, DecoderOptions

DECODERS = {
    "vis4mer": "vis4mer:Vis4mer",
    "lst": "lst:Lst",
    "performer": "performer:PerformerDecoder",
    "orthoformer": "orthoformer:OrthoformerDecoder",
    "selective_s4": "selective_s4:SelectiveS4",
    "stam": "stam:Stam",
    "gru": "gru:GruDecoder",
    "mamba2": "mamba2:Mamba2Decoder",
    "memory": "memory:MemoryDecoder",
    "mean": "mean:MeanDecoder",
    "cls-mean": "cls_mean:ClsMeanDecoder",
    "segment-mean": "segment_mean:SegmentMeanDecoder",
    "attentive-probe": "attentive_probe:AttentiveProbe",
}

__all__ = [
    "DECODERS",
    "Decoder",
    "DecoderAbout",
    "DecoderOptions",
    "build_decoder",
    "decoder_options",
    "describe_decoders",
]


def decoder_class(name: str) -> type[Decoder]:
    """The decoder called `name`. Raises UsageError for an unknown name."""
    found: type[Decoder] = look_up(DECODERS, name, kind="decoder", package=__name__)
    return found


def decoder_options(name: str, options: Mapping[str, Any]) -> DecoderOptions:
    """The options of decoder `name`, defaults filled in. Raises UsageError, naming the choices."""
    chosen = decoder_class(name).Options
    if options and not chosen.about():
        given = next(iter(options))
        raise UsageError(f"unknown field 'decoder.{given}': decoder {name!r} has no options")
    return chosen.from_json(options)


def build_decoder(
    name: str, *, shape: TokenShape, num_outputs: int, options: Mapping[str, Any]
) -> Decoder:
    """A decoder with initial weights, drawn from torch's global generator.

    shape: the windows it will see.   options: names and values as in JSON, or text as after
    `--set decoder.`. Raises UsageError for an unknown decoder or option, a bad value, and for
    windows that the decoder cannot take.

        build_decoder("vis4mer", shape=shape, num_outputs=4, options={"variant": "official"})
    """
    chosen = decoder_class(name)
    return chosen(shape=shape, num_outputs=num_outputs, options=decoder_options(name, options))


def describe_decoders() -> list[DecoderAbout]:
    """Every decoder of the catalogue with its source and its options."""
    described = []
    for name in DECODERS:
        chosen = decoder_class(name)
        about = DecoderAbout(
            name=name,
            summary=(chosen.__doc__ or "").partition("\n")[0],
            sources=papers_of(chosen),
            options=chosen.Options.about(),
        )
        described.append(about)
    return described
