"""Accuracy and speed of the S4 kernel and convolution.

    python benchmarks/s4.py                          errors against a float64 oracle, and times
    python benchmarks/s4.py --reference DIR          also kernels and logits of released weights

The oracle is dense HiPPO-LegS in float64, discretised by the bilinear rule, as a recurrence. It
shares no code with the layer but the change of basis that turns C into its coordinates.

DIR holds safetensors files with the values of an implementation that defines its kernels at
frequency nodes saved in complex64: `state.*`, `input`, `kernel.0`, `kernel.1`, …, `logits`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.mixers.s4 import S4Mixer, S4Options
from vis4mer.decode.ssm.base import as_complex
from vis4mer.decode.ssm.cauchy import (
    ContinuousDplr,
    cauchy_kernel,
    unit_nodes,
    untruncated_rows,
)
from vis4mer.decode.ssm.hippo import legs, legs_nplr
from vis4mer.decode.ssm.kernel import block_convolution, block_operators, block_step, kernel
from vis4mer.decode.ssm.s4 import Dplr


@dataclass(frozen=True)
class Error:
    """Relative error in the Euclidean norm: of everything, and of the worst channel."""

    what: str
    overall: float
    worst_channel: float


def relative_error(what: str, found: Tensor, expected: Tensor) -> Error:
    """found, expected: (H, L)."""
    difference = (found.double() - expected).norm(dim=1)
    worst = (difference / expected.norm(dim=1)).max()
    return Error(what, float(difference.norm() / expected.norm()), float(worst))


def oracle_kernel(ssm: Dplr, length: int) -> Tensor:
    """The kernel of a freshly initialised layer by the dense recurrence, float64 (H, L)."""
    A, B = legs(2 * ssm.A_frequency.shape[0])
    basis = legs_nplr(A.shape[0]).V  # N n
    C = as_complex(ssm.C.detach()).to(basis.dtype)  # H n
    C_dense = 2 * (C @ basis.conj().T).real  # H N
    half = ssm.log_dt.detach().double().exp()[:, None, None] / 2  # H 1 1
    identity = torch.eye(A.shape[0], dtype=torch.float64)
    inverse = torch.linalg.inv(identity - half * A)  # H N N
    A_bar, x = inverse @ (identity + half * A), inverse @ (2 * half * B[:, None])  # H N N, H N 1
    K = torch.empty(C.shape[0], length, dtype=torch.float64)
    for at in range(length):
        K[:, at] = (C_dense[:, None] @ x)[:, 0, 0]
        x = A_bar @ x
    return K


@torch.no_grad()
def accuracy(num_channels: int, length: int) -> list[Error]:
    """Kernel, block convolution and stream against the oracle."""
    ssm = Dplr(num_channels)
    torch.nn.init.zeros_(ssm.D)
    expected = oracle_kernel(ssm, length)
    system = ssm.system(*ssm.vectors())
    impulse = torch.zeros(num_channels, 1, length)
    impulse[..., 0] = 1
    label = f"L = {length}"
    errors = [
        relative_error(f"kernel, {label}", kernel(system, length), expected),
        relative_error(f"blocks, {label}", block_convolution(system, impulse)[:, 0], expected),
    ]
    u = torch.randn(num_channels, 1, 2000)
    y = block_convolution(system, u)
    operators = {m: block_operators(system, m) for m in (49, 2000 % 49)}
    x, outputs = torch.zeros(num_channels, 1, system.B.shape[1]), []
    for block in torch.split(u, 49, dim=2):
        part, x = block_step(operators[block.shape[2]], block, x)
        outputs.append(part)
    stream = torch.cat(outputs, dim=2)[:, 0]
    return [*errors, relative_error("stream = blocks, L = 2000", stream, y[:, 0].double())]


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(num_channels: int, length: int, repeats: int) -> dict[str, float]:
    """Seconds of a forward and a backward pass of the mixer's core, batch 1, float32."""
    found = {}
    for convolution in ("blocks", "fft"):
        mixer = S4Mixer(
            num_channels,
            length=length,
            dropout=0.0,
            options=S4Options(convolution=convolution),
        )
        u = torch.randn(1, length, num_channels, requires_grad=True)

        def forward(mixer: S4Mixer = mixer, u: Tensor = u) -> Tensor:
            return mixer.core(u, None)

        def both(forward: Callable[[], Tensor] = forward) -> None:
            torch.autograd.backward(forward().sum())

        with torch.no_grad():
            found[f"{convolution} forward"] = seconds(forward, repeats)
        found[f"{convolution} forward and backward"] = seconds(both, repeats)
    return found


# Released values --------------------------------------------------------------------------------


def compare_with_released(file: Path) -> list[Error]:
    """Kernels from the saved and from exact nodes, from our system, and logits."""
    values = load_file(file)
    batch = values["input"]
    length = batch.shape[1]
    errors = []
    decoder: Any = build_decoder(
        "vis4mer",
        shape=_as_batch(batch).shape,
        num_outputs=values["logits"].shape[1],
        options={"variant": "official"},
    ).double()
    for i, block in enumerate(decoder.blocks):
        state = {k.removeprefix("state."): v for k, v in values.items() if k.startswith("state.")}
        expected = values[f"kernel.{i}"].double()
        saved, continuous = released_system(state, f"s4_layers.{i}.kernel.krylov.")
        exact = unit_nodes(length)
        label = f"{file.stem} block {i} (L = {length})"
        taps = expected.shape[1]
        found = cauchy_kernel(continuous, saved, num_taps=taps)
        errors.append(relative_error(f"{label}: Cauchy, saved nodes", found, expected))
        K = cauchy_kernel(continuous, exact, num_taps=length)
        if taps == length:
            errors.append(relative_error(f"{label}: Cauchy, exact nodes", K, expected))
        load_released_block(block, state, i, continuous, length)
        ssm = block.mixer.ssm
        with torch.no_grad():
            ours = kernel(ssm.system(*ssm.vectors()), length)
        ours[:, 0] -= ssm.D.detach()
        errors.append(relative_error(f"{label}: ours, to exact nodes", ours, K))
        length //= 2
    decoder.head.load_state_dict({k: values[f"state.decoder.{k}"] for k in ("weight", "bias")})
    with torch.no_grad():
        logits = decoder.eval()(_as_batch(batch.double()))
    expected = values["logits"].double()
    errors.append(relative_error(f"{file.stem}: logits, ours", logits, expected))
    largest = float((logits - expected).abs().max())
    return [*errors, Error(f"{file.stem}: logits, ours, absolute", largest, largest)]


def _as_batch(x: Tensor) -> TokenBatch:
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return TokenBatch(patch=None, prefix=x[:, :, None], mask=mask, pts_seconds=mask.double())


def released_system(state: dict[str, Tensor], prefix: str) -> tuple[Tensor, ContinuousDplr]:
    """Its saved nodes and its system; C and Q are stored conjugated, C is C̃."""
    pairs = {k: as_complex(state[prefix + k].double()) for k in ("w", "B", "C", "nodes")}
    return pairs["nodes"], ContinuousDplr(
        Lambda=pairs["w"],
        P=pairs["B"][:, 1],
        Q=pairs["C"][:, 1],
        B=pairs["B"][:, 0],
        C=pairs["C"][:, 0].conj(),
        dt=state[prefix + "log_dt"].double().exp(),
    )


@torch.no_grad()
def load_released_block(
    block: Any,
    state: dict[str, Tensor],
    index: int,
    continuous: ContinuousDplr,
    length: int,
) -> None:
    """Give a float64 block of ours the released weights, C̃ turned into C."""
    ssm = block.mixer.ssm
    ssm.A_log_decay.copy_(torch.log(-continuous.Lambda.real))
    ssm.A_frequency.copy_(continuous.Lambda.imag)
    ssm.log_dt.copy_(torch.log(continuous.dt))
    for name in ("P", "Q", "B", "C"):
        getattr(ssm, name).copy_(torch.view_as_real(getattr(continuous, name).resolve_conj()))
    ssm.D.copy_(state[f"s4_layers.{index}.D"])
    system = ssm.system(*ssm.vectors())
    rows = untruncated_rows(system.step, system.C, length)  # H N, as [2 Re C, −2 Im C]
    real, imag = rows.chunk(2, dim=1)
    ssm.C.copy_(torch.stack([real / 2, -imag / 2], dim=2))
    block.norm.load_state_dict(_part(state, f"norms.{index}"))
    block.linear.load_state_dict(_part(state, f"linears.{index}"))
    output = _part(state, f"s4_layers.{index}.output_linear")
    block.mixer.output.load_state_dict({"weight": output["weight"], "bias": output["bias"][:, 0]})


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: state[f"{name}.{k}"] for k in ("weight", "bias")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--channels", type=int, default=1024, help="when timing")
    parser.add_argument("--oracle-channels", type=int, default=128, help="when comparing")
    parser.add_argument("--length", type=int, default=11_760)
    parser.add_argument("--odd-length", type=int, default=2_955)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="folder of released values")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    machine = f"{platform.processor() or platform.machine()}, {arguments.threads} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    errors = accuracy(arguments.oracle_channels, arguments.length)
    errors += accuracy(arguments.oracle_channels, arguments.odd_length)[:2]
    if arguments.reference:
        for file in sorted(arguments.reference.glob("*.safetensors")):
            errors += compare_with_released(file)
    times = speed(arguments.channels, arguments.length, arguments.repeats)
    if arguments.json:
        result = {
            "machine": machine,
            "versions": versions,
            "errors": [asdict(e) for e in errors],
            "seconds": times,
        }
        json.dump(result, sys.stdout, indent=2)
        return
    print(f"{machine}; {versions}; N = 64\n")
    print(f"{'relative error':<64}{'overall':>10}{'worst':>10}")
    for error in errors:
        print(f"{error.what:<64}{error.overall:>10.1e}{error.worst_channel:>10.1e}")
    print(
        f"\n{f'median time, H = {arguments.channels}, L = {arguments.length}':<64}{'seconds':>10}"
    )
    for what, value in times.items():
        print(f"{what:<64}{value:>10.3f}")


if __name__ == "__main__":
    main()
