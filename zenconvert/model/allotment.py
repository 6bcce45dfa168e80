"""How large an output may be, and the types that its tensors were given for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.errors import UsageError

AUTO: Final = "auto"
"""The type of a target whose tensors have types of their own, chosen by what errors cost."""
_BITS: Final = re.compile(r"(\d+(?:\.\d+)?)\s*bpw", re.IGNORECASE)
_BYTES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Budget:
    """How large an output may be; one of the two is given."""

    nbytes: int | None = None
    """Of all its files."""
    bits: float | None = None
    """Of tensor data for each number of the model, as llama.cpp counts them."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse ``4.8bpw``, or ``21G``, ``850M`` (decimal units). Raises UsageError."""
        if (match := _BITS.fullmatch(text.strip())) is not None and float(match[1]) > 0:
            return cls(bits=float(match[1]))
        match = _BYTES.fullmatch(text.strip())
        if match is None or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
            raise UsageError(
                f"size {text!r:.80} is malformed; write bits per weight, e.g. 4.8bpw, or a number "
                "with K, M or G, e.g. 21G"
            )
        return cls(nbytes=size)

    def __str__(self) -> str:
        return f"{self.bits:g}bpw" if self.bits is not None else f"{self.nbytes} bytes"


@dataclass(frozen=True, slots=True)
class Allotted:
    """The type that a tensor of the output was given."""

    name: str
    type: str
    nbytes: int
    nats: float | None
    """What its errors are predicted to cost, nats of divergence per token; None where nothing is
    known of it."""

    @property
    def why(self) -> str:
        """What decided the type."""
        if self.nats is None:
            return "nothing is known of what its errors cost: the largest of the types"
        return f"chosen by what its errors cost, {self.nats:.3g} nats"

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "type": self.type, "bytes": self.nbytes, "nats": self.nats}


@dataclass(frozen=True, slots=True)
class Allotment:
    """The types of all tensors that could have several."""

    common: str
    """The type of most weights: what files name that have a place for one."""
    tensors: tuple[Allotted, ...]

    @property
    def predicted(self) -> float:
        """Mean divergence from the source, nats per token, on texts as those of the statistics."""
        return sum(one.nats for one in self.tensors if one.nats is not None)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        tensors = [one.as_dict() for one in self.tensors]
        return {"predicted_kl": self.predicted, "common_type": self.common, "tensors": tensors}
