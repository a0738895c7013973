"""What a training run is asked to do: frozen records that round-trip through JSON and TOML.

    config = load_config(file=Path("run.toml"), sets=["optimizer.lr=1e-3", "decoder.depth=2"])
    config = TrainConfig(task="lvu/relationship", epochs=10)

Everything below `decoder` except its name is an option of that decoder; the decoder's own catalogue
entry knows which exist, so they are checked when the decoder is built. Knows no tensors.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..store.errors import FieldDifference, UsageError
from ..store.fields import differences
from ..store.keys import task_path
from ..store.views import TokenView
from .training.protocols import Protocol, with_protocol
from .typed import build, convert, refuse

Schedule = Literal["cosine", "plateau", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
Select = Literal["best-val", "last"]
Padding = Literal["masked", "zeros"]
Preload = Literal["off", "ram", "gpu"]
OptionValue = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Which decoder, and the options that its catalogue entry takes."""

    name: str = "vis4mer"
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "decoder") -> DecoderConfig:
        values = {"name": cls.name, **data}
        name = values.pop("name")
        if not isinstance(name, str):
            raise refuse(f"{path}.name", name, "the name of a decoder")
        for option, value in values.items():
            if value is not None and not isinstance(value, (str, int, float, bool)):
                raise refuse(f"{path}.{option}", value, "text, a number, true or false")
        return cls(name=name, options=values)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate over time.

    lr, weight_decay: of everything but the dynamics. dynamics_lr: upper bound of the learning rate
    of the state-space dynamics, which never have weight decay.
    schedule: `cosine` to zero at the last step; `plateau` multiplies by `plateau_factor` after
    `plateau_patience` epochs without a better validation loss (training loss where there is no
    validation split); `constant`. warmup_epochs: linear rise, before any schedule.
    grad_clip: bound of the gradient's total norm, None for no clipping.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    dynamics_lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    plateau_patience: int = 10
    plateau_factor: float = 0.2
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        convert(self.schedule, Schedule, field="optimizer.schedule")
        _require("optimizer.lr", self.lr, 0 < self.lr < math.inf, "more than 0")
        for name in ("weight_decay", "dynamics_lr", "warmup_epochs", "plateau_patience"):
            value = getattr(self, name)
            _require(f"optimizer.{name}", value, 0 <= value < math.inf, "at least 0")
        factor, clip = self.plateau_factor, self.grad_clip
        _require("optimizer.plateau_factor", factor, 0 < factor < 1, "between 0 and 1")
        bounded = clip is None or 0 < clip < math.inf
        _require("optimizer.grad_clip", clip, bounded, "more than 0, or none")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "optimizer") -> OptimizerConfig:
        return build(cls, data, path=path)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    task: DATASET/TASK as labelled in the cache.
    protocol: the bundle that `load_config` began with (see `protocols`); by itself it sets nothing.
    tokens: a token view such as 60x14x14; None for the cache's own patch grid, every frame.
    window_seconds: length of a window; in a cache of segments a window is the whole entry.
    windows_per_video: random windows of each video an epoch.
    lanes: for a decoder with a memory: each epoch reads every window of every video once, in order,
    `batch_size` videos side by side, and what is remembered of a window is carried to the next.
    So it is where the run is judged: a window goes on from the one that ended where it begins, and
    where there is none, as at a video's start, nothing is remembered.
    padding: what follows a window that its video cuts short: frames that are masked, or `zeros`
    that count as frames, up to the full window.
    shuffle_frames: a control: the frames of every window come in a random order, in training and
    wherever the run is judged or predicts. What it can still do needs no order within a window;
    with lanes the windows themselves still come in order.
    hold_out: share of the training groups (a row's group, else its video) that becomes the
    validation split where the task has none.
    blocks: parts that each epoch's videos are dealt into; batches are drawn from one part after
    another, so that runs of one pass can share what was read. None is one part for a run by
    itself; a pass chooses what fits into memory. See `sharing`.
    validation_stride_seconds: between the windows judged after each epoch. With lanes `load_config`
    makes it the window where nobody says it, since it must go into that.
    final_stride_seconds: between the windows of the final evaluation.
    test_each_epoch: judge the test split after every epoch too, and name its best epoch.
    select: which weights the final evaluation judges; `best-val` is the epoch of highest
    validation accuracy (lowest squared error), the lower validation loss among equals.
    precision: `auto` is bfloat16 autocast on a GPU and float32 on a CPU.
    workers: reading threads, at least 16 where windows are drawn from a remote cache; changes
    speed, never a result.
    preload: where the tokens of the training and validation videos are held, as they are stored,
    once they are read: `ram` or `gpu`; changes speed, never a result.
    compile: train through `torch.compile`, where that works; up to minutes first, then a little
    less of each step, and other rounding, as of another device. Steps in lanes stay as they are.
    init: SHA-256 of the pretrained encoder's weights that it begins with; `--init RUN` sets it,
    and a run never opens a file by what its config says.
    """

    task: str
    protocol: Protocol = "clean"
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tokens: str | None = None
    window_seconds: float = 60.0
    windows_per_video: int = 1
    padding: Padding = "masked"
    shuffle_frames: bool = False
    lanes: bool = False
    hold_out: float = 0.0
    epochs: int = 100
    batch_size: int = 16
    blocks: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    select: Select = "best-val"
    validation_stride_seconds: float = 60.0
    final_stride_seconds: float = 1.0
    test_each_epoch: bool = False
    workers: int = 4
    preload: Preload = "off"
    compile: bool = False
    init: str | None = None

    def __post_init__(self) -> None:
        task_path(self.task)
        if self.tokens is not None:
            object.__setattr__(self, "tokens", str(TokenView.parse(self.tokens)))
        for name in ("window_seconds", "validation_stride_seconds", "final_stride_seconds"):
            seconds = getattr(self, name)
            _require(name, seconds, 0 < seconds < math.inf, "more than 0 seconds")
        for name in ("windows_per_video", "epochs", "batch_size", "workers"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        dealt = self.blocks is None or 1 <= self.blocks <= MOST_BLOCKS
        _require("blocks", self.blocks, dealt, f"1 to {MOST_BLOCKS}")
        if self.lanes:
            self._require_whole_videos()
        _require("hold_out", self.hold_out, 0 <= self.hold_out < 1, "at least 0 and less than 1")
        known = self.init is None or re.fullmatch("[0-9a-f]{64}", self.init) is not None
        _require("init", self.init, known, "none or a SHA-256, which `--init RUN` sets")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "0 or more")
        choices = {"precision": Precision, "select": Select, "padding": Padding, "preload": Preload}
        for name, choice in {**choices, "protocol": Protocol}.items():
            convert(getattr(self, name), choice, field=name)

    def _require_whole_videos(self) -> None:
        """What goes with lanes."""
        once = "1 with lanes, which read every window once"
        _require("windows_per_video", self.windows_per_video, self.windows_per_video == 1, once)
        masked = "masked with lanes, where zeros would be remembered as frames"
        _require("padding", self.padding, self.padding == "masked", masked)
        together = "none or 1 with lanes, to which all videos are dealt"
        _require("blocks", self.blocks, self.blocks in (None, 1), together)

    def to_json(self) -> dict[str, Any]:
        """Nested JSON; `from_json` gives an equal record back."""
        data = asdict(self)
        data["decoder"] = self.decoder.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "") -> TrainConfig:
        return build(cls, data, path=path)

    def to_toml(self) -> str:
        """A file for `--config`; fields that are None stand at their default and are left out."""
        data = self.to_json()
        tables = {key: data.pop(key) for key in ("decoder", "optimizer")}
        lines = _toml_lines(data)
        for key, table in tables.items():
            lines += ["", f"[{key}]", *_toml_lines(table)]
        return "\n".join(lines) + "\n"


MOST_BLOCKS = 10**6  # of an epoch: more is a mistake, or somebody's config that asks for memory

# What may differ when a run goes on: where and how fast it is computed, not what is learned.
NOT_LEARNED = ("device", "workers", "preload", "compile", "decoder.recompute")


def load_config(
    *,
    base: TrainConfig | None = None,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    sets: Sequence[str] = (),
) -> TrainConfig:
    """A config: a protocol's settings, then `base` or a TOML file, then `flags`, then texts such
    as `a.b=c`; later ones override.

    base: that of a run to go on with. flags: dotted name → value, None skipped. The protocol is
    what any of them says in `protocol`. Raises UsageError for a file that cannot be read and for
    unknown fields or values.
    """
    data = {} if base is None else base.to_json()
    if file is not None:
        data = _read_toml(file)
    override(data, flags=flags or {}, sets=sets)
    protocol: Protocol = convert(data.get("protocol", "clean"), Protocol, field="protocol")
    said = with_protocol(protocol, data)
    config = TrainConfig.from_json(said)
    if config.lanes and "validation_stride_seconds" not in said:
        return replace(config, validation_stride_seconds=config.window_seconds)
    return config


def override(data: dict[str, Any], *, flags: Mapping[str, object], sets: Sequence[str]) -> None:
    """Put `flags` (dotted name → value, None skipped), then texts `a.b=c`, into nested `data`."""
    for name, value in flags.items():
        if value is not None:
            _put(data, name, value)
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text}: expected NAME=VALUE such as optimizer.lr=1e-3")
        _put(data, name.strip(), value.strip())


def config_differences(stored: TrainConfig, wanted: TrainConfig) -> tuple[FieldDifference, ...]:
    """Fields in which two runs learn something else, dotted names, sorted."""
    return differences(stored.to_json(), wanted.to_json(), ignoring=NOT_LEARNED)


def _require(field: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise refuse(field, value, expected)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # covers tomllib.TOMLDecodeError and UnicodeDecodeError
        raise UsageError(f"--config {file}: not TOML ({error})") from error


def _put(data: dict[str, Any], name: str, value: object) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UsageError(f"{name}: {parent} is a value, it has no fields of its own")
    data[leaf] = value


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    # A JSON scalar is a TOML scalar, except for null (left out) and escapes above U+FFFF.
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
        if value is not None
    ]
