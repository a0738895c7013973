"""The picture of where a decoder looked: every pixel where it belongs, and no more frames than fit.

What is expected is read from the written PNG, or from what the videos are known to show.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import caches
import media
import numpy as np
import pytest
from PIL import Image
from vis4mer.both.look import read_pictures
from vis4mer.decode.judging import look_figure
from vis4mer.decode.judging.look import WindowLook
from vis4mer.decode.judging.look_figure import draw_look, fitted, over_pixels, shown_places
from vis4mer.decode.judging.predict import EntryPrediction, WindowPrediction
from vis4mer.extract.sources import VideoSource
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.errors import Vis4merError
from vis4mer.store.spec import Preprocess, Sampling

RED, GREEN = (220, 20, 20), (20, 220, 20)


def a_look(patches, *, measure="kept", frames=None, classes=("a", "b"), name="v.mp4", at=None):
    """Of a window whose frames are those of the entry, one a second."""
    numbers = tuple(range(len(patches))) if frames is None else tuple(frames)
    output = (0.25, 0.75) if classes else (1.5,)
    window = WindowPrediction(start_seconds=0.0, end_seconds=float(len(patches)), output=output)
    return WindowLook(
        prediction=EntryPrediction(
            id=name,
            kind="classification" if classes else "regression",
            classes=classes,
            output=output,
            windows=(window,),
        ),
        number=0,
        decoder="selective_s4" if measure == "kept" else "attentive-probe",
        measure=measure,
        frames=numbers,
        seconds=np.array(numbers if at is None else at, dtype=np.float64),
        patches=np.asarray(patches, dtype=np.float32),
    )


def drawn(look, pictures, path) -> np.ndarray:
    """The written sheet: int (H, W, 3)."""
    draw_look(look, np.asarray(pictures, dtype=np.uint8), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def boxes(sheet, colour, *, within=24) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of the rectangles of a colour, which are full, larger than letters
    and do not share rows or columns in part; in reading order."""
    near = (abs(sheet - colour) <= within).all(axis=2)
    found = []
    for top, bottom in runs(near.sum(axis=1) >= 40):
        band = near[top:bottom]
        for left, right in runs(band.sum(axis=0) >= 40):
            assert band[:, left:right].all()
            found.append((top, left, bottom - top, right - left))
    return found


def runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


# From the file to the figure --------------------------------------------------------------------


def write_squares(path: Path, seconds: int) -> None:
    """A wide grey video, 96 × 64, of which the middle 64 × 64 are seen. In that part, in cells of
    16 pixels: red at row 1, column 2; green at (0, 0); and red again at (3, 0)."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(seconds):
            frame = np.full((64, 96, 3), 120, dtype=np.uint8)
            frame[16:32, 16 + 32 : 16 + 48] = RED
            frame[0:16, 16:32] = GREEN
            frame[48:64, 16:32] = RED
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = i
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def cache_of(path: Path, entry_id: str, pts, *, size, sampling=None, resize="short-side") -> Cache:
    preprocess = Preprocess(size=size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    spec = caches.make_spec()
    fields = {"preprocess": preprocess, "reader": "pyav", "sampling": sampling or Sampling()}
    cache = create_cache(path, type(spec)(**{**vars(spec), **fields}))
    patch = np.zeros((len(pts), 4, 16), dtype=np.float16)
    caches.write_tokens(cache, entry_id, patch, pts_seconds=np.asarray(pts, dtype=np.float64))
    return cache


def test_what_is_kept_is_clear_where_it_is_in_the_frame_and_all_else_is_not(tmp_path: Path) -> None:
    video = tmp_path / "squares.mp4"
    write_squares(video, 5)
    cache = cache_of(tmp_path / "c.zarr", "squares.mp4", range(5), size=(64, 64))
    kept = np.zeros((5, 4, 4))
    kept[:, 1, 2] = kept[:, 0, 0] = 1  # and the other red square is dropped
    look = a_look(kept)
    source = VideoSource(id="squares.mp4", path=video, name=str(video))
    pictures = read_pictures(source, cache, look)
    assert pictures.shape == (5, 64, 64, 3)
    sheet = drawn(look, pictures, tmp_path / "looked.png")
    green, red = boxes(sheet, GREEN), boxes(sheet, RED)
    assert len(green) == len(red) == 5
    side = 48  # 16 pixels, three times as large
    for (top, left, *size), (red_top, red_left, *red_size) in zip(green, red, strict=True):
        assert size == red_size == [side, side]
        assert (red_top - top, red_left - left) == (side, 2 * side)
        below = sheet[top + 3 * side : top + 4 * side, left : left + side]  # dropped, and red
        assert below.max() < 110
        assert np.ptp(below, axis=(0, 1)).max() <= 8
        assert np.allclose(sheet[top, left - 1], 255)  # the frame ends here
    lefts = [left for _, left, *_ in green]
    assert lefts == sorted(set(lefts))  # one row, in the order of time


def test_cells_of_a_coarser_grid_and_of_one_that_does_not_divide_the_frame() -> None:
    cells = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    pixels = over_pixels(cells, (4, 7))
    assert pixels[0].tolist() == [
        [0, 0, 0, 1, 1, 2, 2],
        [0, 0, 0, 1, 1, 2, 2],
        [3, 3, 3, 4, 4, 5, 5],
        [3, 3, 3, 4, 4, 5, 5],
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (160, 160)), ((64, 48), (192, 144)), ((224, 224),) * 2, ((518, 384), (259, 192))],
)
def test_frames_are_enlarged_and_shrunk_by_whole_numbers(size, expected) -> None:
    pictures = np.zeros((2, *size, 3), dtype=np.uint8)
    pictures[:, : size[0] // 2] = 200  # the upper half
    shown = fitted(pictures)
    assert shown.shape == (2, *expected, 3)
    half = expected[0] // 2
    assert (shown[:, :half] == 200).all()
    assert (shown[:, half + 1 :] == 0).all()


# Weights ----------------------------------------------------------------------------------------


def test_the_most_and_the_least_weight_have_the_ends_of_the_scale(tmp_path: Path) -> None:
    weights = np.full((1, 4, 4), 0.05)
    weights[0, 1, 2], weights[0, 3, 0] = 0.2, 0.0
    pictures = np.full((1, 64, 64, 3), 100)
    sheet = drawn(a_look(weights, measure="weights"), pictures, tmp_path / "w.png")
    ends = [[(100 + c) // 2 for c in colour] for colour in ((252, 255, 164), (0, 0, 3))]
    (most,), (least,) = (boxes(sheet, colour, within=1) for colour in ends)
    assert most[2:] == least[2:] == (48, 48)
    assert (most[0] - least[0], most[1] - least[1]) == (-2 * 48, 2 * 48)


MIDDLE = (188, 55, 84)  # of the colours


@pytest.mark.parametrize("spread", [0, 0.001])
def test_weights_that_are_all_but_alike_look_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: float
) -> None:
    weights = np.full((2, 2, 2), 1 / 8)
    weights[0, 0, 0] *= 1 + spread
    look = a_look(weights, measure="weights")
    sheet = drawn(look, np.full((2, 32, 32, 3), 100), tmp_path / "w.png")
    halfway = [(100 + c) // 2 for c in MIDDLE]
    assert len(boxes(sheet, halfway, within=4)) == 2
    said = " ".join(words_of(look, monkeypatch, tmp_path / "f.png"))
    assert "from 0.95 to 1.05 times the weight of the mean patch" in said


def test_no_weight_at_all_is_drawn(tmp_path: Path) -> None:
    look = a_look(np.zeros((2, 2, 2)), measure="weights")
    drawn(look, np.full((2, 32, 32, 3), 100), tmp_path / "w.png")


def test_small_shares_have_a_decimal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.array([0.017, 0.094, 0.889, 0.0]).reshape(4, 1, 1)
    said = words_of(a_look(weights, measure="weights"), monkeypatch, tmp_path / "f.png")
    assert said[-4:] == ["0.0 s   1.7%", "1.0 s   9.4%", "2.0 s   89%", "3.0 s   0%"]


# How many, and what is written ------------------------------------------------------------------


def test_frames_shown_are_few_and_evenly_chosen() -> None:
    assert shown_places(1) == [0]
    assert shown_places(24) == list(range(24))
    assert shown_places(60) == [5 * (i // 2) + 2 * (i % 2) for i in range(24)]
    for count in (25, 47, 100, 3600):
        places = shown_places(count)
        steps = np.diff(places)
        assert len(places) == 24
        assert places[0] == 0
        assert steps.max() - steps.min() <= 1
        assert places[-1] >= count - 1 - steps.max()


def test_a_long_window_is_drawn_with_a_bounded_number_of_frames(tmp_path: Path) -> None:
    """Each frame has a red level of its own, so that the PNG says which ones it shows."""
    places = shown_places(100)
    pictures = np.zeros((24, 64, 64, 3))
    pictures[...] = np.array(RED)
    sheet = drawn(a_look(np.ones((100, 2, 2))), pictures, tmp_path / "long.png")
    assert len(boxes(sheet, RED)) == len(places) == 24
    assert max(sheet.shape) < 1600
    with pytest.raises(ValueError, match="100 pictures for 24 frames"):
        draw_look(
            a_look(np.ones((100, 2, 2))), np.zeros((100, 64, 64, 3), np.uint8), tmp_path / "x"
        )


def words_of(look: WindowLook, monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """Everything that is written into a figure."""
    from matplotlib.figure import Figure

    said: list[str] = []
    plain = Figure.text

    def text(self: Figure, x: float, y: float, s: str, **how: object) -> object:
        said.append(s)
        return plain(self, x, y, s, **how)

    monkeypatch.setattr(Figure, "text", text)
    count = len(shown_places(len(look.frames)))
    draw_look(look, np.zeros((count, 32, 32, 3), np.uint8), path)
    return said


def test_the_words_of_a_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = np.zeros((30, 2, 2))
    kept[:, 0, 0] = 1
    kept[0] = 1
    look = a_look(kept, at=[k + 0.25 for k in range(30)], classes=("cat $x^2$", "dog\nbird"))
    said = words_of(look, monkeypatch, tmp_path / "f.png")
    text = " ".join(said)
    assert said[0] == "v.mp4, 0.0–30.0 s (window 1 of 1)"
    assert r"dog\x0abird 75.0%, cat $x^2$ 25.0%" in text
    assert "keeps 33 of the 120 patches (27.5%)" in text
    assert "24 of 30 frames are shown, at even distances" in text
    assert said[-24] == "0.2 s   100%"
    assert said[-1] == "28.2 s   25%"


def test_the_words_of_weights_and_of_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = a_look([[[0.5, 0.1], [0.1, 0.1]]], measure="weights", classes=())
    text = " ".join(words_of(look, monkeypatch, tmp_path / "f.png"))
    assert "predicted of this window: 1.5000" in text
    assert "gives the patches 80.0% of all weight" in text
    assert "from 0.50 to 2.50 times the weight of the mean patch" in text
    assert "It is a single frame." in text


def test_letters_that_the_font_has_not_are_no_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(
            a_look(np.ones((1, 2, 2)), name="\u732b\U0001f408.mp4"),
            np.zeros((1, 32, 32, 3)),
            tmp_path / "f.png",
        )


def test_a_name_of_a_thousand_letters_stays_on_the_sheet(tmp_path: Path) -> None:
    sheet = drawn(
        a_look(np.ones((1, 2, 2)), name="x" * 1024), np.zeros((1, 32, 32, 3)), tmp_path / "f.png"
    )
    words = (sheet < 128).all(axis=2)
    assert not words[:, -look_figure.MARGIN // 2 :].any()
    assert not words[:5].any()


# Which frames are read --------------------------------------------------------------------------


def numbers(pictures: np.ndarray) -> list[int]:
    return [media.number_of(picture) for picture in pictures]


def test_frames_are_those_that_the_tokens_were_made_from(tmp_path: Path) -> None:
    """At a rate other than the file's, from the middle of the video."""
    clip = media.write_h264(tmp_path / "c.mp4", num_frames=40)
    cache = cache_of(
        tmp_path / "c.zarr",
        "c.mp4",
        [0.5 * k for k in range(8)],
        size=(media.HEIGHT, media.WIDTH),
        sampling=Sampling(fps=2),
        resize="squash",
    )
    source = VideoSource(id="c.mp4", path=clip.path, name="c")
    pictures = read_pictures(source, cache, a_look(np.ones((3, 2, 2)), frames=(2, 4, 6)))
    assert numbers(pictures) == [10, 20, 30]
    with pytest.raises(Vis4merError, match=r"c\.mp4: the file changed while it was being read"):
        read_pictures(source, cache, a_look(np.ones((2, 2, 2)), frames=(2, 9)))


def test_of_a_clip_its_first_picture_is_shown(tmp_path: Path) -> None:
    """Four segments of 4 s, two pictures each: the middles of eight parts are 0.25, 0.75, …"""
    clip = media.write_h264(tmp_path / "c.mp4", num_frames=40)
    cache = cache_of(
        tmp_path / "c.zarr",
        "c.mp4",
        [0.2, 1.2, 2.2, 3.2],
        size=(media.HEIGHT, media.WIDTH),
        sampling=Sampling(kind="segments", segments=4, clip_frames=2),
        resize="squash",
    )
    source = VideoSource(id="c.mp4", path=clip.path, name="c")
    assert numbers(read_pictures(source, cache, a_look(np.ones((4, 2, 2))))) == [2, 12, 22, 32]


def test_a_file_whose_times_are_others_now_is_refused(tmp_path: Path) -> None:
    clip = media.write_h264(tmp_path / "c.mp4", num_frames=40)
    pts = [0.0, 1.0, 2.001, 3.0]
    cache = cache_of(tmp_path / "c.zarr", "c.mp4", pts, size=(media.HEIGHT, media.WIDTH))
    source = VideoSource(id="c.mp4", path=clip.path, name="c")
    with pytest.raises(Vis4merError, match="the file changed") as caught:
        read_pictures(source, cache, a_look(np.ones((4, 2, 2))))
    assert "\n" not in str(caught.value)
