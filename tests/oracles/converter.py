"""llama.cpp's own converter, from the llama-cpp-python source package.

``ZENCONVERT_LLAMACPP_SOURCE`` names the source tree. Every conversion runs in a process of its own,
as the converter changes Python's import path: a copy of one that has loaded what it needs, as that
takes longer than converting. It tells pre-tokenizers from hashes of published vocabularies, which
no vocabulary made for a test can match: another name stands in for what it would find.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def source_tree() -> Path:
    """The llama.cpp source tree."""
    return Path(os.environ["ZENCONVERT_LLAMACPP_SOURCE"])


def convert(folder: Path, out: Path, out_type: str, pre: str = "qwen2", *options: str) -> Path:
    """Convert an HF folder to ``f32``, ``f16`` or ``bf16``; ``options`` are those of the script."""
    log = out.with_suffix(".log")
    process = _loaded()
    assert process.stdin is not None
    assert process.stdout is not None
    arguments = [str(folder), "--outfile", str(out), "--outtype", out_type, *options]
    process.stdin.write(json.dumps([str(log), pre, *arguments]) + "\n")
    process.stdin.flush()
    status = process.stdout.readline()
    said = log.read_text(errors="replace")
    log.unlink()
    assert status == "0\n", said[-4000:]
    return out


@cache
def _loaded() -> subprocess.Popen[str]:
    """A process that has loaded the converter, until this one ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.oracles.converter"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(process.communicate)
    return process


def main() -> None:
    """Answer every line of standard input with the exit status of a copy that does it."""
    script = source_tree() / "convert_hf_to_gguf.py"
    sys.path.insert(0, str(script.parent))
    sys.path.insert(1, str(script.parent / "gguf-py"))
    import torch._dynamo  # noqa: F401  (for sums of tensors without numbers; it takes seconds)
    from conversion import base  # type: ignore[import-not-found]
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401  (to have them loaded)

    for line in sys.stdin:
        log, pre, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            with Path(log).open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            base.TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
            sys.argv = [str(script), *arguments]
            _run_and_end(script)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _run_and_end(script: Path) -> None:
    """Run the script and end the process, leaving alone what belongs to the one it is copied of."""
    status = 1
    try:
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (what is not told here, nobody tells)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
