"""Keys that name code to run reach neither an engine nor an output (CVE-2026-4372 and its like)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from zenconvert import convert, open_checkpoint, plan, verify
from zenconvert.formats.hf.foreign import foreign_keys, without_foreign
from zenconvert.reference import skeleton
from zenconvert.verification.engines.clean_folder import clean_folder

KEYS: Final[dict[str, Any]] = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    "_attn_implementation_internal": "evil/kernel",
    "_attn_implementation_autoset": True,
    "_attn_implementation": "evil/kernel",
    "attn_implementation": "evil/kernel",
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
    "_name_or_path": "/home/somebody/model",
    "_anything": {"a": 1},
}
FILES: Final = ("config.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture
def hostile(source: Path) -> Path:
    """A model whose files name code, with that code beside it: it creates a file when it runs."""
    for name in FILES:
        path = source / name
        table = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**table, **KEYS}))
    code = f"open({str(source.parent / 'executed')!r}, 'w').close()\n"
    for name in ("evil.py", "modeling_llama.py", "configuration_llama.py"):
        (source / name).write_text(code + "class Config: pass\nclass Model: pass\n")
    return source


@pytest.mark.parametrize("target", ["hf:bf16", "gptq:w4g64", "awq:w4g64", "onnx:int4"])
def test_they_are_never_republished(target: str, hostile: Path, tmp_path: Path) -> None:
    convert(hostile, tmp_path / "out", target)
    for path in (tmp_path / "out").rglob("*.json"):
        value = json.loads(path.read_text())
        if path.name in FILES:
            assert foreign_keys(value) == [], path
        assert "evil" not in path.read_text(), path
    assert not list((tmp_path / "out").rglob("*.py"))
    assert not (tmp_path / "executed").exists()
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["hidden_size"] == 64


def test_what_is_left_out_is_said_by_name(hostile: Path) -> None:
    told = "\n".join(open_checkpoint(hostile).warnings)
    for name in FILES:
        assert str(hostile / name) in told
    for key in set(KEYS) - {"_name_or_path"}:
        assert repr(key) in told


def test_usual_leftovers_are_left_out_without_a_word(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me"}))
    (source / "generation_config.json").write_text('{"_from_model_config": true, "top_k": 4}')
    assert open_checkpoint(source).warnings == ()
    convert(source, tmp_path / "out", "hf:bf16")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_k": 4}


def test_files_without_them_travel_byte_by_byte(source: Path) -> None:
    (source / "generation_config.json").write_text('{"top_k":   4}')
    files = {file.name: file for file in plan(source, "hf:bf16").layout.files}
    assert files["generation_config.json"].copy_of == source / "generation_config.json"


def test_they_never_reach_transformers(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch engine and calibration build their blocks here."""
    import transformers

    given: list[dict[str, Any]] = []
    real = transformers.AutoConfig.for_model

    def noted(model_type: str, **fields: Any) -> Any:
        given.append(fields)
        return real(model_type, **fields)

    monkeypatch.setattr(transformers.AutoConfig, "for_model", noted)
    skeleton._settings(open_checkpoint(hostile).config)
    assert given
    assert all(foreign_keys(fields) == [] for fields in given)


def test_whole_folders_are_loaded_without_them(hostile: Path) -> None:
    """An engine that loads a folder by itself gets one without code and without such keys."""
    with clean_folder(hostile) as folder:
        assert folder != hostile
        assert not list(folder.glob("*.py"))
        for name in FILES:
            assert foreign_keys(json.loads((folder / name).read_text())) == []
        weights = folder / "model.safetensors"
        assert weights.samefile(hostile / "model.safetensors")
    assert not folder.exists()


def test_a_clean_folder_is_loaded_as_it_is(tiny: Path) -> None:
    with clean_folder(tiny) as folder:
        assert folder == tiny


def test_a_verification_runs_none_of_it(hostile: Path, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 4)
    for engine in ("torch", "transformers"):
        report = verify(tiny, hostile, engine=engine, text=text, context=16)
        assert report.overall.kl_mean < 1e-3
    assert not (tmp_path / "executed").exists()


def test_which_keys() -> None:
    value = {"a": 1, "_b": 2, "c": [{"auto_map": 3, "d": {"_e": 4, "f": 5}}]}
    assert foreign_keys(value) == ["_b", "_e", "auto_map"]
    assert without_foreign(value) == {"a": 1, "c": [{"d": {"f": 5}}]}
