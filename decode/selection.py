"""Which tokens are worth decoding: a guide that sees all of them, a generator that scores them,
and a choice of exactly K.

Selective S4 (Wang et al., CVPR 2023, arXiv 2303.14526; not the S5 of Smith et al.). A momentum copy
S_m of the decoder's first layer gives features x_S = S_m(x) without gradient, from which a mask
generator makes p(keep | x_S) and p(drop | x_S). Knows nothing of what is done with the tokens kept.

Letters: B batch, L tokens, D width, K tokens kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from .data.buffers import to_device
from .rows import drawn_by_row
from .skeleton import Block, Tokens, masked_mean


def kept_count(num_tokens: int, keep_ratio: float) -> int:
    """K of so many real tokens: rounded, at least 1 where there are any."""
    return min(num_tokens, max(1, round(keep_ratio * num_tokens)))


class Guide(nn.Module):
    """S_m: LayerNorm and mixer of a block, followed slowly: S_m ← m S_m + (1 - m) S.

    Its values are buffers, so that they are saved with the decoder and no optimizer sees them. It
    never drops a channel, in training neither.
    """

    def __init__(self, block: Block, *, momentum: float) -> None:
        super().__init__()
        self.norm = copy.deepcopy(block.norm)
        self.mixer = copy.deepcopy(block.mixer)
        self.momentum = momentum
        hold_as_buffers(self)
        self.train(False)

    def train(self, mode: bool = True) -> Guide:  # noqa: ARG002 - whatever the decoder does
        return super().train(False)

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Tensor:
        """x_S = S_m(x): (B, L, D)."""
        x_S: Tensor = self.mixer(self.norm(tokens.x), tokens.mask)
        return x_S

    @torch.no_grad()
    def follow(self, block: Block) -> None:
        """One step of the average towards `block`."""
        for name, held in self.named_buffers():
            held.lerp_(block.get_parameter(name), 1 - self.momentum)

    @torch.no_grad()
    def restart(self, block: Block) -> None:
        """Be `block` as it is now."""
        for name, held in self.named_buffers():
            held.copy_(block.get_parameter(name))


def hold_as_buffers(module: nn.Module) -> None:
    """Turn every parameter below `module` into a buffer of the same name and value."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())


class MaskGenerator(nn.Module):
    """Scores log p(keep | x_S) - log p(drop | x_S), p = softmax(MLP([local, global])).

        [local, pooled] = Linear(LayerNorm(x_S))      each D/2 wide
        global = the mean of `pooled` over the real tokens

    The paper's MLP is not confirmed. This is a choice: one hidden layer, D/2 wide, with a GELU.

    Two linear layers are held in parts, for the same numbers from fewer: the mean of `pooled` is
    the layer of the mean, and what `global` adds to the hidden layer is one vector a window.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.norm = nn.LayerNorm(width)
        self.project_local = nn.Linear(width, half)
        self.project_pooled = nn.Linear(width, half)
        self.hidden_local = nn.Linear(half, half)
        self.hidden_global = nn.Linear(half, half, bias=False)
        self.classify = nn.Linear(half, 2)  # keep, drop

    def forward(self, x_S: Tensor, mask: Tensor | None) -> Tensor:
        """x_S (B, L, D), mask (B, L) or None → float32 scores (B, L)."""
        x = self.norm(x_S)  # B L D
        local = self.project_local(x)  # B L D/2
        whole = self.project_pooled(masked_mean(x, mask).to(x.dtype))  # B D/2
        hidden = gelu(self.hidden_local(local) + self.hidden_global(whole)[:, None])  # B L D/2
        log_p = torch.log_softmax(self.classify(hidden).float(), dim=2)  # B L 2
        return log_p[..., 0] - log_p[..., 1]


def gumbel_difference(like: Tensor) -> Tensor:
    """g_keep - g_drop of two Gumbel variables a place (B, L), from torch's global generator."""
    tiny = torch.finfo(torch.float32).tiny

    def draw(num_rows: int) -> Tensor:
        shape = (num_rows, *like.shape[1:])
        return torch.empty(shape, device=like.device).exponential_().clamp(min=tiny)

    E_keep, E_drop = (drawn_by_row(draw, len(like)) for _ in range(2))  # both B L
    return E_drop.log() - E_keep.log()  # a Gumbel variable is -log of an exponential one


def top_tokens(scores: Tensor, mask: Tensor | None, counts: Sequence[int]) -> Tensor:
    """The counts[b] best of window b's real tokens: bool (B, L). Among equals, earlier ones."""
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices  # B L
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, _first(counts, order))


def straight_through(kept: Tensor, scores: Tensor, *, temperature: float) -> Tensor:
    """Weights (B, L), 0 where not `kept` and else 1 with the gradient of a soft choice.

    scores: perturbed by Gumbel noise; the softmax over keep and drop at temperature ρ is then
    σ(score / ρ), as in Gumbel-softmax (arXiv 1611.01144). Dropped tokens have no gradient, be they
    masked or gone: that of a LayerNorm at zero would be some 300 times that of the kept ones.
    """
    soft = torch.sigmoid(scores / temperature)  # B L
    return torch.where(kept, 1 + (soft - soft.detach()), 0)


def gather_tokens(x: Tensor, kept: Tensor, counts: Sequence[int]) -> Tokens:
    """The kept tokens of each window in their order: x (B, L, D) → (B, K, D), K = max(counts).

    Windows that keep fewer are filled up with zeros that are masked.
    """
    order = kept.byte().sort(dim=1, descending=True, stable=True).indices[:, : max(counts)]  # B K
    gathered = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))  # B K D
    if min(counts) == max(counts):
        return Tokens(x=gathered, mask=None, grid=None)
    mask = _first(counts, order)  # B K
    return Tokens(x=torch.where(mask[..., None], gathered, 0), mask=mask, grid=None)


def _first(counts: Sequence[int], like: Tensor) -> Tensor:
    """True at the first counts[b] places of row b: bool, of the shape of `like`."""
    limit = to_device(torch.tensor(counts), like.device)  # B
    return torch.arange(like.shape[1], device=like.device) < limit[:, None]
