"""Weights that the released ViS4mer code saved: what they give, where they fit, what is refused."""

import json

import pytest
import torch
from caches import make_cache
from released import released_kernel, released_logits, released_state
from safetensors.torch import save_file
from test_cli import refused
from test_cli import run as run_command
from token_batches import cut, token_batch
from vis4mer.decode.data.batch import TokenShape
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.judging.predict import predict_entries
from vis4mer.decode.released.importing import import_weights
from vis4mer.decode.runs.run import open_run
from vis4mer.store.errors import CacheFormatError, UsageError, Vis4merError

FRAMES = {"even": 8, "odd at the end": 11, "odd at the start": 9}  # of 4 or 5 tokens
PER_FRAME = {"even": 5, "odd at the end": 4, "odd at the start": 5}
each_length = pytest.mark.parametrize("length", FRAMES)


def imported(tmp_path, state, *, frames, per_frame, num_outputs=3, **cache_options):
    """A cache of such windows and the run of `state`, by way of a file."""
    cache = make_cache(
        tmp_path, num_videos=8, frames=frames, num_classes=num_outputs, **cache_options
    )
    view = f"{frames}x2x2" + ("+cls" if per_frame == 5 else "")
    save_file(state, tmp_path / "old.safetensors")
    summary = import_weights(
        tmp_path / "old.safetensors",
        cache,
        task="toy/label",
        tokens=view,
        run=tmp_path / "run",
        window_seconds=frames,
    )
    return cache, summary


def window_tokens(cache, entry_id, *, per_frame):
    """A whole entry as a window: float32 (1, L, D), frame-major, CLS first."""
    tokens = {
        name: torch.from_numpy(cache.read(entry_id, array=name).astype("f4"))
        for name in ("prefix", "patch")
    }
    parts = [tokens["prefix"], tokens["patch"]] if per_frame == 5 else [tokens["patch"]]
    return torch.cat(parts, dim=1).flatten(0, 1)[None]


# What it computes -------------------------------------------------------------------------------


@each_length
def test_an_imported_run_computes_what_the_released_code_does(tmp_path, length):
    frames, per_frame = FRAMES[length], PER_FRAME[length]
    state = released_state(tokens=frames * per_frame)
    cache, summary = imported(tmp_path, state, frames=frames, per_frame=per_frame)
    assert summary.num_tokens == frames * per_frame
    run = open_run(tmp_path / "run")
    model = run.load_decoder()
    for i, block in enumerate(model.blocks):
        found, expected = block.mixer.ssm.kernel(), torch.from_numpy(released_kernel(state, i))
        assert found.shape[1] == (frames * per_frame >> i) // 2 * 2
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for entry, prediction in zip(cache.ids(), predict_entries(run, cache), strict=True):
        logits = released_logits(state, window_tokens(cache, entry, per_frame=per_frame))
        expected = torch.softmax(logits[0], dim=0)
        torch.testing.assert_close(
            torch.tensor(prediction.output, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5
        )


def test_the_tests_own_kernel_is_odd_where_it_must_be():
    """Nothing kept stable, inexact nodes, a lost tap: or the comparison above would show little."""
    state = released_state(tokens=45)
    assert float(state["s4_layers.0.kernel.krylov.w"][0, 0]) > 0
    nodes = torch.view_as_complex(state["s4_layers.0.kernel.krylov.nodes"].double())
    exact = torch.polar(torch.ones(23).double(), -2 * torch.pi * torch.arange(23).double() / 45)
    assert 1e-8 < float((nodes - exact).abs().max()) < 1e-3
    assert released_kernel(state, 0).shape == (16, 44)


def test_a_window_that_ends_early_sees_the_same_kernel():
    batch = token_batch(frames=10, prefix=4, dim=16)
    state = released_state(tokens=40, depth=1)
    options = {"variant": "official", "mixer": "s4-released", "depth": 1, "state_size": 6}
    model = build_decoder("vis4mer", shape=batch.shape, num_outputs=3, options=options).eval()
    fill(model, state)
    short = cut(batch, 0, 7)
    found = model(short)
    expected = released_logits(state, short.prefix.flatten(1, 2))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="imported for 40 tokens got 44"):
        model(token_batch(frames=11, prefix=4, dim=16))


def fill(model, state):
    """One block by hand, as the file's conventions say."""
    krylov = {k.rpartition(".")[2]: v for k, v in state.items() if "krylov" in k}
    ssm, block = model.blocks[0].mixer.ssm, model.blocks[0]
    conjugate = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for name, value in {
            "Lambda": krylov["w"],
            "B": krylov["B"][:, 0],
            "P": krylov["B"][:, 1],
            "C": krylov["C"][:, 0] * conjugate,
            "Q": krylov["C"][:, 1],
            "log_dt": krylov["log_dt"],
            "nodes": krylov["nodes"],
            "D": state["s4_layers.0.D"],
        }.items():
            getattr(ssm, name).copy_(value)
        for ours, theirs in (
            (block.mixer.output, "s4_layers.0.output_linear"),
            (block.norm, "norms.0"),
            (block.linear, "linears.0"),
            (model.head, "decoder"),
        ):
            ours.weight.copy_(state[f"{theirs}.weight"])
            ours.bias.copy_(state[f"{theirs}.bias"].flatten())


def test_a_kept_kernel_follows_the_weights():
    batch = token_batch(frames=10, prefix=4, dim=16)
    options = {"variant": "official", "mixer": "s4-released", "depth": 1, "state_size": 6}
    model = build_decoder("vis4mer", shape=batch.shape, num_outputs=3, options=options).eval()
    for seed in (0, 1):
        state = released_state(tokens=40, depth=1, seed=seed)
        fill(model, state)
        with torch.inference_mode():
            found = model(batch)
        expected = released_logits(state, batch.prefix.flatten(1, 2))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    model(batch)  # and what was kept in inference mode serves outside of it


def test_it_has_the_released_number_of_parameters():
    shape = TokenShape(frames=60, grid=(14, 14), num_prefix=1, dim=1024)
    options = {"variant": "official", "mixer": "s4-released"}
    model = build_decoder("vis4mer", shape=shape, num_outputs=4, options=options)
    assert sum(p.numel() for p in model.parameters()) == 2_533_700
    assert [len(block.mixer.ssm.nodes) for block in model.blocks] == [5911, 2956, 1478]


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "nested", "prefix"),
    [
        (".pth", None, ""),
        (".pth", None, "module."),
        (".pt", "model", "module."),
        (".ckpt", "state_dict", "model."),
        (".pth", "state_dict", "module.state."),
    ],
)
def test_files_of_every_form_give_the_same_run(tmp_path, suffix, prefix, nested):
    state = released_state(tokens=40, depth=1)
    _, expected = imported(tmp_path, state, frames=8, per_frame=5)
    content = {f"{prefix}{name}": value for name, value in state.items()}
    file = tmp_path / f"old{suffix}"
    torch.save({"epoch": 3, nested: content} if nested else content, file)
    summary = import_weights(
        file,
        make_cache(tmp_path / "other", num_videos=2, frames=8, num_classes=3),
        task="toy/label",
        tokens="8x2x2+cls",
        run=tmp_path / "again",
        window_seconds=8,
    )
    assert summary.num_parameters == expected.num_parameters
    first = open_run(tmp_path / "run").load_decoder().state_dict()
    again = open_run(tmp_path / "again").load_decoder().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


class Harmful:
    """Would leave a file behind, were it unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_an_object_in_a_file_is_never_made(tmp_path):
    trace = tmp_path / "trace"
    state = {**released_state(tokens=40), "callback": Harmful(trace)}
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(CacheFormatError, match="tensors only") as caught:
        attempt(tmp_path, tmp_path / "old.pth")
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def attempt(tmp_path, file, **asked):
    cache = make_cache(tmp_path / "a", num_videos=6, frames=8, num_classes=3)
    asked = {"task": "toy/label", "tokens": "8x2x2+cls", "window_seconds": 8, **asked}
    return import_weights(file, cache, run=tmp_path / "run", **asked)


K = "s4_layers.1.kernel.krylov."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{K}log_dt"), rf"lacks {K}log_dt; expected"),
        (lambda s: s.update({f"{K}gate\n": torch.ones(1)}), r"krylov.gate\\n, which that code"),
        (lambda s: s.update({f"{K}w": torch.ones(4, 2)}), r"w is \(4, 2\), expected \(3, 2\)"),
        (lambda s: s.update({f"{K}nodes": torch.ones(9, 2)}), r"nodes is \(9, 2\), expected \(11"),
        (lambda s: s.update({f"{K}B": torch.ones(8, 3, 3, 2)}), r"B is \(8, 3, 3, 2\), expected"),
        (lambda s: s[f"{K}C"].fill_(torch.nan), "krylov.C holds values that are not finite"),
        (lambda s: s.update({"norms.0.bias": torch.ones(16).long()}), "of type int64"),
        (lambda s: s.update({"norms.0.weight": torch.tensor(1.0)}), "width 0 with 3 layers"),
        (lambda s: s.update({"decoder.weight": torch.ones(0, 2)}), "0 outputs"),
        (lambda s: s.update({"encoder.weight": torch.ones(16, 24)}), r"encoder is \(16, 24\)"),
        (lambda s: s.clear(), "no state dict of the released ViS4mer code: it holds no named"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(tmp_path, change, message):
    state = released_state(tokens=40)
    change(state)
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(CacheFormatError, match=message) as caught:
        attempt(tmp_path, tmp_path / "old.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_of_other_things_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("hello\nworld")
    (tmp_path / "text.safetensors").write_text("hello\nworld")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"blocks.0.weight": torch.ones(2)}, tmp_path / "vit.pth")
    for name, message in (
        ("text.pth", "cannot be read as weights"),
        ("text.safetensors", "cannot be read as weights"),
        ("list.pth", "it holds a list"),
        ("vit.pth", "it holds blocks.0.weight, expected s4_layers.0.D"),
    ):
        with pytest.raises(CacheFormatError, match=message) as caught:
            attempt(tmp_path / name.replace(".", "-"), tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        attempt(tmp_path / "none", tmp_path / "none.pth")


def test_a_kernel_that_is_not_finite_is_refused(tmp_path):
    """Every number of the file is finite, and yet the time step overflows."""
    state = released_state(tokens=40)
    state["s4_layers.2.kernel.krylov.log_dt"].fill_(1e4)
    save_file(state, tmp_path / "old.safetensors")
    with pytest.raises(CacheFormatError, match=r"the kernel of s4_layers.2 is not finite"):
        attempt(tmp_path, tmp_path / "old.safetensors")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({"width": 32}, {}, "made for tokens 32 wide, but those of .* are 16 wide"),
        ({"num_outputs": 4}, {}, "has 4 outputs, but task toy/label has 3 classes"),
        (
            {"tokens": 50},
            {},
            r"windows of 50 or 51 tokens, but --tokens 8x2x2\+cls of 8 s gives 40",
        ),
        ({}, {"tokens": "8x2x2"}, r"windows of 40 or 41 tokens, .* gives 32 \(8 frames of 4\)"),
        ({}, {"tokens": "9x2x2"}, "holds 8 frames"),
        ({}, {"task": "toy/other"}, "toy/other"),
    ],
)
def test_what_does_not_fit_the_cache_is_refused(tmp_path, made, asked, message):
    save_file(released_state(**{"tokens": 40, **made}), tmp_path / "old.safetensors")
    with pytest.raises(Vis4merError, match=message) as caught:
        attempt(tmp_path, tmp_path / "old.safetensors", **asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# The run ----------------------------------------------------------------------------------------


def test_the_run_says_where_it_comes_from_and_is_judged_as_official(tmp_path):
    _, summary = imported(tmp_path, released_state(tokens=40), frames=8, per_frame=5)
    about = open_run(tmp_path / "run").about
    assert (about.imported.file, about.imported.sha256) == ("old.safetensors", summary.sha256)
    assert about.train.protocol == "official"
    assert about.train.padding == "zeros"
    assert about.train.decoder.options["variant"] == "official"
    assert about.num_videos == {"train": 6, "val": 2, "test": 0}
    assert open_run(tmp_path / "run").results() is None
    config = (tmp_path / "run" / "config.json").read_text()
    assert str(tmp_path) not in config
    with pytest.raises(Vis4merError, match=r"an import brings last.safetensors alone"):
        open_run(tmp_path / "run").load_decoder("best")


def test_zeros_follow_a_video_shorter_than_its_window(tmp_path):
    """The released code's mean counts them."""
    state = released_state(tokens=40)
    cache, _ = imported(tmp_path / "long", state, frames=8, per_frame=5)
    short = make_cache(tmp_path, num_videos=2, frames=5, num_classes=3)
    assert short.spec == cache.spec
    run = open_run(tmp_path / "long" / "run")
    for entry, prediction in zip(short.ids(), predict_entries(run, short), strict=True):
        x = window_tokens(short, entry, per_frame=5)
        x = torch.cat([x, torch.zeros(1, 15, 16)], dim=1)
        expected = torch.softmax(released_logits(state, x)[0], dim=0)
        torch.testing.assert_close(
            torch.tensor(prediction.output, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5
        )


def test_from_the_command_line(tmp_path):
    cache = make_cache(tmp_path, num_videos=12, frames=8, num_classes=3)
    save_file(released_state(tokens=40), tmp_path / "old.safetensors")
    where = ["--cache", cache.path, "--run", tmp_path / "run"]
    command = ["import-weights", tmp_path / "old.safetensors", "--task", "toy/label", *where]
    command += ["--tokens", "8x2x2+cls", "--window", "8"]
    shown = run_command(*command)
    assert shown.exit_code == 0, shown.output
    assert "40 tokens a window" in shown.output.replace("\n", " ")
    assert "encoder was left out" in shown.stderr
    summary = json.loads(run_command(*command, "--json").stdout)  # the same again is the same run
    assert summary["depth"] == 3
    evaluated = run_command("evaluate", "--run", tmp_path / "run", "--cache", cache.path, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.stdout)["task"] == "toy/label"

    save_file(released_state(tokens=40, seed=1), tmp_path / "old.safetensors")
    refused(run_command(*command), 2, "holds another run")
    resumed = run_command("train-decoder", "--resume", *where)
    refused(resumed, 2, "only holds imported weights", "cannot be trained")
    train = ["train-decoder", "--cache", cache.path, "--run", tmp_path / "new", "--task"]
    train += ["toy/label", "--window", "8", "--set", "decoder.mixer=s4-released"]
    refused(run_command(*train), 2, "only holds imported weights")
    assert not (tmp_path / "new").exists()
    assert "(s4-released by import only)" in run_command("decoders").output
