"""Values as they are stored: float16, bfloat16 in uint16, or int8 with two scales.

int8: x ≈ q · token scale (T, S) · channel scale (D). The channel scale evens out channels of very
different size (relative L2 error on ViT-like tokens 0.022 without it, 0.007 with it); it is fixed
by an entry's first frames, so that hour-long videos stream. The token scale is the largest
remaining value over 127, so nothing is ever clipped. A value is therefore within half a step of
its own: |x - decoded| <= token scale · channel scale / 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import Vis4merError
from .spec import StoredDtype

Floats = NDArray[np.float16] | NDArray[np.float32]
FLOAT16_MAX = 65504.0
FIRST_FRAMES_INT8 = 16
"""int8 fixes an entry's channel scale by the first frames appended: always this many (or all), so
that the values do not depend on how frames happened to be batched."""
# A channel that is nearly silent in the first frames and speaks later would take all 127 steps of
# every token; below this fraction of the loudest channel it shares that channel's floor.
_QUIETEST = np.float32(1e-3)


def encode_float16(tokens: Floats) -> NDArray[np.float16]:
    """float16 of the same shape; a value that does not fit is an error, never an infinity."""
    with np.errstate(over="ignore"):
        stored = tokens.astype("<f2", copy=False)
    if not np.isfinite(stored).all():
        require_finite(tokens)
        largest = np.abs(tokens, dtype=np.float32).max()
        raise Vis4merError(
            f"a token has the value {largest:g}, which float16 cannot hold "
            f"(at most {FLOAT16_MAX:g}); choose --dtype bfloat16"
        )
    return stored


def encode_bfloat16(tokens: Floats) -> NDArray[np.uint16]:
    """The upper half of float32, rounded to nearest even: uint16 of the same shape."""
    require_finite(tokens)
    bits = np.ascontiguousarray(tokens, dtype="<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise Vis4merError(
            f"a token has the value {np.abs(tokens).max():g}, which bfloat16 cannot hold "
            "(at most 3.39e+38); check the backbone's weights"
        )
    return np.asarray(rounded, dtype="<u2")


def decode_bfloat16(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (stored.astype("<u4") << 16).view("<f4")


def channel_scale(tokens: Floats) -> NDArray[np.float32]:
    """Root mean square of each channel over frames and tokens: (T, S, D) to (D,), never zero."""
    require_finite(tokens)
    squares = sum(np.square(frame, dtype=np.float64).mean(axis=0) for frame in tokens)  # D
    scale = np.sqrt(squares / len(tokens)).astype("<f4")
    scale = np.maximum(scale, scale.max() * _QUIETEST)
    return np.where(scale > 0, scale, np.float32(1))


def encode_int8(
    tokens: Floats, channel: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """q int8 (T, S, D) and token scale float32 (T, S)."""
    require_finite(tokens)
    with np.errstate(over="ignore"):
        even = tokens.astype(np.float32) / channel  # T S D
    scale = np.abs(even).max(axis=-1) / 127  # T S
    if not np.isfinite(scale).all():
        raise Vis4merError(
            "a token is too large beside the entry's first frames for int8; choose --dtype bfloat16"
        )
    scale = np.where(scale > 0, scale, np.float32(1)).astype("<f4")
    return np.rint(even / scale[..., None]).astype(np.int8), scale


def decode_int8(
    q: NDArray[np.int8], scale: NDArray[np.float32], channel: NDArray[np.float32]
) -> NDArray[np.float32]:
    """float32 (T, S, D)."""
    tokens = q.astype(np.float32)
    tokens *= scale[..., None]
    tokens *= channel
    return tokens


def require_finite(tokens: Floats) -> None:
    if not np.isfinite(tokens).all():
        raise Vis4merError(
            "a token is not a finite number; the backbone overflowed (try --precision float32) "
            "or its weights are damaged"
        )


def decoded_dtype(stored: StoredDtype) -> type[np.float16] | type[np.float32]:
    """The type a reader hands out: float16 as stored, float32 for the others."""
    return np.float16 if stored == "float16" else np.float32
