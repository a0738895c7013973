"""The demo: everything, from video files to a prediction, on data made here, without a network.

    result = run_demo(Path("vis4mer-demo"))
    result.s4.accuracy, result.floor.accuracy       # 1.0, 0.5

It takes the way that one's own videos take: a folder of files and a CSV of labels, `extract`,
`train-decoder`, `predict`. Only the backbone has no training at all (random weights, so that
nothing is downloaded), and the labels are such that a decoder must know what came before what; see
`clips`. Run again, it goes on where it stopped. Knows nothing of how a person is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import Vis4merError
from ..store.tasks import Split
from .clips import NUM_TWINS, write_clips

if TYPE_CHECKING:
    from ..decode.training.progress import TrainProgress
    from ..extract.annotations.table import LabelledVideos
    from ..extract.stages.progress import ExtractProgress, ExtractSummary
    from ..store.cache import Cache

BACKBONE = "vit_tiny_patch16_224@64"
TOKENS = "60x1x1"  # one token a frame: the mean of its 4 × 4 patches
EPOCHS = 20
LEARNING_RATE = 2e-3
CURVE_NAME = "curve.png"
_REPORTED_EPOCHS = 5

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DecoderScore:
    """One decoder on the test split: `correct` of `total` videos, by the weights in `run`."""

    decoder: str
    correct: int
    total: int
    run: Path

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def curve(self) -> Path:
        """PNG of loss and validation accuracy over the epochs."""
        return self.run / CURVE_NAME

    def describe(self) -> str:
        return f"{self.decoder}: {self.correct}/{self.total} ({self.accuracy:.1%})"


@dataclass(frozen=True, kw_only=True)
class HeldOutPrediction:
    """What the S4 decoder says of one test file, read anew from its pixels."""

    video: Path
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found, and where everything is.

    s4: the decoder `vis4mer`. floor: `mean`, which averages the same tokens and so cannot know
    their order. seconds: of this call by stage; little for what was there already.
    """

    seed: int
    labels: Path
    cache: Path
    s4: DecoderScore
    floor: DecoderScore
    prediction: HeldOutPrediction
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "labels": str(self.labels),
            "cache": str(self.cache),
            "decoders": [
                {**asdict(score), "run": str(score.run), "accuracy": score.accuracy}
                for score in (self.s4, self.floor)
            ],
            "prediction": {**asdict(self.prediction), "video": str(self.prediction.video)},
            "seconds": dict(self.seconds),
        }


class Stopwatch:
    """Seconds by stage: `lap(name)` ends one and begins the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._began = now - self._began, now


def run_demo(
    directory: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    num_twins: Mapping[Split, int] = NUM_TWINS,
    epochs: int = EPOCHS,
    report: Report = lambda _: None,
) -> DemoResult:
    """Write clips, extract them, train two decoders, predict a held-out clip; all in `directory`.

    seed: of the clips, of the backbone's weights and of the training. num_twins: pairs of clips by
    split. report: told, in plain lines, what is done. What an earlier call finished is kept. Raises
    UsageError when `directory` holds the demo of another seed or size.
    """
    watch = Stopwatch()
    num_clips = 2 * sum(num_twins.values())
    report(f"writing {num_clips} clips of a minute (H.264, 64×64) to {directory / 'clips'}")
    report("  each shows a disc and stripes once; its label is which of them came first")
    labels = write_clips(directory / "clips", seed=seed, num_twins=num_twins)
    watch.lap("write")

    labelled = _read_labels(labels)
    cache = _extract(labelled, directory / "demo.zarr", seed=seed, device=device, report=report)
    watch.lap("extract")

    scores = {}
    for decoder in ("vis4mer", "mean"):
        scores[decoder] = _train(
            cache,
            decoder,
            directory / "runs" / decoder,
            task=labelled.table.reference,
            epochs=epochs,
            seed=seed,
            device=device,
            report=report,
        )
        watch.lap(f"train {decoder}")

    prediction = _predict_first(labelled, scores["vis4mer"].run, device=device, report=report)
    watch.lap("predict")
    return DemoResult(
        seed=seed,
        labels=labels,
        cache=cache.path,
        s4=scores["vis4mer"],
        floor=scores["mean"],
        prediction=prediction,
        seconds=watch.seconds,
    )


def _read_labels(labels: Path) -> LabelledVideos:
    from ..extract.annotations.table import read_table

    return read_table(labels)


def _extract(
    labelled: LabelledVideos, path: Path, *, seed: int, device: str, report: Report
) -> Cache:
    """The cache of all clips and of the task."""
    from ..extract.backbones.loading import cache_spec, load_backbone
    from ..extract.readers import get_reader
    from ..extract.stages.pipeline import fill_cache
    from ..store.cache import create_cache

    report(f"extracting tokens into {path} with {BACKBONE}")
    report(f"  its weights are random (seed {seed}): nothing is downloaded, nothing was learned")
    # Of one precision everywhere, so that a demo begun on a GPU may be repeated without one.
    backbone = load_backbone(
        BACKBONE, weights=f"random:{seed}", device=device, compute_dtype="float32"
    )
    cache = create_cache(path, cache_spec(backbone))
    summary = fill_cache(
        labelled.videos, cache, backbone, get_reader("pyav"), progress=_by_quarters(report)
    )
    _require_all(summary, path)
    cache.save_task(labelled.table)
    report(
        f"  {summary.extracted} videos in {summary.seconds:.0f} s, {summary.already_there} were "
        f"there already"
    )
    return cache


def _by_quarters(report: Report) -> Callable[[ExtractProgress], None]:
    """Reports extraction each time another quarter of the videos is done."""
    told = 0

    def tell(progress: ExtractProgress) -> None:
        nonlocal told
        quarter = 4 * progress.extracted // progress.num_videos
        if told < quarter < 4:
            told = quarter
            report(
                f"  {progress.extracted}/{progress.num_videos} videos, "
                f"{progress.frames_per_second:.0f} frames/s"
            )

    return tell


def _require_all(summary: ExtractSummary, cache: Path) -> None:
    """Vis4merError unless the cache holds every clip as it is."""
    for failure in (*summary.failures, *summary.known_failures):
        raise Vis4merError(
            f"the demo's clip {failure.source_name} cannot be read ({failure.reason}); delete it "
            "and run the demo again"
        )
    if summary.changed:
        raise Vis4merError(
            f"the demo's clip {summary.changed[0]} is not the one in {cache}; delete it and run "
            "the demo again"
        )


def _train(
    cache: Cache,
    decoder: str,
    run: Path,
    *,
    task: str,
    epochs: int,
    seed: int,
    device: str,
    report: Report,
) -> DecoderScore:
    from ..decode.config import DecoderConfig, OptimizerConfig, TrainConfig
    from ..decode.train import train_decoder

    config = TrainConfig(
        task=task,
        decoder=DecoderConfig(name=decoder),
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        tokens=TOKENS,
        epochs=epochs,
        seed=seed,
        device=device,
        precision="float32",
    )

    def tell(progress: TrainProgress) -> None:
        done = progress.finished
        if done is not None and (done.epoch % _REPORTED_EPOCHS == 0 or done.epoch == epochs):
            report(
                f"  epoch {done.epoch}/{epochs}: loss {done.train_loss:.3f}, "
                f"validation {done.val_score or 0:.0%}"
            )

    report(f"training the decoder {decoder!r} in {run}")
    test = train_decoder(cache, config, run, progress=tell).test
    if test is None:
        raise Vis4merError(f"{run}: the task {task} has no test videos to judge by")
    score = DecoderScore(decoder=decoder, correct=test.correct, total=test.total, run=run)
    report(f"  test {score.describe()}")
    return score


def _predict_first(
    labelled: LabelledVideos, run: Path, *, device: str, report: Report
) -> HeldOutPrediction:
    """Predict the first test video from its file, as `vis4mer predict` does."""
    from ..both.predict import predict_videos
    from ..decode.runs.run import open_run

    row = labelled.table.split("test")[0]
    video = next(video.path for video in labelled.videos if video.id == row.id)
    report(f"predicting {video}, which no decoder has seen")
    found = predict_videos([video], open_run(run), device=device)
    for failure in found.failures:
        raise Vis4merError(
            f"the demo's clip {failure.source_name} cannot be predicted ({failure.reason}); delete "
            "it and run the demo again"
        )
    best = found.predictions[0].top()[0]
    prediction = HeldOutPrediction(
        video=video,
        label=labelled.table.classes[int(row.label)],
        predicted=best.name,
        probability=best.probability,
    )
    report(f"  {best.name} ({best.probability:.1%}); its label is {prediction.label}")
    return prediction
