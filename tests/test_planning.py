"""Plans of checkpoints that no test machine could hold: Qwen1.5-110B in sparse files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import raw_model
from tests.tokenizers_for_tests import qwen2
from zenconvert import plan
from zenconvert.errors import PlanError
from zenconvert.formats import safetensors_container
from zenconvert.model import architecture as arch
from zenconvert.model.encoding import BF16

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 49152,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
SHARD_TENSORS = 32


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the true shapes; its 222 GB of weights take no space."""
    folder = tmp_path_factory.mktemp("giant")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    qwen2(folder)
    architecture = arch.for_model_type("qwen2")
    hp = architecture.sizes(CONFIG, where="test")
    names = list(architecture.tensor_names(hp))
    weight_map: dict[str, str] = {}
    for begin in range(0, len(names), SHARD_TENSORS):
        shard = names[begin : begin + SHARD_TENSORS]
        header, offsets = safetensors_container.pack_header(
            [(n.hf, BF16, n.shape) for n in shard], {"format": "pt"}
        )
        path = folder / f"model-{begin:05d}.safetensors"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(offsets[-1] + 2 * prod(shard[-1].shape))
        weight_map |= {n.hf: path.name for n in shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_every_target_is_planned_in_megabytes(giant: Path) -> None:
    script = (
        "import sys, zenconvert\n"
        "for target in sys.argv[2:]:\n"
        "    print(zenconvert.plan(sys.argv[1], target).output_bytes)\n"
        "print(next(r for r in open('/proc/self/status') if r.startswith('VmHWM')).split()[1])"
    )
    targets = ["gguf:q4_k_m", "hf:f16", "gptq:w4g128", "awq:w4g128"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(giant), *targets],
        capture_output=True,
        text=True,
        check=True,
    )
    *found, peak = map(int, done.stdout.split())
    sizes = dict(zip(targets, found, strict=True))
    assert 60e9 < sizes["awq:w4g128"] < sizes["gptq:w4g128"] < sizes["gguf:q4_k_m"] < 70e9
    assert 222e9 < sizes["hf:f16"] < 223e9
    assert peak < 300_000, f"{peak} kB"


def test_the_70b_rule_holds_for_110b(giant: Path) -> None:
    steps = plan(giant, "gguf:q4_k_m").steps
    values = Counter(str(s.to) for s in steps if s.target.endswith("attn_v.weight"))
    assert values == {"q6_k": 40, "q5_k": 40}


def test_every_linear_weight_of_110b_is_quantized(giant: Path) -> None:
    steps = plan(giant, "gptq:w4g128").steps
    assert Counter(str(s.to) for s in steps) == {"w4g128": 7 * 80, "bf16": 5 * 80 + 3}


def test_a_group_that_does_not_fit_is_told_once(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 1}
    source = raw_model(tmp_path / "m", "llama3", **sizes)
    for target, fitting in (("gptq:w4g128", 64), ("awq:w4g128", 64)):
        with pytest.raises(PlanError) as caught:
            plan(source, target)
        (problem,) = caught.value.problems
        assert re.match(r"\d+ tensors, the first are model\.layers\.0", problem)
        assert "its 320 inputs are no multiple of the group of 128" in problem
        assert f"groups of {fitting} fit every matrix" in problem
        plan(source, target.replace("128", str(fitting)))
