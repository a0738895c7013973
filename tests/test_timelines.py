"""Predictions over time: written and read back, and never believed when the file is damaged."""

import numpy as np
import pytest
import torch
from vis4mer.decode.runs.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from vis4mer.decode.runs.timelines import VideoTimeline, read_timelines, write_timelines
from vis4mer.store.errors import CacheFormatError, Vis4merError


def timeline(name, windows, *, outputs=3, label=1.0):
    random = np.random.default_rng(windows)
    return VideoTimeline(
        id=name,
        label=label,
        start_seconds=np.arange(windows) + 0.25,
        end_seconds=np.arange(windows) + 60.25,
        outputs=random.random((windows, outputs), dtype=np.float32),
    )


def test_what_is_written_is_read_in_order(tmp_path):
    path = tmp_path / "timelines.safetensors"
    lines = [timeline("../x", 3), timeline("<b>", 1, label=0.0), timeline("../x", 2)]
    write_timelines(path, lines)
    found = read_timelines(path)
    assert [(t.id, t.label) for t in found] == [("../x", 1.0), ("<b>", 0.0), ("../x", 1.0)]
    for one, other in zip(lines, found, strict=True):
        np.testing.assert_array_equal(one.start_seconds, other.start_seconds)
        np.testing.assert_array_equal(one.end_seconds, other.end_seconds)
        np.testing.assert_array_equal(one.outputs, other.outputs)
        assert other.outputs.dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "about", "message"),
    [
        ({"outputs": None}, {}, "lacks the tensor 'outputs'"),
        ({"outputs": torch.zeros(4, 3)}, {}, r"outputs is torch.float32 \(4, 3\).*for 5 windows"),
        ({"outputs": torch.zeros(5, 3).double()}, {}, "outputs is torch.float64"),
        ({"outputs": torch.zeros(5)}, {}, r"outputs is torch.float32 \(5,\)"),
        ({"outputs": torch.full((5, 3), torch.nan)}, {}, "outputs holds values that are not fin"),
        ({}, {"num_windows": [5, 0]}, "and windows in each"),
        ({}, {"num_windows": [5]}, "2 ids, 2 labels and 1 numbers of windows"),
        ({}, {"ids": ["a", 3]}, "a list of text"),
        ({}, {"labels": [0, "1"]}, "a finite number"),
        ({}, {"num_windows": [2, 10**18]}, "for 1000000000000000002 windows"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, tensors, about, message):
    path = tmp_path / "timelines.safetensors"
    write_timelines(path, [timeline("a", 3), timeline("b", 2)])
    sound = read_checkpoint(path)
    changed = {k: v for k, v in (dict(sound.tensors) | tensors).items() if v is not None}
    write_checkpoint(path, Checkpoint(tensors=changed, about=dict(sound.about) | about))
    with pytest.raises(CacheFormatError, match=message):
        read_timelines(path)


def test_no_file_and_another_file_are_one_line(tmp_path):
    with pytest.raises(Vis4merError, match="no such checkpoint"):
        read_timelines(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(CacheFormatError, match="not a safetensors file"):
        read_timelines(tmp_path / "text")
