"""The demo: clips whose label is order alone, and the whole way from files to a prediction."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter, defaultdict
from types import SimpleNamespace

import av
import numpy as np
import pytest
from vis4mer.decode.runs.run import open_run
from vis4mer.demo import videos as demo
from vis4mer.demo.clips import (
    CLIP_SECONDS,
    EVENT_SECONDS,
    MIN_GAP_SECONDS,
    DemoClip,
    draw_frames,
    encode_clip,
    plan_clips,
    write_clips,
)
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import UsageError, Vis4merError
from vis4mer.store.verify import verify_cache

SMALL = {"train": 4, "val": 1, "test": 2}


def twins(seed: int) -> list[tuple[DemoClip, DemoClip]]:
    by_look = defaultdict(list)
    for clip in plan_clips(seed):
        by_look[clip.look].append(clip)
    pairs = []
    for found in by_look.values():
        first, second = sorted(found, key=lambda clip: clip.label)
        pairs.append((first, second))
    return pairs


def shown(clip: DemoClip, seed: int) -> str:
    """One letter a second, from the pixels: D(isc), S(tripes) or a dot for the background."""
    letters = []
    for picture in draw_frames(clip, seed=seed).astype(int):
        excess = picture[..., 0] - picture[..., 2]  # the disc is red, the stripes are blue
        letters.append("D" if excess.max() > 100 else "S" if excess.min() < -100 else ".")
    return "".join(letters)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_labels_of_each_split_are_balanced_and_the_counts_are_as_documented(seed):
    counts = Counter((clip.split, clip.label) for clip in plan_clips(seed))
    assert counts == {
        (split, label): number
        for split, number in (("train", 90), ("val", 10), ("test", 30))
        for label in ("disc-first", "stripes-first")
    }


def test_the_label_is_which_event_the_pixels_show_first():
    for clip in plan_clips(0)[:40]:
        seconds = shown(clip, 0)
        assert seconds.count("D") == seconds.count("S") == EVENT_SECONDS
        assert "D" * EVENT_SECONDS in seconds
        assert "S" * EVENT_SECONDS in seconds
        assert len(seconds) == CLIP_SECONDS
        first = "disc-first" if seconds.index("D") < seconds.index("S") else "stripes-first"
        assert clip.label == first
        between = seconds.strip(".").count(".")
        assert between >= MIN_GAP_SECONDS


@pytest.mark.parametrize("seed", [0, 1])
def test_twins_show_the_same_frames_in_another_order_and_share_a_split(seed):
    pairs = twins(seed)
    assert len(pairs) == 130
    for first, second in pairs:
        assert first.split == second.split
        assert (first.label, second.label) == ("disc-first", "stripes-first")
    for first, second in pairs[:10]:
        frames, others = (draw_frames(clip, seed=seed) for clip in (first, second))
        assert not np.array_equal(frames, others)
        assert Counter(f.tobytes() for f in frames) == Counter(f.tobytes() for f in others)


def test_starts_cover_the_whole_minute_evenly():
    """Uniform over pairs, a gap before, between and after is in the mean a third of the slack."""
    rng_seeds = range(40)
    starts = np.array([(c.first_start, c.second_start) for s in rng_seeds for c in plan_clips(s)])
    slack = CLIP_SECONDS - 2 * EVENT_SECONDS - MIN_GAP_SECONDS
    gaps = np.stack(
        [
            starts[:, 0],
            starts[:, 1] - starts[:, 0] - EVENT_SECONDS - MIN_GAP_SECONDS,
            CLIP_SECONDS - EVENT_SECONDS - starts[:, 1],
        ]
    )
    assert gaps.min() == 0
    assert np.allclose(gaps.sum(axis=0), slack)
    assert np.allclose(gaps.mean(axis=1), slack / 3, atol=0.6)


def test_other_seeds_make_other_clips_and_events_that_do_not_fit_are_refused():
    assert plan_clips(0) == plan_clips(0)
    assert plan_clips(0) != plan_clips(1)
    for first, second in ((-1, 20), (10, 20), (30, 53)):
        with pytest.raises(ValueError, match="do not fit"):
            DemoClip(
                name="x.mp4",
                split="train",
                label="disc-first",
                first_start=first,
                second_start=second,
                look=0,
            )


def test_a_clip_is_h264_at_one_frame_a_second_and_shows_what_was_drawn():
    frames = draw_frames(plan_clips(0)[0], seed=0)
    data = encode_clip(frames)
    assert data == encode_clip(frames)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        decoded = list(container.decode(stream))
    assert [frame.time for frame in decoded] == list(range(CLIP_SECONDS))
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    # The fine stripes lose some of their colour to 4:2:0; a shift by one frame costs ten times it.
    assert np.abs(pixels.astype(int) - frames).mean() < 4


def test_writing_again_keeps_what_is_there_and_another_seed_is_refused(tmp_path):
    table = write_clips(tmp_path, seed=0, num_twins=SMALL)
    rows = list(csv.DictReader(table.open()))
    assert list(rows[0]) == ["path", "label", "split"]
    assert sorted(row["path"] for row in rows) == sorted(p.name for p in tmp_path.glob("*.mp4"))
    kept, lost = (tmp_path / rows[i]["path"] for i in (0, 1))
    lost_bytes, kept_time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    write_clips(tmp_path, seed=0, num_twins=SMALL)
    assert lost.read_bytes() == lost_bytes
    assert kept.stat().st_mtime_ns == kept_time
    with pytest.raises(UsageError, match="choose another directory"):
        write_clips(tmp_path, seed=1, num_twins=SMALL)


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    lines: list[str] = []
    result = demo.run_demo(directory, num_twins=SMALL, epochs=2, device="cpu", report=lines.append)
    return directory, result, lines


def test_the_demo_leaves_clips_cache_runs_and_curves(small_demo):
    directory, result, _ = small_demo
    assert len(list((directory / "clips").glob("*.mp4"))) == 14
    cache = open_cache(result.cache)
    assert len(cache) == 14
    assert verify_cache(cache, "full").ok
    assert cache.record(cache.ids()[0]).num_frames == CLIP_SECONDS
    assert cache.spec.weights == "random:0"
    for score, name in ((result.s4, "vis4mer"), (result.floor, "mean")):
        test = open_run(score.run).results().test
        assert (score.decoder, score.correct, score.total) == (name, test.correct, 4)
        assert score.curve.read_bytes().startswith(b"\x89PNG")


def test_the_floor_answers_twins_alike(small_demo):
    """Twins differ in nothing but order, and in what the codec makes of it."""
    _, result, _ = small_demo
    outputs = {p.id: p.output for p in open_run(result.floor.run).results().test.predictions}
    by_look = defaultdict(list)
    for clip in plan_clips(0, num_twins=SMALL):
        if clip.split == "test":
            by_look[clip.look].append(outputs[clip.name])
    assert len(by_look) == SMALL["test"]
    for first, second in by_look.values():
        assert np.allclose(first, second, atol=0.02)


def test_the_prediction_is_that_of_the_run_for_a_test_file(small_demo):
    """Extracted anew from its file, the clip is given the same probabilities as in the test."""
    _, result, _ = small_demo
    clips = {clip.name: clip for clip in plan_clips(0, num_twins=SMALL)}
    clip = clips[result.prediction.video.name]
    assert clip.split == "test"
    assert result.prediction.label == clip.label
    run = open_run(result.s4.run)
    judged = {p.id: p for p in run.results().test.predictions}[clip.name]
    assert result.prediction.predicted == run.about.classes[judged.predicted_class]
    assert result.prediction.probability == pytest.approx(max(judged.output), abs=1e-3)


def test_it_says_that_the_weights_are_random_and_how_the_decoders_did(small_demo):
    _, result, lines = small_demo
    text = "\n".join(lines)
    assert "random" in text
    for score in (result.s4, result.floor):
        assert f"{score.decoder}: {score.correct}/{score.total}" in text
    data = result.to_json()
    assert [d["decoder"] for d in data["decoders"]] == ["vis4mer", "mean"]
    assert data["prediction"]["predicted"] == result.prediction.predicted
    assert set(data["seconds"]) == {"write", "extract", "train vis4mer", "train mean", "predict"}


def test_a_second_demo_does_nothing_again_and_tells_the_same(small_demo, tmp_path):
    directory, result, _ = small_demo
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    # A clip that was lost is written again with the same bytes: it counts as there.
    (again / "clips" / result.prediction.video.name).unlink()
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*.safetensors")}
    lines: list[str] = []
    second = demo.run_demo(again, num_twins=SMALL, epochs=2, device="cpu", report=lines.append)
    assert any("14 were there already" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for score, other in ((result.s4, second.s4), (result.floor, second.floor)):
        assert (score.correct, score.total) == (other.correct, other.total)
    assert second.prediction.probability == result.prediction.probability


def test_a_clip_that_cannot_be_predicted_is_one_line(small_demo, monkeypatch):
    directory, _, _ = small_demo
    failure = SimpleNamespace(source_name="clip.mp4", reason="it is damaged")
    found = SimpleNamespace(predictions=(), failures=(failure,))
    monkeypatch.setattr("vis4mer.both.predict.predict_videos", lambda *_, **__: found)
    with pytest.raises(Vis4merError, match=r"clip\.mp4 cannot be predicted \(it is damaged\)"):
        demo.run_demo(directory, num_twins=SMALL, epochs=2, device="cpu")


def test_a_clip_that_was_replaced_is_refused_by_name(small_demo, tmp_path):
    directory, result, _ = small_demo
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    victim = again / "clips" / result.prediction.video.name
    victim.write_bytes(b"no video")
    with pytest.raises(Vis4merError, match=victim.name):
        demo.run_demo(again, num_twins=SMALL, epochs=2, device="cpu")
