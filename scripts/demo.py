"""The demonstration that ``scripts/demo`` runs: convert, verify per language, generate."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

OUT = Path("demo-output")
SOURCE = "builtin:zen-nano"
TARGETS = {"gguf:q4_k_m": OUT / "zen-nano-Q4_K_M.gguf", "gguf:q8_0": OUT / "zen-nano-Q8_0.gguf"}
PROMPT = "The weather in the mountains"


def run(*arguments: str) -> None:
    """Show a command and run it; the demonstration ends with its exit code when it fails."""
    print(f"\n$ zenconvert {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "zenconvert", *arguments], check=False).returncode
    if code:
        sys.exit(code)


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
    for target, path in TARGETS.items():
        run("plan", SOURCE, "--to", target)
        run("convert", SOURCE, str(path), "--to", target, "--force")
    engines = ["torch", "llamacpp"] if find_spec("llama_cpp") else ["torch"]
    for path in TARGETS.values():
        for engine in engines:
            report = OUT / f"{path.stem}.{engine}.json"
            run("verify", SOURCE, str(path), "--engine", engine, "--json", str(report))
    if "llamacpp" in engines:
        generate(TARGETS["gguf:q4_k_m"])
    else:
        print("\nllama-cpp-python is not installed: the llama.cpp parts were left out")
    print(f"\nfiles and reports are in {OUT}/")


if __name__ == "__main__":
    main()
