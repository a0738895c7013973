"""Everything that must hold before a change is kept: lint, format, types, tests.

Run it with the Python of an environment that has `.[test]` installed. Types are checked on the
installed package and from another directory, because that is what users import. Arguments go to
pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path = ROOT) -> int:
    print("$", *command, flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, check=False).returncode


def main(pytest_arguments: list[str]) -> int:
    failures = [
        run("ruff", "check", "."),
        run("ruff", "format", "--check", "."),
    ]
    with tempfile.TemporaryDirectory() as elsewhere:
        config = str(ROOT / "pyproject.toml")
        failures.append(run("mypy", "--config-file", config, "-p", "vis4mer", cwd=Path(elsewhere)))
    parallel = ("-n", "auto", "--maxprocesses", "8")
    failures.append(run("pytest", "-q", *parallel, *pytest_arguments))
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
