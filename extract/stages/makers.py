"""What made an entry, beyond what its cache's fingerprint says: versions, device, host, time.

    {"reader": "pyav 18.0.0", "decoder": "libavcodec 62.28.102", "device": "cpu AMD EPYC, AVX2", …}

Written into every record. None of it decides what may be written where: an upgrade locks nobody
out; but a difference may change the last bits of a value, and whoever compares figures can see it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import torch

from ... import __version__
from ..backbones.clips import is_clip_backbone
from ..backbones.loading import Backbone
from ..backbones.plugins import is_plugin
from ..readers.base import Reader

_CPUS = Path("/proc/cpuinfo")  # Linux; elsewhere `platform` knows the processor
_DRIVER = Path("/proc/driver/nvidia/version")
_READ_BYTES = 4096  # of each: the first processor and the first line are all that is asked


def provenance(backbone: Backbone, reader: Reader) -> dict[str, str]:
    """The provenance of entries that this backbone and reader make here and now."""
    return {
        "vis4mer": __version__,
        "reader": f"{reader.name} {reader.version}",
        **_decoder(reader.name),
        "torch": torch.__version__,
        **_models_version(backbone.name),
        "weights_sha256": backbone.weights_sha256,
        "device": _device(backbone.device),
        **_cuda(backbone.device),
        "compute_dtype": backbone.compute_dtype,
        **({"compiled": "torch.compile"} if backbone.compiled_frames else {}),
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _decoder(reader: str) -> dict[str, str]:
    """The library that turns bytes into pictures, where a reader says which it has."""
    if reader != "pyav":  # decord carries an FFmpeg of its own, whose version it does not tell
        return {}
    import av

    version = av.library_versions.get("libavcodec")
    return {"decoder": f"libavcodec {'.'.join(map(str, version))}"} if version else {}


def _models_version(name: str) -> dict[str, str]:
    """The library that the model is from; of a plug-in nobody knows."""
    if is_plugin(name):
        return {}
    models = "torchvision" if is_clip_backbone(name) else "timm"
    return {models: importlib.metadata.version(models)}


def _device(device: torch.device) -> str:
    """The device and, of a processor, the instructions that choose the kernels."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{device.type} {platform.processor() or platform.machine()}"
    model = _found(r"model name\s*:\s*(.+)", _CPUS) or platform.processor() or platform.machine()
    return f"cpu {model}, {torch.backends.cpu.get_cpu_capability()}"


def _cuda(device: torch.device) -> dict[str, str]:
    """The CUDA libraries that torch was built for, and the driver below them."""
    if device.type != "cuda":
        return {}
    driver = _found(r"Kernel Module\D*?([0-9]+(?:\.[0-9]+)+)", _DRIVER)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch gives no types
    about = [torch.version.cuda or "unknown", f"cudnn {cudnn}"]
    return {"cuda": ", ".join([*about, *([f"driver {driver}"] if driver else [])])}


def _found(pattern: str, path: Path) -> str | None:
    """The first match of a group in the beginning of a file of the system."""
    try:
        with path.open(errors="replace") as file:
            match = re.search(pattern, file.read(_READ_BYTES))
    except OSError:
        return None
    return match[1].strip() if match else None
