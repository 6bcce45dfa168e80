"""Engines turn token ids into logits: the reference graph, or the runtime that users will have.

``torch`` runs any artifact in this process, streamed by layer. The others are native: each loads
the written file in a fresh process (see ``worker``), and also shows that its tokenizer and its
generation work. Adding one is adding a row to :data:`ENGINES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol

from zenconvert.errors import MissingDependency, UsageError, ZenError

if TYPE_CHECKING:
    import torch

    from zenconvert.model.checkpoint import Checkpoint
    from zenconvert.texts.windows import Window


class Engine(Protocol):
    """A loaded artifact in a native runtime."""

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor: ...

    def encode(self, text: str) -> list[int]: ...

    def generate(self, ids: Sequence[int], count: int) -> list[int]: ...

    def details(self) -> dict[str, str]: ...

    def close(self) -> None: ...


class Load(Protocol):
    """Loads an artifact for these windows; ``room`` tokens are needed to generate."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str,
        room: int,
    ) -> Engine: ...


@dataclass(frozen=True, slots=True)
class NativeEngine:
    """What is known of an engine before it is loaded."""

    title: str
    package: str
    """The module that must be importable, and what to install for it."""
    install: str
    maker: str
    """Module of this package and class in it; imported when it is loaded."""
    gpu_only: bool = False
    build: str = ""
    """How to install it so that it runs on any processor, where the wheel's build decides that."""

    def load(self) -> Load:
        """What loads artifacts into it."""
        module, _, name = self.maker.partition(".")
        found: Load = getattr(import_module(f"{__name__}.{module}"), name)
        return found

    @property
    def mend(self) -> str:
        """What to do when it does not work on this machine."""
        return f"Build it anew: {self.build}" if self.build else f"Install {self.install} anew"


TORCH: Final = "torch"
ALL: Final = "all"

ENGINES: Final[dict[str, NativeEngine]] = {
    "llamacpp": NativeEngine(
        "llama.cpp",
        "llama_cpp",
        "zenconvert[llamacpp]",
        "llamacpp.LlamaCppEngine",
        build=(
            'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-cache-dir '
            "--no-binary llama-cpp-python llama-cpp-python"
        ),
    ),
    "transformers": NativeEngine(
        "transformers",
        "transformers",
        "transformers",
        "transformers_engine.TransformersEngine",
    ),
    "onnxruntime": NativeEngine(
        "onnxruntime",
        "onnxruntime",
        "zenconvert[onnxruntime]",
        "onnxruntime_engine.OnnxruntimeEngine",
    ),
    "auto-gptq": NativeEngine(
        "AutoGPTQ",
        "auto_gptq",
        "zenconvert[auto-gptq]",
        "autogptq.AutoGptqEngine",
    ),
    "autoawq": NativeEngine("AutoAWQ", "awq", "zenconvert[autoawq]", "autoawq.AutoAwqEngine"),
    "vllm": NativeEngine("vLLM", "vllm", "vllm", "vllm_engine.VllmEngine", gpu_only=True),
}


def engine_names() -> tuple[str, ...]:
    """Every engine, and ``all``."""
    return (TORCH, *ENGINES, ALL)


def runs(name: str, format_name: str) -> bool:
    """Whether a native engine runs artifacts of a format."""
    from zenconvert.formats.registry import format_named

    return name in format_named(format_name).engines


def refusal(name: str, checkpoint: Checkpoint) -> ZenError | None:
    """Why a native engine cannot run this artifact here, None where it can."""
    from zenconvert.formats.registry import FORMATS, format_named

    if not runs(name, checkpoint.format):
        able = [one for one in FORMATS.values() if name in one.engines]
        kind = "folders" if any("transformers" in one.engines for one in able) else "files"
        labels = ", ".join(sorted(one.label for one in able))
        return UsageError(
            f"the {name} engine runs {labels} {kind}; {checkpoint.path} is {checkpoint.format}"
        )
    if (missing := requirement(name)) is not None:
        return missing
    kernels = format_named(checkpoint.format).kernels if name == "transformers" else ()
    if kernels and not any(_installed(module) for module in kernels):
        return MissingDependency(
            f"the transformers engine needs kernels for {checkpoint.format}: install "
            + " or ".join(kernels)
        )
    return None


def requirement(name: str) -> ZenError | None:
    """What this machine lacks for a native engine, None where nothing is known to be missing."""
    engine = ENGINES[name]
    if not _installed(engine.package):
        return MissingDependency(
            f"the {name} engine needs {engine.package}; install {engine.install}"
        )
    if engine.gpu_only and not _has_gpu():
        return UsageError(f"the {name} engine needs a GPU, and torch sees none here")
    return None


def check(name: str, checkpoint: Checkpoint) -> None:
    """Raise UsageError or MissingDependency where a native engine cannot run this artifact here."""
    if (problem := refusal(name, checkpoint)) is not None:
        raise problem


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # blocked in sys.modules
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
