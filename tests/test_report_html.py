"""The page: what it shows is what the runs say, and nothing in a run can make it do anything."""

import html
import io
import re
from datetime import date
from html.parser import HTMLParser

import numpy as np
import pytest
from media import number_of, write_clip, zero_middle
from page_runs import judged, make_timeline, write_run
from PIL import Image
from vis4mer.both.report_page import find_video, read_stills, report_page
from vis4mer.decode.config import load_config
from vis4mer.decode.report.examples import VideoStretch, choose_examples, read_examples
from vis4mer.decode.report.figures import MAX_IDS, SeedCurve, confusion, ranges
from vis4mer.decode.report.html import render_page, report_runs
from vis4mer.decode.report.table import build_report
from vis4mer.decode.runs.runlog import EpochMetrics
from vis4mer.decode.runs.timelines import write_timelines
from vis4mer.extract.annotations.index import VideoIndex
from vis4mer.store.errors import UsageError
from vis4mer.store.wording import visible

VOID = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """Elements as (tag, attributes), their texts, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(text for text in self.texts if text)


def sure(video_id, label, probability, windows=3, classes=2):
    """Every window gives class 0 this probability, the others share the rest."""
    rest = (1 - probability) / (classes - 1)
    return make_timeline(video_id, label, [[probability] + [rest] * (classes - 1)] * windows)


def page_html(report):
    return report_page(report).html


def page_of(*paths):
    return Page(page_html(build_report(paths)))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a classification and a regression."""
    folder = tmp_path / "runs"
    epochs = [(0.9, 0.8, 0.4), (0.5, 0.7, 0.6), (0.3, 0.75, 0.6)]
    for seed in (0, 1):
        write_run(
            folder / f"toy-label/seed{seed}",
            timelines=[
                sure("a", 0, 0.9),
                sure("b", 0, 0.6),
                sure("c", 1, 0.8),
                sure("d", 1, 0.3 + 0.4 * seed),
                make_timeline("e", 1, [[0.1, 0.9], [0.5, 0.5], [0.1, 0.9]]),
            ],
            epochs=epochs,
            missing=["gone"],
            notes=["class wild is rare"],
            seed=seed,
        )
        write_run(
            folder / f"toy-value/seed{seed}",
            task="toy/value",
            kind="regression",
            timelines=[
                make_timeline("a", 1.0, [[1.0], [2.0]]),
                make_timeline("b", 2.0, [[2.0], [2.0]]),
                make_timeline("c", 3.0, [[0.0], [1.0]]),
            ],
            epochs=epochs,
            seed=seed,
        )
    return folder


def test_the_page_stands_alone_and_is_well_formed(runs):
    page = page_of(runs)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    policy = page.all("meta")[1]["content"]
    assert "default-src 'none'" in policy
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value.startswith(("#", "data:image/jpeg;base64,"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)


def test_it_can_be_read_by_ear(runs):
    page = page_of(runs)
    assert page.all("html") == [{"lang": "en"}]
    for chart in page.all("svg"):
        assert chart.get("aria-hidden") or (chart["role"] == "img" and chart["aria-label"])
    headers = page.all("th")
    assert headers
    assert all(header["scope"] in ("col", "row", "rowgroup") for header in headers)


def test_figures_of_a_classification(runs):
    """By hand: a, b, d and e are right at seed 0, and d is wrong too at seed 1."""
    text = page_of(runs).text
    assert "right, by seed 4, 3 of 5" in text
    assert "most frequent class, % 60.00" in text
    assert "coverage 5/6 test videos" in text
    assert "1 test video not in the cache gone" in text
    assert "class wild is rare" in text
    # summed over both seeds: calm 4 of 4 right, wild 3 of 6
    assert "4/4 100.0 %" in text
    assert "3/6 50.0 %" in text
    assert "Best epoch on validation, seed 0: 2 of 3, seed 1: 2 of 3." in text


def test_figures_of_a_regression(runs):
    """Means 1.5, 2, 0.5 for labels 1, 2, 3: errors 0.25, 0, 6.25, around a spread of 2."""
    text = page_of(runs).text
    assert f"mean squared error {6.5 / 3:.3f}" in text
    assert f"R² = {1 - 6.5 / 2:.3f}" in text
    assert "Smallest error: b" in text
    assert "Largest error: c" in text
    assert "Most change between windows: a" in text
    assert "Predicted 0.5, the label is 3." in text


def test_everything_to_repeat_a_run_is_there(runs):
    text = page_of(runs).text
    report = build_report([runs])
    about = report.tables[0].rows[0].cells["toy/label"].runs[0].about
    for value in (
        about.spec.fingerprint,
        about.spec.backbone,
        about.spec.weights_sha256,
        about.data_sha256[:12],
        f"torch {about.versions['torch']}",
        "--task toy/label,toy/value --seeds 0,1",
        "toy-value/seed1",
        "1,234",
    ):
        assert value in text, value


def test_the_configuration_on_the_page_is_the_runs_own(tmp_path):
    write_run(
        tmp_path / "run",
        timelines=[sure("a", 0, 0.9)],
        decoder__name="vis4mer",
        optimizer__grad_clip=0.5,
        seed=3,
    )
    report = build_report([tmp_path])
    command, config = (
        html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page_html(report), re.S)
    )
    (tmp_path / "run.toml").write_text(config)
    assert load_config(file=tmp_path / "run.toml") == report_runs(report)[0].about.train
    assert command.endswith("--task toy/label --seed 3")


def test_published_figures_stand_apart(tmp_path):
    write_run(tmp_path / "run", task="lvu/scene", timelines=[sure("a", 0, 0.9)])
    page = page_of(tmp_path)
    published = [row for row in page.all("tbody") if row.get("class") == "published"]
    assert published
    assert "ViS4mer, published" in page.text


def test_the_deviation_stands_below_the_mean_and_a_task_above_its_rows(runs):
    """Seed 0 calls four of five right, seed 1 three: 70 and 14.14; the floor has no deviation."""
    written = page_html(build_report([runs]))
    assert "70.00<sup>2</sup><small>± 14.14</small><small>3–4/5</small>" in written
    assert 'scope="rowgroup"><span>toy/label</span></th>' in written
    assert ">60.00</td>" in written


def test_a_task_called_published_is_ours(tmp_path):
    write_run(tmp_path / "run", task="own/published", timelines=[sure("a", 0, 0.9)])
    page = page_of(tmp_path)
    assert page.all("tbody")
    assert not any(body.get("class") == "published" for body in page.all("tbody"))


@pytest.mark.parametrize("epochs", [[(0.7, None, None)], [(0.7, 0.6, 0.5)]])
def test_one_epoch_one_seed_one_video(tmp_path, epochs):
    write_run(tmp_path / "run", timelines=[sure("only", 0, 0.9, windows=1)], epochs=epochs)
    text = page_of(tmp_path).text
    assert "One window." in text
    assert ("Without a validation split" in text) is (epochs[0][1] is None)


def test_runs_without_or_with_damaged_windows_are_shown_without_them(tmp_path):
    write_run(tmp_path / "none", timelines=[sure("a", 0, 0.9)], keep_timelines=False)
    assert "kept no window outputs" in page_of(tmp_path / "none").text
    damaged = write_run(tmp_path / "damaged", timelines=[sure("a", 0, 0.9)])
    file = damaged / "timelines.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    text = page_of(damaged).text
    assert "window outputs cannot be used: timelines.safetensors" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("timeline", [sure("a", 2, 0.9), sure("a", 0, 0.9, classes=3)])
def test_windows_of_other_classes_are_refused(tmp_path, timeline):
    run = write_run(tmp_path / "run", timelines=[sure("a", 0, 0.9)])
    write_timelines(run / "timelines.safetensors", [timeline])
    (facts,) = report_runs(build_report([run]))
    found = read_examples(facts)
    assert not found.examples
    assert "expected 2 outputs" in found.note


def test_an_unfinished_run_is_named(tmp_path):
    write_run(tmp_path / "done", timelines=[sure("a", 0, 0.9)])
    begun = write_run(tmp_path / "begun", timelines=[sure("a", 0, 0.9)], seed=1)
    (begun / "results.json").unlink()
    page = page_of(tmp_path)
    assert "1 run directory was left out" in page.text
    assert "begun: not finished" in page.text


HOSTILE = "</title><script>alert(1)</script>'\"><img src=x onerror=y>"


def test_text_of_a_run_is_text(tmp_path):
    write_run(
        tmp_path / "run",
        classes=(HOSTILE, "{{ 7 * 7 }}"),
        timelines=[sure(HOSTILE, 0, 0.9), sure("bidi \u202e\x07\x9b", 1, 0.9)],
        missing=[HOSTILE],
        notes=[HOSTILE],
    )
    written = page_html(build_report([tmp_path]))
    page = Page(written)
    assert not page.all("script")
    assert not page.all("img")
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in page.text.split("{{ 7 * 7 }}")[1][:5]
    assert "bidi \\u202e\\x07\\x9b" in page.text
    written.encode("utf-8")


def test_what_cannot_be_written_is_spelled_out():
    assert visible("a\ud800b\x00c\n", keep="\t\n") == "a\\ud800b\\x00c\n"


def test_a_long_list_is_cut_and_counted(tmp_path):
    missing = [f"gone-{i}" for i in range(10_000)]
    write_run(tmp_path / "run", timelines=[sure("a", 0, 0.9)], missing=missing)
    written = page_html(build_report([tmp_path]))
    assert f"and {10_000 - MAX_IDS} more" in Page(written).text
    assert len(written) < 200_000


def test_many_classes_are_listed_instead_of_drawn(tmp_path):
    classes = [f"class{i}" for i in range(180)]
    timelines = [make_timeline(f"v{i}", i, [np.eye(180)[max(0, i - 1)]]) for i in range(180)]
    write_run(tmp_path / "run", timelines=timelines, classes=classes)
    page = page_of(tmp_path)
    assert "The 20 most frequent mistakes among 180 classes" in page.text
    assert len(page.all("td")) < 1200
    assert "179 other classes" not in page.text  # the label and the most probable three stand apart
    assert "176 other classes" in page.text


def test_a_claim_of_very_many_classes_costs_little():
    """A matrix of 50,000 × 50,000 counts would be 20 GB."""
    classes = tuple(map(str, range(50_000)))
    result = judged(
        "toy/label", "classification", classes, [make_timeline("a", 7, [np.arange(50_000) == 0])]
    )
    found = confusion([result])
    assert [(m.label, m.called, m.count, m.total) for m in found.mistakes] == [("7", "0", 1, 1)]
    assert result.floor == 1.0


def test_the_best_epoch_of_a_regression_is_the_lowest():
    def epoch(number, score):
        return EpochMetrics.from_json(
            {"epoch": number, "steps": 1, "lr": 1.0, "train_loss": 1.0, "val_loss": score}
            | {"val_score": score, "test_score": None, "seconds": 1.0, "bytes_read": 0},
            name="epoch",
        )

    curve = SeedCurve(name="", epochs=[epoch(1, 3.0), epoch(2, 1.0), epoch(3, 1.0)])
    assert curve.best("regression").epoch == 2
    assert curve.best("classification").epoch == 1


def test_ranges():
    assert ranges([3, 1, 2, 9]) == "1–3, 9"


# The choice of videos -------------------------------------------------------------------------


def test_the_choice_follows_its_rule():
    timelines = [
        sure("z", 0, 0.95),
        sure("b", 0, 0.95),
        sure("a", 0, 0.7),
        sure("wrong", 1, 0.6),
        sure("very wrong", 1, 0.8),
        make_timeline("restless", 0, [[1, 0], [0, 1], [1, 0]]),
    ]
    chosen = {e.reason: e.timeline.id for e in choose_examples(timelines, "classification")}
    assert chosen == {
        "most confident right answer": "b",
        "most confident wrong answer": "very wrong",
        "most change between windows": "restless",
    }


def test_no_video_is_chosen_twice_and_none_for_nothing():
    restless = make_timeline("a", 0, [[1, 0], [0.9, 0.1]])
    assert [e.timeline.id for e in choose_examples([restless], "classification")] == ["a"]
    assert choose_examples([], "classification") == []
    still = [make_timeline(str(i), 0.0, [[1.0 * i]] * 3) for i in range(4)]
    assert [e.timeline.id for e in choose_examples(still, "regression")] == ["0", "3"]


# Stills ----------------------------------------------------------------------------------------


def stretch(video_id, start=0.0, end=4.0):
    return VideoStretch(id=video_id, start_seconds=start, end_seconds=end)


def test_stills_show_the_frames_at_even_times(tmp_path):
    """Ten frames a second for 4 s: the middles of 8 parts are 0.25, 0.75 …, so frames 2, 7 …"""
    (tmp_path / "some/where").mkdir(parents=True)
    write_clip(tmp_path / "some/where/v0.mp4", num_frames=40)
    found = read_stills([stretch("v0")], VideoIndex(tmp_path))
    assert not found.notes
    stills = found.by_stretch[stretch("v0")]
    assert [still.seconds for still in stills] == pytest.approx(
        [0.2, 0.7, 1.2, 1.7, 2.2, 2.7, 3.2, 3.7]
    )
    for still, number in zip(stills, range(2, 40, 5), strict=True):
        image = Image.open(io.BytesIO(still.jpeg))
        assert image.format == "JPEG"
        assert image.size == (still.width, still.height) == (64, 48)
        assert number_of(np.asarray(image)) == number


def test_stills_of_a_part_and_of_a_clock_that_starts_late(tmp_path):
    write_clip(tmp_path / "v0.mp4", times=[2500 + 100 * i for i in range(40)])
    part = stretch("v0@1000-2000", 3.5, 4.5)  # presentation times: 1 to 2 s after the first frame
    stills = read_stills([part], VideoIndex(tmp_path)).by_stretch[part]
    assert 3.5 <= stills[0].seconds < 3.7
    assert 4.3 < stills[-1].seconds < 4.5


def test_missing_broken_and_short_videos_are_named(tmp_path):
    write_clip(tmp_path / "short.mp4", num_frames=20)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    asked = [stretch("gone"), stretch("broken"), stretch("short", 0, 60)]
    found = read_stills(asked, VideoIndex(tmp_path))
    assert [s.id for s in found.by_stretch] == ["short"]
    said = " ".join(found.notes)
    assert "No file was found for: gone." in said
    assert "broken (" in said
    assert "perhaps it is another one: short." in said


def test_a_page_carries_no_more_stills_than_it_may(tmp_path):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / f"{name}.mp4", num_frames=20)
    asked = [stretch("a", 0, 2), stretch("b", 0, 2), stretch("c", 0, 2)]
    found = read_stills(asked, VideoIndex(tmp_path), max_bytes=1)
    assert [s.id for s in found.by_stretch] == ["a"]
    assert found.notes[-1].endswith("no frames are shown of: b, c.")


def test_an_id_is_never_a_path(tmp_path):
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "secret.mp4", num_frames=2)
    index = VideoIndex(tmp_path / "videos")
    for video_id in ("../secret", "../secret.mp4", str(tmp_path / "secret.mp4"), "a@1-2", "@1-"):
        assert find_video(index, video_id) is None


def test_the_page_shows_the_stills(runs, tmp_path):
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos/b.mp4", num_frames=60)
    calls = []
    made = report_page(
        build_report([runs]),
        videos=tmp_path / "videos",
        on_video=lambda done, total: calls.append((done, total)),
    )
    page = Page(made.html)
    images = page.all("img")
    assert len(images) == 8  # of video b in the regression; the classification shows a, c and e
    assert all(image["alt"].startswith("frame at 0:0") for image in images)
    assert calls[0][0] == 0
    assert made.notes[0].startswith("No file was found for: ")
    assert made.notes[0] in page.text
    with pytest.raises(UsageError, match="not there"):
        report_page(build_report([runs]), videos=tmp_path / "nowhere")


def test_the_same_report_is_the_same_page(runs):
    report = build_report([runs])
    examples = {run.path: read_examples(run) for run in report_runs(report)}
    pages = {render_page(report, examples, made=date(2026, 1, 2)) for _ in range(2)}
    assert len(pages) == 1
    assert "2026-01-02" in pages.pop()


def test_a_damaged_video_costs_its_own_frames_alone(runs, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_clip(tmp_path / f"videos/{name}.mp4", num_frames=60)
    zero_middle(tmp_path / "videos/b.mp4", fraction=0.95)
    made = report_page(build_report([runs]), videos=tmp_path / "videos")
    assert any(note.startswith("No frame could be read of: b (") for note in made.notes)
    assert len(Page(made.html).all("img")) == 2 * 8  # of video a, in both tasks
