"""Figures over videos, against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from vis4mer.decode.judging.coverage import Coverage
from vis4mer.decode.judging.metrics import (
    EvaluationResult,
    VideoPrediction,
    predict_video,
    video_output,
)
from vis4mer.store.errors import CacheFormatError

LOG3 = math.log(3)  # the softmax of (0, log 3) is (1/4, 3/4)


def result(predictions, *, kind="classification", classes=("a", "b", "c"), coverage=None):
    return EvaluationResult(
        task="toy/label",
        kind=kind,
        classes=classes if kind == "classification" else (),
        split="test",
        stride_seconds=1.0,
        predictions=tuple(predictions),
        coverage=coverage or Coverage(total=len(predictions)),
        seconds=0.5,
        bytes_read=10,
    )


def video(name, label, *output, seen=False):
    return VideoPrediction(
        id=name, label=label, output=output, num_windows=2, seen_in_training=seen
    )


def test_windows_are_averaged_as_probabilities_not_as_logits():
    outputs = np.array([[0.0, LOG3]] * 3 + [[100.0, 0.0]])
    prediction = predict_video(outputs, id="v", label=1, kind="classification")
    np.testing.assert_allclose(prediction.output, [(3 * 0.25 + 1) / 4, 3 * 0.75 / 4])
    assert prediction.predicted_class == 1
    assert outputs.mean(axis=0).argmax() == 0  # one sure window would decide a mean of logits


def test_a_tie_goes_to_the_lower_class():
    outputs = np.array([[0.0, LOG3, -50.0], [LOG3, 0.0, -50.0]])
    assert predict_video(outputs, id="v", label=1, kind="classification").predicted_class == 0


def test_a_tie_does_not_hang_on_the_order_of_the_windows():
    shares = np.array([[0.1, 0.3, 0.6], [0.2, 0.2, 0.6], [0.3, 0.1, 0.6]])
    first, second, _ = video_output(shares)
    assert first == second
    assert shares[:, 0].sum() != shares[::-1, 0].sum()  # which plain sums would not say


def test_regression_takes_the_mean_prediction():
    prediction = predict_video(np.array([[1.0], [2.0], [6.0]]), id="v", label=2, kind="regression")
    assert prediction.value == 3.0
    judged = result([prediction, video("w", -1.0, 1.0)], kind="regression")
    assert judged.mse == pytest.approx(((3 - 2) ** 2 + (1 + 1) ** 2) / 2)
    assert judged.floor == pytest.approx((4 + 1) / 2)
    assert judged.loss == judged.mse
    assert judged.score == -judged.mse


def test_accuracy_floor_classes_and_confusion():
    judged = result(
        [
            video("p", 0, 0.5, 0.3, 0.2),  # right
            video("q", 0, 0.1, 0.8, 0.1),  # called b
            video("r", 1, 0.2, 0.5, 0.3),  # right
            video("s", 0, 0.4, 0.4, 0.2),  # a tie: a, right
        ],
        coverage=Coverage(total=7, missing=("x",), empty=("y",), short=("z",)),
    )
    assert (judged.correct, judged.total, judged.accuracy) == (3, 4, 0.75)
    assert judged.floor == 0.75  # three of four are a
    assert judged.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert judged.loss == pytest.approx(-np.log([0.5, 0.1, 0.5, 0.4]).mean())
    described = judged.describe()
    assert "75.0 % (3/4), most frequent class 75.0 %; " in described
    assert (
        "4/7 test videos, missing: x, without frames: y, too short for the decoder: z" in described
    )
    figures = judged.to_json()
    assert figures["per_class"] == [
        {"class": "a", "correct": 2, "total": 3},
        {"class": "b", "correct": 1, "total": 1},
        {"class": "c", "correct": 0, "total": 0},
    ]


def test_a_sure_mistake_costs_a_finite_loss():
    assert result([video("p", 1, 1.0, 0.0, 0.0)]).loss == pytest.approx(-math.log(1e-12))


def test_json_gives_the_result_back():
    judged = result(
        [video("p", 2, 0.5, 0.3, 0.2, seen=True), video("q", 0, 0.5, 0.3, 0.2)],
        coverage=Coverage(total=4, missing=("m",), short=("s",)),
    )
    data = json.loads(json.dumps(judged.to_json()))
    assert EvaluationResult.from_json(data, name="r") == judged


def test_nothing_to_judge_is_said_and_not_a_division_by_zero():
    judged = result([], coverage=Coverage(total=1, missing=("m",)))
    assert "nothing to judge (0/1 test videos, missing: m)" in judged.describe()
    assert json.loads(json.dumps(judged.to_json()))["total"] == 0


@pytest.mark.parametrize(
    "row",
    [
        ["p", 7, [0.5, 0.3, 0.2], 1, False],
        ["p", 1, [0.5, 0.5], 1, False],
        ["p", 1],
        "p",
        ["p", 1, [], 0, False],
        ["p", 1, [0.5, 0.3, 0.2], 1],
        ["p", 1, [0.5, 0.3, 0.2], 1, 0],
    ],
)
def test_a_foreign_prediction_is_refused(row):
    data = result([]).to_json() | {"predictions": [row]}
    with pytest.raises(CacheFormatError, match="r"):
        EvaluationResult.from_json(data, name="r")


def test_a_long_list_of_missing_videos_is_cut():
    text = Coverage(total=30, missing=tuple(f"v{i}" for i in range(25))).describe("test")
    assert "5/30 test videos" in text
    assert "v9 and 15 more" in text


def test_the_same_figures_over_videos_of_unseen_groups():
    judged = result(
        [
            video("p", 0, 0.5, 0.3, 0.2, seen=True),  # right
            video("q", 0, 0.1, 0.8, 0.1, seen=True),  # wrong
            video("r", 1, 0.2, 0.5, 0.3),  # right
            video("s", 1, 0.1, 0.2, 0.7),  # wrong
            video("t", 2, 0.4, 0.4, 0.2),  # wrong
        ]
    )
    unseen = judged.unseen
    assert (judged.num_seen, judged.correct, judged.total) == (2, 2, 5)
    assert (unseen.correct, unseen.total, unseen.floor) == (1, 3, 2 / 3)
    assert unseen.confusion.tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert judged.to_json()["unseen"]["correct"] == 1
    said = judged.describe_unseen()
    assert said == ("3/5 on groups unseen in training: 33.3 % (1/3), most frequent class 66.7 %")


def test_nothing_is_said_of_unseen_groups_where_all_are_and_no_figure_where_none_is():
    assert result([video("p", 0, 0.5, 0.3, 0.2)]).describe_unseen() is None
    judged = result([video("p", 0, 0.5, 0.3, 0.2, seen=True)])
    assert judged.describe_unseen() == "no judged video is of groups unseen in training"
    assert judged.to_json()["unseen"] == {"total": 0}


def test_the_interval_is_over_videos():
    # Errors of 0 and 4, half each: 2.5 % of 6 throws are all of one kind (1/64 each), so the
    # interval is 0 to 4 but for those.
    mixed = [video(f"v{i}", 1.0, 3.0 if i % 2 else 1.0) for i in range(6)]
    judged = result(mixed, kind="regression")
    assert 0 < judged.interval.low < 2 < judged.interval.high < 4
    low, high = judged.interval.low, judged.interval.high
    said = f"MSE 2.000 over 6, 95 % interval {low:.3f} to {high:.3f}, predicting zero 1.000"
    assert said in judged.describe()


def test_there_is_no_interval_that_would_say_nothing():
    alike = result([video(f"v{i}", 1.0, 3.0) for i in range(9)], kind="regression")
    assert alike.interval is None
    assert "MSE 4.000 over 9, predicting zero 1.000" in alike.describe()
    assert result([video("a", 1.0, 3.0), video("b", 1.0, 1.0)], kind="regression").interval is None
    assert result([]).interval is None
