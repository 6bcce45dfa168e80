"""``zenconvert plan`` and ``zenconvert convert``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zenconvert.base.escaping import json_text
from zenconvert.calib.methods import METHODS
from zenconvert.cli.config import config_option, ignore_key_option
from zenconvert.cli.devices import taken, tell_rounding
from zenconvert.cli.outputs import Written, check_models, check_outputs, write_side_file
from zenconvert.cli.printing import echo, echo_json, echo_table, size, stages
from zenconvert.cli.sampling import codes, sampling_options, take_sampling
from zenconvert.errors import UsageError, several
from zenconvert.model.allotment import Budget
from zenconvert.model.target import Options, parse_size, parse_tensor_type
from zenconvert.solve.calibration_texts import Calibrating

if TYPE_CHECKING:
    from zenconvert.conversion import Conversion
    from zenconvert.model.meaning import Fact
    from zenconvert.planning.plan import Plan

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that plan and convert have in common."""
    options: list[Decorator] = [
        click.option("--to", "target", required=True, help="Target: format[:type]."),
        config_option("SRC"),
        click.option(
            "--importance",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Importance matrix (llama.cpp imatrix GGUF).",
        ),
        click.option(
            "--stats",
            "statistics",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Statistics file of zenconvert calibrate.",
        ),
        click.option(
            "--solver",
            type=click.Choice(list(METHODS)),
            help="How codes are found; the format's own by default. gptq fills GGUF types, too.",
        ),
        click.option(
            "--tensor-type",
            "tensor_types",
            multiple=True,
            metavar="REGEX=TYPE",
            help="Type for the output tensors that match; the first match wins. Repeatable.",
        ),
        click.option("--output-type", metavar="TYPE", help="Type of the output head."),
        click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding."),
        click.option(
            "--size",
            metavar="SIZE",
            help="Of gguf:auto: 4.8bpw (bits per weight) or the file's, e.g. 21G.",
        ),
        click.option(
            "--types", metavar="q3_k,q4_k,…", help="What gguf:auto chooses from, tensor by tensor."
        ),
        click.option("--pure", is_flag=True, help="One type for every matrix, no mixture."),
        click.option(
            "--split-max-size", metavar="SIZE", help="Largest output file, e.g. 500M or 4G."
        ),
        ignore_key_option,
        click.option(
            "--text-only",
            is_flag=True,
            help="Only the language model of one that sees or hears, too.",
        ),
        click.option(
            "--mtp",
            type=click.Choice(["keep", "drop"]),
            default="keep",
            show_default=True,
            help="Layers that predict further tokens, where folders have a place for them.",
        ),
        click.option("--layout", metavar="NAME", help="Files as a runtime wants them (ONNX)."),
        click.option("--pre", metavar="NAME", help="Pre-tokenizer, where it cannot be told."),
        click.option(
            "--threads", type=click.IntRange(min=1), help="Workers; all cores by default."
        ),
        click.option("--exact", is_flag=True, help="Refuse every lossy step."),
        click.option(
            "--allow-requantize", is_flag=True, help="Quantize already quantized weights again."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Turn parsed options into arguments of the API."""
    split, asked = given.pop("split_max_size"), given.pop("size")
    options = Options(
        tensor_types=tuple(parse_tensor_type(t) for t in given.pop("tensor_types")),
        output_type=_lower(given.pop("output_type")),
        embedding_type=_lower(given.pop("embedding_type")),
        pure=given.pop("pure"),
        split_max_size=parse_size(split) if split is not None else None,
        size=Budget.parse(asked) if asked is not None else None,
        menu=tuple(kind.lower() for kind in codes(given.pop("types")) or ()),
        pre_tokenizer=given.pop("pre"),
        ignored_keys=tuple(given.pop("ignored_keys")),
        text_only=given.pop("text_only"),
        mtp=given.pop("mtp"),
        layout=_lower(given.pop("layout")),
    )
    return {**given, "options": options}


def _lower(text: str | None) -> str | None:
    return text.lower() if text is not None else None


@click.command()
@click.argument("source", metavar="SRC")
@click.option("--explain", is_flag=True, help="Show every tensor and what decided its type.")
@_shared
def plan(source: str, target: str, explain: bool, as_json: bool, **given: Any) -> None:
    """Show what a conversion would do. Reads headers only."""
    from zenconvert import conversion

    planned = conversion.plan(source, target, **_options(given))
    if as_json:
        echo_json(planned.as_dict())
        return
    if explain:
        echo_table(
            ("tensor", "from", "to", "bytes", "action", "why"),
            [
                (s.target, str(s.from_ or "config"), str(s.to), size(s.bytes), s.action, s.why)
                for s in planned.steps
            ],
        )
        echo()
        echo_table(
            ("fact", "value", "place in the target", "why"),
            [(f.name, f"{f.value!r:.40}", f.place or "none", f.why) for f in planned.facts],
        )
        echo()
    _summarise(planned)


def _summarise(planned: Plan) -> None:
    counts = Counter(
        (str(s.from_ or "config"), str(s.to), s.action, s.exact) for s in planned.steps
    )
    echo_table(
        ("from → to", "action", "exact", "tensors"),
        [
            (f"{a} → {b}", action, "yes" if exact else "no", str(count))
            for (a, b, action, exact), count in counts.items()
        ],
    )
    for fact in planned.facts:
        if fact.told or not fact.exact:
            echo(told(fact))
    files = len(planned.layout.files)
    echo(
        f"\n{planned.target}: {size(planned.output_bytes)} in {files} file{'s'[: files != 1]}, "
        f"peak memory at most {size(planned.peak_ram_bytes)}, "
        + ("every step is exact" if planned.exact else "some steps are lossy")
        + _predicted(planned)
    )


def _predicted(planned: Plan) -> str:
    """What the types that were chosen are predicted to cost."""
    if planned.allotment is None:
        return ""
    return f", predicted divergence {planned.allotment.predicted:.3g} nats per token"


def told(fact: Fact) -> str:
    """One line about a fact that is lost, or that people have to know."""
    return f"{'note' if fact.exact else 'lost'}: {fact.name} {fact.value!r:.60}: {fact.why}"


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--calibrate", is_flag=True, help="Gather the statistics in this run.")
@sampling_options
@click.option("--sequential", is_flag=True, help="Calibrate on the quantized outputs before.")
@click.option(
    "--max-module-error",
    type=click.FloatRange(min=0),
    help="Fail above this weighted relative error.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write what the solver did to every module."
)
@_shared
def convert(
    source: str,
    out: Path,
    target: str,
    calibrate: bool,
    sequential: bool,
    max_module_error: float | None,
    report: Path | None,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Convert SRC to OUT (a .gguf file, or a folder for the other formats).

    A run that was interrupted goes on when it is started again.
    """
    from zenconvert import conversion

    sampling = take_sampling(given)
    if not calibrate and (sampling.given or sequential):
        raise UsageError(f"{(*sampling.given, '--sequential')[0]} goes with --calibrate")
    read = {"the source": source, **{f"--{k}": given[k] for k in ("config", "importance")}}
    read |= {"--stats": given["statistics"], "--samples": sampling.values.get("samples")}
    check_outputs(read, {"--report": report}, out)
    check_models({"the source": source}, {"--report": report}, given["config"])
    solves = calibrate or given["statistics"] is not None
    device = taken(sampling.device) if solves else sampling.device
    if not solves and max_module_error is not None:
        raise UsageError("--max-module-error goes with --calibrate or --stats")
    with stages(quiet=as_json) as progress:
        result = conversion.convert(
            source,
            out,
            target,
            calibrating=Calibrating(**sampling.values, sequential=sequential)
            if calibrate
            else None,
            device=device,
            largest_error=max_module_error,
            force=force,
            progress=progress,
            **_options(given),
        )
    if not solves:
        tell_rounding(result.device)
    side = Written()
    if report is not None:
        table = {name: module.as_dict() for name, module in result.modules.items()}
        with side.trying():
            write_side_file(report, json_text(table, indent=2) + "\n")
    _print_result(result, as_json=as_json)
    side.raise_first()


def _print_result(result: Conversion, *, as_json: bool) -> None:
    lossy = sum(not s.exact for s in result.plan.steps)
    lost = result.plan.lost
    if as_json:
        facts = {**result.plan.as_dict(), "written": [str(f) for f in result.files]}
        modules = {name: module.as_dict() for name, module in result.modules.items()}
        echo_json({**facts, "modules": modules} if modules else facts)
        return
    for file in result.files:
        echo(str(file))
    echo(
        f"{size(result.plan.output_bytes)}, "
        f"{several(len(result.plan.steps), 'tensor', 'tensors')}, "
        + (f"{lossy} of them by a lossy step" if lossy else "all exact")
        + (f"; {several(len(lost), 'fact', 'facts')} lost" if lost else "")
        + _predicted(result.plan),
        err=True,
    )
    for fact in lost:
        echo(told(fact), err=True)
    if result.modules:
        worst = max(result.modules, key=lambda name: result.modules[name].error)
        error = result.modules[worst].error
        echo(f"largest weighted relative error: {error:.3g} in {worst}", err=True)
    for note, names in _notes(result).items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        echo(f"{names[0]}{others}: {note}", err=True)


def _notes(result: Conversion) -> dict[str, list[str]]:
    """What the solver said, and of which modules."""
    found: dict[str, list[str]] = {}
    for name, module in result.modules.items():
        for note in module.notes:
            found.setdefault(note, []).append(name)
    return found
