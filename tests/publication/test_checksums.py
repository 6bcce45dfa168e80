"""``SHA256SUMS`` against the real ``sha256sum``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.publication.conftest import Made
from zenconvert.errors import CorruptFile
from zenconvert.publication.checksums import SUMS, hash_files, listed, read_sums, sums_bytes

ODD = [
    "plain",
    "with space",
    "back\\slash",
    "line\nfeed",
    "carriage\rreturn",
    "ünï",
    "*star",
    "-dash",
]


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sha256sum", "-c", "--strict", SUMS],
        cwd=folder, capture_output=True, text=True, check=False, env={"LC_ALL": "C.UTF-8"},
    )  # fmt: skip


@pytest.mark.parametrize("place", [".", "GGUF", "GPTQ-w4g128", "ONNX-int4"])
def test_sha256sum_accepts_a_release_and_its_shelves(whole: Made, place: str) -> None:
    folder = whole[1] / place
    done = checked(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": OK") == len(listed(folder))
    if place == ".":
        assert "GGUF/SHA256SUMS: OK" in done.stdout


def test_odd_names_are_written_as_sha256sum_writes_them(tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        (tmp_path / name).write_bytes(bytes([number]))
    data = sums_bytes(hash_files(tmp_path, ODD))
    theirs = subprocess.run(
        ["sha256sum", "--", *sorted(ODD)], cwd=tmp_path, capture_output=True, check=True
    )
    assert data == theirs.stdout
    (tmp_path / SUMS).write_bytes(data)
    assert checked(tmp_path).returncode == 0
    assert read_sums(tmp_path / SUMS) == hash_files(tmp_path, ODD, fresh=True)


def test_what_does_not_belong_is_not_listed(tmp_path: Path) -> None:
    names = ["a", "b/c", "b/SHA256SUMS", "SHA256SUMS", "model.sig", "b/model.sig", "CHANGES.md"]
    names += [
        ".zenconvert/x",
        ".cache/y",
        ".git/z",
        ".gitattributes",
        ".a.partial/new/a",
        ".b.partial",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert listed(tmp_path) == ("a", "b/SHA256SUMS", "b/c")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("abc  x", "expected 'SHA256  NAME'"),
        (f"{'0' * 64}  /etc/passwd", "leaves the folder"),
        (f"{'0' * 64}  a/../../b", "leaves the folder"),
        (f"{'0' * 64} x", "expected 'SHA256  NAME'"),
    ],
)
def test_malformed_sums_are_refused(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / SUMS).write_text(f"{'0' * 64}  fine\n{line}\n")
    with pytest.raises(CorruptFile, match=rf"line 2.*{why}"):
        read_sums(tmp_path / SUMS)


def test_progress_counts_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    seen: list[tuple[int, int]] = []
    hash_files(tmp_path, ["a", "b"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
