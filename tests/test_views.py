"""Token views: one word, both ways, and pooling against torch's adaptive average pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from entries import make_spec
from vis4mer.store.errors import UsageError
from vis4mer.store.views import TokenView, pool_grid

WORDS = {
    "60x14x14": TokenView(frames=60, grid=(14, 14)),
    "60x14x14+cls": TokenView(frames=60, grid=(14, 14), cls=True),
    "60x7x7": TokenView(frames=60, grid=(7, 7)),
    "1x1x2": TokenView(frames=1, grid=(1, 2)),
    "14x14": TokenView(grid=(14, 14)),
    "14x14+cls": TokenView(grid=(14, 14), cls=True),
    "cls": TokenView(grid=None, cls=True),
    "60xcls": TokenView(frames=60, grid=None, cls=True),
}


@pytest.mark.parametrize("word", WORDS)
def test_words_are_read_and_said(word):
    assert TokenView.parse(word) == WORDS[word]
    assert str(WORDS[word]) == word


@pytest.mark.parametrize(
    "word",
    ["", "60", "60x", "x14x14", "60x14x14x14", "60x14x14+", "60x14x14+cls+cls", "cls+cls", "+cls",
     "60 x 14 x 14", "-1x14x14", "60x14x14 ", "1e3x14x14", "0x14x14", "60x0x14", "0xcls", "CLS",
     "6000000x1x1", "6\u0660x1x1", "60x14x14\n"],
)  # fmt: skip
def test_other_words_are_refused(word):
    with pytest.raises(UsageError, match="token view"):
        TokenView.parse(word)


def test_a_view_of_nothing_is_refused():
    with pytest.raises(UsageError, match="patches, the CLS token or both"):
        TokenView(grid=None)


@pytest.mark.parametrize("grid", [(14, 14), (16, 9), (7, 1)])
def test_pooling_is_torchs_adaptive_average(grid):
    random = np.random.default_rng(0)
    tokens = random.standard_normal((3, grid[0] * grid[1], 5)).astype(np.float32)
    cells = torch.from_numpy(tokens).double().reshape(3, *grid, 5).permute(0, 3, 1, 2)
    for h in range(1, grid[0] + 1):
        for w in range(1, grid[1] + 1):
            wanted = torch.nn.functional.adaptive_avg_pool2d(cells, (h, w))
            wanted = wanted.permute(0, 2, 3, 1).reshape(3, h * w, 5).numpy()
            found = pool_grid(tokens, grid, (h, w))
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_float16_is_averaged_in_float32():
    tokens = np.full((1, 196, 1), 60000, dtype=np.float16)  # their sum is far beyond float16
    assert pool_grid(tokens, (14, 14), (1, 1)) == 60000


def test_the_cheapest_array_is_chosen():
    spec = make_spec(grid=(14, 14), arrays=("patch", "prefix", "grid7", "grid2"))
    for word, array in (
        ("14x14", "patch"), ("7x7", "grid7"), ("2x2", "grid2"), ("3x3", "patch"), ("7x14", "patch")
    ):  # fmt: skip
        assert TokenView.parse(word).stored_array(spec, spec.arrays) == array
    only = make_spec(grid=(14, 14), arrays=("grid7",))
    assert TokenView.parse("7x7").stored_array(only, only.arrays) == "grid7"
    for word in ("14x14", "6x6"):
        with pytest.raises(UsageError, match=r"grid7 \(full grid 14x14\), which cannot give it"):
            TokenView.parse(word).require(only)
    with pytest.raises(UsageError, match="cannot give it"):
        TokenView.parse("15x14").require(spec)


def test_the_cls_token_must_be_there():
    for spec in (make_spec(num_prefix=0), make_spec(arrays=("patch",))):
        for word in ("cls", "4x4+cls"):
            with pytest.raises(UsageError, match=r"no CLS token \(vit_test\)"):
                TokenView.parse(word).require(spec)
        TokenView.parse("4x4").require(spec)
