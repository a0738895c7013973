"""vis4mer: a two-stage feature-cache pipeline for long-video classification.

Stage 1 (`vis4mer.extract`) runs a frozen backbone over every video once and commits its tokens to
a feature cache (`vis4mer.store`). Stage 2 (`vis4mer.decode`) trains temporal decoders from that
cache and never sees a pixel. The command line is a thin face of these functions:

    vis4mer.extract_videos(vis4mer.ExtractRequest(inputs=["videos.csv"], cache="my.zarr"))
    cache = vis4mer.open_cache("my.zarr")
    vis4mer.train_decoder(cache, vis4mer.TrainConfig(task="videos/label"), Path("runs/s4"))
    decoder = vis4mer.load_decoder("runs/s4")

They are imported when they are first used: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .both.predict import predict_videos
    from .decode.config import TrainConfig
    from .decode.runs.run import load_decoder
    from .decode.train import train_decoder, train_decoders
    from .extract.request import ExtractRequest, extract_videos
    from .store.cache import open_cache

__all__ = [
    "ExtractRequest",
    "TrainConfig",
    "extract_videos",
    "load_decoder",
    "open_cache",
    "predict_videos",
    "train_decoder",
    "train_decoders",
]

_HOMES = {
    "ExtractRequest": ".extract.request",
    "TrainConfig": ".decode.config",
    "extract_videos": ".extract.request",
    "load_decoder": ".decode.runs.run",
    "open_cache": ".store.cache",
    "predict_videos": ".both.predict",
    "train_decoder": ".decode.train",
    "train_decoders": ".decode.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
