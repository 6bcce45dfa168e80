"""Which special tokens a folder's tokenizer files declare, and which of them encoding adds.

Told from, in this order: the post-processor of ``tokenizer.json``, ``tokenizer_config.json``,
``config.json``. As ``gguf.SpecialVocab`` of llama.cpp's gguf-py, quirks included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def find(
    definition: Mapping[str, Any] | None,
    tokenizer_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
) -> tuple[dict[str, int], dict[str, bool]]:
    """Role → id and role → whether it is added, both in the order of declaration."""
    settings = None if tokenizer_config is None else dict(tokenizer_config)
    adds: dict[str, bool] = {}
    roles = list(ROLES)
    if definition is not None:
        for role, substitute in (("bos", "cls"), ("eos", "sep")) if settings is not None else ():
            assert settings is not None
            name = settings.get(f"{role}_token") or settings.get(f"{substitute}_token")
            settings[f"{role}_token"] = name
        _read_post_processor(definition.get("post_processor") or {}, settings, adds, roles)
    special: dict[str, int] = {}
    ids = {t.get("content"): t.get("id") for t in reversed(_added(definition))}
    for role in roles if settings is not None else ():
        assert settings is not None
        wanted = settings.get(f"add_{role}_token")
        if isinstance(wanted, bool):
            adds.setdefault(role, wanted)
        _declare(special, role, ids.get(token_text(settings.get(f"{role}_token"))), vocab_size)
    inner = config.get("text_config")
    for role in roles:
        token = config.get(f"{role}_token_id")
        if token is None and isinstance(inner, Mapping):  # of a model that sees, too
            token = inner.get(f"{role}_token_id")
        _declare(special, role, token, vocab_size)
    return special, adds


def token_text(entry: object) -> str | None:
    """The text of a token as tokenizer_config.json writes it: a string or an object."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _added(definition: Mapping[str, Any] | None) -> list[Any]:
    return list((definition or {}).get("added_tokens") or ())


def _declare(special: dict[str, int], role: str, token: object, vocab_size: int) -> None:
    if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size:
        special.setdefault(role, token)


def _read_post_processor(
    post: Mapping[str, Any],
    settings: dict[str, Any] | None,
    adds: dict[str, bool],
    roles: list[str],
) -> None:
    for processor in post.get("processors", [post]):
        if processor.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            _read_template(processor, settings, adds, roles)


def _read_template(
    processor: Mapping[str, Any],
    settings: dict[str, Any] | None,
    adds: dict[str, bool],
    roles: list[str],
) -> None:
    single, pair = processor.get("single") or [], processor.get("pair") or []
    names = {role: (settings or {}).get(f"{role}_token") or None for role in ("bos", "eos", "sep")}
    first = last = None
    if len(single) > 1:
        first, last = _special_id(single[0]), _special_id(single[-1])
        if first is not None:
            _read_first(first, names, settings, adds)
        if last is not None:
            _read_last(last, names, settings, adds, roles)
    _read_pair(pair, first, last, names, adds)
    if adds.get("sep") and not names["sep"] and settings is not None:
        settings["sep_token"] = names["eos"]


def _special_id(part: Mapping[str, Any]) -> str | None:
    return token_text({"content": part.get("SpecialToken", {}).get("id")})


def _read_first(
    first: str, names: dict[str, Any], settings: dict[str, Any] | None, adds: dict[str, bool]
) -> None:
    known = (names["bos"], (settings or {}).get("cls_token"))
    if settings is None:
        names["bos"] = first
    elif first not in map(token_text, known):
        if not names["bos"]:
            settings["bos_token"] = names["bos"] = first
        settings.setdefault("cls_token", first)
        settings["cls_token"] = settings["cls_token"] or first
    adds["bos"] = first in map(token_text, (names["bos"], (settings or {}).get("cls_token")))


def _read_last(
    last: str,
    names: dict[str, Any],
    settings: dict[str, Any] | None,
    adds: dict[str, bool],
    roles: list[str],
) -> None:
    if settings is None:
        names["eos"] = last
    elif last != token_text(names["eos"]):
        # the former end of sequence becomes the end of a turn
        spare = next((role for role in ("eot", "eom") if role not in roles), None)
        if spare is not None:
            roles.append(spare)
            settings[f"{spare}_token"] = names["eos"]
        settings["eos_token"] = names["eos"] = last
    adds["eos"] = last == token_text(names["eos"])


def _read_pair(
    pair: list[Mapping[str, Any]],
    first: str | None,
    last: str | None,
    names: Mapping[str, Any],
    adds: dict[str, bool],
) -> None:
    """``A … B``: is anything between the two that separates them?"""
    if not pair:
        return
    begin = 1 if first and _special_id(pair[0]) == first else 0
    end = -1 if last and _special_id(pair[-1]) == last else None
    parts = pair[begin:end]
    sequences = [part.get("Sequence", {}).get("id") for part in (*parts[:1], *parts[-1:])]
    middle = parts[1:-1]
    if sequences != ["A", "B"] or not middle:
        return
    separators = {token_text(names["sep"]), token_text(names["eos"])} - {None}
    found = _special_id(middle[0]) in separators and not last
    if len(middle) == 2:
        found = found or _special_id(middle[1]) in separators
    adds["sep"] = found
