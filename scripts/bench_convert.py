"""``scripts/bench convert``: HF bf16 → GGUF Q4_K_M, beside what users do today.

Ours is one pass. The peer writes a bf16 GGUF with llama.cpp's converter and quantizes it with
llama.cpp's own quantizer, same thread count, same model. Both files are compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zenconvert.formats import safetensors_container
from zenconvert.model.encoding import BF16
from zenconvert.models import builtin_path

ROOT = Path(__file__).parent.parent
SHARD = 500_000_000

CONVERT = """
import sys
from pathlib import Path
from tests.oracles.converter import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), "bf16")
"""
QUANTIZE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
params.nthread = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


LAUNCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Measured:
    """One finished command."""

    seconds: float
    peak_rss: int
    """Bytes."""


def measure(command: list[str]) -> Measured:
    """Run a command to its end; its output is shown only when it fails.

    A child's peak memory is never less than that of the process that begot it, so a small one does.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as peak:
        launcher = [sys.executable, "-S", "-c", LAUNCH, peak.name, *command]
        done = subprocess.run(launcher, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
        seconds = time.monotonic() - begin
        if done.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read()[-4000:].decode()}")
        return Measured(seconds, int(Path(peak.name).read_text()) * 1024)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2 decoder block."""

    hidden: int = 2048
    ffn: int = 5632
    heads: int = 32
    kv_heads: int = 8

    @property
    def keys(self) -> int:
        """Rows of the key projection."""
        return self.hidden * self.kv_heads // self.heads

    def layers_of(self, size: int, vocab: int) -> int:
        """Layers of a model of about so many bytes in bf16, two at least."""
        layer = 2 * (2 * self.hidden * (self.hidden + self.keys) + 3 * self.hidden * self.ffn)
        return max(2, round((size - 4 * self.hidden * vocab) / layer))


def synthetic_model(
    folder: Path, size: int, shape: Shape | None = None, layers: int | None = None
) -> None:
    """A Qwen2 checkpoint with random bf16 weights and a real tokenizer.

    Of about ``size`` bytes, unless its number of layers is given.
    """
    shape, nano = shape or Shape(), builtin_path("zen-nano")
    config = json.loads((nano / "config.json").read_text())
    layers = layers or shape.layers_of(size, config["vocab_size"])
    config |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "num_hidden_layers": layers,
    }  # fmt: skip
    config.pop("layer_types", None)
    config.pop("head_dim", None)
    folder.mkdir(parents=True)
    for file in nano.iterdir():
        if file.suffix != ".safetensors" and file.name != "README.md":
            shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config))
    _write_weights(folder, _shapes(shape, layers, config["vocab_size"]))


def _shapes(shape: Shape, layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    hidden, ffn = shape.hidden, shape.ffn
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {
            f"{p}input_layernorm.weight": (hidden,),
            f"{p}mlp.down_proj.weight": (hidden, ffn),
            f"{p}mlp.gate_proj.weight": (ffn, hidden),
            f"{p}mlp.up_proj.weight": (ffn, hidden),
            f"{p}post_attention_layernorm.weight": (hidden,),
        }
        for name, rows in (("q", hidden), ("k", shape.keys), ("v", shape.keys)):
            shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, hidden)
        shapes[f"{p}self_attn.o_proj.weight"] = (hidden, hidden)
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * int(np.prod(s)) for s in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    random = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, _ = safetensors_container.pack_header(
            [(n, BF16, s) for n, s in shard.items()], {"format": "pt"}
        )
        with (folder / file).open("wb") as out:
            out.write(header)
            for name, shape in shard.items():
                values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                out.write(values.astype(BF16.numpy).tobytes())
                weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=2.0, help="GB of bf16 weights")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="where to put about 2.6 times the size")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work = Path(name)
        model, ours, full, theirs = (
            work / n for n in ("model", "ours.gguf", "bf16.gguf", "theirs.gguf")
        )
        synthetic_model(model, int(given.size * 1e9))
        threads = str(given.threads)
        # each command once on the bundled model, so that kernels and files are warm for both
        zen = [sys.executable, "-m", "zenconvert", "convert"]
        measure([*zen, "builtin:zen-nano", str(work / "warm.gguf"), "--to", "gguf:q4_k_m"])
        one = measure([*zen, str(model), str(ours), "--to", "gguf:q4_k_m", "--threads", threads])
        two = measure([sys.executable, "-c", CONVERT, str(model), str(full)])
        three = measure([sys.executable, "-c", QUANTIZE, str(full), str(theirs), threads])
        same = ours.read_bytes() == theirs.read_bytes()
    peer = two.seconds + three.seconds
    print(f"{given.size:g} GB of bf16 weights to Q4_K_M, {threads} threads")
    print(f"{'':34}{'seconds':>9}{'peak RSS':>12}")
    for label, run in (
        ("zenconvert, one pass", one),
        ("llama.cpp: HF to bf16 GGUF", two),
        ("llama.cpp: quantize", three),
    ):
        print(f"{label:34}{run.seconds:9.1f}{run.peak_rss / 1e6:9.0f} MB")
    print(f"ratio of the peer's time to ours: {peer / one.seconds:.2f}")
    print(f"the two files are {'identical' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
