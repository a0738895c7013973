"""LVU end to end at a small size: real annotation files, generated clips, all nine tasks.

    python benchmarks/lvu_shaped.py --annotations lvu_1.0 --out lvu-shaped

Cuts the annotation files to some videos, draws a clip for each (its real duration and an outro, a
coloured cell for every task that labels it, so that there is something to learn), and runs the
commands that a user would run, under both protocols: datasets check, extract, train-decoder with
several seeds, report. One video is left without a file. Prints what each command took.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from common import describe_machine
from vis4mer.demo.clips import encode_clip
from vis4mer.extract.annotations.lvu import read_lvu
from vis4mer.store.tasks import TaskTable

OUTRO_SECONDS = 10
CELL = 24  # pixels of a task's cell; nine cells make a picture of 72 × 72
PER_SPLIT = {"train": 3, "val": 1, "test": 2}


def choose_ids(tables: Sequence[TaskTable], *, count: int) -> list[str]:
    """Some videos of every task and split, those with many labels first."""
    labels: dict[str, int] = {}
    for table in tables:
        for row in table.rows:
            labels[row.id] = labels.get(row.id, 0) + 1
    chosen: dict[str, None] = {}
    for table in tables:
        for split, wanted in PER_SPLIT.items():
            rows = [row for row in table.rows if row.split == split]
            rows.sort(key=lambda row: (row.id not in chosen, -labels[row.id], row.id))
            for row in rows[:wanted]:
                chosen.setdefault(row.id)
    for video_id in sorted(labels, key=lambda name: (-labels[name], name)):
        if len(chosen) >= count:
            break
        chosen.setdefault(video_id)
    return list(chosen)


def cut_annotations(source: Path, target: Path, ids: Iterable[str]) -> None:
    """The same files with the rows of some videos alone."""
    kept = set(ids)
    for path in sorted(source.rglob("*.csv")):
        header, *lines = path.read_text().splitlines()
        if path.name == "lvu_durations.csv":
            lines = [line for line in lines if line.split(",")[0] in kept]
        else:
            lines = [line for line in lines if line.split()[-2] in kept]
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("\n".join([header, *lines]) + "\n")


def draw_clip(video_id: str, tables: Sequence[TaskTable], *, seconds: int) -> np.ndarray:
    """Frames uint8 (seconds, 72, 72, 3): the cell of a task shows its label as a colour."""
    seed = int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=4).digest(), "little")
    rng = np.random.default_rng(seed)
    picture = rng.integers(90, 130, (3 * CELL, 3 * CELL, 3)).astype(np.int64)  # H W 3
    for cell, table in enumerate(tables):
        for row in table.rows:
            if row.id == video_id:
                share = row.label / table.num_outputs if table.classes else row.label / 8 + 0.5
                colour = np.array([255 * share, 255 * (1 - share), 120])
                top, left = CELL * (cell // 3), CELL * (cell % 3)
                picture[top : top + CELL, left : left + CELL] = colour
    noise = rng.integers(-12, 13, (seconds, 1, 1, 3))  # T 1 1 3
    return np.clip(picture[None] + noise, 0, 255).astype(np.uint8)  # T H W 3


def run(*arguments: str | Path) -> float:
    """Run a command as a user would; seconds."""
    print("$ vis4mer", *arguments, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vis4mer", *map(str, arguments)])
    if done.returncode not in (0, 3):
        raise SystemExit(f"exit code {done.returncode}")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--annotations", type=Path, required=True, help="the folder lvu_1.0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60, help="videos")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224@64")
    parser.add_argument("--clean-tokens", default="60x4x4")
    parser.add_argument("--official-tokens", default="60x4x4+cls")
    options = parser.parse_args()
    whole = read_lvu(options.annotations)
    ids = choose_ids(whole.tables, count=options.count)
    annotations, videos = options.out / "lvu_1.0", options.out / "videos"
    cut_annotations(options.annotations, annotations, ids)
    videos.mkdir(parents=True, exist_ok=True)
    for video_id in ids[1:]:  # the first one is gone, as many are
        path = videos / f"{video_id}.mp4"
        if not path.exists():
            seconds = round(whole.durations.get(video_id, 90)) + OUTRO_SECONDS
            path.write_bytes(encode_clip(draw_clip(video_id, whole.tables, seconds=seconds)))
    tasks = ",".join(table.reference for table in read_lvu(annotations).tables)
    files = ("--annotations", annotations, "--videos", videos)
    seconds = {"check": run("datasets", "check", "lvu", *files)}
    runs = []
    for protocol, tokens in (
        ("clean", options.clean_tokens),
        ("official", options.official_tokens),
    ):
        cache = options.out / f"lvu-{protocol}.zarr"
        made_by = ("--backbone", options.backbone, "--weights", "random:0", "--protocol", protocol)
        common = ("extract", "--dataset", "lvu", *files, "--cache", cache, *made_by)
        seconds[f"{protocol} dry run"] = run(*common, "--dry-run")
        seconds[f"{protocol} extract"] = run(*common)
        runs.append(options.out / "runs" / protocol)
        seconds[f"{protocol} train"] = run(
            "train-decoder",
            *("--cache", cache, "--protocol", protocol, "--tokens", tokens),
            *("--task", tasks, "--seeds", str(options.seeds), "--epochs", str(options.epochs)),
            *("--set", "decoder.depth=2", "--run", runs[-1]),
        )
    report = options.out / "report"
    seconds["report"] = run("report", *runs, "--out", report, "--html", "--videos", videos)
    with (report / "report.csv").open(newline="") as file:
        print(f"{len(list(csv.reader(file)))} lines in {report / 'report.csv'}")
    print(json.dumps({"seconds": seconds, **describe_machine(["vis4mer", "torch", "av"])}))


if __name__ == "__main__":
    main()
