"""Stage 1's protocols: which frames are chosen, and what becomes of their pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import media
import numpy as np
import pytest
import torch
from vis4mer.extract.backbones.loading import cache_spec, load_backbone
from vis4mer.extract.backbones.preprocess import normalise, resize_frames
from vis4mer.extract.protocols import PROTOCOLS, prepared_as, protocol_named, sampling_of
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Preprocess, Sampling

TINY = "vit_tiny_patch16_224@32"
OWN = Preprocess(
    size=(6, 4), crop_pct=0.9, interpolation="bicubic", mean=(0.5,) * 3, std=(0.2,) * 3
)


def test_official_frames_are_squashed_and_divided_by_255_and_no_more() -> None:
    """A frame of two halves, wider than the input: both halves stay whole, none is cropped away."""
    official = PROTOCOLS["official"].preprocess(OWN)
    frames = np.zeros((1, 12, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    pixels = normalise(resize_frames(frames, official), official)
    assert pixels.shape == (1, 3, 6, 4)
    # Ten columns become one, seen through a triangle of twenty: an eighth lies past the middle.
    expected = torch.tensor([0, 1 / 8, 7 / 8, 1])
    torch.testing.assert_close(pixels[0, 0, 0], expected, atol=0.005, rtol=0)
    assert (pixels.min(), pixels.max()) == (0, 1)
    flat = np.full((1, 12, 40, 3), 51, np.uint8)
    assert torch.allclose(normalise(resize_frames(flat, official), official), torch.tensor(0.2))
    assert PROTOCOLS["clean"].preprocess(OWN) == OWN


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        (("clean", {}), Sampling()),
        (("clean", {"fps": 2}), Sampling(fps=2)),
        (("official", {"fps": 1.0}), Sampling(kind="spread")),
        (("official", {}), Sampling(kind="spread")),
        (("clean", {"segments": 8}), Sampling(kind="segments", segments=8)),
        (
            ("official", {"fps": 1.0, "segments": 64, "clip_frames": 32}),
            Sampling(kind="segments", segments=64, clip_frames=32),
        ),
    ],
)
def test_the_sampling_that_is_asked_for(asked, sampling: Sampling) -> None:
    protocol, numbers = asked
    assert sampling_of(protocol, **numbers) == sampling


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"clip_frames": 32}, "add --segments N"),
        ({"fps": 2, "segments": 8}, "--fps 2 and --segments 8 exclude each other"),
        ({"segments": 0}, "0 segments"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": float("nan")}, "fps must be a positive number"),
    ],
)
def test_a_sampling_that_cannot_be_is_one_line(numbers, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        sampling_of("clean", **numbers)
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_answered_with_the_choices() -> None:
    with pytest.raises(UsageError, match="'paper', expected one of: clean, official"):
        protocol_named("paper")


def test_the_preprocessing_of_a_spec_leads_back_to_its_protocol() -> None:
    backbone = load_backbone(TINY, weights="random:0", device="cpu")
    official = PROTOCOLS["official"].apply(backbone)
    assert official.preprocess != backbone.preprocess
    assert prepared_as(backbone, official.preprocess) == official
    assert prepared_as(backbone, backbone.preprocess) == backbone
    assert prepared_as(backbone, OWN) == backbone  # nobody's: the difference shows elsewhere


def test_official_tokens_of_a_real_video(tmp_path: Path) -> None:
    """An annotated 2.5 s of a video of 4 s, at two a second: five frames, 0.8 s apart."""
    clip = media.write_h264(tmp_path / "a.mp4")
    backbone = PROTOCOLS["official"].apply(load_backbone(TINY, weights="random:1", device="cpu"))
    spec = cache_spec(backbone, sampling=sampling_of("official", fps=2))
    cache = create_cache(tmp_path / "c.zarr", spec)
    video = VideoSource(id="a@0-2500", path=clip.path, name="a", end_seconds=2.5)
    summary = fill_cache([video], cache, backbone, get_reader("pyav"))
    assert (summary.extracted, summary.failures) == (1, ())
    record = cache.record("a@0-2500")
    assert record.pts_seconds == (0.0, 0.8, 1.6, 2.4, 3.2)
    decoded = [picture for _, picture in media.decode_everything(clip.path)]
    frames = torch.from_numpy(np.stack([decoded[i] for i in (0, 8, 16, 24, 32)]))
    squashed = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size=(32, 32), mode="bilinear", antialias=True
    )
    with torch.inference_mode():
        expected = backbone.module(squashed / 255)
    cropped = replace(video, id="b", start_seconds=1.0)
    with pytest.raises(UsageError, match="no start at 1 seconds"):
        fill_cache([cropped], cache, backbone, get_reader("pyav"))
    found = np.concatenate([cache.read(video.id, "prefix"), cache.read(video.id)], axis=1)
    assert np.linalg.norm(found - expected.numpy()) < 0.02 * np.linalg.norm(expected.numpy())
