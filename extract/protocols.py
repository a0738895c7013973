"""Stage 1's side of the protocols: how frames are chosen and prepared, as two named bundles.

`clean` is what the backbone was trained for; `official` repeats what the released ViS4mer code
does, so that its numbers can be compared with. The clips of a segment sampling have no protocol of
their own: of `official` they take the preparation. Knows nothing of decoders, whose side of a
protocol is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ..store.errors import UsageError
from ..store.spec import Preprocess, ProtocolName, Sampling

if TYPE_CHECKING:
    from .backbones.loading import Backbone


@dataclass(frozen=True, kw_only=True)
class ExtractProtocol:
    """How frames are chosen and prepared.

    sampling: `fps`, frames at their true times over the whole file, or `spread`, as many as the
    annotated duration has seconds, evenly over the whole file. own_preprocess: whether the
    backbone's own resize, crop and normalisation are used; else both sides are squashed to its
    input size, and values are divided by 255 and no more.
    """

    name: ProtocolName
    about: str
    sampling: Literal["fps", "spread"]
    own_preprocess: bool

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The preprocessing in place of the backbone's `own`, at its input size."""
        if self.own_preprocess:
            return own
        # The released code does not say how its frames were resized: bilinear is our choice.
        return Preprocess(
            size=own.size,
            resize="squash",
            crop_pct=1.0,
            interpolation="bilinear",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )

    def apply(self, backbone: Backbone) -> Backbone:
        """A freshly loaded backbone with this protocol's preprocessing."""
        return replace(backbone, preprocess=self.preprocess(backbone.preprocess))


PROTOCOLS: Mapping[ProtocolName, ExtractProtocol] = MappingProxyType(
    {
        "clean": ExtractProtocol(
            name="clean",
            about="frames at their true times, prepared as the backbone was trained",
            sampling="fps",
            own_preprocess=True,
        ),
        "official": ExtractProtocol(
            name="official",
            about="annotated seconds spread over the whole file, frames squashed, no mean or std",
            sampling="spread",
            own_preprocess=False,
        ),
    }
)


def protocol_named(name: str) -> ExtractProtocol:
    """The protocol of that name; UsageError with the choices otherwise."""
    for protocol in PROTOCOLS.values():
        if protocol.name == name:
            return protocol
    raise UsageError(f"unknown protocol {name!r}, expected one of: {', '.join(PROTOCOLS)}")


def sampling_of(
    protocol: ProtocolName,
    *,
    fps: float | None = None,
    segments: int | None = None,
    clip_frames: int = 1,
) -> Sampling:
    """The sampling that is asked for, for a backbone that sees `clip_frames` at once.

    fps: default 1. segments: so many parts of each video instead, whatever the protocol. UsageError
    for both at once, for neither with a clip backbone, and for numbers that make no sampling.
    """
    chosen = protocol_named(protocol)
    if segments is not None and fps is not None and fps != 1:
        raise UsageError(
            f"--fps {fps:g} and --segments {segments} exclude each other: segments are equal parts "
            "of a video, however long it is"
        )
    if segments is None and clip_frames > 1:
        raise UsageError(
            f"this backbone sees clips of {clip_frames} frames, one a segment of the video: add "
            "--segments N, such as --segments 64"
        )
    try:
        if segments is not None:
            return Sampling(kind="segments", segments=segments, clip_frames=clip_frames)
        return Sampling(kind=chosen.sampling, fps=1.0 if fps is None else fps)
    except ValueError as error:
        raise UsageError(str(error)) from error


def prepared_as(backbone: Backbone, preprocess: Preprocess) -> Backbone:
    """A freshly loaded backbone with the protocol that `preprocess` comes from, as it is where it
    comes from none."""
    for protocol in PROTOCOLS.values():
        if protocol.preprocess(backbone.preprocess) == preprocess:
            return protocol.apply(backbone)
    return backbone
