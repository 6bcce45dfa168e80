"""The demonstration that ``scripts/demo`` runs: a release over all formats, and what is exact."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from zenconvert import diff
from zenconvert.base.processes import module_command
from zenconvert.errors import GateInconclusive

OUT = Path("demo-output")
SOURCE = "builtin:zen-nano"
RECIPE = "scripts/demo.toml"
RELEASE = OUT / "release"
PROMPT = "The weather in the mountains"
LANGUAGES = "en,zh,ar"  # of ten, as in the recipe


def run(*arguments: str, accept: tuple[int, ...] = (0,)) -> None:
    """Show a command and run it; the demonstration stops with its exit code when it fails."""
    print(f"\n$ zenconvert {' '.join(arguments)}", flush=True)
    code = subprocess.run(module_command("zenconvert", *arguments), check=False).returncode
    if code not in accept:
        sys.exit(code)


def statistics() -> None:
    """Calibrate once, convert from the file: another way to the same kind of result."""
    stats, out = OUT / "zen-nano.stats", OUT / "zen-nano-GPTQ-3bit"
    few = ("--languages", LANGUAGES, "--tokens-per-language", "2000")
    run("calibrate", SOURCE, str(stats), "--for", "gptq", *few, "--force")
    run("convert", SOURCE, str(out), "--to", "gptq:w3g128", "--stats", str(stats), "--force")
    run("verify", SOURCE, str(out), "--languages", LANGUAGES)


def release() -> None:
    """Eight variants over all formats, measured in the engines that are here, with evidence."""
    # an engine that does not work here makes a verdict INCONCLUSIVE: the others' figures stand
    run("release", RECIPE, accept=(0, GateInconclusive.exit_code))
    run("release", "verify", str(RELEASE))


def same_bytes(first: Path, last: Path) -> None:
    """Both folders hold the same weights, byte for byte."""
    one, other = (folder / "model.safetensors" for folder in (first, last))
    if one.read_bytes() != other.read_bytes():
        sys.exit(f"{one} and {other} differ")
    print(f"\n{one} and {other} are the same, byte for byte")


def same_numbers(first: Path, last: Path) -> None:
    """Both hold the same tensors, number by number."""
    found = diff(first, last)
    changed = [tensor.name for tensor in found.tensors if not tensor.equal]
    if wrong := [*found.only_first, *found.only_second, *changed]:
        sys.exit(f"{first} and {last} differ in {wrong[0]}")
    print(f"\nall {len(found.tensors)} tensors of {first} and {last} hold the same numbers")


def repack_gptq() -> None:
    """GPTQ → AWQ → GPTQ: the same integers in another order, and back."""
    gptq, awq, again = RELEASE / "GPTQ-w4g128", OUT / "repacked-AWQ", OUT / "repacked-GPTQ"
    run("convert", str(gptq), str(awq), "--to", "awq:w4g128", "--exact", "--force")
    run("convert", str(awq), str(again), "--to", "gptq:w4g128", "--exact", "--force")
    same_bytes(gptq, again)


def repack_onnx() -> None:
    """ONNX int4 → GPTQ, and → GGUF Q4_0: the same numbers, bit for bit, in every tensor."""
    onnx = RELEASE / "ONNX-int4"
    gptq, gguf = OUT / "from-ONNX-GPTQ", OUT / "from-ONNX-Q4_0.gguf"
    floats = ("--output-type", "f32", "--embedding-type", "f32")
    run("convert", str(onnx), str(gptq), "--to", "gptq", "--exact", "--force")
    run("convert", str(onnx), str(gguf), "--to", "gguf:q4_0", *floats, "--exact", "--force")
    for path in (gptq, gguf):
        same_numbers(onnx, path)


def generate(path: Path) -> None:
    """Let llama.cpp continue a sentence from the file."""
    import llama_cpp

    model = llama_cpp.Llama(model_path=str(path), n_ctx=256, verbose=False)
    output = model.create_completion(PROMPT, max_tokens=24, temperature=0.0)
    text = output["choices"][0]["text"]
    print(f"\nllama.cpp on {path.name}:\n  {PROMPT}{text}")


def main() -> None:
    """Run the demonstration."""
    OUT.mkdir(exist_ok=True)
    release()
    run("inspect", SOURCE)
    repack_gptq()
    repack_onnx()
    statistics()
    if find_spec("llama_cpp") is not None:
        generate(RELEASE / "GGUF" / "zen-nano-Q4_K_M.gguf")
    else:
        print(
            "\nllama.cpp is not here, and has to be compiled: `scripts/demo --llamacpp` builds it "
            "once and measures the GGUF files in it as well"
        )
    print(f"\nthe release, with report.html and cards, is in {RELEASE}/")


if __name__ == "__main__":
    main()
