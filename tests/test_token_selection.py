"""Views that keep a part of the patches: which ones, always the same ones, and no others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from caches import make_cache, make_spec, write_tokens
from torch.utils.data import DataLoader
from vis4mer.decode.config import load_config
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import Stretch, WindowPlan, split_samples
from vis4mer.decode.data.sharing import SharedEpoch
from vis4mer.decode.data.timelines import Timelines
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.judging.stream import StreamPredictor
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.skeleton import GridPool, PairPool, Tokens
from vis4mer.decode.train import train_decoder
from vis4mer.store.cache import create_cache
from vis4mer.store.errors import UsageError
from vis4mer.store.token_selection import TokenSelection
from vis4mer.store.views import TokenView, pool_grid
from vis4mer.store.windows import Window

CPU = torch.device("cpu")
HALF = "4x4@random0.5"


@pytest.mark.parametrize(
    ("word", "canonical", "given_grid"),
    [
        ("60x14x14@random0.5", "60x14x14@random0.5", (98, 1)),
        ("60x14x14+cls@random0.50", "60x14x14+cls@random0.5", (98, 1)),
        ("7x7@random0.000001", "7x7@random0.000001", (1, 1)),
        ("7x7@random1", "7x7@random1", (49, 1)),
        ("60x14x14@stride2", "60x14x14@stride2", (98, 1)),
        ("7x7@stride02", "7x7@stride2", (25, 1)),
        ("2x2@stride4", "2x2@stride4", (1, 1)),
        ("14x14", "14x14", (14, 14)),
        ("60xcls", "60xcls", None),
    ],
)
def test_words_are_read_and_said(word, canonical, given_grid):
    view = TokenView.parse(word)
    assert str(view) == canonical
    assert TokenView.parse(canonical) == view
    assert view.given_grid == given_grid


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cls@random0.5", "token view"),
        ("14x14@", "token view"),
        ("14x14@random", "token view"),
        ("14x14@random0.5+cls", "token view"),
        ("14x14@half0.5", "expected @random0.5"),
        ("14x14@random.5", "expected @random0.5"),
        ("14x14@stride2.0", "or @stride2"),
        ("14x14@random0", "more than 0"),
        ("14x14@random1.5", "at most 1"),
        ("14x14@stride0", "at least 1"),
        ("14x14@stride197", "196 patches, so the step is at most 196"),
    ],
)
def test_other_words_are_refused(word, message):
    with pytest.raises(UsageError, match=message):
        TokenView.parse(word)
    with pytest.raises(UsageError, match="selects patches"):
        TokenView(grid=None, cls=True, selection=TokenSelection(step=2))


def test_a_step_that_divides_the_grid_is_that_of_the_flattened_window():
    window = np.arange(6 * 196)  # every token's place in the flattened window
    for step in (1, 2, 4, 7, 14, 28, 49, 98, 196):
        view = TokenView.parse(f"14x14@stride{step}")
        places = view.places("v", range(6))
        kept = (places + 196 * np.arange(6)[:, None]).ravel()
        np.testing.assert_array_equal(kept, window[::step])
    assert TokenView.parse("7x7@stride2").places("v", [3])[0].tolist() == [*range(0, 49, 2)]


def by_definition(key, frame, count, kept):
    """The patches of the smallest ranks: SHAKE-256 of key and frame, eight bytes a patch."""
    digest = hashlib.shake_256(f"tokens\0{key}\0{frame}".encode()).digest(8 * count)
    ranks = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(count)]
    return sorted(sorted(range(count), key=ranks.__getitem__)[:kept])


def test_a_random_draw_is_of_the_key_and_the_frame_alone():
    view = TokenView.parse("14x14@random0.25")
    places = view.places("a video", [5, 900, 6])
    assert places.shape == (3, 49)
    for row, frame in zip(places.tolist(), [5, 900, 6], strict=True):
        assert row == by_definition("a video", frame, 196, 49)
    np.testing.assert_array_equal(view.places("a video", [6])[0], places[2])
    assert (view.places("another", [5]) != places[0]).any()
    assert len({tuple(row) for row in places}) == 3


def test_every_patch_is_as_likely():
    places = TokenView.parse("14x14@random0.5").places("v", range(1000))
    share = np.bincount(places.ravel(), minlength=196) / 1000
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(1000)


# What is read ----------------------------------------------------------------------------------


def selected(cache, entry_id, frames, places, grid=(4, 4)):
    """The patches at `places` of some frames, float32 (t, k, 1, D), by two loops."""
    tokens = cache.read(entry_id, "patch").astype(np.float32)
    tokens = pool_grid(tokens, (4, 4), grid)
    return np.stack([[tokens[f, p] for p in row] for f, row in zip(frames, places, strict=True)])[
        :, :, None
    ]


@pytest.mark.parametrize("word", [HALF, "4x4+cls@stride3", "3x3@random0.5"])
def test_a_view_reads_its_patches(tmp_path, word):
    cache = make_cache(tmp_path, num_videos=1, frames=9, grid=(4, 4))
    view = TokenView.parse(word)
    frames = [7, 2, 3]
    found = cache.read_view("v0", view, frames)
    wanted = selected(cache, "v0", frames, view.places("v0", frames), view.grid)
    np.testing.assert_allclose(found.patch, wanted, rtol=2e-3, atol=1e-4)
    assert (found.prefix is None) != view.cls
    whole = cache.read_view("v0", TokenView(grid=view.grid, cls=view.cls), frames)
    assert found.num_bytes == whole.num_bytes  # frames are read whole
    assert cache.read_view("v0", view, frames, pool=False).patch.shape == (3, 4, 4, 16)


def test_a_dataset_gives_the_same_patches_each_time(tmp_path):
    cache = make_cache(tmp_path, num_videos=4, frames=[6, 3, 6, 6], grid=(4, 4))
    dataset = cache.dataset("toy/label", "train", tokens="4x4x4@random0.25", window_seconds=4)
    first, second = [next(iter(DataLoader(dataset, batch_size=2))) for _ in range(2)]
    assert first["patch"].shape == (2, 4, 4, 1, 16)
    assert torch.equal(first["patch"], second["patch"])
    places = dataset.view.places("v1", range(3))
    assert first["id"][1] == "v1"
    np.testing.assert_array_equal(first["patch"][1, :3], selected(cache, "v1", range(3), places))
    assert not first["patch"][1, 3:].any()


# What decoders are given -----------------------------------------------------------------------


def loader_of(cache, plan, *, seed=0, workers=2, blocks=1):
    return TrainLoader(
        cache,
        split_samples(cache, cache.task("toy/label"), "train").samples,
        plan,
        kind="classification",
        batch_size=2,
        windows_per_video=2,
        seed=seed,
        workers=workers,
        device=CPU,
        dtype=torch.float32,
        blocks=blocks,
    )


def plan_of(cache, tokens=HALF, **options):
    return WindowPlan.of(cache.spec, tokens=tokens, window_seconds=4.0, **options)


@pytest.fixture
def cache(tmp_path):
    return make_cache(
        tmp_path, num_videos=5, frames=[9, 3, 12, 6, 7], grid=(4, 4), splits=["train"] * 5
    )


@pytest.mark.parametrize("word", [HALF, "2x3x3+cls@random0.5", "4x4@stride2"])
def test_training_draws_anew_by_seed_and_epoch_and_nothing_else(cache, word):
    plan = plan_of(cache, word)
    loader = loader_of(cache, plan)
    draws = [draw for block in loader.draws(1) for draw in block]
    batches = list(loader.epoch(1))
    rows = [(b.tokens, i) for b in batches for i in range(len(b.labels))]
    for draw, (tokens, i) in zip(draws, rows, strict=True):
        assert tokens.shape.grid == plan.shape.grid
        frames = plan.frames(draw.window)
        places = plan.view.places(draw.key, frames)
        wanted = selected(cache, draw.sample.id, frames, places, plan.view.grid)
        np.testing.assert_allclose(tokens.patch[i, : len(frames)], wanted, atol=1e-6)
        assert not tokens.patch[i, len(frames) :].any()
    assert len({draw.key for draw in draws}) == len(draws)
    later = loader_of(cache, plan, workers=1)  # as after an interruption
    for batch, again in zip(batches, later.epoch(1), strict=True):
        assert torch.equal(batch.tokens.patch, again.tokens.patch)
    random = plan.view.selection.share is not None
    for other in (loader_of(cache, plan, seed=1).draws(1), loader.draws(2)):
        drawn = {d.sample.id: d.key for block in other for d in block}
        changed = [
            (plan.view.places(drawn[d.sample.id], [0]) != plan.view.places(d.key, [0])).any()
            for d in draws
        ]
        assert any(changed) == random


def test_learners_that_share_their_reads_get_their_own_patches(cache):
    plan = plan_of(cache)
    loaders = [loader_of(cache, plan, seed=seed, blocks=2) for seed in (0, 1)]
    shared = SharedEpoch(cache, loaders, epoch=3, workers=2, pin=False)
    found = [[], []]
    for learner, batch in shared:
        found[learner].append(batch)
    for seed, batches in enumerate(found):
        alone = list(loader_of(cache, plan, seed=seed, blocks=2).epoch(3))
        for batch, other in zip(batches, alone, strict=True):
            assert torch.equal(batch.tokens.patch, other.tokens.patch)


@pytest.mark.parametrize("piece_frames", [1, 5, 256])
def test_judged_windows_hold_what_their_video_says(cache, piece_frames):
    plan = plan_of(cache)
    timelines = Timelines(
        cache,
        [Stretch(id="v2", extent=Window(start=1, stop=12))],
        plan,
        stride_seconds=1.0,
        workers=2,
        device=CPU,
        piece_frames=piece_frames,
    )
    windows = list(timelines)
    assert len(windows) == 8
    for each in windows:
        frames = plan.frames(each.window)
        wanted = selected(cache, "v2", frames, plan.view.places("v2", frames))
        np.testing.assert_array_equal(each.clip.patch, wanted)


@pytest.mark.parametrize("tokens", ["2x2@random0.5", "2x4x4+cls@stride3"])
def test_a_stream_says_at_each_reset_what_the_window_says(tmp_path, tokens):
    cache = make_cache(tmp_path, num_videos=8, frames=11, grid=(4, 4))
    flags = {"task": "toy/label", "epochs": 1, "window_seconds": 4, "decoder.depth": 1}
    flags |= {"tokens": tokens, "decoder.state_size": 4, "final_stride_seconds": 4}
    train_decoder(cache, load_config(flags=flags | {"device": "cpu"}), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert str(run.about.plan.view) == tokens
    stream = StreamPredictor(run)
    said = {}
    for name in ("v2", "v3"):
        stream.reset(entry_id=name)
        patch, prefix = (cache.read(name, a).astype(np.float32) for a in ("patch", "prefix"))
        frames = [stream.push(patch[t], prefix[t], pts_seconds=float(t)) for t in range(11)]
        said[name] = [frame.output for frame in frames if frame.complete]
    for prediction in predict_entries(run, cache, ["v2", "v3"]):
        windows = [w.output for w in prediction.windows]
        np.testing.assert_allclose(said[prediction.id], windows, atol=1e-5)


def test_kept_tokens_are_pooled_as_consecutive_pairs():
    """While k is even, pairs of a frame are pairs of the flattened sequence."""
    x = torch.randn(2, 3 * 8, 5, generator=torch.Generator().manual_seed(0))  # B T·k D
    column, pairs = Tokens(x=x, mask=None, grid=(8, 1)), Tokens(x=x, mask=None, grid=None)
    for _ in range(3):
        column, pairs = GridPool()(column), PairPool(drop_tail=False)(pairs)
        torch.testing.assert_close(column.x, pairs.x)
    assert column.grid == (1, 1)


def test_a_view_of_a_stored_copy_selects_from_it(tmp_path):
    spec = make_spec(grid=(4, 4), arrays=("patch", "prefix", "grid2"))
    cache = create_cache(tmp_path / "c.zarr", spec)
    write_tokens(cache, "v", np.random.default_rng(0).standard_normal((3, 16, 16)))
    view = TokenView.parse("2x2@random0.5")
    found = cache.read_view("v", view)
    assert found.num_bytes == 3 * 4 * 16 * 2
    stored, places = cache.read("v", "grid2"), view.places("v", range(3))
    np.testing.assert_array_equal(
        found.patch[:, :, 0], np.take_along_axis(stored, places[..., None], 1)
    )
