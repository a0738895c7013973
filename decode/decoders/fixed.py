"""ViS4mer's skeleton around one mixer: for rows of a comparison that exchange the S4 call alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..mixers import mixer_class
from ..typed import refuse
from .about import OptionAbout, options_about
from .vis4mer import Vis4merOptions


@dataclass(frozen=True, kw_only=True)
class FixedMixerOptions(Vis4merOptions):
    """Options of the skeleton and of the mixer that a subclass has as its default, and only one."""

    def __post_init__(self) -> None:
        fixed = type(self).mixer
        if self.mixer != fixed:
            raise refuse("mixer", self.mixer, f"{fixed} here; decoder vis4mer takes any mixer")
        super().__post_init__()

    @classmethod
    def about(cls) -> tuple[OptionAbout, ...]:
        """The skeleton's options, then the mixer's."""
        skeleton = options_about(cls, without=frozenset({"mixer_options"}))
        skeleton = tuple(
            replace(o, kind=f"{cls.mixer} only") if o.name == "mixer" else o for o in skeleton
        )
        return skeleton + options_about(mixer_class(cls.mixer).Options)
