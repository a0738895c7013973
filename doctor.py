"""What is installed, whether it works, and what to do where it does not.

`diagnose` finds out by trying: a package counts as there when it imports. It sends nothing over the
network, changes nothing, and no package that is missing or broken stops it: that is what it is
asked to find. Knows how nothing is shown.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from . import __version__
from .extract.stages.cores import usable_cores
from .store.wording import describe_error

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 2 << 30
_REINSTALL = "run `pip install -c constraints.txt .` again in this environment"

# module → what fails without it. torch, torchvision and the video readers have checks of their own.
_PACKAGES = {
    "numpy": "everything",
    "zarr": "reading caches that other tools wrote, and compressed ones",
    "numcodecs": "reading caches that other tools wrote, and compressed ones",
    "safetensors": "training and loading decoders",
    "matplotlib": "drawing training curves",
    "h5py": "importing and exporting HDF5",
    "typer": "the command line",
    "rich": "the command line",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. ok: None where there is nothing to be right or wrong. hint: what to do."""

    name: str
    value: str
    ok: bool | None = None
    hint: str = ""

    def __post_init__(self) -> None:
        if self.ok is False and not self.hint:
            raise ValueError(f"check {self.name!r} says what is wrong but not what to do")


def diagnose() -> list[Check]:
    """All checks, in the order in which one would look."""
    groups: list[Callable[[], Iterator[Check]]] = [
        _python,
        _torch,
        _torchvision,
        _timm,
        _readers,
        _packages,
        _crc32c,
        _places,
        _hub,
    ]
    return [check for group in groups for check in _guarded(group)]


def _guarded(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a group; one that a broken package breaks becomes a finding itself."""
    try:
        yield from group()
    except Exception as error:  # a half-broken package may raise anything at all
        yield Check(
            name=group.__name__.strip("_"),
            value=f"cannot be checked: {describe_error(error)}",
            ok=False,
            hint=_REINSTALL,
        )


def _try_import(module: str) -> ModuleType | str:
    """The module, or in one line why it does not import."""
    try:
        return importlib.import_module(module)
    except (
        Exception
    ) as error:  # libraries built for another Python, torch or CUDA fail in many ways
        return describe_error(error)


def _version(module: ModuleType) -> str:
    """The version as the module itself says, else as the package was installed."""
    if (stated := getattr(module, "__version__", None)) is not None:
        return str(stated)
    try:
        return importlib.metadata.version(module.__name__)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _python() -> Iterator[Check]:
    wanted = ".".join(map(str, MIN_PYTHON))
    yield Check(
        name="python",
        value=f"{platform.python_version()} ({sys.executable}), {platform.platform()}",
        ok=sys.version_info >= MIN_PYTHON,
        hint="" if sys.version_info >= MIN_PYTHON else f"install Python {wanted} or newer",
    )
    yield Check(name="vis4mer", value=f"{__version__} ({Path(__file__).parent})", ok=True)


def _torch() -> Iterator[Check]:
    torch = _try_import("torch")
    if isinstance(torch, str):
        yield _broken("torch", torch, "everything but looking into caches")
        return
    cuda = torch.version.cuda
    built = f"built for CUDA {cuda}" if cuda else "built for the CPU"
    yield Check(name="torch", value=f"{_version(torch)}, {built}", ok=True)
    yield Check(
        name="cpu",
        value=f"{usable_cores()} cores, {torch.get_num_threads()} threads in torch",
        ok=True,
    )
    yield from _gpus(torch)
    yield _bfloat16(torch)


def _gpus(torch: Any) -> Iterator[Check]:
    """The accelerators torch can use, each tried once; or why it uses none."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(torch, index)
    elif torch.backends.mps.is_available():
        yield Check(name="gpu", value="Apple GPU (mps)", ok=True)
    elif not Path("/dev/nvidia0").exists():
        yield Check(name="gpu", value="none: everything runs on the CPU")
    elif torch.version.cuda is None:
        yield Check(
            name="gpu",
            value="this machine has one, but torch is built for the CPU",
            ok=False,
            hint="install a CUDA build of torch (pytorch.org says which fits the driver)",
        )
    else:
        yield Check(
            name="gpu",
            value="this machine has one, but torch cannot use it",
            ok=False,
            hint="compare the driver (`nvidia-smi`) with torch's CUDA version, and see whether "
            "CUDA_VISIBLE_DEVICES hides it",
        )


def _gpu(torch: Any, index: int) -> Check:
    about = torch.cuda.get_device_properties(index)
    value = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    try:
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except RuntimeError as error:  # no kernels for its architecture, or all of its memory is taken
        return Check(
            name=f"gpu {index}",
            value=f"{value}: {describe_error(error)}",
            ok=False,
            hint="choose another with `--device`, or install the build of torch that fits it",
        )
    return Check(name=f"gpu {index}", value=value, ok=True)


def _bfloat16(torch: Any) -> Check:
    """Where bfloat16 is fast. On a CPU it is only used when asked for, so its lack is no fault."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Check(
            name="bfloat16",
            value="native on the GPU" if native else "emulated on the GPU",
            ok=True if native else None,
            hint="" if native else "`--set precision=float32` trains as fast or faster there",
        )
    flags = _cpu_flags()
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    value = f"native on the CPU ({', '.join(found)})" if found else "no CPU instructions found"
    return Check(name="bfloat16", value=f"{value}; float32 is what a CPU uses by default")


def _cpu_flags() -> frozenset[str]:
    """Instruction set names as Linux lists them; none elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    lines = info.read_text(errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _torchvision() -> Iterator[Check]:
    try:
        from .extract.backbones.torchvision_shim import prepare_torchvision

        replaced = prepare_torchvision() is not None
    except ImportError as error:
        yield _broken("torchvision", describe_error(error), "extraction")
        return
    torchvision = _try_import("torchvision")
    if isinstance(torchvision, str):
        yield _broken("torchvision", torchvision, "extraction")
        return
    operators = (
        "its operators do not load beside this torch (nothing here uses them; stand-ins are "
        "declared so that it imports)"
        if replaced
        else "with its operators"
    )
    yield Check(name="torchvision", value=f"{_version(torchvision)}, {operators}", ok=True)


def _timm() -> Iterator[Check]:
    # After torchvision, which it imports and which may need its stand-ins.
    yield _package("timm", needed_for="extraction")


def _readers() -> Iterator[Check]:
    try:
        from .extract.readers import available_readers
    except ImportError as error:
        yield _broken("reader pyav", describe_error(error), "reading videos")
        return
    for reader in available_readers():
        name = f"reader {reader.name}"
        if reader.version is not None:
            value = f"{reader.version}{_ffmpeg() if reader.name == 'pyav' else ''}"
            yield Check(name=name, value=value, ok=True)
        elif reader.name == "pyav":
            yield _broken(name, reader.problem or "not there", "reading videos")
        else:
            value = f"not usable: {reader.problem}"
            yield Check(name=name, value=value, hint="optional; the default reader is pyav")


def _ffmpeg() -> str:
    """PyAV brings FFmpeg's libraries; the `ffmpeg` program is never called."""
    av = _try_import("av")
    release = getattr(av, "ffmpeg_version_info", None)
    return f" with FFmpeg {release} inside (no `ffmpeg` program is needed)" if release else ""


def _packages() -> Iterator[Check]:
    for module, needed_for in _PACKAGES.items():
        yield _package(module, needed_for=needed_for)


def _package(module: str, *, needed_for: str) -> Check:
    found = _try_import(module)
    if isinstance(found, str):
        return _broken(module, found, needed_for)
    return Check(name=module, value=_version(found), ok=True)


def _broken(name: str, reason: str, needed_for: str) -> Check:
    return Check(
        name=name,
        value=f"missing or broken: {reason}",
        ok=False,
        hint=f"needed for {needed_for}; {_REINSTALL}",
    )


def _crc32c() -> Iterator[Check]:
    module = _try_import("google_crc32c")
    if isinstance(module, str):
        yield _broken("google-crc32c", module, "reading and writing caches")
        return
    compiled = getattr(module, "implementation", "c") == "c"
    yield Check(
        name="google-crc32c",
        value=f"{_version(module)}, {'compiled' if compiled else 'in pure Python'}",
        ok=compiled,
        hint=""
        if compiled
        else "checksums will be very slow; `pip install --force-reinstall google-crc32c` on a "
        "platform with a compiled wheel",
    )


def _places() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free >= MIN_FREE_BYTES
    yield Check(
        name="disk",
        value=f"{free / 2**30:.1f} GiB free in {Path.cwd()}",
        ok=enough,
        hint=""
        if enough
        else "free some space: a minute of video at 1 fps takes 24 MB as tokens of a large ViT",
    )
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    except OSError as error:
        yield Check(
            name="temporary files",
            value=f"cannot be written: {error.strerror}",
            ok=False,
            hint="set TMPDIR to a directory that you may write to and that is not full",
        )
        return
    yield Check(name="temporary files", value=f"{tempfile.gettempdir()} can be written", ok=True)


def _hub() -> Iterator[Check]:
    """Where backbone weights are kept once downloaded. The network is not tried."""
    hub = _try_import("huggingface_hub.constants")
    if isinstance(hub, str):
        yield _broken("weights hub", hub, "downloading backbone weights")
        return
    folder = Path(hub.HF_HUB_CACHE)
    models = len(list(folder.glob("models--*")))
    offline = bool(hub.HF_HUB_OFFLINE)
    yield Check(
        name="weights hub",
        value=f"{models} models kept in {folder}; {'offline' if offline else 'downloads allowed'}",
        hint="HF_HUB_OFFLINE is set: only models kept there load; `--weights FILE` loads any other"
        if offline
        else "",
    )
