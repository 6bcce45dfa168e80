"""What this machine has for zenconvert, and what it lacks: packages, engines that work, memory."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from zenconvert.base.machine import free_disk, free_ram, usable_cores
from zenconvert.verification.cache import cache_folder
from zenconvert.verification.engines import ENGINES, TORCH
from zenconvert.verification.probing import Probe, gpus, probe
from zenconvert.version import __version__

_NEEDED: Final = (
    "numpy", "torch", "transformers", "tokenizers", "safetensors", "numba", "onnx", "jinja2",
    "huggingface_hub",
)  # fmt: skip
_OPTIONAL: Final = {
    "llama-cpp-python": "runs GGUF files: zenconvert[llamacpp]",
    "onnxruntime": "runs ONNX folders: zenconvert[onnxruntime]",
    "gptqmodel": "runs GPTQ and AWQ folders in transformers: zenconvert[gptqmodel]",
    "auto-gptq": "runs GPTQ folders: zenconvert[auto-gptq], in an environment of its own",
    "autoawq": "runs AWQ folders: zenconvert[autoawq], in an environment of its own",
    "vllm": "serves HF, GPTQ, AWQ and compressed-tensors folders on GPUs: vllm",
    "lm_eval": "asks tasks: zenconvert[tasks]",
    "datasets": "reads calibration texts of the Hub: zenconvert[datasets]",
    "ray": "spreads a release over machines: zenconvert[ray]",
    "model-signing": "signs releases: zenconvert[signing]",
}
_SCARCE_RAM: Final = 2 * 10**9
_SCARCE_DISK: Final = 2 * 10**9


@dataclass(frozen=True, slots=True)
class WritableFolder:
    """A folder that is written to."""

    path: str
    writable: bool
    free: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found."""

    version: str
    """Of zenconvert."""
    python: str
    system: str
    packages: dict[str, str | None]
    """Distribution → version, None where it is not installed."""
    engines: tuple[Probe, ...]
    gpus: tuple[dict[str, Any], ...]
    """``name``, ``memory`` and ``free`` in bytes."""
    cores: int
    ram_free: int
    cache: WritableFolder
    kernels: WritableFolder
    """Where numba keeps what it compiled."""
    here: WritableFolder
    """The current folder."""
    advice: tuple[str, ...]
    """What to install or mend, most urgent first."""

    @property
    def is_well(self) -> bool:
        """Whether everything that is always needed is here, and every engine that is installed
        works."""
        return not self.missing and all(one.works for one in self.engines if one.installed)

    @property
    def missing(self) -> tuple[str, ...]:
        """Distributions that are always needed and not installed."""
        return tuple(name for name in _NEEDED if self.packages[name] is None)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "is_well": self.is_well}


def examine(
    engines: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Diagnosis:
    """Look at this machine; every engine that is installed runs the bundled model.

    ``engines`` names those to try; all by default.
    """
    names = list(engines) if engines is not None else [TORCH, *ENGINES]
    probes = []
    for number, name in enumerate(names):
        if progress is not None:
            progress(f"trying {name}", number, len(names))
        probes.append(probe(name))
    packages = {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    cache, kernels, here = (_place(p) for p in (cache_folder(), kernel_folder(), Path.cwd()))
    ram = free_ram()
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.machine()}, {processor()}",
        packages=packages,
        engines=tuple(probes),
        gpus=tuple(gpus()),
        cores=usable_cores(),
        ram_free=ram,
        cache=cache,
        kernels=kernels,
        here=here,
        advice=tuple(_advice(packages, probes, cache, kernels, ram)),
    )


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "an unknown processor"


def kernel_folder() -> Path:
    """Where numba keeps compiled kernels: ``$NUMBA_CACHE_DIR``, beside the code where that can be
    written, else the user's cache folder (numba's own order)."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    from zenconvert.ggml import blocks

    beside = Path(blocks.__file__).resolve().parent / "__pycache__"
    if _writable(beside):
        return beside
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "numba"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _place(folder: Path) -> WritableFolder:
    return WritableFolder(str(folder), _writable(folder), free_disk(folder.absolute()))


def _writable(folder: Path) -> bool:
    """Whether a file can be made there, or in what there is of the way there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _advice(
    packages: dict[str, str | None],
    probes: Sequence[Probe],
    cache: WritableFolder,
    kernels: WritableFolder,
    ram: int,
) -> list[str]:
    needed = [name for name in _NEEDED if packages[name] is None]
    found = [f"{name} is missing and always needed: install zenconvert anew" for name in needed]
    found += [
        f"the {one.engine} engine does not work here: {one.text}. {one.mend}".rstrip()
        for one in probes
        if one.installed and not one.works
    ]
    if not cache.writable:
        found.append(
            f"the cache folder {cache.path} cannot be written: every verification runs the "
            "reference again; set ZENCONVERT_CACHE to a folder that can"
        )
    if cache.free < _SCARCE_DISK:
        found.append(f"there is little disk left for the cache folder {cache.path}")
    if not kernels.writable:
        found.append(
            f"numba cannot keep its kernels in {kernels.path}: every run compiles them again; set "
            "NUMBA_CACHE_DIR to a folder that can be written"
        )
    if ram < _SCARCE_RAM:
        found.append("there is little memory left; close something")
    found += [
        f"{name} is not installed; it {what}"
        for name, what in _OPTIONAL.items()
        if packages[name] is None
    ]
    return found
