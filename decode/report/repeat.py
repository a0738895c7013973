"""Everything that is needed to repeat a row's runs, as text: command, configuration, cache, cost.

A run directory does not know where its cache lay, and a page that is put on a site should not say
where anything lay: caches and run directories are named, never located.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...store.spec import CacheSpec, Preprocess
from ...store.tasks import SPLITS
from .collect import RunFacts
from .rows import Row
from .sheet import figure_text


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: what all its runs share, and a line for each run under `run_columns`."""

    label: str
    command: str
    command_about: str
    toml: str
    fingerprint: str
    cache: tuple[tuple[str, str], ...]
    run_columns: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]
    versions: str


def setting_of(row: Row) -> Setting:
    """What a reader needs to make the row's runs again."""
    runs = [run for cell in row.cells.values() for run in cell.runs]
    spec = runs[0].about.spec
    lines = [_run_line(run) for run in runs]
    if not any(run.result.horizon_seconds for run in runs):
        for line in lines:
            del line[_HORIZON]
    return Setting(
        label=row.label,
        command=_command(runs),
        command_about=_command_about(runs[0]),
        toml=runs[0].about.train.to_toml(),
        fingerprint=row.fingerprint,
        cache=tuple(_cache_lines(spec)),
        run_columns=tuple(lines[0]),
        runs=tuple(tuple(line.values()) for line in lines),
        versions=_versions(runs),
    )


def run_name(path: Path) -> str:
    """A run directory by the last two parts of its path."""
    return "/".join(path.parts[-2:])


def _command(runs: list[RunFacts]) -> str:
    train = runs[0].about.train
    if runs[0].about.imported is not None:
        return (
            f"vis4mer import-weights FILE --tokens {train.tokens} --window "
            f"{train.window_seconds:g} \\\n    --cache CACHE --task {train.task} --run RUN"
        )
    tasks = ",".join(dict.fromkeys(run.task for run in runs))
    seeds = sorted({run.seed for run in runs})
    asked = f"--seeds {','.join(map(str, seeds))}" if len(seeds) > 1 else f"--seed {seeds[0]}"
    return (
        "vis4mer train-decoder --config run.toml --cache CACHE --run RUNS \\\n"
        f"    --task {tasks} {asked}"
    )


def _command_about(run: RunFacts) -> str:
    imported = run.about.imported
    if imported is not None:
        return (
            f"These weights were not trained here: FILE is {imported.file} with the SHA-256 "
            f"{imported.sha256}. CACHE has the fingerprint {run.about.spec.fingerprint}."
        )
    return (
        f"CACHE has the fingerprint {run.about.spec.fingerprint}; run.toml is below, as resolved "
        f"for {run.task}, seed {run.seed}."
    )


def _cache_lines(spec: CacheSpec) -> Iterator[tuple[str, str]]:
    """All that changes the numbers of a cache, and which arrays it held."""
    yield "fingerprint", spec.fingerprint
    yield "backbone", spec.backbone
    yield "weights", f"{spec.weights}, SHA-256 {spec.weights_sha256}"
    yield "layer", spec.layer
    yield "preprocessing", _preprocess(spec.preprocess)
    yield "sampling", spec.sampling.describe()
    yield "reader", spec.reader
    yield "computed in", spec.compute_dtype
    yield "stored as", spec.stored_dtype
    grid = "×".join(map(str, spec.grid))
    yield "tokens of a frame", f"{grid} patches, {spec.num_prefix} prefix, width {spec.dim}"
    yield "arrays", ", ".join(spec.arrays)


def _preprocess(preprocess: Preprocess | None) -> str:
    if preprocess is None:
        return "not known"
    size = "×".join(map(str, preprocess.size))
    mean, std = (
        ", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std)
    )
    return (
        f"{size}, {preprocess.resize}, crop {preprocess.crop_pct:g}, {preprocess.interpolation}, "
        f"mean {mean}, std {std}"
    )


_HORIZON = "99 % of the kernel, s"  # a decoder without kernels has no such column


def _run_line(run: RunFacts) -> dict[str, str]:
    """One run, by column."""
    about, result, val = run.about, run.result, run.result.val
    horizon = ", ".join(f"{seconds:.3g}" for seconds in result.horizon_seconds)
    return {
        "run": run_name(run.path),
        "task": run.task,
        "seed": str(run.seed),
        "epoch": f"{result.epoch} ({result.selected})",
        "val": "none" if val is None else figure_text(val.figure, val.kind),
        "test": figure_text(run.test.figure, run.test.kind),
        "videos (train/val/test)": "/".join(str(about.num_videos.get(s, 0)) for s in SPLITS),
        "data": about.data_sha256[:12],
        "parameters": f"{result.num_parameters:,}",
        _HORIZON: horizon or "no kernel",
        "time, s": f"{result.seconds:,.1f}",
        "read, MB": f"{result.bytes_read / 1e6:,.1f}",
    }


def _versions(runs: list[RunFacts]) -> str:
    """Such as `torch 2.4, numpy 1.26`; all that occur, where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in run.about.versions.items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())
