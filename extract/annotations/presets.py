"""The datasets known by name: what reads their annotations, and what extraction of each assumes.

Paths are given on the command line, in the environment (VIS4MER_LVU_VIDEOS) or in `vis4mer.toml`
of the working directory, in that order:

    [lvu]
    annotations = "lvu_1.0"
    videos = "/data/lvu/videos"

A relative path in the file is below the file's folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...store.errors import UsageError
from .base import Annotations
from .breakfast import read_breakfast
from .coin import read_coin
from .lvu import read_lvu

PresetName = Literal["lvu", "breakfast", "coin"]
PathName = Literal["annotations", "videos"]
CONFIG_FILE = "vis4mer.toml"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One dataset. read: annotations from a folder or file. layout: what `--annotations` expects.

    backbone, segments: what extraction takes unless told otherwise; None is the command's default.
    tree_is_annotation: the folder of videos says the labels too, where there are no other files.
    """

    name: PresetName
    title: str
    read: Callable[[Path], Annotations]
    layout: str
    backbone: str | None = None
    segments: int | None = None
    tree_is_annotation: bool = False


PRESETS: Mapping[PresetName, Preset] = {
    "lvu": Preset(
        name="lvu",
        title="Long-form Video Understanding",
        read=read_lvu,
        layout="the folder lvu_1.0, with TASK/train.csv, val.csv, test.csv and lvu_durations.csv",
    ),
    "breakfast": Preset(
        name="breakfast",
        title="Breakfast Actions",
        read=read_breakfast,
        layout="a folder with train.csv and test.csv, or the videos as P03/cam01/P03_cereals.avi",
        backbone="swin3d_b",
        segments=64,
        tree_is_annotation=True,
    ),
    "coin": Preset(
        name="coin",
        title="COIN",
        read=read_coin,
        layout="the file COIN.json, or its folder",
        backbone="swin3d_b",
        segments=64,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PresetPaths:
    """Where a preset's annotations and videos are; None where nobody said."""

    annotations: Path | None
    videos: Path | None


def find_preset(dataset: str | Path) -> Preset | None:
    """The preset of this name; None for anything else, such as a CSV."""
    return PRESETS.get(str(dataset))  # type: ignore[call-overload, no-any-return]


def preset_paths(
    preset: Preset,
    *,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    folder: Path | None = None,
) -> PresetPaths:
    """What was given, else the environment, else `vis4mer.toml` in `folder` (the working one)."""
    given = {"annotations": annotations, "videos": videos}
    configured = _configured(preset.name, folder or Path())
    found: dict[str, Path | None] = {}
    for name in get_args(PathName):
        said = given[name] or os.environ.get(variable(preset.name, name))
        found[name] = Path(said) if said else configured.get(name)
    if found["annotations"] is None and preset.tree_is_annotation:
        found["annotations"] = found["videos"]
    return PresetPaths(annotations=found["annotations"], videos=found["videos"])


def require_path(preset: Preset, paths: PresetPaths, name: PathName) -> Path:
    """One of the paths; UsageError names the missing flag and both other ways to set it."""
    path = paths.annotations if name == "annotations" else paths.videos
    if path is None:
        what = preset.layout if name == "annotations" else "the folder with the videos"
        raise UsageError(
            f"--{name} is missing for {preset.name} ({what}): give --{name} DIR, set "
            f"{variable(preset.name, name)}, or write {name} = ... below [{preset.name}] in "
            f"{CONFIG_FILE}"
        )
    return path


def variable(preset: PresetName, name: PathName) -> str:
    """The environment variable of a path, e.g. VIS4MER_LVU_VIDEOS."""
    return f"VIS4MER_{preset.upper()}_{name.upper()}"


def _configured(preset: PresetName, folder: Path) -> dict[str, Path]:
    """The paths of a preset in `vis4mer.toml`, none when there is no such file or section."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        section: Any = tomllib.loads(path.read_text(encoding="utf-8-sig")).get(preset, {})
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); expected TOML in UTF-8") from error
    expected = get_args(PathName)
    if not isinstance(section, dict) or any(
        key not in expected or not isinstance(value, str) or not value
        for key, value in section.items()
    ):
        raise UsageError(
            f"{path}, [{preset}]: expected {' and '.join(expected)}, each a path in quotes"
        )
    return {key: folder / Path(value).expanduser() for key, value in section.items()}
