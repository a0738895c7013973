"""Clip backbones: which frames make a clip, what its tokens are, and where each clip's time is."""

from __future__ import annotations

import urllib.error
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import extraction as ex
import media
import numpy as np
import pytest
import torch
from vis4mer.extract.backbones.clips import ClipTokens
from vis4mer.extract.backbones.loading import Backbone, cache_spec, load_backbone
from vis4mer.extract.backbones.preprocess import normalise, resize_frames
from vis4mer.extract.backbones.torchvision_shim import prepare_torchvision
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sampling import Slots
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.errors import UsageError, Vis4merError
from vis4mer.store.spec import Preprocess, Sampling
from vis4mer.store.summary import summarise

prepare_torchvision()
from torchvision.models import video  # noqa: E402 — torchvision needs the line above

F = 4  # frames a clip, of the backbone made here


class WeightedLevels(torch.nn.Module):
    """One token of width 2: 1·l0 + 2·l1 + 3·l2 + 4·l3 and l0, of a clip's four grey levels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1:3] == (3, F)
        self.calls.append(len(pixels))
        levels = (pixels[:, 0, :, 0, 0] * 255).round()  # B F
        places = torch.arange(1, F + 1).float()
        return torch.stack([levels @ places, levels[:, 0]], dim=1)[:, None]  # B 1 D


def clip_backbone() -> Backbone:
    return Backbone(
        name="levels",
        module=WeightedLevels(),
        grid=(1, 1),
        num_prefix=0,
        dim=2,
        preprocess=Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1)),
        weights="random:0",
        weights_sha256="0" * 64,
        device=torch.device("cpu"),
        compute_dtype="float32",
        clip_frames=F,
    )


def clip_cache(path: Path, backbone: Backbone, *, segments: int) -> Cache:
    sampling = Sampling(kind="segments", segments=segments, clip_frames=F)
    return create_cache(path, cache_spec(backbone, sampling=sampling))


def expected_clips(segments: int, start: int) -> np.ndarray:
    """(segments, 1, 2) by the definition in WeightedLevels' docstring."""
    first = start + F * np.arange(segments)
    return np.stack([10 * first + 1 * 2 + 2 * 3 + 3 * 4, first], axis=1)[:, None]


# Through the pipeline --------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "clips"), [(None, 1), (1, 1), (4, 1), (11, 2), (64, 16)])
@pytest.mark.parametrize("threads", [1, 3])
def test_clips_of_several_videos_arrive_whole_and_in_order(
    tmp_path: Path, batch_size: int | None, clips: int, threads: int
) -> None:
    """The reader gives five frames at a time, so clips of four lie across its batches."""
    for i in range(4):
        ex.write_video(tmp_path / "videos", f"v{i}", 6 * F, start=10 * i)
    backbone = clip_backbone()
    cache = clip_cache(tmp_path / "c.zarr", backbone, segments=6)
    summary = fill_cache(
        ex.videos(tmp_path / "videos"),
        cache,
        backbone,
        ex.FakeReader(moments=Slots(count=6 * F)),
        batch_size=batch_size,
        workers=threads,
        backbone_threads=threads,
    )
    assert (summary.extracted, summary.frames, summary.failures) == (4, 24, ())
    assert set(backbone.module.calls) == {clips}
    for i in range(4):
        record = cache.record(f"v{i}.mp4")
        assert record.num_frames == 6
        assert record.pts_seconds == tuple(float(F * k) for k in range(6))
        np.testing.assert_array_equal(cache.read(f"v{i}.mp4"), expected_clips(6, 10 * i))


def test_a_reader_that_ends_in_the_middle_of_a_clip_fails_its_video_alone(tmp_path: Path) -> None:
    ex.write_video(tmp_path / "videos", "short", 2 * F + 3)
    ex.write_video(tmp_path / "videos", "whole", 3 * F)
    backbone = clip_backbone()
    cache = clip_cache(tmp_path / "c.zarr", backbone, segments=3)
    reader = ex.FakeReader(moments=Slots(count=3 * F))
    summary = fill_cache(ex.videos(tmp_path / "videos"), cache, backbone, reader)
    assert cache.ids() == ["whole.mp4"]
    assert [(f.stage, f.reason) for f in summary.failures] == [
        ("decode", "it ended in the middle of a clip")
    ]


def test_the_part_of_a_video_that_a_row_speaks_of(tmp_path: Path) -> None:
    """Real files: pictures carry their numbers, and the mean of the top rows tells them apart."""
    clip = media.write_h264(tmp_path / "a.mp4")  # 4 s, ten pictures a second
    backbone = clip_backbone()
    cache = clip_cache(tmp_path / "c.zarr", backbone, segments=2)
    part = VideoSource(
        id="a@1000-3000", path=clip.path, name="a", start_seconds=1.0, end_seconds=3.0
    )
    late = VideoSource(id="a@5000-", path=clip.path, name="a", start_seconds=5.0)
    summary = fill_cache([part, late], cache, backbone, get_reader("pyav"))
    # Eight slots of 1/4 s from 1 s on, seen at 1.125, 1.375, …: pictures 11, 13, 16, 18, 21, …
    moments = [Fraction(9, 8) + Fraction(k, 4) for k in range(8)]
    numbers = [clip.number_at(moment) for moment in moments]
    assert numbers == [11, 13, 16, 18, 21, 23, 26, 28]
    decoded = dict(zip(clip.numbers, media.decode_everything(clip.path), strict=True))
    frames = np.stack([decoded[number][1] for number in numbers])
    pixels = resize_frames(frames, backbone.preprocess)
    levels = pixels[:, 0, 0, 0].float().reshape(2, F)
    expected = torch.stack([levels @ torch.arange(1.0, F + 1), levels[:, 0]], 1)
    record = cache.record("a@1000-3000")
    assert record.pts_seconds == (1.1, 2.1)  # pictures 11 and 21
    np.testing.assert_allclose(cache.read("a@1000-3000")[:, 0], expected, atol=1e-3, rtol=1e-3)
    assert [(f.id, f.stage) for f in summary.failures] == [("a@5000-", "open")]
    assert "begins at 5 seconds, and the video has ended at 4" in summary.failures[0].reason


def test_the_summary_says_the_sampling_in_words(tmp_path: Path) -> None:
    ex.write_video(tmp_path / "videos", "v", 3 * F)
    backbone = clip_backbone()
    cache = clip_cache(tmp_path / "c.zarr", backbone, segments=3)
    reader = ex.FakeReader(moments=Slots(count=3 * F))
    fill_cache(ex.videos(tmp_path / "videos"), cache, backbone, reader)
    lines = dict(summarise(cache).lines(human_bytes=str))
    assert lines["frames"] == "3 (3 segments of 4 frames), read by pyav"
    unknown = replace(cache.spec, preprocess=None, weights="unknown")
    imported = replace(summarise(cache), spec=unknown)
    assert "not known how" in dict(imported.lines(human_bytes=str))["input"]


def test_an_image_backbone_sees_segments_of_one_frame(tmp_path: Path) -> None:
    ex.write_video(tmp_path / "videos", "v", 16, start=3)
    backbone = ex.grey_backbone()
    sampling = Sampling(kind="segments", segments=16)
    cache = create_cache(tmp_path / "c.zarr", cache_spec(backbone, sampling=sampling))
    reader = ex.FakeReader(moments=Slots(count=16))
    fill_cache(ex.videos(tmp_path / "videos"), cache, backbone, reader)
    ex.assert_entry(cache, "v.mp4", 16, start=3)


def test_a_clip_backbone_and_its_sampling_must_agree() -> None:
    backbone = clip_backbone()
    for sampling in (None, Sampling(kind="spread"), Sampling(kind="segments", segments=9)):
        with pytest.raises(UsageError, match=r"clips of 4 frames.*add --segments N"):
            cache_spec(backbone, sampling=sampling)
    clips = Sampling(kind="segments", segments=9, clip_frames=4)
    with pytest.raises(UsageError, match=r"single frames.*9 segments of 4 frames"):
        cache_spec(ex.grey_backbone(), sampling=clips)
    with pytest.raises(ValueError, match="5 frames are no clips of 4"):
        backbone.encode(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))


# torchvision's video transformers --------------------------------------------------------------

SMALL = "swin3d_t@64"


def test_a_clips_tokens_are_torchvisions_features_averaged_over_time() -> None:
    torch.manual_seed(0)
    model = video.swin3d_t().eval()
    model.head = torch.nn.Identity()
    pixels = torch.randn(2, 3, 6, 64, 96)
    maps = []
    model.norm.register_forward_hook(lambda *call: maps.append(call[2]))
    with torch.inference_mode():
        pooled = model(pixels)  # its own forward: the mean over time and place
        tokens = ClipTokens(model)(pixels)
    assert tokens.shape == (2, 2 * 3, 768)
    torch.testing.assert_close(tokens.mean(1), pooled)
    features = maps[0]  # B T h w D
    assert features.shape == (2, 3, 2, 3, 768)
    for row in range(2):
        for column in range(3):
            expected = features[:, :, row, column].mean(1)
            torch.testing.assert_close(tokens[:, 3 * row + column], expected)


def test_a_built_in_clip_backbone() -> None:
    backbone = load_backbone(SMALL, weights="random:5", device="cpu")
    assert backbone.name == "swin3d_t.kinetics400_v1@64"
    assert (backbone.clip_frames, backbone.grid, backbone.dim) == (32, (2, 2), 768)
    frames = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (32, 3, 64, 64), dtype=np.uint8)
    )
    tokens = backbone.encode(frames)
    assert tokens.prefix.shape == (1, 0, 768)
    clip = normalise(frames, backbone.preprocess).transpose(0, 1)[None]  # 1 3 F H W
    with torch.inference_mode():
        torch.testing.assert_close(tokens.patch, backbone.module(clip))
    again = load_backbone(SMALL, weights="random:5", device="cpu")
    other = load_backbone(SMALL, weights="random:6", device="cpu")
    assert again.weights_sha256 == backbone.weights_sha256 != other.weights_sha256


def test_frames_are_prepared_as_the_weights_own_transform_says() -> None:
    backbone = load_backbone("swin3d_t", weights="random:0", device="cpu")
    assert backbone.preprocess.size == (224, 224)
    assert backbone.grid == (7, 7)
    frames = np.random.default_rng(1).integers(0, 256, (2, 256, 341, 3), dtype=np.uint8)
    transform = video.Swin3D_T_Weights.KINETICS400_V1.transforms()
    expected = transform(torch.from_numpy(frames).permute(0, 3, 1, 2))  # 3 T 224 224
    pixels = resize_frames(frames, backbone.preprocess)  # the short side is 256: only cropped
    found = normalise(pixels, backbone.preprocess).transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict as torchvision publishes one, with its classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return video.swin3d_t().state_dict()


def test_weights_from_a_file(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(published, path)
    backbone = load_backbone(SMALL, weights=str(path), device="cpu")
    assert backbone.weights == "file"
    for name, value in backbone.module.model.state_dict().items():
        assert torch.equal(value, published[name])
    with pytest.raises(UsageError, match=r"does not hold the weights of swin3d_s.*missing"):
        load_backbone("swin3d_s", weights=str(path), device="cpu")


def test_published_weights_are_read_from_torchs_own_store(
    published: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    store = tmp_path / "hub" / "checkpoints"
    store.mkdir(parents=True)
    name = video.Swin3D_T_Weights.KINETICS400_V1.url.rpartition("/")[2]
    torch.save(published, store / name)
    backbone = load_backbone(SMALL, weights="hub", device="cpu")
    assert backbone.weights == "hub"
    loaded = backbone.module.model.state_dict()
    assert torch.equal(loaded["norm.weight"], published["norm.weight"])
    torch.save({"model": Path()}, store / name)  # an object, which is not unpickled
    with pytest.raises(Vis4merError, match="cannot get the weights of swin3d_t") as caught:
        load_backbone(SMALL, weights="hub", device="cpu")
    assert "\n" not in str(caught.value)


def test_without_a_network_one_line_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("unreachable (refused by the test)")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    capsys.readouterr()
    with pytest.raises(Vis4merError, match="unreachable") as caught:
        load_backbone("swin3d_t.kinetics400_v1", weights="hub", device="cpu")
    said = str(caught.value)
    assert f"put https://download.pytorch.org/models/swin3d_t-7615ae03.pth into {tmp_path}" in said
    assert "--weights FILE" in said
    assert "\n" not in said
    assert capsys.readouterr().out == ""


def test_an_unknown_tag_is_answered_with_the_tags() -> None:
    with pytest.raises(UsageError, match=r"'kinetics600'.*kinetics400_imagenet22k_v1"):
        load_backbone("swin3d_b.kinetics600", weights="random:0")
