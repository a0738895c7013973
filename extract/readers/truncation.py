"""Was a file cut off? What MP4 and Matroska files say about their own size, read from raw bytes.

FFmpeg plays a file that was cut off up to where it ends and says nothing. Both formats nest sized
elements, so the outermost ones tell. Nothing here decodes, and no other format is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")
"""The types with which MP4 and MOV files begin."""

_MAX_BOXES = 1000
_EBML_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067


def top_level_boxes(path: Path) -> list[bytes]:
    """Types of an MP4 file's outermost boxes: each is a 4-byte size, a type and its content."""
    boxes: list[bytes] = []
    position, file_bytes = 0, path.stat().st_size
    with path.open("rb") as file:
        while position + 8 <= file_bytes and len(boxes) < _MAX_BOXES:
            file.seek(position)
            header = file.read(16)
            size = int.from_bytes(header[:4], "big")
            if size == 1:  # a 64-bit size follows the type
                size = int.from_bytes(header[8:16], "big")
            boxes.append(header[4:8])
            if size < 8:  # 0 means: to the end of the file
                break
            position += size
    return boxes


def missing_matroska_bytes(path: Path) -> int:
    """How many bytes a Matroska or WebM file states beyond those it has; 0 when it cannot tell.

    The file is an EBML header and one segment, whose size is unknown in a recording that was
    written without going back to fill it in.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        if _read_number(file, keep_marker=True) != _EBML_HEADER:
            return 0
        header_bytes = _read_number(file)
        if header_bytes is None:
            return 0
        file.seek(header_bytes, 1)
        if _read_number(file, keep_marker=True) != _SEGMENT:
            return 0
        segment_bytes = _read_number(file)
        if segment_bytes is None:
            return 0
        return max(0, file.tell() + segment_bytes - file_bytes)


def _read_number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """One EBML number (RFC 8794, 4): the leading zero bits of its first byte tell its length.

    Identifiers keep the marker bit that ends the zeros; a size of ones alone means "unknown".
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        return None
    number = int.from_bytes(first + rest, "big")
    if keep_marker:
        return number
    marker = 1 << 7 * length
    return None if number == 2 * marker - 1 else number - marker
