"""Trains small multilingual models from a folder of JSON lines.

By default the bundled reference model, ``zenconvert/models/zen-nano``: a Qwen2 model as
Qwen1.5-110B is one, in small (grouped heads, biases on q, k and v, an untied head, byte-level BPE
with Qwen2's own pre-tokenizer expression). ``--family llama`` trains one in Llama-3's manner, for
``scripts/bench fidelity``. Runs on CUDA or the CPU and resumes from its last checkpoint when it is
started again.

    python scripts/train_reference.py --corpus DIR --output DIR [--device cuda] [--steps N]
    python scripts/train_reference.py --corpus DIR --output DIR --family llama --hidden 512 \
        --heads 8 --kv-heads 4 --layers 8 --ffn 1536 --rate 2e-3
    python scripts/train_reference.py --corpus DIR --evaluate MODEL_DIR

The corpus folder holds ``<language>.train.jsonl[.xz]`` and ``<language>.dev.jsonl[.xz]`` with a
``text`` in each row.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

LANGUAGES = ("en", "zh", "fr", "es", "de", "ru", "ko", "ja", "vi", "ar")
END, CHAT_BEGIN, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, CHAT_BEGIN, CHAT_END)
# the expressions of Qwen2's and Llama-3's tokenizer.json differ in how many digits go together
EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)
CHAT_SHARE = 0.25  # documents that are also seen as a dialogue
WINDOW = 512


@dataclass(frozen=True)
class Family:
    """What tells one model family's config and tokenizer from another's."""

    model_class: str
    digits: str
    """Quantifier of the digits that the pre-tokenizer keeps together."""
    normalizes: bool
    ignore_merges: bool
    config: dict[str, Any]


FAMILIES = {
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "",
        normalizes=True,
        ignore_merges=False,
        config={"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "use_sliding_window": False},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        "{1,3}",
        normalizes=False,
        ignore_merges=True,
        config={"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "attention_bias": False},
    ),
}


def read(corpus: Path, language: str, split: str) -> list[str]:
    """The texts of one language."""
    for name, opener in (
        (f"{language}.{split}.jsonl", open),
        (f"{language}.{split}.jsonl.xz", lzma.open),
    ):
        path = corpus / name
        if path.exists():
            with opener(path, "rt", encoding="utf-8") as file:
                return [json.loads(line)["text"] for line in file]
    raise SystemExit(f"{corpus}: no {language}.{split}.jsonl or .jsonl.xz")


def train_tokenizer(texts: dict[str, list[str]], vocab: int, family: Family) -> Tokenizer:
    """Byte-level BPE in the family's manner; every language counts the same."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=family.ignore_merges))
    if family.normalizes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(EXPRESSION % family.digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    budget = max(sum(map(len, t)) for t in texts.values())

    def balanced() -> Iterator[str]:
        for language in texts:
            # a language with little text is repeated until it weighs as much as the largest
            repeats = budget / sum(map(len, texts[language]))
            yield from texts[language] * int(repeats)
            rest = (repeats - int(repeats)) * len(texts[language])
            yield from texts[language][: int(rest)]

    tokenizer.train_from_iterator(balanced(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that is there."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def as_chat(text: str) -> str:
    """A document as a dialogue: its first line or sentence is the request, the rest the reply."""
    head, separator, rest = text.strip().partition("\n")
    if not rest.strip() or len(head) > 300:
        cut = next((i for i, c in enumerate(text) if c in ".?!。？！" and i > 20), len(text) // 3)
        head, separator, rest = text[: cut + 1], "", text[cut + 1 :]
    del separator
    turns = (("user", head.strip()), ("assistant", rest.strip()))
    return "".join(f"{CHAT_BEGIN}{role}\n{content}{CHAT_END}\n" for role, content in turns)


def tokens_of(tokenizer: Tokenizer, texts: list[str], *, chat: bool, seed: int) -> torch.Tensor:
    """All documents of a language in one row, in random order, each ended by END."""
    generator = torch.Generator().manual_seed(seed)
    end = token_id(tokenizer, END)
    documents = list(texts)
    if chat:
        chosen = torch.rand(len(texts), generator=generator) < CHAT_SHARE
        documents += [as_chat(t) for t, c in zip(texts, chosen.tolist(), strict=True) if c]
    order = torch.randperm(len(documents), generator=generator).tolist()
    ids: list[int] = []
    for encoded in tokenizer.encode_batch([documents[i] for i in order]):
        ids += [*encoded.ids, end]
    return torch.tensor(ids, dtype=torch.long)


def config_of(given: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """``config.json`` of the model."""
    family = FAMILIES[given.family]
    return {
        "architectures": [family.model_class], "model_type": given.family,
        "vocab_size": given.vocab, "hidden_size": given.hidden, "intermediate_size": given.ffn,
        "num_hidden_layers": given.layers, "num_attention_heads": given.heads,
        "num_key_value_heads": given.kv_heads, "hidden_act": "silu",
        "max_position_embeddings": 2048, "initializer_range": 0.02, "tie_word_embeddings": False,
        **family.config, "attention_dropout": 0.0, "use_cache": True,
        "bos_token_id": token_id(tokenizer, END), "eos_token_id": token_id(tokenizer, CHAT_END),
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def make_model(config: dict[str, Any]) -> Any:
    """A fresh model in float32."""
    fields = {k: v for k, v in config.items() if k not in {"model_type", "torch_dtype"}}
    made = AutoConfig.for_model(config["model_type"], **fields)
    return AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")


def batches(rows: dict[str, torch.Tensor], size: int, seed: int, step: int) -> torch.Tensor:
    """Windows of one step; languages are drawn by the square root of their size."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    weights = torch.tensor([math.sqrt(len(r)) for r in rows.values()])
    chosen = torch.multinomial(weights, size, replacement=True, generator=generator)
    windows = []
    for index in chosen.tolist():
        row = list(rows.values())[index]
        begin = int(torch.randint(len(row) - WINDOW, (1,), generator=generator))
        windows.append(row[begin : begin + WINDOW + 1])
    return torch.stack(windows)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 %, then a cosine down to 2 % of the peak."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


@torch.inference_mode()
def perplexities(model: Any, tokenizer: Tokenizer, corpus: Path, device: str) -> dict[str, Any]:
    """Held-out perplexity per language and overall, per token, documents cut into windows."""
    losses: dict[str, tuple[float, int]] = {}
    for language in LANGUAGES:
        total, count = 0.0, 0
        for text in read(corpus, language, "dev"):
            ids = torch.tensor([tokenizer.token_to_id(END), *tokenizer.encode(text).ids])
            for begin in range(0, len(ids) - 1, WINDOW):
                window = ids[begin : begin + WINDOW + 1].to(device)
                logits = model(window[None, :-1]).logits[0].float()
                loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")
                total, count = total + float(loss), count + len(window) - 1
        losses[language] = (total, count)
    table: dict[str, Any] = {c: math.exp(t / n) for c, (t, n) in losses.items()}
    whole = sum(t for t, _ in losses.values()) / sum(n for _, n in losses.values())
    return {**table, "overall": math.exp(whole)}


def save(model: Any, tokenizer: Tokenizer, config: dict[str, Any], output: Path) -> None:
    """Write the model in bf16 with its tokenizer, template and generation config."""
    output.mkdir(parents=True, exist_ok=True)
    end, chat_end = tokenizer.token_to_id(END), tokenizer.token_to_id(CHAT_END)
    state = {
        k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()
    }
    from safetensors.torch import save_file

    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(output / "tokenizer.json"))
    write_json(output / "config.json", config)
    write_json(output / "generation_config.json", {
        "bos_token_id": end, "eos_token_id": [chat_end, end], "pad_token_id": end,
        "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "repetition_penalty": 1.05,
    })  # fmt: skip
    added = {
        str(tokenizer.token_to_id(t)): {
            "content": t, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True,
        }
        for t in SPECIAL
    }  # fmt: skip
    write_json(output / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
        "added_tokens_decoder": added, "additional_special_tokens": [CHAT_BEGIN, CHAT_END],
        "bos_token": None, "eos_token": CHAT_END, "pad_token": END, "unk_token": None,
        "clean_up_tokenization_spaces": False, "errors": "replace", "model_max_length": 2048,
        "split_special_tokens": False, "chat_template": TEMPLATE,
    })  # fmt: skip


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Two spaces, a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train(given: argparse.Namespace) -> None:
    """Train, checkpoint, keep the state with the best held-out perplexity, save."""
    torch.manual_seed(given.seed)
    work: Path = given.output / "training"
    work.mkdir(parents=True, exist_ok=True)
    texts = {language: read(given.corpus, language, "train") for language in LANGUAGES}
    if (work / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(texts, given.vocab, FAMILIES[given.family])
        tokenizer.save(str(work / "tokenizer.json"))
    rows = {c: tokens_of(tokenizer, t, chat=True, seed=given.seed) for c, t in texts.items()}
    print(
        "training tokens:",
        sum(map(len, rows.values())),
        {c: len(r) for c, r in rows.items()},
        flush=True,
    )
    config = config_of(given, tokenizer)
    model = make_model(config).to(given.device)
    print("parameters:", sum(p.numel() for p in model.parameters()), flush=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.rate, betas=(0.9, 0.95))
    step, best = 0, math.inf
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=given.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
        print("resumed at step", step, flush=True)
    begin = time.monotonic()
    autocast = torch.autocast(given.device, torch.bfloat16, enabled=given.device != "cpu")
    while step < given.steps:
        windows = batches(rows, given.batch, given.seed, step).to(given.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, given.steps, given.rate)
        with autocast:
            logits = model(windows[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), windows[:, 1:].flatten()
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % given.every == 0 or step == given.steps:
            model.eval()
            found = perplexities(model, tokenizer, given.corpus, given.device)
            model.train()
            if found["overall"] < best:
                best = found["overall"]
                save(model, tokenizer, config, given.output)
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "step": step, "best": best,
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            seen = step * given.batch * WINDOW
            line = " ".join(f"{c}={p:.1f}" for c, p in found.items())
            print(f"step {step} loss {loss.item():.3f} tokens {seen} "
                  f"{time.monotonic() - begin:.0f} s | {line}", flush=True)  # fmt: skip


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--evaluate", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64, help="windows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen2")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.evaluate is not None:
        model = AutoModelForCausalLM.from_pretrained(given.evaluate, torch_dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(given.evaluate / "tokenizer.json"))
        found = perplexities(model.to(given.device).eval(), tokenizer, given.corpus, given.device)
        print(json.dumps({c: round(p, 2) for c, p in found.items()}))
        return
    if given.output is None:
        parser.error("give --output, or --evaluate")
    train(given)


if __name__ == "__main__":
    main()
