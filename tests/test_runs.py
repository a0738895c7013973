"""Run directories: what is there, what is damaged, and what a stranger may put into one."""

import json
import os
import pickle

import pytest
import torch
from caches import make_cache
from safetensors.torch import load_file, save_file
from vis4mer.decode.config import load_config
from vis4mer.decode.runs.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from vis4mer.decode.runs.run import lock_run, open_run
from vis4mer.decode.runs.runlog import EpochMetrics, MetricsLog
from vis4mer.decode.train import train_decoder
from vis4mer.store.errors import CacheFormatError, UsageError, Vis4merError
from vis4mer.store.files import seal


@pytest.fixture
def run_folder(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=4)
    config = load_config(
        flags={"task": "toy/label", "epochs": 2, "window_seconds": 4, "decoder.name": "mean"}
    )
    train_decoder(cache, config, tmp_path / "run")
    return tmp_path / "run"


def rewrite(path, change):
    """Edit sealed JSON as someone who knows how to seal would."""
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(seal(data))


def test_a_run_says_what_it_is_and_gives_its_decoder_back(run_folder):
    run = open_run(run_folder)
    assert (run.about.kind, run.about.classes) == ("classification", ("class0", "class1"))
    assert run.about.train.tokens == "2x2"
    assert [e.epoch for e in run.epochs()] == [1, 2]
    assert run.results().num_parameters == 16 * 2 + 2
    assert (run_folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    saved = load_file(run_folder / "last.safetensors")  # any safetensors reader
    last = run.load_decoder("last")
    assert not last.training
    for name, value in last.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    best = load_file(run_folder / "best.safetensors")
    for name, value in run.load_decoder().state_dict().items():
        assert torch.equal(value, best[f"model.{name}"])


def test_what_is_no_run_directory_is_refused_in_one_line(tmp_path, run_folder):
    with pytest.raises(UsageError, match="no such directory; expected a run"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheFormatError, match=r"no run directory \(it has no config.json\)"):
        open_run(tmp_path / "empty")
    for content, message in [
        (b'{"a": 1}', "not the run file of a vis4mer run"),
        (b"[1]", "expected a JSON object"),
        (b"\x00\x01", "not JSON"),
        (b'{"run_format": 99}', "run format 99 is newer"),
        (b'{"run_format": 1}', "checksum does not match"),
    ]:
        (run_folder / "config.json").write_bytes(content)
        with pytest.raises(CacheFormatError, match=message) as caught:
            open_run(run_folder)
        assert "config.json" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train", {"task": "a/b", "epochs": 0}, "epochs is 0"),
        ("train", {"task": "a/b", "surprise": 1}, "unknown field 'surprise'"),
        ("train", {"task": "a/b", "tokens": "99x2x2"}, "holds 60 frames"),
        ("kind", "divination", "one of classification, regression"),
        ("classes", [1], "a list of text"),
    ],
)
def test_a_strangers_config_is_checked_field_by_field(run_folder, field, value, message):
    rewrite(run_folder / "config.json", lambda data: data.update({field: value}))
    with pytest.raises(CacheFormatError, match=message) as caught:
        open_run(run_folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["os.system", "../../evil", "nothing"])
def test_only_decoders_of_the_catalogue_are_built(run_folder, name):
    rewrite(run_folder / "config.json", lambda d: d["train"]["decoder"].update(name=name))
    with pytest.raises(CacheFormatError, match=r"unknown decoder .* expected one of"):
        open_run(run_folder).load_decoder()


def test_a_run_without_a_checkpoint_says_what_to_do(run_folder):
    (run_folder / "best.safetensors").unlink()
    with pytest.raises(Vis4merError, match=r"has no best.safetensors; train it first .*--resume"):
        open_run(run_folder).load_decoder()
    with pytest.raises(UsageError, match="one of selected, best, last"):
        open_run(run_folder).load_decoder("worst")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/vis4mer-was-here",)


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps(Bomb()), b"\xff" * 64, (2**60).to_bytes(8, "little")]
)
def test_bytes_that_are_no_checkpoint_are_one_line_and_never_executed(run_folder, content):
    (run_folder / "best.safetensors").write_bytes(content)
    with pytest.raises(CacheFormatError, match=r"best.safetensors: not a safetensors file"):
        open_run(run_folder).load_decoder()


def test_a_checkpoint_of_another_model_is_named(run_folder):
    best = run_folder / "best.safetensors"
    weights = dict(read_checkpoint(best).tensors)
    save_file(weights, best)
    with pytest.raises(CacheFormatError, match="not one that vis4mer wrote"):
        open_run(run_folder).load_decoder()
    for change, message in [
        ({"model.head.weight": torch.zeros(3, 16)}, r"head.weight is float32 \(3, 16\), but"),
        ({"model.head.weight": weights["model.head.weight"].half()}, "is float16"),
        ({"model.extra": torch.zeros(1)}, "has unknown extra"),
    ]:
        write_checkpoint(best, Checkpoint(tensors=weights | change, about={}))
        with pytest.raises(CacheFormatError, match=message):
            open_run(run_folder).load_decoder()
    write_checkpoint(best, Checkpoint(tensors={}, about={}))
    with pytest.raises(CacheFormatError, match=r"lacks head.bias, head.weight"):
        open_run(run_folder).load_decoder()


def test_a_damaged_result_is_named(run_folder):
    (run_folder / "results.json").write_text("{}")
    with pytest.raises(CacheFormatError, match=r"results.json"):
        open_run(run_folder).results()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selected": "worst"}, "'selected' is 'worst', expected one of best, last"),
        ({"by_weights": {}}, "selected best, which by_weights does not have"),
        ({"by_weights": [1]}, "'by_weights' is .*expected an object"),
        ({"by_weights": {"best": {"epoch": "1"}}}, "'epoch' is '1', expected an integer"),
        ({"best_test_epoch": {"epoch": 0, "score": 1}}, "'epoch' is 0, expected an integer of at"),
        ({"best_test_epoch": {"epoch": 1, "score": "nan"}}, "'score' is 'nan', expected a finite"),
    ],
)
def test_a_strangers_result_is_checked_field_by_field(run_folder, change, message):
    rewrite(run_folder / "results.json", lambda data: data.update(change))
    with pytest.raises(CacheFormatError, match=message) as caught:
        open_run(run_folder).results()
    assert "results.json" in str(caught.value)


def test_one_process_at_a_time(tmp_path):
    leftover = tmp_path / "run" / ".last.safetensors.abc.tmp"
    with lock_run(tmp_path / "run"):
        leftover.write_bytes(b"half")
        with pytest.raises(Vis4merError, match="another process"), lock_run(tmp_path / "run"):
            pass
        assert leftover.exists()
    with lock_run(tmp_path / "run"):
        assert not leftover.exists()  # of a killed process
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file stands there"), lock_run(tmp_path / "file"):
        pass


def epoch(number):
    return EpochMetrics(
        epoch=number,
        steps=number * 3,
        lr=0.1,
        train_loss=1 / 3,
        val_score=None,
        val_loss=None,
        seconds=0.1,
        bytes_read=1,
    )


def test_the_log_survives_a_torn_line_and_forgets_undone_epochs(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    for number in (1, 2, 3):
        log.append(epoch(number))
    with log.path.open("ab") as file:
        file.write(b'{"epoch": 4, "st')
    assert log.read() == [epoch(1), epoch(2), epoch(3)]
    assert log.truncate(2) == [epoch(1), epoch(2)]
    log.append(epoch(3))
    assert log.read() == [epoch(1), epoch(2), epoch(3)]
    with pytest.raises(CacheFormatError, match="lacks lines"):
        log.truncate(7)
