"""``gguf.SpecialVocab`` of the llama.cpp source tree; the released package can be older."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from tests.oracles.converter import source_tree


def special_vocab(folder: Path, vocab_size: int) -> Any:
    """What the converter makes of the tokenizer files of a folder."""
    path = source_tree() / "gguf-py" / "gguf" / "vocab.py"
    spec = importlib.util.spec_from_file_location("gguf.vocab_of_llamacpp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.SpecialVocab(folder, n_vocab=vocab_size)
