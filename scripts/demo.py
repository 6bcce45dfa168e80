"""The demonstration that ``scripts/demo`` runs: convert, calibrate, quantize, verify, generate."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

OUT = Path("demo-output")
SOURCE = "builtin:zen-nano"
GGUF = {"gguf:q4_k_m": OUT / "zen-nano-Q4_K_M.gguf", "gguf:q8_0": OUT / "zen-nano-Q8_0.gguf"}
FOLDERS = {"gptq:w4g128": OUT / "zen-nano-GPTQ", "awq:w4g128": OUT / "zen-nano-AWQ"}
STATISTICS = OUT / "zen-nano.stats"
PROMPT = "The weather in the mountains"


def run(*arguments: str) -> None:
    """Show a command and run it; the demonstration ends with its exit code when it fails."""
    print(f"\n$ zenconvert {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "zenconvert", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def convert_and_verify_gguf() -> None:
    """GGUF, measured through transformers and through llama.cpp itself."""
    for target, path in GGUF.items():
        run("plan", SOURCE, "--to", target)
        run("convert", SOURCE, str(path), "--to", target, "--force")
    engines = ["torch", "llamacpp"] if find_spec("llama_cpp") else ["torch"]
    for path in GGUF.values():
        for engine in engines:
            report = OUT / f"{path.stem}.{engine}.json"
            run("verify", SOURCE, str(path), "--engine", engine, "--json", str(report))


def calibrate_and_quantize() -> None:
    """GPTQ and AWQ with statistics of ten languages."""
    purposes = ("--for", "gptq,awq", "--force")
    run("calibrate", SOURCE, str(STATISTICS), *purposes)
    for target, path in FOLDERS.items():
        run("convert", SOURCE, str(path), "--to", target, "--stats", str(STATISTICS), "--force")
        run("verify", SOURCE, str(path), "--json", str(OUT / f"{path.name}.json"))


def repack() -> None:
    """GPTQ → AWQ → GPTQ: the same integers in another order, and back."""
    gptq, awq, again = FOLDERS["gptq:w4g128"], OUT / "repacked-AWQ", OUT / "repacked-GPTQ"
    run("convert", str(gptq), str(awq), "--to", "awq:w4g128", "--exact", "--force")
    run("convert", str(awq), str(again), "--to", "gptq:w4g128", "--exact", "--force")
    first, last = (folder / "model.safetensors" for folder in (gptq, again))
    if first.read_bytes() != last.read_bytes():
        sys.exit(f"{first} and {last} differ")
    print(f"\n{first} and {last} are the same, byte for byte")


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
    run("inspect", SOURCE)
    convert_and_verify_gguf()
    calibrate_and_quantize()
    repack()
    if find_spec("llama_cpp"):
        generate(GGUF["gguf:q4_k_m"])
    else:
        print("\nllama-cpp-python is not installed: the llama.cpp parts were left out")
    print(f"\nfiles and reports are in {OUT}/")


if __name__ == "__main__":
    main()
