"""What the commands that check, mend, compare and merge caches show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..console import human_bytes, human_seconds, print_json, print_line
from ..store.errors import SEE_VERIFY
from ..store.wording import counted, some_of

if TYPE_CHECKING:
    from ..both.compare import ReencodedVideo
    from ..both.reencode import ReencodeReport, Reextracted
    from ..store.diff import CacheDiff, EntryDifference
    from ..store.digest import CacheDigest
    from ..store.merge import MergeSummary
    from ..store.repair import RepairReport
    from ..store.verify import VerifyReport

MOST_LINES = 50  # of one kind; --json has all


def print_verification(
    report: VerifyReport,
    again: ReencodeReport | None,
    *,
    to_mend: str,
    skipped: bool,
    as_json: bool,
) -> None:
    """`cache verify`. to_mend: what is done about damage. skipped: videos were to be extracted
    again, and were not."""
    if as_json:
        extra = {} if again is None else {"reencode": again.to_json()}
        print_json({**report.to_json(), **({"reencode": None} if skipped else extra)})
        return
    for problem in report.problems:
        print_line(f"damaged: {problem.reason.removesuffix(f'; {SEE_VERIFY}')}")
    found = "no problems" if report.ok else counted(len(report.problems), "problem")
    print_line(
        f"{report.mode} check of {counted(report.num_entries, 'video')}, "
        f"{human_bytes(report.num_bytes)}: "
        + found
        + ("; flipped bytes show only with --full" if report.mode == "quick" else "")
    )
    if not report.ok:
        print_line(f"to mend it: {to_mend}")
    if skipped:
        print_line("no video was extracted again: what is damaged is to be mended first")
    if again is not None:
        _print_reencoding(again)


def _print_reencoding(report: ReencodeReport) -> None:
    if report.missing:
        print_line(
            f"not looked at, for their files are not there (or are other ones): "
            f"{counted(len(report.missing), 'video')}: {some_of(report.missing)}"
        )
    for video_id, reason in report.failures.items():
        print_line(f"failed: {video_id}: {reason}")
    for video in report.differing:
        print_line(f"differs: {video.id}: {_difference(video)}")
    frames = sum(video.num_frames for video in report.videos)
    equal = sum(video.equal_frames for video in report.videos)
    worst = max((v.worst for v in report.videos if v.worst is not None), default=0.0)
    same = len(report.videos) - len(report.differing)
    print_line(
        f"extracted {counted(len(report.videos), 'video')} again: {same} hold the same values "
        f"within {report.tolerance:g} (largest distance of a frame {worst:.2g}; {equal:,} of "
        f"{counted(frames, 'frame')} equal to the last bit)"
    )


def _difference(video: ReencodedVideo) -> str:
    if video.num_frames != video.new_frames:
        return f"{counted(video.num_frames, 'frame')} stored, {video.new_frames:,} now"
    where = (
        ""
        if video.worst is None
        else f", frame {video.worst_frame} of {video.worst_array} is {video.worst:.3g} away"
    )
    return ("the same moments" if video.times_equal else "other moments") + where


def print_digest(digest: CacheDigest, *, as_json: bool) -> None:
    """`cache digest`."""
    if as_json:
        print_json(digest.to_json())
        return
    print_line(f"{digest.root}  all values of {counted(digest.num_videos, 'video')}")
    for array, value in digest.arrays.items():
        print_line(f"{value}  {array}")
    for reference, value in digest.tasks.items():
        print_line(f"{value}  task {reference}")


def print_repair(
    report: RepairReport, again: Reextracted | None, *, cache: str, as_json: bool
) -> None:
    """`cache repair`."""
    if as_json:
        extra: dict[str, Any] = {} if again is None else {"extracted": again.to_json()}
        print_json({**report.to_json(), **extra})
        return
    for step in report.steps:
        name = "" if step.id is None else f"{step.id}: "
        print_line(f"{step.deed}: {name}{step.reason}")
    for mirror in report.unfit:
        print_line(f"{mirror} holds none of the videos that are lost here")
    would = " (nothing was changed)" if report.dry_run else ""
    if not report.steps:
        print_line(f"{counted(report.num_entries, 'video')}: nothing to mend")
        return
    print_line(f"{counted(len(report.steps), 'step')}{would}")
    if again is not None:
        for failure in again.summary.failures:
            print_line(f"failed: {failure.id}: {failure.reason}")
        print_line(
            f"{counted(again.summary.extracted, 'video')} extracted again"
            + (f"; no file for {some_of(again.missing)}" if again.missing else "")
        )
    elif report.dropped:
        print_line(
            f"{counted(len(report.dropped), 'video')} to extract again: the same `vis4mer extract`"
            ", or this command with --videos DIR"
        )
    if report.lost_copies:
        videos = counted(sum(bool(step.copies) for step in report.steps), "video")
        sides = ",".join(copy.removeprefix("grid") for copy in report.lost_copies)
        gone = "would be gone" if report.dry_run else "are gone"
        print_line(
            f"pooled copies of {videos} {gone}: `vis4mer cache pool {cache} --grid {sides}` "
            "makes them again"
            + (" once the videos are back" if report.dropped and again is None else "")
        )


def print_diff(diff: CacheDiff, a: str, b: str, *, as_json: bool) -> None:
    """`cache diff`."""
    if as_json:
        print_json(diff.to_json())
        return
    print_line(f"A {a}")
    print_line(f"B {b}")
    for field in diff.spec:
        print_line(f"setting {field.field}: {field.stored} in A, {field.wanted} in B")
    for name, ids in (("A", diff.only_a), ("B", diff.only_b)):
        if ids:
            print_line(f"only in {name}: {counted(len(ids), 'video')}: {some_of(ids)}")
    other = [entry for entry in diff.entries if entry.values]
    partial = [entry for entry in diff.entries if not entry.values]
    _print_some(f"differs: {_entry(entry)}" for entry in other)
    _print_some(_partly(partial))
    for task in diff.tasks:
        print_line(f"task {task.reference}: {'; '.join(task.reasons)}")
    same = f"{counted(diff.num_same, 'video')} with the same values in both"
    also = f", {len(partial):,} as far as both hold them" if partial else ""
    print_line("equal: " + same if diff.equal else f"{same}{also}, {len(other):,} with others")


def _entry(entry: EntryDifference) -> str:
    return "; ".join([f"{entry.id}: other {', '.join(entry.values)}", *_besides(entry)])


def _besides(entry: EntryDifference) -> list[str]:
    """What only one of both holds of a video."""
    sides = (("A", entry.only_a), ("B", entry.only_b))
    return [f"{name} holds {', '.join(arrays)} besides" for name, arrays in sides if arrays]


def _partly(entries: Sequence[EntryDifference]) -> Iterator[str]:
    """Videos of equal values of which one cache holds more: one line for all that lack the same."""
    ids: dict[str, list[str]] = {}
    for entry in entries:
        ids.setdefault("; ".join(_besides(entry)), []).append(entry.id)
    for besides, those in ids.items():
        videos = f"{counted(len(those), 'video')} with the same values where both hold them"
        yield f"{videos}; {besides}: {some_of(those)}"


def print_merge(summary: MergeSummary, *, as_json: bool) -> None:
    """`cache merge`."""
    if as_json:
        print_json(summary.to_json())
        return
    _print_some(f"failed: {f.name} of {f.source}: {f.reason}" for f in summary.failures)
    _print_some(f"conflict: {c.name} of {c.source}: {c.reason}" for c in summary.conflicts)
    would = "would be " if summary.dry_run else ""
    print_line(
        f"{counted(len(summary.added), 'video')} {would}added to {summary.target}, "
        f"{len(summary.extended):,} extended, {len(summary.replaced):,} replaced "
        f"({human_bytes(summary.num_bytes)} in {human_seconds(summary.seconds)}); "
        f"{summary.same:,} were there with the same values"
        + (f", {summary.left:,} left to do" if summary.left else "")
    )
    if summary.tasks:
        print_line(f"labels {would}added: {', '.join(summary.tasks)}")
    if summary.conflicts:
        print_line("conflicts were left; --prefer source or target decides")
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def _print_some(lines: Iterable[str]) -> None:
    """The first lines, and how many are left out."""
    found = list(lines)
    for line in found[:MOST_LINES]:
        print_line(line)
    if len(found) > MOST_LINES:
        print_line(f"and {len(found) - MOST_LINES:,} more; --json lists all")
