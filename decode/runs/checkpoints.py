"""Tensors on disk: safetensors files, whole or absent, with sealed JSON that says what they are.

A checkpoint may come from a colleague: nothing in it is executed, and its names and shapes are
compared with the model it is meant for before a value is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...store.errors import CacheFormatError, Vis4merError
from ...store.files import seal, unseal, write_atomic
from ...store.wording import first_line, some_of, visible

_ABOUT = "vis4mer"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """tensors by name, on the CPU; `about` is JSON."""

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with `prefix`, without it."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace `path`; a reader, or a crash, sees the old file or the new one."""
    tensors = {
        name: tensor.detach().to("cpu").contiguous().clone()  # shared storage is refused
        for name, tensor in checkpoint.tensors.items()
    }
    write_atomic(path, save(tensors, metadata={_ABOUT: seal(checkpoint.about).decode()}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read an untrusted checkpoint; Vis4merError in one line when it is none of ours."""
    try:
        if not S_ISREG(path.lstat().st_mode):  # a link may lead anywhere, a pipe waits for ever
            raise CacheFormatError(f"{path}: a link, or no file at all, expected a plain file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except FileNotFoundError as error:
        raise Vis4merError(f"{path}: no such checkpoint") from error
    except CacheFormatError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CacheFormatError(
            f"{path}: not a safetensors file that can be read ({visible(first_line(error))})"
        ) from error
    if _ABOUT not in metadata:
        raise CacheFormatError(f"{path}: a safetensors file, but not one that vis4mer wrote")
    return Checkpoint(tensors=tensors, about=unseal(metadata[_ABOUT].encode(), name=str(path)))


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Fill `model`; Vis4merError naming the first mismatch of names, shapes or types."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        listed = "; ".join(
            f"{kind} {some_of(names, most=3)}"
            for kind, names in (("lacks", missing), ("has unknown", unexpected))
            if names
        )
        raise CacheFormatError(f"{name}: not the weights of this decoder ({listed})")
    for key, tensor in tensors.items():
        wanted = expected[key]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            raise CacheFormatError(
                f"{name}: {key} is {_described(tensor)}, but this decoder has {_described(wanted)}"
            )
    with torch.no_grad():
        model.load_state_dict(dict(tensors))


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
