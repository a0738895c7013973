"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
MODULE_SCOPE = 'fixture(scope="module"'

# Tests run many tiny operations, often several processes at once: a pool of threads that spin for
# work would take the time from those that have some.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # to the processes that tests begin


def say_it_is_flushed(fd: int) -> None:
    """In place of `os.fsync`, which tests call some hundred thousand times: on a busy disk they
    would wait for it half of the time, and what a disk keeps when the power fails none can see.
    Those that are about flushing count its calls, or let it fail."""
    os.fstat(fd)  # refuses, as it does, what is no open file


os.fsync = say_it_is_flushed


@pytest.fixture(autouse=True)
def one_thread_is_left() -> Iterator[None]:
    """A test that leaves more would slow down all that follow it in its process."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"{left} threads of torch are left to the next test; set them back"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run tests, those of a file that makes something for all of them run
    in one, so that it is made once; others are dealt out one by one."""
    from xdist.scheduler import LoadScopeScheduling

    sharing = {path.name for path in HERE.glob("test_*.py") if MODULE_SCOPE in path.read_text()}

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return file if Path(file).name in sharing else nodeid.partition("[")[0]

    return Scheduling(config, log)
