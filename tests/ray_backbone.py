"""A plug-in backbone that any process can load, and that takes its time: for what must be caught in
the middle of its work."""

from __future__ import annotations

import os
import time

import extraction as ex
import torch
from vis4mer.extract.backbones.plugins import PluginBackbone

BATCH_SECONDS = "VIS4MER_TEST_BATCH_SECONDS"  # in the environment


class SlowGreyTokens(ex.GreyTokens):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get(BATCH_SECONDS, "0.15")))
        return super().forward(pixels)


def slow_grey(*_: object) -> PluginBackbone:
    return PluginBackbone(
        module=SlowGreyTokens(),
        preprocess=ex.PLAIN,
        grid=(ex.GRID, ex.GRID),
        num_prefix=1,
        dim=ex.DIM,
    )
