"""Training processes killed with SIGKILL: the same command goes on and ends as if uninterrupted."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from caches import make_cache
from vis4mer.decode.checkpoints import read_checkpoint
from vis4mer.decode.runs import lock_run, open_run
from vis4mer.store.errors import Vis4merError

# Trains in a directory and says on stdout what it is doing, a line each, before it goes on.
TRAIN = """
import sys
from pathlib import Path
import torch
from vis4mer.decode.config import load_config
from vis4mer.decode.train import train_decoder
from vis4mer.store.cache import open_cache
torch.set_num_threads(1)
config = load_config(flags={
    "task": "toy/label", "epochs": 4, "window_seconds": 4, "batch_size": 4, "device": "cpu",
    "optimizer.lr": 0.01, "decoder.depth": 1, "decoder.state_size": 4,
})
def say(report):
    what = "finished" if report.finished else report.phase
    print(what, report.epoch, report.done, flush=True)
train_decoder(open_cache(sys.argv[1]), config, Path(sys.argv[2]), resume=True, progress=say)
print("done", flush=True)
"""


def train(cache, run, *, kill_at=None):
    """Run the training process; kill it as soon as it has said `kill_at`. True when it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(cache), str(run)], stdout=subprocess.PIPE, text=True
    )
    with process:
        for line in process.stdout:
            if kill_at is not None and line.startswith(kill_at):
                os.kill(process.pid, signal.SIGKILL)
                break
        else:
            assert process.wait() == 0
            return True
    assert process.returncode == -signal.SIGKILL
    return False


def state(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
    return read_checkpoint(run / "last.safetensors").tensors, metrics


def test_training_goes_on_after_kill_9(tmp_path):
    cache = make_cache(tmp_path, num_videos=24, frames=9).path
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(cache, whole)
    # In the first epoch; after the last step of an epoch, so that the kill falls into validation or
    # the checkpoint's being written; and in the final evaluation.
    for moment in ("train 1 2", "train 2 2", "validate 3", "evaluate"):
        assert not train(cache, killed, kill_at=moment)
        if (killed / "last.safetensors").exists():  # whatever is there is whole
            open_run(killed).load_decoder("last")
    assert train(cache, killed)
    (expected, lines), (found, killed_lines) = state(whole), state(killed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert killed_lines == lines
    results = [open_run(run).results() for run in (whole, killed)]
    assert results[0].test.predictions == results[1].test.predictions
    assert not list(killed.glob(".*.tmp"))


def test_two_processes_never_train_in_one_directory(tmp_path):
    cache = make_cache(tmp_path, num_videos=24, frames=9).path
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(cache), str(run)], stdout=subprocess.PIPE, text=True
    )
    with process:
        process.stdout.readline()  # it is training, and waits for nobody
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Vis4merError, match="another process"), lock_run(run):
                pass
        finally:
            os.kill(process.pid, signal.SIGKILL)
