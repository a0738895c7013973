"""Where a figure is to be written: asked before the work that it shows. Draws nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..store.errors import UsageError


def check_figure_path(path: Path, *, formats: Sequence[str]) -> None:
    """UsageError for a `--figure` that could not be written once there is something to draw.

    formats: endings of names, such as `.png`. In the folder a file without a name is made, and gone
    at once: what permissions say is not what every file system does.
    """
    if path.suffix.lower() not in formats:
        raise UsageError(f"--figure {path}: expected a name that ends in {' or '.join(formats)}")
    try:
        if path.is_dir():
            raise UsageError(f"--figure {path}: a folder, expected the name of a file to write")
        if not path.parent.is_dir():
            raise UsageError(f"--figure {path}: there is no folder {path.parent}; make it first")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"--figure {path}: cannot be written ({error.strerror}); choose another file"
        ) from error
