"""The script of a SLURM array that `vis4mer slurm` prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArrayScript:
    """What the script is to ask for, and to run. Each task is one job on one node.

    command: as it is typed, relative paths from `folder`. time, memory: as sbatch takes them.
    """

    command: Sequence[str]
    folder: str
    tasks: int
    gpus: int
    cpus: int
    memory: str
    time: str
    partition: str | None = None
    account: str | None = None


def array_script(script: ArrayScript) -> str:
    """The whole file. What a shell reads of it is quoted, whatever is in its names."""
    return f"{_HEAD}{_header(script)}{_body(script)}"


def _header(script: ArrayScript) -> str:
    lines = [
        f"--array=1-{script.tasks}",
        "--job-name=vis4mer-extract",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={script.cpus}",
        f"--mem={script.memory}",
        f"--time={script.time}",
    ]
    lines += [f"--gpus-per-node={script.gpus}"] if script.gpus else []
    lines += [f"--partition={script.partition}"] if script.partition else []
    lines += [f"--account={script.account}"] if script.account else []
    lines += [
        "--requeue",
        f"--signal=B:TERM@{GRACE_SECONDS}",
        "--output=vis4mer-%A_%a.log",
        "--open-mode=append",
    ]
    return "".join(f"#SBATCH {line}\n" for line in lines)


def _body(script: ArrayScript) -> str:
    return _BODY.format(folder=shlex.quote(script.folder), command=shlex.join(script.command))


GRACE_SECONDS = 60  # before the end of a task's time

_HEAD = """\
#!/bin/bash
# Edit what your cluster wants otherwise, then: sbatch FILE
#   --array=1-N%K      at most K tasks at once
#   --time             a task that comes to its end is requeued and goes on; nothing is lost
#   --output           where the logs go: %A is the job, %a the task
"""

_BODY = """
# What else the node needs, such as `module load`, goes here.
cd -- {folder} || exit 2
task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"

# Is it for this script to put the task back into the queue? Not when SLURM is ending it for another
# reason than its time or a preemption that cancels: it was cancelled, or SLURM puts it back.
goes_back() {{
    case $(scontrol show job "$task") in
    *Reason=TimeLimit* | *PreemptTime=[0-9]*) return 0 ;;
    *JobState=*COMPLETING* | *JobState=CANCELLED*) return 1 ;;
    esac
}}

# A signal, at preemption or before the end of the time, is passed on to the extraction, which then
# finishes what it has read and lets go of the rest.
stopped=no
extract=
trap 'stopped=yes; kill -TERM "$extract" 2>/dev/null' TERM

# Each task begins with a share of its own and then helps the others; each video is encoded once.
{command} &
extract=$!
if [ "$stopped" = yes ]; then  # a signal that came before there was anybody to pass it on to
    kill -TERM "$extract" 2>/dev/null
fi
while wait "$extract"; status=$?; kill -0 "$extract" 2>/dev/null; do
    :  # the signal has ended `wait`, and the extraction not yet
done

# Exit codes: 0 done, 3 done but for videos that cannot be read, 1 stopped or failed, 2 a wrong
# option. A task that was stopped goes back to the queue, and one that was cancelled does not.
if [ "$stopped" = yes ] && [ "$status" -ne 0 ] && [ "$status" -ne 3 ] && goes_back; then
    scontrol requeue "$task"
fi
exit "$status"
"""
