"""TrainConfig: round trips, texts parsed by type, and errors that list what was expected."""

import tomllib

import pytest
from vis4mer.decode.config import (
    DecoderConfig,
    OptimizerConfig,
    TrainConfig,
    config_differences,
    load_config,
)
from vis4mer.store.errors import UsageError

FULL = TrainConfig(
    task="lvu/relationship",
    decoder=DecoderConfig(
        name="mean", options={"depth": 2, "pooling": False, "dropout": 0.1, "mixer": "s4"}
    ),
    optimizer=OptimizerConfig(lr=3e-4, schedule="plateau", grad_clip=1.5, warmup_epochs=0.5),
    tokens="60x7x7+cls",
    seed=2**62,
    select="last",
    precision="bfloat16",
)


@pytest.mark.parametrize("config", [FULL, TrainConfig(task="a/b")])
def test_json_and_toml_give_the_same_config_back(config):
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_json(tomllib.loads(config.to_toml())) == config


def test_later_sources_override_and_texts_are_read_by_the_type_of_the_field(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'task = "a/b"\nepochs = 7\nseed = 1\n[optimizer]\nlr = 0.1\n[decoder]\ndepth = 2'
    )
    config = load_config(
        file=file,
        flags={"seed": 5, "tokens": None, "decoder.name": "mean"},
        sets=["optimizer.lr=1e-3", "optimizer.grad_clip=none", "epochs=9", "decoder.depth=4"],
    )
    assert (config.epochs, config.seed, config.tokens) == (9, 5, None)
    assert config.optimizer.lr == 1e-3
    assert config.optimizer.grad_clip is None
    assert config.decoder == DecoderConfig(name="mean", options={"depth": "4"})


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["epoch=3"], "unknown field 'epoch'.*did you mean epochs"),
        (["optimizer.lrr=3"], "unknown field 'optimizer.lrr'.*weight_decay"),
        (["optimizer.schedule=cosin"], "'cosin', expected one of cosine, plateau, constant"),
        (["epochs=1.5"], "epochs is '1.5', expected a whole number"),
        (["epochs=0"], "epochs is 0, expected at least 1"),
        (["optimizer.lr=fast"], "optimizer.lr is 'fast', expected a finite number"),
        (["optimizer.lr=nan"], "expected a finite number"),
        (["optimizer.lr=-1"], "more than 0"),
        (["window_seconds=inf"], "finite"),
        (["seed=-1"], "seed is -1, expected 0 or more"),
        (["tokens=60by14"], "token view '60by14'"),
        (["task=nodataset"], "expected DATASET/TASK"),
        (["optimizer.lr=inf"], "expected a finite number"),
        (["select=first"], "select is 'first', expected one of best-val, last"),
        (["precision=half"], "precision is 'half', expected one of auto, float32, bfloat16"),
        (["optimizer.lr"], "expected NAME=VALUE"),
        (["task.x=1"], "task is a value"),
        (["optimizer=3"], "optimizer is '3', expected a table"),
        (["decoder.name=1", "decoder.a.b=2"], "decoder.a is"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(sets, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_config(flags={"task": "a/b"}, sets=sets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(schedule="cosin"), "optimizer.schedule is 'cosin', expected one"),
        (lambda: OptimizerConfig(lr=float("inf")), "optimizer.lr is inf, expected more than 0"),
        (lambda: OptimizerConfig(weight_decay=float("nan")), "optimizer.weight_decay is nan"),
        (lambda: OptimizerConfig(grad_clip=float("inf")), "optimizer.grad_clip is inf"),
        (lambda: TrainConfig(task="a/b", select="best"), "select is 'best', expected one of best-"),
        (lambda: TrainConfig(task="a/b", precision="fp16"), "precision is 'fp16', expected one of"),
    ],
)
def test_records_built_in_python_are_checked_too(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_config_needs_a_task():
    with pytest.raises(UsageError, match="task is not set"):
        load_config()


@pytest.mark.parametrize("content", [b"task = ", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_is_one_line(tmp_path, content):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"run.toml"):
        load_config(file=file)


def test_differences_name_what_is_learned_and_not_how_fast():
    changed = load_config(
        flags=_flat(FULL)
        | {"decoder.depth": 3, "seed": 1}
        | {"workers": 9, "device": "cpu", "preload": "ram", "compile": True}
        | {"decoder.recompute": True}
    )
    found = config_differences(FULL, changed)
    assert [(d.field, d.stored, d.wanted) for d in found] == [
        ("decoder.depth", "2", "3"),
        ("seed", str(2**62), "1"),
    ]


def _flat(config):
    data = config.to_json()
    for table in ("decoder", "optimizer"):
        data |= {f"{table}.{name}": value for name, value in data.pop(table).items()}
    return data
