"""Names of checkpoints → paths: ``builtin:NAME``, a path, or a Hub id ``organisation/name``."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Final

from zenconvert.base.garbage import seldom_collected
from zenconvert.base.source_files import is_there, reading, shown
from zenconvert.base.stamps import stamp, stamps_at
from zenconvert.errors import InputWarning, SourceNotFound, UsageError
from zenconvert.formats.registry import detect
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.pretokenizer import named_rule
from zenconvert.models import builtin_path

_LOOKS_LIKE_ID: Final = re.compile(r"(?P<id>[^/\s@\\]+/[^/\s@\\]+)(@(?P<revision>\S+))?")
_HUB_ID: Final = re.compile(r"(?=.{1,96}$)[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_]([\w.\-]*\w)?", re.ASCII)
_REVISION: Final = re.compile(r"\w[\w.\-/]{0,254}", re.ASCII)
_HOW_TO_NAME: Final = "; models of the Hub are named organisation/name[@revision]"
_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]


def open_checkpoint(
    source: str | Path, config: str | Path | None = None, pre: str | None = None
) -> Checkpoint:
    """Open a checkpoint from its headers; no tensor data is read.

    ``config`` is the ``config.json`` of an ONNX graph whose own files do not say what the model is,
    ``pre`` the pre-tokenizer of a GGUF file that does not say how it cuts text; a name that is not
    known is told when the tokenizer is read.

    What is odd about the files is in ``warnings``, and is warned of (InputWarning).

    Raises SourceNotFound, Unsupported, UnknownArchitecture, CorruptFile and the other InvalidInput
    errors, and UsageError for a config of a format that always has its own.
    """
    checkpoint = _open(resolve(source), config)
    if pre is not None and checkpoint.side_files is not None:
        raise UsageError(
            f"{checkpoint.path}: --pre is for GGUF files; tokenizer files say themselves how text "
            "is cut"
        )
    return with_pre(checkpoint, pre)


def with_pre(checkpoint: Checkpoint, pre: str | None) -> Checkpoint:
    """A checkpoint of a GGUF file, whose text is cut as ``pre`` says; any other as it is."""
    if pre is None or checkpoint.side_files is not None:
        return checkpoint
    return replace(checkpoint, load_tokenizer=lambda: named_rule(checkpoint.tokenizer, pre))


def both_with_pre(
    first: Checkpoint, second: Checkpoint, pre: str | None
) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints, those of GGUF files cut as ``pre`` says. Raises UsageError without any."""
    if pre is not None and not any(c.side_files is None for c in (first, second)):
        raise UsageError("--pre makes no sense here: neither model is a GGUF file")
    return with_pre(first, pre), with_pre(second, pre)


def _open(path: Path, config: str | Path | None) -> Checkpoint:
    found = detect(path)
    # what lies beside a graph belongs to it, as what lies in a folder does
    before = stamps_at(path.parent if path.is_file() and not found.is_file else path)
    with reading(path), seldom_collected():
        if config is None:
            checkpoint = found.open(path)
        elif found.open_with is None:
            raise UsageError(
                f"{path}: {found.title} files have their own config; leave out --config"
            )
        else:
            checkpoint = found.open_with(path, Path(config))
    for text in checkpoint.warnings:
        warnings.warn(InputWarning(text), stacklevel=3)
    read = {*checkpoint.files, *(checkpoint.side_files or {}).values()}
    read |= {one for one in before if one.suffix == ".json"}
    stamps = {one: before[one] if one in before else stamp(one) for one in sorted(read)}
    return replace(checkpoint, stamps=stamps)


def resolve(source: str | Path) -> Path:
    """The local path of a source; a Hub id is downloaded into the Hub cache first.

    Raises SourceNotFound for an unknown name, an absent path or an unreachable Hub.
    """
    text = str(source)
    if text.startswith("builtin:"):
        return builtin_path(text.removeprefix("builtin:"))
    path = Path(source)
    if is_there(path):
        return path
    match = _LOOKS_LIKE_ID.fullmatch(text)
    if match is None or isinstance(source, Path) or text.startswith((".", "~")):
        raise SourceNotFound(f"{_what_it_is_not(text, path)}{_HOW_TO_NAME}")
    _check_id(match["id"], match["revision"])
    return _download(match["id"], match["revision"])


def _what_it_is_not(text: str, path: Path) -> str:
    if re.match(r"https?://", text):
        return f"{text!r:.200}: this is an address, not a model's name"
    return f"{shown(path)}: there is no such file or folder"


def _check_id(name: str, revision: str | None) -> None:
    """Raise SourceNotFound for what can be no model of the Hub."""
    good = _HUB_ID.fullmatch(name) and not re.search(r"\.\.|--|\.git$", name)
    if not good:
        raise SourceNotFound(
            f"{name!r:.120}: there is no such file or folder, and it is no Hub id: these are "
            "organisation/name of at most 96 letters (A-Z a-z), digits and . _ -, without .. or -- "
            "in them or .git at the end"
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SourceNotFound(f"{name}: {revision!r:.80} is no revision: a branch, tag or commit")


def _download(repo_id: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=_WANTED
        )
    except RepositoryNotFoundError as error:
        raise SourceNotFound(
            f"{repo_id}: no such folder here and no such model on the Hub (or it is private: set "
            "HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceNotFound(f"{repo_id}: the Hub has no revision {revision!r} of it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise SourceNotFound(
            f"{repo_id}: no such folder here, and the Hub cannot be reached to look for a model of "
            f"that name ({type(error).__name__}); check the network or download it first"
        ) from error
    return Path(folder)
