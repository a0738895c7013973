"""`vis4mer slurm`: a script that bash takes, and that does what it says without any SLURM."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media
import pytest
from ray_backbone import BATCH_SECONDS
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.cache import open_cache

pytestmark = pytest.mark.timeout(120)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PAGE = Path(__file__).parent.parent / "docs" / "clusters.md"
NASTY = "my $(touch owned) `x` 'videos'; \"é\""


def run(*arguments: object):
    return CliRunner().invoke(app, ["slurm", *map(str, arguments)])


def script(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def header(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line[:8]]


def test_the_header_has_what_was_asked_for():
    text = script(
        *("v.csv", "--cache", "c.zarr", "--tasks", 20, "--time", "4:00:00", "--gpus", 2),
        *("--cpus", 12, "--mem", "64G", "--partition", "gpu", "--account", "lab.x"),
    )
    lines = header(text)
    for line in (
        *("--array=1-20", "--time=4:00:00", "--gpus-per-node=2", "--cpus-per-task=12"),
        *("--mem=64G", "--partition=gpu", "--account=lab.x", "--requeue", "--signal=B:TERM@60"),
    ):
        assert line in lines
    assert text.startswith("#!/bin/bash\n")
    # Header lines after the first command are not read.
    assert max(text.rindex("#SBATCH"), 0) < text.index("\ncd ")
    assert "--engine local" in text
    plain = script("v.csv", "--cache", "c.zarr", "--gpus", 0)
    assert "gpus" not in plain
    assert "--engine" not in plain
    assert not [line for line in header(plain) if "partition" in line or "account" in line]


def test_the_command_says_what_was_said():
    words = [NASTY, "--cache", "a b.zarr", "--ids=-x.mp4", "--task", "scene", "--fps", "2"]
    text = script("--tasks", 3, *words)
    (line,) = (line for line in text.splitlines() if " extract " in line)
    said = shlex.split(line.removesuffix(" &"))
    assert said[0] == sys.executable
    assert said[3:] == ["vis4mer", "extract", "--worker", "slurm", *words]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus", "3"], "--bogus"),
        (["--fps", "fast"], "--fps"),
        (["--worker", "1/2"], "--worker: the script says it itself"),
        (["--engine", "inline"], "--engine"),
        (["--time", "soon"], "--time 'soon'"),
        (["--time", "4:59"], "--time 4:59: a task would be told to stop"),
        (["--mem", "much"], "--mem 'much'"),
        (["--partition", "a\n#SBATCH --exclusive"], "--partition"),
        (["--account", "a b"], "--account 'a b'"),
        (["--tasks", "0"], "--tasks"),
        (["--overwrite"], "--overwrite: each task would replace what the others have just made"),
        (["--retry-failed"], "--retry-failed: each task would try them again"),
        (["--limit", "0"], "--limit: each task would count for itself"),
        (["--profile", "p.json"], "--profile: all tasks would write the one file"),
        (["--dry-run"], "--dry-run: the tasks would do nothing"),
    ],
)
def test_what_would_fail_in_the_queue_fails_here(arguments, words):
    result = run("v.csv", "--cache", "c.zarr", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize("time", ["0", "5", "5:00", "0:05:00", "0-0:05", "1-0"])
def test_a_time_that_is_long_enough(time):
    assert f"--time={time}" in header(script("v.csv", "--cache", "c.zarr", "--time", time))


def test_an_array_of_no_videos_is_refused():
    result = run("--cache", "c.zarr", "--tasks", 3)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no videos named" in result.stderr
    assert run("--cache", "c.zarr", "--dataset", "lvu").exit_code == 0


def test_an_array_that_fills_a_cache_elsewhere_is_refused():
    result = run("v.csv", "--cache", "s3://b/c.zarr")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "an extraction fills a directory here" in result.stderr


def test_a_name_that_begins_with_a_dash_is_passed_on():
    text = script("--cache", "c.zarr", "--tasks", 3, "--", "-odd.mp4", "--limit")
    (line,) = (line for line in text.splitlines() if " extract " in line)
    said = shlex.split(line.removesuffix(" &"))
    assert said[6:] == ["--worker", "slurm", "--cache", "c.zarr", "--", "-odd.mp4", "--limit"][1:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a user stands who likes unusual names."""
    where = tmp_path / NASTY.replace("/", "")
    where.mkdir()
    return where


def scontrol(folder: Path) -> Path:
    """A folder of tools, with one of this name that writes down what it is told, and shows of a job
    what is in the file `job`."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "job").touch()
    tool = tools / "scontrol"
    tool.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(tools))}\n"
        '[ "$1 $2" = "show job" ] && exec cat job\necho "$@" >> told\n'
    )
    tool.chmod(0o755)
    return tools


def begin(text: str, folder: Path, task: int, tasks: int = 3) -> subprocess.Popen[str]:
    """A task as SLURM begins it, in another folder."""
    path = folder.parent / "array.sh"
    path.write_text(text)
    environment = {
        **os.environ,
        **{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)},
        **{"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": str(tasks)},
        "PATH": f"{scontrol(folder)}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        ["bash", str(path)],
        env=environment,
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(folder: Path) -> list[str]:
    path = folder.parent / "tools" / "told"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stand_in(folder: Path, monkeypatch) -> Path:
    """Instead of Python a program that notes where and with what it is called, sleeps until it is
    told to end, and ends with the exit code in `code`."""
    program, notes = folder.parent / "python", shlex.quote(str(folder.parent))
    program.write_text(
        f'#!/bin/bash\ncd {notes} && printf \'%s\\n\' "$OLDPWD" "$@" > called\n'
        "trap 'kill $!; exit $(cat code)' TERM\nsleep 60 &\ntouch ready\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.chdir(folder)
    return folder.parent


@pytest.mark.parametrize(
    ("code", "requeued"), [(1, True), (143, True), (0, False), (3, False)], ids=str
)
def test_a_signal_is_passed_on_and_what_was_stopped_is_requeued(stand_in, folder, code, requeued):
    text = script(NASTY, "--cache", "c.zarr", "--gpus", 0)
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=True)
    assert not checked.stderr
    (stand_in / "code").write_text(str(code))
    task = begin(text, folder, 2)
    wait_for((stand_in / "ready").exists)
    task.send_signal(signal.SIGTERM)
    task.communicate(timeout=60)
    assert task.returncode == code
    assert told(folder) == (["requeue 77_2"] if requeued else [])
    asked = ["-P", "-m", "vis4mer", "extract", "--worker", "slurm", NASTY, "--cache", "c.zarr"]
    assert (stand_in / "called").read_text().splitlines() == [str(folder), *asked]
    assert not list(stand_in.rglob("owned"))


# As SLURM 22.05 shows a job while its script handles the signal.
SHOWN = """JobId={number} ArrayJobId=77 ArrayTaskId=2 JobName=vis4mer-extract
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=2026-11-21T19:56:53 EndTime=2026-11-21T19:57:01 Deadline=N/A
{more}   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-21T19:56:53 Scheduler=Main
"""
PREEMPTED = "   PreemptEligibleTime=2026-11-21T19:56:53 PreemptTime=2026-11-21T19:57:01\n"
ELIGIBLE = "   PreemptEligibleTime=2026-11-21T19:56:53 PreemptTime=None\n"


@pytest.mark.parametrize(
    ("state", "reason", "more", "requeued"),
    [
        pytest.param("RUNNING", "None", "", True, id="told by hand"),
        pytest.param("SIGNALING", "None", ELIGIBLE, True, id="told before its time ends"),
        pytest.param("COMPLETING", "TimeLimit", "", True, id="at the end of its time"),
        pytest.param("COMPLETING", "None", PREEMPTED, True, id="a preemption that cancels"),
        pytest.param("COMPLETING", "None", "", False, id="cancelled, or requeued by SLURM"),
        pytest.param("COMPLETING", "None", ELIGIBLE, False, id="cancelled where preemption is"),
        pytest.param("CANCELLED", "None", "", False, id="cancelled"),
    ],
)
def test_a_task_that_is_cancelled_does_not_come_back(
    stand_in, folder, state, reason, more, requeued
):
    (stand_in / "code").write_text("1")
    task = begin(script(NASTY, "--cache", "c.zarr", "--gpus", 0), folder, 2)
    wait_for((stand_in / "ready").exists)
    shown = SHOWN.format(number=78, state=state, reason=reason, more=more)
    (stand_in / "tools" / "job").write_text(shown)
    task.send_signal(signal.SIGTERM)
    task.communicate(timeout=60)
    assert task.returncode == 1
    assert told(folder) == (["requeue 77_2"] if requeued else [])


def test_a_signal_that_comes_before_there_is_anybody_to_hear_it(stand_in, folder):
    text = script(NASTY, "--cache", "c.zarr", "--gpus", 0)
    (stand_in / "code").write_text("1")
    # The shell gets it between the two commands.
    text = text.replace("\nextract=$!\n", "\nkill -TERM $$\nextract=$!\n")
    task = begin(text, folder, 2)
    task.communicate(timeout=30)
    assert task.returncode in (1, 143)
    assert told(folder) == ["requeue 77_2"]


def wait_for(what: Callable[[], Any]) -> Any:
    """What it gives, as soon as that is something."""
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
    return found


def test_an_error_is_the_tasks_exit_code_and_not_requeued(stand_in, folder):
    (stand_in / "python").write_text("#!/bin/bash\necho 'error: --fps' >&2\nexit 2\n")
    task = begin(script(NASTY, "--cache", "c.zarr", "--gpus", 0), folder, 1)
    _, err = task.communicate(timeout=60)
    assert (task.returncode, err) == (2, "error: --fps\n")
    assert not told(folder)


def test_the_page_says_commands_that_are_there():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    commands = re.findall(r"vis4mer ((?:cache )?[a-z][a-z-]+)(.*)", text)
    assert len(commands) >= 8
    for name, rest in commands:
        options = set(re.findall(r"--[a-z][a-z-]+", rest.partition("#")[0]))
        names = ["extract", "slurm"] if name == "slurm" else [name]
        known = "".join(CliRunner().invoke(app, [*each.split(), "--help"]).stdout for each in names)
        assert not {option for option in options if option not in known}, (name, rest)


def test_an_array_of_which_tasks_are_stopped_and_killed_fills_the_cache_once(folder, monkeypatch):
    """Two tasks: one is preempted, one is killed with all its processes, one goes on alone."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(scontrol(folder)), prepend=os.pathsep)
    monkeypatch.chdir(folder)
    array = importlib.import_module("slurm_array")
    (folder / NASTY).mkdir()
    for i in range(12):
        media.write_clip(folder / NASTY / f"{i}.mp4", num_frames=20)
    asked = [
        *(NASTY, "--backbone", "ray_backbone:slow_grey", "--weights", "random:0", "--fps", "5"),
        *("--workers", "1", "--batch-size", "10", "--json"),
    ]
    alone, cache, path = folder / "alone.zarr", folder / "array.zarr", folder.parent / "array.sh"
    monkeypatch.setenv(BATCH_SECONDS, "0")
    result = CliRunner().invoke(app, ["extract", *asked, "--cache", str(alone)])
    assert result.exit_code == 0, result.output
    path.write_text(script(*asked, "--cache", "array.zarr", "--tasks", 2, "--gpus", 0))

    monkeypatch.setenv(BATCH_SECONDS, "0.5")  # the second begins before the first is done
    preempted, killed = (array.begin(path, number, 2, 0) for number in (1, 2))
    hands = wait_for(lambda: len(held := array.in_hand(cache)) == 2 and held)
    preempted.process.send_signal(signal.SIGTERM)
    os.killpg(killed.process.pid, signal.SIGKILL)
    assert preempted.process.wait(60) == 1
    assert json.loads(preempted.log.read_text())["interrupted"]
    assert told(folder) == ["requeue 1_1"]
    assert killed.process.wait(60) == -signal.SIGKILL
    left = array.in_hand(cache)
    assert left.keys() <= {killed.process.pid}  # nothing of the other's
    assert len(open_cache(cache).ids()) < 12

    monkeypatch.setenv(BATCH_SECONDS, "0")
    again = array.begin(path, 1, 2, 1)  # and nobody in the place of the second
    assert again.process.wait(60) == 0, again.log.with_suffix(".err").read_text()
    run = {"seconds": 0.0, "ended": [preempted, again], "lost": [hands[killed.process.pid]]}
    found = array.judge(cache, alone, run, frames=10)
    for each in ("missing", "differing", "problems", "attempts beyond one a video", "claims left"):
        assert found[each] == 0, (each, found)
    assert (found["videos"], found["ended with an error"]) == (12, 1)
    assert told(folder) == ["requeue 1_1"]
    assert not list(folder.parent.rglob("owned"))
