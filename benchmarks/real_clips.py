"""Read every file of a folder and compare each frame with plain decoding from start to end.

    python benchmarks/real_clips.py DIR [--reader pyav] [--fps 1] [--json]

For every file: how many frames, how they were found, how many were damaged, whether every frame is
bit for bit what plain decoding shows at that time, or why the file could not be read. The exit
code is 1 when a frame differs. Neither side keeps more than a few frames in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from vis4mer.extract.readers import VideoError, get_reader
from vis4mer.extract.sampling import Every

Shown = tuple[str, float]  # digest of the picture, pts in seconds


def digest(frame: np.ndarray) -> str:
    upright = np.ascontiguousarray(frame)
    return hashlib.sha256(repr(upright.shape).encode() + upright.tobytes()).hexdigest()


def decode_plainly(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, in the decoder's order, one thread; errors are passed over."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.FFmpegError:
                    continue
        except av.error.FFmpegError:
            return


def expected_frames(path: Path, *, fps: Fraction, num_targets: int) -> Iterator[Shown]:
    """The definition: the frame for first pts + k / fps is the last one with pts not after it."""

    def answer(frame: av.VideoFrame) -> Shown:
        turns = frame.rotation // 90 if abs(frame.rotation) <= 180 else 0
        picture = np.rot90(frame.to_ndarray(format="rgb24", threads=1), turns)
        return digest(picture), float(frame.pts * frame.time_base)

    held, first, k = None, Fraction(0), 0
    for frame in decode_plainly(path):
        time_of_frame = frame.pts * frame.time_base
        if held is None:
            first = time_of_frame
        elif time_of_frame < held.pts * held.time_base:
            continue  # shown out of order by a damaged stream
        while held is not None and k < num_targets and first + k / fps < time_of_frame:
            yield answer(held)
            k += 1
        held = frame
    for _ in range(k, num_targets):
        yield answer(held)


def check(path: Path, *, reader_name: str, fps: float) -> dict[str, object]:
    """What reading gave for one file, and whether it is what plain decoding gives."""
    start = time.process_time()
    got: list[Shown] = []
    try:
        with get_reader(reader_name).open(path, moments=Every(fps=fps)) as video:
            for batch in video:
                got += [
                    (digest(frame), float(pts))
                    for frame, pts in zip(batch.frames, batch.pts_seconds, strict=True)
                ]
            info, method, damaged = video.info, video.method, video.damaged_frames
    except VideoError as error:
        return {"file": path.name, "failure": error.reason}
    cpu = time.process_time() - start
    rate = Fraction(fps).limit_denominator(1_000_000)
    expected = list(expected_frames(path, fps=rate, num_targets=len(got)))
    return {
        "file": path.name,
        "codec": info.codec,
        "frames": len(got),
        "method": method,
        "damaged": damaged,
        "identical": got == expected,
        "different": sum(a != b for a, b in zip(got, expected, strict=True)),
        "cpu_seconds": round(cpu, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reader", default="pyav")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    rows = [check(path, reader_name=arguments.reader, fps=arguments.fps) for path in files]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'file':<44} {'codec':<6} {'frames':>6} {'method':<10} {'damaged':>7}  identical")
        for row in rows:
            if "failure" in row:
                print(f"{row['file']:<44} failed: {row['failure']}")
                continue
            same = "yes" if row["identical"] else f"NO: {row['different']} frames differ"
            print(
                f"{row['file']:<44} {row['codec']:<6} {row['frames']:>6} {row['method']:<10} "
                f"{row['damaged']:>7}  {same}"
            )
    return int(any(row.get("identical") is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
