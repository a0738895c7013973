"""The engine that is this very process."""

from __future__ import annotations

import threading

from ..request import ExtractRequest, OnNote, extract_videos
from ..stages.progress import ExtractSummary
from .base import EngineOptions, OnProgress


def extract_inline(
    asked: ExtractRequest,
    *,
    options: EngineOptions,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> ExtractSummary:
    """Extract here (`request.extract_videos`). UsageError for options of other engines."""
    options.refuse("inline", "devices", "processes", "address")
    return extract_videos(asked, stop=stop, progress=progress, on_note=on_note)
