"""Targets: reports, policies, recipes, templates, samples and releases."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.fuzz import models, reports
from tests.fuzz.choices import Choices
from tests.fuzz.hostile import damaged, json_bytes, mutated, text, text_bytes, value
from tests.fuzz.models import Files
from tests.fuzz.target import Target
from zenconvert import Report
from zenconvert.base.machine import auto_device
from zenconvert.publication import recipe_reader
from zenconvert.publication.checking import check_release
from zenconvert.publication.checksums import read_sums
from zenconvert.publication.gotemplate import render_go
from zenconvert.publication.modelfile import _CHATML, _LLAMA_3
from zenconvert.texts.sample_sources import load_samples
from zenconvert.texts.samples import Message, Sample
from zenconvert.texts.windows import render
from zenconvert.verification.gate import decide
from zenconvert.verification.markdown import summary
from zenconvert.verification.policy import Policy
from zenconvert.verification.rendering import report_page

RECIPE: Final = """\
[source]
path = "model"
base_model = "org/Tiny"
languages = ["en", "zh"]
name = "Tiny"
[output]
folder = "release"
split = "4G"
[calibration]
enabled = true
samples = "texts"
language_weights = { en = 2, zh = 1.5 }
tokens_per_language = 4096
context = 512
max_ram = "8G"
[verify]
engines = ["torch", "llamacpp"]
context = 512
[gate]
policy = "default"
[run]
threads = 2
device = "cpu"
[publish]
hub = "org"
private = true
allow = ["PASS"]
[[variant]]
target = "gguf:q4_k_m"
tensor_types = ["ffn_down=q6_k"]
[[variant]]
target = "gptq:w4g128"
name = "four"
solver = "gptq"
largest_error = 0.5
"""
_KEYS: Final = tuple(
    sorted({*recipe_reader.TABLES, *(k for t in recipe_reader.TABLES.values() for k in t)})
)
_JINJA: Final = (
    "{% for x in range(3) %}", "{% endfor %}", "{{ messages }}", "{% if x %}", "{% else %}",
    "{% endif %}", "{% set x = 1 %}", "{% macro m(a) %}", "{% endmacro %}", "raise_exception('x')",
    "| tojson(indent=9)", "| length", "loop.index", "namespace(a=1)", "''.__class__", "cycler",
    "messages[0]['content']", "| replace('a', 'b')", "range(99)", "{% generation %}", "| map('x')",
    "{% endgeneration %}", "| batch(3)", "| join", "| format", "'a' * 9", "self", "import",
)  # fmt: skip
_GO: Final = (
    "{{ range .Messages }}", "{{ end }}", "{{ .Role }}", "{{ .Content }}", "{{- if .System }}",
    "{{ else }}", '{{ else if eq .Role "user" -}}', '{{ if eq .Role "x" }}', "{{ .Foo }}", "{{",
)  # fmt: skip
_CHAT: Final = tuple({"role": r, "content": c} for r, c in (("system", "s"), ("user", "é")))


def _report(choices: Choices, base: Files) -> Files:
    tree = mutated(
        models.table(base, "report.json"), choices, ("kl.mean", "top1", "en", "ar", "zh")
    )
    return {"report.json": json_bytes(tree, choices)}


def _read_report(path: Path) -> None:
    report = Report.from_json(path / "report.json")
    json.dumps(report.as_dict())
    verdict = decide(report, Policy.load("default"), against=report)
    json.dumps(verdict.as_dict())
    summary(report, verdict).encode()
    report_page(report, verdict).encode()


def _policy(choices: Choices, base: Files) -> Files:
    words = (
        "at_most",
        "at_least",
        "bits",
        "tier",
        "override",
        "when",
        "overall",
        "language",
        "inf",
    )
    return {"policy.toml": text_bytes(reports.POLICY, choices, words)}


def _recipe_base() -> Files:
    auto_device()  # what it imports is nobody's fault
    return {"recipe.toml": RECIPE.encode()}


def _recipe(choices: Choices, base: Files) -> Files:
    return {"recipe.toml": text_bytes(RECIPE, choices, _KEYS)}


def _go(choices: Choices, base: Files) -> Files:
    source = choices.pick((_CHATML, _LLAMA_3, "".join(_GO[:4]), _GO[5] + "a" + _GO[1]))
    return {"template": text_bytes(source, choices, _GO)}


def _read_go(path: Path) -> None:
    render_go((path / "template").read_bytes().decode("utf-8", "replace"), _CHAT)


def _jinja(choices: Choices, base: Files) -> Files:
    return {"chat_template.jinja": text_bytes(models.TEMPLATE, choices, _JINJA)}


def _read_jinja(path: Path) -> None:
    template = (path / "chat_template.jinja").read_bytes().decode("utf-8", "replace")
    messages = tuple(Message(m["role"], m["content"]) for m in _CHAT)
    render(Sample("x", "en", "chat", None, messages), template, {"bos_token": "<s>"}, reply=True)


_ROWS: Final = (
    {"id": "1", "language": "en", "kind": "prose", "text": "A text."},
    {"language": "de", "messages": [{"role": "user", "content": "Hallo"},
                                    {"role": "assistant", "content": "Tag"}]},
)  # fmt: skip
_SAMPLES: Final = ("mine.jsonl", "mine.json", "mine.txt")


def _samples_base() -> Files:
    lines = "\n".join(map(json.dumps, _ROWS)).encode()
    return dict(zip(_SAMPLES, (lines, json.dumps(_ROWS).encode(), b"A text."), strict=True))


def _samples(choices: Choices, base: Files) -> Files:
    rows: Any = mutated(
        list(_ROWS), choices, ("text", "messages", "role", "content", "instruction")
    )
    lines = rows if isinstance(rows, list) else [rows]
    return {
        "mine.jsonl": b"\n".join(json_bytes(row, choices) for row in lines),
        "mine.json": json_bytes(rows, choices),
        "mine.txt": damaged(b"A text.\r\n\0", choices),
    }


def _read_samples(path: Path) -> None:
    from zenconvert.errors import ZenError

    for name in _SAMPLES:
        try:
            load_samples(path / name)
        except ZenError:
            continue


_ROW_WORDS: Final = (
    "text", "messages", "role", "content", "instruction", "input", "output", "conversations",
    "from", "value", "prompt", "completion", "system", "id", "language", "kind",
)  # fmt: skip
_TABLE: Final = 'id,language,text\n1,en,"A text,\nand ""more"""\n2,de,Ein Text\n3,,\n'


def _one_kind(name: str) -> Target:
    """Samples of one kind of file."""

    def mutate(choices: Choices, base: Files) -> Files:
        if name.endswith(".csv"):
            return {name: text_bytes(_TABLE, choices, (*_ROW_WORDS, ",", '"', "\r\n", "\t"))}
        rows: Any = mutated(list(_ROWS), choices, _ROW_WORDS)
        if name.endswith(".json") or not isinstance(rows, list):
            return {name: json_bytes(rows, choices)}
        return {name: b"\n".join(json_bytes(row, choices) for row in rows)}

    def base() -> Files:
        data = {**_samples_base(), "mine.csv": _TABLE.encode()}[name]
        return {name: data}

    kind = name.rpartition(".")[2]
    return Target(f"samples-{kind}", base, mutate, partial(_read_one, name), cheap=True)


def _read_one(name: str, path: Path) -> None:
    load_samples(path / name)


def parquet_base() -> Files:
    """A table of two rows."""
    return {"mine.parquet": _parquet([dict(row) for row in _ROWS])}


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def _parquet_rows(choices: Choices, base: Files) -> Files:
    """Other columns and types, or other bytes in the footer, whose offsets are checked."""
    import pyarrow

    if choices.below(2):
        rows = [
            {choices.pick(("text", "messages", "id", "language", "x")): value(choices)}
            for _ in range(1 + choices.below(3))
        ]
        try:
            return {"mine.parquet": _parquet(rows)}
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError):
            pass
    return {"mine.parquet": damaged(base["mine.parquet"], choices)}


def _sums(choices: Choices, base: Files) -> Files:
    return {"SHA256SUMS": text_bytes(base["SHA256SUMS"].decode(), choices, ("../x", "\\n", "  "))}


def _release(choices: Choices, base: Files) -> Files:
    tables = [n for n in base if n.endswith(".json")]
    texts = [n for n in base if n.endswith((".md", ".toml", "SHA256SUMS", "Modelfile"))]
    found = {name: base[name] for name in (*tables, *texts)}
    if choices.below(2):
        name = choices.pick(tables)
        found[name] = json_bytes(mutated(json.loads(base[name]), choices), choices)
    else:
        name = choices.pick(texts)
        found[name] = text(base[name].decode(), choices).encode("utf-8", "surrogatepass")
    return found


TARGETS: Final = (
    Target("report", lambda: {"report.json": reports.report_bytes(("en",))}, _report, _read_report),
    Target(
        "policy", lambda: {"policy.toml": reports.POLICY.encode()}, _policy,
        lambda path: Policy.load(path / "policy.toml"), cheap=True,
    ),
    Target(
        "recipe", _recipe_base, _recipe,
        lambda path: recipe_reader.read(path / "recipe.toml"), cheap=True,
    ),
    Target("go-template", lambda: {"template": _CHATML.encode()}, _go, _read_go, cheap=True),
    Target(
        "chat-template", lambda: {"chat_template.jinja": models.TEMPLATE.encode()}, _jinja,
        _read_jinja,
    ),
    Target("samples", _samples_base, _samples, _read_samples, cheap=True),
    *(_one_kind(name) for name in ("mine.jsonl", "mine.json", "mine.csv")),
    Target(
        "parquet", parquet_base, _parquet_rows, lambda path: load_samples(path / "mine.parquet")
    ),
    Target(
        "sums", lambda: {"SHA256SUMS": f"{'a' * 64}  x\n{'b' * 64}  GGUF/y\n".encode()}, _sums,
        lambda path: read_sums(path / "SHA256SUMS"), cheap=True,
    ),
    Target("release", reports.release, _release, check_release),
)  # fmt: skip
