"""The S4 mixer: DPLR state matrix, HiPPO-LegS at the start."""

from __future__ import annotations

from dataclasses import dataclass

from ..ssm.s4 import Dplr
from .ssm import SsmMixer, SsmOptions


@dataclass(frozen=True, kw_only=True)
class S4Options(SsmOptions):
    """tied: Q = P, which keeps the system stable whatever is learned; see `Dplr`."""

    tied: bool = True


class S4Mixer(SsmMixer):
    """S4 (arXiv 2111.00396)."""

    Options = S4Options

    def __init__(self, width: int, *, length: int, dropout: float, options: S4Options) -> None:
        del length  # a recurrence has none
        ssm = Dplr(
            width,
            state_size=options.state_size,
            dt_min=options.dt_min,
            dt_max=options.dt_max,
            tied=options.tied,
        )
        super().__init__(ssm, width=width, dropout=dropout, convolution=options.convolution)
