"""``zenconvert doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zenconvert.cli.printing import echo, echo_json, echo_table, size, stages
from zenconvert.errors import EngineFailed
from zenconvert.verification.engines import ALL, engine_names

if TYPE_CHECKING:
    from zenconvert.verification.doctor import Diagnosis, WritableFolder


@click.command()
@click.option(
    "--engine", "engines", multiple=True,
    type=click.Choice([name for name in engine_names() if name != ALL]),
    help="Try only this engine. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(engines: tuple[str, ...], as_json: bool) -> None:
    """Say what is installed, which engines work on this machine, and what to mend.

    Every engine runs the bundled model in a process of its own. Exit codes: 0 what is installed
    works, 6 something does not, or is missing though everything needs it.
    """
    from zenconvert.verification.doctor import examine

    with stages(quiet=as_json) as progress:
        found = examine(engines or None, progress)
    if as_json:
        echo_json(found.as_dict())
    else:
        _print(found)
    if not found.is_well:
        broken = [one for one in found.engines if one.installed and not one.works]
        lines = [f"{name} is missing: install zenconvert anew" for name in found.missing]
        lines += [f"{one.engine}: {one.text}. {one.mend}" for one in broken]
        listed = "".join(f"\n  - {line}" for line in lines)
        raise EngineFailed(f"something that is installed does not work here:{listed}")


def _print(found: Diagnosis) -> None:
    echo(f"zenconvert {found.version}, Python {found.python}")
    echo(f"{found.system}, {found.cores} usable core{'s'[: found.cores != 1]}")
    echo(f"memory: {size(found.ram_free)} free")
    for number, gpu in enumerate(found.gpus):
        echo(f"GPU {number}: {gpu['name']}, {size(gpu['free'])} of {size(gpu['memory'])} free")
    if not found.gpus:
        echo("GPU: none that torch can use")
    for name, place in (("cache", found.cache), ("kernels", found.kernels), ("here", found.here)):
        echo(f"{name}: {_place(place)}")
    echo()
    echo_table(("package", "version"), [(n, v or "–") for n, v in found.packages.items()])
    echo()
    for one in found.engines:
        state = "works" if one.works else "DOES NOT WORK" if one.installed else "–"
        install = "" if one.installed else f"; {one.mend}"
        echo(f"engine {one.engine}: {state} ({one.text}{install})")
    if found.advice:
        echo("\nto mend or to install:")
    for line in found.advice:
        echo(f"  - {line}")


def _place(place: WritableFolder) -> str:
    written = "" if place.writable else ", which CANNOT BE WRITTEN"
    return f"{place.path}{written}, {size(place.free)} of disk free"
