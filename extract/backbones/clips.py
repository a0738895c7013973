"""torchvision's video transformers as clip backbones: 32 frames → one frame of tokens.

Video Swin (Liu et al., "Video Swin Transformer", CVPR 2022, arXiv:2106.13230), as ViS4mer uses it
for Breakfast and COIN: the last feature map after its final norm, averaged over time, so that a
clip of 32 frames of 224 × 224 pixels gives 7 × 7 tokens of width 1024 (`swin3d_b`).

The paper's weights were trained on Kinetics-600, which torchvision does not publish: its tags are
`kinetics400_v1` (the default) and, for `swin3d_b`, `kinetics400_imagenet22k_v1`. Others can be
given as a file in torchvision's naming. torchvision prepares frames without smoothing as it shrinks
them; here they are smoothed like every other backbone's, which is the better picture and moves
pixels.

Letters: B clips, F frames of a clip, T feature maps in time, h × w patch grid, D width.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...store.errors import UsageError, Vis4merError
from ...store.spec import Preprocess
from ...store.wording import describe_error
from .plugins import PluginBackbone
from .torchvision_shim import prepare_torchvision
from .weights import WEIGHTS_HELP, load_state, load_weights_file, random_seed

CLIP_FRAMES = 32  # what the published weights were trained and judged with
PIXELS_PER_TOKEN = 32  # a side: patches of 4 pixels, merged two by two three times
CLASSIFIER = ("head",)

# Name → the enumeration of its weights in torchvision.models.video.
_WEIGHTS_OF = {
    "swin3d_b": "Swin3D_B_Weights",
    "swin3d_s": "Swin3D_S_Weights",
    "swin3d_t": "Swin3D_T_Weights",
}


class ClipTokens(nn.Module):
    """A torchvision SwinTransformer3d without its classifier: tokens (B, h·w, D) of a clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, F, H, W) to tokens (B, h·w, D)."""
        model: Any = self.model
        patches = model.pos_drop(model.patch_embed(pixels))  # B F/2 H/4 W/4 C
        features: Tensor = model.norm(model.features(patches))  # B T h w D
        return features.mean(dim=1).flatten(1, 2)  # B h·w D


def is_clip_backbone(name: str) -> bool:
    """Whether a backbone's name, with or without a tag, is one of those here."""
    return name.partition(".")[0] in _WEIGHTS_OF


def load_clip_backbone(
    name: str, weights: str, size: tuple[int, int] | None
) -> tuple[PluginBackbone, str]:
    """A backbone of `NAME[.TAG]` and its name with the tag; see `backbones.load_backbone`.

    size: (h, w) in pixels, for another input than that of the published weights.
    """
    prepare_torchvision()
    import torchvision.models.video as models

    architecture, _, tag = name.partition(".")
    published = _published(getattr(models, _WEIGHTS_OF[architecture]), architecture, tag)
    full_name = f"{architecture}.{published.name.lower()}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(weights) or 0)
        model: Any = getattr(models, architecture)(weights=None)
    model.head = nn.Identity()
    if weights == "hub":
        load_state(model, _download(published, full_name), full_name, full_name, CLASSIFIER)
    elif random_seed(weights) is None:
        load_weights_file(model, Path(weights), full_name, classifier=CLASSIFIER)
    preprocess = _preprocess(published.transforms(), size)
    height, width = (math.ceil(side / PIXELS_PER_TOKEN) for side in preprocess.size)
    loaded = PluginBackbone(
        module=ClipTokens(model).eval(),
        preprocess=preprocess,
        grid=(height, width),
        num_prefix=0,
        dim=model.num_features,
        clip_frames=CLIP_FRAMES,
    )
    return loaded, full_name


def _published(choices: Any, architecture: str, tag: str) -> Any:
    """The member of torchvision's enumeration that a tag names; its default without one."""
    tags = {member.name.lower(): member for member in choices}
    if tag and tag not in tags:
        raise UsageError(
            f"backbone {architecture!r} has no weights tagged {tag!r}, expected one of: "
            f"{', '.join(tags)}"
        )
    return tags[tag] if tag else choices.DEFAULT


def _preprocess(transform: Any, size: tuple[int, int] | None) -> Preprocess:
    """What the weights' own transform does: short side to resize_size, then the centre."""
    crop_height, crop_width = transform.crop_size
    red, green, blue = transform.mean
    red_std, green_std, blue_std = transform.std
    return Preprocess(
        size=size or (crop_height, crop_width),
        crop_pct=crop_height / transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
    )


def _download(published: Any, full_name: str) -> Mapping[str, Tensor]:
    """The published weights, through torchvision's own download and its local store of them."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        # It says on standard output, which may be somebody's JSON, that a download begins.
        with contextlib.redirect_stdout(sys.stderr):
            state: Mapping[str, Tensor] = published.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
    # The network's, the disk's and a damaged file's errors have one remedy.
    except Exception as error:
        raise Vis4merError(
            f"cannot get the weights of {full_name} ({describe_error(error)}); put "
            f"{published.url} into {folder}, or {WEIGHTS_HELP}"
        ) from error
    return state
