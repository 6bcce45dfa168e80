"""mistral.rs in its own environment: runs GGUF files, with activations and cache in float32."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mistralrs import ChatCompletionRequest, ModelDType, Runner, Which

from tests.oracles.serve import serve

_PLAIN = "{{ messages[0].content }}"


def continued(file: str, texts: list[str], count: int, vocab: int, out: str) -> list[Any]:
    """``[prompt ids, ids that follow]`` of every text; log-probabilities f32[texts, count, vocab].

    The most probable token goes on every time.
    """
    os.environ["MISTRALRS_CPU_KV_F32"] = "1"
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(_PLAIN)
        template.flush()
        path = Path(file)
        which = Which.GGUF(str(path.parent), path.name, dtype=ModelDType.F32)
        runner = Runner(
            which,
            max_seqs=1,
            prefix_cache_n=0,
            token_source="none",
            no_paged_attn=True,
            jinja_explicit=template.name,
        )
    found, logs = [], np.full((len(texts), count, vocab), -np.inf, dtype=np.float32)
    for row, text in enumerate(texts):
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": text}],
            model="default",
            logprobs=True,
            top_logprobs=vocab,
            max_tokens=count,
            temperature=0.0,
            ignore_eos=True,
        )
        reply = runner.send_chat_completion_request(request)
        for step, token in enumerate(reply.choices[0].logprobs.content):
            for each in token.top_logprobs:
                logs[row, step, each.token] = each.logprob
        ids = runner.tokenize_text(text, False, None)
        assert reply.usage.prompt_tokens == len(ids), (reply.usage.prompt_tokens, ids)
        found.append([ids, logs[row].argmax(-1).tolist()])
    np.save(out, logs)
    return found


if __name__ == "__main__":
    serve({"continued": continued})
