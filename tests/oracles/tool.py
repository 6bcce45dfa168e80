"""The tests' side of an oracle: a process in an environment of ``scripts/oracles``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("ZENCONVERT_ORACLES", ROOT / ".venv-oracles"))


class Tool:
    """One process for all the requests of a session: importing such a tool takes ten seconds."""

    def __init__(self, name: str, log: Path) -> None:
        """``name`` is that of the environment; ``log`` takes what the tool prints."""
        python = HOME / name / "bin" / "python"
        assert python.exists(), (
            f"the environment of {name} is not at {HOME / name}; scripts/oracles makes it, and "
            "scripts/test --quick leaves these tests out"
        )
        self.name, self.log = name, log
        module = f"serve_{name.replace('-', '_')}"
        replies, end = os.pipe()
        command = [str(python), "-m", f"tests.oracles.{module}", str(end)]
        script = Path(__file__).parent / f"{module}.mjs"
        if script.exists():
            command = [str(python.parent / "node"), str(script), str(end), str(HOME / name)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "2",
            "GPTQMODEL_CPU_WORKERS": "2",  # its own choice fails on two cores
            "TORCHDYNAMO_DISABLE": "1",  # compiling a decoder takes longer than running it
        }
        environment.pop("PYTHONPATH", None)
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                pass_fds=[end],
                text=True,
            )
        os.close(end)
        self.replies = os.fdopen(replies, encoding="utf-8")

    def __call__(self, call: str, **arguments: Any) -> Any:
        """What the tool answers; paths are passed as text. Fails the test where it fails."""
        assert self.process.stdin is not None
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        self.process.stdin.write(json.dumps({"call": call, "arguments": plain}) + "\n")
        self.process.stdin.flush()
        reply = self.replies.readline()
        assert reply, f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}"
        answer = json.loads(reply)
        assert "error" not in answer, f"{self.name}: {answer.get('error')}"
        return answer["answer"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.replies.close()
