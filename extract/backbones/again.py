"""The backbone of a CacheSpec that somebody else may have written, loaded again and compared.

What a spec names is used by itself only if it is a backbone that timm or torchvision knows, with
that model's own weights or with seeded random ones. A plug-in runs its author's code and a weights
file is opened: both must be given again by the caller.
"""

from __future__ import annotations

from dataclasses import replace

from ...store.errors import UsageError
from ...store.spec import CacheSpec, Preprocess, require_same
from ..protocols import prepared_as
from .loading import Backbone, cache_spec, load_backbone
from .weights import random_seed


def load_backbone_again(
    spec: CacheSpec,
    *,
    has: str,
    name: str,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> Backbone:
    """The backbone that made tokens of `spec`, with the preprocessing that it had then.

    has: what has such tokens, in words, for errors: `lvu.zarr holds tokens`. name: of the cache.
    Raises UsageError when the backbone or its weights must be given again, or when it is not known
    how the tokens were made, FingerprintError when it is another backbone now.
    """
    preprocess = require_named(spec, has=has, backbone=backbone, weights=weights)
    loaded = load_backbone(
        backbone or spec.backbone,
        weights=weights or spec.weights,
        device=device,
        compute_dtype=spec.compute_dtype,
    )
    loaded = prepared_as(loaded, preprocess)
    made = cache_spec(
        loaded, sampling=spec.sampling, reader=spec.reader, stored_dtype=spec.stored_dtype
    )
    require_same(spec, replace(made, arrays=spec.arrays), name=name)
    return loaded


def require_named(
    spec: CacheSpec, *, has: str, backbone: str | None, weights: str | None
) -> Preprocess:
    """The preprocessing of tokens that can be made again; nothing is loaded yet. UsageError for a
    backbone or weights that are nobody's but the spec's own word, and for imported tokens."""
    if spec.preprocess is None or spec.weights == "unknown":
        raise UsageError(
            f"{has} that were imported, of which it is not known how they were made from video; "
            "only what `vis4mer extract` made can be made again"
        )
    if ":" in spec.backbone and backbone is None:
        raise UsageError(
            f"{has} of {spec.backbone!r}, a plug-in or hub address outside timm's own list; if you "
            f"trust it, add --backbone {spec.backbone}"
        )
    if weights is None and spec.weights != "hub" and random_seed(spec.weights) is None:
        raise UsageError(
            f"{has} of {spec.backbone} with weights from a file (sha256 "
            f"{spec.weights_sha256[:12]}…); add --weights FILE"
        )
    return spec.preprocess
