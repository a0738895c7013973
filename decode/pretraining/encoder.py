"""A pretrained encoder as a directory: what `vis4mer pretrain` writes and `--init` takes over.

    config.json        sealed: the resolved config, the CacheSpec, how many videos, versions
    metrics.jsonl      one line an epoch
    last.safetensors   the whole state of pretraining after the last finished epoch

Like any run directory it may come from a colleague and is untrusted; no path found in it is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...store import fields as f
from ...store.errors import CacheFormatError, UsageError, Vis4merError
from ...store.files import parse_json, read_json_bytes, unseal, write_atomic
from ...store.spec import CacheSpec
from ..runs.checkpoints import read_checkpoint
from ..runs.run import readable_json
from ..runs.runlog import MetricsLog
from .config import PretrainConfig

PRETRAIN_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PretrainAbout:
    """What `config.json` says. data_sha256: of all videos learned from, and their lengths."""

    pretrain: PretrainConfig
    spec: CacheSpec
    num_videos: int
    data_sha256: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "pretrain_format": PRETRAIN_FORMAT,
            "pretrain": self.pretrain.to_json(),
            "spec": self.spec.to_json(),
            "num_videos": self.num_videos,
            "data_sha256": self.data_sha256,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> PretrainAbout:
        """Read untrusted JSON; CacheFormatError names the file and the field."""
        versions = f.mapping(data, "versions", name=name)
        try:
            pretrain = PretrainConfig.from_json(f.mapping(data, "pretrain", name=name))
        except UsageError as error:
            raise CacheFormatError(f"{name}: {error}") from error
        return cls(
            pretrain=pretrain,
            spec=CacheSpec.from_json(f.mapping(data, "spec", name=name), name=name),
            num_videos=f.integer(data, "num_videos", name=name),
            data_sha256=f.text(data, "data_sha256", name=name),
            versions={key: f.text(versions, key, name=name) for key in versions},
        )


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """A pretraining directory; use `open_pretrain_run`."""

    path: Path
    about: PretrainAbout

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")


def open_pretrain_run(path: Path) -> PretrainRun:
    """Open a pretraining directory. UsageError or CacheFormatError, in one line, if it is none."""
    config = path / "config.json"
    if not config.exists():
        raise UsageError(
            f"{path} is no pretraining run (it has no config.json); `vis4mer pretrain --run` makes "
            "one"
        )
    try:
        data = read_json_bytes(config)
    except OSError as error:
        raise Vis4merError(f"{config} cannot be read ({error.strerror})") from error
    if "pretrain_format" not in (content := parse_json(data, name=str(config))):
        raise CacheFormatError(
            f"{config}: JSON, but not of a pretraining run; `vis4mer pretrain --run` makes one"
        )
    if (number := f.integer(content, "pretrain_format", name=str(config))) > PRETRAIN_FORMAT:
        raise CacheFormatError(
            f"{config}: pretraining format {number} is newer than this version reads "
            f"(format {PRETRAIN_FORMAT}); upgrade vis4mer"
        )
    content = unseal(data, name=str(config))
    return PretrainRun(path=path, about=PretrainAbout.from_json(content, name=str(config)))


def write_pretrain_about(folder: Path, about: PretrainAbout) -> PretrainRun:
    """Begin a pretraining directory."""
    write_atomic(folder / "config.json", readable_json(about.to_json()))
    return PretrainRun(path=folder, about=about)


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """A query encoder to begin with. name: of its file, for errors. sha256: of its weights."""

    name: str
    tensors: Mapping[str, Tensor]
    spec: CacheSpec
    sha256: str

    def require_tokens_of(self, spec: CacheSpec) -> None:
        """UsageError unless a cache holds tokens of the backbone that the encoder learned from."""
        for field in ("backbone", "weights_sha256", "dim"):
            stored, found = getattr(self.spec, field), getattr(spec, field)
            if stored != found:
                raise UsageError(
                    f"{self.name}: the encoder learned from tokens of another backbone ({field} "
                    f"{stored}, this cache has {found}); pretrain on this cache"
                )


def read_encoder(path: Path) -> PretrainedEncoder:
    """The query encoder of a pretraining run, after its last finished epoch.

    Raises UsageError or Vis4merError, in one line, when there is none.
    """
    run = open_pretrain_run(path)
    if not run.last.exists():
        raise Vis4merError(f"{path} has no {run.last.name}; run `vis4mer pretrain` on it first")
    tensors = read_checkpoint(run.last).part("model.")
    return PretrainedEncoder(
        name=str(run.last), tensors=tensors, spec=run.about.spec, sha256=weights_sha256(tensors)
    )


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
