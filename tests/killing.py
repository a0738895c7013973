"""`kill -9` at every touch of the file system, for whatever must survive it."""

from __future__ import annotations

import os
import signal
import sys

TOUCHES = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.scandir")


def in_child(work) -> int:
    """Run `work` in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = work() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(moment: int) -> None:
    """From now on, die at the `moment`-th touch of the file system."""
    left = [moment]

    def hook(event, _):
        if event in TOUCHES:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_everywhere(work):
    """Run `work` in processes killed at the first touch, the second …; yields after each."""
    for moment in range(1, 500):

        def run(moment=moment):
            kill_at(moment)
            work()

        status = in_child(run)
        assert status in (0, -signal.SIGKILL)
        yield moment
        if status == 0:
            return
    raise AssertionError("the work never came to its end")
