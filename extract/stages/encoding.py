"""The backbone stage: frames of several videos go through the backbone in one batch.

Batches are numbered as they are assembled, so that several threads may encode at once and the
tokens still leave in order. On a GPU each thread has a stream of its own and pinned memory, so that
one batch's frames arrive and its tokens leave while the other's run. Knows neither where frames
come from nor where tokens go.

Letters: B clips of several videos, T of one, F frames a clip (an image backbone: F = 1), p prefix
tokens, h × w patch grid, D width.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ...store.errors import Vis4merError
from ...store.spec import StoredDtype
from ...store.wording import describe_error
from ..backbones.loading import Backbone
from .buffers import OrderedBuffer, WeightedBuffer
from .items import End, Failed, Floats, FramePart, TokenPart, VideoJob
from .progress import Tally
from .stopping import StopSignal


class BackboneStage:
    """`run` is the body of every backbone thread.

    batch_size: frames of a batch, which are whole clips.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        batch_size: int,
        stored_dtype: StoredDtype,
        frames: WeightedBuffer[FramePart | End],
        tokens: OrderedBuffer[list[TokenPart | End]],
        stop: StopSignal,
        tally: Tally,
    ) -> None:
        self._backbone = backbone
        self._batch_size = batch_size
        self._stored_dtype = stored_dtype
        self._frames = frames
        self._tokens = tokens
        self._stop = stop
        self._tally = tally
        self._assembling = threading.Lock()
        self._rest: FramePart | None = None
        self._numbers = itertools.count()

    def run(self) -> None:
        """Take batch after batch, in the order of reading, until reading has ended."""
        with _own_stream(self._backbone.device):
            while (batch := self._wait_for_batch()) is not None:
                number, items = batch
                encoded = self._encode(items)
                with self._tally.step("wait for turn"):
                    self._tokens.put(number, encoded)

    def _wait_for_batch(self) -> tuple[int, list[FramePart | End]] | None:
        with self._tally.step("wait for frames"):
            return self._next_batch()

    def _next_batch(self) -> tuple[int, list[FramePart | End]] | None:
        """A full batch, or at the end what is left, with the ends that fall in between."""
        with self._assembling:
            items: list[FramePart | End] = []
            room = self._batch_size
            while room:
                item = self._rest or self._frames.get()
                self._rest = None
                if item is None:
                    break
                if isinstance(item, FramePart):
                    item, self._rest = _split(item, room, self._backbone.clip_frames)
                    room -= len(item.pixels)
                items.append(item)
            return (next(self._numbers), items) if items else None

    def _encode(self, items: Sequence[FramePart | End]) -> list[TokenPart | End]:
        """Replace frames by tokens. When the batch fails, each video's part is tried alone, so that
        only the video that is at fault fails."""
        wanted = [i for i in items if not (isinstance(i, FramePart) and self._is_over(i.job))]
        parts = [item for item in wanted if isinstance(item, FramePart)]
        encoded: Sequence[TokenPart | Failed]
        try:
            encoded = self._encode_parts(parts)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Vis4merError(
                f"not enough memory on {self._backbone.device} for {self._batch_size} frames at "
                "once; use a smaller --batch-size"
            ) from error
        except Exception:
            encoded = [self._encode_alone(part) for part in parts]
        in_order = iter(encoded)
        return [next(in_order) if isinstance(item, FramePart) else item for item in wanted]

    def _is_over(self, job: VideoJob) -> bool:
        """Whether a job's frames need no tokens. A stop ends every job that is not wholly read."""
        if self._stop.requested and not job.read.is_set():
            self._stop.leave_undone()
            job.over.set()
        return job.over.is_set()

    def _encode_alone(self, part: FramePart) -> TokenPart | Failed:
        try:
            return self._encode_parts([part])[0]
        except Exception as error:
            reason = f"the backbone failed: {describe_error(error)}"
            return part.job.fail("encode", reason)

    def _encode_parts(self, parts: Sequence[FramePart]) -> list[TokenPart]:
        """One pass of the backbone over parts of several videos, then apart again.

        The batch always has its full size, at the very end of a run by repeating its last frame:
        some backbones' last bits depend on the number of frames, and must not depend on when a run
        was interrupted.
        """
        if not parts:
            return []
        num_frames = sum(len(part.pixels) for part in parts)
        count = sum(len(part.pts_seconds) for part in parts)
        videos = tuple(dict.fromkeys(part.job.video.id for part in parts))
        with self._tally.step("assemble", *videos, frames=num_frames):
            padding = parts[-1].pixels[-1:].expand(self._batch_size - num_frames, -1, -1, -1)
            pixels = self._cat([*(part.pixels for part in parts), padding])  # B·F 3 H W
        with self._tally.step("backbone", *videos, frames=num_frames):
            tokens = self._backbone.encode(pixels)
            if self._tally.steps.recorded:  # else the copy waits, and would be blamed
                _wait_for_device(self._backbone.device)
        with self._tally.step("copy to host", *videos, frames=num_frames):
            patch = self._to_host(tokens.patch[:count])
            prefix = self._to_host(tokens.prefix[:count])
        encoded, start = [], 0
        for part in parts:
            chosen = slice(start, start + len(part.pts_seconds))
            encoded.append(TokenPart(part.job, patch[chosen], prefix[chosen], part.pts_seconds))
            start = chosen.stop
        return encoded

    def _cat(self, pixels: list[Tensor]) -> Tensor:
        """uint8 frames one after another (B·F, 3, H, W), where a GPU can fetch them by itself."""
        if self._backbone.device.type != "cuda":
            return torch.cat(pixels)
        pinned = torch.empty(
            (sum(map(len, pixels)), *pixels[0].shape[1:]),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
            pin_memory=True,
        )
        return torch.cat(pixels, out=pinned)

    def _to_host(self, tokens: Tensor) -> Floats:
        """Tokens as an array: float16 where that is what is stored and every value fits, which
        halves the copy from a GPU; else float32, for the writer to judge."""
        if self._stored_dtype == "float16":
            halves = tokens.to(torch.float16)
            if torch.isfinite(halves).all():
                return _on_host(halves)
        return _on_host(tokens.float())


def _own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On a GPU, what this thread starts waits for nothing that another thread has started."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch gives no types
    stream.wait_stream(torch.cuda.default_stream(device))  # the weights have arrived
    return torch.cuda.stream(stream)


def _wait_for_device(device: torch.device) -> None:
    """Until all that this thread has started on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _on_host(tokens: Tensor) -> Floats:
    """A device's tensor as an array; from a GPU through pinned memory, at the full rate."""
    if tokens.device.type != "cuda":
        here: Floats = tokens.cpu().numpy()
        return here
    pinned = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    pinned.copy_(tokens, non_blocking=True)
    _wait_for_device(tokens.device)
    host: Floats = pinned.numpy()  # keeps the memory until the writer is done with it
    return host


def _split(part: FramePart, room: int, clip_frames: int) -> tuple[FramePart, FramePart | None]:
    """A part's first `room` frames, whole clips, and what is left of it."""
    if len(part.pixels) <= room:
        return part, None
    clips = room // clip_frames
    first = FramePart(part.job, part.pixels[:room], part.pts_seconds[:clips])
    return first, FramePart(part.job, part.pixels[room:], part.pts_seconds[clips:])
