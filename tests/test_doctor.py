"""`doctor` finds what is missing or broken, and is stopped by none of it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import av
import pytest
import torch
from vis4mer import doctor
from vis4mer.doctor import Check, diagnose

PACKAGES = """
av decord google_crc32c h5py huggingface_hub matplotlib numcodecs numpy rich safetensors timm torch
torchcodec torchvision typer zarr
""".split()  # noqa: SIM905 - a list literal would take a line for each

WITHOUT_PACKAGES = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise {error}

sys.meta_path.insert(0, Broken())
from vis4mer.doctor import diagnose
for check in diagnose():
    print(check.name, check.ok, check.hint != "", sep="|")
"""


def found(checks, name: str) -> Check:
    matches = [check for check in checks if check.name == name]
    assert len(matches) == 1, [check.name for check in checks]
    return matches[0]


def test_what_is_installed_here_is_found_and_right():
    checks = diagnose()
    assert found(checks, "python").value.startswith(platform.python_version())
    assert torch.__version__ in found(checks, "torch").value
    assert av.__version__ in found(checks, "reader pyav").value
    assert "no `ffmpeg` program is needed" in found(checks, "reader pyav").value
    names = [check.name for check in checks]
    for name in ("torchvision", "timm", "zarr", "numcodecs", "safetensors", "weights hub"):
        assert name in names
    assert {c.name for c in checks if c.name.startswith("reader")} == {
        "reader pyav",
        "reader decord",
        "reader torchcodec",
    }
    needed = ("torch", "torchvision", "timm", "reader pyav", "zarr", "safetensors")
    assert all(found(checks, name).ok for name in needed)


@pytest.mark.parametrize(
    "error",
    [
        'ModuleNotFoundError("No module named " + repr(name))',
        'OSError("lib.so: undefined symbol")',
        'RuntimeError("operator does not exist")',
    ],
)
def test_packages_that_are_missing_or_broken_are_findings_not_crashes(error):
    code = WITHOUT_PACKAGES.format(packages=PACKAGES, error=error)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    rows = {name: (ok, hint) for name, ok, hint in lines}
    assert rows["python"] == ("True", "False")
    for name in ("torch", "timm", "numpy", "zarr", "safetensors", "google-crc32c", "rich"):
        assert rows[name] == ("False", "True"), name
    assert ("False", "True") in (rows.get("reader pyav"), rows.get("readers"))
    assert rows["torchvision"] == ("False", "True")


def test_a_fault_without_advice_is_refused():
    with pytest.raises(ValueError, match="what to do"):
        Check(name="x", value="broken", ok=False)


def fake_torch(*, cuda_version: str | None = None, devices=(), error: Exception | None = None):
    """As much of torch as the checks of accelerators touch."""

    def ones(size, *, device):
        assert device.startswith("cuda:")
        if error is not None:
            raise error
        return torch.ones(size)

    cuda = SimpleNamespace(
        is_available=lambda: bool(devices),
        device_count=lambda: len(devices),
        get_device_properties=lambda index: devices[index],
        is_bf16_supported=lambda **_: devices[0].native_bfloat16,
    )
    return SimpleNamespace(
        cuda=cuda,
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
        version=SimpleNamespace(cuda=cuda_version),
        ones=ones,
    )


def gpu(name: str, *, native_bfloat16: bool = True):
    return SimpleNamespace(name=name, total_memory=16 << 30, native_bfloat16=native_bfloat16)


def test_gpus_are_each_tried():
    works = list(doctor._gpus(fake_torch(cuda_version="13.0", devices=[gpu("A"), gpu("B")])))
    assert [(c.name, c.value, c.ok) for c in works] == [
        ("gpu 0", "A, 16 GiB", True),
        ("gpu 1", "B, 16 GiB", True),
    ]
    error = RuntimeError("CUDA error: no kernel image is available\nmore lines")
    (broken,) = doctor._gpus(fake_torch(cuda_version="13.0", devices=[gpu("C")], error=error))
    assert broken.ok is False
    assert "no kernel image is available" in broken.value
    assert "\n" not in broken.value


@pytest.mark.parametrize(
    ("present", "cuda_version", "ok", "said"),
    [
        (False, None, None, "everything runs on the CPU"),
        (False, "13.0", None, "everything runs on the CPU"),
        (True, None, False, "built for the CPU"),
        (True, "13.0", False, "cannot use it"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_a_fault(monkeypatch, present, cuda_version, ok, said):
    exists = doctor.Path.exists
    monkeypatch.setattr(
        doctor.Path, "exists", lambda p: present if str(p) == "/dev/nvidia0" else exists(p)
    )
    (check,) = doctor._gpus(fake_torch(cuda_version=cuda_version))
    assert check.ok is ok
    assert said in check.value


def test_bfloat16_is_said_to_be_native_or_not(monkeypatch):
    emulated = fake_torch(cuda_version="12.6", devices=[gpu("old", native_bfloat16=False)])
    assert "emulated" in doctor._bfloat16(emulated).value
    assert "float32" in doctor._bfloat16(emulated).hint
    for flags, said in (({"avx512_bf16"}, "avx512_bf16"), ({"avx2"}, "no CPU instructions")):
        monkeypatch.setattr(doctor, "_cpu_flags", lambda flags=flags: frozenset(flags))
        assert said in doctor._bfloat16(fake_torch()).value


def test_a_full_disk_and_a_lost_temporary_folder_are_faults(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(2, 1, 1 << 20))

    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    disk, temporary = doctor._places()
    assert (disk.ok, temporary.ok) == (False, False)
    assert "TMPDIR" in temporary.hint
    assert "Permission denied" in temporary.value


def test_offline_use_is_told(monkeypatch, tmp_path):
    (tmp_path / "models--timm--vit").mkdir()
    constants = SimpleNamespace(HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    (check,) = doctor._hub()
    assert check.value == f"1 models kept in {tmp_path}; offline"
    assert "HF_HUB_OFFLINE" in check.hint
    constants.HF_HUB_OFFLINE = False
    (check,) = doctor._hub()
    assert check.value.endswith("downloads allowed")
    assert check.hint == ""
