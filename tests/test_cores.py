"""How many cores a process counts as its own."""

from __future__ import annotations

import os

import pytest
from vis4mer.extract.stages.cores import usable_cores


@pytest.mark.parametrize(
    ("given", "cores"),
    [(None, 8), ("3", 3), ("64", 8), ("0", 8), ("-1", 8), ("", 8), ("4x", 8)],
)
def test_what_the_cluster_gives_a_task_counts_where_it_does_not_bind_it(monkeypatch, given, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert usable_cores() == cores
