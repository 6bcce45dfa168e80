"""Python holds no family's name: what differs between families stands in their tables."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.test_house import modules
from zenconvert.model.architecture import architectures

ELSEWHERE = {
    # words of others that are spelled like a family, and what they are
    ("formats.gguf.tokenizer", "llama"): "GGUF's word for SentencePiece tokenizers",
    ("formats.gguf.endings", "llama"): "GGUF's word for SentencePiece tokenizers",
    ("formats.gguf.stripping", "phi3"): "what llama.cpp looks for in a model's name",
    ("formats.hf.rebuilt", "qwen2"): "llama.cpp's name of a pre-tokenizer",
    ("formats.hf.tokenizer", "qwen2"): "llama.cpp's name of a pre-tokenizer",
}
LISTS = {"formats.onnx.write.layouts": "the types that transformers.js has, whoever knows them"}
"""Modules with lists of what a runtime knows, of families here and of many others."""


def family_names() -> set[str]:
    """Ids of tables, model types, classes and GGUF architectures."""
    names: set[str] = set()
    for known in architectures().values():
        names |= {known.id, known.gguf, known.hf_class, *known.model_types}
        for wrapper in known.wrappers:
            names |= {wrapper.model_type, wrapper.text_type}
    return names


def texts(path: Path) -> set[str]:
    """Every literal text of a module, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return {n.value for n in constants if isinstance(n.value, str)}


def test_python_holds_no_familys_name() -> None:
    names, found = family_names(), set()
    for module, path in modules():
        if module not in LISTS:
            found |= {(module, text) for text in texts(path) & names}
    assert found == set(ELSEWHERE)


def test_the_scan_sees_names(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""llama."""\nif kind == "gemma2" or kind in {"qwen2"}:\n    pass\n')
    assert texts(path) & family_names() == {"gemma2", "qwen2"}
