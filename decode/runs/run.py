"""One training run is one directory that says everything needed to repeat and to use it.

    config.json        sealed: the resolved config, the CacheSpec, task and classes, versions
    metrics.jsonl      one line an epoch
    last.safetensors   the whole state of training after the last finished epoch
    best.safetensors   the weights of the best epoch on validation, if there is a validation split
    timelines.safetensors   what the selected weights say of every window of the test videos
    results.json       the final evaluation; its presence means that the run is finished
    curve.png          loss and validation score over the epochs

A run directory may come from a colleague and is untrusted: its JSON is checked field by field, only
decoders of this catalogue are built, weights are compared with the model's names and shapes, and no
path found in it is followed.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from ... import __version__
from ...store import fields as f
from ...store.errors import CacheFormatError, UsageError, Vis4merError
from ...store.files import (
    canonical_json,
    held_alone,
    parse_json,
    read_json_bytes,
    seal,
    storage_errors,
    unseal,
    write_atomic,
)
from ...store.spec import CacheSpec
from ...store.tasks import TaskKind, TaskTable
from ...store.wording import some_of
from ..config import TrainConfig
from ..data.plan import WindowPlan
from ..decoders import Decoder, build_decoder
from ..judging.metrics import read_kind
from .budget import Budget
from .checkpoints import load_model, read_checkpoint
from .results import RUN_FORMAT, TrainResult, Weights
from .runlog import EpochMetrics, MetricsLog

Which = Literal["selected", "best", "last"]


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """Where weights come from that were not trained here: a file's name, and its SHA-256."""

    file: str
    sha256: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> ImportedWeights:
        return cls(file=f.text(data, "file", name=name), sha256=f.text(data, "sha256", name=name))


@dataclass(frozen=True, kw_only=True)
class RunAbout:
    """What `config.json` says.

    train: with view and decoder options resolved. num_videos: readable ones by split.
    data_sha256: of all rows that were read, their labels, splits and extents.
    imported: of weights that `vis4mer import-weights` brought; None for a run trained here.
    """

    train: TrainConfig
    spec: CacheSpec
    kind: TaskKind
    classes: tuple[str, ...]
    num_videos: Mapping[str, int]
    data_sha256: str
    versions: Mapping[str, str]
    imported: ImportedWeights | None = None

    @property
    def plan(self) -> WindowPlan:
        return WindowPlan.of(
            self.spec,
            tokens=self.train.tokens,
            window_seconds=self.train.window_seconds,
            padding=self.train.padding,
        )

    @property
    def selects(self) -> Weights:
        """Which weights are judged: without a validation split no epoch is the best."""
        return "best" if self.train.select == "best-val" and self.num_videos.get("val") else "last"

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or 1

    def require_task(self, table: TaskTable) -> None:
        """UsageError unless `table` means by its labels what this run learned."""
        if (table.kind, table.classes) != (self.kind, self.classes):
            raise UsageError(
                f"task {table.reference} is {_described(table.kind, table.classes)} here, but the "
                f"run learned {_described(self.kind, self.classes)}"
            )

    def build_decoder(self) -> Decoder:
        """The decoder with fresh weights; UsageError for lanes and one that carries no memory."""
        decoder = self.train.decoder
        built = build_decoder(
            decoder.name,
            shape=self.plan.shape,
            num_outputs=self.num_outputs,
            options=decoder.options,
        )
        if self.train.lanes:
            built.start_memory()
        return built

    def to_json(self) -> dict[str, Any]:
        return {
            "run_format": RUN_FORMAT,
            "train": self.train.to_json(),
            "spec": self.spec.to_json(),
            "kind": self.kind,
            "classes": list(self.classes),
            "num_videos": dict(self.num_videos),
            "data_sha256": self.data_sha256,
            "versions": dict(self.versions),
            "imported": None if self.imported is None else asdict(self.imported),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> RunAbout:
        """Read untrusted JSON; CacheFormatError names the file and the field."""
        spec = CacheSpec.from_json(f.mapping(data, "spec", name=name), name=name)
        kind, classes = read_kind(data, name=name)
        counts = f.mapping(data, "num_videos", name=name)
        versions = f.mapping(data, "versions", name=name)
        try:
            train = TrainConfig.from_json(f.mapping(data, "train", name=name))
            about = cls(
                train=train,
                spec=spec,
                kind=kind,
                classes=classes,
                num_videos={split: f.integer(counts, split, name=name) for split in counts},
                data_sha256=f.text(data, "data_sha256", name=name),
                versions={key: f.text(versions, key, name=name) for key in versions},
                imported=_imported(data, name),
            )
            about.plan  # noqa: B018 (the view must be one that the spec can give)
        except UsageError as error:
            raise CacheFormatError(f"{name}: {error}") from error
        return about


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory; use `open_run`."""

    path: Path
    about: RunAbout

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def timelines(self) -> Path:
        """See `read_timelines`; absent while the run is not finished."""
        return self.path / "timelines.safetensors"

    @property
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")

    def epochs(self) -> list[EpochMetrics]:
        """What was measured after each epoch."""
        return self.metrics.read()

    def results(self) -> TrainResult | None:
        """The final evaluation; None while the run is not finished."""
        path = self.path / "results.json"
        if not path.exists():
            return None
        return TrainResult.from_json(_read(path, "results"), run=self.path, name=str(path))

    def load_decoder(self, which: Which = "selected") -> Decoder:
        """The trained decoder, on the CPU, in evaluation mode.

        `selected` are the weights that the final evaluation judged: those of the best validation
        epoch, or the last where the run asked for that or has no validation split. Raises
        Vis4merError when there is no such checkpoint, or it does not fit.
        """
        path = self._weights(which)
        if not path.exists():
            remedy = f"train it first (`vis4mer train-decoder --run {self.path} --resume`)"
            if self.about.imported is not None:
                remedy = "an import brings last.safetensors alone; run `vis4mer import-weights`"
            raise Vis4merError(f"{self.path} has no {path.name}; {remedy}")
        weights = read_checkpoint(path).part("model.")
        config = self.path / "config.json"
        budget = Budget(
            sum(tensor.numel() for tensor in weights.values()),
            otherwise=f"{config}: asks for a decoder far larger than the weights in {path.name}",
        )
        try:
            with torch.random.fork_rng([]), budget:  # initial values are drawn, and then replaced
                model = self.about.build_decoder()
        except UsageError as error:
            raise CacheFormatError(f"{config}: {error}") from error
        load_model(model, weights, name=str(path))
        return model.eval()

    def _weights(self, which: Which) -> Path:
        if which not in get_args(Which):
            raise UsageError(f"weights {which!r}, expected one of {', '.join(get_args(Which))}")
        if which == "selected":
            which = self.about.selects
        return self.last if which == "last" else self.best


def open_run(path: str | Path) -> Run:
    """Open a run directory. UsageError or CacheFormatError, in one line, when it is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; expected a run of `vis4mer train-decoder`")
    config = folder / "config.json"
    if not config.exists():
        held = sorted(str(path.parent.relative_to(folder)) for path in _runs_below(folder))
        raise CacheFormatError(
            f"{folder} is no run directory (it has no config.json); "
            + (
                f"it holds {len(held)} runs: name one, such as {folder / held[0]}"
                if held
                else "`vis4mer train-decoder --run` makes one"
            )
        )
    return Run(path=folder, about=RunAbout.from_json(_read(config, "run"), name=str(config)))


def _runs_below(folder: Path) -> list[Path]:
    """The configs of runs that several tasks or seeds, or a sweep, have left in a folder."""
    return [*folder.glob("*/config.json"), *folder.glob("*/seed*/config.json")]


def load_decoder(path: str | Path, which: Which = "selected") -> Decoder:
    """The trained decoder of a run directory, on the CPU, in evaluation mode; see `Run`."""
    return open_run(path).load_decoder(which)


def write_about(folder: Path, about: RunAbout) -> Run:
    """Begin a run directory."""
    write_atomic(folder / "config.json", readable_json(about.to_json()))
    return Run(path=folder, about=about)


def write_results(result: TrainResult) -> None:
    """Finish a run directory."""
    write_atomic(result.run / "results.json", readable_json(result.to_json()))


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """One process trains in a directory at a time; the lock dies with its process."""
    with storage_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"--run {folder}: a file stands there, expected a directory"
            ) from error
    busy = f"{folder}: another process is training in it; wait for it, or choose another --run"
    with held_alone(folder / "run.lock", otherwise=busy):
        for leftover in folder.glob(".*.tmp"):  # of a killed process: we hold the lock
            leftover.unlink(missing_ok=True)
        yield


def versions() -> dict[str, str]:
    """What made a run; shown and compared by people, never refused."""
    return {
        "vis4mer": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def readable_json(content: Mapping[str, Any]) -> bytes:
    """Sealed JSON laid out for people: the seal is over the content, not over its spaces."""
    sealed = json.loads(seal(json.loads(canonical_json(content))))
    return json.dumps(sealed, indent=1, ensure_ascii=False).encode() + b"\n"


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        data = read_json_bytes(path)
    except OSError as error:
        raise Vis4merError(f"{path} cannot be read ({error.strerror})") from error
    content = parse_json(data, name=str(path))
    if "run_format" not in content:
        raise CacheFormatError(f"{path}: JSON, but not the {what} file of a vis4mer run")
    if (number := f.integer(content, "run_format", name=str(path))) > RUN_FORMAT:
        raise CacheFormatError(
            f"{path}: run format {number} is newer than this version reads "
            f"(format {RUN_FORMAT}); upgrade vis4mer"
        )
    return unseal(data, name=str(path))


def _imported(data: Mapping[str, Any], name: str) -> ImportedWeights | None:
    if data.get("imported") is None:
        return None
    return ImportedWeights.from_json(f.mapping(data, "imported", name=name), name=name)


def _described(kind: TaskKind, classes: tuple[str, ...]) -> str:
    if kind == "regression":
        return "a regression"
    return f"a choice of {len(classes)} classes ({some_of(classes)})"
