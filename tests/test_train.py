"""Training: it learns, it repeats itself, and an interrupted run ends where a whole one does."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import make_cache
from vis4mer.decode.config import load_config
from vis4mer.decode.judging.evaluate import evaluate_run
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.runs.checkpoints import read_checkpoint
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.runs.runlog import OF_THE_CLOCK
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.learner import DivergedError, step_seed
from vis4mer.store.errors import FingerprintError, UsageError, Vis4merError
from vis4mer.store.files import StorageError
from vis4mer.store.tasks import TaskRow, TaskTable

SMALL_S4 = {"decoder.name": "vis4mer", "decoder.depth": 1, "decoder.state_size": 4}


def config(**flags):
    """A tiny run; dotted names with two underscores for the dot."""
    defaults = {
        "task": "toy/label",
        "epochs": 3,
        "window_seconds": 4,
        "batch_size": 4,
        "decoder.name": "mean",
        "device": "cpu",
        "optimizer.lr": 0.01,
    }
    return load_config(flags=defaults | {k.replace("__", "."): v for k, v in flags.items()})


def tensors(run):
    return read_checkpoint(run / "last.safetensors").tensors


def log(run):
    """metrics.jsonl without what the clock says."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in OF_THE_CLOCK} for line in lines]


def assert_same_run(one, other):
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert log(one) == log(other)
    results = [untimed(json.loads((run / "results.json").read_text())) for run in (one, other)]
    assert results[0] == results[1]


def untimed(value):
    """JSON without what the clock says, and the seal over it."""
    if not isinstance(value, dict):
        return value
    return {k: untimed(v) for k, v in value.items() if k not in (*OF_THE_CLOCK, "checksum")}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_it_learns_what_is_there_to_learn(tmp_path, kind):
    cache = make_cache(tmp_path, num_videos=32, frames=6, signal=1.0)
    if kind == "regression":  # the same signal, labels -1 and 1
        rows = [
            TaskRow(id=row.id, split=row.split, label=2 * row.label - 1)
            for row in cache.task("toy/label").rows
        ]
        cache.save_task(TaskTable(dataset="toy", task="label", kind=kind, rows=tuple(rows)))
    result = train_decoder(cache, config(epochs=40, optimizer__lr=0.05), tmp_path / "run")
    assert result.test.total == 8
    if kind == "classification":
        assert result.test.accuracy == 1.0
        assert result.test.floor == 0.5
    else:
        assert result.test.mse < 0.3
        assert result.test.floor == 1.0


def test_the_same_seed_learns_the_same_and_threads_do_not_matter(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    train_decoder(cache, config(**SMALL_S4, workers=1), tmp_path / "a")
    assert torch.equal(torch.rand(2), expected)  # the caller's generator is left alone
    train_decoder(cache, config(**SMALL_S4, workers=4), tmp_path / "b")
    train_decoder(cache, config(**SMALL_S4, seed=1), tmp_path / "c")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert any(
        not torch.equal(value, tensors(tmp_path / "c")[name])
        for name, value in tensors(tmp_path / "a").items()
        if name.startswith("model.")
    )


def test_each_step_and_seed_has_its_own_randomness():
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(-1, 50)}
    assert len(seeds) == 20 * 51
    assert all(0 <= seed < 2**63 for seed in seeds)


class Interruption(BaseException):
    """As from a keyboard."""


def stopper(should_stop):
    def progress(report):
        if should_stop(report):
            raise Interruption

    return progress


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_run_interrupted_after_every_epoch_ends_as_the_whole_one(tmp_path, schedule):
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    settings = {**SMALL_S4, "optimizer.schedule": schedule, "optimizer.plateau_patience": 0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_decoder(cache, config(**settings), whole)
    for epoch in (1, 2, 3):
        stop = stopper(lambda r, epoch=epoch: r.finished and r.finished.epoch == epoch)
        with pytest.raises(Interruption):
            train_decoder(cache, config(**settings), parts, progress=stop)
    train_decoder(cache, config(**settings), parts)
    assert_same_run(whole, parts)


def test_an_interruption_amid_an_epoch_loses_only_that_epoch(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_decoder(cache, config(**SMALL_S4), whole)
    for epoch, phase in ((1, "train"), (2, "train"), (2, "validate"), (1, "evaluate")):
        stop = stopper(lambda r, e=epoch, p=phase: r.phase == p and r.epoch >= e and r.done >= 1)
        with pytest.raises(Interruption):
            train_decoder(cache, config(**SMALL_S4), parts, progress=stop)
    (parts / "best.safetensors").unlink()  # follows from the checkpoint, and comes back
    train_decoder(cache, config(**SMALL_S4), parts)
    assert_same_run(whole, parts)
    assert (parts / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    cache = make_cache(tmp_path, num_videos=16, frames=9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_decoder(cache, config(), whole)
    replace, written = Path.replace, []

    def full(path, target):
        if Path(target).name == "last.safetensors":
            written.append(path)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(
            StorageError, match=r"cannot write .*last.safetensors: the disk is full"
        ):
            train_decoder(cache, config(), parts)
    assert not list(parts.glob(".*.tmp"))
    assert [line["epoch"] for line in log(parts)] == [1, 2]  # one more than the checkpoint
    train_decoder(cache, config(), parts)
    assert_same_run(whole, parts)


def test_a_directory_in_use_is_refused_with_what_to_do(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    run = tmp_path / "run"
    result = train_decoder(cache, config(), run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(
        UsageError, match=r"optimizer.lr: run 0.01, asked 0.5\); choose another --run, or the run's"
    ):
        train_decoder(cache, config(optimizer__lr=0.5), run)
    notes = []
    again = train_decoder(cache, config(workers=1), run, progress=lambda r: notes.append(r.note))
    assert again == result
    assert notes == [f"{run} is finished; nothing was done"]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (run / "best.safetensors").unlink()
    assert train_decoder(cache, config(), run) == result
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    leftover = tmp_path / "killed" / ".config.json.0123456789ab.tmp"  # before its rename
    leftover.parent.mkdir()
    leftover.write_bytes(b"{")
    train_decoder(cache, config(), tmp_path / "killed")
    assert not leftover.exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    with pytest.raises(UsageError, match=r"no run directory .it holds chapter1.tex"):
        train_decoder(cache, config(), tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_run_that_lost_files_is_neither_begun_again_nor_called_another(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    run = tmp_path / "run"
    result = train_decoder(cache, config(), run)
    begun = (run / "config.json").read_bytes()
    (run / "last.safetensors").unlink()
    assert train_decoder(cache, config(), run) == result
    with pytest.raises(UsageError, match=r"epochs: run 3, asked 4"):
        train_decoder(cache, config(epochs=4), run)
    (run / "results.json").unlink()
    with pytest.raises(UsageError, match=r"has lost its last.safetensors.*put that file back"):
        train_decoder(cache, config(), run)
    (run / "best.safetensors").unlink()  # the log of three epochs still says what there was
    with pytest.raises(UsageError, match=r"has lost its last.safetensors"):
        train_decoder(cache, config(), run)
    with pytest.raises(UsageError, match=r"epochs: run 3, asked 4"):
        train_decoder(cache, config(epochs=4), run)
    assert (run / "config.json").read_bytes() == begun
    (run / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no run directory .it holds curve.png"):
        train_decoder(cache, config(), run)


def test_a_curve_that_cannot_be_drawn_is_a_note_of_a_finished_run(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    run, notes = tmp_path / "run", []
    (run / "curve.png").mkdir(parents=True)
    (run / "config.json").write_bytes(_config_of(cache, tmp_path))
    result = train_decoder(cache, config(), run, progress=lambda r: notes.append(r.note))
    assert open_run(run).results() == result
    assert notes[-1].startswith("curve.png was not drawn (")


def _config_of(cache, folder):
    """What `config.json` is in a run that was killed as soon as it had begun."""
    with pytest.raises(Interruption):
        train_decoder(cache, config(), folder / "begun", progress=stopper(lambda _: True))
    return (folder / "begun" / "config.json").read_bytes()


def test_a_decoder_that_cannot_be_built_leaves_no_run_behind(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4, dim=6)
    with pytest.raises(UsageError, match="tokens are 6 wide, which cannot be halved 2 times"):
        train_decoder(cache, config(**SMALL_S4 | {"decoder.depth": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_videos_too_short_for_the_decoder_are_counted_and_never_read(tmp_path):
    """Two tokens a frame: `official` of depth 3 needs eight of them, four frames."""
    lengths = [3, 4, 9, 9, 3, 4, 9, 3]
    splits = ["train"] * 4 + ["val", "val", "test", "test"]
    cache = make_cache(tmp_path, num_videos=8, frames=lengths, splits=splits, grid=(1, 2))
    settings = SMALL_S4 | {"decoder.variant": "official", "decoder.depth": 3}
    result = train_decoder(cache, config(**settings), tmp_path / "run")
    assert result.notes[:-1] == (  # the last one is of the protocol
        "the cache covers 3/4 train videos, too short for the decoder: v0",
        "the cache covers 1/2 val videos, too short for the decoder: v4",
        "the cache covers 1/2 test videos, too short for the decoder: v7",
    )
    run = open_run(tmp_path / "run")
    assert evaluate_run(run, cache).predictions == result.test.predictions
    assert run.results().test.coverage.short == ("v7",)
    with pytest.raises(Vis4merError, match="too short for the decoder: v7; choose another split"):
        evaluate_run(run, cache, strict=True)
    with pytest.raises(UsageError, match=r"needs 4 frames of a video: v0, v4, v7; leave them out"):
        predict_entries(run, cache)
    assert [p.id for p in predict_entries(run, cache, ["v1", "v6"])] == ["v1", "v6"]
    # A view of every second frame sees two frames of a video of three or four.
    thin = config(**settings | {"decoder.depth": 2, "tokens": "2x1x2"})
    assert not train_decoder(cache, thin, tmp_path / "thin").test.coverage.short
    short = make_cache(tmp_path / "short", num_videos=4, frames=3, grid=(1, 2))
    with pytest.raises(Vis4merError, match=r"no video to train on.*use a smaller decoder.depth"):
        train_decoder(short, config(**settings), tmp_path / "none")


def test_a_run_goes_on_only_with_its_own_data(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    run = tmp_path / "run"
    with pytest.raises(Interruption):
        train_decoder(cache, config(), run, progress=stopper(lambda r: r.finished))
    with pytest.raises(FingerprintError, match="dim"):
        train_decoder(make_cache(tmp_path / "wide", dim=8), config(), run)
    table = cache.task("toy/label")
    swapped = [
        TaskRow(id=row.id, split=row.split, label=1 - row.label) if i == 0 else row
        for i, row in enumerate(table.rows)
    ]
    cache.save_task(
        TaskTable(
            dataset="toy",
            task="label",
            kind=table.kind,
            classes=table.classes,
            rows=tuple(swapped),
        )
    )
    with pytest.raises(UsageError, match="videos or labels of toy/label changed"):
        train_decoder(cache, config(), run)


def test_without_validation_the_last_epoch_is_selected_and_said(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4, splits=["train", "test"] * 4)
    notes = []
    result = train_decoder(
        cache, config(), tmp_path / "run", progress=lambda r: r.note and notes.append(r.note)
    )
    assert (result.selected, result.epoch, result.val) == ("last", 3, None)
    assert "there is no validation split, so the last epoch is selected" in result.notes
    assert tuple(notes) == result.notes
    assert not (tmp_path / "run" / "best.safetensors").exists()
    run = open_run(tmp_path / "run")
    for name, value in run.load_decoder().state_dict().items():
        assert torch.equal(value, tensors(tmp_path / "run")[f"model.{name}"])


def test_the_best_epoch_by_score_then_loss_is_kept(tmp_path):
    cache = make_cache(tmp_path, num_videos=32, frames=6, signal=0.1)
    run = tmp_path / "run"
    result = train_decoder(cache, config(epochs=8, optimizer__lr=0.2), run)
    epochs = log(run)
    expected = max(epochs, key=lambda e: (e["val_score"], -e["val_loss"], -e["epoch"]))
    assert (result.selected, result.epoch) == ("best", expected["epoch"])
    assert result.epoch < 8  # or the test would not tell best from last
    last = train_decoder(cache, config(epochs=8, optimizer__lr=0.2, select="last"), tmp_path / "l")
    assert (last.selected, last.epoch) == ("last", 8)


def test_missing_videos_and_unseen_classes_are_notes(tmp_path):
    cache = make_cache(tmp_path, num_videos=9, num_classes=3, frames=4, splits=["train"] * 9)
    rows = [row for row in cache.task("toy/label").rows if row.label != 2]
    rows += [TaskRow(id="gone", split="train", label=2), TaskRow(id="v2", split="val", label=2)]
    names = ("class0", "class1", "class2")
    cache.save_task(
        TaskTable(
            dataset="toy", task="label", kind="classification", classes=names, rows=tuple(rows)
        )
    )
    result = train_decoder(cache, config(epochs=1), tmp_path / "run")
    assert result.notes[:-1] == (  # the last one is of the protocol
        "the cache covers 6/7 train videos, missing: gone",
        "never seen in training: class class2",
        "there is no test split to judge",
    )
    assert result.test is None
    assert result.val.coverage.complete


def test_nothing_to_train_on_is_one_line(tmp_path):
    cache = make_cache(tmp_path, num_videos=2, frames=4, splits=["test", "val"])
    with pytest.raises(Vis4merError, match=r"toy/label: no video to train on.*0/0 train videos"):
        train_decoder(cache, config(), tmp_path / "run")
    with pytest.raises(UsageError, match="no task 'toy/other'; it has toy/label"):
        train_decoder(cache, config(task="toy/other"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=4)
    settings = {"optimizer.lr": 1e30, "optimizer.schedule": "constant", "epochs": 50}
    run = tmp_path / "run"
    with pytest.raises(
        DivergedError,
        match=r"diverged at step \d+ \(epoch \d+\), learning rate 1e\+30.*optimizer.lr",
    ):
        train_decoder(cache, config(**settings), run)
    if (run / "last.safetensors").exists():
        assert all(bool(torch.isfinite(value).all()) for value in tensors(run).values())
    assert not (run / "results.json").exists()


def test_bfloat16_learns_too(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6, signal=1.0)
    result = train_decoder(
        cache,
        config(**SMALL_S4, precision="bfloat16", epochs=2),
        tmp_path / "run",
    )
    assert np.isfinite(result.test.loss)
    saved = tensors(tmp_path / "run")
    assert all(saved[name].dtype == torch.float32 for name in saved if name.startswith("model."))


def test_clipping_bounds_the_step(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    free = train_decoder(cache, config(epochs=1), tmp_path / "free")
    tight = train_decoder(cache, config(epochs=1, optimizer__grad_clip=1e-12), tmp_path / "tight")
    assert free.num_parameters == tight.num_parameters
    moments = [tensors(tmp_path / n)["optimizer.head.weight/exp_avg"] for n in ("free", "tight")]
    assert moments[1].norm() < 1e-11 < moments[0].norm()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps"])
def test_an_unknown_device_is_refused(tmp_path, name):
    cache = make_cache(tmp_path, num_videos=4, frames=4)
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        train_decoder(cache, config(device=name), tmp_path / "run")
