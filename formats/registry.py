"""The formats by name. Adding a format is adding a row to :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from zenconvert.base.source_files import is_there, reading, size_of, what_it_is
from zenconvert.errors import InvalidInput, Unsupported, UsageError
from zenconvert.formats import quantization, quantized
from zenconvert.formats.awq import reader as awq_reader
from zenconvert.formats.awq import writer as awq_writer
from zenconvert.formats.ct import reader as ct_reader
from zenconvert.formats.ct import writer as ct_writer
from zenconvert.formats.gguf import facts as gguf_facts
from zenconvert.formats.gguf import mixtures
from zenconvert.formats.gguf import reader as gguf_reader
from zenconvert.formats.gguf import writer as gguf_writer
from zenconvert.formats.gptq import reader as gptq_reader
from zenconvert.formats.gptq import writer as gptq_writer
from zenconvert.formats.hf import writer as hf_writer
from zenconvert.formats.hf.weights import ADAPTER, adapter_problem
from zenconvert.formats.onnx.read import reader as onnx_reader
from zenconvert.formats.onnx.write import writer as onnx_writer
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Choice, Layout
from zenconvert.model.meaning import Fact
from zenconvert.model.target import Options, Solver, Target


class Chooser(Protocol):
    """Decides the name, shape and encoding of every output tensor, in file order."""

    def __call__(
        self, checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
    ) -> list[Choice]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One on-disk format: how to recognise, read and write it."""

    name: str
    title: str
    detect: Callable[[Path], bool] | None
    """Whether a path is of it, for what is no folder of safetensors; those say themselves how they
    are quantized, and :attr:`methods` tells."""
    open: Callable[[Path], Checkpoint]
    choose: Chooser
    lay_out: Callable[[Checkpoint, Target, list[Choice], Options, str], Layout]
    """``(checkpoint, target, choices, options, output name) -> layout``"""
    facts: Callable[[Checkpoint, Target, Options], list[Fact]]
    """What becomes of the facts of a checkpoint that are not tensors."""
    types: tuple[str, ...]
    """Target types; the first is the default."""
    is_weighed: bool = True
    """Some of its types are rounded with importance weights."""
    open_with: Callable[[Path, Path], Checkpoint] | None = None
    """Opens files that may lack a config, with one that is named."""
    methods: tuple[str, ...] = ()
    """Of quantization that make a folder of safetensors one of this format."""
    suffix: str | None = None
    """Of the one file that it is; None for a folder."""
    solvers: tuple[Solver, ...] = ()
    """What can find its codes where there are statistics."""
    solver: Solver | None = None
    """Which of them does unless another is asked for; None where its types have quantizers of their
    own."""
    engines: tuple[str, ...] = ()
    """Native engines that run it."""
    kernels: tuple[str, ...] = ()
    """Modules of which transformers needs one to run it."""
    serving_dtype: str | None = None
    """The type that it is served in; None where its config names one."""
    near_type: str | None = None
    """A type near to the original, to try engines with; None where the bundled model is of it."""
    library: str = "transformers"
    """What the Hub calls the library that loads it."""
    packages: tuple[str, ...] = ("transformers",)
    """What is installed to load it."""
    keeps_further: bool = False
    """Its files have a place for layers that predict further tokens."""
    menu: tuple[str, ...] = ()
    """Types that its ``auto`` chooses from by default; none where it has no such target."""
    names_pretokenizer: bool = False
    """Its files say by one name how text is cut before merges."""

    @property
    def label(self) -> str:
        """As people write it in the name of a variant."""
        return self.name.upper()

    @property
    def tag(self) -> str:
        """As the Hub calls it."""
        return self.methods[0] if self.methods else self.name

    @property
    def is_file(self) -> bool:
        """Whether an artifact is one file, and not a folder."""
        return self.suffix is not None


FORMATS: Final[dict[str, Format]] = {
    "onnx": Format(
        "onnx",
        "ONNX",
        onnx_reader.detect,
        onnx_reader.open_checkpoint,
        onnx_writer.choose,
        onnx_writer.lay_out,
        onnx_writer.facts,
        onnx_writer.TYPES,
        open_with=onnx_reader.open_checkpoint,
        solvers=("gptq", "awq"),
        solver="gptq",
        engines=("onnxruntime",),
        near_type="int8",
        library="onnx",
    ),
    "gptq": Format(
        "gptq",
        "GPTQ",
        None,
        gptq_reader.open_checkpoint,
        gptq_writer.choose,
        gptq_writer.lay_out,
        gptq_writer.facts,
        gptq_writer.TYPES,
        solvers=("gptq", "awq"),
        solver="gptq",
        engines=("transformers", "auto-gptq", "vllm"),
        methods=("gptq",),
        kernels=("gptqmodel", "auto_gptq"),
        near_type=gptq_writer.TYPES[0],
        packages=("transformers", "gptqmodel"),
        keeps_further=True,
    ),
    "awq": Format(
        "awq",
        "AWQ",
        None,
        awq_reader.open_checkpoint,
        awq_writer.choose,
        awq_writer.lay_out,
        awq_writer.facts,
        awq_writer.TYPES,
        solvers=("gptq", "awq"),
        solver="awq",
        engines=("transformers", "autoawq", "vllm"),
        methods=("awq",),
        kernels=("gptqmodel", "awq"),
        near_type=awq_writer.TYPES[0],
        packages=("transformers", "gptqmodel"),
        keeps_further=True,
    ),
    "ct": Format(
        "ct",
        "compressed-tensors",
        None,
        ct_reader.open_checkpoint,
        ct_writer.choose,
        ct_writer.lay_out,
        ct_writer.facts,
        ct_writer.TYPES,
        solvers=("gptq", "awq"),
        solver="gptq",
        engines=("transformers", "vllm"),
        methods=(ct_writer.METHOD,),
        kernels=("compressed_tensors",),
        near_type="w8a16-g-1",
        packages=("transformers", "compressed-tensors"),
        keeps_further=True,
    ),
    "hf": Format(
        "hf",
        "HF safetensors",
        None,
        quantized.open_checkpoint,
        hf_writer.choose,
        hf_writer.lay_out,
        hf_writer.facts,
        hf_writer.TYPES,
        is_weighed=False,
        engines=("transformers", "vllm"),
        keeps_further=True,
    ),
    "gguf": Format(
        "gguf",
        "GGUF",
        gguf_reader.detect,
        gguf_reader.open_checkpoint,
        gguf_writer.choose,
        gguf_writer.lay_out,
        gguf_facts.facts,
        (gguf_writer.DEFAULT_TYPE, *(t for t in mixtures.FILE_TYPES if t != "bf16")),
        suffix=".gguf",
        solvers=("gptq",),
        engines=("llamacpp",),
        serving_dtype="float16",
        near_type="q8_0",
        library="gguf",
        menu=("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0"),
        names_pretokenizer=True,
        packages=(),
    ),
}


def format_named(name: str) -> Format:
    """The format of a target. Raises UsageError."""
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(
            f"there is no format {name!r}; known are {known}; write format[:type], e.g. gguf:q4_k_m"
        )
    return FORMATS[name]


def detect(path: Path) -> Format:
    """The format of a checkpoint on disk. Raises SourceNotFound, InvalidInput or Unsupported."""
    if not path.is_dir():
        size_of(path)
    with reading(path):
        found = _found(path)
    if found is not None:
        return found
    if path.is_dir():
        raise _unknown_folder(path)
    raise _unknown_file(path)


def _found(path: Path) -> Format | None:
    for candidate in FORMATS.values():
        if candidate.detect is not None and candidate.detect(path):
            return candidate
    if not (path / "config.json").is_file():
        return None
    found = quantization.of_folder(path)
    own = (f for f in FORMATS.values() if found is not None and found.method in f.methods)
    return next(own, FORMATS["hf"])


_HINT: Final = "expected a folder with config.json, or a .gguf or .onnx file"


def _unknown_folder(path: Path) -> Unsupported | InvalidInput:
    if is_there(path / ADAPTER):
        return adapter_problem(path)
    if inner := sorted(path.glob("*/config.json")):
        return Unsupported(f"{path}: config.json is one folder further in; name {inner[0].parent}")
    if any(path.glob("*.safetensors")):
        return Unsupported(f"{path}: there are weights and no config.json beside them; add it")
    if snapshots := sorted(path.glob("snapshots/*/config.json")):
        return Unsupported(f"{path}: a folder of the Hub cache; name {snapshots[-1].parent}")
    if ggufs := sorted(path.glob("*.gguf")):
        names = ", ".join(str(file) for file in ggufs[:3])
        return Unsupported(f"{path}: a folder of GGUF files; name one of them: {names}")
    return Unsupported(f"{path}: no format that zenconvert reads; {_HINT}")


def _unknown_file(path: Path) -> Unsupported | InvalidInput:
    if path.suffix == ".incomplete":
        return Unsupported(f"{path}: half a download; get the rest of it")
    if (other := what_it_is(path)) is not None:
        return Unsupported(f"{path}: it is {other}")
    if path.suffix in {".safetensors", ".json"}:
        return Unsupported(f"{path}: one file of a model; name its folder {path.parent} instead")
    return Unsupported(f"{path}: no format that zenconvert reads; {_HINT}")
