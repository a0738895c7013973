"""vis4mer: a two-stage feature-cache pipeline for long-video classification.

Stage 1 (`vis4mer.extract`) runs a frozen backbone over every video once and commits its tokens to
a feature cache (`vis4mer.store`). Stage 2 (`vis4mer.decode`) trains temporal decoders from that
cache and never sees a pixel. Importing this package imports neither torch nor a sibling.
"""

from __future__ import annotations

__version__ = "0.1.0"
