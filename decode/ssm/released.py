"""The S4 system of the code released for ViS4mer, as its saved weights define it: not for training.

Its kernel is defined in the frequency domain, by its own saved nodes, and that is what is computed
here, peculiarities included, so that published weights give what was published:

    C is C̃ = C (I − Āᴸ), made for the length L that it was trained at; P and Q are untied and A is
        not kept stable
    the nodes are powers of a complex64 root of unity, up to 3e-3 from the exact ones
    an odd L loses its last tap, because its inverse FFT is not told L

Letters: H channels, N state size, n = N/2 conjugate pairs, L tokens, F = ⌊L/2⌋ + 1 nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import as_complex, as_pairs
from .cauchy import ContinuousDplr, cauchy_kernel, unit_nodes


class ReleasedDplr(nn.Module):
    """A = Λ − P Q* with C̃ at saved nodes. Until it is filled, its kernel is zero.

    Complex values are stored as real pairs. The parameters take no gradient.
    """

    def __init__(self, num_channels: int, *, state_size: int, length: int) -> None:
        super().__init__()
        H, n = num_channels, state_size // 2
        self.log_dt = _fixed(H)
        self.Lambda = _fixed(n, 2)
        self.P, self.Q = _fixed(H, n, 2), _fixed(H, n, 2)
        self.B, self.C = _fixed(H, n, 2), _fixed(H, n, 2)
        self.D = _fixed(H)
        self.nodes: Tensor
        self.register_buffer("nodes", as_pairs(unit_nodes(length)))  # F 2
        self._kept: tuple[object, Tensor] | None = None

    @torch.inference_mode(mode=False)  # what is kept must serve outside of that mode too
    @torch.no_grad()
    def kernel(self) -> Tensor:
        """The 2 (F − 1) taps that the weights define, without D, in the type of D: (H, 2 (F − 1)).

        Computed in float64, once for the weights as they are: it takes longer than a forward pass.
        """
        weights = [*self.parameters(), self.nodes]
        state = [(t.device, t.dtype, t.data_ptr(), t._version) for t in weights]
        if self._kept is None or self._kept[0] != state:
            num_taps = 2 * (len(self.nodes) - 1)
            K = cauchy_kernel(self._system(), _wide(self.nodes), num_taps=num_taps)  # H L
            self._kept = state, K.to(self.D.dtype)
        return self._kept[1]

    def _system(self) -> ContinuousDplr:
        P, Q, B, C = (_wide(x) for x in (self.P, self.Q, self.B, self.C))  # H n
        dt = self.log_dt.double().exp()  # H
        return ContinuousDplr(Lambda=_wide(self.Lambda), P=P, Q=Q, B=B, C=C, dt=dt)


def _fixed(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def _wide(pairs: Tensor) -> Tensor:
    """Real pairs (…, 2) → complex128 (…)."""
    return as_complex(pairs.double())
