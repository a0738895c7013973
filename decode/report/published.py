"""Figures that papers published, as they print them, each with its source.

They were made by others, on the videos that were there then, mostly as single runs, and are never
averaged or tested against ours. `remark` says what else keeps a row from being compared. Where a
paper gives figures of other methods, the source is the paper that printed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The nine tasks of LVU in the order of the papers' tables, and their headings there.
LVU_TASKS: Mapping[str, str] = {
    "relationship": "Rel",
    "way_speaking": "Spk",
    "scene": "Scn",
    "director": "Dir",
    "genre": "Gen",
    "writer": "Wri",
    "year": "Yr",
    "like_ratio": "Like",
    "view_count": "View",
}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One published line.

    figures: as printed, by task; percent of test videos, or mean squared error. A dataset with a
    single task has its figure under "". remark: why it cannot be set against ours, or "".
    """

    name: str
    source: str
    figures: Mapping[str, str]
    remark: str = ""

    def figure(self, task: str) -> str | None:
        """As printed, for a task without its dataset; None where there is none."""
        return self.figures.get(task) or self.figures.get("")


@dataclass(frozen=True, kw_only=True)
class PublishedGroup:
    """Rows that stand together under `title`; `dataset` says in whose table."""

    dataset: str
    title: str
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """What a decoder cost in a paper's own experiment, on its authors' GPU.

    decoder: as in the catalogue. gigabytes: of GPU memory. The paper's batch size, its precision
    and which kind of step it timed are not known here.
    """

    decoder: str
    num_tokens: int
    samples_per_second: float
    gigabytes: float
    source: str


def published_cost(decoder: str, num_tokens: int) -> PublishedCost | None:
    """Cost against tokens, for windows of 60 frames; None where nothing was published."""
    for cost in PUBLISHED_COSTS:
        if (cost.decoder, cost.num_tokens) == (decoder, num_tokens):
            return cost
    return None


def published_groups(dataset: str) -> tuple[PublishedGroup, ...]:
    """What was published about a dataset; nothing for one that is not known here."""
    return tuple(group for group in _GROUPS if group.dataset == dataset)


def _lvu(name: str, source: str, figures: str, remark: str = "") -> PublishedRow:
    """`figures`: one a task in the order of LVU_TASKS, a dash where there is none."""
    found = dict(zip(LVU_TASKS, figures.split(), strict=True))
    given = {task: figure for task, figure in found.items() if figure != "-"}
    return PublishedRow(name=name, source=source, figures=given, remark=remark)


def _single(dataset: str, rows: Sequence[tuple[str, str, str, str]]) -> PublishedGroup:
    return PublishedGroup(
        dataset=dataset,
        title="published, top-1",
        rows=tuple(
            PublishedRow(name=name, source=source, figures={"": figure}, remark=remark)
            for name, figure, source, remark in rows
        ),
    )


_VIS4MER = "Islam and Bertasius, ECCV 2022, arXiv 2204.01692"
_S5 = "Wang et al., CVPR 2023, arXiv 2303.14526"
_VTM = "Video Token Merging, NeurIPS 2024"
_MALMM = "He et al., CVPR 2024, arXiv 2404.05726"
_HERMES = "Faure et al., ICCV 2025, arXiv 2408.17443"
_MAMBA = "Li et al., ECCV 2024, arXiv 2403.06977"
_LVMAE = "Naiman et al., arXiv 2504.03501"
_DISTANT = "Lin et al., CVPR 2022, arXiv 2201.10990"

# 60 frames of 1, 5 × 5, 7 × 7 and 14 × 14 tokens; LST's memory is that of materialised attention.
PUBLISHED_COSTS: tuple[PublishedCost, ...] = tuple(
    PublishedCost(
        decoder=decoder,
        num_tokens=num_tokens,
        samples_per_second=samples_per_second,
        gigabytes=gigabytes,
        source=_VIS4MER,
    )
    for decoder, num_tokens, samples_per_second, gigabytes in (
        ("vis4mer", 60, 12.46, 2.23),
        ("vis4mer", 1_500, 8.27, 3.61),
        ("vis4mer", 2_940, 6.25, 3.67),
        ("vis4mer", 11_760, 4.95, 5.15),
        ("lst", 60, 8.85, 2.45),
        ("lst", 1_500, 6.31, 3.99),
        ("lst", 2_940, 4.47, 5.43),
        ("lst", 11_760, 1.88, 41.38),
    )
)

_CLIPS = "clips of 100 s at a stride of 20 s, accuracy over clips and not videos, reduced splits"
_LANGUAGE = "a language model answers; how it cuts and counts videos is not confirmed"
_END_TO_END = "32 frames, backbone trained too, shrunken test sets"
_PRETRAINED = "a decoder pretrained on long videos over another backbone"
_NO_CODE = "as the ViS4mer paper prints it; no code of this row was released"
_AS_PRINTED = "as the ViS4mer paper prints it"
_BACKBONE = "another backbone than ViT-L under the same decoder"

_GROUPS = (
    PublishedGroup(
        dataset="lvu",
        title="published, test split",
        rows=(
            _lvu(
                "SlowFast+NL",
                _VIS4MER,
                "52.40 35.80 54.70 44.90 53.00 36.30 52.50 .38 3.77",
                _AS_PRINTED,
            ),
            _lvu(
                "VideoBERT",
                _VIS4MER,
                "52.80 37.90 54.90 47.30 51.90 38.50 36.10 .32 4.46",
                _AS_PRINTED,
            ),
            _lvu(
                "Object Transformer",
                _VIS4MER,
                "53.10 39.40 56.90 51.20 54.60 34.50 39.10 .23 3.55",
                _AS_PRINTED,
            ),
            _lvu("LST", _VIS4MER, "52.38 37.31 62.79 56.07 52.70 42.26 39.16 .31 3.83", _NO_CODE),
            _lvu(
                "Performer",
                _VIS4MER,
                "50.00 38.80 60.46 58.87 49.45 48.21 41.25 .31 3.93",
                _NO_CODE,
            ),
            _lvu(
                "Orthoformer",
                _VIS4MER,
                "50.00 39.30 66.27 55.14 55.79 47.02 43.35 .29 3.86",
                _NO_CODE,
            ),
            _lvu("ViS4mer", _VIS4MER, "57.14 40.79 67.44 62.61 54.71 48.80 44.75 .26 3.63"),
            _lvu(
                "S5, 60 frames",
                _S5,
                "61.98 41.75 69.88 66.40 58.80 50.60 47.70 .25 3.51",
            ),
            _lvu(
                "S5 + LSMCL",
                _S5,
                "61.98 41.75 72.53 66.40 61.34 50.60 47.70 .24 3.51",
                "pretrained on long and short clips of the same videos",
            ),
            _lvu("VTM", _VTM, "64.28 42.12 75.58 70.09 59.77 53.57 48.55 .21 4.01"),
            _lvu("MA-LMM", _MALMM, "58.2 44.8 80.3 74.6 61.0 70.4 51.9 - -", _CLIPS),
            _lvu("HERMES", _HERMES, "67.6 47.5 90.0 82.6 69.5 77.2 57.7 - -", _LANGUAGE),
        ),
    ),
    PublishedGroup(
        dataset="lvu",
        title="published, ViS4mer over other encoders, test split",
        rows=(
            _lvu(
                "SlowFast",
                _VIS4MER,
                "59.52 40.29 60.46 53.27 52.74 42.85 39.86 .27 3.70",
                _BACKBONE,
            ),
            _lvu(
                "ConvNeXt",
                _VIS4MER,
                "59.52 38.30 62.79 57.00 54.40 45.83 42.65 .30 3.74",
                _BACKBONE,
            ),
            _lvu("Swin", _VIS4MER, "54.76 37.31 61.62 56.07 49.45 47.61 39.86 .31 3.56", _BACKBONE),
            _lvu(
                "Object Transformer with ViT",
                _VIS4MER,
                "54.76 33.17 52.94 47.66 52.74 36.30 37.76 .30 3.68",
                "another decoder over ViT",
            ),
        ),
    ),
    _single(
        "breakfast",
        (
            ("VideoGraph", "69.5", _VIS4MER, _AS_PRINTED),
            ("Timeception", "71.3", _VIS4MER, _AS_PRINTED),
            ("GHRM", "75.5", _VIS4MER, _AS_PRINTED),
            ("ViS4mer", "88.17", _VIS4MER, "the best epoch on the test split"),
            ("Distant Supervision", "89.9", _DISTANT, _PRETRAINED),
            ("S5", "90.14", _S5, ""),
            ("S5 + LSMCL", "90.70", _S5, "pretrained on long and short clips of the same videos"),
            ("MA-LMM", "93.0", _MALMM, _LANGUAGE),
            ("LV-MAE", "93.24", _LVMAE, _PRETRAINED),
            ("HERMES", "95.2", _HERMES, _LANGUAGE),
            ("VideoMamba-M", "97.9", _MAMBA, _END_TO_END),
        ),
    ),
    _single(
        "coin",
        (
            ("TSN", "73.4", _VIS4MER, _AS_PRINTED),
            ("ViS4mer", "88.41", _VIS4MER, "selection not stated"),
            ("Distant Supervision", "90.0", _DISTANT, _PRETRAINED),
            ("VideoMamba-M", "90.4", _MAMBA, _END_TO_END),
            ("S5", "90.42", _S5, ""),
            ("S5 + LSMCL", "90.81", _S5, "pretrained on long and short clips of the same videos"),
            ("LV-MAE", "92.72", _LVMAE, _PRETRAINED),
            ("MA-LMM", "93.2", _MALMM, _LANGUAGE),
            ("HERMES", "93.5", _HERMES, _LANGUAGE),
        ),
    ),
)
