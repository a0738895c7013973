"""What `extract --dry-run` shows: what would be done, and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import human_bytes, human_seconds, print_json, print_line, print_table
from ..store.wording import counted
from .datasets import outro_length

if TYPE_CHECKING:
    from ..extract.planning.dry_run import Amount, ExtractPlan, Profile
    from ..extract.planning.probe import ProbeResult

_SHOWN = 20  # unreadable videos; --json has them all


def print_plan(plan: ExtractPlan, *, as_json: bool) -> None:
    """The storage plan: videos, ways of storing, time."""
    if as_json:
        print_json(plan.to_json())
        return
    for note in plan.notes:
        print_line(f"note: {note}")
    _print_unreadable(plan)
    _print_amounts(plan)
    print_line()
    _print_profiles(plan)
    print_line()
    print_line(
        f"{counted(len(plan.to_extract), 'video')} to extract: {plan.frames} frames, "
        f"{human_bytes(plan.num_bytes)} in {plan.num_objects:,} files; "
        f"{human_bytes(plan.free_bytes)} free"
    )
    print_line(
        f"{plan.already_there} are there already, {len(plan.changed)} changed, "
        f"{len(plan.unreadable)} cannot be read, {len(plan.known_failures)} failed before, "
        f"{plan.left} beyond --limit"
    )
    if plan.profiles[0].all.num_bytes > plan.free_bytes:
        what = "this" if plan.num_bytes > plan.free_bytes else "all of it, with the missing videos,"
        print_line(
            f"{what} does not fit on the disk: choose another --cache, --dtype int8, or --grids 7 "
            "--no-full-grid"
        )
    _print_time(plan)


def _print_unreadable(plan: ExtractPlan) -> None:
    for entry_id, reason in list(plan.unreadable.items())[:_SHOWN]:
        print_line(f"cannot be read: {entry_id}: {reason}")
    if len(plan.unreadable) > _SHOWN:
        print_line(f"cannot be read: {len(plan.unreadable) - _SHOWN} more (--json lists all)")


def _print_amounts(plan: ExtractPlan) -> None:
    rows = [_amount("to extract", plan.present)]
    if plan.missing:
        rows.append(_amount("missing, as annotated", plan.absent))
    print_table((plan.sampling.describe(), "videos", "hours", "frames"), rows)
    if unknown := len(plan.missing) - plan.absent.videos:
        print_line(f"{counted(unknown, 'missing video')} of unknown length not counted")
    if plan.added_seconds is not None:
        print_line(
            f"lengths: as annotated, {plan.added_seconds:+.1f} s a video, by which opened files "
            f"differ (median; {counted(plan.num_opened, 'file')} opened)"
        )
    elif plan.absent.videos and plan.sampling.kind == "fps":
        print_line(f"lengths: as annotated; files may be longer, LVU's by {outro_length()}")


def _amount(name: str, amount: Amount) -> tuple[object, ...]:
    return (name, amount.videos, amount.seconds / 3600, amount.frames)


def _print_profiles(plan: ExtractPlan) -> None:
    missing = ("with the missing", "files") if plan.missing else ()
    rows = []
    for profile in plan.profiles:
        fits = profile.all.num_bytes <= plan.free_bytes
        whole = (human_bytes(profile.all.num_bytes), profile.all.num_objects) if missing else ()
        rows.append(
            (
                "*" if profile.chosen else "",
                profile.stored_dtype,
                _arrays(profile),
                human_bytes(profile.bytes_per_frame),
                human_bytes(profile.to_extract.num_bytes),
                profile.to_extract.num_objects,
                *whole,
                "fits" if fits else "does not fit",
            )
        )
    print_table(("", "stored as", "tokens", "a frame", "to extract", "files", *missing, ""), rows)
    print_line("* as asked for; the others by --dtype, --grids and --no-full-grid")


def _arrays(profile: Profile) -> str:
    """`patch + prefix + grid7`, as the cache names them."""
    return " + ".join(profile.arrays)


def _print_time(plan: ExtractPlan) -> None:
    if plan.probe is None or plan.hours is None or plan.hours_with_missing is None:
        return
    print_line(_rates(plan.probe))
    whole = f", {human_seconds(3600 * plan.hours_with_missing)} with the missing"
    print_line(
        f"about {human_seconds(3600 * plan.hours)} of extraction{whole if plan.missing else ''}; "
        f"bottleneck: {plan.probe.bottleneck}"
    )


def _rates(probe: ProbeResult) -> str:
    """What was tried, and what came out."""
    reading = probe.reading_frames_per_second
    read = (
        "no video there to try reading"
        if reading is None
        else f"reading {reading:.1f}/s ({counted(probe.workers, 'thread')})"
    )
    shared = ", on the same cores" if probe.on_cpu and reading is not None else ""
    return (
        f"probe: backbone {probe.backbone_frames_per_second:.1f} frames/s on {probe.device}, "
        f"{read}{shared}: {probe.frames_per_second:.1f} frames/s"
    )
