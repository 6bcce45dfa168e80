"""Chat templates as transformers renders them, and templates that mean no good."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import jinja2
import pytest
from transformers.utils import chat_template_utils

from zenconvert.texts.template_child import DAY
from zenconvert.texts.templates import TemplateFailed, render_template

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 2 < 3?\n"},
    {
        "role": "assistant", "content": "", "reasoning_content": "easy",
        "tool_calls": [
            {"type": "function", "function": {"name": "less", "arguments": {"a": 2, "b": "é"}}}
        ],
    },
    {"role": "tool", "name": "less", "content": '{"result": true}'},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    {"role": "user", "content": [{"type": "text", "text": "Thanks"}, {"type": "image"}]},
]  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "less", "description": "Is a < b?",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]  # fmt: skip
IDIOMS = {
    "tools as JSON": (
        "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}"
        "{%- endfor %}{{- '</tools>\\n' }}{%- endif %}{{ tools | tojson(indent=2) }}"
        "{%- for m in messages if m.tool_calls %}{%- for c in m.tool_calls %}"
        "{{ c.function.arguments | tojson }}{%- endfor %}{%- endfor %}"
    ),
    "generation": (
        "{% set n = namespace(x=1) %}{% set y = 1 %}{% for m in messages %}"
        "{% generation %}{{ m.role }}{% set y = 2 %}{% set n.x = n.x + 1 %}{% endgeneration %}"
        "{{ y }}{{ n.x }}{% endfor %}"
    ),
    "the date": (
        "{{ strftime_now('%d %b %Y') }}{% set today = strftime_now('%Y-%m-%d') %}{{ today }}"
    ),
    "the date if there is one": (
        "{%- if strftime_now is defined %}{%- set d = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set d = '26 Jul 2024' %}{%- endif %}{{ d }}"
    ),
    "namespace": (
        "{%- set ns = namespace(found=false, last=messages|length - 1) %}"
        "{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if not ns.found and m.role == 'user' and m.content is string %}"
        "{%- set ns.found = true %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{{ ns.last }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{% if loop.index > 4 %}{% break %}{% endif %}{{ loop.previtem.role }}>{{ m.role }}"
        "{% endfor %}"
    ),
    "macros and tests": (
        "{% macro text(c) -%}{% if c is string %}{{ c|trim }}{% elif c is iterable and c is not "
        "mapping %}{% for p in c if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}"
        "{%- endmacro %}{% for m in messages %}<|{{ m['role'] }}|>{{ text(m.content) }}\n"
        "{% endfor %}"
    ),
    "methods of texts": (
        "{% for m in messages if m.content is string and '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{{ m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].strip() }}"
        "{{ m.content.startswith('<') }}{{ m.content.replace('Y', 'y') }}{% endfor %}"
    ),
    "slices and filters": (
        "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0].content | upper %}{% endif %}{{ bos_token + system }}"
        "{{ loop_messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ loop_messages | map(attribute='role') | join(',') }}{{ eos_token }}"
        "{% for k, v in messages[3].items() %}{{ k }}={{ v }};{% endfor %}{{ none_such }}"
    ),
    "white space": (
        "  {% if add_generation_prompt %}\n    {{- 'assistant' }}\n  {% endif %}\n"
        "{#- a note -#}\n  end\n{% raw %}{{ x }}{% endraw %}\n"
    ),
    "refusals": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 1) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    ),
    "a dictionary": (
        "{% set d = dict(a=1, b=tools) %}{{ d.a }}{{ d | tojson }}{{ d.items() | list }}"
    ),
    "reasoning": (
        "{% for m in messages %}{{ m.reasoning_content if m.reasoning_content is defined }}"
        "{% endfor %}"
    ),
    "a name that is kept from templates": "{% set n = namespace(_x=1) %}{{ n._x }}",
    "a name that is kept, later": "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


class Frozen(datetime):
    """The day on which ours are rendered."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        del tz
        return DAY


@pytest.mark.parametrize("prompt", [False, True], ids=["whole", "prompt"])
@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms_give_what_transformers_gives(
    idiom: str, prompt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    template = IDIOMS[idiom]
    values: dict[str, Any] = {"messages": CHAT, "tools": TOOLS, "documents": None, **NAMES}
    try:
        [expected], _ = chat_template_utils.render_jinja_template(
            [CHAT], tools=TOOLS, chat_template=template, add_generation_prompt=prompt, **NAMES
        )
    except jinja2.TemplateError as error:
        with pytest.raises(TemplateFailed, match=type(error).__name__):
            render_template(template, values | {"add_generation_prompt": prompt})
        return
    assert render_template(template, values | {"add_generation_prompt": prompt}) == expected


HOSTILE = {
    "a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a range": "{{ range(10 ** 9) | list }}",
    "nested ranges": "{{ range(99999) | map('string') | list * 99999 }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a width": "{{ '%4000000000d' % 1 }}",
    "a format": "{{ '{:>4000000000}'.format(1) }}",
    "a product": "{{ 'x' * 4000000000 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "doubling": "{% set n = namespace(t='xx') %}{% for i in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t | length }}",
    "an indent": "{{ messages | tojson(indent=2000000000) }}",
    "a centre": "{{ 'x' | center(4000000000) }}",
    "a filler": "{{ 'x' | indent(2000000000) }}{{ ('x\n' * 99) | indent(2000000000) }}",
    "batches": "{{ messages | batch(4000000000, 'x') | list }}",
    "a replacement": "{{ ('x' * 99999) | replace('', 'y' * 99999) }}",
    "words": "{{ lipsum(n=10000000) }}",
    "wrapping": "{{ ('x ' * 9999999) | wordwrap(1) }}",
    "a shift": "{{ (1 ** 1).__lshift__(9999999999) }}",
    "joined": "{{ range(99999) | join('x' * 99999) }}",
    "an attribute walk": "{{ messages.__class__.__base__.__subclasses__()[0]() }}",
    "globals": "{{ lipsum.__globals__['os'].getcwd() }}",
    "a function's code": "{{ raise_exception.__code__.co_filename.x }}",
    "an inner environment": "{{ self._TemplateReference__context.environment.globals.x.y }}",
    "an import": "{% import 'os' as os %}{{ os.getcwd() }}",
    "a file": "{% include '/etc/passwd' %}",
    "a change": "{{ messages.append(1) }}",
    "a method's owner": "{{ strftime_now.__self__.x.y }}",
    "half a character": "{{ '\\ud800' }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "no template": "{% for %}",
    "a long name": "{{ " + "a." * 20000 + "b }}",
    "an endless sum": "{{ " + " + ".join(["1"] * 20000) + " }}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_templates_that_mean_no_good_are_refused(what: str) -> None:
    """Within the limits, and the next one is rendered."""
    with pytest.raises(TemplateFailed) as caught:
        render_template(HOSTILE[what], {"messages": CHAT})
    assert len(str(caught.value)) < 1200
    assert render_template("{{ messages[0].role }}", {"messages": CHAT}) == "system"


def test_a_template_that_waits_ends() -> None:
    """What takes no processor time cannot be had: there is nothing to wait for."""
    began = time.process_time()
    with pytest.raises(TemplateFailed):
        render_template("{{ strftime_now('%Y' * 9999999) | length + none }}", {"messages": CHAT})
    assert time.process_time() - began < 60
