"""Lets timm be imported beside a torch that torchvision's compiled operators do not load into.

timm imports torchvision for its image transforms. torchvision describes its operators to torch as
it is imported, and that fails with "operator torchvision::nms does not exist" when its compiled
library was built for another torch (the CPU wheels of torch beside the common wheel of
torchvision). None of those operators is used here, so the two schemas that the import asks for are
defined without an implementation; calling one still raises.

Knows nothing of timm's models. Call `prepare_torchvision()` before anything imports timm.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Define the missing schemas; None when nothing was missing.

    The library object is cached because torch forgets the schemas when it is collected.
    """
    if "torchvision" in sys.modules or _load_real_operators():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _load_real_operators() -> bool:
    """Whether the real operators exist, found out by loading torchvision's own library."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = Path(spec.origin).with_name(f"_C{suffix}")
        if library.is_file() and _loads(library):
            return True
    return hasattr(torch.ops.torchvision, "nms")


def _loads(library: Path) -> bool:
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:  # undefined symbols, or another CUDA runtime
        return False
    return hasattr(torch.ops.torchvision, "nms")
