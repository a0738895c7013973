"""Catalogues: names to classes that are imported when they are first asked for.

Knows nothing of what the classes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .typed import unknown_name


def look_up(catalogue: Mapping[str, str], name: str, *, kind: str, package: str) -> Any:
    """The class that `catalogue` calls `name`; its entries read "module:Class" within `package`.

    kind: what the catalogue holds, for the error. Raises UsageError for an unknown name.
    """
    if name not in catalogue:
        raise unknown_name(kind, name, catalogue)
    module, _, attribute = catalogue[name].partition(":")
    return getattr(import_module(f".{module}", package), attribute)
