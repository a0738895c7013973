"""`vis4mer bench`: what is compared, in which order, the memory foreseen, what a row says."""

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.bench import child
from vis4mer.decode.bench.figure import FORMATS, draw_costs
from vis4mer.decode.bench.measure import run_bench, turn_order
from vis4mer.decode.bench.memory import Peak, least_bytes
from vis4mer.decode.bench.records import BenchRequest
from vis4mer.decode.bench.subjects import parse_subjects, parse_views, view_shape
from vis4mer.decode.bench.worker import (
    About,
    BenchFailedError,
    BenchMemoryError,
    ChildWorker,
    Turn,
)
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.decoders import DECODERS, build_decoder
from vis4mer.decode.decoders.memory import MemoryDecoder
from vis4mer.decode.figure_path import check_figure_path
from vis4mer.decode.report.published import published_cost
from vis4mer.store.errors import UsageError

HEADS = {"lst", "performer", "orthoformer"}  # whose last block, 4 wide, takes no 8 heads


def question(name, options=None, *, frames=4, grid=(2, 2), prefix=1, dim=16):
    return {
        "decoder": {"name": name, **(options or {})},
        "shape": {"frames": frames, "grid": list(grid), "num_prefix": prefix, "dim": dim},
        "batch_size": 2,
        "device": "cpu",
        "precision": "float32",
    }


# What is compared --------------------------------------------------------------------------------


def test_decoders_with_options_of_their_own_and_shared_ones():
    words = "vis4mer, lst:attention=materialised:depth=1,mean"
    s4, lst, mean = parse_subjects(words, ["decoder.depth=2"])
    assert (s4.label, s4.name, s4.options["depth"]) == ("vis4mer", "vis4mer", 2)
    assert lst.label == "lst:attention=materialised:depth=1"
    assert (lst.options["depth"], lst.options["attention"]) == (1, "materialised")
    assert mean.options.keys().isdisjoint({"depth", "attention"})


@pytest.mark.parametrize(
    ("decoders", "sets", "words"),
    [
        ("vis4mer,lts", [], "did you mean lst"),
        ("lst:attention=fast", [], "one of fused, materialised"),
        ("lst:attention", [], "OPTION=VALUE"),
        ("lst:atention=fused", [], "did you mean attention"),
        ("lst, lst", [], "twice"),
        ("mean", ["decoder.depth=2"], "none of mean"),
        ("lst", ["depth=2"], "decoder.OPTION"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(decoders, sets, words):
    with pytest.raises(UsageError, match=words):
        parse_subjects(decoders, sets)


@pytest.mark.parametrize(
    ("views", "words"), [("14x14", "how many frames"), ("4x1x1,4x1x1", "twice")]
)
def test_views_that_say_no_frames_or_come_twice_are_refused(views, words):
    with pytest.raises(UsageError, match=words):
        parse_views(views)


@pytest.mark.parametrize(
    ("view", "num_tokens"),
    [("60x14x14", 11_760), ("60x7x7+cls", 3000), ("60xcls", 60), ("4x4x4@stride2", 32)],
)
def test_windows_have_as_many_tokens_as_their_view(view, num_tokens):
    (parsed,) = parse_views(view)
    assert view_shape(parsed, dim=8).num_tokens == num_tokens


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Tokens by block 4·16, 4·4, 4·1; scores of 2 heads in 4 bytes: 32,768, 2,048 and 128 bytes.
        ({}, (2 * 32_768, 3 * 32_768)),
        ({"pooling": False}, (2 * 32_768, 5 * 32_768)),
        ({"attention": "fused"}, (0, 0)),
    ],
)
def test_memory_of_materialised_scores_is_known_before(options, expected):
    shape = TokenShape(frames=4, grid=(4, 4), num_prefix=0, dim=16)
    options = {"attention": "materialised", "heads": 2, **options}
    model = build_decoder("lst", shape=shape, num_outputs=4, options=options)
    assert least_bytes(model, batch_size=1, itemsize=4) == expected
    assert least_bytes(model, batch_size=3, itemsize=2) == tuple(1.5 * each for each in expected)


# Alternation and rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_decoder_has_each_place_as_often_and_runs_forwards_and_backwards(count):
    orders = [turn_order(count, number) for number in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in range(count):
        assert sorted(order[place] for order in orders) == sorted(2 * [*range(count)])
    after = [pair for order in orders for pair in itertools.pairwise(order)]
    assert sorted(after) == sorted((b, a) for a, b in after)
    assert turn_order(0, 3) == []


class FakeWorker:
    """Takes as many seconds as `seconds` says, one after the other; notes when it was asked."""

    def __init__(self, name, log, seconds=(1.0,), least=0, fails=None):
        self.about = About(
            num_parameters=7, least_bytes={"forward": 0, "train": least}, machine={"threads": 1}
        )
        self.name, self.log, self.fails = name, log, fails
        self.seconds = list(seconds)

    def limit(self, max_bytes):
        return max_bytes

    def turn(self, work):
        self.log.append((work, self.name))
        if self.fails is not None and work == "train":
            raise self.fails
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        return Turn(seconds=seconds, cpu_seconds=2 * seconds)

    def peak(self):
        return Peak(bytes=3_000_000)

    def close(self):
        self.log.append(("close", self.name))


def bench(workers, *, decoders="vis4mer,mean,lst", view="60x1x1", **settings):
    """Run it over fakes by name."""
    request = BenchRequest(
        subjects=parse_subjects(decoders), views=parse_views(view), device="cpu", **settings
    )
    return run_bench(request, start=lambda asked: workers[asked["decoder"]["name"]])


def test_decoders_alternate_and_the_first_turns_are_not_counted():
    log = []
    workers = {
        "vis4mer": FakeWorker("vis4mer", log, [100, 4, 1, 2]),
        "mean": FakeWorker("mean", log),
        "lst": FakeWorker("lst", log, [0.5]),
    }
    result = bench(workers, repeats=3, warm_up=1, batch_size=6)
    forward = [name for work, name in log if work == "forward"]
    assert forward == [
        *("vis4mer", "mean", "lst"),
        *("mean", "lst", "vis4mer"),
        *("lst", "vis4mer", "mean"),
        *("lst", "mean", "vis4mer"),
    ]
    assert [work for work, _ in log] == 12 * ["forward"] + 12 * ["train"] + 3 * ["close"]
    s4, _, lst = result.rows
    assert s4.forward.seconds == 2  # the median of 4, 1 and 2
    assert (s4.forward.cpu_seconds, s4.forward.samples_per_second) == (4, 3)
    assert lst.train.samples_per_second == 12
    assert s4.status == "measured"
    of_lst = result.comparisons[1]
    assert (of_lst.row, of_lst.against, of_lst.forward_speed) == (lst, s4, 0.25)


def test_running_out_of_memory_or_failing_ends_one_row_and_no_other():
    log = []
    workers = {
        "vis4mer": FakeWorker("vis4mer", log, fails=BenchMemoryError("tried to take 9 bytes")),
        "mean": FakeWorker("mean", log),
        "lst": FakeWorker("lst", log, fails=BenchFailedError("died of SIGSEGV")),
    }
    result = bench(workers, repeats=2)
    s4, mean, lst = result.rows
    assert (s4.status, s4.reason) == ("out of memory", "the training step: tried to take 9 bytes")
    assert s4.forward is not None
    assert s4.train is None
    assert (lst.status, lst.train) == ("failed", None)
    assert (mean.status, mean.train.peak_bytes) == ("measured", 3_000_000)
    assert log.count(("train", "vis4mer")) == 1  # not asked again
    assert result.comparisons == ()
    assert json.dumps(result.to_json())


def test_what_cannot_fit_is_not_begun_and_says_so():
    log = []
    workers = {"lst": FakeWorker("lst", log, least=13_300_000_000)}
    result = bench(workers, decoders="lst", max_bytes=10**10)
    (row,) = result.rows
    assert row.status == "skipped"
    assert "training step needs at least 13.3 GB and 10.0 GB is --max-memory" in row.reason
    assert row.forward is not None
    assert ("train", "lst") not in log
    assert bench(workers, decoders="lst", max_bytes=2 * 10**10).rows[0].status == "measured"


def test_the_papers_figures_stand_beside_ours():
    log = []
    workers = {
        "vis4mer": FakeWorker("vis4mer", log, [0.1]),
        "lst": FakeWorker("lst", log, [0.4]),
        "mean": FakeWorker("mean", log),
    }
    result = bench(workers, view="60x14x14")
    s4, mean, lst = result.rows
    assert s4.num_tokens == 11_760
    assert (s4.paper.samples_per_second, lst.paper.gigabytes) == (4.95, 41.38)
    assert s4.over_paper()["samples_per_second"] == pytest.approx(10 / 4.95)
    assert s4.over_paper()["memory"] == pytest.approx(0.003 / 5.15)
    assert mean.paper is None
    assert published_cost("lst", 61) is None
    of_lst = result.comparisons[1]
    assert of_lst.train_speed == pytest.approx(4)
    assert of_lst.paper_speed == pytest.approx(2.63, abs=0.005)  # as the paper's abstract has it
    assert of_lst.paper_memory == pytest.approx(8.03, abs=0.005)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_figure_is_drawn_and_names_what_was_not_measured(tmp_path, suffix):
    workers = {
        "vis4mer": FakeWorker("vis4mer", [], [0.1]),
        "lst": FakeWorker("lst", [], fails=BenchMemoryError("none left")),
        "mean": FakeWorker("mean", []),
    }
    path = tmp_path / f"cost{suffix}"
    draw_costs(bench(workers, view="4x1x1,60x1x1"), path)
    head = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(head)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cost.jpg", r"expected a name that ends in \.png or \.svg$"),
        ("none/cost.png", "there is no folder .*none; make it first$"),
        ("folder.png", "a folder, expected the name of a file to write$"),
        (f"{'x' * 300}.png", r"cannot be written \(File name too long\)"),
        pytest.param(
            "/proc/cost.png",  # where nobody can make a file, root included
            r"cannot be written \(No such file or directory\); choose another file$",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc"),
        ),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=message) as refused:
        check_figure_path(tmp_path / name, formats=FORMATS)
    assert "\n" not in str(refused.value)
    check_figure_path(tmp_path / "cost.SVG", formats=FORMATS)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
    command = ["bench", "--decoders", "mean", "--figure", str(tmp_path / name)]
    assert CliRunner().invoke(app, command).exit_code == 2


def test_the_figure_says_in_its_text_what_is_missing(tmp_path):
    workers = {"mean": FakeWorker("mean", [], fails=BenchMemoryError("none left"))}
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):  # letters stay letters
        draw_costs(bench(workers, decoders="mean"), tmp_path / "cost.svg")
    text = (tmp_path / "cost.svg").read_text()
    assert "not measured: mean at 60x1x1 (out of memory)" in text
    assert "batch 1" in text


# The real thing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_can_be_benched(name, monkeypatch):
    monkeypatch.setattr(child, "TURN_SECONDS", 0.0)
    measured = child.Bench(question(name, {"heads": 2} if name in HEADS else {}))
    weights = [p.detach().clone() for p in measured._learner.model.parameters()]
    assert measured.turn("forward")["seconds"] > 0
    assert all(map(torch.equal, weights, measured._learner.model.parameters()))
    assert measured.turn("train")["seconds"] > 0
    assert not all(map(torch.equal, weights, measured._learner.model.parameters()))
    about = measured.about()
    assert about["num_parameters"] == sum(weight.numel() for weight in weights)
    assert about["least_bytes"] == {"forward": 0, "train": 0}


@pytest.mark.parametrize("frames", [2, 4, 9])
def test_a_step_in_lanes_is_measured_with_a_full_memory(frames, monkeypatch):
    """Chunks of 4 frames, of which 5 are remembered: after 5, 5 and 2 windows."""
    monkeypatch.setattr(child, "TURN_SECONDS", 0.0)
    options = {"memory_length": 6, "chunk_frames": 4, "width": 16, "heads": 2, "depth": 2}
    remembered = {}
    plain = MemoryDecoder.forward_from

    def forward_from(model, batch, state, starts=None):
        remembered[len(remembered)] = [len(memory) for memory in state.layers]
        return plain(model, batch, state, starts)

    monkeypatch.setattr(MemoryDecoder, "forward_from", forward_from)
    asked = question("memory", options, frames=frames)
    child.Bench(asked).turn("train")
    assert remembered == {0: [0, 0]}
    remembered.clear()
    measured = child.Bench({**asked, "lanes": True})
    measured.turn("train")
    assert remembered.pop(len(remembered) - 1) == [5, 5]
    assert len(remembered) == {2: 5, 4: 5, 9: 2}[frames]
    assert all(held < [5, 5] for held in remembered.values())
    measured.turn("train")  # is one step from then on
    assert len(remembered) == {2: 5, 4: 5, 9: 2}[frames] + 1
    with pytest.raises(UsageError, match="remembers nothing"):
        child.Bench({**question("mean"), "lanes": True}).turn("train")


def test_the_command_measures_in_processes_of_their_own(tmp_path):
    figure = tmp_path / "cost.png"
    command = [
        *("bench", "--decoders", "mean,stam", "--tokens", "60x7x7", "--dim", "256"),
        *("--repeats", "1", "--warm-up", "0", "--device", "cpu", "--json"),
        *("--figure", str(figure)),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    mean, stam = found["rows"]
    assert (mean["status"], mean["num_tokens"], mean["options"]) == ("measured", 2940, {})
    assert mean["num_parameters"] == 256 * 4 + 4
    assert mean["train"]["samples_per_second"] == pytest.approx(1 / mean["train"]["seconds"])
    # 3.0 MB of tokens are there at the least; how the system counts pages is a little coarse
    assert min(mean[work]["peak_bytes"] for work in ("forward", "train")) > 2_000_000
    assert stam["status"] == "skipped"
    assert "CLS" in stam["reason"]
    assert found["machine"]["torch"] == torch.__version__
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", BenchMemoryError, "killed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", BenchFailedError, "SIGSEGV"),
        ("sys.exit('the layer is broken')", BenchFailedError, "exit code 1: the layer is broken"),
        ("print('half an ans', end='')", BenchFailedError, "exit code 0"),
    ],
)
def test_a_process_that_ends_while_it_is_asked(code, expected, words):
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the worker closes it
    command = [sys.executable, "-c", f"import os, signal, sys; input(); {code}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
    )
    worker = ChildWorker(process, errors)
    with pytest.raises(expected, match=words):
        worker.turn("forward")
    with pytest.raises(expected):  # and it stays so
        worker.turn("forward")
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory so")
def test_a_process_takes_no_more_memory_than_it_may():
    """Two tensors of 2 · 980² scores, 7.7 MB each and two windows, where 8 MB are allowed."""
    options = {"attention": "materialised", "heads": 2}
    worker = ChildWorker.start(question("lst", options, frames=20, grid=(7, 7), prefix=0))
    assert worker.about.least_bytes["forward"] > 2 * 2 * 2 * 980**2 * 4
    assert worker.limit(8_000_000) == 8_000_000
    with pytest.raises(BenchMemoryError, match="allocate"):
        worker.turn("forward")
    worker.close()


def test_a_request_is_checked_when_it_is_made():
    request = BenchRequest(subjects=parse_subjects("mean"), views=parse_views("4x1x1"))
    for field, words in (("batch_size", "--batch-size"), ("repeats", "--repeats")):
        with pytest.raises(UsageError, match=words):
            replace(request, **{field: 0})
    result = CliRunner().invoke(app, ["bench", "--max-memory", "nan"])
    assert result.exit_code == 2
    assert "--max-memory" in result.stderr


def test_the_table_has_ours_the_papers_and_what_is_missing(monkeypatch):
    log = []
    workers = {
        "vis4mer": FakeWorker("vis4mer", log, [0.1]),
        "lst": FakeWorker("lst", log, [0.2], least=10**10),
    }
    from vis4mer.decode.bench import measure

    found = bench(workers, decoders="vis4mer,lst", max_bytes=10**9)
    monkeypatch.setattr(measure, "run_bench", lambda *_, **__: found)
    shown = CliRunner().invoke(app, ["bench"]).stdout
    assert "paper/s (their GPU)" in shown
    assert "12.46" in shown
    assert "0.803 ×" in shown  # 10 samples/s over 12.46
    assert "skipped: lst at 60x1x1: the training step needs at least 10.0 GB" in shown
