"""OpenSSF model signing of a release or a shelf: ``model.sig``, beside what it signs.

A signature is a Sigstore bundle around an in-toto statement that lists every file with its SHA-256.
The package (``model-signing``) sets the statement's predicate itself and lets nothing be added to
it, so the report is bound as one of those files: its digest stands in the statement, and
:func:`statement_digests` reads it from there.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.base.json_text import json_value
from zenconvert.base.scratch import temporary_folder
from zenconvert.base.source_files import parse_json
from zenconvert.errors import (
    BadSignature,
    ConversionFailed,
    CorruptFile,
    MissingDependency,
    UsageError,
)
from zenconvert.publication.checksums import OUTSIDE, SIGNATURE, SUMS
from zenconvert.publication.files import write_file

if TYPE_CHECKING:
    from types import ModuleType

_ALGORITHM: Final = "sha256"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs: the owner of an elliptic-curve key, or, without one, an identity by Sigstore."""

    private_key: Path | None = None
    """PEM, on a NIST curve (P-256, P-384 or P-521). None: keyless, which needs the network."""
    password: str | None = None
    """Of the key file."""
    identity_token: str | None = None
    """Keyless: an OpenID Connect token; without one the ambient credentials of a CI job are used,
    then a browser."""

    def check(self) -> None:
        """Be sure that the key can sign, before there is anything to sign.

        Raises MissingDependency, and UsageError for a key that cannot be used.
        """
        signing = _module("signing")
        if self.private_key is not None:
            try:
                _use(signing.Config(), self)
            except Exception as error:  # as in sign
                raise UsageError(f"{self.private_key}: it cannot sign: {error}") from error


def sign(folder: Path, signer: Signer) -> Path:
    """Sign every file that the folder's ``SHA256SUMS`` are about, and these; returns the signature.

    Raises MissingDependency, UsageError for a key that cannot be used, and ConversionFailed where
    Sigstore cannot be reached.
    """
    signing = _module("signing")
    try:
        config = signing.Config().set_hashing_config(_hashing(folder))
        _use(config, signer)
        with temporary_folder() as elsewhere:
            written = elsewhere / SIGNATURE
            config.sign(folder, written)
            data = written.read_bytes()
    except Exception as error:  # sigstore raises errors of the libraries that it is made of
        if signer.private_key is None:
            raise _keyless_failed(error) from error
        raise UsageError(f"{signer.private_key}: it cannot sign: {error}") from error
    write_file(folder / SIGNATURE, data)
    return folder / SIGNATURE


def _use(config: Any, signer: Signer) -> None:
    if signer.private_key is not None:
        password = None if signer.password is None else signer.password.encode()
        config.use_elliptic_key_signer(private_key=signer.private_key, password=password)
    else:
        config.use_sigstore_signer(
            identity_token=signer.identity_token, use_ambient_credentials=True
        )


def _keyless_failed(error: Exception) -> ConversionFailed:
    return ConversionFailed(
        f"keyless signing failed: {type(error).__name__}: {error}; it needs the network, and an "
        "identity: a token, a CI job that may ask for one (id-token: write), or a browser. Sign "
        "with a key to do without"
    )


def verify_signature(folder: Path, public_key: Path) -> None:
    """Check a folder's signature with a public key, offline.

    Raises BadSignature, MissingDependency, and UsageError for a key that cannot be read.
    """
    verifying = _module("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(f"{public_key}: it is no public key: {error}") from error
    try:
        config.set_hashing_config(_hashing(folder)).verify(folder, folder / SIGNATURE)
    except Exception as error:  # a wrong signature shows in many classes
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise BadSignature(f"{folder / SIGNATURE}: it does not hold: {what}") from error


def statement_digests(signature: Path) -> dict[str, str]:
    """File → SHA-256 in the statement of a signature, which is not verified here.

    Raises CorruptFile.
    """
    try:
        bundle = parse_json(signature)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
        resources = json_value(payload.decode("utf-8"))["predicate"]["resources"]
        return {
            str(entry["name"]): str(entry["digest"])
            for entry in resources
            if entry["algorithm"] == _ALGORITHM
        }
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise CorruptFile(f"{signature}: it is no model signature: {error!r}") from error


def is_keyless(signature: Path) -> bool:
    """Whether a certificate of Sigstore stands for the signer, not a key."""
    try:
        material = parse_json(signature)["verificationMaterial"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{signature}: it is no model signature: {error!r}") from error
    return not isinstance(material, dict) or "publicKey" not in material


def _hashing(folder: Path) -> Any:
    """Every file counts but what lies outside of the sums. In the Hub's cache files are links."""
    below = [path.relative_to(folder) for path in folder.glob(f"*/{SIGNATURE}")]
    ignored = [*sorted(OUTSIDE - {SUMS}), *map(str, below)]
    config = _module("hashing").Config().use_file_serialization(allow_symlinks=True)
    config.set_allow_symlinks(True)
    return config.set_ignored_paths(paths=ignored)


def _module(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise MissingDependency(
            f"signatures need the package model-signing ({error}): "
            "pip install 'zenconvert[signing]'"
        ) from error
