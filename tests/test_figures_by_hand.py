"""From tokens in a cache to k/N and MSE, every number worked out by hand.

Windows of 3 frames, one frame a second, a window every second. A decoder reads its answer off the
first frame of a window, so a video of T frames is judged by its frames 0 to T - 3.

    video    frames   first frames of windows   label    group
    tie         4     a, b                        b      m1
    short       2     b (shorter than a window)   b      m2, which has a training video
    long        5     b, b, a                     b      m3
    sure        3     a                           a      m4
    gone        not in the cache                  a      m5
"""

import numpy as np
import pytest
from caches import make_spec, write_tokens
from torch import nn
from vis4mer.decode.data.plan import WindowPlan
from vis4mer.decode.device import Compute
from vis4mer.decode.judging.evaluate import evaluate_split
from vis4mer.store.cache import create_cache
from vis4mer.store.tasks import TaskRow, TaskTable

A, B = (1.0, 0.0), (0.0, 1.0)
VOTES = {
    "tie": [A, B, A, A],
    "short": [B, A],
    "long": [B, B, A, A, A],
    "sure": [A, B, B],
    "train": [A, A, A],
}
VALUES = {
    "tie": [1, 3, 50, 50],  # mean 2
    "short": [-1, 50],  # -1
    "long": [0, 3, 6, 50, 50],  # 3
    "sure": [0.5, 50, 50],  # 0.5
    "train": [0, 0, 0],
}
GROUPS = {"tie": "m1", "short": "m2", "long": "m3", "sure": "m4", "gone": "m5", "train": "m2"}


class FirstFrame(nn.Module):
    """The first numbers of the first frame's token, as many as there are outputs."""

    def __init__(self, num_outputs):
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, batch):
        return batch.patch[:, 0, 0, 0, : self.num_outputs]


def judge(folder, frames, labels, classes):
    """Frames of a video: the numbers that its tokens begin with."""
    cache = create_cache(folder / "c.zarr", make_spec(grid=(1, 1), dim=2, num_prefix=0))
    for name, numbers in frames.items():
        tokens = np.zeros((len(numbers), 1, 2))  # T 1 D
        tokens[:, 0, : len(classes) or 1] = np.reshape(numbers, (len(numbers), -1))
        write_tokens(cache, name, tokens)
    rows = [TaskRow(id="train", split="train", label=0, group=GROUPS["train"])]
    rows += [
        TaskRow(id=name, split="test", label=label, group=GROUPS[name])
        for name, label in labels.items()
    ]
    table = TaskTable(
        dataset="lvu",
        task="toy",
        kind="classification" if classes else "regression",
        classes=classes,
        rows=tuple(rows),
    )
    return evaluate_split(
        FirstFrame(len(classes) or 1),
        cache,
        table,
        "test",
        WindowPlan.of(cache.spec, tokens=None, window_seconds=3),
        Compute.of(device="cpu"),
        stride_seconds=1,
        batch_size=2,
        workers=1,
    )


def test_k_of_n(tmp_path):
    labels = {"tie": 1, "short": 1, "long": 1, "sure": 0, "gone": 0}
    judged = judge(tmp_path, VOTES, labels, ("a", "b"))
    called = {p.id: (p.num_windows, p.predicted_class) for p in judged.predictions}
    # A tie goes to the lower class, here the wrong one.
    assert called == {"tie": (2, 0), "short": (1, 1), "long": (3, 1), "sure": (1, 0)}
    assert (judged.correct, judged.total, judged.floor) == (3, 4, 3 / 4)
    assert judged.confusion.tolist() == [[1, 0], [1, 2]]
    assert (judged.unseen.correct, judged.unseen.total, judged.unseen.floor) == (2, 3, 2 / 3)
    described = judged.describe()
    assert described.startswith("lvu/toy test: 75.0 % (3/4), most ")
    assert described.endswith("frequent class 75.0 %; 4/5 test videos, missing: gone")
    assert judged.describe_unseen() == (
        "3/4 on movies unseen in training: 66.7 % (2/3), most frequent class 66.7 %"
    )


def test_mean_squared_error(tmp_path):
    labels = {"tie": 2.5, "short": 1.0, "long": 3.0, "sure": 0.0, "gone": 9.0}
    judged = judge(tmp_path, VALUES, labels, ())
    assert [p.value for p in judged.predictions] == pytest.approx([2, -1, 3, 0.5])
    assert judged.mse == pytest.approx((0.25 + 4 + 0 + 0.25) / 4)
    assert judged.floor == pytest.approx((6.25 + 1 + 9 + 0) / 4)
    assert judged.unseen.mse == pytest.approx((0.25 + 0 + 0.25) / 3)
    assert judged.unseen.floor == pytest.approx((6.25 + 9 + 0) / 3)
    assert judged.coverage.missing == ("gone",)
