"""The long-range demos: which decoders can tell what lies in the order of tokens alone.

    result = run_long_range(Path("vis4mer-demo"), question="order", decoders=["vis4mer", "mean"])
    result.settings[0].accuracy.mean        # of vis4mer; whatever ignores order stays at chance

The tokens are drawn, not extracted (see `tokens`), so all of it is about decoders: the same
training for each of them, from the same tokens. Run again, it goes on where it stopped. Knows
nothing of how a person is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import UsageError, Vis4merError
from ..store.tasks import Split
from .tokens import FRAMES, NUM_VIDEOS, Question, TokenDemo, write_token_demo

if TYPE_CHECKING:
    from ..decode.config import OptionValue, TrainConfig
    from ..decode.judging.statistics import SeedStatistics
    from ..decode.training.progress import OnProgress
    from ..store.cache import Cache

DECODERS = ("vis4mer", "mean")  # of a demo that names none

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How many videos of a length are drawn, and how every contender is trained on them."""

    num_videos: Mapping[Split, int]
    epochs: int
    batch_size: int
    learning_rate: float


TRAININGS: Mapping[int, Training] = {
    1: Training(num_videos=NUM_VIDEOS, epochs=12, batch_size=64, learning_rate=3e-3),
    4: Training(
        num_videos={"train": 800, "val": 200, "test": 400},
        epochs=12,
        batch_size=16,
        learning_rate=2e-3,
    ),
    14: Training(
        num_videos={"train": 200, "val": 40, "test": 120},
        epochs=12,
        batch_size=4,
        learning_rate=2e-3,
    ),
}
"""By the side of the grid, for 60, 960 and 11,760 tokens a video: longer ones are fewer, so that a
run stays one of minutes without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A decoder of the catalogue with options that suit tokens of width 64."""

    decoder: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)


_PLACED: Mapping[str, OptionValue] = {"positions": True}
CONTENDERS: Mapping[str, Contender] = {
    "vis4mer": Contender(decoder="vis4mer"),
    "vis4mer:s4d-lin": Contender(decoder="vis4mer", options={"mixer": "s4d-lin"}),
    "vis4mer:s4d-inv": Contender(decoder="vis4mer", options={"mixer": "s4d-inv"}),
    "vis4mer:s4d-legs": Contender(decoder="vis4mer", options={"mixer": "s4d-legs"}),
    "selective_s4": Contender(decoder="selective_s4"),
    "lst": Contender(decoder="lst"),
    "lst:positions": Contender(decoder="lst", options=_PLACED),
    "performer": Contender(decoder="performer"),
    "performer:positions": Contender(decoder="performer", options=_PLACED),
    "orthoformer": Contender(decoder="orthoformer"),
    "orthoformer:positions": Contender(decoder="orthoformer", options=_PLACED),
    "stam": Contender(decoder="stam", options={"frame": "mean", "depth": 2, "feedforward": 256}),
    "memory": Contender(decoder="memory", options={"width": 64}),
    "gru": Contender(decoder="gru", options={"width": 64}),
    "gru:both-ways": Contender(decoder="gru", options={"width": 64, "bidirectional": True}),
    "mamba2": Contender(decoder="mamba2", options={"width": 64}),
    "segment-mean": Contender(decoder="segment-mean"),
    "attentive-probe": Contender(decoder="attentive-probe"),
    "mean": Contender(decoder="mean"),
}
"""Decoders by the names that the demos give them, the floors last."""

LEFT_OUT: Mapping[str, str] = {
    "cls-mean": "it reads CLS tokens, and these videos have none",
}
"""Decoders of the catalogue that have nothing to do here, and why."""


@dataclass(frozen=True, kw_only=True)
class LongRangeScore:
    """One run on the test split. contender: its name in CONTENDERS. epoch: of the weights judged,
    those of the best validation. seconds: of training and judging."""

    question: Question
    tokens: str
    contender: str
    seed: int
    correct: int
    total: int
    epoch: int
    num_parameters: int
    seconds: float
    run: str

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True, kw_only=True)
class LongRangeSetting:
    """Runs that differ in their seed alone; at least one. chance: of guessing."""

    scores: tuple[LongRangeScore, ...]
    chance: float

    @property
    def first(self) -> LongRangeScore:
        return self.scores[0]

    @property
    def accuracy(self) -> SeedStatistics:
        from ..decode.judging.statistics import SeedStatistics

        return SeedStatistics.of([score.accuracy for score in self.scores])

    @property
    def seconds(self) -> float:
        """Of one run, in the mean."""
        return sum(score.seconds for score in self.scores) / len(self.scores)

    def to_json(self) -> dict[str, Any]:
        return {
            "decoder": self.first.contender,
            "tokens": self.first.tokens,
            "accuracy": self.accuracy.to_json(),
            "chance": self.chance,
            "seconds": self.seconds,
            "runs": [asdict(score) for score in self.scores],
        }


@dataclass(frozen=True, kw_only=True)
class LongRangeResult:
    """What one demo found: settings in the order asked for, tokens before decoders."""

    question: Question
    seed: int
    caches: tuple[Path, ...]
    settings: tuple[LongRangeSetting, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.question,
            "seed": self.seed,
            "caches": [str(cache) for cache in self.caches],
            "settings": [setting.to_json() for setting in self.settings],
        }


def run_long_range(
    directory: Path,
    *,
    question: Question,
    decoders: Sequence[str] = DECODERS,
    tokens: Sequence[str] = ("60x1x1",),
    seeds: Sequence[int] = (0,),
    seed: int = 0,
    device: str = "auto",
    epochs: int | None = None,
    report: Report = lambda _: None,
) -> LongRangeResult:
    """Draw tokens, train decoders on them, judge them on the test split; all in `directory`.

    decoders: names in CONTENDERS. tokens: of `demo_for`. seeds: of the trainings, seed: of what is
    drawn. epochs: None for those of TRAININGS. What an earlier call finished is kept. Raises
    UsageError for a name that is unknown, before anything is written.
    """
    for name in decoders:
        find_contender(name)
    demos = [demo_for(question, tokens=view, seed=seed) for view in tokens]
    caches, settings = [], []
    for demo in demos:
        path = cache_path(directory, demo)
        report(f"drawing {sum(demo.num_videos.values())} videos of {demo.tokens} tokens in {path}")
        cache = write_token_demo(path, demo)
        caches.append(path)
        for name in decoders:
            scores = []
            for each in seeds:
                report(f"training {name} on {demo.tokens}, seed {each}")
                run = run_path(directory, demo, name, seed=each)
                scores.append(
                    train_contender(
                        cache, demo, name, run=run, seed=each, device=device, epochs=epochs
                    )
                )
                report(f"  test {scores[-1].correct}/{scores[-1].total}")
            settings.append(LongRangeSetting(scores=tuple(scores), chance=demo.chance))
    return LongRangeResult(
        question=question, seed=seed, caches=tuple(caches), settings=tuple(settings)
    )


def demo_for(question: Question, *, tokens: str, seed: int = 0) -> TokenDemo:
    """The videos of a question in a view such as `60x4x4`; UsageError lists the views."""
    for side, training in TRAININGS.items():
        demo = TokenDemo(question=question, side=side, seed=seed, num_videos=training.num_videos)
        if demo.tokens == tokens:
            return demo
    known = ", ".join(f"{FRAMES}x{side}x{side}" for side in TRAININGS)
    raise UsageError(f"--tokens {tokens}: expected {known} of a demo of tokens")


def find_contender(name: str) -> Contender:
    """The decoder of that name; UsageError lists the names, or says why one is left out."""
    if name in LEFT_OUT:
        raise UsageError(f"--decoders {name}: {LEFT_OUT[name]}; choose another")
    if name not in CONTENDERS:
        raise UsageError(f"--decoders {name}: expected names of {', '.join(CONTENDERS)}")
    return CONTENDERS[name]


def cache_path(directory: Path, demo: TokenDemo) -> Path:
    """Its own for every seed, so that no cache is asked to be another."""
    return directory / f"{demo.question}-{demo.tokens}-seed{demo.seed}.zarr"


def run_path(directory: Path, demo: TokenDemo, contender: str, *, seed: int) -> Path:
    """Of one training, beside its cache."""
    drawn = cache_path(directory, demo).stem
    return directory / "long-range" / drawn / contender.replace(":", "-") / f"seed{seed}"


def train_contender(
    cache: Cache,
    demo: TokenDemo,
    name: str,
    *,
    run: Path,
    seed: int,
    device: str = "auto",
    epochs: int | None = None,
    progress: OnProgress | None = None,
) -> LongRangeScore:
    """Train the contender `name` in directory `run`, or go on with it, and judge it on the test
    split. Raises as `train_decoder` does, and whatever `progress` raises."""
    from ..decode.train import train_decoder

    config = contender_config(demo, name, seed=seed, device=device, epochs=epochs)
    result = train_decoder(cache, config, run, progress=progress)
    if result.test is None:
        raise Vis4merError(f"{run}: the task {demo.reference} has no test videos to judge by")
    return LongRangeScore(
        question=demo.question,
        tokens=demo.tokens,
        contender=name,
        seed=seed,
        correct=result.test.correct,
        total=result.test.total,
        epoch=result.epoch,
        num_parameters=result.num_parameters,
        seconds=result.seconds,
        run=str(run),
    )


def contender_config(
    demo: TokenDemo, name: str, *, seed: int, device: str = "auto", epochs: int | None = None
) -> TrainConfig:
    """The same training for every contender; epochs: None for those of TRAININGS. Windows are whole
    videos, so strides do not matter; in float32 on every device, as in the other demo."""
    from ..decode.config import DecoderConfig, OptimizerConfig, TrainConfig

    contender, training = find_contender(name), TRAININGS[demo.side]
    return TrainConfig(
        task=demo.reference,
        decoder=DecoderConfig(name=contender.decoder, options=contender.options),
        optimizer=OptimizerConfig(lr=training.learning_rate, warmup_epochs=1.0),
        tokens=demo.tokens,
        epochs=epochs or training.epochs,
        batch_size=training.batch_size,
        seed=seed,
        device=device,
        precision="float32",
    )
