"""Ollama's ``Modelfile`` for a shelf of GGUF files.

Ollama renders chats with a Go template and takes the one of the Modelfile before it guesses by the
Jinja template in the GGUF file. Written here is the form that the model's Jinja template has:
ChatML, Llama 3 or ``[INST]`` (Llama 2 and Mistral, whose spaces differ from model to model). It is
only written when both templates give the same text for every probing chat. Source:
docs.ollama.com/modelfile and ollama's parser/parser.go (how values are quoted).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.errors import InvalidInput, UsageError
from zenconvert.publication.facts import ReleaseFacts, SourceFacts, VariantFacts, preferred
from zenconvert.publication.gotemplate import render_go
from zenconvert.texts.samples import Message, Sample
from zenconvert.texts.windows import render

MODELFILE: Final = "Modelfile"
USUAL_CONTEXT: Final = 8192
"""Positions that are asked for of models that take more: memory that everybody has."""

_HIDDEN: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_CHATML: Final = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_LLAMA_3: Final = (
    "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
    "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# probing texts: no white space at the ends, which some templates strip
_SYSTEM: Final = "Sei knapp."
_ASKED: Final = "Wie spät ist es?\n(Ortszeit)"
_ANSWERED: Final = "Kurz nach \"neun\" {oder 'zehn'}."
_AGAIN: Final = "現在幾點？"
_CHATS: Final = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)
_Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class OllamaTemplate:
    """How Ollama renders chats for a model."""

    family: str
    template: str
    stops: tuple[str, ...]
    system: str | None = None
    """What the model's own template says where a chat has no system message."""
    takes_system: bool = True


def ollama_template(source: SourceFacts) -> OllamaTemplate | None:
    """The Go template that gives what the model's Jinja template gives; None where none does."""
    if not source.chat_template:
        return None
    jinja = _Jinja(source.chat_template, source.special)
    candidates = [
        OllamaTemplate("ChatML", _CHATML, ("<|im_start|>", "<|im_end|>")),
        OllamaTemplate(
            "Llama 3", _LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        ),
        _instructions(jinja),
    ]
    for candidate in candidates:
        found = candidate and _with_default_system(candidate, jinja)
        if found and all(_agrees(found, jinja, chat) for chat in _probes(found.takes_system)):
            return found
    return None


def modelfile(facts: ReleaseFacts, variants: Sequence[VariantFacts]) -> str:
    """The Modelfile; ``FROM`` names the preferred variant, and comments the others."""
    made = [v for v in variants if v.is_made]
    chosen = preferred(made)
    source = facts.source
    lines = [
        "# ollama create NAME -f Modelfile",
        *(f"# FROM {_path(v)}" for v in made if v is not chosen),
        f"FROM {_path(chosen)}",
    ]
    if len(chosen.files) > 1:
        lines.append("# In parts: should Ollama refuse them, llama-gguf-split --merge joins them.")
    lines += ["", *_template_lines(source), ""]
    if source.context > USUAL_CONTEXT:
        lines.append(f"# the model takes up to {source.context}")
    lines.append(f"PARAMETER num_ctx {min(source.context, USUAL_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _path(variant: VariantFacts) -> str:
    """Raises UsageError for a name that would be more than a name there."""
    name = variant.files[0]
    if not _is_quotable(name) or "\n" in name:
        raise UsageError(f"{name!r} cannot be named in a {MODELFILE}; give the model another name")
    return f"./{name}"


def _template_lines(source: SourceFacts) -> list[str]:
    found = ollama_template(source)
    stops = [found.stops] if found is not None else []
    eos = source.special.get("eos")
    wanted = dict.fromkeys([*(stop for group in stops for stop in group), *([eos] if eos else [])])
    if found is None:
        lines = [
            "# No TEMPLATE: the model's chat template has none of the forms known here.",
            "# Ollama goes by the one in the GGUF file.",
        ]
    else:
        lines = [f"# {found.family}", f"TEMPLATE {_quoted(found.template)}"]
        if not found.takes_system:
            lines.insert(1, "# The model's own template takes no system message.")
        if found.system is not None:
            lines.append(f"SYSTEM {_quoted(found.system)}")
    return lines + [f"PARAMETER stop {_quoted(stop)}" for stop in wanted if _is_quotable(stop)]


def _is_quotable(text: str) -> bool:
    """Whether the parser reads a text back, and a terminal that shows the file obeys nothing."""
    shown = all(sign in "\n\t" or unicodedata.category(sign) not in _HIDDEN for sign in text)
    return shown and '"""' not in text and not text.startswith('"') and not text.endswith('"')


def _quoted(text: str) -> str:
    """A value as the parser reads it back: it knows no escapes, but triple quotes."""
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


@dataclass(frozen=True, slots=True)
class _Jinja:
    """The model's own template in the sandbox."""

    template: str
    special: Mapping[str, str]

    def render(self, chat: _Chat) -> str | None:
        """The text up to the model's answer, without the BOS that every runtime adds itself; None
        where the template refuses the chat."""
        messages = tuple(Message(m["role"], m["content"]) for m in chat)
        tokens = {f"{role}_token": text for role, text in self.special.items()}
        try:
            sample = Sample("probe", "en", "chat", None, messages)
            text = render(sample, self.template, tokens, reply=True)
        except InvalidInput:
            return None
        return text.removeprefix(self.special.get("bos") or "")


def _chat(*roles: str) -> list[dict[str, str]]:
    texts = {"system": [_SYSTEM], "user": [_ASKED, _AGAIN, _SYSTEM], "assistant": [_ANSWERED, "9"]}
    return [{"role": role, "content": texts[role].pop(0)} for role in roles]


def _probes(system: bool) -> list[_Chat]:
    plain = [_chat(*roles) for roles in _CHATS]
    return [*plain, *(_chat("system", *roles) for roles in _CHATS)] if system else [*plain]


def _agrees(ours: OllamaTemplate, jinja: _Jinja, chat: _Chat) -> bool:
    given = list(chat)
    if ours.system is not None and chat[0]["role"] != "system":  # as Ollama puts it first
        given.insert(0, {"role": "system", "content": ours.system})
    return render_go(ours.template, given) == jinja.render(chat)


def _with_default_system(found: OllamaTemplate, jinja: _Jinja) -> OllamaTemplate | None:
    """The candidate with the system text that the model's template adds where a chat has none."""
    chat = _chat("user")
    theirs, ours = jinja.render(chat), render_go(found.template, chat)
    if theirs == ours or theirs is None or not found.takes_system:
        return found
    mark = "\x00"
    around = render_go(found.template, [{"role": "system", "content": mark}, *chat])
    before, _, after = around.partition(mark)
    if not (theirs.startswith(before) and theirs.endswith(after)):
        return None
    text = theirs[len(before) : len(theirs) - len(after)]
    if not text or not _is_quotable(text):
        return None
    return OllamaTemplate(found.family, found.template, found.stops, text)


def _instructions(jinja: _Jinja) -> OllamaTemplate | None:
    """``[INST]`` with the spaces that the model's template has, cut out of two of its texts."""
    asked, answered, again = _chat("user", "assistant", "user")
    cut = _cut(jinja.render([asked, answered, again]), (asked, answered, again))
    if cut is None or "[INST]" not in cut[0] or "[/INST]" not in cut[1]:
        return None
    first, answer, close, end = cut
    if not answer.startswith(end):
        return None
    chat = _chat("system", "user")
    opened = _cut(jinja.render(chat), chat)
    if opened is not None:
        system = "{{ if .System }}" + opened[0] + "{{ .System }}" + opened[1]
        start = system + "{{ else }}" + first + "{{ end }}"
    else:
        start = first
    template = (
        start + '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}' + end
        + '{{ else if eq .Role "assistant" }}' + answer.removeprefix(end) + "{{ .Content }}" + close
        + "{{ end }}{{ end }}"
    )  # fmt: skip
    pieces = [first, answer, close, end, *(opened or ())]
    if any("{{" in piece or not _is_quotable(f" {piece} ") for piece in pieces):
        return None
    return OllamaTemplate(
        "[INST]", template, ("[INST]", "[/INST]"), takes_system=opened is not None
    )


def _cut(text: str | None, chat: _Chat) -> list[str] | None:
    """The text around the contents of a chat; None where they are not all there, in order."""
    pieces = []
    for message in chat:
        if text is None or message["content"] not in text:
            return None
        before, _, text = text.partition(message["content"])
        pieces.append(before)
    return [*pieces, text or ""]
