"""The fused convolution of GPUs: its numbers, that it can be compiled, and when it is chosen.

No GPU is needed: Triton's interpreter runs its kernels on the CPU, and its compiler writes them for
GPUs that are not here. Both are processes of their own, because Triton asks once, when it is
imported, whether to interpret.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vis4mer.decode.ssm import choice, fused
from vis4mer.decode.ssm.choice import convolve, shape_class, try_fused
from vis4mer.decode.ssm.fused import why_not_fused
from vis4mer.decode.ssm.kernel import block_inputs, convolve_blocks
from vis4mer.decode.ssm.s4 import Dplr

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run_case(what, **environment):
    script = Path(__file__).with_name("fused_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), what],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def numbers():
    return run_case("numbers", TRITON_INTERPRET="1")


def prepared(*, length=100, block=64, **options):
    """Inputs (3, 2, length) and what a convolution needs of an S4 system."""
    torch.manual_seed(0)
    ssm = Dplr(3, **options)
    system = ssm.system(*(vector.detach() for vector in ssm.vectors()))
    return torch.randn(3, 2, length), *block_inputs(system, length=length, block=block)


# Its numbers ---------------------------------------------------------------------------------


@needs_triton
def test_one_walk_is_its_definition(numbers):
    errors = numbers["walk"]
    assert len(errors) == 16
    assert max(errors.values()) < 1e-6


@needs_triton
def test_outputs_and_gradients_are_those_of_the_plain_way(numbers):
    """Against the plain way in float64; of every parameter, by slices of channels too."""
    errors = dict(numbers["values"])
    assert {name.split(": ")[0] for name in errors} == {"s4", "s4, untied", "s4d"}
    assert max(errors.values()) < 1e-4


@needs_triton
def test_a_mixer_that_fuses_is_the_plain_one(numbers):
    errors = numbers["mixer"]
    assert {"y", "x", "ssm.log_dt", "ssm.C", "output.weight"} < set(errors)
    assert max(errors.values()) < 1e-4


@needs_triton
def test_in_bfloat16_it_is_about_as_near_as_the_plain_way(numbers):
    """Twice as far at the most: the interpreter cuts digits off where a GPU rounds."""
    errors = numbers["bfloat16"]
    assert {name.split(":")[0] for name in errors} == {"fused", "fused, long", "plain"}
    for name, error in errors.items():
        of_plain = errors["plain" + name[name.index(":") :]]
        assert error < 2 * of_plain + 4e-3, name


@needs_triton
def test_the_kernel_compiles_and_fits_the_chip():
    """For GPUs of capability 8.0 and 9.0; since 8.0 none gives a program less than 99 KiB."""
    shared = run_case("compile", TRITON_INTERPRET="0")
    assert len(shared) == 3
    assert max(shared.values()) <= 99 * 1024


# When it is chosen ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["blocks", "plain", "fused"])
def test_on_a_cpu_every_way_is_the_plain_one(way, monkeypatch):
    monkeypatch.setattr(choice, "try_fused", None)
    inputs = prepared()
    torch.testing.assert_close(convolve(*inputs, way=way), convolve_blocks(*inputs), rtol=0, atol=0)


class OnGpu:
    """As much of a tensor on a GPU as the question looks at."""

    is_cuda = True

    def __init__(self, tensor, dtype=torch.float32):
        self.shape, self.dtype, self.itemsize = tensor.shape, dtype, dtype.itemsize


def test_what_stands_in_the_way(monkeypatch):
    u, *operators = prepared(length=300)
    assert "not on a GPU" in why_not_fused(u, *operators)
    monkeypatch.setattr(fused, "_triton_is_installed", lambda: False)
    assert why_not_fused(OnGpu(u), *operators) == "Triton is not installed"
    monkeypatch.setattr(fused, "_triton_is_installed", lambda: True)
    assert why_not_fused(OnGpu(u), *operators) is None
    assert "single block" in why_not_fused(OnGpu(u), operators[0])
    assert "float64" in why_not_fused(OnGpu(u, torch.float64), *operators)
    assert "float16" in why_not_fused(OnGpu(u, torch.float16), *operators)
    u, *operators = prepared(length=300, state_size=10)
    assert "state of 10" in why_not_fused(OnGpu(u), *operators)
    u, *operators = prepared(length=300, block=128)
    assert "blocks of 128" in why_not_fused(OnGpu(u), *operators)
    assert why_not_fused(OnGpu(u, torch.bfloat16), *operators) is None


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [([1.0, 2.0], True), ([2.0, 1.0], False), ([0.99, 1.0], False)],
)
def test_it_is_chosen_where_it_is_clearly_quicker(seconds, chosen, monkeypatch):
    monkeypatch.setattr(choice, "_alternating_seconds", lambda *_: seconds)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():  # a trial goes there and back, also where only an evaluation runs
            assert try_fused(*prepared(), fused=convolve_blocks) is chosen


def broken(*_):
    raise RuntimeError("no compiler\nand more lines")


def wrong(*inputs):
    return 1.01 * convolve_blocks(*inputs)


def wrong_on_the_way_back(u, taps, readout, reach, E):
    return convolve_blocks(u, taps, readout, reach, E.detach() + 0 * E)


def not_a_number(*inputs):
    return torch.nan * convolve_blocks(*inputs)


@pytest.mark.parametrize(
    ("way", "reason"), [(broken, "RuntimeError: no compiler\\)"), (wrong, "e-02"),
                        (wrong_on_the_way_back, "1.0e\\+00 from"), (not_a_number, "nan from")],
)  # fmt: skip
def test_one_that_fails_or_disagrees_is_given_up(way, reason):
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        assert try_fused(*prepared(length=200), fused=way) is False
    assert len(warned) == 1


def test_both_ways_are_timed_in_alternation():
    done = []
    times = choice._alternating_seconds(lambda: done.append("a"), lambda: done.append("b"))
    assert done == ["a", "b"] * choice.REPEATS
    assert len(times) == 2


def test_the_choice_is_remembered_by_device_and_shape_class(monkeypatch):
    tried = []

    def trial(u, *_):
        tried.append(tuple(u.shape))
        return u.shape[1] > 1  # quicker for more than one row

    monkeypatch.setattr(choice, "_quicker", {})
    monkeypatch.setattr(choice, "try_fused", trial)
    monkeypatch.setattr(choice, "why_not_fused", lambda *_: None)
    monkeypatch.setattr(choice, "fused_walk", lambda *_: "fused")
    monkeypatch.setattr(choice, "convolve_blocks", lambda *_: "plain")
    operators, shapes = prepared()[1:], [(3, 2, 100), (3, 3, 127), (3, 2, 128), (3, 1, 100)]
    ways = [convolve(torch.empty(shape), *operators) for shape in shapes * 2]
    assert ways == ["fused", "fused", "fused", "plain"] * 2
    assert tried == [(3, 2, 100), (3, 2, 128), (3, 1, 100)]
    monkeypatch.setattr(choice, "_captures_a_graph", lambda _: True)
    ways = [convolve(torch.empty(shape), *operators) for shape in [*shapes, (3, 8, 100)]]
    assert ways == ["fused", "fused", "fused", "plain", "plain"]  # the last is not tried now
    assert len(tried) == 3
    assert convolve(torch.empty(3, 1, 100), *operators, way="fused") == "fused"
    assert convolve(torch.empty(3, 2, 100), *operators, way="plain") == "plain"


def test_types_blocks_and_precision_make_a_class_of_their_own(monkeypatch):
    u, *operators = prepared(length=300)
    classes = {
        shape_class(u, *operators),
        shape_class(u.bfloat16(), *operators),
        shape_class(*prepared(length=300, block=32)),
        shape_class(*prepared(length=300, state_size=32)),
    }
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    classes.add(shape_class(u, *operators))
    assert len(classes) == 5
    assert fused._precision() == "tf32"
