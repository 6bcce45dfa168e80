"""Signatures of a shelf, made and checked by model-signing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.publication.conftest import Made
from zenconvert.errors import BadSignature, CorruptFile, UsageError
from zenconvert.publication.checksums import SIGNATURE
from zenconvert.publication.signing import Signer, sign, statement_digests, verify_signature
from zenconvert.verification.digests import read_digest

Keys = tuple[Path, Path]


def make_keys(folder: Path) -> Keys:
    """A private key and its public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


def test_a_signature_holds_for_its_files_wherever_they_are(
    release: Made, keys: Keys, tmp_path: Path
) -> None:
    shelf = release[1] / "GGUF"
    private, public = keys
    path = sign(shelf, Signer(private))
    assert path == shelf / SIGNATURE
    elsewhere = Path(shutil.copytree(shelf, tmp_path / "downloaded"))
    (elsewhere / ".cache").mkdir()
    (elsewhere / ".cache" / "x").write_text("what the Hub's client leaves")
    verify_signature(elsewhere, public)
    # by the package's own means, which know nothing of zenconvert
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(shelf, shelf / SIGNATURE)


def test_the_statement_carries_the_digest_of_the_report(release: Made, keys: Keys) -> None:
    shelf = release[1] / "GGUF"
    told = statement_digests(sign(shelf, Signer(keys[0])))
    assert told["report.json"] == read_digest(shelf / "report.json")
    assert "SHA256SUMS" in told
    assert SIGNATURE not in told


def test_the_root_and_its_shelves_are_signed_in_any_order(release: Made, keys: Keys) -> None:
    _, folder = release
    sign(folder, Signer(keys[0]))
    sign(folder / "GGUF", Signer(keys[0]))
    verify_signature(folder, keys[1])


@pytest.mark.parametrize("name", ["report.json", "zen-nano-Q4_0.gguf", "SHA256SUMS"])
def test_a_changed_file_is_seen(release: Made, keys: Keys, name: str) -> None:
    shelf = release[1] / "GGUF"
    sign(shelf, Signer(keys[0]))
    data = bytearray((shelf / name).read_bytes())
    data[-2] ^= 1
    (shelf / name).write_bytes(data)
    with pytest.raises(BadSignature, match=name):
        verify_signature(shelf, keys[1])


def test_another_key_is_seen(release: Made, keys: Keys, tmp_path: Path) -> None:
    shelf = release[1] / "GGUF"
    sign(shelf, Signer(keys[0]))
    (tmp_path / "other").mkdir()
    _, other = make_keys(tmp_path / "other")
    with pytest.raises(BadSignature):
        verify_signature(shelf, other)


def test_what_is_no_key_or_no_signature_is_said(release: Made, tmp_path: Path) -> None:
    shelf = release[1] / "GGUF"
    no_key = tmp_path / "no-key.pem"
    no_key.write_text("nothing")
    with pytest.raises(UsageError, match=r"no-key\.pem"):
        sign(shelf, Signer(no_key))
    assert not (shelf / SIGNATURE).exists()
    with pytest.raises(UsageError, match=r"no-key\.pem"):
        verify_signature(shelf, no_key)
    (shelf / SIGNATURE).write_text("{}")
    with pytest.raises(CorruptFile, match="no model signature"):
        statement_digests(shelf / SIGNATURE)
