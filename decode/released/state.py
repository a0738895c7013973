"""State dicts saved by the code released for ViS4mer: read, checked, renamed to our decoder's.

What becomes of each of its keys, for layer i of width H with N/2 = n stored conjugate pairs:

    norms.i.{weight,bias}, linears.i.{weight,bias}, s4_layers.i.D      as they are
    s4_layers.i.output_linear.{weight,bias}                            bias (H, 1) becomes (H,)
    s4_layers.i.kernel.krylov.w                                        Λ (n, 2)
    s4_layers.i.kernel.krylov.B                                        B and P, stacked (H, 2, n, 2)
    s4_layers.i.kernel.krylov.C                                        conj C̃ and Q, stacked alike
    s4_layers.i.kernel.krylov.{log_dt,nodes}                           as they are
    s4_layers.i.kernel.krylov.z                                        follows from nodes: left out
    decoder.{weight,bias}                                              the head
    encoder.{weight,bias}                                              never called: left out

A file may come from anyone: no object is unpickled, and every name, shape and value is checked.
Knows nothing of caches and run directories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...store.errors import CacheFormatError, UsageError
from ...store.torchfile import read_torch
from ...store.wording import some_of

State = dict[str, Tensor]

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "state.", "model.")
_KRYLOV = ("w", "B", "C", "log_dt", "nodes")


@dataclass(frozen=True, kw_only=True)
class ReleasedState:
    """What a file holds. sha256: of the file. width: of its tokens. num_tokens: of its windows.

    tensors: float32, by the names of decoder `vis4mer` with mixer `s4-released`.
    has_encoder: whether it holds an input layer, which is left out.
    """

    sha256: str
    depth: int
    width: int
    state_size: int
    num_outputs: int
    num_tokens: tuple[int, int]
    tensors: Mapping[str, Tensor]
    has_encoder: bool


def read_released(path: Path) -> ReleasedState:
    """Read a .safetensors, or a .pth, .pt or .ckpt of tensors only.

    Accepts a level of nesting (`state_dict`, `model`) and prefixes (`module.`, `state.`). Raises
    UsageError when there is no such file and CacheFormatError when it holds something else.
    """
    content = _read(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state = _state_dict(content, name=str(path))
    depth = _depth(state, name=str(path))
    _require_names(state, depth, name=str(path))
    state = {key: _real(key, value, name=str(path)) for key, value in state.items()}
    _require_shapes(state, depth, name=str(path))
    even = 2 * (len(state["s4_layers.0.kernel.krylov.nodes"]) - 1)
    return ReleasedState(
        sha256=sha256,
        depth=depth,
        width=len(state["norms.0.weight"]),
        state_size=2 * len(state["s4_layers.0.kernel.krylov.w"]),
        num_outputs=len(state["decoder.weight"]),
        num_tokens=(even, even + 1),
        tensors=_renamed(state, depth),
        has_encoder="encoder.weight" in state,
    )


def _read(path: Path) -> object:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a .safetensors, .pth, .pt or .ckpt")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return read_torch(path)
    except Exception as error:  # both libraries raise many kinds for a file that is not theirs
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CacheFormatError(
            f"{path} cannot be read as weights ({reason}); expected a .safetensors file, or a "
            ".pth, .pt or .ckpt of tensors only"
        ) from error


def _state_dict(content: object, *, name: str) -> State:
    """The named tensors, whatever they are wrapped in."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise _not_released(name, f"it holds a {type(content).__name__}")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    while inner := next((p for p in _PREFIXES if any(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(inner): v for k, v in state.items() if k.startswith(inner)}
    return state


def _depth(state: State, *, name: str) -> int:
    depth = 0
    while f"s4_layers.{depth}.D" in state:
        depth += 1
    if not depth:
        raise _not_released(name, f"it holds {_listed(state) or 'no named tensors'}")
    return depth


def _not_released(name: str, found: str) -> CacheFormatError:
    return CacheFormatError(
        f"{name} is no state dict of the released ViS4mer code: {found}, expected "
        "s4_layers.0.D, s4_layers.0.kernel.krylov.w, …, decoder.bias"
    )


def _listed(names: Iterator[str] | State) -> str:
    chosen = [ascii(name[:60])[1:-1] for name in sorted(names)]
    return some_of(chosen, most=3)


def _names(depth: int) -> Iterator[str]:
    """Every key that is used."""
    for i in range(depth):
        yield from (f"s4_layers.{i}.kernel.krylov.{key}" for key in _KRYLOV)
        yield f"s4_layers.{i}.D"
        for part in (f"s4_layers.{i}.output_linear", f"norms.{i}", f"linears.{i}"):
            yield from (f"{part}.weight", f"{part}.bias")
    yield from ("decoder.weight", "decoder.bias")


def _require_names(state: State, depth: int, *, name: str) -> None:
    names = set(_names(depth))
    unused = {"encoder.weight", "encoder.bias"}
    unused |= {f"s4_layers.{i}.kernel.krylov.z" for i in range(depth)}
    for problem, keys in (("lacks", names - state.keys()), ("has", state.keys() - names - unused)):
        if keys:
            unknown = ", which that code does not save" if problem == "has" else ""
            raise CacheFormatError(
                f"{name}: a state dict of {depth} S4 layers that {problem} "
                f"{_listed(iter(keys))}{unknown}; expected one saved by the released ViS4mer code"
            )


def _real(key: str, value: Tensor, *, name: str) -> Tensor:
    """float32, and finite in it."""
    if not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise CacheFormatError(f"{name}: {key} is of type {kind}, expected floating point")
    value = value.to(torch.float32)
    if not bool(torch.isfinite(value).all()):
        raise CacheFormatError(
            f"{name}: {key} holds values that are not finite; the training that saved it diverged"
        )
    return value


def _require_shapes(state: State, depth: int, *, name: str) -> None:
    """CacheFormatError, naming the first tensor that does not fit the others."""
    H = _first_size(state, "norms.0.weight")
    n = _first_size(state, "s4_layers.0.kernel.krylov.w")
    even = 2 * (_first_size(state, "s4_layers.0.kernel.krylov.nodes") - 1)
    num_outputs = _first_size(state, "decoder.weight")
    if H < 1 or H % 2**depth or n < 1 or num_outputs < 1 or even >> (depth - 1) < 2:
        raise CacheFormatError(
            f"{name}: width {H} with {depth} layers, {n} pairs, {even} tokens and {num_outputs} "
            "outputs; expected a width that can be halved once a layer, and none of them empty"
        )
    expected: dict[str, tuple[int, ...]] = {
        "decoder.weight": (num_outputs, H >> depth),
        "decoder.bias": (num_outputs,),
    }
    for i in range(depth):
        expected |= _layer_shapes(i, width=H >> i, n=n, num_nodes=(even >> i) // 2 + 1)
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise CacheFormatError(
                f"{name}: {key} is {tuple(state[key].shape)}, expected {shape} beside the others"
            )
    encoder = state.get("encoder.weight")
    if encoder is not None and encoder.shape != (H, H):
        raise CacheFormatError(
            f"{name}: its encoder is {tuple(encoder.shape)}, a map between different widths, which "
            f"our decoder does not have; expected ({H}, {H}), which the released code never calls"
        )


def _layer_shapes(i: int, *, width: int, n: int, num_nodes: int) -> dict[str, tuple[int, ...]]:
    krylov, output = f"s4_layers.{i}.kernel.krylov.", f"s4_layers.{i}.output_linear."
    return {
        f"{krylov}w": (n, 2),
        f"{krylov}B": (width, 2, n, 2),
        f"{krylov}C": (width, 2, n, 2),
        f"{krylov}log_dt": (width,),
        f"{krylov}nodes": (num_nodes, 2),
        f"s4_layers.{i}.D": (width,),
        f"{output}weight": (width, width),
        f"{output}bias": (width, 1),
        f"norms.{i}.weight": (width,),
        f"norms.{i}.bias": (width,),
        f"linears.{i}.weight": (width // 2, width),
        f"linears.{i}.bias": (width // 2,),
    }


def _first_size(state: State, key: str) -> int:
    return state[key].shape[0] if state[key].dim() else 0


def _renamed(state: State, depth: int) -> State:
    """By our names, C̃ and Q as A = Λ − P Q* and K = C̃ … mean them."""
    tensors = {"head.weight": state["decoder.weight"], "head.bias": state["decoder.bias"]}
    conjugate = torch.tensor([1.0, -1.0])
    for i in range(depth):
        layer, krylov = f"s4_layers.{i}.", f"s4_layers.{i}.kernel.krylov."
        B, C = state[f"{krylov}B"], state[f"{krylov}C"]  # H 2 n 2
        ours = {
            "mixer.ssm.Lambda": state[f"{krylov}w"],
            "mixer.ssm.B": B[:, 0],
            "mixer.ssm.P": B[:, 1],
            "mixer.ssm.C": C[:, 0] * conjugate,
            "mixer.ssm.Q": C[:, 1],
            "mixer.ssm.log_dt": state[f"{krylov}log_dt"],
            "mixer.ssm.nodes": state[f"{krylov}nodes"],
            "mixer.ssm.D": state[f"{layer}D"],
            "mixer.output.weight": state[f"{layer}output_linear.weight"],
            "mixer.output.bias": state[f"{layer}output_linear.bias"][:, 0],
            "norm.weight": state[f"norms.{i}.weight"],
            "norm.bias": state[f"norms.{i}.bias"],
            "linear.weight": state[f"linears.{i}.weight"],
            "linear.bias": state[f"linears.{i}.bias"],
        }
        tensors |= {f"blocks.{i}.{key}": value for key, value in ours.items()}
    return tensors
