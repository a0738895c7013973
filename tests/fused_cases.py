"""The fused convolution without a GPU, in a process of its own: `python tests/fused_cases.py WHAT`.

`numbers`, with TRITON_INTERPRET=1 set before Triton is imported: its kernel is then run by NumPy on
the CPU. Prints how far outputs and gradients are from the plain way in float64, one walk from its
definition as a loop, and a mixer from its plain self. `compile`: what the kernel takes on GPUs that
are not here. Each prints one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from vis4mer.decode.mixers.s4 import S4Mixer, S4Options
from vis4mer.decode.ssm import choice
from vis4mer.decode.ssm.channels import by_channels
from vis4mer.decode.ssm.fused import fused_walk
from vis4mer.decode.ssm.kernel import block_convolution, block_inputs
from vis4mer.decode.ssm.s4 import Dplr
from vis4mer.decode.ssm.s4d import DiagonalSsm

SHAPES = {"whole blocks": (1, 128), "any length": (2, 150), "two programs": (17, 65)}

TARGETS = ((80, "ieee", "fp32", 64), (90, "tf32", "fp32", 64), (80, "ieee", "bf16", 128))


def apart(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-6)).item()


def there_and_back(ssm, u, weight, convolution):
    u = u.clone().requires_grad_()
    y = convolution(ssm, u)
    named = dict(ssm.named_parameters())
    gradients = torch.autograd.grad((y * weight).sum(), [u, *named.values()])
    return {"y": y, **dict(zip(["u", *named], gradients, strict=True))}


def plain(ssm, u):
    return block_convolution(ssm.system(*ssm.vectors()), u)


def fused(ssm, u, block=64):
    system = ssm.system(*ssm.vectors())
    return fused_walk(u, *block_inputs(system, length=u.shape[2], block=block))


def fused_by_channels(ssm, u):
    """In slices, run again on the way back, as a mixer does it."""

    def prepare(*vectors):
        return block_inputs(ssm.system(*vectors), length=u.shape[2], block=64)

    tokens = u.permute(1, 2, 0)  # B L H
    y = by_channels(fused_walk, tokens, *ssm.vectors(), size=2, prepare=prepare)
    return y.permute(2, 0, 1)


def fused_in_long_blocks(ssm, u):
    return fused(ssm, u, block=128)


def systems():
    yield "s4", Dplr(3)
    yield "s4, untied", Dplr(3, tied=False, state_size=16)
    yield "s4d", DiagonalSsm(3, start="lin", state_size=32)


def values():
    torch.manual_seed(0)
    errors = {}
    for name, ssm in systems():
        for label, (B, L) in SHAPES.items():
            u, weight = torch.randn(3, B, L), torch.randn(3, B, L)
            ways = {"": fused} | ({", by channels": fused_by_channels} if B == 2 else {})
            ssm.double()
            expected = there_and_back(ssm, u.double(), weight.double(), plain)
            ssm.float()
            for way, convolution in ways.items():
                found = there_and_back(ssm, u, weight, convolution)
                for part, value in found.items():
                    errors[f"{name}: {label}{way}: {part}"] = apart(value, expected[part])
    return errors


WAYS = {"fused": fused, "fused, long": fused_in_long_blocks, "plain": plain}


def bfloat16():
    """Both ways with inputs in bfloat16, from the plain way in float64 with those inputs."""
    torch.manual_seed(0)
    errors = {}
    for name, ssm in systems():
        u, weight = torch.randn(3, 2, 200).bfloat16(), torch.randn(3, 2, 200)
        ssm.double()
        expected = there_and_back(ssm, u.double(), weight.double(), plain)
        ssm.float()
        for way, convolution in WAYS.items():
            found = there_and_back(ssm, u, weight, convolution)
            assert found["y"].dtype == found["u"].dtype == torch.bfloat16
            for part, value in found.items():
                errors[f"{way}: {name}: {part}"] = apart(value, expected[part])
    return errors


def mixer():
    """A whole S4 mixer, dropout and all, with its convolution forced; triton sees the CPU."""
    choice.why_not_fused = lambda _u, _taps, *handing_on: None if handing_on else "one block"
    x, found = torch.randn(2, 150, 4), {}
    for way in ("plain", "fused"):
        torch.manual_seed(0)
        options = S4Options(convolution=way)
        layer = S4Mixer(4, length=150, dropout=0.3, options=options)
        leaf = x.clone().requires_grad_()
        y = layer(leaf, None)
        named = dict(layer.named_parameters())
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *named.values()])
        found[way] = {"y": y, **dict(zip(["x", *named], gradients, strict=True))}
    return {part: apart(value, found["plain"][part]) for part, value in found["fused"].items()}


def walk():
    from vis4mer.decode.ssm.fused_kernels import walk_blocks

    torch.manual_seed(0)
    H, B, J, M, N = 2, 3, 4, 32, 16
    v = torch.randn(H, B, J * M)
    direct, readout = torch.randn(H, M, M), torch.randn(H, N, M)
    advance, reach = -0.3 * torch.rand(H, N, N), torch.randn(H, M, N)
    errors = {}
    for reverse in (False, True):
        y, states = walk_blocks(
            v, direct=direct, readout=readout, advance=advance, reach=reach, reverse=reverse,
            keep_states=True, precision="ieee",
        )  # fmt: skip
        x, order = torch.zeros(H, B, N), range(J)
        for j in reversed(order) if reverse else order:
            block = slice(j * M, (j + 1) * M)
            errors[f"state {j}, reverse {reverse}"] = apart(states[:, :, j], x)
            errors[f"y {j}, reverse {reverse}"] = apart(
                y[..., block], v[..., block] @ direct + x @ readout
            )
            x = x + x @ advance + v[..., block] @ reach
    return errors


def numbers():
    return {"walk": walk(), "values": values(), "bfloat16": bfloat16(), "mixer": mixer()}


def compiled():
    """Bytes of shared memory by GPU and precision, from the compiler alone."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from vis4mer.decode.ssm.fused_kernels import NUM_WARPS, ROWS, walk_kernel

    pointers = ("inputs", "direct", "readout", "advance", "reach", "outputs", "states")
    found = {}
    for capability, precision, dtype, block in TARGETS:
        constants = {
            "ROWS": ROWS, "M": block, "N": 64, "REVERSE": True, "KEEP": True,
            "PRECISION": precision, "WIDEN": False,
        }  # fmt: skip
        source = ASTSource(
            fn=walk_kernel,
            signature={
                **dict.fromkeys(pointers, f"*{dtype}"),
                "advance": "*fp32",
                **dict.fromkeys(("num_rows", "num_blocks"), "i32"),
                **dict.fromkeys(constants, "constexpr"),
            },
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
        )
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": NUM_WARPS})
        assert made.asm["cubin"]
        found[f"{capability}, {precision}, {dtype}"] = made.metadata.shared
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"numbers": numbers, "compile": compiled}[sys.argv[1]]()))
