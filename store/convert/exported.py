"""What an export of ours says of the files it wrote, so that an import need not guess it.

`export.json` of their folder, or the attribute `vis4mer` of an HDF5 file, holds the cache's spec.
It may come from anybody: it is checked as a spec is, and it says how the tokens are laid out and
how frames were sampled, never whose weights made them. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import fields as f
from ..errors import CacheFormatError, UsageError
from ..files import JSON, parse_json, read_json_bytes, require_checksum
from ..spec import CacheSpec, Sampling
from .exporting import MARKER, Selection
from .hdf5 import read_about

_HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """sampling, backbone: of the cache that was exported. prefix, grid: of every frame's tokens,
    None where there are no patches."""

    sampling: Sampling
    backbone: str
    prefix: int
    grid: tuple[int, int] | None

    def is_laid_out(self, prefix: int | None, grid: tuple[int, int] | None) -> bool:
        """Is nothing else asked for than the layout that these files have?"""
        return prefix in (None, self.prefix) and grid in (None, self.grid)

    def describe(self) -> str:
        """Such as `2 fps, 1 prefix + 14x14, backbone vit_tiny`."""
        tokens = [f"{self.prefix} prefix"] if self.prefix else []
        tokens += [f"{self.grid[0]}x{self.grid[1]}"] if self.grid else []
        return f"{self.sampling.describe()}, {' + '.join(tokens)}, backbone {self.backbone}"


def find_exported(paths: Iterable[Path]) -> Exported | None:
    """What the exports that wrote these files say; None when none of them is an export's.

    Raises UsageError when they say different things, or when only some files are of an export;
    CacheFormatError for an export's words that do not check.
    """
    said: dict[Exported | None, Path] = {}
    folders: dict[Path, Exported | None] = {}
    for path in sorted(paths):
        exported = _of_hdf5(path) if path.suffix.lower() in _HDF5 else None
        if exported is None:
            folder = path.parent
            if folder not in folders:
                folders[folder] = _of_folder(folder)
            exported = folders[folder]
        said.setdefault(exported, path)
    if len(said) < 2:
        return next(iter(said), None)
    (one, first), (other, second) = list(said.items())[:2]
    raise UsageError(
        f"{first} is {_shown(one)}, {second} is {_shown(other)}; import them apart, each with the "
        "settings it needs"
    )


def _shown(exported: Exported | None) -> str:
    return f"of an export ({exported.describe()})" if exported else "of no export"


def _of_folder(folder: Path) -> Exported | None:
    path = folder / MARKER
    try:
        content = parse_json(read_json_bytes(path), name=str(path))
    except (FileNotFoundError, CacheFormatError):  # somebody's own file of that name
        return None
    if "checksum" not in content or "cache" not in content:
        return None
    require_checksum(content, name=str(path))
    return _exported(content, name=str(path))


def _of_hdf5(path: Path) -> Exported | None:
    text = read_about(path)
    if text is None:
        return None
    name = f"{path}, attribute vis4mer"
    return _exported(parse_json(text, name=name), name=name)


def _exported(content: JSON, *, name: str) -> Exported:
    spec = CacheSpec.from_json(f.mapping(content, "cache", name=name), name=name)
    tokens = f.text(content, "tokens", name=name)
    try:
        selection = Selection.of(spec, None if tokens == "all" else tokens)
    except UsageError as error:
        raise CacheFormatError(f"{name}: {error}") from error
    return Exported(
        sampling=spec.sampling,
        backbone=spec.backbone,
        prefix=selection.prefix,
        grid=selection.grid,
    )
