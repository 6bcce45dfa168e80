"""The jobs of a release: one walk for statistics, then every variant is made, then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from zenconvert.publication.jobs import Job, Task, key
from zenconvert.publication.preparation import Prepared, may_calibrate
from zenconvert.publication.recipe import VariantRecipe
from zenconvert.publication.resources import gathering, making, verifying
from zenconvert.verification.digests import digest
from zenconvert.verification.states import ids_digest

STATISTICS: Final = "statistics"
"""Name of the job that gathers them."""
_ONLY_RESOURCES: Final = ("max_ram", "max_vram", "samples")
"""Parts of a calibration that do not change the result; the samples' content stands for them."""

_SMALL: Final = 1 << 26
"""Largest file beside the weights that is looked at, bytes."""


class Schedule:
    """Keys are made of the source's bytes, the token ids that are read, and the recipe's parts."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe = prepared, prepared.recipe

    @cached_property
    def source(self) -> str:
        """Digest of everything that the source's folder gives."""
        return digest(_files(self.prepared))

    @cached_property
    def calibration(self) -> str:
        """Key of what the quantizers learn from; empty where none does."""
        selection = self.prepared.selection
        if selection is None:
            return ""
        calibration = self.recipe.calibration
        settings = {
            name: value
            for name, value in asdict(calibration.calibrating).items()
            if name not in _ONLY_RESOURCES
        }
        return self._key(
            "calibration",
            tokens=selection.digest,
            settings=settings,
            device=calibration.device,
            threads=self.recipe.threads,
        )

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Those of the variants that are wanted, in an order in which they can run."""
        prepared = self.prepared
        made = [self.making(variant) for variant in prepared.variants]
        measured = [self.measuring(v) for v in prepared.variants if prepared.engines[v.name]]
        # the first one alone: it leaves the reference's states for the others
        alone = tuple(job.key for job in measured[:1])
        measured[1:] = [replace(job, after=alone) for job in measured[1:]]
        gathered = [self._gathering()] if any(job.needs for job in made) else []
        return (*gathered, *made, *measured)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Of the making and measuring of all variants of the recipe."""
        variants = self.recipe.variants
        return frozenset(job(v).key for v in variants for job in (self.making, self.measuring))

    def task(self, batch: Sequence[Job], served: Sequence[str] = ()) -> Task:
        """What a worker is told for jobs of one kind; ``served`` are the variants that will need
        what is gathered."""
        learns = any(job.kind == "gather" or job.needs for job in batch if job.kind != "verify")
        return Task(
            kind=batch[0].kind,
            jobs=tuple((job.key, job.name) for job in batch),
            recipe=str(self.recipe.path),
            text=self.recipe.data.decode(),
            calibration=self.calibration if learns else "",
            served=tuple(served),
            reads=batch[0].reads or "",
            device=batch[0].device,
        )

    def _key(self, kind: str, **parts: Any) -> str:
        return key(kind, source=self.source, **parts)

    @cached_property
    def _gather_key(self) -> str:
        wanted = [v for v in self.prepared.variants if v.name in self.prepared.calibrated]
        made = sorted(self._made_key(variant) for variant in wanted)
        return self._key("gather", calibration=self.calibration, variants=made)

    def _gathering(self) -> Job:
        return Job(
            self._gather_key,
            "gather",
            STATISTICS,
            ram=gathering(self.prepared).ram,
            device=self.recipe.calibration.device,
            calibration=self.calibration,
        )

    def _made_key(self, variant: VariantRecipe) -> str:
        parts = asdict(self.recipe.production(variant))
        parts["out"] = variant.out(self.recipe.source.name)
        learns = variant.name in self.prepared.calibrated
        return self._key("variant", **parts, calibration=self.calibration if learns else "")

    def making(self, variant: VariantRecipe) -> Job:
        """The job that makes a variant."""
        return Job(
            self._made_key(variant),
            "variant",
            variant.name,
            needs=(self._gather_key,) if variant.name in self.prepared.calibrated else (),
            ram=making(self.prepared, variant).ram,
            group="calibrated" if may_calibrate(self.recipe, variant) else "plain",
        )

    def measuring(self, variant: VariantRecipe) -> Job:
        """The job that measures a variant."""
        verification, made = self.recipe.verification, self._made_key(variant)
        own = self._key(
            "verify",
            variant=made,
            ids=ids_digest(self.prepared.windows),
            asked=variant.engines,
            engines=self.prepared.engines[variant.name],
            device=verification.device,
            threads=self.recipe.threads,
        )
        return Job(
            own,
            "verify",
            variant.name,
            needs=(made,),
            reads=made,
            ram=verifying(self.prepared, variant).ram,
            device=verification.device,
        )


def _files(prepared: Prepared) -> list[Path]:
    """Weights, and what else a folder holds that may come into an output."""
    checkpoint = prepared.checkpoint
    found = dict.fromkeys(checkpoint.files)
    if checkpoint.path.is_dir():
        inside = (p for p in sorted(checkpoint.path.iterdir()) if p.is_file())
        small = (p for p in inside if p.name[0] != "." and p.stat().st_size <= _SMALL)
        found |= dict.fromkeys(small)
    return list(found)
