"""Figures of a sweep: what is joined, what is named and where, ticks that can be told apart."""

import math

import pytest
from test_ablate_running import row
from vis4mer.decode.ablate.figures import draw_figures, figure_axes, lines_of, ticks_of
from vis4mer.decode.ablate.point_names import Box, Spot, free_boxes
from vis4mer.decode.ablate.rows import over_seeds

VIEWS = {"60xcls": (60, 5_700_000), "60x1x1": (60, 5_900_000), "60x2x2": (240, 9_000_000)}


def swept(*views, scores=(0.3, 0.5, 0.6)):
    return over_seeds(
        [
            row(score, tokens=view, num_tokens=VIEWS[view][0], memory=VIEWS[view][1])
            for view, score in zip(views, scores, strict=False)
        ]
    )


def test_points_that_share_a_place_are_not_joined_and_all_are_named():
    settings = swept("60xcls", "60x1x1", "60x2x2")
    tokens, memory = figure_axes(settings)
    (line,) = lines_of(settings, tokens)
    assert not line.joined
    assert [dot.name for dot in line.dots] == ["60xcls", "60x1x1", "60x2x2"]
    (apart,) = lines_of(swept("60xcls", "60x2x2"), tokens)
    assert apart.joined
    (measured,) = lines_of(swept("60xcls", "60x2x2"), memory)
    assert not measured.joined  # nobody chose these


@pytest.mark.parametrize(("scale", "unit", "x"), [(1, "MB", 5.7), (1000, "GB", 5.7)])
def test_memory_is_told_in_the_unit_of_the_table(scale, unit, x):
    settings = over_seeds(
        [row(0.1, depth=i, memory=m * scale) for i, m in enumerate((5_700_000, 9_000_000))]
    )
    memory = next(axis for axis in figure_axes(settings) if axis.name == "memory")
    assert memory.heading == f"peak memory of a training step, {unit}"
    assert lines_of(settings, memory)[0].dots[0].x == pytest.approx(x)


def test_one_seed_has_no_error_bar():
    settings = over_seeds(
        [row(0.1, tokens="60xcls"), *(row(0.2, seed=s, num_tokens=240) for s in (0, 1))]
    )
    tokens = figure_axes(settings)[0]
    dots = [dot for line in lines_of(settings, tokens) for dot in line.dots]
    assert math.isnan(dots[0].std)
    assert dots[1].std == 0


def test_ticks_stand_apart():
    assert ticks_of([60, 61, 240, 3000], log=True) == [60, 240, 3000]
    assert ticks_of([5.7, 5.9, 9.0], log=False) == [5.7, 9.0]
    assert ticks_of([6.0, 6.1], log=True) == [6.0, 6.1]
    assert ticks_of([7.0], log=True) == [7.0]


def test_names_cover_neither_each_other_nor_error_bars():
    spots = [
        Spot(x=100, y=100, reach=20, name="60xcls"),
        Spot(x=100, y=104, name="60x1x1"),
        Spot(x=250, y=100, name="60x2x2"),
        Spot(x=398, y=100, name="60x4x4"),
    ]
    page = Box(left=0, bottom=0, right=400, top=200)
    boxes = free_boxes(spots, within=page)
    for i, box in enumerate(boxes):
        assert page.holds(box)
        assert not any(box.meets(other) for other in boxes[i + 1 :])
        assert not any(box.meets(spot.box) for spot in spots)
    assert boxes[2].bottom > 100  # above, where it is alone
    assert boxes[3].right < 398  # left, at the right edge


def test_all_figures_are_drawn(tmp_path):
    names = {path.name for path in draw_figures(swept("60xcls", "60x1x1", "60x2x2"), tmp_path)}
    assert names == {
        f"accuracy-{of}.{kind}" for of in ("tokens", "memory") for kind in ("png", "svg")
    }
