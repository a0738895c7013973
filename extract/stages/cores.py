"""How much of this machine the process may use."""

from __future__ import annotations

import os
import re


def usable_cores() -> int:
    """CPU cores that this process may use, which a cluster or a container limits. Where SLURM does
    not bind its tasks to cores, what a task was given is known from its environment alone."""
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(given)) if re.fullmatch(r"[1-9][0-9]{0,5}", given) else cores
