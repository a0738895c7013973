"""The shim lets timm be imported, and stays away where the real operators load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from vis4mer.extract.backbones import torchvision_shim


def test_timm_can_be_imported_after_it() -> None:
    program = (
        "from vis4mer.extract.backbones.torchvision_shim import prepare_torchvision\n"
        "prepare_torchvision(); prepare_torchvision()\n"
        "import timm, torchvision, torch\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_is_defined_where_the_operators_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    defined: list[str] = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torchvision_shim, "_load_real_operators", lambda: True)
    monkeypatch.setattr(torch.library, "Library", lambda *args: defined.append(args[0]))
    assert torchvision_shim.prepare_torchvision.__wrapped__() is None
    assert defined == []


def test_a_library_that_does_not_load_is_no_operator(tmp_path, monkeypatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "_C.so").write_bytes(b"not a library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    missing = not hasattr(torch.ops.torchvision, "nms")
    assert torchvision_shim._load_real_operators() is not missing
