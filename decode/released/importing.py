"""A state dict of the released ViS4mer code in, a run directory out.

    import_weights(Path("lvu.pth"), open_cache("lvu.zarr"), task="lvu/relationship",
                   tokens="60x14x14+cls", run=Path("runs/released"))

The run can be evaluated and can predict; it cannot be trained further. The cache says which tokens
and classes the weights are taken to speak of: a state dict knows only how many.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...store.cache import Cache
from ...store.errors import CacheFormatError, UsageError
from ...store.tasks import SPLITS, TaskTable
from ..config import TrainConfig, load_config
from ..data.plan import WindowPlan, data_digest, split_samples
from ..decoders import Decoder, build_decoder, decoder_options
from ..runs.checkpoints import load_model, write_checkpoint
from ..runs.run import ImportedWeights, Run, RunAbout, lock_run, open_run, versions, write_about
from ..ssm.released import ReleasedDplr
from ..training.begin import require_own_directory
from ..training.learner import weights_only
from .state import ReleasedState, read_released


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What was imported. num_tokens: of a window, as the view gives them.

    num_parameters: those that are used. notes: what a person must know.
    """

    run: Path
    file: Path
    sha256: str
    task: str
    tokens: str
    num_tokens: int
    width: int
    depth: int
    num_outputs: int
    num_parameters: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run), "file": str(self.file)}


def import_weights(
    file: Path, cache: Cache, *, task: str, tokens: str, run: Path, window_seconds: float = 60.0
) -> ImportSummary:
    """Make the run directory `run` of weights that the released code saved in `file`.

    tokens: the view that the weights were trained on; `60x14x14+cls` of 60 s gives the 11,820 of
    the paper's authors. Raises UsageError where the file does not fit the cache, the task or the
    view, and where `run` holds something else; CacheFormatError for a file that is none of these.
    The same call again writes the same run.
    """
    require_own_directory(run)
    table = cache.task(task)
    plan = WindowPlan.of(cache.spec, tokens=tokens, window_seconds=window_seconds, padding="zeros")
    state = read_released(file)
    _require_fit(file, state, cache=cache, table=table, plan=plan)
    config = _config(state, task=table.reference, plan=plan, window_seconds=window_seconds)
    imported = ImportedWeights(file=file.name, sha256=state.sha256)
    decoder = _filled(config, state, plan=plan, name=str(file))
    min_frames = plan.shortest_extent(decoder.min_frames)
    about = _about(config, imported, cache=cache, table=table, min_frames=min_frames)
    with lock_run(run):
        opened = _begin(run, about)
        write_checkpoint(opened.last, weights_only(decoder.state_dict(), {"epoch": 0}))
    return ImportSummary(
        run=run,
        file=file,
        sha256=state.sha256,
        task=table.reference,
        tokens=str(plan.view),
        num_tokens=plan.shape.num_tokens,
        width=state.width,
        depth=state.depth,
        num_outputs=state.num_outputs,
        num_parameters=sum(p.numel() for p in decoder.parameters()),
        notes=_notes(state),
    )


def _require_fit(
    file: Path, state: ReleasedState, *, cache: Cache, table: TaskTable, plan: WindowPlan
) -> None:
    if state.width != plan.shape.dim:
        raise UsageError(
            f"{file} was made for tokens {state.width} wide, but those of {cache.name} are "
            f"{plan.shape.dim} wide ({cache.spec.backbone}); use a cache of the backbone that it "
            "was trained on"
        )
    if state.num_outputs != table.num_outputs:
        what = f"{len(table.classes)} classes" if table.classes else "one value (a regression)"
        raise UsageError(
            f"{file} has {state.num_outputs} outputs, but task {table.reference} has {what}; "
            "use the --task that it was trained on"
        )
    if plan.shape.num_tokens not in state.num_tokens:
        even, odd = state.num_tokens
        raise UsageError(
            f"{file} was made for windows of {even} or {odd} tokens, but --tokens {plan.view} of "
            f"{plan.length / plan.fps:g} s gives {plan.shape.num_tokens} ({plan.shape.frames} "
            f"frames of {plan.shape.tokens_per_frame}); use the --tokens and --window that it was "
            "trained on (+cls adds a token a frame)"
        )


def _config(
    state: ReleasedState, *, task: str, plan: WindowPlan, window_seconds: float
) -> TrainConfig:
    """Protocol `official`, under which the released code judges; what it says of training is no
    word on how these weights were trained."""
    chosen = {
        "variant": "official",
        "mixer": "s4-released",
        "depth": state.depth,
        "state_size": state.state_size,
    }
    options = decoder_options("vis4mer", chosen).to_json()
    flags = {
        "protocol": "official",
        "padding": plan.padding,
        "task": task,
        "tokens": str(plan.view),
        "window_seconds": window_seconds,
        "precision": "float32",
        "select": "last",
    }
    return load_config(flags=flags | {f"decoder.{name}": value for name, value in options.items()})


def _about(
    config: TrainConfig,
    imported: ImportedWeights,
    *,
    cache: Cache,
    table: TaskTable,
    min_frames: int,
) -> RunAbout:
    splits = {split: split_samples(cache, table, split, min_frames=min_frames) for split in SPLITS}
    return RunAbout(
        train=config,
        spec=cache.spec,
        kind=table.kind,
        classes=table.classes,
        num_videos={split: len(chosen.samples) for split, chosen in splits.items()},
        data_sha256=data_digest(splits),
        versions=versions(),
        imported=imported,
    )


def _filled(config: TrainConfig, state: ReleasedState, *, plan: WindowPlan, name: str) -> Decoder:
    """The decoder with the file's weights, its kernels computed once to see that they exist."""
    with torch.random.fork_rng([]):  # initial values are drawn, and then replaced
        decoder = build_decoder(
            config.decoder.name,
            shape=plan.shape,
            num_outputs=state.num_outputs,
            options=config.decoder.options,
        )
    load_model(decoder, state.tensors, name=name)
    systems = [module for module in decoder.modules() if isinstance(module, ReleasedDplr)]
    for i, system in enumerate(systems):
        if not bool(torch.isfinite(system.kernel()).all()):
            raise CacheFormatError(
                f"{name}: the kernel of s4_layers.{i} is not finite; the training that saved it "
                "diverged"
            )
    return decoder.eval()


def _begin(folder: Path, about: RunAbout) -> Run:
    """A new directory, or one that the same import began."""
    if not (folder / "config.json").exists():
        return write_about(folder, about)
    stored = open_run(folder)
    wanted = {**about.to_json(), "versions": dict(stored.about.versions)}
    if stored.about.to_json() != wanted:
        raise UsageError(f"--run {folder} holds another run; choose a new or empty directory")
    return stored


def _notes(state: ReleasedState) -> tuple[str, ...]:
    notes = ["the run can be evaluated and can predict, but not be trained further or streamed"]
    if state.has_encoder:
        notes.append("encoder was left out: the released code never calls it")
    return tuple(notes)
