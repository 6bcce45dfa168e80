"""``zenconvert release``: a recipe's release, and the check of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zenconvert.cli.outputs import (
    Written,
    append_side_file,
    check_models,
    check_outputs,
    write_side_file,
)
from zenconvert.cli.printing import echo, echo_json, echo_table, size, stages
from zenconvert.cli.sampling import codes
from zenconvert.errors import InvalidInput, UsageError

if TYPE_CHECKING:
    from zenconvert.publication.jobs import Event
    from zenconvert.publication.preview import Preview
    from zenconvert.publication.release_run import ReleaseResult
    from zenconvert.publication.signing import Signer

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_RECIPE = click.argument("recipe", metavar="RECIPE.toml", type=_FILE)


class _WithDefault(click.Group):
    """A group whose first command is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else ["run", *args])


@click.group(cls=_WithDefault, context_settings={"help_option_names": ["-h", "--help"]})
def release() -> None:
    """Make and check releases: zenconvert release RECIPE.toml, or one of these commands.

    RECIPE.toml says what is made of which model. The smallest one has [source] path = "…", [output]
    folder = "…" and a [[variant]] with target = "gguf:q4_k_m". `zenconvert release run --help` has
    the options.
    """


@release.command("run")
@_RECIPE
@click.option("--only", metavar="NAME,…", multiple=True, help="Only these variants. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what would be written and taken, and end.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where jobs run: in processes here, or on a Ray cluster ($RAY_ADDRESS).",
)
@click.option("--sign-key", type=_FILE, help="Sign with this elliptic-curve key (PEM).")
@click.option(
    "--sign-keyless", is_flag=True, help="Sign with an identity, by Sigstore; needs the network."
)
@click.option("--publish", is_flag=True, help="Upload to where the recipe's [publish] says.")
@click.option(
    "--allow",
    metavar="VERDICT",
    multiple=True,
    help="Publish variants with this verdict, too; PASS alone by default. Repeatable.",
)
@click.option(
    "--summary",
    "summary_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append a Markdown table of the verdicts to this file (CI job summaries).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run_release(
    recipe: Path,
    only: tuple[str, ...],
    dry_run: bool,
    executor: str,
    sign_key: Path | None,
    sign_keyless: bool,
    publish: bool,
    allow: tuple[str, ...],
    summary_file: Path | None,
    as_json: bool,
) -> None:
    """Make, measure and judge the variants of a recipe.

    A run that was interrupted goes on when it is started again. The key's password is taken from
    $ZENCONVERT_KEY_PASSWORD. Exit codes: 0 all PASS, 1 a variant failed, 5 it cannot fit, 6
    INCONCLUSIVE or ANOMALOUS, 7 interrupted, 8 publishing failed.
    """
    from zenconvert.publication.release_run import plan_release
    from zenconvert.publication.release_run import release as run

    _check_outputs(recipe, {"--sign-key": sign_key}, {"--summary": summary_file})
    wanted = [name for names in only for name in codes(names) or ()]
    if dry_run:
        _print_preview(plan_release(recipe, only=wanted), as_json=as_json)
        return
    if not as_json:
        _say_devices(recipe)
    with stages(quiet=as_json) as progress:
        result = run(
            recipe,
            only=wanted,
            executor=executor,
            signer=_signer(sign_key, keyless=sign_keyless),
            publish=publish,
            allow=[verdict.upper() for verdict in allow] or None,
            tell=None if as_json else _teller(progress),
        )
    side = Written()
    if summary_file is not None:
        from zenconvert.publication.summary import summary

        with side.trying():
            append_side_file(summary_file, summary(result))
    if as_json:
        echo_json(result.as_dict())
    else:
        _print_result(result)
    side.raise_first()
    result.raise_problems()


@release.command("verify")
@click.argument(
    "folder", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--public-key", type=_FILE, help="Whose signature is expected (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_release(folder: Path, public_key: Path | None, as_json: bool) -> None:
    """Check a release, or one shelf of it, offline: is everything what it says?

    Exit codes: 0 it is, 4 it is not.
    """
    from zenconvert.publication.checking import check_release

    with stages(quiet=as_json) as progress:
        findings = check_release(
            folder,
            public_key=public_key,
            progress=lambda done, total: progress("reading", done, total),
        )
    problems = [finding for finding in findings if finding.is_problem]
    if as_json:
        echo_json([{"where": f.where, "what": f.what, "problem": f.is_problem} for f in findings])
    else:
        for finding in findings:
            if not finding.is_problem:
                echo(str(finding))
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise InvalidInput(f"{folder}: the release is not what it says:{listed}")
    if not as_json:
        echo(f"{folder}: everything is what it says")


@release.command("skypilot")
@_RECIPE
@click.argument("out", metavar="OUT.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="Machines.")
@click.option(
    "--volume", required=True, metavar="NAME", help="SkyPilot volume that all machines mount."
)
@click.option("--accelerators", metavar="NAME:N", help="GPUs of a machine, e.g. H100:1.")
def write_skypilot(
    recipe: Path, out: Path, nodes: int, volume: str, accelerators: str | None
) -> None:
    """Write a SkyPilot task that brings up a Ray cluster and makes the release on it."""
    from zenconvert.publication.release_run import plan_release
    from zenconvert.publication.skypilot import task_file

    _check_outputs(recipe, {}, {"OUT.yaml": out})
    preview = plan_release(recipe)
    task = task_file(recipe, preview, nodes=nodes, volume=volume, accelerators=accelerators)
    write_side_file(out, task)
    echo(f"{out}: start it with `sky launch {out}`")


def _check_outputs(
    path: Path, inputs: Mapping[str, Path | None], outputs: Mapping[str, Path | None]
) -> None:
    """Refuse outputs that are what the release is made from, or come to stand in it."""
    check_outputs({"the recipe": path, **inputs}, outputs)
    if not any(outputs.values()):
        return
    from zenconvert.publication.recipe_reader import read

    recipe, _ = read(path)
    check_outputs({**recipe.inputs, "the release": recipe.output.folder}, outputs)
    check_models({"the source": recipe.source.location}, outputs)


def _say_devices(recipe: Path) -> None:
    from zenconvert.publication.recipe_reader import read

    found, _ = read(recipe)
    echo(
        f"device: {found.calibration.device} for calibration, {found.verification.device} for "
        "verification",
        err=True,
    )


def _signer(key: Path | None, *, keyless: bool) -> Signer | None:
    """Raises UsageError for both at once."""
    if key is not None and keyless:
        raise UsageError("--sign-key and --sign-keyless exclude each other")
    if key is None and not keyless:
        return None
    from zenconvert.publication.signing import Signer

    return Signer(key, os.environ.get("ZENCONVERT_KEY_PASSWORD") if key is not None else None)


def _teller(progress: Callable[[str, int, int], None]) -> Callable[[Event], None]:
    from zenconvert.publication import jobs

    def tell(event: Event) -> None:
        title = event.job.title
        match event:
            case jobs.JobSkipped():
                echo(f"{title}: done already", err=True)
            case jobs.JobStarted():
                progress(title, 0, 1)
            case jobs.JobProgress(_, stage, done, total):
                progress(f"{title}: {stage}", done, total)
            case jobs.JobDone():
                progress(title, 1, 1)
            case jobs.JobFailed(_, failure):
                echo(f"{title} failed: {failure.text}", err=True)

    return tell


def _print_result(result: ReleaseResult) -> None:
    from zenconvert.verification.figures import figure

    rows = []
    for variant in result.facts.variants:
        drift = variant.report.overall if variant.report is not None else None
        rows.append(
            (
                variant.name,
                variant.outcome,
                size(variant.size),
                "" if drift is None else figure(drift, "kl.mean"),
                "" if variant.report is None else variant.report.worst_language,
                variant.label if variant.is_made else "",
            )
        )
    echo_table(("variant", "verdict", "size", "KL mean", "worst", "files"), rows)
    if result.published is not None:
        for shelf in result.published.shelves:
            echo(f"{shelf.shelf}: {shelf.url}{'' if shelf.is_new else ' (as it was)'}")
        for name, reason in result.published.refused.items():
            echo(f"{name}: not published: {reason}")
    echo(f"{result.folder}: check it with `zenconvert release verify {result.folder}`")


def _print_preview(preview: Preview, *, as_json: bool) -> None:
    if as_json:
        echo_json(preview.as_dict())
    else:
        rows: list[tuple[Any, ...]] = [
            (file.path, size(file.size), str(file.size), "yes" if variant.made else "no")
            for variant in preview.variants
            for file in variant.files
        ]
        if (extra := preview.imatrix) is not None:
            done = "no" if preview.gathers else "yes"
            rows.append((extra.path, size(extra.size), str(extra.size), done))
        echo_table(("file", "size", "bytes", "done"), rows)
        echo()
        for variant in preview.variants:
            kind = "exact" if variant.exact else "; ".join(variant.losses)
            measured = ", ".join(variant.engines) or "nothing"
            echo(f"{variant.name} ({variant.target}): {kind}; measured by {measured}")
        peak = preview.peak
        vram = f", {size(peak.vram)} of GPU memory" if peak.vram else ""
        echo(
            f"\nstill to do: {size(peak.disk)} of disk ({size(preview.free_disk)} are free), at "
            f"most {size(peak.ram)} of memory ({size(preview.free_ram)} are free){vram}"
            + ("; statistics are to be gathered" if preview.gathers else "")
        )
        echo("cards, reports and sums come to a few megabytes more")
    preview.check()
