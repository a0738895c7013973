"""Backbones: the tokens are those of timm's own model, and every wrong name or file is one line."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from vis4mer.extract.backbones.loading import (
    Backbone,
    cache_spec,
    load_backbone,
    shape_of_backbone,
)
from vis4mer.extract.backbones.torchvision_shim import prepare_torchvision
from vis4mer.extract.backbones.weights import hash_weights
from vis4mer.store.errors import UsageError, Vis4merError
from vis4mer.store.spec import Preprocess, Sampling

prepare_torchvision()
import timm  # noqa: E402 — timm needs the line above

TINY = "vit_tiny_patch16_224@64"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection fails the test at once."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("network is unreachable (refused by the test)")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(backbone: Backbone, frames: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(0)
    shape = (frames, 3, *backbone.preprocess.size)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def normalised(backbone: Backbone, values: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(backbone.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(backbone.preprocess.std).view(3, 1, 1)
    return (values.float() / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "grid", "num_prefix", "dim"),
    [
        (TINY, (4, 4), 1, 192),
        ("vit_small_patch14_reg4_dinov2@56", (4, 4), 5, 384),
        ("vit_small_patch16_dinov3@32x48", (2, 3), 5, 384),
        ("vit_base_patch16_siglip_224@32", (2, 2), 0, 768),
        ("eva02_tiny_patch14_224@56", (4, 4), 1, 192),
        ("vit_xsmall_patch16_clip_224@64", (4, 4), 1, 256),
        ("swin_tiny_patch4_window7_224@64", (2, 2), 0, 768),
        ("convnext_atto@64", (2, 2), 0, 320),
    ],
)
def test_kinds_of_backbones(name: str, grid: tuple[int, int], num_prefix: int, dim: int) -> None:
    backbone = load_backbone(name, weights="random:0", device="cpu")
    assert (backbone.grid, backbone.num_prefix, backbone.dim) == (grid, num_prefix, dim)
    tokens = backbone.encode(pixels(backbone))
    assert tokens.patch.shape == (2, grid[0] * grid[1], dim)
    assert tokens.prefix.shape == (2, num_prefix, dim)
    # A fresh final layer norm has weight 1 and bias 0: each token has mean 0 and variance 1.
    assert tokens.patch.mean(-1).abs().max() < 1e-4
    assert torch.allclose(tokens.patch.var(-1, unbiased=False), torch.ones(()), atol=0.05)


def test_tokens_are_timms_own() -> None:
    backbone = load_backbone(TINY, weights="random:3", device="cpu")
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    frames = pixels(backbone)
    with torch.inference_mode():
        expected = model.forward_features(normalised(backbone, frames))
    tokens = backbone.encode(frames)
    assert torch.allclose(tokens.prefix, expected[:, :1], atol=1e-5)
    assert torch.allclose(tokens.patch, expected[:, 1:], atol=1e-5)


def test_a_map_becomes_tokens_in_raster_order() -> None:
    backbone = load_backbone("convnext_atto@64", weights="random:1", device="cpu")
    model = backbone.module.model
    frames = pixels(backbone, 1)
    with torch.inference_mode():
        expected = model.head.norm(model.forward_features(normalised(backbone, frames)))
    tokens = backbone.encode(frames).patch[0]  # h·w D
    for row in range(2):
        for column in range(2):
            assert torch.allclose(tokens[row * 2 + column], expected[0, :, row, column], atol=1e-5)


def test_random_weights_repeat_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = load_backbone(TINY, weights="random:7", device="cpu")
    drawn = torch.rand(4)
    second = load_backbone(TINY, weights="random:7", device="cpu")
    other = load_backbone(TINY, weights="random:8", device="cpu")
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(4))
    assert first.weights == "random:7"
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    frames = pixels(first)
    assert torch.equal(first.encode(frames).patch, second.encode(frames).patch)


def test_the_backbone_is_frozen_and_says_what_it_is() -> None:
    backbone = load_backbone("vit_tiny_patch16_224@64", weights="random:0", device="cpu")
    assert backbone.name == "vit_tiny_patch16_224.augreg_in21k_ft_in1k@64"
    assert not backbone.module.training
    assert not any(weight.requires_grad for weight in backbone.module.parameters())
    assert backbone.compute_dtype == "float32"
    assert backbone.preprocess.size == (64, 64)
    assert backbone.preprocess.crop_pct == 0.9  # the model's own, from its data configuration
    again = load_backbone(backbone.name, weights="random:0", device="cpu")
    assert again.weights_sha256 == backbone.weights_sha256


def test_weights_hash_is_over_names_types_shapes_and_bytes() -> None:
    module = torch.nn.Linear(2, 1)
    expected = hashlib.sha256()
    for name, shape in (("bias", "(1,)"), ("weight", "(1, 2)")):
        expected.update(f"{name}\0torch.float32\0{shape}\0".encode())
        expected.update(module.state_dict()[name].numpy().tobytes())
    assert hash_weights(module) == expected.hexdigest()


def test_bfloat16_is_close_to_float32() -> None:
    exact = load_backbone(TINY, weights="random:0", device="cpu")
    rounded = load_backbone(TINY, weights="random:0", device="cpu", compute_dtype="bfloat16")
    frames = pixels(exact)
    expected, found = exact.encode(frames).patch, rounded.encode(frames).patch.float()
    assert rounded.compute_dtype == "bfloat16"
    assert 0 < (found - expected).norm() / expected.norm() < 0.03


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict as timm publishes one: with a classifier, at the size it was trained at."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return timm.create_model("vit_tiny_patch16_224").state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(
    suffix: str, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": published}, path)
    else:
        save_file(published, path)
    backbone = load_backbone("vit_tiny_patch16_224", weights=str(path), device="cpu")
    assert backbone.weights == "file"
    for name, value in backbone.module.model.state_dict().items():
        assert torch.equal(value, published[name])
    smaller = load_backbone(TINY, weights=str(path), device="cpu")
    blocks = smaller.module.model.state_dict()
    assert torch.equal(blocks["blocks.3.mlp.fc1.weight"], published["blocks.3.mlp.fc1.weight"])
    assert blocks["pos_embed"].shape == (1, 17, 192)


def test_a_file_of_another_model_says_what_does_not_fit(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(published, path)
    with pytest.raises(UsageError, match=r"shape.*expected.*\(384") as caught:
        load_backbone("vit_small_patch16_224", weights=str(path), device="cpu")
    assert "\n" not in str(caught.value)
    incomplete = {name: value for name, value in published.items() if "blocks.3" not in name}
    save_file(incomplete, path)
    with pytest.raises(UsageError, match=r"weights missing \(blocks\.3"):
        load_backbone("vit_tiny_patch16_224", weights=str(path), device="cpu")
    with pytest.raises(UsageError, match="does not hold the weights of convnext_atto"):
        load_backbone("convnext_atto", weights=str(path), device="cpu")


class Unpickled:
    """Would leave a trace if a weights file were ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import vis4mer; vis4mer.UNPICKLED = True",))


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth", "pickle.pth", "list.pth"])
def test_a_file_that_holds_no_weights(name: str, tmp_path: Path) -> None:
    import vis4mer

    path = tmp_path / name
    if name == "pickle.pth":
        torch.save({"model": Unpickled()}, path)
    elif name == "list.pth":
        torch.save([1, 2], path)
    else:
        path.write_bytes(b"not weights" * 100)
    with pytest.raises(UsageError, match=name) as caught:
        load_backbone(TINY, weights=str(path), device="cpu")
    assert "\n" not in str(caught.value)
    assert not hasattr(vis4mer, "UNPICKLED")


def test_wrong_names_are_one_line_with_close_matches() -> None:
    with pytest.raises(UsageError, match=r"did you mean.*vit_tiny_patch16_224"):
        load_backbone("vit_tinny_patch16_224", weights="random:0")
    with pytest.raises(UsageError, match=r"no weights tagged 'nope'.*augreg_in21k"):
        load_backbone("vit_tiny_patch16_224.nope", weights="random:0")
    with pytest.raises(UsageError, match="no such file"):
        load_backbone(TINY, weights="nothing.safetensors")
    with pytest.raises(UsageError, match="random:SEED"):
        load_backbone(TINY, weights="random:x")
    with pytest.raises(UsageError, match="device 'gpu'"):
        load_backbone(TINY, weights="random:0", device="gpu")
    with pytest.raises(UsageError, match="NAME@SIZE"):
        load_backbone("vit_tiny_patch16_224@large", weights="random:0")
    with pytest.raises(UsageError, match="compute dtype 'float16'"):
        load_backbone(TINY, weights="random:0", compute_dtype="float16")  # type: ignore[arg-type]


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no minute of retries
    with pytest.raises(Vis4merError, match=r"--weights FILE.*random:0") as caught:
        load_backbone("vit_tiny_patch16_224", weights="hub", device="cpu")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


PLUGIN = """
import torch
from vis4mer.extract.backbones.loading import PluginBackbone
from vis4mer.store.spec import Preprocess

class Halves(torch.nn.Module):
    def forward(self, pixels):
        return pixels.mean(2).transpose(1, 2)[:, ::8]  # one token every eighth column, D = 3

def build(weights, image_size):
    size = image_size or (16, 32)
    preprocess = Preprocess(size=size, mean=(0, 0, 0), std=(1, 1, 1))
    return PluginBackbone(
        module=Halves(), preprocess=preprocess, grid=(1, size[1] // 8), num_prefix=0, dim=3
    )

def nothing(weights, image_size):
    return None
"""


def test_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backbones.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = load_backbone("my_backbones:build@16x64", weights="random:0", device="cpu")
    assert backbone.name == "my_backbones:build@16x64"
    assert backbone.grid == (1, 8)
    frames = pixels(backbone)
    column = frames[1, 2, :, 8].float().mean() / 255
    assert torch.allclose(backbone.encode(frames).patch[1, 1, 2], column, atol=1e-5)
    with pytest.raises(UsageError, match="returned NoneType"):
        load_backbone("my_backbones:nothing", weights="random:0")
    with pytest.raises(UsageError, match="PYTHONPATH"):
        load_backbone("my_backbones:absent", weights="random:0")
    with pytest.raises(UsageError, match="PYTHONPATH"):
        load_backbone("no_such_module:build", weights="random:0")


class Wrong(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(values.shape[0], 3, 5)


def test_tokens_of_another_shape_than_promised_are_refused() -> None:
    backbone = Backbone(
        name="wrong",
        module=Wrong(),
        grid=(2, 2),
        num_prefix=0,
        dim=5,
        preprocess=Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1)),
        weights="file",
        weights_sha256="",
        device=torch.device("cpu"),
        compute_dtype="float32",
    )
    with pytest.raises(Vis4merError, match=r"\(1, 3, 5\), expected \(1, 4, 5\)"):
        backbone.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_cache_spec_says_what_made_the_numbers() -> None:
    backbone = load_backbone(TINY, weights="random:0", device="cpu")
    spec = cache_spec(backbone, sampling=Sampling(fps=2), stored_dtype="bfloat16", grids=(4, 2))
    assert spec.backbone == backbone.name
    assert spec.weights == "random:0"
    assert spec.weights_sha256 == backbone.weights_sha256
    assert (spec.grid, spec.num_prefix, spec.dim) == ((4, 4), 1, 192)
    assert (spec.sampling.fps, spec.reader, spec.stored_dtype) == (2, "pyav", "bfloat16")
    assert spec.arrays == ("patch", "prefix", "grid2")
    with pytest.raises(UsageError, match="grid9"):
        cache_spec(backbone, grids=(9,))
    assert cache_spec(backbone, grids=(2,), full_grid=False).arrays == ("prefix", "grid2")
    assert cache_spec(backbone, grids=(4,), full_grid=False).arrays == ("patch", "prefix")


@pytest.mark.parametrize(
    "name", [TINY, "swin_tiny_patch4_window7_224", "convnext_atto", "swin3d_t"]
)
def test_a_shape_is_that_of_the_loaded_backbone(name: str) -> None:
    """Without its numbers, of which there are none: nothing of it lies in memory."""
    shape = shape_of_backbone(name)
    loaded = load_backbone(name, weights="random:0", device="cpu")
    assert {p.device.type for p in shape.module.parameters()} == {"meta"}
    for field in ("name", "grid", "num_prefix", "dim", "preprocess", "clip_frames"):
        assert getattr(shape, field) == getattr(loaded, field), field
    assert shape.compute_dtype == loaded.compute_dtype == "float32"
