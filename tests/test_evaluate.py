"""Evaluation with decoders simple enough to know by hand what they say."""

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from torch import nn
from vis4mer.decode.config import load_config
from vis4mer.decode.data.plan import WindowPlan
from vis4mer.decode.device import Compute
from vis4mer.decode.judging.evaluate import evaluate_run, evaluate_split
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.judging.stream import StreamPredictor, tokens_as_stored
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.train import train_decoder
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import FingerprintError, UsageError, Vis4merError
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.views import TokenView

LOG3 = float(np.log(3))


class FirstFrame(nn.Module):
    """Logits are the first two dimensions of the first frame's first token."""

    def forward(self, batch):
        return batch.patch[:, 0, 0, 0, :2]


class CountFrames(nn.Module):
    """The value is the number of real frames."""

    def forward(self, batch):
        return batch.mask.sum(dim=1, keepdim=True).float()


def cache_of_logits(tmp_path, videos, *, rows, kind="classification"):
    """Entries whose frame t carries logits videos[id][t] where FirstFrame looks."""
    cache = create_cache(tmp_path / "c.zarr", make_spec(grid=(1, 1), dim=2, num_prefix=0))
    for name, logits in videos.items():
        write_tokens(cache, name, np.array(logits, dtype=np.float32)[:, None])
    classes = ("a", "b") if kind == "classification" else ()
    cache.save_task(TaskTable(dataset="d", task="t", kind=kind, classes=classes, rows=tuple(rows)))
    return cache


def judge(model, cache, *, seconds, stride, batch_size=3):
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=seconds)
    return evaluate_split(
        model,
        cache,
        cache.task("d/t"),
        "test",
        plan,
        Compute.of(device="cpu"),
        stride_seconds=stride,
        batch_size=batch_size,
        workers=2,
    )


def test_votes_of_all_windows_decide_and_what_is_missing_is_said(tmp_path):
    # Windows of 2 frames at a stride of 1: a video of T frames has T - 1 of them.
    videos = {
        "even": [(LOG3, 0), (0, LOG3), (9, 0)],  # (3/4, 1/4) + (1/4, 3/4): a tie, class a
        "majority": [(0, LOG3), (0, LOG3), (LOG3, 0), (9, 0)],  # 1/4+1/4+3/4 < 3/4+3/4+1/4: b
        "short": [(0, LOG3)],  # one frame, one window: b
    }
    rows = [
        TaskRow(id="even", split="test", label=0),
        TaskRow(id="majority", split="test", label=1),
        TaskRow(id="short", split="test", label=0),
        TaskRow(id="gone", split="test", label=1),
    ]
    judged = judge(FirstFrame(), cache_of_logits(tmp_path, videos, rows=rows), seconds=2, stride=1)
    assert [p.num_windows for p in judged.predictions] == [2, 3, 1]
    np.testing.assert_allclose(
        [p.output for p in judged.predictions],
        [(1 / 2, 1 / 2), (5 / 12, 7 / 12), (1 / 4, 3 / 4)],
        atol=1e-3,  # log 3 as float16
    )
    assert [p.predicted_class for p in judged.predictions] == [0, 1, 1]
    assert (judged.correct, judged.total) == (2, 3)
    assert judged.coverage.missing == ("gone",)
    assert judged.floor == pytest.approx(2 / 3)


def test_regression_is_the_mean_over_windows_and_knows_extents(tmp_path):
    videos = {"long": [(0, 0)] * 7, "cut": [(0, 0)] * 9}
    rows = [
        TaskRow(id="long", split="test", label=5.0),
        TaskRow(id="cut", split="test", label=2.0, start_seconds=1, end_seconds=4),
    ]
    cache = cache_of_logits(tmp_path, videos, rows=rows, kind="regression")
    judged = judge(CountFrames(), cache, seconds=5, stride=1)
    assert [(p.value, p.num_windows) for p in judged.predictions] == [(5.0, 3), (3.0, 1)]
    assert judged.mse == pytest.approx((0 + 1) / 2)
    assert judged.floor == pytest.approx((25 + 4) / 2)


def test_the_batch_size_changes_nothing(tmp_path):
    random = np.random.default_rng(0)
    videos = {f"v{i}": random.standard_normal((n, 2)) for i, n in enumerate([1, 9, 4, 6])}
    rows = [TaskRow(id=name, split="test", label=0) for name in videos]
    cache = cache_of_logits(tmp_path, videos, rows=rows)
    results = [judge(FirstFrame(), cache, seconds=3, stride=1, batch_size=n) for n in (1, 4, 100)]
    assert results[0].predictions == results[1].predictions == results[2].predictions
    assert len({r.bytes_read for r in results}) == 1


def test_an_output_that_is_no_number_is_an_error_that_names_the_video(tmp_path):
    class Broken(FirstFrame):
        def forward(self, batch):
            return super().forward(batch) * float("nan")

    rows = [TaskRow(id="v", split="test", label=0)]
    cache = cache_of_logits(tmp_path, {"v": [(1, 1)]}, rows=rows)
    with pytest.raises(Vis4merError, match="video 'v' is \\[nan, nan\\]"):
        judge(Broken(), cache, seconds=2, stride=1)


# A trained run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    cache = make_cache(folder, num_videos=16, frames=11, signal=1.0)
    config = load_config(
        flags={
            "task": "toy/label",
            "epochs": 2,
            "window_seconds": 4,
            "tokens": "4x2x2+cls",
            "decoder.name": "vis4mer",
            "decoder.variant": "official",
            "decoder.depth": 1,
            "decoder.state_size": 4,
            "optimizer.lr": 0.02,
        }
    )
    return cache, train_decoder(cache, config, folder / "run"), open_run(folder / "run")


def test_evaluating_the_run_repeats_its_own_result(trained):
    cache, result, run = trained
    again = evaluate_run(run, cache)
    assert again.predictions == result.test.predictions
    assert evaluate_run(run, cache, split="val").predictions == result.val.predictions


def test_another_cache_another_task_and_strictness(trained, tmp_path):
    cache, _, run = trained
    with pytest.raises(FingerprintError, match="dim"):
        evaluate_run(run, make_cache(tmp_path / "wide", dim=8))
    three = make_cache(tmp_path / "three", num_videos=6, num_classes=3)
    with pytest.raises(UsageError, match=r"choice of 3 classes.*learned a choice of 2"):
        evaluate_run(run, three)
    table = cache.task("toy/label")
    rows = (*table.rows, TaskRow(id="gone", split="test", label=0))
    partial = make_cache(tmp_path / "partial", num_videos=16, frames=11)
    partial.save_task(
        TaskTable(dataset="toy", task="label", kind=table.kind, classes=table.classes, rows=rows)
    )
    assert evaluate_run(run, partial).coverage.missing == ("gone",)
    with pytest.raises(Vis4merError, match="missing: gone; extract the missing videos, or leave"):
        evaluate_run(run, partial, strict=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stride_seconds": 0}, "stride_seconds is 0, expected more than 0 seconds"),
        ({"stride_seconds": -1.0}, "stride_seconds is -1.0, expected more than 0"),
        ({"stride_seconds": float("nan")}, "stride_seconds is nan"),
        ({"stride_seconds": float("inf")}, "stride_seconds is inf"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"workers": 0}, "workers is 0, expected at least 1"),
        ({"precision": "half"}, "precision is 'half', expected one of auto, float32, bfloat16"),
        ({"device": "mps"}, "device 'mps': decoders are computed on a CPU or a CUDA GPU"),
    ],
)
@pytest.mark.parametrize("judge_run", [evaluate_run, predict_entries])
def test_numbers_and_choices_out_of_range_are_refused(trained, judge_run, asked, message):
    cache, _, run = trained
    with pytest.raises(UsageError, match=message):
        judge_run(run, cache, **asked)


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        ("cuda", None, ("float32", "bfloat16")),  # as each was trained
        ("cuda", "auto", ("bfloat16", "bfloat16")),
        ("cpu", None, ("float32", "float32")),
        ("cpu", "bfloat16", ("bfloat16", "bfloat16")),
    ],
)
def test_a_run_is_judged_in_the_precision_it_was_trained_in(monkeypatch, device, asked, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    runs = [load_config(flags={"task": "a/b", "precision": p}) for p in ("float32", "bfloat16")]
    found = [Compute.for_run(run, device=device, precision=asked).precision for run in runs]
    assert tuple(found) == expected


def test_predicting_entries_agrees_with_judging_them(trained):
    cache, result, run = trained
    judged = {p.id: p.output for p in result.test.predictions}
    predictions = predict_entries(run, cache, sorted(judged))
    for prediction in predictions:
        np.testing.assert_allclose(prediction.output, judged[prediction.id], atol=1e-6)
        assert [(w.start_seconds, w.end_seconds) for w in prediction.windows] == [
            (float(s), s + 4.0) for s in range(8)
        ]
        best, other = prediction.top()
        assert best.probability >= other.probability
        assert {best.name, other.name} == {"class0", "class1"}
    assert len(predict_entries(run, cache)) == len(cache)


def test_a_stream_says_at_each_reset_what_the_window_says(trained):
    cache, _, run = trained
    patch = cache.read("v3", "patch").astype(np.float32)
    prefix = cache.read("v3", "prefix").astype(np.float32)
    stored = {w.start_seconds: w.output for w in predict_entries(run, cache, ["v3"])[0].windows}
    stream = StreamPredictor(run)
    said = [stream.push(patch[t], prefix[t], pts_seconds=float(t)) for t in range(len(patch))]
    assert [s.window_frames for s in said] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]
    ends = [s for s in said if s.complete]
    assert [s.frame for s in ends] == [3, 7]
    for end, start in zip(ends, (0.0, 4.0), strict=True):
        np.testing.assert_allclose(end.output, stored[start], atol=1e-4)
    stream.reset()  # amid a window
    again = [stream.push(patch[t], prefix[t], pts_seconds=float(t)) for t in range(len(patch))]
    assert again == said


def test_a_stream_of_a_thinner_view_at_another_frame_rate(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=14, fps=2.0)
    flags = {"task": "toy/label", "epochs": 1, "window_seconds": 3, "decoder.name": "mean"}
    flags |= {"tokens": "3x1x1", "final_stride_seconds": 1.5}
    train_decoder(cache, load_config(flags=flags), tmp_path / "run")
    run = open_run(tmp_path / "run")
    windows = predict_entries(run, cache, ["v2"])[0].windows
    assert [(w.start_seconds, w.end_seconds) for w in windows] == [
        (0.0, 3.0),
        (1.5, 4.5),
        (3.0, 6.0),
    ]
    patch = cache.read("v2", "patch").astype(np.float32)
    expected = torch.from_numpy(patch[[0, 2, 4]]).mean(dim=(0, 1))
    head = run.load_decoder().head
    np.testing.assert_allclose(windows[0].output, head(expected).softmax(dim=0).detach(), atol=1e-5)
    stream = StreamPredictor(run)
    said = [stream.push(frame, None, pts_seconds=0.0) for frame in patch]
    ends = [s for s in said if s.complete]
    assert [s.frame for s in ends] == [5, 11]
    np.testing.assert_allclose(ends[0].output, windows[0].output, atol=1e-5)
    np.testing.assert_allclose(ends[1].output, windows[2].output, atol=1e-5)
    assert said[1].output == said[0].output  # a frame that the view leaves out changes nothing


@pytest.mark.parametrize("stored_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", ["4x4+cls", "2x2", "3x3", "cls"])
def test_a_stream_sees_tokens_as_a_cache_would_give_them(tmp_path, stored_dtype, tokens):
    spec = make_spec(grid=(4, 4), arrays=("patch", "prefix", "grid2"), stored_dtype=stored_dtype)
    random = np.random.default_rng(0)
    patch = random.standard_normal((2, 16, 16)).astype(np.float32)
    prefix = random.standard_normal((2, 1, 16)).astype(np.float32)
    cache = create_cache(tmp_path / "c.zarr", spec)
    write_tokens(cache, "v", patch, prefix)
    view = TokenView.parse(tokens)
    stored = cache.read_view("v", view, pool=False)
    streamed = tokens_as_stored(spec, view, patch, prefix)
    for one, other in ((stored.patch, streamed.patch), (stored.prefix, streamed.prefix)):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


def test_a_stream_needs_the_tokens_of_its_view(trained):
    _, _, run = trained
    with pytest.raises(ValueError, match="needs the prefix tokens"):
        StreamPredictor(run).push(np.zeros((4, 16), np.float32), None, pts_seconds=0.0)


def test_the_caller_keeps_its_random_numbers(trained):
    cache, _, run = trained
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate_run(run, cache)
    assert torch.equal(torch.rand(3), expected)
