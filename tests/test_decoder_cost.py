"""What `vis4mer decoders` says that decoders cost, against models that exist and sums by hand."""

import json
import re

import pytest
import torch
from token_batches import token_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.decoders import DECODERS, build_decoder, decoder_options, describe_decoders
from vis4mer.decode.decoders.cost import (
    _FOURIER,
    NUM_OUTPUTS,
    DecoderCost,
    decoder_costs,
    forward_cost,
)
from vis4mer.render.decode import _short
from vis4mer.store.errors import UsageError
from vis4mer.store.views import TokenView

VIEW = TokenView.parse("8x2x2+cls")
SMALL = {
    "memory": {"width": 16, "heads": 2, "chunk_frames": 4},
    "mamba2": {"width": 16, "state_size": 8, "heads": 4, "chunk": 16},
    "gru": {"width": 16},
    "orthoformer": {"landmarks": 4},
    "performer": {"features": 16},
    "stam": {"feedforward": 32, "depth": 1},
}
HEADS = {"heads": 2, "depth": 1}
MATERIALISED = {"attention": "materialised", **HEADS}


SKELETON = ("performer", "orthoformer")


@pytest.mark.parametrize("name", DECODERS)
def test_parameters_are_those_of_a_decoder_that_exists(name):
    batch = token_batch(frames=8, grid=(2, 2), prefix=1)
    options = SMALL.get(name, {})
    real = build_decoder(name, shape=batch.shape, num_outputs=NUM_OUTPUTS, options=options)
    cost = forward_cost(name, VIEW, dim=32, options=options)
    assert cost.num_parameters == sum(parameter.numel() for parameter in real.parameters())
    assert cost.num_tokens == 8 * 5
    assert cost.multiply_adds > 0


@pytest.mark.parametrize("attention", ["fused", "materialised"])
def test_multiply_adds_by_hand(attention):
    """One official block of attention: 40 tokens, 32 wide, in pairs behind the mixing."""
    options = {"variant": "official", "depth": 1, "heads": 2, "attention": attention}
    L, D = 40, 32
    qkv, attend, output = L * D * 3 * D, 2 * L * L * D, L // 2 * D * D
    expected = qkv + attend + output + L // 2 * D * (D // 2) + (D // 2) * NUM_OUTPUTS
    assert forward_cost("lst", VIEW, dim=D, options=options).multiply_adds == expected
    assert forward_cost("mean", VIEW, dim=D).multiply_adds == D * NUM_OUTPUTS


@pytest.mark.parametrize("name", ["gru", "mamba2", "attentive-probe", "selective_s4", "memory"])
def test_multiply_adds_are_those_of_a_real_forward_pass(name):
    """What needs no fused attention goes the same way with values."""
    options = {**SMALL.get(name, {}), **({"memory_length": 1} if name == "memory" else {})}
    batch = token_batch(frames=8, grid=(2, 2), prefix=1, batch=1)
    real = build_decoder(name, shape=batch.shape, num_outputs=NUM_OUTPUTS, options=options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        real(batch)
    counted = counter.get_total_flops() // 2
    if name == "memory":  # attention is fused here, and nobody counts it: 2 layers, 2 chunks
        S, heads, width = 4 * 5, 2, 8 + 4  # of a head, with the bias of each frame of a chunk
        counted += 2 * 2 * (2 * heads * S * S * width)
    assert forward_cost(name, VIEW, dim=32, options=options).multiply_adds == counted


def test_fourier_transforms_count_half_of_complex_ones():
    x = torch.zeros(3, 4, 1024)
    with FlopCounterMode(display=False, custom_mapping=_FOURIER) as counter:
        spectrum = torch.fft.rfft(x)
    assert counter.get_total_flops() == 3 * 4 * 2.5 * 1024 * 10
    with FlopCounterMode(display=False, custom_mapping=_FOURIER) as counter:
        torch.fft.irfft(spectrum, n=1024)
    assert counter.get_total_flops() == 3 * 4 * 2.5 * 1024 * 10
    by_fft = forward_cost("vis4mer", VIEW, dim=32, options={"convolution": "fft"})
    assert by_fft.multiply_adds != forward_cost("vis4mer", VIEW, dim=32).multiply_adds


def test_no_weight_and_no_token_is_held():
    """Some 12 TB of weights, and as many of tokens."""
    cost = forward_cost("lst", TokenView.parse("1000x64x64"), dim=2**20, options={"depth": 1})
    assert cost.num_parameters > 4 * 2**40


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return made


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, SMALL.get(name, {})) for name in DECODERS if name not in ("lst", *SKELETON)]
    + [(name, {**HEADS, **SMALL[name]}) for name in SKELETON]
    + [("lst", HEADS), ("lst", MATERIALISED), ("vis4mer", {"mixer": "attention", **MATERIALISED})],
    ids=str,
)
def test_memory_grows_as_is_said(name, options):
    """Four times the frames: the largest tensor of a training step's forward pass grows by about 4
    or, of the scores of attention, by about 16."""
    largest = []
    for frames in (64, 256):
        batch = token_batch(frames=frames, grid=(1, 1), prefix=1, dim=16, batch=1)
        torch.manual_seed(0)
        model = build_decoder(name, shape=batch.shape, num_outputs=2, options=options).train()
        with Largest() as mode:
            model(batch)
        largest.append(mode.num_elements)
    growth = "quadratic" if largest[1] / largest[0] > 8 else "linear"
    assert model.memory_growth.removesuffix(" in frames") == growth, largest


def test_patches_do_not_make_what_grows_with_frames_quadratic():
    """Sixteen times the patches, and the scores of attention are as many as before."""
    largest = []
    for grid in ((1, 1), (4, 4)):
        batch = token_batch(frames=256, grid=grid, prefix=1, dim=16, batch=1)
        model = build_decoder("stam", shape=batch.shape, num_outputs=2, options=SMALL["stam"])
        with Largest() as mode:
            model.train()(batch)
        largest.append(mode.num_elements)
    assert largest[0] == largest[1]
    costs = decoder_costs(VIEW, dim=32)
    growing = {name: c.memory for name, c in costs.items() if isinstance(c, DecoderCost)}
    assert growing.pop("stam") == "quadratic in frames"
    assert "quadratic in frames" not in growing.values()


# Asking for it ----------------------------------------------------------------------------------


def test_every_decoder_has_a_cost_with_cls_where_it_needs_it():
    costs = decoder_costs(TokenView.parse("8x2x2"), dim=32)
    assert list(costs) == list(DECODERS)
    assert all(isinstance(cost, DecoderCost) for cost in costs.values())
    with_cls = {name for name, cost in costs.items() if cost.tokens == "8x2x2+cls"}
    assert with_cls == {"stam", "cls-mean"}
    assert {cost.tokens for name, cost in costs.items() if name not in with_cls} == {"8x2x2"}


@pytest.mark.parametrize("selection", ["@random0.5", "@stride2"])
def test_a_view_that_selects_patches_has_costs_with_cls_where_needed(selection):
    costs = decoder_costs(TokenView.parse(f"8x2x2{selection}"), dim=32)
    assert all(isinstance(cost, DecoderCost) for cost in costs.values()), costs
    for name, cost in costs.items():
        with_cls = name in ("stam", "cls-mean")
        assert cost.tokens == f"8x2x2{'+cls' * with_cls}{selection}"
        assert cost.num_tokens == 8 * (2 + with_cls)  # two of four patches, and CLS


def test_what_a_decoder_refuses_stands_in_its_place():
    costs = decoder_costs(VIEW, dim=30)
    assert isinstance(costs["lst"], UsageError)
    assert "30 wide, which cannot be halved 3 times" in str(costs["lst"])
    assert isinstance(costs["mean"], DecoderCost)
    shown = CliRunner().invoke(app, ["decoders", "--tokens", "8x2x2", "--dim", "30"])
    assert shown.exit_code == 0
    assert re.search(r"^lst: tokens are 30 wide", shown.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "14x14"], "say how many frames a window has, such as 60x14x14"),
        (["--tokens", "many"], "many"),
        (["--dim", "0"], "--dim is 0, expected 1 to 100000"),
        (["--dim", "1000000000000"], "--dim is 1000000000000, expected 1 to 100000"),
        (["--tokens", "999999x1x1"], "expected at most 3600 frames in a window"),
        (["--tokens", "60x999x999"], "has 59880060 tokens, expected at most 1000000"),
    ],
)
def test_no_setting_is_one_line(arguments, message):
    refused = CliRunner().invoke(app, ["decoders", *arguments])
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_command_says_setting_cost_source_and_what_it_does_not_count():
    arguments = ["decoders", "--tokens", "8x2x2", "--dim", "32"]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "Forward pass of one window of 8x2x2 tokens, 32 wide, with default options" in shown
    assert "not elementwise work" in shown
    assert re.search(r"^mean +8x2x2 +330 +320 +linear", shown, re.MULTILINE)  # 32·10 + 10
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    by_name = {each["name"]: each for each in found["decoders"]}
    assert by_name["mean"]["cost"] == {
        "tokens": "8x2x2",
        "num_tokens": 32,
        "num_parameters": 330,
        "multiply_adds": 320,
        "memory": "linear",
    }
    assert by_name["memory"]["sources"] == ["arXiv 2201.08383"]
    assert found["cost_of"]["setting"] in shown


@pytest.mark.parametrize(
    ("count", "expected"),
    [(999, "999"), (999.6, "1 k"), (16_487_548_160, "16.5 G"), (3e13, "30 T"), (2.5e17, "250 P")],
)
def test_large_counts_are_short(count, expected):
    assert _short(count) == expected


def test_every_decoder_of_a_paper_names_it():
    without = {about.name for about in describe_decoders() if not about.sources}
    assert without == {"gru", "mean", "cls-mean", "segment-mean"}


@pytest.mark.parametrize("name", ["mean", "cls-mean"])
def test_a_decoder_without_options_says_so(name):
    with pytest.raises(UsageError) as refused:
        decoder_options(name, {"depth": 2})
    said = f"unknown field 'decoder.depth': decoder '{name}' has no options"
    assert str(refused.value) == said
    assert decoder_options(name, {}).to_json() == {}
