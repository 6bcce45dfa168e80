"""``release verify``: a whole release passes, and nothing that was changed does."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.publication.conftest import Made
from tests.publication.test_signing import make_keys
from zenconvert.errors import CorruptFile, UnsafePath
from zenconvert.publication.checking import Finding, check_release
from zenconvert.publication.checksums import SUMS, hash_files, listed, sums_bytes
from zenconvert.publication.signing import Signer, sign


def problems(folder: Path, key: Path | None = None) -> list[Finding]:
    return [f for f in check_release(folder, public_key=key) if f.is_problem]


def seal(folder: Path) -> None:
    """Make all sums right again, as somebody who tampers would."""
    for place in [*(p.parent for p in folder.glob(f"*/{SUMS}")), folder]:
        (place / SUMS).write_bytes(sums_bytes(hash_files(place, listed(place), fresh=True)))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def test_a_whole_release_and_each_shelf_hold(whole: Made) -> None:
    _, folder = whole
    for place in (folder, folder / "GGUF", folder / "GPTQ-w4g128", folder / "ONNX-int4"):
        assert problems(place) == []
        notes = check_release(place)
        assert [n.what for n in notes] == ["there is no signature"] * len(notes)


def test_signatures_are_checked(release: Made, tmp_path: Path) -> None:
    _, folder = release
    private, public = make_keys(tmp_path)
    for place in (folder / "GGUF", folder / "GPTQ-w4g128", folder / "ONNX-int4", folder):
        sign(place, Signer(private))
    assert check_release(folder, public_key=public) == ()
    assert {f.what for f in check_release(folder)} == {
        "whose signature it is was not checked; a public key (--public-key) tells"
    }
    (tmp_path / "other").mkdir()
    _, other = make_keys(tmp_path / "other")
    assert {f.where for f in problems(folder, other)} == {
        "model.sig", "GGUF/model.sig", "GPTQ-w4g128/model.sig", "ONNX-int4/model.sig"
    }  # fmt: skip
    (folder / "GGUF" / "model.sig").unlink()
    assert [f.where for f in problems(folder, public)] == ["GGUF/model.sig"]


def test_changed_missing_and_extra_files_are_named(release: Made) -> None:
    _, folder = release
    weights = folder / "GGUF" / "zen-nano-Q8_0.gguf"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folder / "GPTQ-w4g128" / "tokenizer_config.json").unlink()
    (folder / "ONNX-int4" / "surprise.py").write_text("import os")
    found = {f.where: f.what for f in reversed(problems(folder))}
    assert "its bytes changed" in found["GGUF/zen-nano-Q8_0.gguf"]
    assert "not there" in found["GPTQ-w4g128/tokenizer_config.json"]
    assert "does not name it" in found["ONNX-int4/surprise.py"]
    assert problems(folder / "GGUF")


def test_other_weights_under_right_sums_are_seen(release: Made) -> None:
    _, folder = release
    shutil.copy(folder / "GGUF/zen-nano-Q4_0.gguf", folder / "GGUF/zen-nano-Q8_0.gguf")
    seal(folder)
    texts = "\n".join(map(str, problems(folder)))
    assert "the report is about other weights" in texts
    assert "the report says encoding 'q8_0', the file has 'q4_0'" in texts
    assert "bom.cdx.json: zen-nano-Q8_0.gguf is not what it says" in texts


def test_a_forged_verdict_is_seen(release: Made) -> None:
    _, folder = release

    def forge(value: Any) -> None:
        verdict = value["variants"][0]["verdict"]
        verdict["checks"][0]["outcome"] = verdict["outcome"] = "FAIL"
        value["variants"][0]["outcome"] = "FAIL"

    for name in ("report.json", "GGUF/report.json"):
        edit(folder / name, forge)
    seal(folder)
    assert any("the policy does not say so" in f.what for f in problems(folder))
    assert any("the policy does not say so" in f.what for f in problems(folder / "GGUF"))


def test_a_forged_figure_is_seen(release: Made) -> None:
    _, folder = release

    def forge(value: Any) -> None:
        value["variants"][0]["report"]["overall"]["kl"]["mean"] /= 10

    edit(folder / "GGUF/report.json", forge)
    seal(folder)
    found = [str(f) for f in problems(folder / "GGUF")]
    assert any(f.startswith("README.md: a line of its tables") for f in found)
    assert any("the policy does not say so" in f for f in found)
    assert any("does not say what that of the release says" in f.what for f in problems(folder))


def test_another_policy_is_seen(release: Made) -> None:
    _, folder = release
    path = folder / "GGUF/policy.toml"
    path.write_text(path.read_text().replace("at_most = 1.0", "at_most = 2.0"))
    seal(folder)
    assert any(f.where == "GGUF/policy.toml" for f in problems(folder))


def test_an_embellished_card_is_seen(release: Made) -> None:
    _, folder = release
    card = folder / "GPTQ-w4g128/README.md"
    lines = card.read_text().splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if "`gptq:w4g128`" in line)
    lines[row] = lines[row].replace("**PASS**", "**PASS** (lossless)")
    card.write_text("".join(lines))
    seal(folder)
    assert [f.where for f in problems(folder)] == ["GPTQ-w4g128/README.md"]


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ("notes.txt", "this is no release. Pass the folder that a recipe's"),
        ("config.json", "this is a model and no release; `zenconvert verify"),
        ("model.gguf", "this is a model and no release; `zenconvert verify"),
        (".zenconvert/lock", "this is a release that is not finished: run `zenconvert release"),
        ("mine/report.json", "this is no release; 'mine' in it may be one"),
    ],
)
def test_what_is_no_release_is_not_read(
    inside: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).write_text("{}")
    monkeypatch.setattr("zenconvert.publication.checking.hash_files", pytest.fail)
    with pytest.raises(CorruptFile, match=re.escape(told)):
        check_release(tmp_path)


def test_a_record_that_breaks_its_schema_is_refused(release: Made) -> None:
    _, folder = release
    edit(folder / "report.json", lambda value: value["variants"][0].update(shelf="../.."))
    with pytest.raises(CorruptFile, match=r"variants/0/shelf"):
        check_release(folder)
    edit(folder / "GGUF/report.json", lambda value: value["policy"].update(sha256="none"))
    with pytest.raises(CorruptFile, match=r"policy/sha256"):
        check_release(folder / "GGUF")


def test_artifacts_that_disagree_are_seen(release: Made) -> None:
    _, folder = release
    path = folder / "GPTQ-w4g128/tokenizer_config.json"
    edit(path, lambda value: value.update(chat_template="{{ messages[0].content }}"))
    seal(folder)
    found = [f for f in problems(folder) if "chat template" in f.what]
    assert [f.where for f in found] == ["GPTQ-w4g128"]
    assert "not as Q4_0" in found[0].what


def test_a_snapshot_of_the_hubs_cache_holds(whole: Made, tmp_path: Path) -> None:
    for shelf in ("GGUF", "GPTQ-w4g128", "ONNX-int4"):
        cache = tmp_path / f"models--zen-lab--{shelf}"
        snapshot = cache / "snapshots" / ("c" * 40)
        (cache / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for path in (whole[1] / shelf).iterdir():
            blob = cache / "blobs" / hashlib.sha256(path.name.encode()).hexdigest()
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
        assert problems(snapshot) == []
        (snapshot / "report.html").resolve().unlink()
        assert [f.where for f in problems(snapshot)] == ["report.html"]


def test_a_folder_that_is_a_link_is_refused(release: Made, tmp_path: Path) -> None:
    _, folder = release
    (folder / "GGUF" / "more").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="may not be a link"):
        check_release(folder)


def test_sums_that_leave_the_folder_are_refused(release: Made) -> None:
    _, folder = release
    digest = hashlib.sha256(b"x").hexdigest()
    (folder / "GGUF" / SUMS).write_text(f"{digest}  ../../outside\n")
    assert any("leaves the folder" in f.what for f in problems(folder / "GGUF"))
