"""The S4D mixers: a diagonal state matrix that starts as Lin, Inv or LegS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ssm.s4d import DiagonalSsm, Discretization, Start
from .ssm import SsmMixer, SsmOptions


@dataclass(frozen=True, kw_only=True)
class S4dOptions(SsmOptions):
    """discretization: zero-order hold or the bilinear rule."""

    discretization: Discretization = "zoh"


class _S4dMixer(SsmMixer):
    """S4D (arXiv 2206.11893)."""

    Options = S4dOptions
    start: ClassVar[Start]

    def __init__(self, width: int, *, length: int, dropout: float, options: S4dOptions) -> None:
        del length  # a recurrence has none
        ssm = DiagonalSsm(
            width,
            start=self.start,
            discretization=options.discretization,
            state_size=options.state_size,
            dt_min=options.dt_min,
            dt_max=options.dt_max,
        )
        super().__init__(ssm, width=width, dropout=dropout, convolution=options.convolution)


class S4dLinMixer(_S4dMixer):
    """S4D-Lin: frequencies on a line."""

    start = "lin"


class S4dInvMixer(_S4dMixer):
    """S4D-Inv: frequencies that fall off like those of HiPPO-LegS."""

    start = "inv"


class S4dLegsMixer(_S4dMixer):
    """S4D-LegS: the eigenvalues of HiPPO-LegS's normal part."""

    start = "legs"
