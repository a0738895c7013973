"""The long-range demos: labels that order alone tells, floors at chance, and the comparison."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.decode.data.plan import WindowPlan
from vis4mer.decode.decoders import DECODERS, build_decoder
from vis4mer.demo import long_range as demo_long_range
from vis4mer.demo.long_range import (
    CONTENDERS,
    LEFT_OUT,
    cache_path,
    contender_config,
    demo_for,
    run_long_range,
    run_path,
    train_contender,
)
from vis4mer.demo.tokens import (
    CLASSES,
    COUNT_FRAMES,
    EVENT_FRAMES,
    FRAMES,
    MIN_GAP,
    WIDTH,
    TokenDemo,
    draw_family,
    plan_families,
    write_token_demo,
)
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import FingerprintError, UsageError
from vis4mer.store.verify import verify_cache

SMALL = {"train": 8, "val": 4, "test": 8}
each_question = pytest.mark.parametrize("question", CLASSES)


def small(question, **fields):
    return TokenDemo(question=question, num_videos=SMALL, **fields)


def events(layout):
    """(kind, frames) of the events in a row, and the lengths of the gaps between them."""
    runs = [(int(kind), len(list(run))) for kind, run in itertools.groupby(layout)]
    shown = [run for run in runs if run[0]]
    inside = runs[next(i for i, run in enumerate(runs) if run[0]) :]
    while not inside[-1][0]:
        inside.pop()
    return shown, [length for kind, length in inside if not kind]


def answer(question, layout):
    """The label by the words of the question."""
    kinds = [kind for kind, _ in events(layout)[0]]
    if question == "order":
        return kinds.index(1) > kinds.index(2)
    if question == "count":
        return kinds.count(1) - 1
    return kinds[0] != kinds[-1]


@each_question
def test_the_label_is_the_answer_to_the_question(question):
    for family in plan_families(TokenDemo(question=question)):
        assert sorted(s.label for s in family) == list(range(len(CLASSES[question])))
        for sibling in family:
            assert sibling.layout.shape == (FRAMES,)
            assert answer(question, sibling.layout) == sibling.label


@each_question
def test_events_last_as_documented_and_never_touch(question):
    for family in plan_families(TokenDemo(question=question)):
        for sibling in family:
            shown, gaps = events(sibling.layout)
            lengths = [length for _, length in shown]
            if question == "count":
                assert sum(lengths) == COUNT_FRAMES
            else:
                assert set(lengths) == {EVENT_FRAMES}
            assert not gaps or min(gaps) >= MIN_GAP
            assert len(gaps) == len(shown) - 1


@each_question
def test_the_first_frame_of_a_match_and_the_last_are_of_every_kind(question):
    """No kind in any place tells the label by itself: each is as frequent for either answer."""
    firsts, lasts = defaultdict(Counter), defaultdict(Counter)
    for seed in range(6):
        for family in plan_families(TokenDemo(question=question, seed=seed)):
            for sibling in family:
                kinds = [kind for kind, _ in events(sibling.layout)[0]]
                firsts[sibling.label][kinds[0]] += 1
                lasts[sibling.label][kinds[-1]] += 1
    if question == "order":
        assert firsts[0] == lasts[1] == Counter({1: sum(firsts[0].values())})
        return
    for counts in (*firsts.values(), *lasts.values()):
        shares = [count / sum(counts.values()) for count in counts.values()]
        assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=0.04)


@each_question
@pytest.mark.parametrize("side", [1, 4])
def test_siblings_show_the_same_frames_in_another_order(question, side):
    demo = small(question, side=side)
    for family in plan_families(demo):
        videos = draw_family(demo, family)
        frames = [Counter(frame.tobytes() for frame in video) for video in videos]
        assert all(found == frames[0] for found in frames)
        assert len({video.tobytes() for video in videos}) == len(videos)
        assert {s.split for s in family} == {family[0].split}
        for video in videos:
            assert video.shape == (FRAMES, side * side, WIDTH)
            assert video.dtype == np.float16


def test_an_event_is_seen_where_the_layout_says():
    """On one token a frame: frames of a kind are nearer to their own mean than to the others'."""
    demo = TokenDemo(question="match", num_videos={"train": 40, "val": 0, "test": 0})
    tokens, kinds = [], []
    for family in plan_families(demo):
        for sibling, video in zip(family, draw_family(demo, family), strict=True):
            tokens.append(video[:, 0].astype(np.float64))
            kinds.append(sibling.layout)
    x, k = np.concatenate(tokens), np.concatenate(kinds)
    means = np.stack([x[k == kind].mean(axis=0) for kind in range(3)])  # K D
    nearest = ((x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == k).mean() > 0.99
    assert np.abs(means[0]).max() < 0.15  # the background is noise about zero
    assert x[k == 0].std() == pytest.approx(1, abs=0.02)


def test_an_event_covers_a_quarter_of_the_grid():
    demo = TokenDemo(question="order", side=4, num_videos={"train": 20, "val": 0, "test": 0})
    power = defaultdict(list)
    for family in plan_families(demo):
        for sibling, video in zip(family, draw_family(demo, family), strict=True):
            squares = (video.astype(np.float64) ** 2).mean(axis=-1)  # T S, 1 without an event
            for kind, frame in zip(sibling.layout, squares, strict=True):
                power[bool(kind)].append((frame > 1.5).sum())
    assert np.mean(power[False]) < 0.3
    assert np.mean(power[True]) == pytest.approx(4, abs=0.4)


@each_question
def test_the_same_seed_draws_the_same_and_another_does_not(question):
    def drawn(seed):
        demo = small(question, seed=seed)
        return [v.tobytes() for family in plan_families(demo) for v in draw_family(demo, family)]

    assert drawn(3) == drawn(3)
    assert not set(drawn(3)) & set(drawn(4))


@pytest.fixture(scope="module", params=CLASSES)
def written(request, tmp_path_factory):
    demo = small(request.param)
    path = tmp_path_factory.mktemp("tokens") / "demo.zarr"
    return demo, write_token_demo(path, demo)


def test_the_cache_is_whole_and_labelled(written):
    demo, cache = written
    assert verify_cache(cache, "full").ok
    table = cache.task(demo.reference)
    assert table.classes == demo.classes
    by_split = Counter(row.split for row in table.rows)
    assert by_split == SMALL
    counts = Counter((row.split, row.label) for row in table.rows)
    assert all(n == SMALL[split] / len(demo.classes) for (split, _), n in counts.items())
    splits = defaultdict(set)
    for row in table.rows:
        splits[row.group].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    family = next(iter(plan_families(demo)))
    for sibling, tokens in zip(family, draw_family(demo, family), strict=True):
        assert np.array_equal(cache.read(sibling.id), tokens)


def test_writing_again_keeps_what_is_there_and_adds_what_is_lost(written):
    demo, cache = written
    before = {path: path.stat().st_mtime_ns for path in (cache.path / "records").rglob("*.json")}
    lost = cache.ids()[0]
    tokens = cache.read(lost)
    cache.remove(lost)
    again = write_token_demo(cache.path, demo)
    assert np.array_equal(again.read(lost), tokens)
    after = {path: path.stat().st_mtime_ns for path in (cache.path / "records").rglob("*.json")}
    assert sum(after[path] != before[path] for path in before) == 1
    with pytest.raises(FingerprintError):
        write_token_demo(cache.path, small(demo.question, seed=1))


def outputs(run):
    from vis4mer.decode.runs.run import open_run

    return {p.id: p for p in open_run(run).results().test.predictions}


@pytest.mark.parametrize("contender", ["mean", "attentive-probe", "lst"])
def test_what_ignores_order_is_at_chance_exactly(written, contender, tmp_path):
    """Siblings are given the same outputs, so that one of them is right in every family."""
    demo, cache = written
    run = tmp_path / "run"
    score = train_contender(cache, demo, contender, run=run, seed=0, device="cpu", epochs=2)
    assert (score.correct, score.total) == (SMALL["test"] * demo.chance, SMALL["test"])
    families = defaultdict(list)
    for entry_id, prediction in outputs(run).items():
        families[entry_id.rpartition("-")[0]].append(prediction)
    for family in families.values():
        assert sum(p.predicted_class == p.label for p in family) == 1
        for prediction in family:
            assert np.allclose(prediction.output, family[0].output, atol=1e-4)


def test_what_sees_order_tells_siblings_apart(written, tmp_path):
    demo, cache = written
    run = tmp_path / "run"
    train_contender(cache, demo, "gru", run=run, seed=0, device="cpu", epochs=1)
    families = defaultdict(list)
    for entry_id, prediction in outputs(run).items():
        families[entry_id.rpartition("-")[0]].append(prediction.output)
    for family in families.values():
        assert not np.allclose(family[0], family[1], atol=1e-4)


# The comparison ---------------------------------------------------------------------------------


def test_every_decoder_of_the_catalogue_takes_part_or_is_left_out_by_name():
    taking_part = {contender.decoder for contender in CONTENDERS.values()}
    assert taking_part | set(LEFT_OUT) == set(DECODERS)
    assert not taking_part & set(LEFT_OUT)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("tokens", ["60x1x1", "60x4x4", "60x14x14"])
def test_every_contender_can_be_built_for_all_three_lengths(name, tokens):
    demo = demo_for("count", tokens=tokens)
    config = contender_config(demo, name, seed=0)
    plan = WindowPlan.of(
        demo.spec, tokens=config.tokens, window_seconds=config.window_seconds, padding="masked"
    )
    assert plan.shape.num_tokens == {"60x1x1": 60, "60x4x4": 960, "60x14x14": 11_760}[tokens]
    chosen = config.decoder
    model = build_decoder(chosen.name, shape=plan.shape, num_outputs=4, options=chosen.options)
    assert 0 < sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.fixture
def _quick(monkeypatch):
    """Few videos, two epochs."""
    short = replace(demo_long_range.TRAININGS[1], num_videos=SMALL, epochs=2)
    monkeypatch.setattr(demo_long_range, "TRAININGS", {**demo_long_range.TRAININGS, 1: short})


@pytest.mark.usefixtures("_quick")
def test_the_comparison_gathers_seeds_and_goes_on_where_it_stopped(tmp_path):
    lines: list[str] = []

    def compare():
        return run_long_range(
            tmp_path,
            question="order",
            decoders=("segment-mean", "mean"),
            seeds=(0, 1),
            device="cpu",
            report=lines.append,
        )

    result = compare()
    assert [s.first.contender for s in result.settings] == ["segment-mean", "mean"]
    floor = result.settings[1]
    assert floor.accuracy.values == (0.5, 0.5)
    assert (floor.accuracy.mean, floor.accuracy.std, floor.chance) == (0.5, 0.0, 0.5)
    assert result.caches == (cache_path(tmp_path, demo_for("order", tokens="60x1x1")),)
    assert len(open_cache(result.caches[0])) == sum(SMALL.values())
    assert any("segment-mean" in line for line in lines)
    weights = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert compare() == result
    assert {p: p.stat().st_mtime_ns for p in weights} == weights


def test_names_that_are_unknown_are_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "demo"
    for fields, words in (
        ({"decoders": ("vis5mer",)}, "vis4mer"),
        ({"decoders": ("cls-mean",)}, "CLS"),
        ({"tokens": ("60x2x2",)}, "60x14x14"),
    ):
        with pytest.raises(UsageError, match=words):
            run_long_range(folder, question="order", **fields)
    assert not folder.exists()


def test_runs_of_other_contenders_questions_lengths_and_seeds_have_folders_of_their_own(tmp_path):
    paths = {
        run_path(tmp_path, demo_for(question, tokens=tokens, seed=drawn), name, seed=seed)
        for question in CLASSES
        for tokens in ("60x1x1", "60x4x4")
        for drawn in (0, 1)
        for name in CONTENDERS
        for seed in (0, 1)
    }
    assert len(paths) == len(CLASSES) * 2 * 2 * len(CONTENDERS) * 2


def invoke(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


@pytest.mark.usefixtures("_quick")
def test_the_command_prints_a_table_or_json(tmp_path):
    arguments = (tmp_path, "--dataset", "count", "--decoders", "mean", "--device", "cpu")
    shown = invoke(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "25.0%" in shown.stdout
    found = json.loads(invoke(*arguments, "--json").stdout)
    (setting,) = found["settings"]
    assert (setting["decoder"], setting["chance"]) == ("mean", 0.25)
    assert setting["accuracy"]["mean"] == 0.25
    assert setting["runs"][0]["total"] == SMALL["test"]


@pytest.mark.parametrize("option", ["decoders", "tokens", "seeds"])
def test_options_of_the_comparison_need_a_dataset(option, tmp_path):
    result = invoke(tmp_path / "demo", f"--{option}", "mean")
    assert result.exit_code == 2
    assert f"--{option} mean" in result.stderr
    assert "--dataset" in result.stderr
    assert not (tmp_path / "demo").exists()
