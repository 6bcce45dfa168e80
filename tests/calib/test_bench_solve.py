"""The benchmark of the solvers runs where there is little beside torch."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.argv = ["bench_solve", "--device", "cpu", "--divide", "128"]
from scripts import bench_solve
bench_solve.main()
heavy = {"click", "transformers", "ml_dtypes", "safetensors", "onnx", "rich"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def test_it_needs_nothing_of_the_house_but_the_solvers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "heavy: []"
    assert "80 layers" in lines[-2]
    modules = [line.split()[0] for line in lines if "ratio" in line]
    assert modules == ["q", "k", "v", "o", "gate", "up", "down"]
    assert all("finite True" in line for line in lines if "finite" in line)
    for line in lines:
        if "ratio" in line:
            assert float(line.split("ratio")[1].split(",")[0]) < 1
