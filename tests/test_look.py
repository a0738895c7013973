"""Where a decoder looked, from the video file: which window, which frames, which patches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import media
import numpy as np
import pytest
import torch
from PIL import Image
from token_batches import padded, token_batch
from typer.testing import CliRunner
from vis4mer.both import look as looking
from vis4mer.both.look import predict_and_draw
from vis4mer.both.predict import predict_videos
from vis4mer.cli import app
from vis4mer.decode.config import DecoderConfig, TrainConfig
from vis4mer.decode.data.clips import Clip, collate, shuffled_order
from vis4mer.decode.data.timelines import window_key
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.judging.look import (
    WindowLook,
    find_window,
    look_at_window,
    require_look,
)
from vis4mer.decode.judging.predict import EntryPrediction, WindowPrediction, predict_entries
from vis4mer.decode.runs.run import Run, open_run
from vis4mer.decode.train import train_decoder
from vis4mer.extract.request import ExtractRequest, extract_videos
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.views import TokenView
from vis4mer.store.windows import Window

WINDOW = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 10, 3 and 4 s, a cache of them, and a run that keeps 40 % of 4 × 4 patches."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "videos").mkdir()
    for name, seconds in (("long", 10), ("short", 3), ("whole", 4)):
        media.write_clip(folder / "videos" / f"{name}.mp4", num_frames=seconds, rate=1, gop=3)
    labels = folder / "videos" / "mine.csv"
    labels.write_text("path,label,split\nlong.mp4,a,train\nshort.mp4,b,train\nwhole.mp4,a,test\n")
    extract_videos(
        ExtractRequest(
            inputs=[str(labels)],
            cache=folder / "c.zarr",
            backbone="vit_tiny_patch16_224@64",
            weights="random:3",
            device="cpu",
        )
    )
    config = TrainConfig(
        task="mine/label",
        decoder=DecoderConfig(
            name="selective_s4", options={"variant": "paper", "keep_ratio": 0.4, "depth": 1}
        ),
        tokens=f"{WINDOW}x4x4",
        window_seconds=WINDOW,
        final_stride_seconds=WINDOW,
        epochs=1,
        device="cpu",
    )
    train_decoder(open_cache(folder / "c.zarr"), config, folder / "run")
    return folder


def with_train(run: Run, **changes: object) -> Run:
    """The run as it would be with other words in its config, as far as that can be built."""
    train = dataclasses.replace(run.about.train, **changes)
    return dataclasses.replace(run, about=dataclasses.replace(run.about, train=train))


def look_at(workspace: Path, name: str, run: Run | None = None, **options: object) -> WindowLook:
    cache, run = open_cache(workspace / "c.zarr"), run or open_run(workspace / "run")
    stride = options.get("stride_seconds")
    [prediction] = predict_entries(run, cache, [name], device="cpu", stride_seconds=stride)
    return look_at_window(run, cache, prediction, device="cpu", **options)


def clip_of(cache: Cache, name: str, frames: list[int]) -> Clip:
    patch = torch.from_numpy(cache.read(name, "patch")[frames]).float()  # t 16 D
    return Clip(
        patch=patch.unflatten(1, (4, 4)),
        prefix=None,
        pts_seconds=torch.tensor(cache.record(name).pts_seconds, dtype=torch.float64)[frames],
    )


def kept_by_hand(workspace: Path, name: str, frames: list[int], **how: object) -> np.ndarray:
    """What the decoder says of a batch made here."""
    clip = clip_of(open_cache(workspace / "c.zarr"), name, frames)
    model = open_run(workspace / "run").load_decoder()
    return model.kept_patches(collate([clip], torch.float32, **how))[0].float().numpy()


# Of tokens --------------------------------------------------------------------------------------


def test_a_window_is_found_by_its_time(workspace: Path) -> None:
    first = look_at(workspace, "long.mp4")
    assert (first.number, first.num_windows, first.frames) == (0, 2, (0, 1, 2, 3))
    second = look_at(workspace, "long.mp4", at_seconds=4.0)
    assert (second.number, second.frames) == (1, (4, 5, 6, 7))
    assert second.seconds.tolist() == [4, 5, 6, 7]
    assert second.describe() == "4.0–8.0 s (window 2 of 2)"
    assert second.measure == "kept"
    for look in (first, second):
        expected = kept_by_hand(workspace, "long.mp4", list(look.frames))
        assert np.array_equal(look.patches, expected)
        assert expected.sum() == round(0.4 * 4 * 16)
    assert not np.array_equal(first.patches, second.patches)


def test_a_smaller_stride_gives_windows_of_its_own(workspace: Path) -> None:
    look = look_at(workspace, "long.mp4", at_seconds=9.5, stride_seconds=2)
    assert (look.number, look.num_windows, look.frames) == (3, 4, (6, 7, 8, 9))
    assert np.array_equal(look.patches, kept_by_hand(workspace, "long.mp4", [6, 7, 8, 9]))


@pytest.mark.parametrize("padding", ["masked", "zeros"])
def test_padding_of_a_short_video_is_not_shown(workspace: Path, padding: str) -> None:
    run = with_train(open_run(workspace / "run"), padding=padding)
    look = look_at(workspace, "short.mp4", run)
    frames = WINDOW if padding == "zeros" else None
    expected = kept_by_hand(workspace, "short.mp4", [0, 1, 2], padded_frames=frames)
    assert look.frames == (0, 1, 2)
    assert look.patches.shape == (3, 4, 4)
    assert np.array_equal(look.patches, expected[:3])


def test_of_shuffled_frames_each_is_shown_with_what_was_kept_of_it(workspace: Path) -> None:
    run = with_train(open_run(workspace / "run"), shuffle_frames=True)
    orders = []
    for start in (0, 2, 4, 6):
        look = look_at(workspace, "long.mp4", run, at_seconds=start + 2, stride_seconds=2)
        window = Window(start=start, stop=start + WINDOW)
        order = shuffled_order(window_key("long.mp4", window), WINDOW).tolist()
        as_met = kept_by_hand(workspace, "long.mp4", [start + i for i in order])
        assert look.frames == tuple(range(start, start + WINDOW))
        for place, frame in enumerate(order):
            assert np.array_equal(look.patches[frame], as_met[place])
        orders.append(order)
    assert any(order[order[0]] != 0 for order in orders)  # not every shuffle undoes itself


def test_patches_that_the_view_leaves_out_are_dropped(workspace: Path, tmp_path: Path) -> None:
    about = open_run(workspace / "run").about
    train = dataclasses.replace(about.train, tokens=f"{WINDOW}x4x4@stride3")
    train_decoder(open_cache(workspace / "c.zarr"), train, tmp_path / "run")
    look = look_at(workspace, "long.mp4", open_run(tmp_path / "run"))
    assert look.patches.shape == (4, 4, 4)
    in_view = np.arange(16) % 3 == 0
    assert not look.patches.reshape(4, 16)[:, ~in_view].any()
    assert look.patches.sum() == round(0.4 * 4 * in_view.sum())


def a_prediction(*spans: tuple[float, float]) -> EntryPrediction:
    windows = tuple(
        WindowPrediction(start_seconds=start, end_seconds=end, output=(1.0,))
        for start, end in spans
    )
    return EntryPrediction(id="v", kind="regression", classes=(), output=(1.0,), windows=windows)


def test_of_windows_that_overlap_the_one_around_the_time_is_taken() -> None:
    overlapping = a_prediction((0, 60), (20, 80), (40, 100))
    found = {at: find_window(overlapping, at) for at in (0, 19.9, 45, 59.9, 65, 99.9)}
    assert found == {0: 0, 19.9: 0, 45: 1, 59.9: 1, 65: 2, 99.9: 2}
    for at in (-0.1, 100.0, float("nan")):
        with pytest.raises(UsageError, match=r"expected a time in one of \[0, 60\), \[20, 80\)"):
            find_window(overlapping, at)


def test_weights_of_the_probe_are_its_softmax_over_real_tokens() -> None:
    batch = padded(token_batch(frames=3, grid=(2, 3), prefix=1, dim=8), 2)
    torch.manual_seed(0)
    model = build_decoder(
        "attentive-probe", shape=batch.shape, num_outputs=2, options={"heads": 2}
    ).eval()
    with torch.no_grad():
        model.to_key.weight.mul_(50)  # far from even
        model.query.normal_()
        weights = model.patch_weights(batch)  # B T h w
        assert weights.shape == (2, 5, 2, 3)
        assert not weights[:, 3:].any()
        Q = model.to_query(model.query).view(2, 4)  # N d
        for b in range(2):
            shown = torch.zeros(3, 7)  # frames, tokens
            for head in range(2):
                scores = torch.zeros(3, 7)
                for t in range(3):
                    tokens = [batch.prefix[b, t, 0], *batch.patch[b, t].reshape(6, 8)]
                    for s, x in enumerate(tokens):
                        key = model.to_key(model.norm(x))[4 * head : 4 * head + 4]
                        scores[t, s] = Q[head] @ key / 2
                shown += scores.flatten().softmax(0).view(3, 7) / 2
            torch.testing.assert_close(weights[b, :3].reshape(3, 6), shown[:, 1:])


# What has nothing to show -----------------------------------------------------------------------


def test_a_decoder_or_view_that_has_nothing_to_show_is_refused(workspace: Path) -> None:
    run = open_run(workspace / "run")
    mean = with_train(run, decoder=DecoderConfig(name="mean", options={}))
    with pytest.raises(UsageError, match=r"'mean' cannot.*for selective_s4, attentive-probe$"):
        require_look(mean.about)
    spec = dataclasses.replace(run.about.spec, num_prefix=1, arrays=("patch", "prefix"))
    cls = with_train(dataclasses.replace(run, about=dataclasses.replace(run.about, spec=spec)))
    cls = with_train(cls, tokens="4xcls")
    assert cls.about.plan.view == TokenView(frames=4, grid=None, cls=True)
    with pytest.raises(UsageError, match=r"4xcls has no patches.*--tokens 60x7x7"):
        require_look(cls.about)


def test_what_cannot_be_is_refused_before_a_video_is_read(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the video was read")

    monkeypatch.setattr(looking, "predict_videos", refuse)
    run, one = open_run(workspace / "run"), [workspace / "videos" / "long.mp4"]
    mean = with_train(run, decoder=DecoderConfig(name="mean", options={}))
    for videos, chosen, figure, words in (
        (one, mean, tmp_path / "f.png", "cannot say where it looked"),
        (one, run, tmp_path / "f.jpg", r"f\.jpg: expected a name that ends in \.png"),
        (one, run, tmp_path / "none" / "f.png", "there is no folder"),
        ([workspace / "videos"], run, tmp_path / "f.png", "one video, got 3: name it"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            predict_and_draw(videos, chosen, figure, device="cpu")
        assert "\n" not in str(caught.value)


# From files -------------------------------------------------------------------------------------


def test_a_video_is_predicted_as_ever_and_drawn(workspace: Path, tmp_path: Path) -> None:
    videos, figure = [workspace / "videos" / "long.mp4"], tmp_path / "f.png"
    found, drawn = predict_and_draw(videos, workspace / "run", figure, at_seconds=6, device="cpu")
    assert found == predict_videos(videos, workspace / "run", device="cpu")
    assert drawn is not None
    cached = look_at(workspace, "long.mp4", at_seconds=6)
    assert drawn.look.frames == cached.frames == (4, 5, 6, 7)
    assert np.array_equal(drawn.look.patches, cached.patches)
    with Image.open(drawn.path) as image:
        assert (drawn.path, image.format) == (figure, "PNG")


def test_on_the_command_line(workspace: Path, tmp_path: Path) -> None:
    video, run, figure = workspace / "videos" / "long.mp4", workspace / "run", tmp_path / "f.png"

    def call(*arguments: object, code: int = 0) -> str:
        words = ["predict", *map(str, arguments), "--run", str(run), "--device", "cpu"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr

    assert f"where it looked, 0.0–4.0 s (window 1 of 2): {figure}" in call(
        video, "--figure", figure
    )
    assert figure.is_file()
    said = json.loads(call(video, "--figure", figure, "--at", 4, "--json"))
    assert said["figure"] == str(figure)
    assert [done["id"] for done in said["predictions"]] == ["long.mp4"]
    late = call(video, "--figure", tmp_path / "late.png", "--at", 8.5, code=2)
    assert "no window of long.mp4 lies at 8.5 seconds, expected a time in one of [0, 4)" in late
    assert not (tmp_path / "late.png").exists()
    assert "--at 3: which window" in call(video, "--at", 3, code=2)
    assert "without --stream" in call(video, "--figure", figure, "--stream", code=2)


def test_a_video_that_cannot_be_read_fails_and_leaves_no_figure(
    workspace: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    found, drawn = predict_and_draw([bad], workspace / "run", tmp_path / "f.png", device="cpu")
    assert drawn is None
    assert [failure.id for failure in found.failures] == ["bad.mp4"]
    assert not (tmp_path / "f.png").exists()
