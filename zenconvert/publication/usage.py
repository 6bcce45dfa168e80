"""How a shelf is run: commands and snippets for what reads its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from zenconvert.base.escaping import shell_word
from zenconvert.formats.registry import format_named
from zenconvert.publication.facts import ReleaseFacts, VariantFacts, preferred
from zenconvert.publication.names import repository_id, repository_name
from zenconvert.verification.markdown import fenced

_TRANSFORMERS: Final = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name!r}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", device_map="auto")
inputs = {inputs}.to(model.device)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""
_CHAT: Final = """\
tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hello!"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)"""
_PLAIN: Final = 'tokenizer("Hello", return_tensors="pt")'
_GENAI: Final = """\
import onnxruntime_genai as og

model = og.Model({name!r})  # the folder with these files
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=128)
generator = og.Generator(model, parameters)
prompt = {prompt}
generator.append_tokens(tokenizer.encode(prompt))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""
_GENAI_CHAT: Final = """\
tokenizer.apply_chat_template(
    '[{"role": "user", "content": "Hello!"}]', add_generation_prompt=True
)"""
_ONNX: Final = """\
import onnxruntime

session = onnxruntime.InferenceSession({name!r})
print([value.name for value in session.get_inputs()])"""

Programs: TypeAlias = Callable[
    [ReleaseFacts, str, Sequence[VariantFacts]], Iterator[tuple[str, str]]
]


def usage(
    facts: ReleaseFacts, shelf: str, variants: Sequence[VariantFacts]
) -> list[tuple[str, str]]:
    """(Title, Markdown) of every program that fits the format of the shelf."""
    made = [v for v in variants if v.is_made]
    if not made:
        return []
    return list(_PROGRAMS[format_named(made[0].format).library](facts, shelf, made))


def _shell(*lines: str) -> str:
    return fenced("\n".join(lines), "sh")


def _gguf(
    facts: ReleaseFacts, shelf: str, made: Sequence[VariantFacts]
) -> Iterator[tuple[str, str]]:
    chosen = preferred(made)
    repository, file = repository_id(facts, shelf), shell_word(chosen.files[0])
    name = shell_word(facts.name.lower())
    fetch = [f"hf download {repository} {' '.join(map(shell_word, chosen.files))} --local-dir ."]
    fetch = fetch if repository is not None else []
    yield "llama.cpp", _shell(*fetch, f"llama-cli -m {file}", f"llama-server -m {file}")
    yield "Ollama", _shell(f"ollama create {name} -f Modelfile", f"ollama run {name}")
    if repository is not None:
        yield "LM Studio", _shell(f"lms get https://huggingface.co/{repository}")
    else:
        user = shell_word(f"local/{repository_name(facts, shelf)}")
        yield "LM Studio", _shell(f"lms import --user-repo {user} {file}")


def _transformers(
    facts: ReleaseFacts, shelf: str, made: Sequence[VariantFacts]
) -> Iterator[tuple[str, str]]:
    variant = made[0]
    name = repository_id(facts, shelf) or f"./{shelf}"
    inputs = _CHAT if facts.source.chat_template else _PLAIN
    install = f"pip install {' '.join(format_named(variant.format).packages)} accelerate"
    snippet = fenced(_TRANSFORMERS.format(name=name, inputs=inputs), "python")
    yield "Transformers", f"{_shell(install)}\n\n{snippet}"
    yield "vLLM", _shell("pip install vllm", f"vllm serve {shell_word(name)}")


def _onnx(
    facts: ReleaseFacts, shelf: str, made: Sequence[VariantFacts]
) -> Iterator[tuple[str, str]]:
    variant = made[0]
    if "genai_config.json" in variant.files:
        prompt = _GENAI_CHAT if facts.source.chat_template else '"Hello"'
        snippet = fenced(_GENAI.format(name=".", prompt=prompt), "python")
        yield "onnxruntime-genai", f"{_shell('pip install onnxruntime-genai')}\n\n{snippet}"
        return
    graph = next(name for name in variant.files if name.endswith(".onnx"))
    snippet = fenced(_ONNX.format(name=graph), "python")
    yield "onnxruntime", f"{_shell('pip install onnxruntime')}\n\n{snippet}"


_PROGRAMS: Final[dict[str, Programs]] = {
    "gguf": _gguf,
    "onnx": _onnx,
    "transformers": _transformers,
}
"""Library, as the Hub calls it → what else runs what it loads."""
