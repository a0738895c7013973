"""What a sweep asks for: its points and their names, the presets, whose directory it is."""

import re
from dataclasses import replace

import pytest
from caches import make_cache, make_spec
from vis4mer.decode.ablate.devices import sweep_devices
from vis4mer.decode.ablate.directory import claim, require_own_sweep
from vis4mer.decode.ablate.plan import plan_sweep, spread
from vis4mer.decode.ablate.presets import PRESETS, build_preset
from vis4mer.decode.ablate.sweep import MAX_NAME, Axis, Sweep, read_sweep, run_names
from vis4mer.store.errors import UsageError
from vis4mer.store.spec import Sampling

BASE = {"task": "toy/label", "epochs": 2, "window_seconds": 4.0, "device": "cpu"}


def sweep_of(*axes, base=None, **more):
    parsed = tuple(Axis.parse(text) for text in axes)
    return Sweep(base={**BASE, **(base or {})}, axes=parsed, **more)


# Points -----------------------------------------------------------------------------------------


def test_points_are_the_product_of_the_axes_with_the_seeds_within():
    sweep = sweep_of("tokens=4x2x2,4xcls", "decoder.depth=1,3", seeds=(0, 5))
    points = sweep.points(["one"])
    assert [(p.config.tokens, p.config.decoder.options, p.config.seed) for p in points] == [
        (tokens, {"depth": depth}, seed)
        for tokens in ("4x2x2", "4xcls")
        for depth in ("1", "3")
        for seed in (0, 5)
    ]
    assert points[0].name == "tokens-4x2x2_depth-1_seed-0"
    assert points[-1].name == "tokens-4xcls_depth-3_seed-5"
    assert points[0].config.epochs == 2


def test_a_protocol_can_be_an_axis_and_brings_its_own_settings():
    clean, official = sweep_of("protocol=clean,official").points(["one"])
    assert (clean.config.padding, official.config.padding) == ("masked", "zeros")
    assert official.config.epochs == 2  # the base is over the protocol


def test_an_axis_of_seeds_is_the_same_as_seeds():
    by_axis = sweep_of("seed=3", "tokens=4xcls,4x1x1").points(["one"])
    assert by_axis == sweep_of("tokens=4xcls,4x1x1", seeds=(3,)).points(["one"])


def test_several_caches_are_an_axis_and_runs_of_their_own_are_run_on_each():
    points = sweep_of("decoder.depth=1,2").points(["vit", "swin"])
    assert [p.name for p in points] == [
        f"cache-{cache}_depth-{depth}" for cache in ("vit", "swin") for depth in (1, 2)
    ]
    points = Sweep(base=BASE, runs=({"decoder.name": "mean"},)).points(["vit", "swin"])
    assert [(p.cache, p.name) for p in points] == [
        ("vit", "cache-vit_decoder-mean"),
        ("swin", "cache-swin_decoder-mean"),
    ]
    with pytest.raises(UsageError, match=r"cache 'vgg' is none of --cache: vit"):
        sweep_of("cache=vgg").points(["vit"])


def test_a_file_says_base_axes_runs_and_seeds(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        """
        seeds = [4, 7]
        [base]
        task = "toy/label"
        decoder.dropout = 0.1
        [axes]
        tokens = ["4xcls", "4x2x2"]
        decoder.scaling = [true, false]
        [[runs]]
        decoder.name = "lst"
        optimizer.lr = 0.01
        """
    )
    points = read_sweep(file).points(["one"])
    assert [p.name for p in points] == [
        f"{name}_seed-{seed}"
        for name in (
            "tokens-4xcls_scaling-true",
            "tokens-4xcls_scaling-false",
            "tokens-4x2x2_scaling-true",
            "tokens-4x2x2_scaling-false",
            "decoder-lst_lr-0.01",
        )
        for seed in (4, 7)
    ]
    assert points[0].config.decoder.options == {"dropout": 0.1, "scaling": True}
    assert (points[-1].config.decoder.name, points[-1].config.optimizer.lr) == ("lst", 0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[axes]\ntokens = '4xcls'", "axes.tokens is '4xcls', expected a list of values"),
        ("[axes]\ntokens = []", "at least one value"),
        ("[axes]\ntokens = [[1]]", "axes.tokens is [1], expected text, a number"),
        ("[axis]\ntokens = ['4xcls']", "unknown part of a sweep 'axis'"),
        ("base = 3", "base is 3, expected a table of fields"),
        ("runs = 3", "expected a list of tables"),
        ("seeds = 0", "--seeds 0: a number of runs, expected 1 to 1000"),
        ("[axes", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(tmp_path, text, words):
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        read_sweep(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (lambda: sweep_of(), "nothing is swept"),
        (lambda: sweep_of("epochs"), "expected NAME=VALUE,VALUE"),
        (lambda: sweep_of("epochs=1,"), "expected NAME=VALUE,VALUE"),
        (lambda: sweep_of("epochs=1,1"), "a value stands there twice"),
        (lambda: sweep_of("decoder=lst"), "axis decoder: expected one of its fields"),
        (lambda: sweep_of("depth=1,2"), "unknown field 'depth'"),
        (lambda: sweep_of("epochs=1,two"), "epochs is 'two', expected a whole number"),
        (lambda: sweep_of("epochs=1,2").with_axes([Axis.parse("lr=1")] * 2), "given twice"),
        (lambda: sweep_of("seed=1,2", seeds=(1,)), "give one of them"),
        (lambda: sweep_of("window_seconds=4,4.0"), "are the same run"),
        (lambda: sweep_of("epochs=1,2", runs=({"epochs": 2},)), "are the same run"),
        (lambda: sweep_of("epochs=1,2", runs=({"seed": 2},), seeds=(1,)), "a seed of its own"),
    ],
)
def test_what_cannot_be_swept_is_refused(sweep, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        sweep().points(["one"])


def test_a_setting_for_all_is_no_axis():
    with pytest.raises(UsageError, match="epochs is an axis of the sweep"):
        sweep_of("epochs=1,2").points(["one"], sets=["epochs=3"])


# Names ------------------------------------------------------------------------------------------


def test_names_are_plain_and_never_the_same():
    hostile = "../../etc/passwd\n\x1b[31m"
    settings = [
        {"decoder.name": "lst"},
        {"decoder.name": "LST"},  # one folder where case does not count
        {"decoder.name": hostile},
        {"decoder.name": hostile + " "},
        {"decoder.name": "x" * 300},
        {"decoder.name": "x" * 301},
    ]
    names = run_names(settings)
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"decoder-[A-Za-z0-9.+@_-]+", name)
        assert len(name) <= MAX_NAME
    assert names == run_names(settings)


def test_fields_with_the_same_last_word_are_named_in_full():
    names = run_names([{"optimizer.lr": 0.1, "decoder.lr": 0.2, "decoder.keep_ratio": 0.5}])
    assert names == ["optimizer.lr-0.1_decoder.lr-0.2_keep-ratio-0.5"]


# Presets ----------------------------------------------------------------------------------------


def test_presets_follow_what_the_caches_hold():
    full = make_spec(grid=(14, 14), dim=1024)
    without = make_spec(grid=(14, 14), dim=1024, num_prefix=0)
    assert build_preset("paper-tokens", [full]).axes[0].values == (
        ("60xcls", "60x5x5", "60x7x7", "60x14x14")
    )
    assert build_preset("paper-tokens", [full, without]).axes[0].values[0] == "60x1x1"
    reduction = build_preset("paper-dimension-reduction", [full]).with_base({"task": "a/b"})
    assert [p.config.decoder.options for p in reduction.points(["one"])] == [
        {"pooling": pooling, "scaling": scaling}
        for pooling in (False, True)
        for scaling in (False, True)
    ]
    for name in PRESETS:
        specs = [full, without] if name == "paper-encoders" else [full]
        sweep = build_preset(name, specs).with_base({"task": "a/b"})
        assert len(sweep.points([f"c{i}" for i in range(len(specs))])) >= 2, name


def test_the_token_views_of_the_paper_are_its_numbers_of_tokens(tmp_path):
    cache = make_cache(tmp_path, grid=(14, 14), dim=8, num_videos=8, frames=2)
    sweep = build_preset("paper-tokens", [cache.spec])
    points = sweep.with_base({"task": "toy/label", "device": "cpu"}).points(["tokens"])
    plan = plan_sweep(points, {"tokens": cache}, tmp_path / "sweep")
    assert [r.job.plan.shape.num_tokens for r in plan.runs] == [60, 1500, 2940, 11760]


def test_a_preset_says_which_part_cannot_be():
    with pytest.raises(UsageError, match=r"unknown preset 'paper-token', .*mean paper-tokens\?"):
        build_preset("paper-token", [make_spec()])
    with pytest.raises(UsageError, match="paper-encoders: one cache is given"):
        build_preset("paper-encoders", [make_spec()])
    segments = replace(make_spec(), sampling=Sampling(kind="segments", segments=8))
    with pytest.raises(UsageError, match=r"paper-window-length: the entries .* are segments"):
        build_preset("paper-window-length", [segments])


# Passes -----------------------------------------------------------------------------------------


def test_alike_runs_share_a_pass_and_their_blocks_whoever_is_finished(tmp_path):
    cache = make_cache(tmp_path, num_videos=16, frames=6)
    points = sweep_of("tokens=4xcls,4x2x2", "decoder.name=mean,vis4mer", seeds=(0, 1)).points(["a"])
    plan = plan_sweep(points, {"a": cache}, tmp_path / "sweep", share_bytes=3000)
    assert [[r.point.name for r in p.runs] for p in plan.passes] == [
        [p.name for p in points[:4]],
        [p.name for p in points[4:]],
    ]
    # 8 training videos of which 4 runs want at most 6 frames each, 32 bytes a frame and token,
    # three blocks at a time: 8 · 6 · 32 · 3 = 4608 bytes, four times as many with 2 × 2 patches.
    assert [p.runs[0].config.blocks for p in plan.passes] == [2, 7]
    assert not plan.refused


def test_passes_are_divided_until_there_is_one_for_each_device(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    points = sweep_of("decoder.name=mean", seeds=(0, 1, 2, 3, 4)).points(["a"])
    plan = plan_sweep(points, {"a": cache}, tmp_path / "sweep")
    for devices, sizes in ((1, [5]), (2, [3, 2]), (3, [2, 1, 2]), (9, [1, 1, 1, 1, 1])):
        parts = spread(plan.passes, devices)
        assert [len(p.runs) for p in parts] == sizes
        assert [r for p in parts for r in p.runs] == list(plan.runs)


def test_what_a_cache_cannot_serve_is_refused_by_point_and_all_of_it_at_once(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    plan = plan_sweep(
        sweep_of("tokens=4x2x2,4x9x9").points(["a"]), {"a": cache}, tmp_path / "sweep"
    )
    assert list(plan.refused) == ["tokens-4x9x9"]
    with pytest.raises(UsageError, match="4x9x9"):
        plan_sweep(sweep_of("tokens=4x9x9").points(["a"]), {"a": cache}, tmp_path / "sweep")


# The directory ----------------------------------------------------------------------------------


def test_a_directory_is_of_one_sweep(tmp_path):
    cache = make_cache(tmp_path, num_videos=8, frames=6)
    caches, folder = {"a": cache}, tmp_path / "sweep"
    points = sweep_of("tokens=4x2x2,4xcls").points(["a"])
    require_own_sweep(folder, points, caches)
    assert not folder.exists()
    claim(folder, points, caches)
    require_own_sweep(folder, points, caches)
    elsewhere = sweep_of("tokens=4x2x2,4xcls", base={"device": "auto", "workers": 1})
    require_own_sweep(folder, elsewhere.points(["a"]), caches)  # not what is learned
    for other, words in (
        (sweep_of("tokens=4x2x2,4x1x1"), "it has tokens-4xcls, which is not asked"),
        (sweep_of("tokens=4x2x2,4xcls,4x1x1"), "it has no tokens-4x1x1"),
        (sweep_of("tokens=4x2x2,4xcls", base={"epochs": 3}), "epochs is 2, asked 3"),
    ):
        with pytest.raises(UsageError, match=f"holds another sweep .*{words}"):
            require_own_sweep(folder, other.points(["a"]), caches)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is no sweep \(it holds thesis.tex\)"):
        require_own_sweep(tmp_path / "else", points, caches)


def test_devices_are_named_or_all_there_are():
    assert sweep_devices("cpu,cpu") == ("cpu", "cpu")
    with pytest.raises(UsageError, match="auto stands by itself"):
        sweep_devices("auto,cpu")
    with pytest.raises(UsageError, match="expected auto, cpu"):
        sweep_devices("cpu,tpu")
