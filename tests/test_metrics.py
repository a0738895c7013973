"""Figures over videos, against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from vis4mer.decode.metrics import Coverage, EvaluationResult, VideoPrediction, predict_video
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


def video(name, label, *output):
    return VideoPrediction(id=name, label=label, output=output, num_windows=2)


def test_windows_are_averaged_as_probabilities_not_as_logits():
    outputs = np.array([[0.0, LOG3]] * 3 + [[100.0, 0.0]])
    prediction = predict_video(outputs, id="v", label=1, kind="classification")
    np.testing.assert_allclose(prediction.output, [(3 * 0.25 + 1) / 4, 3 * 0.75 / 4])
    assert prediction.predicted_class == 1
    assert outputs.mean(axis=0).argmax() == 0  # one sure window would decide a mean of logits


def test_a_tie_goes_to_the_lower_class():
    outputs = np.array([[0.0, LOG3, -50.0], [LOG3, 0.0, -50.0]])
    assert predict_video(outputs, id="v", label=1, kind="classification").predicted_class == 0


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
    assert "75.0 % (3/4" in described
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
        [video("p", 2, 0.5, 0.3, 0.2)], coverage=Coverage(total=3, missing=("m",), short=("s",))
    )
    data = json.loads(json.dumps(judged.to_json()))
    assert EvaluationResult.from_json(data, name="r") == judged


def test_nothing_to_judge_is_said_and_not_a_division_by_zero():
    judged = result([], coverage=Coverage(total=1, missing=("m",)))
    assert "nothing to judge (0/1 test videos, missing: m)" in judged.describe()
    assert json.loads(json.dumps(judged.to_json()))["total"] == 0


@pytest.mark.parametrize(
    "row", [["p", 7, [0.5, 0.3, 0.2], 1], ["p", 1, [0.5, 0.5], 1], ["p", 1], "p", ["p", 1, [], 0]]
)
def test_a_foreign_prediction_is_refused(row):
    data = result([]).to_json() | {"predictions": [row]}
    with pytest.raises(CacheFormatError, match="r"):
        EvaluationResult.from_json(data, name="r")


def test_a_long_list_of_missing_videos_is_cut():
    text = Coverage(total=30, missing=tuple(f"v{i}" for i in range(25))).describe("test")
    assert "5/30 test videos" in text
    assert "v9 and 15 more" in text
