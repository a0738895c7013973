"""Charts: every mark where the numbers say, whatever the numbers are."""

import math
import re
from xml.etree import ElementTree

import pytest
from vis4mer.decode.report import charts
from vis4mer.decode.report.charts import Band, Line, Span

NAN = float("nan")


def parsed(chart):
    return ElementTree.fromstring(str(chart))


def numbers(text):
    return [float(number) for number in re.findall(r"-?[0-9.]+", text)]


def points(path):
    values = numbers(path)
    return list(zip(values[::2], values[1::2], strict=True))


def by_class(chart, name):
    return [node for node in parsed(chart).iter() if node.get("class") == name]


def line(*values, name="seed 0", style="val", marked=None):
    return Line(name=name, points=tuple(enumerate(values, 1)), style=style, marked=marked)


def draw(*lines, **options):
    return charts.line_chart(lines, x_label="epoch", y_label="loss", describe="Loss.", **options)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 40, [0, 10, 20, 30, 40]),
        (-3.1, 2.2, [-4, -2, 0, 2, 4]),
        (0.5, 0.5, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (NAN, 1, [0, 1]),
        (0, math.inf, [0, 1]),
        (-1e308, 1e308, [0, 1]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, expected):
    assert charts.nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("low", [0.0, -1e300, 1e-300, 3.7, -0.001])
@pytest.mark.parametrize("width", [0.0, 1e-12, 5.3, 1e300])
def test_ticks_hold_values_of_any_size(low, width):
    ticks = charts.nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(ticks)
    rounding = 1e-9 * (abs(low) + width)
    assert ticks[0] <= low + rounding
    assert ticks[-1] >= low + width - rounding


def test_a_line_stands_where_its_numbers_say():
    """Epochs 1 to 3 span the area's width; losses 0 to 1 its height, downwards."""
    path = by_class(draw(line(0, 1, 0.5)), "line val")[0]
    left, right = 50, 340 - 10
    top, bottom = 10, 220 - 38
    expected = [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert points(path.get("d")) == [pytest.approx(point) for point in expected]
    assert path.find("title").text == "seed 0"


def test_a_value_that_is_not_finite_is_a_gap():
    path = by_class(draw(line(0.1, 0.2, NAN, 0.3, math.inf, 0.5)), "line val")[0].get("d")
    assert re.sub(r"[0-9. ]", "", path) == "MLMM"
    assert "nan" not in path
    assert "inf" not in path


def test_a_single_epoch_is_a_dot_and_none_is_an_empty_chart():
    assert len(by_class(draw(line(0.5)), "dot val")) == 1
    assert not by_class(draw(line(NAN)), "dot val")
    parsed(draw())


def test_the_best_epoch_is_ringed():
    ring = by_class(draw(line(3, 1, 2, marked=(2, 1))), "ring")[0]
    path = by_class(draw(line(3, 1, 2)), "line val")[0].get("d")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == pytest.approx(points(path)[1])
    assert ring.find("title").text == "seed 0: best epoch 2"


def test_long_lines_are_thinned_and_keep_their_ends():
    thinned = charts.thin(list(range(100_000)), limit=400)
    assert len(thinned) == 400
    assert (thinned[0], thinned[-1]) == (0, 99_999)
    assert charts.thin([1, 2, 3]) == [1, 2, 3]
    long = by_class(draw(line(*range(5000))), "line val")[0].get("d")
    assert len(points(long)) == charts.MAX_POINTS


def area(outline):
    """Of a polygon, by the shoelace formula."""
    pairs = zip(outline, [*outline[1:], outline[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def test_bands_cover_their_share_of_the_area():
    """Two windows at 2 and 6 of 8 seconds: held for 2 s, then from one to the other in 4 s."""
    bands = [
        Band(name="a", style="label", shares=(0.25, 0.75)),
        Band(name="b", style="rest", shares=(0.75, 0.25)),
    ]
    chart = charts.share_chart([2, 6], bands, span=Span(start=0, end=8), describe="Shares.")
    whole = 1000 * 100
    lower = (2 * 0.25 + 4 * 0.5 + 2 * 0.75) / 8
    for style, share in (("band label", lower), ("band rest", 1 - lower)):
        outline = points(by_class(chart, style)[0].get("d"))
        assert area(outline) == pytest.approx(share * whole, rel=1e-3)
    veils = [(float(v.get("x")), float(v.get("width"))) for v in by_class(chart, "veil")]
    assert veils == [(0, 250), (750, 250)]


def test_one_window_fills_the_chart_and_is_not_veiled():
    bands = [Band(name="a", style="label", shares=(0.4,))]
    chart = charts.share_chart([30], bands, span=Span(start=0, end=60), describe="Shares.")
    assert area(points(by_class(chart, "band label")[0].get("d"))) == pytest.approx(40_000)
    assert not by_class(chart, "veil")


def test_levels_of_a_value_chart_stand_at_their_ticks():
    chart, ticks = charts.value_chart(
        [1, 2], [0.0, 4.0], label=2.0, mean=1.0, span=Span(start=0, end=3), describe="Values."
    )
    assert ticks == [(0, "-2"), (25, "0"), (50, "2"), (75, "4"), (100, "6")]
    assert numbers(by_class(chart, "rule label")[0].get("d"))[1] == 50
    assert numbers(by_class(chart, "rule")[0].get("d"))[1] == 62.5


def test_a_scatter_has_the_diagonal_where_both_are_equal():
    dots = [(-1.0, -1.0, "a"), (2.0, 2.0, "b"), (0.0, NAN, "gone")]
    chart = charts.scatter_chart(dots, x_label="true", y_label="predicted", describe="Scatter.")
    (x0, y0), (x1, y1) = points(by_class(chart, "rule")[0].get("d"))
    found = by_class(chart, "dot value")
    assert len(found) == 2
    for dot in found:  # on the diagonal: the same part of the way along both axes
        x, y = float(dot.get("cx")), float(dot.get("cy"))
        assert (x - x0) / (x1 - x0) == pytest.approx((y - y0) / (y1 - y0), abs=1e-3)


def test_ticks_of_a_span_are_moments_in_it():
    assert Span(start=0, end=120).ticks()[3] == (pytest.approx(50), "1:00")
    assert all(0 <= percent <= 100 for percent, _ in Span(start=3.7, end=9.2).ticks())
    assert Span(start=5, end=5).x(5) == 0


def test_names_are_text_and_descriptions_attributes():
    hostile = "<script>alert('x')</script>\" onload=\"y & z"
    for chart in (
        draw(line(1, 2, name=hostile, marked=(1, 1))),
        charts.scatter_chart([(0, 1, hostile)], x_label=hostile, y_label="y", describe=hostile),
        charts.share_chart(
            [1],
            [Band(name=hostile, style="label", shares=(1.0,))],
            span=Span(start=0, end=2),
            describe=hostile,
        ),
    ):
        tree = parsed(chart)
        tags = {node.tag for node in tree.iter()}
        assert tags <= {"svg", "path", "circle", "rect", "text", "title"}
        assert not [node for node in tree.iter() if node.get("onload")]
        said = [tree.get("aria-label"), *(node.text or "" for node in tree.iter())]
        assert any(hostile in text for text in said)
