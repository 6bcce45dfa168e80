"""Runs of many inputs: what was found, how often, and the inputs that found it.

``python -m tests.fuzz.campaign`` is what ``scripts/fuzz`` starts. With atheris the choices of
inputs are guided by the coverage of the readers; without it they are random. Either way a run goes
on after a fault: every distinct pair of exception and line is kept once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.fuzz.choices import Choices

if TYPE_CHECKING:  # readers are imported after their code can be watched
    from tests.fuzz.guard import Fault
    from tests.fuzz.target import Bench, Target

OUT: Final = Path("fuzz-output")
_OFTEN: Final = 5.0
"""Seconds."""
_GUIDED: Final = 0.2
"""Share of the time that goes to inputs guided by coverage, which cost twice as much and more."""
_SIZE: Final = 192
"""Bytes that an input's choices are drawn from."""


@dataclass
class Tally:
    """What one target went through."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], Fault] = field(default_factory=dict)

    def add(self, fault: Fault | None, keep: Callable[[str], None]) -> None:
        """Count an input; the first of every kind of fault is kept."""
        self.inputs += 1
        if fault is None:
            return
        key = (fault.kind, fault.place)
        self.faults[key] += 1
        if key not in self.first:
            self.first[key] = fault
            keep(f"{fault.kind}-{fault.place}".replace("/", "_").replace(":", "-"))

    def as_dict(self) -> dict[str, object]:
        """One line of the log."""
        faults = [{**asdict(self.first[key]), "inputs": n} for key, n in self.faults.items()]
        return {
            "target": self.target, "inputs": self.inputs, "seconds": round(self.seconds, 1),
            "faults": faults,
        }  # fmt: skip


def targets() -> dict[str, Target]:
    """Every target by name."""
    from tests.fuzz import targets_facts, targets_files, targets_folders, targets_texts

    rooms = (targets_folders, targets_files, targets_texts, targets_facts)
    every = (target for room in rooms for target in room.TARGETS)
    return {target.name: target for target in every}


def seeded(bench: Bench, seeds: Iterable[int]) -> Tally:
    """One input of every seed: what the tests run."""
    tally = Tally(bench.target.name)
    for seed in seeds:
        tally.add(bench.run(Choices.seeded(seed)), lambda name: None)
    return tally


class _Log:
    """What a run did, written every few seconds: libFuzzer and some inputs end the process."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.begin = self.last = time.monotonic()

    def tell(self) -> None:
        """Write, where it is time to."""
        now = time.monotonic()
        if now - self.last > _OFTEN:
            self.last, self.tally.seconds = now, now - self.begin
            _log(self.tally, partial=True)


def _random(bench: Bench, tally: Tally, seconds: float, seed: int, out: Path) -> None:
    source, end, log = random.Random(seed), time.monotonic() + seconds, _Log(tally)
    while time.monotonic() < end:
        choices = Choices(source.randbytes(source.choice((16, 32, 64, _SIZE))))
        _count(bench, tally, choices, out)
        log.tell()


def _count(bench: Bench, tally: Tally, choices: Choices, out: Path) -> None:
    """Run an input that the run has not had yet."""
    if (files := bench.fresh(choices)) is not None:
        tally.add(bench.read(files), lambda name: bench.keep(out / name))


def _guided(bench: Bench, tally: Tally, seconds: float, seed: int, out: Path) -> None:
    """Guided by coverage, as long as libFuzzer lets the process live."""
    import atheris

    log = _Log(tally)

    def one(data: bytes) -> None:
        _count(bench, tally, Choices(data), out)
        log.tell()

    corpus = OUT / "corpus" / bench.target.name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={int(seconds)}", f"-max_len={_SIZE}", f"-seed={seed}"]
    options += ["-timeout=600", "-handle_alrm=0", "-rss_limit_mb=0", "-print_final_stats=0"]
    options += ["-verbosity=0", "-len_control=0", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one, enable_python_coverage=True)
    atheris.Fuzz()


def _log(tally: Tally, *, partial: bool = False) -> None:
    """Keep what a run did; the last line of a run stands for it."""
    name = f"{tally.target}-{_START}.json"
    (OUT / "runs").mkdir(parents=True, exist_ok=True)
    (OUT / "runs" / name).write_text(json.dumps({**tally.as_dict(), "ended": not partial}))


_START: Final = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def table(folder: Path) -> str:
    """Inputs and distinct faults by target, over all runs of a folder."""
    inputs: Counter[str] = Counter()
    faults: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        inputs[run["target"]] += run["inputs"]
        found = faults.setdefault(run["target"], set())
        found |= {(fault["kind"], fault["place"]) for fault in run["faults"]}
    rows = [f"{name:24} {count:>12,} {len(faults[name]):>6}" for name, count in inputs.items()]
    total = f"{'all':24} {inputs.total():>12,} {sum(map(len, faults.values())):>6}"
    return "\n".join([f"{'target':24} {'inputs':>12} {'faults':>6}", *rows, total])


def main() -> None:
    """Fuzz the named targets, one process each for atheris, or tell what runs found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="what all runs until now found")
    parser.add_argument("--unguided", action="store_true", help="random, though atheris is there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="*", help="by default every target")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.table:
        print(table(OUT / "runs"))
        return
    seconds = 60 * given.minutes
    if given.one:
        _fuzz(given.target[0], seconds, given.seed, given.place, guided=not given.unguided)
        return
    _each(given.target or list(targets()), seconds, given.seed, unguided=given.unguided)


def _each(names: list[str], seconds: float, seed: int, *, unguided: bool) -> None:
    """One target after another, each in a process of its own, which an input may end."""
    if unknown := set(names) - set(targets()):
        sys.exit(f"no targets {sorted(unknown)}; there are {', '.join(targets())}")
    unguided = unguided or find_spec("atheris") is None
    for name in names:
        each = seconds / len(names)
        guided = 0.0 if unguided else _GUIDED * each
        for share, options in ((each - guided, ["--unguided"]), (guided, [])):
            if share:
                _in_a_process(name, [*options, "--minutes", str(share / 60), "--seed", str(seed)])
    print(table(OUT / "runs"))


def _in_a_process(name: str, options: list[str]) -> None:
    """Run one target; where an input ended the process, that input is kept as a fault."""
    from tests.fuzz.guard import Fault
    from tests.fuzz.target import memory_place

    with TemporaryDirectory(prefix=f"fuzz-{name}-", dir=memory_place()) as place:
        command = [sys.executable, "-m", "tests.fuzz.campaign", "--one", name, "--place", place]
        done = subprocess.run([*command, *options], check=False)
        if done.returncode < 0:
            kept = OUT / "faults" / name / f"ended-by-signal-{-done.returncode}-{_START}"
            shutil.copytree(Path(place) / "input", kept, dirs_exist_ok=True)
            tally = Tally(name, inputs=-1)  # the process has counted its inputs
            tally.add(Fault(f"signal {-done.returncode}", "", str(kept)), lambda name: None)
            _log(tally)
            print(f"{name}: an input ended the process; it is {kept}", flush=True)


def _fuzz(name: str, seconds: float, seed: int, place: Path | None, *, guided: bool) -> None:
    guided = guided and find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["zenconvert"]):
            target = targets()[name]
    else:
        target = targets()[name]
    from tests.fuzz.target import Bench

    out = OUT / "faults" / name
    bench, tally = Bench(target, place=place), Tally(name)
    if (fault := bench.plain()) is not None:
        print(f"{name}: the unchanged input: {fault}", flush=True)
    begin = time.monotonic()
    try:
        (_guided if guided else _random)(bench, tally, seconds, seed, out)
    finally:
        tally.seconds = time.monotonic() - begin
        _log(tally)
        rate = tally.inputs / max(tally.seconds, 1e-9)
        print(f"{name}: {tally.inputs:,} inputs, {rate:,.0f} a second", flush=True)
        for fault in tally.first.values():
            print(f"  {fault.kind} {fault.place}: {fault.text[:160]}", flush=True)
        bench.close()


if __name__ == "__main__":
    main()
