"""timm's image models as backbones: their tokens after the final norm, whatever the model.

Knows nothing of videos, caches or plug-ins.

Letters: B frames, p prefix tokens (CLS, registers), h × w patch grid, N = h·w, D width.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...store.errors import UsageError, Vis4merError
from ...store.spec import Preprocess
from ...store.wording import first_line
from .hub import first_sentence, hub_client
from .plugins import PluginBackbone
from .preprocess import preprocess_from_timm
from .torchvision_shim import prepare_torchvision
from .weights import WEIGHTS_HELP, load_weights_file, random_seed


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


def load_timm(name: str, weights: str, size: tuple[int, int] | None) -> tuple[PluginBackbone, str]:
    """A backbone of `NAME[.TAG]` and its name with the tag; see `backbones.load_backbone`."""
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
        raise UsageError(f"backbone {full_name} has no weights on the hub; {WEIGHTS_HELP}")
    with hub_client() as silent_host:
        try:
            model: nn.Module = timm.create_model(
                full_name, pretrained=True, num_classes=0, **options
            )
        # The hub's client raises its own, its HTTP library's and the system's errors for one cause.
        except Exception as error:
            cause = f"{silent_host} does not answer, and they are not among earlier downloads"
            raise Vis4merError(
                f"cannot get the weights of {full_name} from the hub "
                f"({cause if silent_host else first_sentence(error)}); {WEIGHTS_HELP}"
            ) from error
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
