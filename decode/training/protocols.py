"""The two protocols, as settings of a training run: what each name stands for, in one table.

    clean       short windows are masked, cosine schedule: this project's defaults
    official    as the released ViS4mer code trains and judges

A protocol is where `load_config` begins: a TOML file, flags and `--set` override single settings,
and the run directory records the whole. How a cache is extracted under each is said by the room
that extracts; `extraction_note` compares what a cache says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...store.fields import flatten
from ...store.spec import CacheSpec

Protocol = Literal["clean", "official"]


@dataclass(frozen=True, kw_only=True)
class TrainProtocol:
    """settings: fields of TrainConfig, nested as in TOML; what is not there is the default."""

    summary: str
    settings: Mapping[str, Any]


PROTOCOLS: Mapping[Protocol, TrainProtocol] = {
    "clean": TrainProtocol(
        summary="padding is masked, patch tokens without CLS, one cosine over the whole training",
        settings={},
    ),
    # Islam and Bertasius's released code. It never says which epoch its LVU table reports: the
    # best on validation is a choice of ours. Everything that it fixes is written out, defaults of
    # today included, so that `official` does not move with a default.
    "official": TrainProtocol(
        summary="197 tokens a frame, zeros after a short video that the mean counts, steps down on "
        "a plateau, 60 s windows every second",
        settings={
            "tokens": "60x14x14+cls",
            "window_seconds": 60.0,
            "padding": "zeros",
            "windows_per_video": 1,
            "batch_size": 16,
            "epochs": 100,
            "select": "best-val",
            "final_stride_seconds": 1.0,
            "decoder": {
                "name": "vis4mer",
                "variant": "official",
                "mixer": "s4",
                "depth": 3,
                "dropout": 0.2,
            },
            "optimizer": {
                "schedule": "plateau",
                "plateau_patience": 10,
                "plateau_factor": 0.2,
                "lr": 1e-3,
                "weight_decay": 0.01,
            },
        },
    ),
}


def with_protocol(protocol: Protocol, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's settings under those asked for, both nested as in TOML.

    Options of the protocol's decoder say nothing of another one and go with it.
    """
    settings = PROTOCOLS[protocol].settings
    merged = {**settings, **asked}
    for table in ("decoder", "optimizer"):
        wanted = asked.get(table, {})
        if isinstance(wanted, Mapping):  # whatever else it is, the config refuses it
            same = wanted.get("name", settings.get(table, {}).get("name"))
            base = settings.get(table, {})
            if base.get("name") == same:
                wanted = {**base, **wanted}
            merged[table] = dict(wanted)
    return merged


def departure_note(protocol: Protocol, config: Mapping[str, Any]) -> str | None:
    """One line where settings of a run, resolved and as JSON, are not those of its protocol."""
    wanted, found = flatten(PROTOCOLS[protocol].settings), flatten(config)
    if found.get("decoder.name") != wanted.get("decoder.name"):
        wanted = {k: v for k, v in wanted.items() if not _is_option(k)}
    differs = [
        f"{name} is {found.get(name)} ({protocol}: {value})"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    return f"not all of protocol {protocol}: {', '.join(differs)}" if differs else None


def _is_option(name: str) -> bool:
    return name.startswith("decoder.") and name != "decoder.name"


def extraction_note(protocol: Protocol, spec: CacheSpec) -> str | None:
    """One line where a cache was not extracted under `protocol`; None where it was."""
    if spec.preprocess is None:
        return f"how the tokens of this cache were made is not known, so {protocol} is not either"
    differs = []
    if protocol == "official":
        if spec.sampling.kind == "fps":
            differs.append("frames are at their true times, official spreads them over the file")
        if spec.preprocess.resize != "squash":
            differs.append(f"frames are resized by {spec.preprocess.resize}, official is squash")
        if any(spec.preprocess.mean):
            differs.append("pixels have their mean subtracted, official leaves them in 0 to 1")
    elif spec.sampling.kind == "spread":
        differs.append("frames are spread over the file, clean has them at their true times")
    if not differs:
        return None
    return f"the cache was not extracted under protocol {protocol}: {'; '.join(differs)}"
