"""Ollama's Modelfile: the Go template gives what the model's Jinja template gives."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.publication.conftest import Made, source_facts
from zenconvert.errors import CorruptFile
from zenconvert.publication.facts import ReleaseFacts, SourceFacts, preferred
from zenconvert.publication.gotemplate import render_go
from zenconvert.publication.modelfile import modelfile, ollama_template
from zenconvert.texts.samples import Message, Sample
from zenconvert.texts.windows import render

CHATML = """\
{%- if default and messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA_3 = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
LLAMA_2 = """\
{%- if messages[0].role == 'system' %}
{%- set head, rest = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n', messages[1:] %}
{%- else %}{% set head, rest = '', messages %}{% endif %}
{%- for m in rest %}{% if m.role == 'user' %}
{{- bos_token + '[INST] ' + (head if loop.first else '') + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"""
MISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- else %}{{ raise_exception('only user and assistant') }}{% endif %}
{%- endfor %}"""
LLAMA = {"bos": "<s>", "eos": "</s>"}
LONG = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And now?"},
]
BEGUN = [{"role": "system", "content": "Rhyme."}, *LONG]


def source(template: str | None, special: dict[str, str]) -> SourceFacts:
    return replace(source_facts(), chat_template=template, special=special)


def theirs(template: str, special: dict[str, str], chat: list[dict[str, str]]) -> str:
    messages = tuple(Message(m["role"], m["content"]) for m in chat)
    tokens = {f"{role}_token": text for role, text in special.items()}
    sample = Sample("x", "en", "chat", None, messages)
    return render(sample, template, tokens, reply=True).removeprefix(special.get("bos", ""))


@pytest.mark.parametrize(
    ("family", "template", "special", "chat", "expected"),
    [
        (
            "ChatML", CHATML, {"eos": "<|im_end|>"}, BEGUN,
            "<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "Llama 3", LLAMA_3, {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}, BEGUN[:2],
            "<|start_header_id|>system<|end_header_id|>\n\nRhyme.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "[INST]", LLAMA_2, LLAMA, BEGUN,
            "[INST] <<SYS>>\nRhyme.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] And now? [/INST]",
        ),
        ("[INST]", LLAMA_2, LLAMA, LONG, "[INST] Hi [/INST] Hello! </s><s>[INST] And now? [/INST]"),
        ("[INST]", MISTRAL, LLAMA, LONG, "[INST] Hi[/INST] Hello!</s>[INST] And now?[/INST]"),
    ],
)  # fmt: skip
def test_known_families(
    family: str,
    template: str,
    special: dict[str, str],
    chat: list[dict[str, str]],
    expected: str,
) -> None:
    found = ollama_template(source(template, special))
    assert found is not None
    assert found.family == family
    assert render_go(found.template, chat) == expected == theirs(template, special, chat)


def test_a_template_without_system_messages_is_said_to_be_so(made: Made) -> None:
    found = ollama_template(source(MISTRAL, LLAMA))
    assert found is not None
    assert not found.takes_system
    facts = replace(made[0], source=source(MISTRAL, LLAMA))
    assert "takes no system message" in modelfile(facts, facts.shelves["GGUF"])


def test_a_default_system_text_becomes_a_system_instruction(made: Made) -> None:
    template = "{% set default = true %}" + CHATML
    found = ollama_template(source(template, {}))
    assert found is not None
    assert found.system == "Be kind."
    facts = replace(made[0], source=source(template, {}))
    assert commands(modelfile(facts, facts.shelves["GGUF"]))["SYSTEM"] == ["Be kind."]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        CHATML.replace("<|im_end|>", "<|end|>"),
        LLAMA_2.replace("loop.first", "loop.last"),
        "{{ raise_exception('never') }}",
        "{% for",
        "{{ messages.__class__.__mro__ }}",
        MISTRAL.replace("'[INST] '", "'[INST] {{ .Evil }} '"),
    ],
)
def test_others_have_no_template(template: str | None, made: Made) -> None:
    assert ollama_template(source(template, LLAMA)) is None
    facts = replace(made[0], source=source(template, LLAMA))
    text = modelfile(facts, facts.shelves["GGUF"])
    assert "TEMPLATE" not in commands(text)
    assert "# No TEMPLATE" in text
    assert commands(text)["PARAMETER stop"] == ["</s>"]


def test_the_bundled_model(made: Made) -> None:
    facts, _ = made
    found = commands(modelfile(facts, facts.shelves["GGUF"]))
    assert found["FROM"] == ["./zen-nano-Q4_0.gguf"]
    assert found["PARAMETER num_ctx"] == ["2048"]
    assert found["PARAMETER stop"] == ["<|im_start|>", "<|im_end|>"]
    template = found["TEMPLATE"][0]
    assert facts.source.chat_template is not None
    assert render_go(template, BEGUN) == theirs(facts.source.chat_template, {}, BEGUN)


def test_long_contexts_are_not_asked_for_at_once(made: Made) -> None:
    facts = replace(made[0], source=replace(made[0].source, context=131072))
    text = modelfile(facts, facts.shelves["GGUF"])
    assert commands(text)["PARAMETER num_ctx"] == ["8192"]
    assert "131072" in text


def test_the_smallest_that_passed_is_preferred(made: Made) -> None:
    small, large, *_ = made[0].variants
    assert preferred([large, small]) is small
    assert preferred([large, replace(small, verdict=None)]) is large


def test_hostile_names_add_no_instruction(hostile: ReleaseFacts) -> None:
    found = commands(modelfile(hostile, hostile.shelves["GGUF"]))
    assert found["FROM"] == ["./zen-nano-Q4_0.gguf"]
    assert set(found) <= {"FROM", "TEMPLATE", "PARAMETER stop", "PARAMETER num_ctx"}


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Messages | json }}",
        "{{ if not .System }}x{{ end }}",
        "{{ end }}",
        "{{ if .System }}x",
        "{{ range .Messages }}x{{ else }}{{ end }}",
    ],
)
def test_templates_beyond_the_known_part_of_go_are_refused(template: str) -> None:
    with pytest.raises(CorruptFile, match="Go template"):
        render_go(template, LONG)


def test_trim_marks_and_branches_are_those_of_go() -> None:
    assert render_go("a {{- if .System }} b {{- else }} c {{ end -}} d", LONG) == "a c d"
    roles = (
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }},'
        '{{ else if eq .Role "assistant" }}{{ else }}?{{ end }}{{ end }}'
    )
    assert render_go(roles, BEGUN) == "?Hi,And now?,"


def commands(text: str) -> dict[str, list[str]]:
    """Instructions of a Modelfile as Ollama's parser reads them."""
    found: dict[str, list[str]] = {}
    pattern = re.compile(
        r'#[^\n]*\n|\s+|(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) ("""(.*?)"""|"([^\n]*)"|([^\n]*))\n',
        re.DOTALL,
    )
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        assert match is not None, text[at : at + 40]
        at = match.end()
        if match[1]:
            value = next(group for group in match.groups()[2:] if group is not None)
            found.setdefault(match[1], []).append(value)
    return found
