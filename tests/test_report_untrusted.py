"""A run directory may come from anyone: the report is made whatever one says."""

import json

import pytest
from judged_runs import write_run
from typer.testing import CliRunner
from vis4mer.cli import app
from vis4mer.store.files import seal

FAR = 1e308


def predictions(data):
    return data["by_weights"]["best"]["test"]["predictions"]


def of_test(data):
    return data["by_weights"]["best"]["test"]


CLASSIFIED = {
    "label between classes": lambda d: predictions(d)[0].__setitem__(1, 0.5),
    "label beyond the classes": lambda d: predictions(d)[0].__setitem__(1, 2),
    "label below them": lambda d: predictions(d)[0].__setitem__(1, -1),
    "probability above one": lambda d: predictions(d)[0].__setitem__(2, [1.5, 0.1]),
    "probability below zero": lambda d: predictions(d)[0].__setitem__(2, [0.5, -0.5]),
    "far output": lambda d: predictions(d)[0].__setitem__(2, [FAR, -FAR]),
    "an output too few": lambda d: predictions(d)[0].__setitem__(2, [1.0]),
    "no output": lambda d: predictions(d)[0].__setitem__(2, []),
    "no classes": lambda d: of_test(d).update(classes=[]),
    "no classes, one output": lambda d: of_test(d).update(
        classes=[], predictions=[["v0", 0, [0.5], 1, False]]
    ),
    "regression of classes": lambda d: of_test(d).update(kind="regression"),
    "more lacking than listed": lambda d: of_test(d)["coverage"].update(total=0, missing=["a"]),
}
REGRESSED = {
    "far value": lambda d: predictions(d)[0].__setitem__(2, [FAR]),
    "far label": lambda d: predictions(d)[0].__setitem__(1, -FAR),
    "two values": lambda d: predictions(d)[0].__setitem__(2, [0.5, 0.5]),
    "classification without classes": lambda d: of_test(d).update(kind="classification"),
}
CASES = [(k, c) for k, cs in (("right", CLASSIFIED), ("errors", REGRESSED)) for c in cs.items()]


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def make(folder, kind):
    given = {"right": "1101"} if kind == "right" else {"errors": [0.5, -0.25, 1.0]}
    return write_run(folder, **given, task="lvu/like_ratio" if kind == "errors" else "lvu/scene")


@pytest.mark.parametrize(("kind", "change"), CASES, ids=[case[1][0] for case in CASES])
def test_results_that_cannot_be_are_left_out(tmp_path, kind, change):
    make(tmp_path / "sound", kind)
    path = make(tmp_path / "strange", kind) / "results.json"
    data = json.loads(path.read_bytes())
    del data["checksum"]
    change[1](data)
    path.write_bytes(seal(data))
    done = report(tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "left out" in line]
    assert f"{path}: " in line


def test_a_config_whose_kind_is_not_that_of_its_classes_is_left_out(tmp_path):
    make(tmp_path / "sound", "right")
    path = make(tmp_path / "strange", "right") / "config.json"
    data = json.loads(path.read_bytes())
    del data["checksum"]
    path.write_bytes(seal(data | {"kind": "regression"}))
    done = report(tmp_path)
    assert done.exit_code == 0, done.output
    assert "a regression with 2 classes, expected" in done.stdout


@pytest.mark.parametrize("value", [FAR, -FAR, 3e38, 10**400], ids=str)
def test_the_page_holds_whatever_was_measured(tmp_path, value):
    """Values that a file may hold are drawn, or their run is left out."""
    make(tmp_path / "sound", "errors")
    run = make(tmp_path / "strange", "errors")
    line = {"epoch": 1, "steps": 1, "lr": value, "train_loss": value, "val_score": -value}
    line |= {"val_loss": -value, "test_score": value, "seconds": value, "bytes_read": 10**400}
    lines = [line, line | {"epoch": 10**400, "val_loss": 1.0}, line | {"epoch": 3}]
    text = "".join(json.dumps(each) + "\n" for each in lines)
    (run / "metrics.jsonl").write_text(text)
    done = report(tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
