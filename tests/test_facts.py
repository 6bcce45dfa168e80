"""What becomes of the facts of a config: refused, lost, carried or ignored, always by name."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.differential import runs
from zenconvert import Options, calibrate, convert, open_checkpoint, plan, verify
from zenconvert.cli import cli
from zenconvert.errors import PlanError, Unsupported, UsageError
from zenconvert.formats.gguf import container
from zenconvert.model import meaning
from zenconvert.solve.calibration_texts import Calibrating

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": runs.VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
MISTRAL = {**BASE, "model_type": "mistral"}
QWEN2 = {**BASE, "model_type": "qwen2"}
TEXT = runs.ids(40, 7)
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


@pytest.fixture
def made(tokenizer: Path, tmp_path: Path) -> Made:
    """A folder of a config, without the tensors that ``drop`` names the ends of."""

    def make(config: dict[str, Any], *, drop: str | None = None) -> Path:
        folder = runs.write_model(tmp_path / "source", config, tokenizer, 3)
        if drop is not None:
            from safetensors.numpy import load_file, save_file

            file = folder / "model.safetensors"
            kept = {k: v for k, v in load_file(file).items() if not k.endswith(drop)}
            save_file(kept, file, metadata={"format": "pt"})
        return folder

    return make


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({**BASE, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    "softcap": ({**BASE, "final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "partial rotations": ({**BASE, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "partial rotations, new": (
        {**BASE, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor is 0.5",
    ),
    "nested rotations": (
        {**BASE, "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "rope_parameters.full_attention is ",
    ),
    "longrope": (
        {
            **BASE,
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                "factor": 2.0, "original_max_position_embeddings": 32,
            },
        },
        "rope_scaling.rope_type is 'longrope'",
    ),
    "two scalings": (
        {
            **BASE,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
        "rope_parameters is ",
    ),
    "frequency factors that llama.cpp's qwen2 does not read": (
        {
            **QWEN2,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
        "rope_scaling.rope_type is 'llama3'",
    ),
    "heads that llama.cpp's qwen2 has not": ({**QWEN2, "head_dim": 32}, "head_dim is 32"),
    "a window that llama does not read": ({**BASE, "sliding_window": 8}, "sliding_window is 8"),
    "a key of a trainer": ({**BASE, "trainer_run": "x"}, "--ignore-key trainer_run"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_would_compute_otherwise_is_refused_by_name(case: str, made: Made) -> None:
    config, message = REFUSED[case]
    with pytest.raises(PlanError, match=message.replace("[", "\\[")) as caught:
        plan(made(config), "gguf:f32")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("case", REFUSED)
def test_folders_carry_what_is_not_understood(case: str, made: Made, tmp_path: Path) -> None:
    config, _ = REFUSED[case]
    convert(made(config), tmp_path / "out", "hf:f32")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: found[key] for key in config} == config


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LOST: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({**MISTRAL, "sliding_window": 8}, "sliding_window"),
    "window of some layers": (
        {**QWEN2, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
        "sliding_window",
    ),
    "beta": ({**BASE, "rope_scaling": {**YARN, "beta_fast": 16}}, "rope_scaling.beta_fast"),
    "truncate": ({**BASE, "rope_scaling": {**YARN, "truncate": False}}, "rope_scaling.truncate"),
    "dynamic": (
        {**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_scaling.rope_type",
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_what_gguf_loses_is_named_and_not_exact(case: str, made: Made, tmp_path: Path) -> None:
    config, name = LOST[case]
    source = made(config)
    planned = plan(source, "gguf:f32")
    assert [fact.name for fact in planned.lost] == [name]
    assert not planned.exact
    assert not planned.as_dict()["exact"]
    with pytest.raises(PlanError, match=name):
        plan(source, "gguf:f32", exact=True)
    for command in (["plan"], ["plan", "--explain"], ["convert"]):
        out = [str(tmp_path / "out.gguf"), "--force"] if command == ["convert"] else []
        done = CliRunner().invoke(cli, [*command, str(source), *out, "--to", "gguf:f32"])
        assert done.exit_code == 0, done.output
        assert f"lost: {name}" in done.output


@pytest.mark.parametrize("window", [64, 100])
def test_a_window_that_no_text_reaches_is_nothing_lost(window: int, made: Made) -> None:
    assert plan(made({**MISTRAL, "sliding_window": window}), "gguf:f32").exact


SCALES: dict[str, tuple[dict[str, Any], float | None]] = {
    "nothing": ({}, None),
    "what is usual": ({"attention_factor": 0.1 * np.log(4) + 1}, None),
    "one": ({"attention_factor": 1.0}, 1 / (0.1 * np.log(4) + 1)),
    "two scales": ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / (0.1 * np.log(4) + 1)),
    "one scale alone": ({"mscale": 0.5}, None),
}


@pytest.mark.parametrize("case", SCALES)
def test_yarns_attention_factor_is_where_llamacpp_reads_it(
    case: str, made: Made, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    extra, expected = SCALES[case]
    source = made({**BASE, "rope_scaling": {**YARN, **extra}})
    assert convert(source, tmp_path / "m.gguf", "gguf:f32").plan.exact
    field = GGUFReader(tmp_path / "m.gguf").get_field("llama.rope.scaling.attn_factor")
    if expected is None:
        assert field is None
    else:
        assert field is not None
        assert float(field.contents()) == pytest.approx(expected, rel=1e-7)
    computed = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
    np.testing.assert_allclose(computed, runs.in_transformers(source, TEXT), atol=2e-4, rtol=0)


@pytest.mark.parametrize("config", [BASE, QWEN2], ids=["llama", "qwen2"])
def test_features_of_other_families_that_are_off(
    config: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    shared = tomllib.loads(meaning._SHARED.read_text(encoding="utf-8"))
    off = {key: values[0] for key, values in shared["neutral"].items()}
    layers = config["num_hidden_layers"]
    off |= {key: [one] * layers for key, one in shared["neutral_lists"].items()}
    source = made({**off, **config})
    assert convert(source, tmp_path / "m.gguf", "gguf:f32").plan.exact
    computed = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
    np.testing.assert_allclose(computed, runs.in_transformers(source, TEXT), atol=2e-4, rtol=0)
    for key in (k for k in off if not meaning.understood(open_checkpoint(source).architecture, k)):
        on = [5] * layers if isinstance(off[key], list) else 5
        (source / "config.json").write_text(json.dumps({**config, key: on}))
        with pytest.raises(PlanError, match=f"--ignore-key {key}"):
            plan(source, "gguf:f32")


def test_keys_that_change_nothing_can_be_named(made: Made, tmp_path: Path) -> None:
    source = made({**BASE, "trainer_run": "x"})
    options = Options(ignored_keys=("trainer_run",))
    planned = convert(source, tmp_path / "m.gguf", "gguf:f32", options=options).plan
    (fact,) = (fact for fact in planned.facts if fact.name == "trainer_run")
    assert "--ignore-key" in fact.why
    for key, reason in (("hidden_size", "it is known"), ("nothing", "has no such key")):
        with pytest.raises(UsageError, match=reason):
            plan(source, "gguf:f32", options=Options(ignored_keys=(key,)))
    done = CliRunner().invoke(
        cli, ["plan", str(source), "--to", "gguf:f32", "--ignore-key", "trainer_run"]
    )
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "flags", [("mlp_bias",), ("attention_bias",), ("mlp_bias", "attention_bias")]
)
def test_biases_come_back_with_their_flags(
    flags: tuple[str, ...], made: Made, tmp_path: Path
) -> None:
    source = made({**BASE, **dict.fromkeys(flags, True)})
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    expected = runs.in_transformers(source, TEXT)
    found = runs.in_transformers(tmp_path / "back", TEXT)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["hf:f32", "gptq:w8g32", "awq:w4g32", "gguf:f32"])
def test_a_bias_that_some_modules_lack_is_zero_everywhere(
    target: str, made: Made, tmp_path: Path
) -> None:
    """q, k and v have one and o has none: transformers takes it as zero, others refuse."""
    from safetensors.numpy import load_file

    source = made({**BASE, "attention_bias": True}, drop="o_proj.bias")
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    for start in (source, tmp_path / "m.gguf"):
        out = tmp_path / f"{start.name}-out"
        convert(start, out, target)
        if target != "gguf:f32":
            bias = load_file(out / "model.safetensors")["model.layers.1.self_attn.o_proj.bias"]
            assert bias.shape == (32,)
            assert not bias.any()
        if target == "hf:f32":
            found = runs.in_transformers(out, TEXT)
            np.testing.assert_allclose(
                found, runs.in_llamacpp(tmp_path / "m.gguf", TEXT), atol=2e-4, rtol=0
            )


def test_biases_that_the_config_does_not_announce_are_left_out(made: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = made({**BASE, "attention_bias": True})
    config = json.loads((source / "config.json").read_text()) | {"attention_bias": False}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="8 biases are left out.*attention_bias is not true"):
        convert(source, tmp_path / "m.gguf", "gguf:f32")
    import torch

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([TEXT])).logits[0].numpy()
    computed = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
    np.testing.assert_allclose(computed, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("target", ["hf:f32", "gptq:w8g32", "onnx:f32"])
@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_older_readers_find_the_rotations(
    target: str, scaling: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    """transformers 4, mlx-lm and mistral.rs look for ``rope_theta`` and ``rope_scaling``."""
    new = {k: v for k, v in BASE.items() if k != "rope_theta"}
    kind = scaling or {"rope_type": "default"}
    source = made({**new, "rope_parameters": {"rope_theta": 5e5, **kind}})
    convert(source, tmp_path / "out", target)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == (scaling or None)
    if target == "hf:f32":
        found = runs.in_transformers(tmp_path / "out", TEXT)
        np.testing.assert_array_equal(found, runs.in_transformers(source, TEXT))


@pytest.mark.parametrize("key", ["llama.attention.scale", "rope_freqs.weight"])
def test_what_no_config_can_say_is_not_computed_without_it(
    key: str, made: Made, tmp_path: Path
) -> None:
    """Reference, torch engine and calibration go by the config; llama.cpp reads the file itself."""
    convert(made(BASE), tmp_path / "plain.gguf", "gguf:f32")
    odd = with_oddity(tmp_path / "plain.gguf", tmp_path / "odd.gguf", key)
    text = tmp_path / "text.txt"
    text.write_text("The ferry leaves at nine, and nobody waits for it.")
    message = re.escape(f"{odd}: {key} is ") + ".*--ignore-key " + re.escape(key)
    for run in (
        lambda **given: verify(odd, tmp_path / "plain.gguf", text=text, **given),
        lambda **given: verify(tmp_path / "plain.gguf", odd, text=text, **given),
        lambda **given: calibrate(odd, tmp_path / "stats", samples=text, **given),
        lambda **given: convert(
            odd, tmp_path / "q", "gguf:q8_0", calibrating=Calibrating(samples=text),
            options=Options(**given),
        ),
    ):  # fmt: skip
        with pytest.raises(Unsupported, match=message) as caught:
            run()
        assert caught.value.exit_code
        run(ignored_keys=(key,))
    report = verify(tmp_path / "plain.gguf", odd, engine="llamacpp", text=text)
    assert (report.overall.kl_mean > 1e-4) == key.endswith("weight")  # which changes what it does


def with_oddity(source: Path, out: Path, key: str) -> Path:
    """A copy of a GGUF file with a key, or a tensor, that no config has a place for."""
    file = container.read(source)
    data = source.read_bytes()
    keys = {**file.metadata, **({} if key.endswith("weight") else {key: ("f32", 0.5)})}
    tensors = {
        i.name: (i.shape, i.type_id, data[i.offset : i.offset + i.nbytes])
        for i in file.tensors.values()
    }
    if key.endswith("weight"):
        half = open_checkpoint(source).hyperparameters.head_dim // 2
        factors = np.linspace(1.0, 0.7, half, dtype=np.float32)
        tensors[key] = ((half,), 0, factors.tobytes())
    rows, body = [], b""
    for name, (shape, kind, content) in tensors.items():
        rows.append((name, shape, kind, len(body)))
        body += content + bytes(-len(content) % 32)
    out.write_bytes(container.pack_header(keys, rows) + body)
    return out
