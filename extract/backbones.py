"""Frozen backbones: pixels → tokens after the final norm.

A backbone is named as timm names it, `vit_large_patch16_224.augreg_in21k`, with `@SIZE` or `@HxW`
behind it for another input size than the one it was trained at, `vit_tiny_patch16_224@64`; or it is
a plug-in, `module:function` (see `PluginBackbone`). Plug-ins run somebody's code, and weights files
and hub names are opened: pass only names that stand on this command line, never ones out of a
shared cache or run. Knows nothing of videos and caches beyond the spec.

Letters: B frames, p prefix tokens (CLS, registers), h × w patch grid, D width.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..store.errors import UsageError, Vis4merError
from ..store.spec import CacheSpec, ComputeDtype, Preprocess, Sampling, StoredDtype
from .preprocess import normalise, preprocess_from_timm
from .torchvision_shim import prepare_torchvision
from .weights import hash_weights, load_weights_file, random_seed
from .wording import describe_error, first_line

_TORCH_DTYPES: dict[ComputeDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
_NAME_PATTERN = re.compile(r"(?P<name>[^@]+)(?:@(?P<height>\d{1,4})(?:x(?P<width>\d{1,4}))?)?")
_WEIGHTS_HELP = "give a file with `--weights FILE`, or try the pipeline with `--weights random:0`"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """patch: (B, h·w, D) in raster order. prefix: (B, p, D). Of the backbone's device."""

    patch: Tensor
    prefix: Tensor


@dataclass(frozen=True, kw_only=True)
class PluginBackbone:
    """What a plug-in returns: `function(weights: str, image_size: tuple[int, int] | None)`.

    module: maps normalised pixels (B, 3, H, W) to tokens (B, p + h·w, D), prefix tokens first.
    """

    module: nn.Module
    preprocess: Preprocess
    grid: tuple[int, int]
    num_prefix: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen backbone, ready to encode; use `load_backbone`.

    name: with its full timm tag, and with `@SIZE` when that was asked for. weights: `hub`, `file`
    or `random:SEED`; weights_sha256: of the weights as loaded (`hash_weights`).
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

    def encode(self, pixels: Tensor) -> Tokens:
        """Tokens of resized frames: uint8 (B, 3, H, W), on any device, to float tokens."""
        with torch.inference_mode(), self._autocast():
            values = normalise(pixels, self.preprocess, device=self.device)  # B 3 H W
            tokens = self.module(values)  # B p+h·w D
        expected = (pixels.shape[0], self.num_prefix + self.grid[0] * self.grid[1], self.dim)
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

    name: `TIMM_NAME[.TAG][@SIZE]` or `module:function`. weights: `hub` (timm's own download),
    `random:SEED` (the same numbers on every run), or a .safetensors or .pth file. device: `auto`
    (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, `mps`. compute_dtype: float32 on a CPU and
    bfloat16 on a GPU unless given.

    Raises UsageError for unknown names and files of another model, Vis4merError when the hub cannot
    be reached. Only `hub` uses the network.
    """
    chosen = _device(device)
    dtype = compute_dtype or ("float32" if chosen.type == "cpu" else "bfloat16")
    if dtype not in get_args(ComputeDtype):
        raise UsageError(f"compute dtype {dtype!r}: expected {' or '.join(get_args(ComputeDtype))}")
    base, size = _split_name(name)
    if ":" in base:
        loaded, full_name = _load_plugin(base, weights, size), base
    else:
        loaded, full_name = _load_timm(base, weights, size)
    kind = weights if weights == "hub" or random_seed(weights) is not None else "file"
    digest = hash_weights(loaded.module)
    module = loaded.module.eval().requires_grad_(False).to(chosen)
    return Backbone(
        name=full_name + name[len(base) :],
        module=module,
        grid=loaded.grid,
        num_prefix=loaded.num_prefix,
        dim=loaded.dim,
        preprocess=loaded.preprocess,
        weights=kind,
        weights_sha256=digest,
        device=chosen,
        compute_dtype=dtype,
    )


def cache_spec(
    backbone: Backbone,
    *,
    fps: float = 1.0,
    reader: str = "pyav",
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
) -> CacheSpec:
    """The spec of a cache of this backbone's tokens.

    grids: sides of average-pooled copies of the patch grid to keep beside it, e.g. (7,). A side
    that equals the native grid is the `patch` array itself and adds nothing.
    """
    native = backbone.grid
    pooled = [f"grid{side}" for side in grids if (side, side) != native]
    try:
        return CacheSpec(
            backbone=backbone.name,
            weights=backbone.weights,
            weights_sha256=backbone.weights_sha256,
            preprocess=backbone.preprocess,
            sampling=Sampling(fps=fps),
            reader=reader,
            compute_dtype=backbone.compute_dtype,
            stored_dtype=stored_dtype,
            grid=native,
            num_prefix=backbone.num_prefix,
            dim=backbone.dim,
            arrays=("patch", "prefix", *pooled),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


class TimmTokens(nn.Module):
    """A timm model whose output is always tokens (B, p + h·w, D) after its final norm.

    Models that pool before their last norm keep that norm in the head (`fc_norm`, `head.norm`);
    here it is applied to every token instead, so that all backbones give normalised tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.model.forward_features(pixels)  # type: ignore[operator]
        return self.tokens(features)

    def tokens(self, features: Tensor) -> Tensor:
        """(B, p + N, D), (B, h, w, D) or (B, D, h, w) to (B, p + h·w, D)."""
        head_norm = getattr(getattr(self.model, "head", None), "norm", None)
        if features.dim() == 4:
            if isinstance(head_norm, nn.Module):
                features = head_norm(features)
            if not self.channels_last(features):
                features = features.permute(0, 2, 3, 1)  # B h w D
            return features.flatten(1, 2)  # B h·w D
        fc_norm = getattr(self.model, "fc_norm", None)
        for norm in (fc_norm, head_norm):
            if isinstance(norm, nn.Module):
                features = norm(features)  # B p+N D
        return features

    def channels_last(self, features: Tensor) -> bool:
        return bool(features.shape[-1] == self.model.num_features)


def _load_timm(name: str, weights: str, size: tuple[int, int] | None) -> tuple[PluginBackbone, str]:
    prepare_torchvision()
    import timm.models

    full_name = _known_name(name)
    config = timm.models.get_pretrained_cfg(full_name)
    options: dict[str, Any] = (
        {"img_size": size} if size and (config is None or config.fixed_input_size) else {}
    )
    try:
        model = _create(full_name, weights, options)
        loaded = _as_tokens(model, full_name, preprocess_from_timm(model, size=size))
    except (AssertionError, RuntimeError, ValueError) as error:
        if size is None or isinstance(error, Vis4merError):
            raise
        raise UsageError(
            f"backbone {full_name} cannot take images of {size[0]}x{size[1]} pixels "
            f"({first_line(error)}); a multiple of its patch size is expected"
        ) from error
    if weights != "hub" and random_seed(weights) is None:
        load_weights_file(model, Path(weights), full_name)
    return loaded, full_name


def _create(full_name: str, weights: str, options: Mapping[str, Any]) -> nn.Module:
    """Build the model, with hub weights or with seeded random ones (replaced later by a file's)."""
    import timm

    if weights == "hub":
        return _download(full_name, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(weights) or 0)
        model: nn.Module = timm.create_model(full_name, pretrained=False, num_classes=0, **options)
    return model


def _download(full_name: str, options: Mapping[str, Any]) -> nn.Module:
    import timm

    config = timm.models.get_pretrained_cfg(full_name)
    if config is None or not config.has_weights:
        raise UsageError(f"backbone {full_name} has no weights on the hub; {_WEIGHTS_HELP}")
    # Its client warns of every retry; the error below says it once, when they all failed.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model: nn.Module = timm.create_model(full_name, pretrained=True, num_classes=0, **options)
    # The hub's client raises its own, its HTTP library's and the system's errors for one cause.
    except Exception as error:
        raise Vis4merError(
            f"cannot get the weights of {full_name} from the hub "
            f"({describe_error(error)}); {_WEIGHTS_HELP}"
        ) from error
    finally:
        logger.setLevel(level)
    return model


def _as_tokens(model: nn.Module, name: str, preprocess: Preprocess) -> PluginBackbone:
    """Wrap a timm model; one frame is encoded to learn the shape of its tokens."""
    module = TimmTokens(model).eval()
    pixels = torch.zeros(1, 3, *preprocess.size)
    with torch.inference_mode():
        features = model.forward_features(pixels)  # type: ignore[operator]
        if not isinstance(features, Tensor) or features.dim() not in (3, 4):
            raise UsageError(f"backbone {name} gives no tokens; choose a ViT, Swin or ConvNeXt")
        tokens = module.tokens(features)
    num_prefix = int(getattr(model, "num_prefix_tokens", 0)) if features.dim() == 3 else 0
    num_patches, dim = tokens.shape[1] - num_prefix, tokens.shape[2]
    grid = _map_grid(features, module) or _token_grid(model, num_patches, preprocess.size)
    if grid is None:
        raise UsageError(
            f"backbone {name} gives {num_patches} patch tokens, which form no grid; "
            "choose a ViT, Swin or ConvNeXt"
        )
    return PluginBackbone(
        module=module, preprocess=preprocess, grid=grid, num_prefix=num_prefix, dim=dim
    )


def _map_grid(features: Tensor, module: TimmTokens) -> tuple[int, int] | None:
    if features.dim() != 4:
        return None
    height, width = features.shape[1:3] if module.channels_last(features) else features.shape[2:]
    return int(height), int(width)


def _token_grid(
    model: nn.Module, num_patches: int, size: tuple[int, int]
) -> tuple[int, int] | None:
    """(h, w) of a sequence: what the patch embedding says, or the image's shape divided evenly."""
    known = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if known is not None and known[0] * known[1] == num_patches:
        return int(known[0]), int(known[1])
    for height in range(1, num_patches + 1):
        width, rest = divmod(num_patches, height)
        if not rest and height * size[1] == width * size[0]:
            return height, width
    return None


def _load_plugin(name: str, weights: str, size: tuple[int, int] | None) -> PluginBackbone:
    """Import `module:function` and call it."""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"backbone plug-in {name!r} cannot be imported ({first_line(error)}); expected "
            "module:function with the module on PYTHONPATH"
        ) from error
    loaded = function(weights, size)
    if not isinstance(loaded, PluginBackbone):
        raise UsageError(
            f"backbone plug-in {name!r} returned {type(loaded).__name__}, expected a "
            "vis4mer.extract.backbones.PluginBackbone"
        )
    return loaded


def _known_name(name: str) -> str:
    """The name with its full tag; UsageError with the closest names otherwise."""
    import timm
    import timm.models

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise UsageError(f"unknown backbone {name!r}: expected the name of a timm model; {hint}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        raise UsageError(
            f"backbone {architecture!r} has no weights tagged {tag!r}, expected one of: "
            f"{', '.join(full.partition('.')[2] for full in tagged) or 'none'}"
        )
    default = timm.models.get_pretrained_cfg(architecture)
    if tag or default is None or not default.tag:
        return name
    return f"{architecture}.{default.tag}"


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


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(
            f"device {device!r} cannot be used ({first_line(error)}); expected auto, cpu, cuda, "
            "cuda:N or mps"
        ) from error
    return chosen
