"""Writes docs/support.md and README.md's families from the code (``--check``: only compare)."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

from scripts import exactness, family_targets
from zenconvert.formats.quantized import METHODS
from zenconvert.formats.registry import FORMATS
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.architecture import architectures

_LEGEND = (
    "Linear weights between formats: `=` bit for bit, `≈` codes kept and a scale or minimum",
    "rounded, `q` quantized, `↻` quantized a second time (`--allow-requantize`), `–` refused.",
)
_MODELS = (
    "Of every family a tiny model is planned for every target; **in part** where its",
    "runtime computes something else, which `--exact` refuses.",
)
ROOT = Path(__file__).parent.parent
BY = "(written by python -m scripts.support_table) -->\n"


def families() -> str:
    """Every model type that opens."""
    types = sorted(name for known in architectures().values() for name in known.model_types)
    return fill(" · ".join(f"`{name}`" for name in types), 100) + "\n"


def table() -> str:
    """The Markdown between the markers."""
    lines = ["| format | read | written as |", "|---|---|---|"]
    for form in FORMATS.values():
        types = ", ".join(f"`{name}`" for name in form.types if _writable(form.name, name))
        lines.append(f"| {form.title} (`{form.name}`) | yes | {types} |")
    lines += [f"| HF safetensors, weights in `{method}` | yes | |" for method in METHODS]
    lines += ["", *_MODELS, "", family_targets.table().rstrip()]
    lines += ["", "| architecture | model types | GGUF architecture |", "|---|---|---|"]
    for known in architectures().values():
        types = ", ".join(f"`{t}`" for t in known.model_types)
        lines.append(f"| {known.id} | {types} | `{known.gguf}` |")
    lines += ["", *_LEGEND, "", exactness.table().rstrip()]
    lines += ["", "| ggml type | bits per weight | decoded | encoded | importance weights |"]
    lines.append("|---|---|---|---|---|")
    for name, ggml in BY_NAME.items():
        if not ggml.is_plain:
            bits = 8 * ggml.type_size / ggml.block_size
            row = (blocks.can_decode(name), blocks.can_encode(name), blocks.uses_importance(name))
            marks = ["yes" if mark else "–" for mark in row]
            if blocks.requires_importance(name):
                marks[2] = "required"
            lines.append(f"| `{name}` | {bits:.4g} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def _writable(form: str, name: str) -> bool:
    from zenconvert.formats.gguf.mixtures import block_types

    return form != "gguf" or all(blocks.can_encode(t) for t in block_types(name))


def _filled(text: str, name: str, body: str) -> str:
    """The text with a body between the marks of a name."""
    begin, end = f"<!-- {name}: begin {BY}", f"<!-- {name}: end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{body}{end}{tail}"


def main() -> None:
    """Rewrite the files, or end with 1 where one is out of date."""
    for file, name, body in (
        (ROOT / "README.md", "families", families()),
        (ROOT / "docs" / "support.md", "support table", table()),
    ):
        text = file.read_text(encoding="utf-8")
        fresh = _filled(text, name, body)
        if "--check" not in sys.argv[1:]:
            file.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            sys.exit(f"{file.relative_to(ROOT)}: run python -m scripts.support_table")


if __name__ == "__main__":
    main()
