"""Rules of the house: who may import whom, what is never called, what every name must explain."""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import vis4mer

ROOT = Path(__file__).resolve().parent.parent  # the checkout, whatever is installed
ROOMS = ("store", "extract", "decode")
MAY_IMPORT = {"store": {"store"}, "extract": {"extract", "store"}, "decode": {"decode", "store"}}
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_files() -> list[Path]:
    """Modules that an installation carries: at the root, and in the listed packages."""
    folders = [
        ROOT.joinpath(*name.split(".")[1:]) for name in CONFIG["tool"]["setuptools"]["packages"]
    ]
    return sorted(path for folder in folders for path in folder.glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["vis4mer", *(part for part in parts if part != "__init__")])


FILES = package_files()


def each_file(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test of all files: two thousand tests of a millisecond each would take a minute."""

    def check_all() -> None:
        broken = []
        for path in FILES:
            try:
                check(path)
            except AssertionError as error:
                broken.append(f"{module_name(path)}: {error}")
        assert not broken, "\n".join(broken)

    check_all.__doc__ = check.__doc__
    return check_all


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports_of(path: Path, tree: ast.AST) -> Iterator[str]:
    """Full dotted names of what a tree imports, relative ones resolved."""
    package = ["vis4mer", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The part of a module that runs when it is imported: no function bodies, no type checking."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, _):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name is ast's

        def visit_If(self, node):
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return None
            return self.generic_visit(node)

    return Drop().visit(copy.deepcopy(tree))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


# Imports -------------------------------------------------------------------------------------


@each_file
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports_of(path, parse(path)):
        parts = name.split(".")
        if parts[0] != "vis4mer":
            continue
        if room in ROOMS:
            allowed = parts[1] in MAY_IMPORT[room] or parts[1] == "__version__"
            assert allowed, f"{path.name} of {room} imports {name}"
        if path.name not in ("__main__.py", "cli.py") and room not in ("commands", "render"):
            command_line = ("cli", "commands", "render")
            assert parts[1] not in command_line, f"{path.name} imports the command line"


@each_file
def test_imports_inside_the_package_are_relative(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        assert not [name for name in names if name.split(".")[0] == "vis4mer"]


def test_store_imports_no_torch():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "store":
            names = {name.split(".")[0] for name in imports_of(path, at_import(parse(path)))}
            assert not names & {"torch", "torchvision", "timm", "av", "zarr"}, path


def test_importing_is_light():
    """No torch before it is needed, so that `--help` and reading a cache are quick."""
    light = [module_name(path) for path in FILES if path.parent.name == "store"]
    light += ["vis4mer", "vis4mer.cli"]
    code = f"""
import importlib, json, sys
for name in {light!r}:
    importlib.import_module(name)
print(json.dumps(sorted(name.split(".")[0] for name in sys.modules)))
"""
    loaded = set(json.loads(run(code)))
    assert {"vis4mer", "numpy"} <= loaded
    assert not loaded & {"torch", "torchvision", "timm", "av", "decord", "matplotlib", "zarr"}


def test_every_module_can_be_imported_and_its_examples_are_true():
    """One file wraps each optional library and is imported when that is asked for."""
    wrapped = {"decord": "decord", "torchcodec": "torchcodec", "fused_kernels": "triton"}
    for path in FILES:
        library = wrapped.get(path.stem) if path.parent.name in ("readers", "ssm") else None
        missing = library is not None and importlib.util.find_spec(library) is None
        if path.name != "__main__.py" and not missing:
            module = importlib.import_module(module_name(path))
            assert not doctest.testmod(module).failed, module.__name__


# What is installed ---------------------------------------------------------------------------


def test_every_folder_of_modules_is_a_listed_package():
    outside = {"tests", "benchmarks", "docs", "build", "dist"}
    folders = {
        path.parent.relative_to(ROOT)
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in outside
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    found = {".".join(("vis4mer", *folder.parts)) for folder in folders}
    listed = CONFIG["tool"]["setuptools"]["packages"]
    assert found == set(listed)
    assert listed == sorted(listed)
    for name in listed:
        assert (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").is_file()


def test_exported_names():
    """What people write `vis4mer.` before; each is there, and explains itself."""
    assert sorted(vis4mer.__all__) == [
        "ExtractRequest",
        "TrainConfig",
        "extract_videos",
        "load_decoder",
        "open_cache",
        "predict_videos",
        "train_decoder",
        "train_decoders",
    ]
    assert set(vis4mer.__all__) <= set(dir(vis4mer))
    for name in vis4mer.__all__:
        assert getattr(vis4mer, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = vis4mer.unknown
    assert vis4mer.__version__ == CONFIG["project"]["version"]


# Untrusted input -----------------------------------------------------------------------------

NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}


def called(node: ast.Call) -> str:
    """`torch.load` for torch.load(…), `.load` for x().load(…)."""
    parts = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    parts.append(function.id if isinstance(function, ast.Name) else "")
    return ".".join(reversed(parts))


def keyword(node: ast.Call, name: str) -> object:
    for given in node.keywords:
        if given.arg == name and isinstance(given.value, ast.Constant):
            return given.value.value
    return None


@each_file
def test_nothing_is_unpickled_or_evaluated(path):
    tree = parse(path)
    assert not {name.split(".")[0] for name in imports_of(path, tree)} & NEVER_IMPORTED
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, line = called(node), f"{path}:{node.lineno}"
        assert name not in NEVER_CALLED, line
        if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert keyword(node, "weights_only") is True, line
        if name in ("np.load", "numpy.load"):
            assert not keyword(node, "allow_pickle"), line
        assert name not in ("os.system", "os.popen", "torch.hub.load", "yaml.load"), line
        assert keyword(node, "shell") is not True, line
        # An archive's names are somebody else's: members are read, and never laid out as files.
        assert name.rpartition(".")[2] not in ("extractall", "extract", "unpack_archive"), line


def test_torch_files_are_read_in_one_place_and_few_start_processes():
    """What loads checkpoints of torch looks at them first; what starts a process starts Python, or
    the ProxyCommand of its user's own ~/.ssh/config."""
    loads, starts = set(), set()
    for path in FILES:
        tree = parse(path)
        names = {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if "torch.load" in names:
            loads.add(path.relative_to(ROOT).as_posix())
        if "subprocess" in set(imports_of(path, tree)):
            starts.add(path.relative_to(ROOT).as_posix())
    assert loads == {"store/torchfile.py"}
    assert starts == {
        "decode/ablate/devices.py",
        "decode/bench/worker.py",
        "store/remote/ssh.py",
    }


@each_file
def test_no_error_is_swallowed(path):
    """`except Exception` or wider only where something is done about it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            wide = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            nothing = all(isinstance(each, (ast.Pass, ast.Continue)) for each in node.body)
            assert not (wide and nothing), f"{path}:{node.lineno}"


# What explains itself ------------------------------------------------------------------------


@each_file
def test_modules_and_public_names_have_docstrings(path):
    tree = parse(path)
    assert ast.get_docstring(tree) or not tree.body, f"{path} says not what it is for"
    bare = [
        f"{path.name}:{node.lineno} {node.name}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not is_plain(node)
    ]
    assert not bare


def is_plain(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """A function so short that its name and types say all, or a record of named fields."""
    if isinstance(node, ast.FunctionDef):
        return (node.end_lineno or 0) - node.body[0].lineno < 8
    return False


@each_file
def test_nothing_is_left_for_later(path):
    text = path.read_text()
    for word in ("NotImplementedError", "TODO", "FIXME"):
        assert word not in text, f"{path.name} has {word}"
