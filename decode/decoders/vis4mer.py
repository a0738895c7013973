"""ViS4mer: the skeleton's blocks, a mean over what tokens are left, one linear layer.

Islam and Bertasius, arXiv 2204.01692. Letters: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..mixers import IMPORTED_MIXERS, MIXERS, CausalMixer, MixerOptions, mixer_class
from ..mixers.base import Growth
from ..mixers.ssm import SsmMixer
from ..skeleton import (
    Block,
    BlockStream,
    OfficialBlock,
    PaperBlock,
    Pool,
    RunningMean,
    Tokens,
    build_pool,
    masked_mean,
)
from ..typed import build, refuse, unknown_name
from .about import OptionAbout, options_about
from .base import Decoder, DecoderOptions, check_stream_frames

Variant = Literal["paper", "official"]
MOST_BLOCKS = 1000  # a config may be somebody else's, and widths are divided by 2^depth

# Options of mixers that the released code sets otherwise: its P and Q are not tied.
OFFICIAL_DEFAULTS: Mapping[str, bool] = {"tied": False}


@dataclass(frozen=True, kw_only=True)
class Vis4merOptions(DecoderOptions):
    """Options of the skeleton, and beside them those of its mixer.

    variant: "paper" pools each frame's grid and drops prefix tokens where there are patches;
        "official" pools pairs of the flattened sequence, prefix tokens included.
    mixer: the token mixer, by name.   depth: number of blocks.
    pooling, scaling: whether blocks lower the number and the width of tokens.
    dropout: of channels, inside the mixer and after it.
    recompute: in training, keep each block's input alone and compute the block again on the way
        back: less memory, more time, the same numbers.
    mixer_options: None stands for the mixer's defaults. In JSON and on the command line its
        options stand beside the others.
    """

    variant: Variant = "paper"
    mixer: str = "s4"
    depth: int = 3
    pooling: bool = True
    scaling: bool = True
    dropout: float = 0.2
    recompute: bool = False
    mixer_options: MixerOptions | None = None

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "official"):
            raise refuse("variant", self.variant, "one of paper, official")
        if not 1 <= self.depth <= MOST_BLOCKS:
            raise refuse("depth", self.depth, f"at least 1 and at most {MOST_BLOCKS}")
        if not 0 <= self.dropout < 1:
            raise refuse("dropout", self.dropout, "at least 0 and less than 1")
        expected = mixer_class(self.mixer).Options
        if self.mixer_options is None:
            object.__setattr__(self, "mixer_options", _mixer_options(self.variant, self.mixer, {}))
        elif type(self.mixer_options) is not expected:
            raise refuse("mixer_options", self.mixer_options, f"{expected.__name__} or none")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: str = "decoder") -> Self:
        own = {f.name for f in fields(cls)} - {"mixer_options"}
        skeleton = build(cls, {k: v for k, v in data.items() if k in own}, path=path)
        rest = {k: v for k, v in data.items() if k not in own}
        of_mixer = [f.name for f in fields(mixer_class(skeleton.mixer).Options)]
        for name in rest:
            if name not in of_mixer:
                choices = [*(f.name for f in fields(cls) if f.name in own), *of_mixer]
                raise unknown_name("field", f"{path}.{name}", choices)
        options = _mixer_options(skeleton.variant, skeleton.mixer, rest, path=path)
        return cls(**{k: getattr(skeleton, k) for k in own}, mixer_options=options)

    @classmethod
    def about(cls) -> tuple[OptionAbout, ...]:
        """The skeleton's options, then those of the mixers, with the mixers that have them."""
        skeleton = options_about(cls, without=frozenset({"mixer_options"}))
        mixers = f"one of {', '.join(MIXERS)} ({', '.join(IMPORTED_MIXERS)} by import only)"
        skeleton = tuple(replace(o, kind=mixers) if o.name == "mixer" else o for o in skeleton)
        return skeleton + tuple(_mixer_options_about())

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        of_mixer = data.pop("mixer_options")
        return {**data, **of_mixer}


def _mixer_options_about() -> Iterator[OptionAbout]:
    """Every option of any mixer once."""
    owners: dict[OptionAbout, list[str]] = {}
    for name in MIXERS:
        for option in options_about(mixer_class(name).Options):
            owners.setdefault(option, []).append(name)
    for option, mixers in owners.items():
        official = OFFICIAL_DEFAULTS.get(option.name)
        yield replace(
            option,
            mixers=() if len(mixers) == len(MIXERS) else tuple(mixers),
            exception="" if official is None else f"{str(official).lower()} in official",
        )


def _mixer_options(
    variant: Variant, mixer: str, given: Mapping[str, Any], *, path: str = "decoder"
) -> MixerOptions:
    options = mixer_class(mixer).Options
    if variant == "official":
        known = {f.name for f in fields(options)}
        given = {k: v for k, v in OFFICIAL_DEFAULTS.items() if k in known} | dict(given)
    return build(options, given, path=path)


@dataclass(frozen=True)
class Vis4merStream:
    """State of a stream: of every block, and the mean over the tokens that left the last one."""

    blocks: tuple[BlockStream, ...]
    mean: RunningMean


class Vis4mer(Decoder):
    """Blocks of mixing, pooling and scaling; mean; head."""

    Options = Vis4merOptions
    name = "vis4mer"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: Vis4merOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.uses_grid = options.variant == "paper" and shape.grid is not None
        self.min_tokens = (
            2**options.depth if options.pooling and options.variant == "official" else 1
        )
        self._check_num_tokens(shape.num_tokens)
        widths = block_widths(shape.dim, options)
        self.blocks = nn.ModuleList(
            self._build_block(width, out_width, length=length)
            for (width, out_width), length in zip(pairwise(widths), self._lengths(), strict=True)
        )
        self.head = nn.Linear(widths[-1], num_outputs)

    @property
    def _blocks(self) -> Sequence[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _build_block(self, width: int, out_width: int, *, length: int) -> Block:
        options: Vis4merOptions = self.options
        official = options.variant == "official"
        kind = OfficialBlock if official else PaperBlock
        mixer = mixer_class(options.mixer)(
            width, length=length, dropout=options.dropout, options=options.mixer_options
        )
        if isinstance(mixer, SsmMixer):
            mixer.keep_operators = not options.recompute
        return kind(width, out_width, mixer=mixer, pool=self._build_pool(), dropout=options.dropout)

    def _build_pool(self) -> Pool:
        official = self.options.variant == "official"
        return build_pool(pooling=self.options.pooling, grid=self.uses_grid, drop_tail=official)

    def _full_window(self) -> Tokens:
        """The first block's input for a full window; only its length and grid mean anything."""
        grid = self.shape.grid if self.uses_grid else None
        per_frame = grid[0] * grid[1] if grid else self.shape.tokens_per_frame
        x = torch.zeros(1, self.shape.frames * per_frame, 1)  # 1 L 1
        return Tokens(x=x, mask=None, grid=grid)

    def _lengths(self) -> list[int]:
        """By block: the tokens of a full window that enter it."""
        tokens, pool, lengths = self._full_window(), self._build_pool(), []
        for _ in range(self.options.depth):
            lengths.append(tokens.x.shape[1])
            tokens = pool(tokens)
        return lengths

    def forward(self, batch: TokenBatch) -> Tensor:
        tokens = self._tokens(batch)
        per_frame = tokens.x.shape[1] // batch.mask.shape[1]
        self._check_num_tokens(per_frame * batch.min_frames)
        return self._decoded(tokens)

    def _decoded(self, tokens: Tokens) -> Tensor:
        """Blocks, mean and head: (B, num_outputs)."""
        again = self.options.recompute and torch.is_grad_enabled()
        for block in self._blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        return self._outputs(masked_mean(tokens.x, tokens.mask))

    def _outputs(self, mean: Tensor) -> Tensor:
        outputs: Tensor = self.head(mean.to(self.head.weight.dtype))
        return outputs

    def _tokens(self, batch: TokenBatch) -> Tokens:
        """The variant's sequence: the grid's patches, or everything; padding is zero in it."""
        device = self.head.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.head.weight.dtype
        if self.uses_grid and batch.patch is not None:
            grid = (batch.patch.shape[2], batch.patch.shape[3])
            x, per_frame = batch.patch.flatten(1, 3).to(dtype), grid[0] * grid[1]  # B L D
        else:
            grid, x, per_frame = None, batch.sequence(dtype), batch.shape.tokens_per_frame  # B L D
        if not batch.padded:
            return Tokens(x=x, mask=None, grid=grid)
        mask = batch.mask.repeat_interleave(per_frame, dim=1)  # B L
        return Tokens(x=torch.where(mask[..., None], x, 0), mask=mask, grid=grid)

    def _check_num_tokens(self, num_tokens: int) -> None:
        if num_tokens < self.min_tokens:
            raise UsageError(
                f"decoder.variant official with depth {self.options.depth} needs at least "
                f"{self.min_tokens} tokens in a window, got {num_tokens}; use longer windows, more "
                "tokens a frame, a smaller depth or --set decoder.variant=paper"
            )

    @property
    def min_frames(self) -> int:
        return -(-self.min_tokens // self.shape.tokens_per_frame)

    @property
    def memory_growth(self) -> Growth:
        growths = {block.mixer.memory_growth for block in self._blocks}
        return "quadratic" if "quadratic" in growths else "linear"

    @torch.no_grad()
    def horizons(self) -> tuple[float, ...]:
        """By block: the share of a full window that holds 99 % of a median kernel's energy.

        Empty where the mixer has no kernel.
        """
        shares = []
        for block, length in zip(self._blocks, self._lengths(), strict=True):
            if not isinstance(block.mixer, SsmMixer):
                return ()
            held = block.mixer.ssm.horizon_tokens(length)  # H
            shares.append(float(held.double().median()) / length)
        return tuple(shares)

    def require_trainable(self) -> None:
        mixer = self.options.mixer
        if mixer in IMPORTED_MIXERS:
            raise UsageError(
                f"decoder.mixer {mixer} only holds imported weights (`vis4mer import-weights`) and "
                f"cannot be trained; train one of {', '.join(MIXERS)} in another --run, or judge "
                "imported weights with `vis4mer evaluate`"
            )

    @property
    def streamable(self) -> bool:
        return issubclass(mixer_class(self.options.mixer), CausalMixer)

    def start_stream(self, batch_size: int, device: torch.device | str) -> Vis4merStream:
        if not self.streamable:
            raise self._not_causal()
        device = torch.device(device)
        return Vis4merStream(
            blocks=tuple(block.start_stream(batch_size, device) for block in self._blocks),
            mean=RunningMean.start(batch_size, self.head.in_features, device),
        )

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: Vis4merStream) -> tuple[Tensor, Vis4merStream]:
        """As in `Decoder`. NaN while `official` has fewer tokens than it needs."""
        check_stream_frames(frames)
        tokens = self._tokens(frames)
        state = self._advance(tokens, state, last=False)
        mean = state.mean
        if any(block.x.shape[1] for block in state.blocks):  # as if the window ended here
            mean = self._advance(tokens.like(tokens.x[:, :0]), state, last=True).mean
        return self._outputs(mean.mean()), state

    def _advance(self, tokens: Tokens, state: Vis4merStream, *, last: bool) -> Vis4merStream:
        streams = []
        for block, stream in zip(self._blocks, state.blocks, strict=True):
            tokens, stream = block.stream(tokens, stream, last=last)
            streams.append(stream)
        return Vis4merStream(blocks=tuple(streams), mean=state.mean.add(tokens.x))

    def _not_causal(self) -> UsageError:
        return UsageError(
            f"decoder {self.name!r} with mixer {self.options.mixer!r} cannot be streamed: the "
            "mixer takes a window as a whole; decode whole windows instead"
        )


def block_widths(dim: int, options: Vis4merOptions) -> list[int]:
    """D, and the width after every block. Raises UsageError if it cannot be halved that often."""
    if options.scaling and dim % 2**options.depth:
        raise UsageError(
            f"tokens are {dim} wide, which cannot be halved {options.depth} times; use a smaller "
            "decoder.depth or --set decoder.scaling=false"
        )
    return [dim // 2**i if options.scaling else dim for i in range(options.depth + 1)]
