"""What a release will write and take, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zenconvert.base.machine import free_disk, free_ram
from zenconvert.errors import NotEnoughResources
from zenconvert.publication.evidence import EVIDENCE, IMATRIX
from zenconvert.publication.graph import undone
from zenconvert.publication.job_bodies import losses
from zenconvert.publication.ledger import STATE, Ledger
from zenconvert.publication.preparation import Prepared
from zenconvert.publication.recipe import VariantRecipe
from zenconvert.publication.resources import Need, gathering, making, statistics, verifying
from zenconvert.publication.schedule import Schedule
from zenconvert.solve.calibration import imatrix_bytes


@dataclass(frozen=True, slots=True)
class FilePreview:
    """A file that a variant has."""

    path: str
    """Below the release's folder."""
    size: int
    """Exact, unless a solver has to leave a module in floats."""


@dataclass(frozen=True, slots=True)
class VariantPreview:
    """What becomes of one variant."""

    name: str
    target: str
    files: tuple[FilePreview, ...]
    exact: bool
    losses: tuple[str, ...]
    """What is lossy, one line each kind of step."""
    engines: tuple[str, ...]
    """What will run it."""
    made: bool
    """It is there already."""
    measured: bool
    """So is its report."""
    making: Need
    verifying: Need

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Preview:
    """A release that was not made yet."""

    folder: Path
    variants: tuple[VariantPreview, ...]
    imatrix: FilePreview | None
    """llama.cpp's importance matrix, where GGUF files are made with statistics."""
    gathers: bool
    """Whether the reference model is still to be walked over for statistics."""
    gathering: Need
    free_disk: int
    """With what an unfinished run has taken already."""
    free_ram: int
    free_vram: int | None
    """None where no GPU is used."""

    @property
    def peak(self) -> Need:
        """The most that a single job takes, and the disk space that all take."""
        needs = [*self._needs()]
        return Need(
            ram=max((need.ram for need in needs), default=0),
            vram=max((need.vram for need in needs), default=0),
            disk=sum(variant.size for variant in self.variants if not variant.made)
            + (self.gathering.disk if self.gathers else 0)
            + max((v.verifying.disk for v in self.variants if not v.measured), default=0),
        )

    def _needs(self) -> Iterator[Need]:
        if self.gathers:
            yield self.gathering
        for variant in self.variants:
            if not variant.made:
                yield variant.making
            if not variant.measured:
                yield variant.verifying

    def check(self) -> None:
        """Raise NotEnoughResources, with everything that cannot fit."""
        peak = self.peak
        problems = []
        if peak.disk > self.free_disk:
            problems.append(f"{peak.disk} bytes of disk, and {self.free_disk} are free")
        if peak.ram > self.free_ram:
            problems.append(f"{peak.ram} bytes of memory, and {self.free_ram} are free")
        if self.free_vram is not None and peak.vram > self.free_vram:
            problems.append(f"{peak.vram} bytes of GPU memory, and {self.free_vram} are free")
        if problems:
            raise NotEnoughResources(
                f"{self.folder}: the release takes {'; '.join(problems)}; make fewer variants at a "
                'time (--only), or measure them with the torch engine alone (engines = ["torch"])'
            )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "folder": str(self.folder), "peak": asdict(self.peak)}


def preview_of(prepared: Prepared) -> Preview:
    """Look at a prepared recipe, and at what its folder has already."""
    recipe, schedule = prepared.recipe, Schedule(prepared)
    ledger = Ledger(recipe.output.folder)
    left = {(str(job.kind), job.name) for job in undone(schedule.jobs, ledger)}
    variants = tuple(_variant(prepared, variant, left) for variant in prepared.variants)
    return Preview(
        folder=recipe.output.folder,
        variants=variants,
        imatrix=_imatrix(prepared),
        gathers=any(kind == "gather" for kind, _ in left),
        gathering=gathering(prepared),
        free_disk=free_disk(recipe.output.folder) + _begun(recipe.output.folder),
        free_ram=free_ram(),
        free_vram=_free_vram(recipe.calibration.device, recipe.verification.device),
    )


def _variant(
    prepared: Prepared, variant: VariantRecipe, left: set[tuple[str, str]]
) -> VariantPreview:
    plan = prepared.plans[variant.name]
    files = tuple(
        FilePreview(f"{variant.shelf}/{file.name}", file.size)
        for file in plan.layout.files
        if file.name not in EVIDENCE
    )
    return VariantPreview(
        name=variant.name,
        target=str(variant.target),
        files=files,
        exact=plan.exact,
        losses=tuple(losses(plan)),
        engines=prepared.engines[variant.name],
        made=("variant", variant.name) not in left,
        measured=("verify", variant.name) not in left,
        making=making(prepared, variant),
        verifying=verifying(prepared, variant),
    )


def _imatrix(prepared: Prepared) -> FilePreview | None:
    run = statistics(prepared)
    shelf = next((one.shelf for one in prepared.recipe.variants if one.is_file), None)
    if run is None or shelf is None:
        return None
    return FilePreview(f"{shelf}/{IMATRIX}", imatrix_bytes(run))


def _begun(folder: Path) -> int:
    """Bytes of what an interrupted run began, and the next one goes on with."""
    places = [*folder.glob(".*.partial"), *folder.glob("*/.*.partial")]
    places += (folder / STATE).glob("gathered-*")
    files = (file for place in places for file in place.rglob("*") if file.is_file())
    return sum(file.stat().st_blocks * 512 for file in files)


def _free_vram(*devices: str) -> int | None:
    gpus = [device for device in devices if device.startswith("cuda")]
    if not gpus:
        return None
    import torch

    return min(int(torch.cuda.mem_get_info(device)[0]) for device in gpus)
