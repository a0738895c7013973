"""What `predict`, `demo` and `doctor` show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..console import (
    human_seconds,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
)
from ..store.wording import counted

if TYPE_CHECKING:
    from ..both.look import DrawnLook
    from ..both.predict import StreamedFrame, StreamedVideo, VideoPredictions
    from ..demo.long_range import LongRangeResult, LongRangeSetting
    from ..demo.videos import DemoResult
    from ..doctor import Check


def print_demo(result: DemoResult, *, as_json: bool) -> None:
    """Both accuracies side by side, and what to try next."""
    if as_json:
        print_json(result.to_json())
        return
    rows = [
        (score.decoder, what, f"{score.correct}/{score.total}", f"{score.accuracy:.1%}")
        for score, what in ((result.s4, "S4, sees order"), (result.floor, "mean of all tokens"))
    ]
    print_line()
    print_table(("decoder", "", "test", "accuracy"), rows)
    print_line()
    print_line(f"cache:  {result.cache}   (vis4mer cache info {result.cache})")
    print_line(f"run:    {result.s4.run}   training curve: {result.s4.curve}")
    print_line(f"predict: vis4mer predict {result.prediction.video} --run {result.s4.run}")
    print_line(f"all in {human_seconds(sum(result.seconds.values()))}")


def print_long_range(result: LongRangeResult, *, as_json: bool) -> None:
    """`demo --dataset`: every decoder beside what guessing gives."""
    if as_json:
        print_json(result.to_json())
        return
    rows = [
        (
            result.question,
            setting.first.tokens,
            setting.first.contender,
            _accuracy(setting),
            f"{setting.chance:.1%}",
            human_seconds(setting.seconds),
        )
        for setting in result.settings
    ]
    print_line()
    print_table(("dataset", "tokens", "decoder", "test accuracy", "chance", "a run"), rows)
    print_line()
    for cache in result.caches:
        print_line(f"cache:  {cache}   (vis4mer cache info {cache})")


def _accuracy(setting: LongRangeSetting) -> str:
    """Such as `93.2% ± 1.4%`, a standard deviation over seeds, where there are several."""
    found = setting.accuracy
    return f"{found.mean:.1%}" + ("" if found.std is None else f" ± {found.std:.1%}")


def prediction_lines(output: Sequence[float], classes: Sequence[str], *, top: int) -> list[str]:
    """The most probable classes in words, or the predicted value."""
    from ..decode.judging.predict import top_classes

    if not classes:
        return [f"{output[0]:.4f}"]
    best = top_classes(tuple(output), classes, count=top)
    return [f"{100 * choice.probability:5.1f} %  {choice.name}" for choice in best]


def print_stream(
    events: Iterable[StreamedFrame | StreamedVideo],
    *,
    classes: Sequence[str],
    top: int,
    as_json: bool,
) -> tuple[int, int]:
    """`predict --stream`: a line a frame, of JSON with `as_json`. Videos done, videos failed."""
    from ..both.predict import StreamedFrame

    num_done = num_failed = 0
    for event in events:
        if isinstance(event, StreamedFrame):
            _print_frame(event, classes=classes, top=top, as_json=as_json)
        elif event.failure is not None:
            num_failed += 1
            print_error(f"{event.video.name}: {event.failure}")
        else:
            num_done += 1
    return num_done, num_failed


def _print_frame(frame: StreamedFrame, *, classes: Sequence[str], top: int, as_json: bool) -> None:
    video, prediction = frame.video.id, frame.prediction
    if as_json:
        sys.stdout.write(json.dumps({"video": video, **asdict(prediction)}) + "\n")
        sys.stdout.flush()
        return
    words = "too few tokens so far"
    if prediction.output is not None:
        words = "  ".join(prediction_lines(prediction.output, classes, top=top))
    end = f"  (window of {prediction.window_frames} frames complete)" if prediction.complete else ""
    print_line(f"{video}  {prediction.pts_seconds:9.2f} s  {words}{end}")


def print_predictions(
    found: VideoPredictions, *, top: int, as_json: bool, drawn: DrawnLook | None = None
) -> None:
    """`predict`: every video's classes, and the figure; what failed, on standard error."""
    if as_json:
        figure = {} if drawn is None else {"figure": str(drawn.path)}
        print_json(
            {
                "predictions": [done.to_json() for done in found.predictions],
                "failures": [failure.to_json() for failure in found.failures],
                **figure,
            }
        )
    else:
        for done in found.predictions:
            print_line(f"{done.id}  ({counted(len(done.windows), 'window')})")
            for line in prediction_lines(done.output, done.classes, top=top):
                print_line(f"  {line}")
        if drawn is not None:
            print_line(f"where it looked, {drawn.look.describe()}: {drawn.path}")
    for video in found.damaged:
        print_note(f"note: {video.id} has {counted(video.damaged_frames, 'damaged frame')}")
    for failure in found.failures:
        print_error(f"{failure.source_name}: {failure.reason}")


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """`doctor`."""
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
        return
    marks = {True: "ok", False: "WRONG", None: "-"}
    rows = [(marks[c.ok], c.name, c.value, c.hint) for c in checks]
    print_table(("", "what", "found", "what to do"), rows)
