"""The demo over several seeds: accuracies of both decoders, and how long a fresh one takes.

    python benchmarks/demo.py --seeds 0,1,2 [--json]

Goals: S4 right on at least 90 % of the test clips, the mean of all tokens within two standard
errors of chance, under three minutes on two otherwise idle cores. CPU seconds say what remains of
the time when the machine has other things to do.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import describe_machine

GOAL_ACCURACY = 0.9
GOAL_SECONDS = 180.0

RUN = """
import sys
from pathlib import Path
from vis4mer.demo.videos import run_demo
import json
print(json.dumps(run_demo(Path(sys.argv[1]), seed=int(sys.argv[2])).to_json()))
"""


@dataclass(frozen=True)
class Outcome:
    """One seed's demo in a fresh process, imports included."""

    seed: int
    s4_correct: int
    floor_correct: int
    total: int
    seconds: float
    cpu_seconds: float
    stage_seconds: dict[str, float]

    @property
    def reached(self) -> dict[str, bool]:
        noise = 2 * math.sqrt(self.total) / 2  # two standard errors of a fair coin, in clips
        return {
            "s4": self.s4_correct >= GOAL_ACCURACY * self.total,
            "floor": abs(self.floor_correct - self.total / 2) <= noise,
            "seconds": self.seconds <= GOAL_SECONDS,
        }


def run_seed(seed: int, folder: Path) -> Outcome:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / f"seed{seed}"), str(seed)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    s4, floor = found["decoders"]
    return Outcome(
        seed=seed,
        s4_correct=s4["correct"],
        floor_correct=floor["correct"],
        total=s4["total"],
        seconds=seconds,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        stage_seconds=found["seconds"],
    )


def print_table(machine: dict[str, object], outcomes: list[Outcome]) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'seed':>4} {'S4':>8} {'mean':>8} {'seconds':>9} {'CPU s':>7}  stages")
    for o in outcomes:
        stages = ", ".join(f"{name} {value:.0f} s" for name, value in o.stage_seconds.items())
        missed = [goal for goal, ok in o.reached.items() if not ok]
        print(
            f"{o.seed:>4} {o.s4_correct:>5}/{o.total} {o.floor_correct:>5}/{o.total} "
            f"{o.seconds:>9.1f} {o.cpu_seconds:>7.1f}  {stages}"
            + (f"  MISSED: {', '.join(missed)}" if missed else "  ok")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    machine = describe_machine(("torch", "timm", "av"))
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [run_seed(int(seed), Path(folder)) for seed in arguments.seeds.split(",")]
    if arguments.json:
        print(json.dumps({"machine": machine, "outcomes": [asdict(o) for o in outcomes]}, indent=2))
    else:
        print_table(machine, outcomes)


if __name__ == "__main__":
    main()
