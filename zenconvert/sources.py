"""Names of checkpoints → paths: ``builtin:NAME``, a path, or a Hub id ``organisation/name``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from zenconvert.checkpoint import Checkpoint
from zenconvert.errors import SourceNotFound, UsageError
from zenconvert.formats.registry import detect
from zenconvert.models import builtin_path

_HUB_ID: Final = re.compile(r"(?P<id>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w.\-/]+))?")
_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]


def open_checkpoint(source: str | Path, config: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint from its headers; no tensor data is read.

    ``config`` is the ``config.json`` of an ONNX graph whose own files do not say what the model is.

    Raises SourceNotFound, Unsupported, UnknownArchitecture, CorruptFile and the other InvalidInput
    errors, and UsageError for a config of a format that always has its own.
    """
    path = resolve(source)
    found = detect(path)
    if config is None:
        return found.open(path)
    if found.open_with is None:
        raise UsageError(f"{path}: {found.title} files have their own config; leave out --config")
    return found.open_with(path, Path(config))


def resolve(source: str | Path) -> Path:
    """The local path of a source; a Hub id is downloaded into the Hub cache first.

    Raises SourceNotFound for an unknown name, an absent path or an unreachable Hub.
    """
    text = str(source)
    if text.startswith("builtin:"):
        return builtin_path(text.removeprefix("builtin:"))
    path = Path(source)
    match = _HUB_ID.fullmatch(text)
    if path.exists() or match is None or isinstance(source, Path):
        if not path.exists():
            raise SourceNotFound(f"{path}: there is no such file or folder")
        return path
    return _download(match["id"], match["revision"])


def _download(repo_id: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
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
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise SourceNotFound(
            f"{repo_id}: no such folder here, and the Hub cannot be reached to look for a model of "
            f"that name ({type(error).__name__}); check the network or download it first"
        ) from error
    return Path(folder)
