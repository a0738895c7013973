"""The two protocols, as settings of a training run: what each name stands for, in one table.

    clean       padding is masked, one cosine over the whole training: this project's defaults
    official    as the released ViS4mer code trains and judges: 197 tokens a frame, zeros after a
                short video that the mean counts, steps down on a plateau

A protocol is where `load_config` begins: a TOML file, flags and `--set` override single settings,
and the run directory records the whole. How a cache is extracted under each is said by the room
that extracts; `extraction_note` compares what a cache says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...store.spec import CacheSpec, ProtocolName

Protocol = ProtocolName


# Fields of TrainConfig, nested as in TOML; what is not there is the default.
PROTOCOLS: Mapping[Protocol, Mapping[str, Any]] = {
    "clean": {},
    # Islam and Bertasius's released code. It never says which epoch its LVU table reports: the
    # best on validation is a choice of ours. Everything that decides what is learned and judged is
    # written out, defaults of today included, so that `official` does not move with a default.
    "official": {
        "tokens": "60x14x14+cls",
        "window_seconds": 60.0,
        "padding": "zeros",
        "shuffle_frames": False,
        "lanes": False,
        "windows_per_video": 1,
        "batch_size": 16,
        "epochs": 100,
        "select": "best-val",
        "validation_stride_seconds": 60.0,
        "final_stride_seconds": 1.0,
        "decoder": {
            "name": "vis4mer",
            "variant": "official",
            "mixer": "s4",
            "depth": 3,
            "pooling": True,
            "scaling": True,
            "dropout": 0.2,
            "state_size": 64,
            "dt_min": 1e-3,
            "dt_max": 1e-1,
            "tied": False,
        },
        "optimizer": {
            "schedule": "plateau",
            "plateau_patience": 10,
            "plateau_factor": 0.2,
            "warmup_epochs": 0.0,
            "lr": 1e-3,
            "dynamics_lr": 1e-3,
            "weight_decay": 0.01,
            "grad_clip": None,
        },
    },
}
_OF_MIXER = frozenset({"state_size", "dt_min", "dt_max", "tied"})


def with_protocol(protocol: Protocol, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's settings under those asked for, both nested as in TOML.

    Options of the protocol's decoder say nothing of another one and go with it, and so do those of
    its mixer.
    """
    settings = PROTOCOLS[protocol]
    merged = {**settings, **asked}
    for table in ("decoder", "optimizer"):
        wanted = asked.get(table, {})
        if isinstance(wanted, Mapping):  # whatever else it is, the config refuses it
            same = wanted.get("name", settings.get(table, {}).get("name"))
            base = settings.get(table, {})
            if base.get("name") == same:
                if wanted.get("mixer", base.get("mixer")) != base.get("mixer"):
                    base = without_mixer(base)
                wanted = {**base, **wanted}
            merged[table] = dict(wanted)
    return merged


def without_mixer(options: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol's options of its decoder, those of its mixer left out."""
    return {name: value for name, value in options.items() if name not in _OF_MIXER | {"mixer"}}


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
    else:
        if spec.sampling.kind == "spread":
            differs.append("frames are spread over the file, clean has them at their true times")
        if spec.preprocess.resize == "squash" and not any(spec.preprocess.mean):
            differs.append("frames are squashed and left in 0 to 1, clean has them as weights do")
    if not differs:
        return None
    return f"the cache was not extracted under protocol {protocol}: {'; '.join(differs)}"
