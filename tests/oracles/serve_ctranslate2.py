"""CTranslate2 on the CPU in its own environment: converts HF folders and runs them."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter
from transformers import AutoTokenizer

from tests.oracles.serve import serve


def logits(folder: str, ids: list[int], out: str) -> None:
    """float32[tokens, vocab], computed in float32."""
    words = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids)
    with TemporaryDirectory() as made:
        TransformersConverter(folder).convert(made, quantization="float32", force=True)
        model = ctranslate2.Generator(made, device="cpu", compute_type="float32")
        found = model.forward_batch([words])
    np.save(out, np.array(found)[0])


if __name__ == "__main__":
    serve({"logits": logits})
