"""What encoding puts around a text: BOS, EOS or whatever a post-processor has.

``AutoTokenizer`` goes by the post-processor where there is a ``tokenizer.json``, whatever
``add_bos_token`` and ``add_eos_token`` of ``tokenizer_config.json`` say; without one it goes by
these, and adds nothing where they are silent.

Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend.update_post_processor``
of transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.formats.hf import fast
from zenconvert.formats.hf.special_tokens import token_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_PROBES: Final = ("a", "0", " ", "\n")
_TRIES: Final = 64
_ENOUGH: Final = 2
_USUAL: Final = {"bos": "<s>", "eos": "</s>"}
"""What transformers takes where a config names no token."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    regular: bool = True
    """The text stands once between them, whatever it is."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Special tokens by role, and which of them encoding adds."""

    special: Mapping[str, int]
    adds: Mapping[str, bool]
    unsaid: frozenset[str] = field(default_factory=frozenset)
    """Roles of ``adds`` that the files state nowhere."""


def frame_of(library: FastTokenizer) -> Frame:
    """What the post-processor puts around a text, told from two."""
    found = []
    for text in _probes(library):
        if plain := _ids(library, text, framed=False):
            whole = _ids(library, text, framed=True)
            places = range(len(whole) - len(plain) + 1)
            at = next((i for i in places if whole[i : i + len(plain)] == plain), None)
            if at is None:
                return Frame(regular=False)
            found.append(Frame(tuple(whole[:at]), tuple(whole[at + len(plain) :])))
        if len(found) == _ENOUGH:
            return found[0] if found[0] == found[1] else Frame(regular=False)
    return found[0] if found else Frame(tuple(_ids(library, "", framed=True)))


def _ids(library: FastTokenizer, text: str, *, framed: bool) -> list[int]:
    """Token ids; none of a text that it has no words for."""
    try:
        return fast.encode(library, text, framed=framed)
    except InvalidInput:
        return []


def _probes(library: FastTokenizer) -> Iterator[str]:
    yield from _PROBES
    yield from list(library.get_vocab(with_added_tokens=False))[:_TRIES]


def flagged(
    settings: Mapping[str, Any] | None, special: Mapping[str, int], ids: Mapping[str, int]
) -> Frame:
    """What flags of ``tokenizer_config.json`` put around a text where there is no tokenizer.json.

    ``special`` maps roles to ids, ``ids`` the texts of tokens.
    """
    found: dict[str, tuple[int, ...]] = {}
    for role, usual in _USUAL.items():
        if (settings or {}).get(f"add_{role}_token") is True:
            text = token_text((settings or {}).get(f"{role}_token", usual))
            number = special.get(role, ids.get(text or ""))
            found[role] = () if number is None else (number,)
    return Frame(found.get("bos", ()), found.get("eos", ()))


def settle(special: Mapping[str, int], said: Mapping[str, bool], frame: Frame) -> Roles:
    """Roles as files declare them, with BOS and EOS as a frame has them."""
    roles, adds = dict(special), dict(said)
    for role, ids in (("bos", frame.before[:1]), ("eos", frame.after[-1:])):
        for number in ids:
            roles.setdefault(role, number)
        adds[role] = ids == (roles.get(role),)
    return Roles(roles, adds, frozenset(adds) - set(said))


def contradictions(
    settings: Mapping[str, Any] | None, adds: Mapping[str, bool], *, definition: bool
) -> Iterator[str]:
    """Where flags and what is added differ. ``definition``: there is a ``tokenizer.json``."""
    for role in ("bos", "eos"):
        said = (settings or {}).get(f"add_{role}_token")
        added = adds.get(role, False)
        if said is not None and said != added:
            yield (
                f"add_{role}_token is {str(said).lower()} in tokenizer_config.json, and "
                + _instead(role, added=added, definition=definition)
            )


def _instead(role: str, *, added: bool, definition: bool) -> str:
    if not definition:
        return f"no {role}_token is named: none is added"
    does = "adds it" if added else "does not add it"
    return (
        f"the post-processor of tokenizer.json {does}: that is taken, as transformers 5 does (some "
        "classes of transformers 4 go by the flag)"
    )
