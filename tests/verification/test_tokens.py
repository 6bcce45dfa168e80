"""Tokens as bytes, and the worst positions as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tokenizers_for_tests import MAKERS, evaluation_texts
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.texts.windows import Window
from zenconvert.verification.metrics import score
from zenconvert.verification.tokens import token_bytes, worst_positions


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_the_bytes_of_tokens_are_the_text(family: str, tmp_path: Path) -> None:
    vocab = MAKERS[family](tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = read_tokenizer(tmp_path, vocab_size=vocab)
    texts, encoder = token_bytes(tokenizer), TextEncoder(tokenizer)
    assert len(texts) == vocab
    for samples in evaluation_texts().values():
        for sample in samples:
            joined = b"".join(texts[i] for i in encoder.encode(sample)).decode("utf-8")
            assert joined in {sample, f" {sample}"}  # SentencePiece puts a space in front


def test_the_worst_positions_come_first_with_what_was_read() -> None:
    texts = ["α".encode(), b"b", "日".encode()[:2], "日".encode()[2:], b" end"]
    windows = [Window("s1", "el", (0, 1, 2, 3)), Window("s2", "ja", (4, 2, 3, 1))]
    random = np.random.default_rng(0)
    base = random.normal(0, 1, (2, 3, 5)).astype(np.float32)
    other = base + random.normal(0, 0.1, base.shape).astype(np.float32)
    other[1, 2] = [9, 0, 0, 0, 0]
    base[1, 2] = [0, 0, 0, 0, 9]
    scores = [score(base[n], other[n], np.array(w.ids[1:])) for n, w in enumerate(windows)]
    found = worst_positions(windows, scores, texts)
    assert [p.kl for p in found] == sorted((p.kl for p in found), reverse=True)
    assert len(found) == 6
    first = found[0]
    assert (first.sample, first.language, first.window, first.position) == ("s2", "ja", 1, 3)
    assert (first.before, first.token) == (" end日", "b")
    assert (first.reference_top, first.candidate_top) == (" end", "α")
    assert first.reference_top_p == pytest.approx(1 / (1 + 4 * np.exp(-9)))
    assert first.reference_p == pytest.approx(first.candidate_p, rel=1e-5)
    broken = next(p for p in found if p.sample == "s1" and p.position == 2)
    assert (broken.before, broken.token) == ("αb", "<E6> <97>")


def test_long_texts_are_cut_at_a_character() -> None:
    texts = ["語".encode()]
    windows = [Window("s", "ja", (0,) * 400)]
    logits = np.zeros((399, 1), dtype=np.float32)
    scores = [score(logits, logits, np.zeros(399, dtype=np.int64))]
    befores = {p.before for p in worst_positions(windows, scores, texts)}
    assert all(set(before) == {"語"} for before in befores)
