"""A SLURM array fills one cache while some of its tasks are killed and requeued.

    python benchmarks/slurm_array.py [--videos 300] [--tasks 20] [--at-once 4] [--kills 5] [--json]

No SLURM is needed: the script that `vis4mer slurm` prints is run by bash with the variables that
SLURM would set, a few tasks at a time. Now and then one that has videos in hand is killed with all
its processes (SIGKILL) and begun again after the others. Then: is each video present exactly once,
does every byte verify, is every value that of an undisturbed run, and what was encoded in vain?
What the killed had in hand, nothing can save; of the others no frame should be. Exit code 1 when
something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import describe_machine
from many_writers import FPS, values, write_videos
from vis4mer.store.cache import open_cache
from vis4mer.store.claims import list_claims
from vis4mer.store.errors import CacheFormatError
from vis4mer.store.gc import collect_garbage
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import read_worker

LOOK_SECONDS = 0.02
VIS4MER = (sys.executable, "-m", "vis4mer")


@dataclass
class Task:
    """A task of the array, at work. log: what it prints, a JSON summary at its end."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path


def begin(script: Path, number: int, tasks: int, restarts: int) -> Task:
    """A task as SLURM begins it, a session of its own, so that all of it can be killed."""
    environment = {
        **os.environ,
        **{"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": str(number)},
        **{"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": str(tasks)},
        **{"SLURM_ARRAY_TASK_COUNT": str(tasks), "SLURM_ARRAY_TASK_STEP": "1"},
        "SLURM_RESTART_COUNT": str(restarts),
    }
    log = script.with_name(f"{number}-{restarts}.json")
    with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            ["bash", str(script)], env=environment, stdout=out, stderr=err, start_new_session=True
        )
    return Task(number, process, log)


def in_hand(cache: Path) -> dict[int, list[str]]:
    """The videos that processes hold, by process group."""
    held: dict[int, list[str]] = {}
    for claim in list_claims(cache):
        try:
            worker = read_worker(cache, claim.worker)
            group = os.getpgid(worker.pid) if worker is not None else None
        except (CacheFormatError, ProcessLookupError):
            continue
        if group is not None and claim.id is not None:
            held.setdefault(group, []).append(claim.id)
    return held


def run_array(script: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All tasks to their end; what happened."""
    chance = random.Random(arguments.seed)
    started = time.monotonic()
    waiting = deque((number, 0) for number in range(1, arguments.tasks + 1))
    running: list[Task] = []
    ended: list[Task] = []
    lost: list[list[str]] = []
    next_kill = 0.0
    while waiting or running:
        while waiting and len(running) < arguments.at_once:
            number, restarts = waiting.popleft()
            running.append(begin(script, number, arguments.tasks, restarts))
        for task in [task for task in running if task.process.poll() is not None]:
            running.remove(task)
            ended.append(task)
        if len(lost) < arguments.kills and time.monotonic() >= next_kill:
            held = in_hand(cache)
            victims = [task for task in running if task.process.pid in held]
            if victims:
                victim = chance.choice(victims)
                os.killpg(victim.process.pid, signal.SIGKILL)
                victim.process.wait()
                running.remove(victim)
                lost.append(held[victim.process.pid])
                waiting.append((victim.number, 1 + int(victim.log.stem.partition("-")[2])))
                next_kill = time.monotonic() + chance.uniform(0.5, 1.5) * arguments.kill_seconds
        time.sleep(LOOK_SECONDS)
    return {"seconds": time.monotonic() - started, "ended": ended, "lost": lost}


def judge(cache_path: Path, reference: Path, run: dict[str, Any], frames: int) -> dict[str, Any]:
    """What the cache holds in the end, against an undisturbed run's, and what was in vain."""
    cache = open_cache(cache_path)
    expected, found = values(open_cache(reference)), values(cache)
    codes = [task.process.returncode for task in run["ended"]]
    summaries = [json.loads(task.log.read_text() or "{}") for task in run["ended"]]
    attempts = [each for each in cache_path.glob("videos/*/*") if each.is_dir()]
    garbage = collect_garbage(cache, grace_seconds=0)
    after = [each for each in cache_path.glob("videos/*/*") if each.is_dir()]
    extracted = [summary.get("extracted", 0) for summary in summaries]
    return {
        "seconds": round(run["seconds"], 1),
        "tasks that ended": len(codes),
        "ended with an error": sum(code != 0 for code in codes),
        "killed and requeued": len(run["lost"]),
        "in hand when killed": sum(map(len, run["lost"])),
        "videos": len(found),
        "missing": len(expected.keys() - found.keys()),
        "differing": sum(found[each] != expected[each] for each in found.keys() & expected.keys()),
        "problems": len(verify_cache(cache, "full").problems),
        "of the killed, kept": len(found) - sum(extracted),
        "tasks that extracted something": sum(count > 0 for count in extracted),
        "frames in vain, of tasks that ended": sum(s.get("frames", 0) for s in summaries)
        - frames * sum(extracted),
        "half-written, left by the killed": len(attempts) - len(after),
        "paths that gc removed": len(garbage.paths),
        "attempts beyond one a video": len(after) - len(found),
        "claims left": len(list(list_claims(cache_path))),
    }


def is_sound(found: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """Is everything there, once, and nothing lost but what the killed had in hand?"""
    zero = (
        *("ended with an error", "missing", "differing", "problems"),
        *("attempts beyond one a video", "claims left", "frames in vain, of tasks that ended"),
    )
    return (
        found["videos"] == arguments.videos
        and found["tasks that ended"] == arguments.tasks
        and found["killed and requeued"] == arguments.kills
        and found["half-written, left by the killed"] <= found["in hand when killed"]
        and not any(found[each] for each in zero)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kill-seconds", type=float, default=3.0, help="between kills, on average")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224@64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to write the cache; default a temporary folder")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        write_videos(folder / "videos", arguments.videos)
        cache, reference = folder / "array.zarr", folder / "alone.zarr"
        asked = [
            *(str(folder / "videos"), "--backbone", arguments.backbone, "--weights", "random:0"),
            *("--fps", str(FPS), "--workers", "1", "--batch-size", "4", "--json"),
        ]
        script = folder / "array.sh"
        printed = [*VIS4MER, "slurm", *asked, "--cache", str(cache), "--gpus", "0"]
        with script.open("wb") as out:
            subprocess.run([*printed, "--tasks", str(arguments.tasks)], stdout=out, check=True)
        alone = [*VIS4MER, "extract", *asked, "--cache", str(reference)]
        done = json.loads(subprocess.run(alone, stdout=subprocess.PIPE, check=True).stdout)
        run = run_array(script, cache, arguments)
        found = judge(cache, reference, run, done["frames"] // arguments.videos)
    machine = describe_machine(("torch", "numpy", "av"))
    if arguments.json:
        print(json.dumps({"machine": machine, "found": found}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        for name, value in found.items():
            print(f"{name:<36} {value}")
    sys.exit(not is_sound(found, arguments))


if __name__ == "__main__":
    main()
