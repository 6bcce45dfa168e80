"""What the tokenizer files of an HF folder say together, as ``AutoTokenizer`` takes them.

Added tokens stand in ``tokenizer.json``, in ``added_tokens_decoder`` of ``tokenizer_config.json``
or, before that was written, in ``added_tokens.json`` with ``special_tokens_map.json``; special
tokens that a config names and the vocabulary has not are added. Chat templates of files win over
those of the config.

Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend.__init__`` of
transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.base.source_files import read_text, what_it_is
from zenconvert.errors import CorruptFile
from zenconvert.formats.hf import fast, sentencepiece_model
from zenconvert.formats.hf.frame import Roles, contradictions, flagged, frame_of, settle
from zenconvert.formats.hf.json_file import MOST_TOKENIZER, read_json
from zenconvert.formats.hf.rebuilt import rebuilt
from zenconvert.formats.hf.sentencepiece_model import SentencePieceModel
from zenconvert.formats.hf.spare import MODEL, usable
from zenconvert.formats.hf.special_tokens import ROLES, find, token_text
from zenconvert.model.tokenizer import gpt2_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

TEMPLATE: Final = "chat_template.jinja"
FURTHER_TEMPLATES: Final = "additional_chat_templates"
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OLDER: Final = "additional_special_tokens"
_FURTHER: Final = ("model_specific_special_tokens", "extra_special_tokens", _OLDER)


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is recognised in a text before anything else is done to it."""

    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer files of a folder, each parsed on first use."""

    path: Path
    vocab_size: int

    @cached_property
    def definition(self) -> dict[str, Any] | None:
        """``tokenizer.json``, which the tokenizers library has accepted."""
        if self._library is None:
            return None
        return read_json(self.path / "tokenizer.json")

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """``tokenizer_config.json``."""
        found = self.optional("tokenizer_config.json")
        for role in ROLES:
            value = (found or {}).get(f"add_{role}_token")
            if value is not None and not isinstance(value, bool):
                raise CorruptFile(
                    f"{self.path / 'tokenizer_config.json'}: add_{role}_token should be true or "
                    f"false, found {value!r:.60}"
                )
        return found

    @cached_property
    def _library(self) -> FastTokenizer | None:
        """``tokenizer.json`` as the library loads it."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            return None
        if (other := what_it_is(file)) is not None:
            raise CorruptFile(f"{file}: it is {other}")
        return fast.load(text_of(file), str(file))

    @cached_property
    def loaded(self) -> FastTokenizer | None:
        """``tokenizer.json`` with the tokens that the other files add."""
        from tokenizers import AddedToken

        library = self._library
        if library is None:
            return None
        known = {t.content for t in library.get_added_tokens_decoder().values()}
        tokens = [token for _, token in sorted(self.declared.items())]
        known |= {token.text for token in tokens}
        for token in self._named():
            if token.text not in known:
                tokens.append(token)
                known.add(token.text)
        library.add_tokens(
            [
                AddedToken(
                    t.text, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip,
                    normalized=t.normalized, special=t.special,
                )
                for t in tokens
            ]
        )  # fmt: skip
        return library

    @cached_property
    def encoding(self) -> bytes | None:
        """A ``tokenizer.json`` that encodes as the files say together."""
        library = self.loaded
        if library is None:
            return None
        definition = json.loads(library.to_str())
        model, texts = definition["model"], {t.text: number for number, t in self.added.items()}
        if not isinstance(model["vocab"], dict):
            return _json(definition)
        words = also_words(model["vocab"], texts) if model.get("ignore_merges") else {}
        own, vocab = model["vocab"], library.get_vocab(with_added_tokens=True)
        # the library would number added tokens anew
        model["vocab"] = own | {text: n for text, n in texts.items() if text not in words}
        if words:  # in the vocabulary they would be made of those words, too
            found = fast.load(_json(definition), str(self.path)).get_vocab(with_added_tokens=True)
            model["vocab"] |= {} if found == vocab else texts
        return _json(definition)

    @cached_property
    def added(self) -> dict[int, Added]:
        """Added tokens by the id that they get."""
        if self.loaded is None:
            return self.declared
        return {
            number: Added(
                t.content, t.special, t.lstrip, t.rstrip, t.single_word, t.normalized
            )
            for number, t in self.loaded.get_added_tokens_decoder().items()
        }  # fmt: skip

    @cached_property
    def declared(self) -> dict[int, Added]:
        """Added tokens of the files beside tokenizer.json, by the id that they are said to have."""
        where = self.path / "tokenizer_config.json"
        decoder = (self.settings or {}).get("added_tokens_decoder")
        if decoder is not None:
            if not isinstance(decoder, dict) or any(isinstance(t, str) for t in decoder.values()):
                raise CorruptFile(f"{where}: added_tokens_decoder should map ids to objects")
            return {_id(key, where): _token(value, where) for key, value in decoder.items()}
        where = self.path / "added_tokens.json"
        special = {token.text for token in self._named()}
        found = {}
        for text, number in (self.optional(where.name) or {}).items():
            if type(number) is not int or number < 0:
                raise CorruptFile(f"{where}: the id of {text!r:.60} is {number!r:.60}")
            is_special = text in special
            found[number] = Added(_text(text, where), is_special, normalized=not is_special)
        return found

    def _named(self) -> Iterator[Added]:
        """Special tokens that a config names.

        What special_tokens_map.json says goes before the same key of tokenizer_config.json, and
        is not read where that has an added_tokens_decoder; of the older name of further tokens
        nothing is taken where the newer one has some.
        """
        found: dict[str, tuple[Path, Any]] = {}
        further: list[tuple[Path, Any]] = []
        for where, table in self._tables():
            found |= {key: (where, value) for key, value in table.items()}
            for key in _FURTHER:
                value = table.get(key) or []
                if not isinstance(value, dict | list):
                    raise CorruptFile(f"{where}: {key} should be a list, found {value!r:.60}")
                tokens = list(value.values()) if isinstance(value, dict) else value
                if key != _OLDER or not further:
                    further += [(where, token) for token in tokens]
        for key, (where, value) in found.items():
            if key.endswith("_token") and isinstance(value, str | Mapping) and value:
                yield _token(value, where, special=True)
        for where, value in further:
            yield _token(value, where, special=True)

    def _tables(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The files that name special tokens: what the latter says goes before."""
        decoder = None
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if decoder is None:
                table = self.optional(name) or {}
                yield self.path / name, table
                decoder = table.get("added_tokens_decoder")

    @cached_property
    def named(self) -> dict[str, int]:
        """Role → id, of the roles that the files name a token for."""
        if self.loaded is not None:
            ids = self.loaded.get_vocab(with_added_tokens=True)
        else:
            ids = self._own_ids()
        texts: dict[str, object] = {}
        for _, table in self._tables():
            texts |= {r: table[f"{r}_token"] for r in ROLES if f"{r}_token" in table}
        padding = (self.definition or {}).get("padding")
        if isinstance(padding, Mapping):
            texts.setdefault("pad", padding.get("pad_token"))
        if self.definition is None and self.pieces is not None:
            texts.pop("unk", None)  # a piece has a type that says it
        found = {role: ids.get(token_text(text) or "") for role, text in texts.items()}
        return {role: number for role, number in found.items() if number is not None}

    def optional(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, None where there is none. Raises CorruptFile."""
        return read_json(self.path / name) if usable(self.path, name) else None

    @cached_property
    def roles(self) -> Roles:
        """Special tokens by role, and which of them encoding adds."""
        config = self.optional("config.json") or {}
        special, said = find(self.definition, self.settings, config, vocab_size=self.vocab_size)
        if "cls" not in self.named:  # made up for a post-processor
            special.pop("cls", None)
        fitting = {r: i for r, i in self.named.items() if i < self.vocab_size}
        special |= {role: number for role, number in fitting.items() if role not in special}
        if self.loaded is None:
            return settle(special, said, flagged(self.settings, special, self._own_ids()))
        return settle(special, said, frame_of(self.loaded))

    @property
    def other_roles(self) -> Iterator[str]:
        """Roles for which the files name another token than llama.cpp is given."""
        taken = self.roles.special
        for role, number in self.named.items():
            if number >= self.vocab_size:
                yield f"{role}_token is token {number}, of which the model has no row"
            elif number not in taken.values():
                yield f"{role}_token is token {number}, and token {taken[role]} in another file"

    @cached_property
    def pieces(self) -> SentencePieceModel | None:
        """``tokenizer.model``; None where there is none. Raises CorruptFile."""
        there = usable(self.path, MODEL)
        return sentencepiece_model.read(self.path / MODEL) if there else None

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """``vocab.json``. Raises SourceNotFound or CorruptFile."""
        file = self.path / "vocab.json"
        found = read_json(file)
        for number in found.values():
            if type(number) is not int:
                raise CorruptFile(f"{file}: texts should map to ids, found {number!r:.60}")
        return found

    def _own_ids(self) -> dict[str, int]:
        """Ids of all tokens of a folder without tokenizer.json, by their texts."""
        if self.pieces is not None:
            own = {piece.text: i for i, piece in enumerate(self.pieces.pieces)}
        else:
            own = self.vocabulary
        return own | {token.text: number for number, token in self.declared.items()}

    @property
    def warnings(self) -> list[str]:
        """Where the files differ from each other or from transformers, each with the folder."""
        settings, config = self.settings or {}, self.optional("config.json") or {}
        told = contradictions(settings, self.roles.adds, definition=self.definition is not None)
        found = list(told)
        if self.definition is not None or self.pieces is not None:
            found += rebuilt(self.definition, settings, config.get("model_type"))
        if settings.get("split_special_tokens") is True:
            found.append(
                "split_special_tokens is true in tokenizer_config.json: transformers takes special "
                "tokens in a text for plain text; here and in llama.cpp the caller says that"
            )
        return [f"{self.path}: {text}" for text in found]

    def templates(self) -> tuple[str | None, dict[str, str]]:
        """The default chat template and the named ones. Raises CorruptFile."""
        named = {
            file.name.removesuffix(".jinja"): text_of(file)
            for file in sorted((self.path / FURTHER_TEMPLATES).glob("*.jinja"))
            if usable(self.path, f"{FURTHER_TEMPLATES}/{file.name}")
        }
        if usable(self.path, TEMPLATE):
            return named.pop("default", text_of(self.path / TEMPLATE)), named
        if named:
            return named.pop("default", None), named
        value: Any = (self.settings or {}).get("chat_template")
        if value is None:
            value = (self.optional("chat_template.json") or {}).get("chat_template")
        where = self.path / "tokenizer_config.json"
        if isinstance(value, list):
            rows = [(r.get("name"), r.get("template")) for r in value if isinstance(r, Mapping)]
            value = {n: t for n, t in rows if isinstance(n, str)}
        if isinstance(value, dict):
            named = {n: _text(t, where) for n, t in value.items()}
            return named.pop("default", None), named
        return (None if value is None else _text(value, where)), {}


def also_words(vocab: Mapping[str, int], texts: Iterable[str]) -> dict[str, bytes]:
    """Added tokens that a word in GPT-2's alphabet would become, if they were in the vocabulary of
    a model that does not merge such words, and these words."""
    raw = gpt2_alphabet()
    spelt = (t for t in texts if t not in vocab and all(char in raw for char in t))
    words = {text: bytes(raw[char] for char in text) for text in spelt}
    return {text: word for text, word in words.items() if word != text.encode()}


def _json(definition: Mapping[str, Any]) -> bytes:
    return json.dumps(definition, ensure_ascii=False).encode("utf-8")


def text_of(path: Path) -> str:
    """A UTF-8 file as Python reads text: line ends are ``\\n``. Raises CorruptFile."""
    return read_text(path, MOST_TOKENIZER).replace("\r\n", "\n").replace("\r", "\n")


def _text(value: object, where: Path) -> str:
    """A text that UTF-8 can write. Raises CorruptFile."""
    if not isinstance(value, str):
        raise CorruptFile(f"{where}: expected a text, found {value!r:.60}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorruptFile(f"{where}: {value!r:.60} is no text: {error.reason}") from error
    return value


def _id(key: str, where: Path) -> int:
    try:
        number = int(key)
    except ValueError as error:
        raise CorruptFile(f"{where}: {key!r:.60} is no id of an added token") from error
    if not 0 <= number < 1 << 31:
        raise CorruptFile(f"{where}: {key!r:.60} is no id of an added token")
    return number


def _token(value: object, where: Path, *, special: bool = False) -> Added:
    """A token as a text, or as an object with flags; ``special`` holds where it says nothing.

    Raises CorruptFile.
    """
    if isinstance(value, str):
        return Added(_text(value, where), special=True)
    if not isinstance(value, Mapping):
        raise CorruptFile(f"{where}: an added token should be an object, found {value!r:.60}")
    special = value.get("special", special)
    flags = {name: value.get(name, False) for name in _FLAGS}
    flags["special"], flags["normalized"] = special, value.get("normalized", not special)
    if bad := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
        raise CorruptFile(f"{where}: {bad[0]} of an added token should be true or false")
    return Added(_text(value.get("content"), where), **flags)
