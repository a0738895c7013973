"""A backbone's weights: what the word `--weights` means, files of them, and their fingerprint.

A file is a .safetensors, or a .pth of tensors only: nothing is ever unpickled. Knows nothing of
what a model computes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...store.errors import UsageError
from ...store.torchfile import read_torch
from ...store.wording import describe_error, some_of

WEIGHTS_HELP = "give a file with `--weights FILE`, or try the pipeline with `--weights random:0`"


def random_seed(weights: str) -> int | None:
    """SEED of `random:SEED`; None for other kinds of weights."""
    if not weights.startswith("random:"):
        return None
    text = weights.removeprefix("random:")
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**63:
        raise UsageError(f"weights {weights!r}: expected random:SEED with a whole number from 0")
    return int(text)


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in sorted order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights_file(
    model: nn.Module, path: Path, name: str, *, classifier: tuple[str, ...] | None = None
) -> None:
    """Fill a model from a local file; UsageError names what does not fit.

    classifier: modules of it that the model does without; None: as timm's own model says.
    """
    state = _in_timms_naming(model, _read_weights(path), path, name)
    load_state(
        model, state, name, str(path), _classifier(model) if classifier is None else classifier
    )


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    name: str,
    source: str,
    classifier: tuple[str, ...],
) -> None:
    """Fill a model of that `name` from named tensors, those of its `classifier` left out where the
    model has none. UsageError says what of `source` does not fit."""
    state = _without(state, classifier, model)
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(found)} {what} ({some_of(found, most=2)})"
        for what, found in (
            ("weights missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if found
    ]
    if problems:
        raise UsageError(
            f"{source} does not hold the weights of {name}: {'; '.join(problems)}; "
            "give the file of this model, or the --backbone that the file belongs to"
        )
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file, without ever unpickling an object."""
    if not path.is_file():
        raise UsageError(
            f"weights {str(path)!r}: expected hub, random:SEED or a .safetensors or .pth file, "
            "and there is no such file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = read_torch(path)
    except Exception as error:  # both libraries raise many kinds for a file that is not theirs
        raise UsageError(
            f"{path} cannot be read as weights ({describe_error(error)}); "
            "expected a .safetensors file, or a .pth file of tensors only"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} holds no named tensors, expected the state dict of a model")
    return {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }


def _in_timms_naming(
    model: nn.Module, state: dict[str, Tensor], path: Path, name: str
) -> dict[str, Tensor]:
    """The state dict in timm's own naming and at this input size.

    timm keeps beside each family of models the conversion from the layouts its weights are
    published in, which also resizes position embeddings.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, model)
        except Exception as error:  # a foreign file can trip it anywhere
            raise UsageError(
                f"{path} does not hold the weights of {name} "
                f"({describe_error(error)}); give the file of this model"
            ) from error
    return state


def _classifier(model: nn.Module) -> tuple[str, ...]:
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _without(
    state: Mapping[str, Tensor], classifier: tuple[str, ...], model: nn.Module
) -> dict[str, Tensor]:
    """The state dict without the tensors of a classifier that the model does not have."""
    known = model.state_dict()
    return {
        key: value
        for key, value in state.items()
        if key in known or not key.startswith(tuple(f"{head}." for head in classifier))
    }
