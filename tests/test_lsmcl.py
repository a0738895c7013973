"""Pretraining: the loss by hand, clips and masks as promised, runs that go on and begin others."""

import json
import math

import numpy as np
import pytest
import torch
from caches import make_cache
from test_train import config as train_config
from test_train import tensors
from token_batches import padded, token_batch
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.data.plan import WindowPlan
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.device import Compute
from vis4mer.decode.pretraining.clip_pairs import PairBatch, PairLoader, Video, draw_pair
from vis4mer.decode.pretraining.config import load_pretrain_config
from vis4mer.decode.pretraining.contrast import NOBODY, KeyQueue, info_nce, mask_tokens
from vis4mer.decode.pretraining.encoder import open_pretrain_run, read_encoder
from vis4mer.decode.pretraining.lsmcl import Lsmcl
from vis4mer.decode.pretraining.train import pretrain
from vis4mer.decode.runs.checkpoints import read_checkpoint
from vis4mer.decode.runs.run import open_run
from vis4mer.decode.runs.runlog import OF_THE_CLOCK
from vis4mer.decode.train import train_decoder
from vis4mer.store.errors import CacheFormatError, UsageError, Vis4merError

CPU = torch.device("cpu")
SMALL = {"decoder.depth": 1, "decoder.state_size": 4}


def config(**flags):
    defaults = {
        "tokens": "4x2x2",
        "epochs": 3,
        "batch_size": 4,
        "queue": 12,
        "width": 8,
        "device": "cpu",
        **SMALL,
    }
    return load_pretrain_config(
        flags=defaults | {k.replace("__", "."): v for k, v in flags.items()}
    )


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


# The loss ---------------------------------------------------------------------------------------


def test_info_nce_by_hand():
    """Two videos in the batch; the queue holds an old key of the first, one of another video and
    an empty place, which must not count as a key of zeros."""
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    k = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    queue = KeyQueue(3, 2, device=CPU)
    queue.push(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([0, 7]))
    found = info_nce(q, k, videos=torch.tensor([0, 1]), queue=queue, temperature=0.2)
    first = math.exp(3) / (math.exp(3) + math.exp(-4) + math.exp(0))
    second = math.exp(3) / (math.exp(4) + math.exp(3) + math.exp(0) + math.exp(-5))
    assert float(found) == pytest.approx(-(math.log(first) + math.log(second)) / 2, rel=1e-6)


def test_info_nce_is_its_definition():
    q, k, old = unit(5, 6, seed=0), unit(5, 6, seed=1), unit(8, 6, seed=2)
    queue = KeyQueue(9, 6, device=CPU)
    owners = [3, 11, 4, 12, 13, 14, 15, 0]
    queue.push(old, torch.tensor(owners))
    videos = [0, 1, 2, 3, 4]
    found = info_nce(q, k, videos=torch.tensor(videos), queue=queue, temperature=0.1)
    losses = []
    for i, video in enumerate(videos):
        scores = [float(q[i] @ k[j]) / 0.1 for j in range(5)]
        scores += [
            float(q[i] @ key) / 0.1 for key, o in zip(old, owners, strict=True) if o != video
        ]
        losses.append(-math.log(math.exp(scores[i]) / sum(map(math.exp, scores))))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_queue_replaces_its_oldest_keys():
    queue = KeyQueue(5, 1, device=CPU)
    for first in range(0, 9, 3):
        videos = torch.arange(first, first + 3)
        queue.push(videos[:, None].float(), videos)
    assert sorted(queue.videos.tolist()) == [4, 5, 6, 7, 8]
    assert torch.equal(queue.keys[:, 0], queue.videos.float())
    queue.push(torch.arange(20, 30)[:, None].float(), torch.arange(20, 30))
    assert sorted(queue.videos.tolist()) == [25, 26, 27, 28, 29]
    empty = KeyQueue(0, 4, device=CPU)
    empty.push(unit(2, 4, seed=0), torch.tensor([0, 1]))
    q = unit(2, 4, seed=1)
    assert math.isfinite(info_nce(q, q, videos=torch.tensor([0, 1]), queue=empty, temperature=0.2))
    assert KeyQueue(3, 1, device=CPU).videos.tolist() == [NOBODY] * 3


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_masks_take_exactly_their_share_of_the_real_tokens(ratio):
    batch = padded(token_batch(frames=10, grid=(2, 3), prefix=1, batch=3), 4, value=5.0)
    torch.manual_seed(0)
    masked = mask_tokens(batch, ratio)
    again = mask_tokens(batch, ratio)
    kept = [(masked.patch != 0).any(dim=-1).flatten(2), (masked.prefix != 0).any(dim=-1)]
    kept = torch.cat(kept, dim=2)[:, :10]  # B T S, real frames
    assert kept.sum(dim=(1, 2)).tolist() == [round(70 * (1 - ratio))] * 3
    places = (masked.patch != 0).any(dim=-1)
    assert torch.equal(masked.patch[places], batch.patch[places])
    if ratio:
        assert not torch.equal(masked.patch, again.patch)
        assert not torch.equal(kept[0], kept[1])
    else:
        assert torch.equal(masked.patch[:, :10], batch.patch[:, :10])
    assert torch.equal(masked.mask, batch.mask)


# Clips ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "expected"), [(40, 6), (16, 6), (15, 5), (4, 2), (3, 1), (1, 1)]
)
def test_clips_have_equally_many_frames_at_their_strides(num_frames, expected):
    """At stride 3 six frames span 16."""
    video = Video(id="v", num_frames=num_frames, number=0)
    starts = set()
    for epoch in range(40):
        pair = draw_pair(video, frames=6, long_stride=3, short_stride=2, seed=0, epoch=epoch)
        for clip, stride in ((pair.long, 3), (pair.short, 2)):
            assert clip == [clip[0] + stride * i for i in range(expected)]
            assert clip[0] >= 0
            assert clip[-1] < num_frames
        starts.add((pair.long[0], pair.short[0]))
    assert len(starts) > 5 or num_frames < 40
    same = draw_pair(video, frames=6, long_stride=3, short_stride=2, seed=0, epoch=39)
    assert same == pair


def test_batches_are_the_frames_that_were_drawn(tmp_path):
    cache = make_cache(tmp_path, num_videos=5, frames=[12, 9, 20, 7, 12], grid=(2, 2), num_prefix=1)
    plan = WindowPlan.of(cache.spec, tokens="4x2x2+cls", window_seconds=4)
    lengths = {name: cache.record(name).num_frames for name in cache.ids()}
    videos = [Video(id=n, num_frames=lengths[n], number=i) for i, n in enumerate(sorted(lengths))]
    loaders = [
        PairLoader(
            cache,
            videos,
            plan,
            long_stride=3,
            short_stride=1,
            batch_size=2,
            seed=4,
            workers=workers,
            device=CPU,
            dtype=torch.float32,
        )
        for workers in (1, 3)
    ]
    pairs = loaders[0].pairs(2)
    assert sorted(pair.video.id for pair in pairs) == sorted(lengths)
    assert [p.video.id for p in pairs] != [p.video.id for p in loaders[0].pairs(3)]
    batches = [list(loader.epoch(2)) for loader in loaders]
    assert [len(b.videos) for b in batches[0]] == [2, 2, 1]
    rows = [
        (name, getattr(batch, name), i)
        for batch in batches[0]
        for i in range(len(batch.videos))
        for name in ("long", "short")
    ]
    wanted = [frames for pair in pairs for frames in (pair.long, pair.short)]
    ids = [pair.video.id for pair in pairs for _ in range(2)]
    for (_, found, i), frames, entry_id in zip(rows, wanted, ids, strict=True):
        stored = cache.read(entry_id, "patch", frames=frames)
        real = found.lengths[i]
        assert real == len(frames)
        assert np.array_equal(
            found.patch[i, :real].flatten(1, 2).numpy(), np.asarray(stored, dtype=np.float32)
        )
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.long.patch, other.long.patch)
        assert torch.equal(one.videos, other.videos)
    assert loaders[0].bytes_read == loaders[1].bytes_read > 0


# Learning ---------------------------------------------------------------------------------------


def pair_batch(*, videos, seed=0, dim=16):
    """Two noisy looks at each of some videos."""
    centres = torch.randn(100, dim, generator=torch.Generator().manual_seed(99))
    looks = []
    for look in range(2):
        batch = token_batch(frames=4, grid=(2, 2), dim=dim, batch=len(videos), seed=2 * seed + look)
        batch.patch.mul_(0.3).add_(centres[videos][:, None, None, None])
        looks.append(batch)
    return PairBatch(long=looks[0], short=looks[1], videos=torch.tensor(videos))


def learner(**flags):
    shape = TokenShape(frames=4, grid=(2, 2), num_prefix=0, dim=16)
    return Lsmcl(config(**flags), shape=shape, steps_per_epoch=3, compute=Compute.of(device="cpu"))


def test_the_key_encoder_is_the_closed_form_of_an_average():
    model = learner(momentum=0.7)
    history = [{n: p.detach().double().clone() for n, p in model.query.named_parameters()}]
    for step in range(6):
        model.step(pair_batch(videos=[0, 1, 2, 3], seed=step))
        history.append({n: p.detach().double().clone() for n, p in model.query.named_parameters()})
    assert any(not torch.equal(history[0][n], history[-1][n]) for n in history[0])
    for name, held in model.key.named_parameters():
        expected = 0.7**6 * history[0][name]
        for i in range(6):
            expected = expected + 0.3 * 0.7 ** (5 - i) * history[i + 1][name]
        torch.testing.assert_close(held.double(), expected, rtol=1e-5, atol=1e-6)
        assert held.grad is None


def test_both_clips_take_both_roles_and_all_keys_are_queued():
    """Against the loss put together from the encoders, without masks and dropout."""
    model = learner(mask_ratio=0.0, decoder__dropout=0.0, temperature=0.5)
    batch = pair_batch(videos=[5, 8])
    model.query.eval()
    found, keys = model._contrast(batch)
    with torch.no_grad():
        z = [
            torch.nn.functional.normalize(model.query(look), dim=1)  # the key encoder is its copy
            for look in (batch.long, batch.short)
        ]
    losses = []
    for query, key in ((z[0], z[1]), (z[1], z[0])):
        for i in range(2):
            scores = [math.exp(float(query[i] @ key[j]) / 0.5) for j in range(2)]
            losses.append(-math.log(scores[i] / sum(scores)))
    assert float(found.detach()) == pytest.approx(np.mean(losses), rel=1e-4)
    torch.testing.assert_close(keys, torch.cat(z))
    model.step(batch)
    assert model.queue.videos.tolist() == [5, 8, 5, 8] + [NOBODY] * 8


def test_it_learns_to_tell_videos_apart():
    model = learner(optimizer__lr=0.01, optimizer__schedule="constant", decoder__dropout=0.0)
    losses = []
    for step in range(40):
        first = 4 * (step % 6)
        model.step(pair_batch(videos=list(range(first, first + 4)), seed=step))
        if step % 10 == 9:
            losses.append(model.end_epoch())
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_repeats_itself_and_goes_on(tmp_path):
    cache = make_cache(tmp_path, num_videos=10, frames=12)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    result = pretrain(cache, config(workers=1), tmp_path / "whole")
    assert torch.equal(torch.rand(2), expected)  # the caller's generator is left alone
    assert (result.epochs, result.steps, result.num_videos) == (3, 9, 10)

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop_in(epoch, done):
        def stop(progress):
            if (progress.epoch, progress.done) == (epoch, done) and progress.finished is None:
                raise Stop

        return stop

    for epoch, done in ((1, 1), (2, 2), (3, 0)):
        with pytest.raises(Stop):
            pretrain(cache, config(), tmp_path / "parts", progress=stop_in(epoch, done))
    pretrain(cache, config(workers=2), tmp_path / "parts")
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert {name.partition(".")[0] for name in first} == {"model", "key", "optimizer", "queue"}
    for name in first:
        assert torch.equal(first[name], second[name]), name
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k not in OF_THE_CLOCK}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    before = (tmp_path / "parts" / "last.safetensors").stat().st_mtime_ns
    again = pretrain(cache, config(), tmp_path / "parts")
    assert again.loss == result.loss
    assert (tmp_path / "parts" / "last.safetensors").stat().st_mtime_ns == before


def test_a_directory_of_something_else_is_refused(tmp_path):
    cache = make_cache(tmp_path, num_videos=6, frames=12)
    pretrain(cache, config(epochs=1), tmp_path / "pre")
    with pytest.raises(UsageError, match=r"mask_ratio: run 0\.5, asked 0\.25"):
        pretrain(cache, config(epochs=1, mask_ratio=0.25), tmp_path / "pre")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UsageError, match=r"it holds a\.txt"):
        pretrain(cache, config(), tmp_path / "notes")
    with pytest.raises(UsageError, match="no pretraining run"):
        read_encoder(tmp_path / "notes")
    with pytest.raises(CacheFormatError, match="not the run file"):
        open_run(tmp_path / "pre")
    sealed = tmp_path / "pre" / "config.json"
    sealed.write_text(sealed.read_text().replace('"momentum": 0.99', '"momentum": 0.98'))
    with pytest.raises(CacheFormatError, match="checksum"):
        open_pretrain_run(tmp_path / "pre")


def test_videos_that_are_judged_are_left_out(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=12)
    everything = pretrain(cache, config(epochs=1), tmp_path / "all")
    train_only = pretrain(cache, config(epochs=1, task="toy/label"), tmp_path / "train")
    rows = cache.task("toy/label").split("train")
    assert (everything.num_videos, train_only.num_videos) == (16, len(rows))
    few = make_cache(tmp_path / "few", num_videos=1, frames=12)
    with pytest.raises(UsageError, match="needs at least 2, found 1"):
        pretrain(few, config(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tokens": "2x2"}, "tokens is '2x2', expected a number of frames before it"),
        ({"long_stride": 1}, "long_stride is 1, expected more than 1"),
        ({"mask_ratio": 1}, "mask_ratio is 1.0, expected at least 0 and less than 1"),
        ({"temperature": 0}, "temperature is 0.0, expected more than 0"),
        ({"queue": -1}, "queue is -1, expected at least 0"),
        ({"strides": 2}, "unknown field 'strides'"),
    ],
)
def test_bad_requests_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        config(**flags)


# Beginning with an encoder ----------------------------------------------------------------------


@pytest.fixture
def pretrained(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=12)
    pretrain(cache, config(), tmp_path / "pre")
    return cache, tmp_path / "pre"


def small(**flags):
    defaults = {"decoder__name": "vis4mer", "decoder__depth": 1, "decoder__state_size": 4}
    return train_config(**{**defaults, "tokens": "4x2x2", "epochs": 2, **flags})


@pytest.mark.parametrize("name", ["vis4mer", "selective_s4"])
def test_the_encoder_begins_a_decoder_of_its_shape(pretrained, name):
    cache, run = pretrained
    encoder = read_encoder(run)
    shape = WindowPlan.of(cache.spec, tokens="4x2x2", window_seconds=4).shape
    model = build_decoder(name, shape=shape, num_outputs=2, options={"depth": 1, "state_size": 4})
    head = model.head.weight.detach().clone()
    model.initialise(encoder.tensors, name=encoder.name)
    stored = read_checkpoint(run / "last.safetensors").part("model.")
    for key, value in model.state_dict().items():
        if key.startswith("blocks."):
            assert torch.equal(value, stored[key]), key
    assert torch.equal(model.head.weight, head)
    if name == "selective_s4":
        for key, value in model.guide.named_buffers():
            assert torch.equal(value, stored[f"blocks.0.{key}"]), key


def test_a_run_begins_with_it_and_goes_on_without_its_directory(pretrained, tmp_path):
    cache, run = pretrained
    encoder = read_encoder(run)
    slow = {"optimizer__lr": 1e-12, "optimizer__dynamics_lr": 1e-12}
    train_decoder(cache, small(**slow), tmp_path / "begun", init=encoder)
    trained = read_checkpoint(tmp_path / "begun" / "last.safetensors").part("model.")
    for key, value in encoder.tensors.items():
        if key.startswith("blocks."):
            torch.testing.assert_close(trained[key], value, rtol=1e-5, atol=1e-6)
    stored = open_run(tmp_path / "begun").about.train
    assert stored.init == encoder.sha256
    assert str(run) not in (tmp_path / "begun" / "config.json").read_text()
    with pytest.raises(UsageError, match="init: run"):
        train_decoder(cache, small(**slow), tmp_path / "begun")

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop_after(epoch):
        def stop(progress):
            if progress.epoch == epoch and progress.done == 1:
                raise Stop

        return stop

    whole = train_decoder(cache, small(), tmp_path / "whole", init=encoder)
    with pytest.raises(Stop):
        train_decoder(cache, small(), tmp_path / "parts", init=encoder, progress=stop_after(1))
    begun = open_run(tmp_path / "parts").about.train
    with pytest.raises(UsageError, match="give --init RUN again"):
        train_decoder(cache, begun, tmp_path / "parts")
    with pytest.raises(Stop):
        train_decoder(cache, small(), tmp_path / "parts", init=encoder, progress=stop_after(2))
    resumed = train_decoder(cache, begun, tmp_path / "parts")  # its checkpoint says all
    assert resumed.test.accuracy == whole.test.accuracy
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_shape_or_backbone_is_refused_before_anything_is_written(pretrained, tmp_path):
    cache, run = pretrained
    encoder = read_encoder(run)
    with pytest.raises(CacheFormatError, match=r"lacks blocks\.1"):
        train_decoder(cache, small(decoder__depth=2), tmp_path / "x", init=encoder)
    with pytest.raises(CacheFormatError, match=r"blocks.0.mixer.ssm.\w+ is float32"):
        train_decoder(cache, small(decoder__state_size=8), tmp_path / "x", init=encoder)
    with pytest.raises(UsageError, match="all of its weights are its head"):
        train_decoder(cache, train_config(tokens="4x2x2"), tmp_path / "x", init=encoder)
    wider = make_cache(tmp_path / "wider", num_videos=16, frames=12, dim=32)
    with pytest.raises(UsageError, match="another backbone \\(dim 16, this cache has 32"):
        train_decoder(wider, small(), tmp_path / "x", init=encoder)
    (run / "last.safetensors").unlink()
    with pytest.raises(Vis4merError, match="run `vis4mer pretrain` on it first"):
        read_encoder(run)
    assert not (tmp_path / "x").exists()


def test_on_the_command_line(tmp_path):
    make_cache(tmp_path, num_videos=16, frames=12)

    def vis4mer(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    sets = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    common = ("--cache", tmp_path / "tokens.zarr", "--epochs", 1, "--tokens", "4x2x2", *sets)
    result = vis4mer("pretrain", *common, "--run", tmp_path / "pre", "--set", "queue=8", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_videos"] == 16
    assert (
        "train-decoder --init"
        in vis4mer("pretrain", *common, "--run", tmp_path / "pre", "--set", "queue=8").stdout
    )
    trained = vis4mer(
        "train-decoder",
        *common,
        *("--task", "toy/label", "--window", 4, "--run", tmp_path / "run"),
        *("--init", tmp_path / "pre"),
    )
    assert trained.exit_code == 0, trained.output
    wrong = vis4mer("pretrain", "--cache", tmp_path / "tokens.zarr", "--run", tmp_path / "y")
    assert wrong.exit_code == 2
    assert "tokens is not set; add --set tokens=" in wrong.stderr
    refused = vis4mer(
        "train-decoder", *common, "--task", "toy/label", "--run", "z", "--set", "init=../pre"
    )
    assert refused.exit_code == 2
    assert "`--init RUN` sets" in refused.stderr
