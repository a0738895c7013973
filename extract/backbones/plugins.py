"""Backbones that somebody else brings: what a plug-in returns, and how one is called.

A plug-in runs its author's code: `load_plugin` takes only names that stand on this command line,
never ones out of a shared cache or run.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from torch import nn

from ...store.errors import UsageError, Vis4merError
from ...store.spec import Preprocess
from ...store.wording import describe_error, first_line


@dataclass(frozen=True, kw_only=True)
class PluginBackbone:
    """What a plug-in returns: `function(weights: str, image_size: tuple[int, int] | None)`.

    module: maps normalised pixels (B, 3, H, W) to tokens (B, p + h·w, D), prefix tokens first.
    clip_frames: frames F that it sees at once; above 1 it maps (B, 3, F, H, W) to the same, and the
    tokens of F frames are one frame of the cache.
    """

    module: nn.Module
    preprocess: Preprocess
    grid: tuple[int, int]
    num_prefix: int
    dim: int
    clip_frames: int = 1

    def __post_init__(self) -> None:
        if self.clip_frames < 1:
            raise UsageError(f"a backbone sees at least 1 frame at once, got {self.clip_frames}")


def is_plugin(name: str) -> bool:
    """Whether a backbone's name, with or without a size, is that of a plug-in."""
    return ":" in name.partition("@")[0]


def load_plugin(name: str, weights: str, size: tuple[int, int] | None) -> PluginBackbone:
    """Import `module:function` and call it.

    UsageError when that is not possible, Vis4merError when the function itself fails.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"backbone plug-in {name!r} cannot be imported ({first_line(error)}); expected "
            "module:function with the module on PYTHONPATH"
        ) from error
    try:
        loaded = function(weights, size)
    except (UsageError, Vis4merError):  # it says itself what is wrong
        raise
    except Exception as error:  # somebody else's code may raise anything; it is theirs, not ours
        raise Vis4merError(
            f"backbone plug-in {name} failed ({describe_error(error)}) with weights {weights!r} "
            f"and image size {size}; see its author's documentation"
        ) from error
    if not isinstance(loaded, PluginBackbone):
        raise UsageError(
            f"backbone plug-in {name!r} returned {type(loaded).__name__}, expected a "
            "vis4mer.extract.backbones.plugins.PluginBackbone"
        )
    return loaded
