"""Training processes killed with SIGKILL: the same command goes on and ends as if uninterrupted."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from caches import make_cache
from vis4mer.decode.runs.checkpoints import read_checkpoint
from vis4mer.decode.runs.run import lock_run, open_run
from vis4mer.decode.runs.runlog import OF_THE_CLOCK
from vis4mer.store.errors import Vis4merError

# Trains once for every line on stdin, [cache, run, signal, moment] as JSON, each time in a process
# of its own that sends itself the signal at that moment: a step ("train 1 2"), or the instant
# before a file is renamed into its place ("replace config.json"). Answers with a line: the exit
# status, or "stopped" and then, after one more line, the status of the process killed. Forking
# saves importing torch anew.
SERVER = """
import json, os, signal, sys
from pathlib import Path
import torch
from vis4mer.decode.config import load_config
from vis4mer.decode.train import train_decoder
from vis4mer.store.cache import open_cache
import matplotlib.figure, matplotlib.backends.backend_agg
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports half of torch, once for all
config = load_config(flags={
    "task": "toy/label", "epochs": 4, "window_seconds": 4, "batch_size": 4, "device": "cpu",
    "optimizer.lr": 0.01, "decoder.depth": 1, "decoder.state_size": 4,
})

def train(cache, run, signal_name, moment):
    def now(what):
        if what == moment:
            os.kill(os.getpid(), getattr(signal, signal_name))
    replace = Path.replace
    def replacing(path, target):
        now(f"replace {Path(target).name}")
        return replace(path, target)
    Path.replace = replacing
    tell = lambda r: now(f"{r.phase} {r.epoch} {r.done}")
    train_decoder(open_cache(cache), config, Path(run), progress=tell)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(*json.loads(line))
            status = 0
        finally:
            os._exit(status)
    # Somebody else may stop it for a while; that counts only where it is to stop itself.
    _, status = os.waitpid(child, os.WUNTRACED if "SIGSTOP" in line else 0)
    if os.WIFSTOPPED(status):
        print("stopped", flush=True)
        sys.stdin.readline()
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Trainer:
    """Trains a toy task in processes that are interrupted when and how it is told."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def close(self):
        self._server.communicate()  # no more lines: it ends

    def train(self, cache, run, *, send="SIGKILL", at="never"):
        """The exit status, or "stopped" after a SIGSTOP."""
        return self._say(json.dumps([str(cache), str(run), send, at]))

    def kill_stopped(self):
        """The exit status of the process that stopped."""
        return self._say("")

    def _say(self, line):
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()


KILLED = str(-signal.SIGKILL)


@pytest.fixture(scope="module")
def trainer():
    one = Trainer()
    yield one
    one.close()


def state(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(x).items() if k not in OF_THE_CLOCK} for x in lines]
    return read_checkpoint(run / "last.safetensors").tensors, metrics


def test_training_goes_on_after_kill_9(tmp_path, trainer):
    cache = make_cache(tmp_path, num_videos=24, frames=9).path
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainer.train(cache, whole) == "0"
    for moment in (
        "replace config.json",
        "train 1 2",
        "replace last.safetensors",  # its epoch is in the log already
        "replace best.safetensors",  # the checkpoint knows a best that is not there
        "train 2 1",
        "validate 3 3",
        "evaluate 4 3",
        "replace results.json",
    ):
        assert trainer.train(cache, killed, at=moment) == KILLED
        if (killed / "last.safetensors").exists():  # whatever is there is whole
            open_run(killed).load_decoder("last")
    assert list(killed.glob(".*.tmp"))
    assert trainer.train(cache, killed) == "0"
    (expected, lines), (found, killed_lines) = state(whole), state(killed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert killed_lines == lines
    results = [open_run(run).results() for run in (whole, killed)]
    assert results[0].test.predictions == results[1].test.predictions
    assert not list(killed.glob(".*.tmp"))


def test_two_processes_never_train_in_one_directory(tmp_path, trainer):
    cache = make_cache(tmp_path, num_videos=24, frames=9).path
    run = tmp_path / "run"
    assert trainer.train(cache, run, send="SIGSTOP", at="train 1 1") == "stopped"
    with pytest.raises(Vis4merError, match="another process"), lock_run(run):
        pass
    assert trainer.kill_stopped() == KILLED
    with lock_run(run):  # which died with its process
        pass
