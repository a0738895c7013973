"""From files to predictions: what a run may bring about, in which order, and what stays."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import media
import numpy as np
import pytest
from vis4mer.both import predict
from vis4mer.both.predict import (
    StreamedFrame,
    StreamedVideo,
    load_backbone_of,
    predict_videos,
    stream_video,
    stream_videos,
)
from vis4mer.decode.config import DecoderConfig, TrainConfig
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.runs.run import Run, open_run
from vis4mer.decode.train import train_decoder
from vis4mer.extract.backbones.loading import cache_spec, load_backbone
from vis4mer.extract.protocols import PROTOCOLS
from vis4mer.extract.readers import VideoError, get_reader
from vis4mer.extract.request import ExtractRequest, extract_videos
from vis4mer.extract.sources import resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, FingerprintError, UsageError, Vis4merError
from vis4mer.store.files import seal
from vis4mer.store.spec import ProtocolName, Sampling

SECONDS, WINDOW = 8, 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips, a cache of them, and a run with a causal decoder."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "videos").mkdir()
    rows = ["path,label,split"]
    for i in range(5):
        path = folder / "videos" / f"{i}.mp4"
        media.write_clip(path, num_frames=SECONDS, rate=1, gop=3 + i)
        rows.append(f"{i}.mp4,{'even' if i % 2 else 'odd'},{'train' if i < 3 else 'test'}")
    labels = folder / "videos" / "mine.csv"
    labels.write_text("\n".join(rows) + "\n")
    extract_videos(
        ExtractRequest(
            inputs=[str(labels)],
            cache=folder / "c.zarr",
            backbone="vit_tiny_patch16_224@32",
            weights="random:3",
            device="cpu",
        )
    )
    config = TrainConfig(
        task="mine/label",
        decoder=DecoderConfig(options={"variant": "paper"}),
        tokens=f"{WINDOW}x2x2",
        window_seconds=WINDOW,
        final_stride_seconds=WINDOW,
        epochs=1,
        device="cpu",
    )
    train_decoder(open_cache(folder / "c.zarr"), config, folder / "run")
    return folder


@pytest.fixture
def broken(workspace: Path, tmp_path: Path) -> list[Path]:
    """Three good videos, with one that is none in their midst."""
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    good = [workspace / "videos" / f"{i}.mp4" for i in (4, 0, 3)]
    return [good[0], bad, *good[1:]]


def with_spec(run: Run, **changes: object) -> Run:
    """The run as it would be with another word in its spec, as far as that can be built."""
    spec = dataclasses.replace(run.about.spec, **changes)
    return dataclasses.replace(run, about=dataclasses.replace(run.about, spec=spec))


def test_the_run_may_be_a_path_and_the_order_is_that_of_the_videos(
    workspace: Path, broken: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In groups of two, and of which nothing stays."""
    monkeypatch.setattr(predict, "GROUP_VIDEOS", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders: list[int] = []
    told: list[str] = []

    def on_phase(what: str) -> None:
        told.append(what)
        folders.append(len(list(tmp_path.glob("vis4mer-predict-*"))))

    found = predict_videos(broken, workspace / "run", device="cpu", on_phase=on_phase)
    assert [done.id for done in found.predictions] == ["4.mp4", "0.mp4", "3.mp4"]
    assert [failure.id for failure in found.failures] == ["bad.mp4"]
    assert found.damaged == ()
    assert "extracting videos 3–4 of 4" in told
    assert max(folders) == 1
    assert not list(tmp_path.glob("vis4mer-predict-*"))
    at_once = predict_videos([workspace / "videos"], open_run(str(workspace / "run")), device="cpu")
    expected = {done.id: done.output for done in at_once.predictions}
    assert list(expected) == [f"{i}.mp4" for i in range(5)]
    for done in found.predictions:
        np.testing.assert_allclose(done.output, expected[done.id], atol=1e-5)


def test_when_all_videos_fail_the_answer_is_their_reasons(workspace: Path, tmp_path: Path) -> None:
    names = ["b.mp4", "a.mp4"]
    for name in names:
        (tmp_path / name).touch()
    found = predict_videos([tmp_path / name for name in names], workspace / "run", device="cpu")
    assert [failure.id for failure in found.failures] == names
    assert found.predictions == ()


def test_damaged_frames_are_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vis4mer.extract.readers.pyav import PyAVStream

    monkeypatch.setattr(PyAVStream, "damaged_frames", 2)
    video = workspace / "videos" / "1.mp4"
    found = predict_videos([video], workspace / "run", device="cpu")
    assert [(damaged.id, damaged.damaged_frames) for damaged in found.damaged] == [("1.mp4", 2)]
    *_, end = stream_videos([video], workspace / "run", device="cpu")
    assert isinstance(end, StreamedVideo)
    assert end.damaged_frames == 2


def test_what_cannot_be_is_refused_before_a_video_is_read(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the backbone was loaded")

    monkeypatch.setattr(predict, "load_backbone_of", refuse)
    videos = [workspace / "videos"]
    for call in (predict_videos, stream_videos):
        with pytest.raises(UsageError, match="device 'cuda:99'"):
            call(videos, workspace / "run", device="cuda:99")
        with pytest.raises(UsageError, match="does not exist"):
            call([tmp_path / "none.mp4"], workspace / "run", device="cpu")
        (tmp_path / "begun").mkdir(exist_ok=True)
        config = (workspace / "run" / "config.json").read_bytes()
        (tmp_path / "begun" / "config.json").write_bytes(config)
        with pytest.raises(Vis4merError, match="train it first"):
            call(videos, tmp_path / "begun", device="cpu")


def test_a_stream_tells_every_frame_and_every_end(workspace: Path, broken: list[Path]) -> None:
    events = list(stream_videos(broken, workspace / "run", device="cpu"))
    ends = [event for event in events if isinstance(event, StreamedVideo)]
    assert [(end.video.id, end.num_frames, end.damaged_frames) for end in ends] == [
        ("4.mp4", SECONDS, 0),
        ("bad.mp4", 0, 0),
        ("0.mp4", SECONDS, 0),
        ("3.mp4", SECONDS, 0),
    ]
    assert [end.failure is None for end in ends] == [True, False, True, True]
    assert "a text file" in str(ends[1].failure)
    whole = predict_videos(broken, workspace / "run", device="cpu")
    for done in whole.predictions:
        frames = [
            event.prediction
            for event in events
            if isinstance(event, StreamedFrame) and event.video.id == done.id
        ]
        assert [frame.frame for frame in frames] == list(range(SECONDS))
        resets = [frame.output for frame in frames if frame.complete]
        np.testing.assert_allclose(resets, [w.output for w in done.windows], atol=1e-4)


def test_a_single_stream_is_that_of_its_video(workspace: Path, broken: list[Path]) -> None:
    events = stream_videos(broken[:1], workspace / "run", device="cpu")
    frames = [event.prediction for event in events if isinstance(event, StreamedFrame)]
    assert list(stream_video(broken[0], workspace / "run", device="cpu")) == frames
    with pytest.raises(VideoError, match=r"bad\.mp4: a text file"):
        list(stream_video(broken[1], workspace / "run", device="cpu"))


# What an untrusted run may name ----------------------------------------------------------------


def test_a_run_that_names_a_path_as_its_weights_is_refused(workspace: Path, tmp_path: Path) -> None:
    """weights are no part of the fingerprint, so nothing else in the file gives them away."""
    secret = tmp_path / "secret.pth"
    secret.write_bytes(b"not to be opened")
    config = workspace / "run" / "config.json"
    about = json.loads(config.read_text())
    about.pop("checksum")
    about["spec"]["weights"] = str(secret)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes(seal(about))
    for call in (predict_videos, stream_videos):
        with pytest.raises(CacheFormatError, match=r"weights .*expected hub, file, unknown"):
            call([workspace / "videos"], run, device="cpu")


@pytest.mark.parametrize("weights", ["file", "/etc/passwd", "w.safetensors"])
def test_only_the_callers_own_word_opens_a_file(
    workspace: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even were a spec to hold a path, it would not be followed."""
    run = open_run(workspace / "run")
    object.__setattr__(run.about.spec, "weights", weights)
    monkeypatch.setattr(
        "vis4mer.extract.backbones.loading.load_backbone",
        lambda *_, **__: pytest.fail("it was loaded"),
    )
    with pytest.raises(UsageError, match="add --weights FILE"):
        load_backbone_of(run, device="cpu")


@pytest.mark.parametrize("backbone", ["os:system", "hf-hub:someone/model", "local-dir:/etc"])
def test_a_plug_in_or_a_hub_address_must_be_named_again(workspace: Path, backbone: str) -> None:
    run = with_spec(open_run(workspace / "run"), backbone=backbone)
    with pytest.raises(UsageError, match=f"add --backbone {backbone}"):
        load_backbone_of(run, device="cpu")


def test_the_runs_own_random_weights_are_used_and_others_refused(workspace: Path) -> None:
    run = open_run(workspace / "run")
    loaded = load_backbone_of(run, device="cpu")
    assert loaded.weights_sha256 == run.about.spec.weights_sha256
    with pytest.raises(Vis4merError, match="weights_sha256"):
        load_backbone_of(run, weights="random:4", device="cpu")


# Other ways to choose frames -------------------------------------------------------------------


def trained(workspace: Path, folder: Path, sampling: Sampling, protocol: ProtocolName) -> Path:
    """A run on tokens of the same five videos, chosen and prepared in another way."""
    own = load_backbone("vit_tiny_patch16_224@32", weights="random:3", device="cpu")
    backbone = PROTOCOLS[protocol].apply(own)
    cache = create_cache(folder / "c.zarr", cache_spec(backbone, sampling=sampling))
    fill_cache(resolve_sources([str(workspace / "videos")]), cache, backbone, get_reader("pyav"))
    cache.save_task(open_cache(workspace / "c.zarr").task("mine/label"))
    config = TrainConfig(
        task="mine/label",
        decoder=DecoderConfig(options={"variant": "paper"}),
        tokens="4x2x2",
        window_seconds=4,
        final_stride_seconds=4,
        epochs=1,
        device="cpu",
    )
    train_decoder(cache, config, folder / "run")
    return folder / "run"


def assert_predicted_as_in_the_cache(workspace: Path, run: Path) -> None:
    cache = open_cache(run.parent / "c.zarr")
    expected = predict_entries(open_run(run), cache, device="cpu")
    found = predict_videos([workspace / "videos"], run, device="cpu")
    assert found.failures == ()
    assert [done.id for done in found.predictions] == [done.id for done in expected]
    for done, other in zip(found.predictions, expected, strict=True):
        np.testing.assert_allclose(done.output, other.output, atol=1e-5)


def test_a_run_on_segments_predicts_whole_videos_and_no_streams(
    workspace: Path, tmp_path: Path
) -> None:
    run = trained(workspace, tmp_path, Sampling(kind="segments", segments=4), "clean")
    assert {open_cache(tmp_path / "c.zarr").record(f"{i}.mp4").num_frames for i in range(5)} == {4}
    assert_predicted_as_in_the_cache(workspace, run)
    with pytest.raises(UsageError, match=r"4 segments of 1 frame.*leave --stream out") as caught:
        stream_videos([workspace / "videos"], run, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_run_of_the_official_protocol_predicts_and_streams(
    workspace: Path, tmp_path: Path
) -> None:
    run = trained(workspace, tmp_path, Sampling(kind="spread"), "official")
    assert_predicted_as_in_the_cache(workspace, run)
    video = workspace / "videos" / "2.mp4"
    frames = list(stream_video(video, run, device="cpu"))
    whole = predict_videos([video], run, device="cpu").predictions[0]
    resets = [frame.output for frame in frames if frame.complete]
    assert len(frames) == SECONDS
    np.testing.assert_allclose(resets, [w.output for w in whole.windows], atol=1e-4)


def test_imported_tokens_are_refused_in_one_line(workspace: Path) -> None:
    run = with_spec(open_run(workspace / "run"), preprocess=None, weights="unknown")
    for call in (predict_videos, stream_videos):
        with pytest.raises(UsageError, match=r"imported tokens.*not known how") as caught:
            call([workspace / "videos"], run, device="cpu")
        assert "\n" not in str(caught.value)


def test_a_preprocessing_that_is_no_protocols_is_another_cache(workspace: Path) -> None:
    run = open_run(workspace / "run")
    assert run.about.spec.preprocess is not None
    odd = dataclasses.replace(run.about.spec.preprocess, size=(4096, 4096))
    with pytest.raises(FingerprintError, match=r"preprocess\.size"):
        load_backbone_of(with_spec(run, preprocess=odd), device="cpu")
