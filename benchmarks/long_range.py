"""Which decoders can tell what lies in the order of tokens alone: three questions, three lengths.

    python benchmarks/long_range.py FOLDER [--tokens 60x1x1,60x4x4] [--questions order] [--table]

Every contender of `vis4mer demo --dataset` on order, count and match: three seeds at 60 and 960
tokens, one at 11,760. Each finished run is a line of FOLDER/results.jsonl, and the same command
goes on after the last one. A run that would take more than --limit seconds is given up as soon as
its first steps say so, and named. --table prints what is there, as Markdown, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import describe_machine
from vis4mer.demo.long_range import (
    CONTENDERS,
    LEFT_OUT,
    TRAININGS,
    LongRangeScore,
    LongRangeSetting,
    cache_path,
    demo_for,
    run_path,
    train_contender,
)
from vis4mer.demo.tokens import CLASSES, Question, write_token_demo

if TYPE_CHECKING:
    from vis4mer.decode.training.progress import TrainProgress

SEEDS = {"60x1x1": (0, 1, 2), "60x4x4": (0, 1, 2), "60x14x14": (0,)}
LIMIT_SECONDS = 600.0
FIRST_SECONDS = 15.0  # of steps, before the rest of a run is judged by them
CERTAIN = 1.5  # times the limit: what they must foretell before a run is given up


@dataclass(frozen=True)
class Key:
    """One run."""

    question: Question
    tokens: str
    contender: str
    seed: int


class TooSlowError(Exception):
    """A run that would take longer than it may; says how long."""


class Deadline:
    """Progress of one run that is stopped when it is, or is foretold to be, too slow."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._began = time.monotonic()
        self._mark: tuple[float, int] | None = None  # when it was first told of steps, and how many

    def tell(self, progress: TrainProgress) -> None:
        now = time.monotonic()
        if now - self._began > self._limit:
            raise TooSlowError(
                f"stopped after {now - self._began:.0f} s, in epoch {progress.epoch} of "
                f"{progress.epochs}"
            )
        if progress.phase != "train" or not progress.total or progress.finished is not None:
            return
        steps = (progress.epoch - 1) * progress.total + progress.done
        if self._mark is None:  # what is done once, before the first steps, foretells nothing
            self._mark = now, steps
        since, done = now - self._mark[0], steps - self._mark[1]
        if since < FIRST_SECONDS or not done:
            return
        left = progress.epochs * progress.total - steps
        foretold = now - self._began + since / done * left
        if foretold > CERTAIN * self._limit:
            raise TooSlowError(f"would take about {foretold:.0f} s")


def keys(options: argparse.Namespace) -> Iterator[Key]:
    """Short ones first, so that a table is soon complete."""
    for tokens in options.tokens:
        for question in options.questions:
            for contender in options.decoders:
                for seed in SEEDS[tokens] if options.seeds is None else options.seeds:
                    yield Key(question, tokens, contender, seed)


def read_rows(file: Path) -> dict[Key, dict[str, Any]]:
    """The last row of each run; a line that a crash has torn is none."""
    rows = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            rows[Key(row["question"], row["tokens"], row["contender"], row["seed"])] = row
        except (ValueError, KeyError):
            print(f"{file}: a line is no row, and its run is done again", file=sys.stderr)
    return rows


def do(key: Key, folder: Path, *, device: str, limit: float) -> dict[str, Any]:
    """The row of a run: its score, or why it was skipped."""
    from vis4mer.decode.training.learner import DivergedError

    demo = demo_for(key.question, tokens=key.tokens)
    cache = write_token_demo(cache_path(folder, demo), demo)
    row: dict[str, Any] = {**asdict(key), "device": device}
    try:
        score = train_contender(
            cache,
            demo,
            key.contender,
            run=run_path(folder, demo, key.contender, seed=key.seed),
            seed=key.seed,
            device=device,
            progress=Deadline(limit).tell,
        )
    except (TooSlowError, DivergedError) as error:
        return {**row, "skipped": str(error)}
    return {**row, **asdict(score)}


def settings(rows: dict[Key, dict[str, Any]]) -> dict[tuple[str, str, str], LongRangeSetting]:
    """By tokens, contender and question."""
    grouped: dict[tuple[str, str, str], list[LongRangeScore]] = defaultdict(list)
    fields = LongRangeScore.__dataclass_fields__
    for key, row in rows.items():
        if "skipped" not in row:
            score = LongRangeScore(**{name: row[name] for name in fields})
            grouped[key.tokens, key.contender, key.question].append(score)
    return {
        place: LongRangeSetting(scores=tuple(scores), chance=1 / len(CLASSES[scores[0].question]))
        for place, scores in grouped.items()
    }


def print_markdown(rows: dict[Key, dict[str, Any]]) -> None:
    found = settings(rows)
    for tokens in SEEDS:
        contenders = [c for c in CONTENDERS if any((tokens, c, q) in found for q in CLASSES)]
        if not contenders:
            continue
        training = TRAININGS[demo_for("order", tokens=tokens).side]
        print(
            f"\n`{tokens}`: test accuracy in percent, mean ± standard deviation over seeds; "
            f"{training.num_videos['train']} videos, {training.epochs} epochs, batches of "
            f"{training.batch_size}, learning rate {training.learning_rate:g}\n"
        )
        print("| decoder | parameters | " + " | ".join(CLASSES) + " | seconds a run |")
        print("|---|" + "---|" * (len(CLASSES) + 2))
        chances = " | ".join(f"{100 / len(classes):.0f}" for classes in CLASSES.values())
        print(f"| *chance* | | {chances} | |")
        for contender in contenders:
            cells = [found.get((tokens, contender, question)) for question in CLASSES]
            there = [cell for cell in cells if cell is not None]
            seconds = sum(cell.seconds for cell in there) / len(there)
            size = f"{there[0].first.num_parameters:,}"
            figures = " | ".join(map(figure, cells))
            print(f"| `{contender}` | {size} | {figures} | {seconds:.0f} |")
    print("\nSkipped:\n")
    for name, why in LEFT_OUT.items():
        print(f"- `{name}`: {why}")
    for key, row in rows.items():
        if "skipped" in row:
            place = f"{key.question}, {key.tokens}, seed {key.seed}"
            print(f"- `{key.contender}` ({place}): {row['skipped']}")


def figure(setting: LongRangeSetting | None) -> str:
    """Such as `93.2 ± 1.4`; one seed has no deviation."""
    if setting is None:
        return "–"
    accuracy = setting.accuracy
    deviation = "" if accuracy.std is None else f" ± {100 * accuracy.std:.1f}"
    return f"{100 * accuracy.mean:.1f}{deviation}"


def names(choices: Sequence[str]) -> Any:
    """A parser of lists with commas, each of `choices`."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in choices]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(choices)}")
        return chosen

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=names(list(SEEDS)), default=list(SEEDS))
    parser.add_argument("--questions", type=names(list(CLASSES)), default=list(CLASSES))
    parser.add_argument("--decoders", type=names(list(CONTENDERS)), default=list(CONTENDERS))
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds a run")
    parser.add_argument("--retry", action="store_true", help="runs that were skipped, too")
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded, which is later
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "results.jsonl"
    rows = read_rows(file)
    # Whole lines again, so that the next one does not go on where a crash has torn the last.
    file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    for key in () if options.table else keys(options):
        if key in rows and not (options.retry and "skipped" in rows[key]):
            continue
        row = do(key, options.folder, device=options.device, limit=options.limit)
        rows[key] = row
        with file.open("a") as results:
            results.write(json.dumps(row) + "\n")
        said = row.get("skipped") or f"{row['correct']}/{row['total']}, {row['seconds']:.0f} s"
        print(f"{key.question} {key.tokens} {key.contender} seed {key.seed}: {said}", flush=True)
    print(", ".join(f"{name} {value}" for name, value in describe_machine(("torch",)).items()))
    print_markdown(rows)


if __name__ == "__main__":
    main()
