"""What the probe makes of its measurements. That it measures is seen, how fast is not."""

from __future__ import annotations

from pathlib import Path

import extraction as ex
import media
import pytest
from vis4mer.extract.planning.probe import READ_SECONDS, ProbeResult, probe_rates
from vis4mer.extract.request import ExtractRequest, plan_videos
from vis4mer.store.spec import Sampling


@pytest.fixture(autouse=True)
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vis4mer.extract.planning.probe.ENCODE_SECONDS", 0.0)


def result(**changes: object) -> ProbeResult:
    values = {
        "device": "cuda",
        "workers": 4,
        "clip_frames": 1,
        "on_cpu": False,
        "backbone_frames_per_second": 300.0,
        "reading_frames_per_second": 100.0,
    }
    return ProbeResult(**{**values, **changes})  # type: ignore[arg-type]


def test_the_slower_stage_sets_the_pace() -> None:
    assert (result().frames_per_second, result().bottleneck) == (100.0, "reading")
    quick = result(reading_frames_per_second=900.0)
    assert (quick.frames_per_second, quick.bottleneck) == (300.0, "backbone")
    nothing_to_read = result(reading_frames_per_second=None)
    assert (nothing_to_read.frames_per_second, nothing_to_read.bottleneck) == (300.0, "backbone")


def test_on_a_cpu_both_take_the_same_cores() -> None:
    """A frame costs 1/300 s there and 1/100 s here: 1/75 s."""
    assert result(on_cpu=True).frames_per_second == pytest.approx(75.0)


def test_hours() -> None:
    assert result().hours(720_000) == pytest.approx(2.0)
    # a frame of tokens of a clip backbone takes 32 frames of video
    assert result(clip_frames=32).hours(720_000) == pytest.approx(64.0)
    assert result().hours(0) == 0.0


def test_a_few_videos_and_a_few_batches_are_tried(tmp_path: Path) -> None:
    for number in range(9):
        ex.write_video(tmp_path, f"v{number}", 12)
    ex.write_video(tmp_path, "v4", 12, open="no")  # the one in the middle
    backbone, reader = ex.grey_backbone(), ex.FakeReader()
    found = probe_rates(backbone, ex.videos(tmp_path), reader, sampling=Sampling(), workers=1)
    assert found.backbone_frames_per_second > 0
    assert found.reading_frames_per_second is not None
    assert found.reading_frames_per_second > 0
    assert (found.on_cpu, found.device, found.clip_frames) == (True, "cpu", 1)
    assert len(reader.streams) == 2  # the first and the last
    assert all(stream.closed for stream in reader.streams)


def test_a_long_video_is_left_when_enough_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ex.write_video(tmp_path, "long", 100_000)
    ticks = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: READ_SECONDS / 4 * next(ticks))
    frames: list[None] = []
    reader = ex.FakeReader(on_frame=lambda: frames.append(None))
    found = probe_rates(ex.grey_backbone(), ex.videos(tmp_path), reader, sampling=Sampling())
    assert found.reading_frames_per_second
    assert len(frames) < 100


def test_without_videos_the_backbone_alone_is_tried() -> None:
    found = probe_rates(ex.grey_backbone(), [], ex.FakeReader(), sampling=Sampling())
    assert found.reading_frames_per_second is None


def test_a_plan_with_a_probe_says_hours(tmp_path: Path) -> None:
    media.write_clip(tmp_path / "a.mp4", num_frames=20, rate=10)
    asked = ExtractRequest(
        inputs=[str(tmp_path)],
        cache=tmp_path / "c.zarr",
        backbone="vit_tiny_patch16_224@32",
        device="cpu",
    )
    found = plan_videos(asked, probe=True)
    assert found.probe is not None
    assert found.hours is not None
    assert found.hours > 0
    assert found.hours_with_missing == found.hours
    assert plan_videos(asked).hours is None
