"""Frozen backbones: pixels → tokens after the final norm.

A backbone is named as timm names it, `vit_large_patch16_224.augreg_in21k`, with `@SIZE` or `@HxW`
behind it for another input size than the one it was trained at, `vit_tiny_patch16_224@64`; or as
torchvision names its video transformers, `swin3d_b.kinetics400_v1` (see `clip_backbones`); or it is
a plug-in, `module:function` (see `PluginBackbone`). Plug-ins run somebody's code, and weights files
and hub names are opened: pass only names that stand on this command line, never ones out of a
shared cache or run. Knows nothing of videos and caches beyond the spec.

An image backbone sees one frame at a time. A clip backbone sees F consecutive frames and gives one
frame of tokens for them all.

Letters: B clips of F frames (an image backbone: B frames, F = 1), p prefix tokens (CLS, registers),
h × w patch grid, D width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...store.errors import UsageError, Vis4merError
from ...store.spec import CacheSpec, ComputeDtype, Preprocess, Sampling, StoredDtype
from ...store.wording import first_line
from .clips import is_clip_backbone, load_clip_backbone
from .plugins import PluginBackbone, is_plugin, load_plugin
from .preprocess import normalise
from .timm_models import load_timm
from .weights import hash_weights, random_seed

__all__ = [
    "Backbone",
    "PluginBackbone",
    "Tokens",
    "cache_spec",
    "load_backbone",
    "shape_of_backbone",
]

_TORCH_DTYPES: dict[ComputeDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
_DEVICE_PATTERN = re.compile(r"(?:cpu|cuda|mps|xpu)(?::[0-9]{1,4})?")
_NOT_LOADED = "0" * 64  # in the place of a fingerprint of weights
_NAME_PATTERN = re.compile(r"(?P<name>[^@]+)(?:@(?P<height>\d{1,4})(?:x(?P<width>\d{1,4}))?)?")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """patch: (B, h·w, D) in raster order. prefix: (B, p, D). Of the backbone's device."""

    patch: Tensor
    prefix: Tensor


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen backbone, ready to encode; use `load_backbone`.

    name: with its full timm tag, and with `@SIZE` when that was asked for. weights: `hub`, `file`
    or `random:SEED`; weights_sha256: of the weights as loaded (`hash_weights`). clip_frames: F.
    compiled_frames: of a batch, that `compile_backbone` has made code for; None when it has not.
    """

    name: str
    module: nn.Module
    grid: tuple[int, int]
    num_prefix: int
    dim: int
    preprocess: Preprocess
    weights: str
    weights_sha256: str
    device: torch.device
    compute_dtype: ComputeDtype
    clip_frames: int = 1
    compiled_frames: int | None = None

    def encode(self, pixels: Tensor) -> Tokens:
        """Tokens of resized frames: uint8 (B·F, 3, H, W), on any device, to float tokens of B.

        ValueError for frames that are no whole clips.
        """
        num_clips, rest = divmod(pixels.shape[0], self.clip_frames)
        if rest:
            raise ValueError(f"{pixels.shape[0]} frames are no clips of {self.clip_frames}")
        with torch.inference_mode(), self._autocast():
            values = normalise(pixels, self.preprocess, device=self.device)  # B·F 3 H W
            if self.compiled_frames is not None:
                # Another shape, or order in memory, would be compiled anew, for minutes.
                missing = max(0, self.compiled_frames - values.shape[0])
                values = pad(values, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous()
            if self.clip_frames > 1:
                clips = values.reshape(-1, self.clip_frames, *values.shape[1:])  # B F 3 H W
                values = clips.transpose(1, 2)  # B 3 F H W
            tokens = self.module(values)[:num_clips]  # B p+h·w D
        expected = (num_clips, self.num_prefix + self.grid[0] * self.grid[1], self.dim)
        if tuple(tokens.shape) != expected:
            raise Vis4merError(
                f"backbone {self.name} gave tokens of shape {tuple(tokens.shape)}, "
                f"expected {expected}"
            )
        return Tokens(patch=tokens[:, self.num_prefix :], prefix=tokens[:, : self.num_prefix])

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.compute_dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_TORCH_DTYPES[self.compute_dtype])


def load_backbone(
    name: str,
    *,
    weights: str = "hub",
    device: str = "auto",
    compute_dtype: ComputeDtype | None = None,
) -> Backbone:
    """Load a backbone.

    name: `NAME[.TAG][@SIZE]`, as timm or torchvision say, or `module:function`. weights: `hub`
    (their own download), `random:SEED` (the same numbers on every run), or a .safetensors or .pth
    file. device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, `mps`. compute_dtype:
    float32 on a CPU and bfloat16 on a GPU unless given.

    Raises UsageError for unknown names and files of another model, Vis4merError when the hub cannot
    be reached. Only `hub` uses the network.
    """
    chosen = _device(device)
    dtype = _compute_dtype(compute_dtype, chosen)
    loaded, full_name = _load(name, weights)
    digest = hash_weights(loaded.module)
    module = loaded.module.eval().requires_grad_(False)
    if dtype != "float32" and not is_plugin(_split_name(name)[0]):  # a plug-in may autocast itself
        _round_products(module, _TORCH_DTYPES[dtype])
    module = module.to(chosen)
    kind = weights if weights == "hub" or random_seed(weights) is not None else "file"
    return _backbone(replace(loaded, module=module), full_name, kind, digest, chosen, dtype)


def _round_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of matrix products in the type that autocast would bring them to for every
    batch: the same numbers, in half the memory."""
    for layer in module.modules():
        if type(layer) in (nn.Linear, nn.Conv2d, nn.Conv3d):  # what derives from them may do more
            layer.to(dtype)


def shape_of_backbone(name: str, *, compute_dtype: ComputeDtype | None = None) -> Backbone:
    """A backbone without numbers, which cannot encode: its full name, its shapes and its
    preprocessing, at once however large it is and without a download.

    Not for a plug-in, whose own function alone knows. UsageError as `load_backbone`.
    """
    if is_plugin(name):
        raise ValueError(f"{name} is a plug-in, which has to be loaded")
    dtype = _compute_dtype(compute_dtype, torch.device("cpu"))
    nowhere = torch.device("meta")  # tensors there have a shape and nothing else
    with nowhere:
        loaded, full_name = _load(name, "random:0")
    return _backbone(loaded, full_name, "random:0", _NOT_LOADED, nowhere, dtype)


def _load(name: str, weights: str) -> tuple[PluginBackbone, str]:
    """What a name stands for, and the name in full."""
    base, size = _split_name(name)
    if is_plugin(base):
        loaded, full_name = load_plugin(base, weights, size), base
    elif is_clip_backbone(base):
        loaded, full_name = load_clip_backbone(base, weights, size)
    else:
        loaded, full_name = load_timm(base, weights, size)
    return loaded, full_name + name[len(base) :]


def _backbone(
    loaded: PluginBackbone,
    name: str,
    weights: str,
    digest: str,
    device: torch.device,
    compute_dtype: ComputeDtype,
) -> Backbone:
    return Backbone(
        name=name,
        module=loaded.module,
        grid=loaded.grid,
        num_prefix=loaded.num_prefix,
        dim=loaded.dim,
        preprocess=loaded.preprocess,
        weights=weights,
        weights_sha256=digest,
        device=device,
        compute_dtype=compute_dtype,
        clip_frames=loaded.clip_frames,
    )


def cache_spec(
    backbone: Backbone,
    *,
    sampling: Sampling | None = None,
    reader: str = "pyav",
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
    full_grid: bool = True,
) -> CacheSpec:
    """The spec of a cache of this backbone's tokens.

    sampling: default one frame a second. grids: sides of average-pooled copies of the patch grid
    to keep beside it, e.g. (7,); a side that equals the native grid is the `patch` array itself.
    full_grid: False keeps the patch array only if `grids` names it.

    UsageError for what no cache can hold, and for a clip backbone without segments of its length.
    """
    sampling = sampling or Sampling()
    if backbone.clip_frames != sampling.clip_frames:
        sees, remedy = "single frames", "choose a clip backbone"
        if backbone.clip_frames > 1:
            sees, remedy = f"clips of {backbone.clip_frames} frames", "add --segments N"
        raise UsageError(
            f"backbone {backbone.name} sees {sees}, and the sampling is {sampling.describe()}; "
            f"{remedy}"
        )
    native = backbone.grid
    pooled = [f"grid{side}" for side in grids if (side, side) != native]
    patch = ["patch"] if full_grid or len(pooled) < len(grids) else []
    try:
        return CacheSpec(
            backbone=backbone.name,
            weights=backbone.weights,
            weights_sha256=backbone.weights_sha256,
            preprocess=backbone.preprocess,
            sampling=sampling,
            reader=reader,
            compute_dtype=backbone.compute_dtype,
            stored_dtype=stored_dtype,
            grid=native,
            num_prefix=backbone.num_prefix,
            dim=backbone.dim,
            arrays=(*patch, "prefix", *pooled),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _split_name(name: str) -> tuple[str, tuple[int, int] | None]:
    """`NAME@SIZE` or `NAME@HxW` into the name and (height, width)."""
    match = _NAME_PATTERN.fullmatch(name)
    if not match:
        raise UsageError(f"backbone {name!r}: expected NAME, NAME@SIZE or NAME@HxW in pixels")
    if match["height"] is None:
        return match["name"], None
    height = int(match["height"])
    size = (height, int(match["width"] or height))
    if min(size) < 1:
        raise UsageError(f"backbone {name!r}: the size must be at least 1 pixel")
    return match["name"], size


def _compute_dtype(asked: ComputeDtype | None, device: torch.device) -> ComputeDtype:
    dtype = asked or ("float32" if device.type == "cpu" else "bfloat16")
    if dtype not in get_args(ComputeDtype):
        raise UsageError(f"compute dtype {dtype!r}: expected {' or '.join(get_args(ComputeDtype))}")
    return dtype


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _DEVICE_PATTERN.fullmatch(device):  # torch would list twenty kinds
        raise UsageError(f"device {device!r}: expected auto, cpu, cuda, cuda:N or mps")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(
            f"device {device!r} cannot be used ({first_line(error)}); expected auto, cpu, cuda, "
            "cuda:N or mps"
        ) from error
    return chosen
