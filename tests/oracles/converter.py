"""llama.cpp's own converter, from the llama-cpp-python source package.

    python -m tests.oracles.converter HF_FOLDER OUT.gguf f32|f16|bf16 [PRE [OPTION …]]

``ZENCONVERT_LLAMACPP_SOURCE`` names the source tree. The converter tells pre-tokenizers from hashes
of published vocabularies, which no vocabulary made for a test can match: PRE stands in for it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def source_tree() -> Path:
    """The llama.cpp source tree."""
    return Path(os.environ["ZENCONVERT_LLAMACPP_SOURCE"])


def convert(folder: Path, out: Path, out_type: str, pre: str = "qwen2", *options: str) -> Path:
    """Convert in a process of its own, as the converter changes Python's import path."""
    command = [sys.executable, "-m", "tests.oracles.converter", str(folder), str(out), out_type]
    done = subprocess.run(
        [*command, pre, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def main() -> None:
    """Run the converter with the pre-tokenizer given."""
    folder, out, out_type, *rest = sys.argv[1:]
    script = source_tree() / "convert_hf_to_gguf.py"
    sys.path.insert(0, str(script.parent))
    sys.path.insert(1, str(script.parent / "gguf-py"))
    from conversion import base  # type: ignore[import-not-found]

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: (rest or ["qwen2"])[0]
    sys.argv = [str(script), folder, "--outfile", out, "--outtype", out_type, *rest[1:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
