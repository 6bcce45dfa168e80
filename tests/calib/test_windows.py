"""Windows hold every token of their document, and templates render as in transformers or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from zenconvert import open_checkpoint
from zenconvert.errors import InvalidInput, UsageError
from zenconvert.formats.hf.tokenizer import TextEncoder
from zenconvert.models import builtin_path
from zenconvert.texts import templates
from zenconvert.texts.samples import Message, Sample, load_bundled
from zenconvert.texts.windows import Cutter, Window, render, windows

BOS = 7
CHAT = Sample(
    "chat-1",
    "en",
    "chat",
    None,
    (
        Message("system", "Answer briefly."),
        Message("user", "Is 3 < 4 & 4 > 3? \u00c9t\u00e9 \u2028 'ja'\n"),
        Message("assistant", "  Yes.\n"),
    ),
)


class Characters:
    """One token per character: its code point."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]


def cut(samples: Sequence[Sample], context: int, prefix: int | None = None) -> list[Window]:
    return windows(samples, Cutter(Characters(), context, None, {}, prefix))


def document(name: str, text: str, language: str = "en") -> Sample:
    return Sample(name, language, "prose", text, None)


@given(
    sizes=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    context=st.integers(3, 40),
    prefix=st.sampled_from([None, BOS]),
)
def test_windows_hold_every_token_of_one_document(
    sizes: list[int], context: int, prefix: int | None
) -> None:
    texts = {
        f"doc-{n}": "".join(chr(100 + 100 * n + i) for i in range(size))
        for n, size in enumerate(sizes)
    }
    found = cut([document(name, text, name) for name, text in texts.items()], context, prefix)
    assert [*dict.fromkeys(w.sample for w in found)] == [*texts]
    for name, text in texts.items():
        own = [w for w in found if w.sample == name]
        ids: list[int] = []
        for window in own:
            assert window.language == name
            assert 2 <= len(window.ids) <= context
            if prefix is not None:
                assert window.ids[0] == prefix
            ids += window.ids[prefix is not None :]
        if prefix is None and len(text) % context == 1:
            text = text[:-1]  # a last token alone has nothing to be predicted from
        assert "".join(map(chr, ids)) == text
        assert all(len(w.ids) == context for w in own[:-1])


def test_a_first_token_that_is_the_prefix_stands_there_once() -> None:
    text = chr(BOS) + "abc" + chr(BOS) + "d"
    found = cut([document("a", text)], 4, BOS)
    assert [w.ids for w in found] == [(BOS, 97, 98, 99), (BOS, BOS, 100)]
    assert [w.ids for w in cut([document("a", text)], 4)] == [(BOS, 97, 98, 99), (BOS, 100)]


def test_single_tokens_are_windows_only_after_a_prefix() -> None:
    found = cut([document("a", "x"), document("b", "yz")], 8, BOS)
    assert [w.ids for w in found] == [(BOS, 120), (BOS, 121, 122)]
    assert [w.sample for w in cut([document("a", "x"), document("b", "yz")], 8)] == ["b"]
    with pytest.raises(UsageError, match="nothing to measure"):
        cut([document("a", "x")], 8)


@pytest.mark.parametrize(("context", "prefix"), [(1, None), (2, BOS), (0, None)])
def test_a_context_without_room_is_refused(context: int, prefix: int | None) -> None:
    with pytest.raises(UsageError, match="too short"):
        cut([document("a", "xyz")], context, prefix)


def test_bundled_texts_are_encoded_as_by_transformers() -> None:
    theirs = AutoTokenizer.from_pretrained(builtin_path("zen-nano"))
    tokenizer = open_checkpoint("builtin:zen-nano").tokenizer
    samples = load_bundled("evaluation", ["en", "de"])
    cutter = Cutter(TextEncoder(tokenizer), 2048, tokenizer.chat_template, {}, None)
    found = windows(samples, cutter)
    assert len(found) == len(samples)
    for sample, window in zip(samples, found, strict=True):
        assert (window.sample, window.language) == (sample.id, sample.language)
        if sample.messages is None:
            expected = theirs(sample.text, add_special_tokens=False)["input_ids"]
        else:
            chat = [{"role": m.role, "content": m.content} for m in sample.messages]
            expected = theirs.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert list(window.ids) == expected


def test_the_bundled_template_renders_as_by_transformers() -> None:
    theirs = AutoTokenizer.from_pretrained(builtin_path("zen-nano"))
    template = open_checkpoint("builtin:zen-nano").tokenizer.chat_template
    chats = [s for s in load_bundled("evaluation", ["en", "de"]) if s.messages is not None]
    assert len(chats) >= 4
    for sample in [*chats, CHAT]:
        chat = [{"role": m.role, "content": m.content} for m in sample.messages or ()]
        assert render(sample, template, {}) == theirs.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    "template",
    [
        # Llama 3 in short
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n\n' + m.content | trim }}"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
        # blocks on lines of their own
        "{% for m in messages %}\n  {% if loop.first %}\n  first\n  {% endif %}\n{{ m.content }}\n"
        "{% endfor %}\n",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}"
        "{% if m.role == 'system' %}{% continue %}{% endif %}!{% endfor %}",
        "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}",
        "{% if tools is not none or documents is not none %}tools{% endif %}"
        "{% if tools is defined %}defined{% endif %}{% if strange is defined %}strange{% endif %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endif %}{% endfor %}.",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ messages[1:] | map(attribute='role') | join(',') }}{{ eos_token }}",
        "{%- macro turn(m) -%}\n[{{ m.role }}]\n{%- endmacro -%}\n{{ turn(messages[-1]) }}",
    ],
)
def test_templates_render_as_by_transformers(template: str) -> None:
    theirs = AutoTokenizer.from_pretrained(builtin_path("zen-nano"), bos_token="<|endoftext|>")
    chat = [{"role": m.role, "content": m.content} for m in CHAT.messages or ()]
    expected = theirs.apply_chat_template(chat, chat_template=template, tokenize=False)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    assert render(CHAT, template, special) == expected


def test_without_a_template_turns_are_chatml() -> None:
    theirs = AutoTokenizer.from_pretrained(builtin_path("zen-nano"))
    chat = [{"role": m.role, "content": m.content} for m in CHAT.messages or ()]
    assert render(CHAT, None, {}) == theirs.apply_chat_template(chat, tokenize=False)


def test_texts_are_no_templates() -> None:
    assert render(document("a", "{{ 1 + 1 }}"), "{{ 'never' }}", {}) == "{{ 1 + 1 }}"
    inside = Sample("a", "en", "chat", None, (Message("user", "{{ 1 + 1 }}{% if %}"),))
    assert render(inside, "{{ messages[0].content }}", {}) == "{{ 1 + 1 }}{% if %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('false') }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].clear() }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ 1 / 0 }}",
        "{{ 10.0 ** 1000 }}",
        "{{ messages[9].content }}",
        "{{ messages | tojson(indent=messages) }}",
        "{{ '\\ud800'.encode('utf-8') }}",
        "{{ nothing.at.all }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}",
        "{% for a in messages %}" * 25 + "{% endfor %}" * 25,
        "{" * 400,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
    ids=lambda template: template[:40],
)
def test_a_template_that_misbehaves_is_refused(template: str) -> None:
    with pytest.raises(InvalidInput, match="the chat template fails on sample chat-1"):
        render(CHAT, template, {})


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__ }}", "{{ '{0.__class__}'.format(messages) }}"]
)
def test_a_template_sees_nothing_behind_its_values(template: str) -> None:
    assert render(CHAT, template, {}) == ""


def test_a_template_does_not_reach_the_next_sample() -> None:
    leaving = "{% set ns = namespace(seen=1) %}{% set seen = 1 %}{{ messages[0].update(role='x') }}"
    with pytest.raises(InvalidInput):
        render(CHAT, leaving, {})
    render(CHAT, "{% set seen = 1 %}", {})
    assert render(CHAT, "{{ seen }}{{ messages[0].role }}", {}) == "system"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '%4000000000d' % 1 }}",
        "{{ '{:>4000000000}'.format(1) }}",
        "{{ messages | tojson(indent=2000000000) }}",
        "{{ lipsum(n=10000000) }}",
        "{{ '\\ud800' }}",
    ],
)
def test_a_template_has_little_time_and_memory(template: str) -> None:
    with pytest.raises(InvalidInput, match="the chat template fails on sample chat-1"):
        render(CHAT, template, {})
    assert render(CHAT, "{{ messages[0].role }}", {}) == "system"


def test_templates_run_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_process", lambda pid: templates._Process())
    for name in ("json", "jinja2", "pathlib", "sitecustomize", "resource", "signal"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert render(CHAT, "{{ messages[0].role }}", {}) == "system"
    assert not (tmp_path / "ran").exists()
