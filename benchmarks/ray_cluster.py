"""A Ray cluster on one machine fills a cache, while a worker is killed, a machine lost, one added.

    python benchmarks/ray_cluster.py [--videos 120] [--nodes 4] [--seconds 1.0] [--json]

Every node is a Ray node of its own with one GPU that is only declared, so that each gets one
worker, which computes on the CPU. At a tenth of the videos a node joins, at a fifth a worker is
killed (SIGKILL), and at three fifths a node is lost with its worker. Then: is each video present
exactly once, does every byte verify, is every value that of an undisturbed run in one process, and
what was in the hands of those that died? A batch is slowed down so that there is always something
in hand. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import describe_machine
from many_writers import BACKBONE, FPS, values, write_videos
from torch import Tensor, nn
from vis4mer.extract.backbones.loading import load_backbone
from vis4mer.extract.backbones.plugins import PluginBackbone
from vis4mer.extract.engines.base import EngineOptions, engine_named
from vis4mer.extract.request import ExtractRequest
from vis4mer.extract.stages.progress import ExtractProgress, ExtractSummary
from vis4mer.store.cache import open_cache
from vis4mer.store.claims import list_claims
from vis4mer.store.gc import collect_garbage
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import Worker, list_workers, read_worker

SLOWNESS = "VIS4MER_BATCH_SECONDS"


class Slow(nn.Module):
    """A backbone that takes so long for a batch."""

    def __init__(self, module: nn.Module, seconds: float) -> None:
        super().__init__()
        self.module = module
        self.seconds = seconds

    def forward(self, pixels: Tensor) -> Tensor:
        time.sleep(self.seconds)
        tokens: Tensor = self.module(pixels)
        return tokens


def slow_backbone(*_: object) -> PluginBackbone:
    """The plug-in that every worker loads."""
    loaded = load_backbone(BACKBONE, weights="random:0", device="cpu")
    return PluginBackbone(
        module=Slow(loaded.module, float(os.environ.get(SLOWNESS, "0"))),
        preprocess=loaded.preprocess,
        grid=loaded.grid,
        num_prefix=loaded.num_prefix,
        dim=loaded.dim,
    )


@dataclass
class Disturbance:
    """What happens to the cluster when so many videos are there: (share of all, what)."""

    cache: Path
    plan: list[tuple[float, Callable[[], object]]]
    seen: set[int] = field(default_factory=set)
    killed: list[int] = field(default_factory=list)
    in_hand: int = 0

    def __call__(self, progress: ExtractProgress) -> None:
        self.seen |= {worker.pid for worker in self.workers()}
        while self.plan and progress.extracted >= self.plan[0][0] * progress.num_videos:
            self.plan.pop(0)[1]()

    def workers(self) -> list[Worker]:
        """Those that have something in hand, or had a moment ago."""
        found = []
        for token in list_workers(self.cache):
            with contextlib.suppress(ValueError):  # as CacheFormatError is
                worker = read_worker(self.cache, token)
                found += [worker] if worker is not None and not worker.is_gone else []
        return found

    def kill_worker(self) -> None:
        holding = {claim.worker for claim in list_claims(self.cache)}
        victim = next(worker for worker in self.workers() if worker.token in holding)
        self.in_hand += sum(claim.worker == victim.token for claim in list_claims(self.cache))
        os.kill(victim.pid, signal.SIGKILL)
        self.killed.append(victim.pid)


def run_disturbed(asked: ExtractRequest, nodes: int, notes: list[str]) -> dict[str, Any]:
    """Extract on a cluster to which things happen; what was seen of it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    try:
        made = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(nodes)]
        disturbance = Disturbance(Path(asked.cache_path), [])
        disturbance.plan += [
            (0.10, lambda: cluster.add_node(wait=False, num_cpus=1, num_gpus=1)),
            (0.20, disturbance.kill_worker),
            (0.60, lambda: cluster.remove_node(made[0], allow_graceful=False)),
        ]
        summary = engine_named("ray")(
            asked,
            options=EngineOptions(address=cluster.address),
            progress=disturbance,
            on_note=notes.append,
        )
    finally:
        cluster.shutdown()
    return {
        "summary": summary,
        "worker processes": len(disturbance.seen),
        "killed": len(disturbance.killed),
        "in hand of the killed": disturbance.in_hand,
        "not done of the plan": len(disturbance.plan),
    }


@contextlib.contextmanager
def stdout_for_people() -> Iterator[None]:
    """What Ray's processes print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def judge(path: Path, reference: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What the cache holds in the end, against an undisturbed run's, and what was in vain."""
    cache, summary = open_cache(path), run.pop("summary")
    assert isinstance(summary, ExtractSummary)
    expected, found = values(open_cache(reference)), values(cache)
    frames = sum(cache.record(name).num_frames for name in found)
    claims = len(list(list_claims(path)))
    garbage = collect_garbage(cache, grace_seconds=0)
    attempts = [each for each in path.glob("videos/*/*") if each.is_dir()]
    return {
        "seconds": round(summary.seconds, 1),
        **run,
        "videos": len(found),
        "extracted": summary.extracted,
        "there by one that died": summary.already_there,
        "missing": len(expected.keys() - found.keys()),
        "differing": sum(found[each] != expected[each] for each in found.keys() & expected.keys()),
        "problems": len(verify_cache(cache, "full").problems),
        "failed": len(summary.failures),
        "left": summary.left,
        "frames in the cache": frames,
        "frames told of": summary.frames,  # by those that died, until their last word
        "attempts beyond one a video": len(attempts) - len(found),
        "paths that gc removed": len(garbage.paths),
        "claims left": claims,
    }


def is_sound(found: dict[str, Any], num_videos: int) -> bool:
    """Is everything there, once, and as it should be, and did everything happen?"""
    zero = ("missing", "differing", "problems", "failed", "left", "claims left")
    zero = (*zero, "attempts beyond one a video", "not done of the plan")
    return found["videos"] == num_videos and not any(found[each] for each in zero)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a batch takes at least")
    parser.add_argument("--folder", help="where to write the cache; default a temporary folder")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        write_videos(folder / "videos", arguments.videos)
        asked = ExtractRequest(
            inputs=[str(folder / "videos")],
            cache=folder / "alone.zarr",
            backbone="ray_cluster:slow_backbone",
            weights="random:0",
            device="auto",
            fps=FPS,
            batch_size=8,
            workers=1,
        )
        engine_named("inline")(asked, options=EngineOptions())
        os.environ[SLOWNESS] = str(arguments.seconds)
        notes: list[str] = []
        disturbed = ExtractRequest(**{**vars(asked), "cache": folder / "ray.zarr"})
        with stdout_for_people():
            run = run_disturbed(disturbed, arguments.nodes, notes)
        found = judge(folder / "ray.zarr", folder / "alone.zarr", run)
    machine = describe_machine(("ray", "torch", "numpy", "av"))
    if arguments.json:
        print(json.dumps({"machine": machine, "found": found, "notes": notes}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        for name, value in found.items():
            print(f"{name:<28} {value}")
        print("\n".join(notes))
    sys.exit(not is_sound(found, arguments.videos))


if __name__ == "__main__":
    main()
