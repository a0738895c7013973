"""Videos of many lengths for the benchmarks, out of one short clip that is encoded once."""

from __future__ import annotations

from pathlib import Path

import av
from reading import write_clip

BASE_SECONDS = 12
LONG, MIDDLE, SHORT = 363, 40, 3  # seconds
NUM_SHORT = 80


def write_mixture(folder: Path, *, num_short: int = NUM_SHORT, longest: int = LONG) -> list[Path]:
    """One clip of 363 s, one of 40 s and 80 of 3 s: 720p H.264, a keyframe every two seconds."""
    base = folder.parent / "base.mp4"
    write_clip(base, gop=60, seconds=BASE_SECONDS)
    lengths = {"long": longest, "middle": min(MIDDLE, longest)}
    lengths |= {f"short{i:02}": SHORT for i in range(num_short)}
    folder.mkdir()
    for name, seconds in lengths.items():
        write_loop(base, folder / f"{name}.mp4", seconds=seconds)
    base.unlink()
    return sorted(folder.iterdir())


def write_loop(base: Path, path: Path, *, seconds: int) -> None:
    """The packets of `base` again and again until `seconds` are full; nothing is encoded."""
    with av.open(str(path), "w") as output:
        stream = None
        for begin in range(0, seconds, BASE_SECONDS):
            with av.open(str(base)) as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    shift = round(begin / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    if packet.pts * packet.time_base >= seconds:
                        break  # frames after it, in the order of decoding, refer to it
                    packet.stream = stream
                    output.mux(packet)
